/* GGUF -> hyperparameters and weights, with every shape checked against every other. */
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"

enum { MAX_HEAD_DIM = 256, MAX_NAME = 96 };

/* ---- hyperparameters ---- */

/* Reads "arch.suffix" keys. */
typedef struct reader {
    const pykvq_gguf *gguf;
    const char *arch;
    char key[MAX_NAME];
} reader;

static const char *key_of(reader *r, const char *suffix) {
    snprintf(r->key, sizeof r->key, "%s.%s", r->arch, suffix);
    return r->key;
}

static pykvq_status read_count(reader *r, const char *suffix, bool required, uint32_t most, uint32_t *out) {
    KVQ_TRY(kvq_gguf_u32(r->gguf, key_of(r, suffix), required, out));
    if (*out == 0 || *out > most)
        return kvq_fail(PYKVQ_E_FORMAT, "%s: is %u, expected 1 to %u", r->key, *out, most);
    return PYKVQ_OK;
}

/* The same for a value that may be an array with one element per layer, which must then agree. */
static pykvq_status read_layer_count(reader *r, const char *suffix, bool required, uint32_t n_layer, uint32_t most,
                                     uint32_t *out) {
    pykvq_gguf_value value;
    if (!kvq_gguf_find(r->gguf, key_of(r, suffix), &value) || !value.is_array)
        return read_count(r, suffix, required, most, out);
    uint32_t *each;
    KVQ_TRY(kvq_alloc_array((void **)&each, n_layer, sizeof *each, "model"));
    pykvq_status status = kvq_gguf_u32_each(r->gguf, r->key, required, n_layer, each);
    for (uint32_t i = 0; status == PYKVQ_OK && i < n_layer; i++)
        if (each[i] != each[0] || each[i] == 0 || each[i] > most)
            status = kvq_fail(PYKVQ_E_UNSUPPORTED, "%s: differs between layers (%u and %u), which is not supported", r->key,
                              each[0], each[i]);
    if (status == PYKVQ_OK)
        *out = each[0];
    kvq_free(each, n_layer * sizeof *each);
    return status;
}

static pykvq_status read_real(reader *r, const char *suffix, bool required, float least, float *out) {
    KVQ_TRY(kvq_gguf_f32(r->gguf, key_of(r, suffix), required, out));
    if (!isfinite(*out) || *out < least)
        return kvq_fail(PYKVQ_E_FORMAT, "%s: is %g, expected a number of at least %g", r->key, (double)*out, (double)least);
    return PYKVQ_OK;
}

static pykvq_status read_rope(reader *r, const kvq_arch *arch, kvq_hparams *h) {
    kvq_rope_params *p = &h->rope;
    *p = (kvq_rope_params){.base = 10000.0f,
                           .factor = 1.0f,
                           .beta_fast = 32.0f,
                           .beta_slow = 1.0f,
                           .magnitude = 1.0f,
                           .n_ctx_orig = h->n_ctx_train};
    KVQ_TRY(read_real(r, "rope.freq_base", false, 1.0f, &p->base));
    p->local_base = arch->local_rope_base != 0.0f ? arch->local_rope_base : p->base;
    KVQ_TRY(read_real(r, "rope.freq_base_swa", false, 1.0f, &p->local_base));
    KVQ_TRY(read_count(r, "rope.scaling.original_context_length", false, UINT32_MAX, &p->n_ctx_orig));
    kvq_str type = {"linear", 6};
    KVQ_TRY(kvq_gguf_str(r->gguf, key_of(r, "rope.scaling.type"), false, &type));
    if (type.n == 4 && memcmp(type.data, "none", 4) == 0)
        return PYKVQ_OK;
    KVQ_TRY(read_real(r, "rope.scale_linear", false, 0.0f, &p->factor)); /* the key of old files */
    KVQ_TRY(read_real(r, "rope.scaling.factor", false, 0.0f, &p->factor));
    if (p->factor == 0.0f) /* some converters write 0 for "none" */
        p->factor = 1.0f;
    KVQ_TRY(read_real(r, "rope.scaling.attn_factor", false, 0.0f, &p->magnitude));
    p->yarn = type.n == 4 && memcmp(type.data, "yarn", 4) == 0;
    if (p->yarn) {
        KVQ_TRY(read_real(r, "rope.scaling.yarn_beta_fast", false, 0.0f, &p->beta_fast));
        KVQ_TRY(read_real(r, "rope.scaling.yarn_beta_slow", false, 0.0f, &p->beta_slow));
        float factor = 1.0f + 0.1f * logf(p->factor);
        KVQ_TRY(read_real(r, "rope.scaling.yarn_attn_factor", false, 0.0f, &factor));
        p->magnitude *= factor;
    }
    return PYKVQ_OK;
}

/* What this build would run wrongly is refused. */
static pykvq_status refuse_variants(reader *r) {
    uint32_t n_expert = 0;
    bool causal = true;
    KVQ_TRY(kvq_gguf_u32(r->gguf, key_of(r, "expert_count"), false, &n_expert));
    if (n_expert > 0)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "%s: is %u; mixtures of experts are not supported", r->key, n_expert);
    KVQ_TRY(kvq_gguf_bool(r->gguf, key_of(r, "attention.causal"), false, &causal));
    if (!causal)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "%s: is false; only causal models are supported", r->key);
    return PYKVQ_OK;
}

static pykvq_status read_hparams(reader *r, const kvq_arch *arch, kvq_hparams *h) {
    KVQ_TRY(refuse_variants(r));
    KVQ_TRY(read_count(r, "block_count", true, 4096, &h->n_layer));
    KVQ_TRY(read_count(r, "embedding_length", true, 1 << 20, &h->n_embd));
    KVQ_TRY(read_count(r, "context_length", true, UINT32_MAX, &h->n_ctx_train));
    KVQ_TRY(read_layer_count(r, "feed_forward_length", true, h->n_layer, 1 << 24, &h->n_ff));
    KVQ_TRY(read_layer_count(r, "attention.head_count", true, h->n_layer, 1 << 14, &h->n_head));
    h->n_head_kv = h->n_head;
    KVQ_TRY(read_layer_count(r, "attention.head_count_kv", false, h->n_layer, 1 << 14, &h->n_head_kv));
    if (h->n_head % h->n_head_kv != 0)
        return kvq_fail(PYKVQ_E_FORMAT, "%s: %u KV heads do not divide %u heads", r->key, h->n_head_kv, h->n_head);
    h->head_dim = h->n_embd / h->n_head;
    KVQ_TRY(read_count(r, "attention.key_length", false, MAX_HEAD_DIM, &h->head_dim));
    uint32_t value_dim = h->head_dim;
    KVQ_TRY(read_count(r, "attention.value_length", false, MAX_HEAD_DIM, &value_dim));
    if (h->head_dim % 16 != 0 || value_dim != h->head_dim)
        return kvq_fail(PYKVQ_E_UNSUPPORTED,
                        "%s: heads of %u (keys) and %u (values) elements; supported are equal multiples of 16 up to %d",
                        r->arch, h->head_dim, value_dim, MAX_HEAD_DIM);
    h->n_rot = h->head_dim;
    KVQ_TRY(read_count(r, "rope.dimension_count", false, h->head_dim, &h->n_rot));
    if (h->n_rot % 2 != 0)
        return kvq_fail(PYKVQ_E_FORMAT, "%s: is %u, expected an even number", r->key, h->n_rot);
    KVQ_TRY(read_real(r, "attention.layer_norm_rms_epsilon", true, 0.0f, &h->norm_eps));
    h->attn_softcap = arch->default_attn_softcap;
    h->logit_softcap = arch->default_logit_softcap;
    if (arch->post_norms) {
        KVQ_TRY(read_real(r, "attn_logit_softcapping", false, 0.0f, &h->attn_softcap));
        KVQ_TRY(read_real(r, "final_logit_softcapping", false, 0.0f, &h->logit_softcap));
    }
    if (arch->window_period > 0) {
        h->n_window = arch->default_window;
        KVQ_TRY(kvq_gguf_u32(r->gguf, key_of(r, "attention.sliding_window"), false, &h->n_window));
    }
    bool wide = arch->wide_scale_n_layer == h->n_layer;
    h->attn_scale = 1.0f / sqrtf((float)(wide ? h->n_embd / h->n_head : h->head_dim));
    h->embed_scale = arch->embed_scaled ? sqrtf((float)h->n_embd) : 1.0f;
    return read_rope(r, arch, h);
}

/* ---- weights ---- */

typedef struct loader {
    pykvq_model *model;
    uint64_t n_taken;      /* tensors that have found their place ... */
    const uint8_t **taken; /* ... and their data, (n_tensors of the file) */
} loader;

static bool exists(const loader *l, const char *name) {
    pykvq_gguf_tensor tensor;
    return kvq_gguf_find_tensor(l->model->gguf, name, &tensor);
}

/* The tensor `name` of n_out rows of n_in elements. If it is missing and not required, *out has no data. */
static pykvq_status take(loader *l, const char *name, uint32_t n_in, uint32_t n_out, bool required, kvq_weight *out) {
    *out = (kvq_weight){0};
    pykvq_gguf_tensor t;
    if (!kvq_gguf_find_tensor(l->model->gguf, name, &t)) {
        if (!required)
            return PYKVQ_OK;
        return kvq_fail(PYKVQ_E_FORMAT, "tensor '%s': missing, a model of architecture %s needs it", name,
                        l->model->arch->name);
    }
    if (t.ne[0] != n_in || t.ne[1] != n_out || t.ne[2] != 1 || t.ne[3] != 1)
        return kvq_fail(PYKVQ_E_FORMAT, "tensor '%s': has shape (%llu, %llu), expected (%u, %u)", name,
                        (unsigned long long)t.ne[1], (unsigned long long)t.ne[0], n_out, n_in);
    const kvq_wtype *type = kvq_wtype_find(t.type);
    if (type == NULL) {
        const char *type_name = kvq_wtype_name(t.type);
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "tensor '%s': weight type %s (%u) is not supported", name,
                        type_name ? type_name : "unknown", t.type);
    }
    *out = (kvq_weight){type, n_in, n_out, t.data, NULL};
    l->model->n_params += (uint64_t)n_in * n_out;
    if (l->n_taken < pykvq_gguf_n_tensors(l->model->gguf)) /* a hostile file could hold one name that serves twice */
        l->taken[l->n_taken++] = t.data;
    return PYKVQ_OK;
}

/* Rows first .. first + n_rows - 1 of a weight. */
static kvq_weight rows(const kvq_weight *w, uint32_t first, uint32_t n_rows) {
    kvq_weight part = *w;
    part.data += first * kvq_weight_row_bytes(w);
    part.n_out = n_rows;
    return part;
}

/* Elements first .. first + n - 1 of a bias, which only float types can give. */
static pykvq_status elements(const kvq_weight *w, uint32_t first, uint32_t n, kvq_weight *out) {
    *out = *w;
    if (w->data == NULL)
        return PYKVQ_OK;
    if (w->type->block_elements != 1)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "a fused bias of type %s is not supported", w->type->name);
    out->data += (size_t)first * w->type->block_bytes;
    out->n_in = n;
    return PYKVQ_OK;
}

static const char *layer_name(char *buffer, uint32_t layer, const char *suffix) {
    snprintf(buffer, MAX_NAME, "blk.%u.%s", layer, suffix);
    return buffer;
}

static pykvq_status take_qkv(loader *l, uint32_t i, kvq_layer *layer) {
    const kvq_hparams *h = &l->model->h;
    char name[MAX_NAME];
    uint32_t n_q = h->n_head * h->head_dim, n_kv = h->n_head_kv * h->head_dim, n_all = n_q + 2 * n_kv;
    if (!exists(l, layer_name(name, i, "attn_qkv.weight"))) {
        KVQ_TRY(take(l, layer_name(name, i, "attn_q.weight"), h->n_embd, n_q, true, &layer->q));
        KVQ_TRY(take(l, layer_name(name, i, "attn_k.weight"), h->n_embd, n_kv, true, &layer->k));
        KVQ_TRY(take(l, layer_name(name, i, "attn_v.weight"), h->n_embd, n_kv, true, &layer->v));
        KVQ_TRY(take(l, layer_name(name, i, "attn_q.bias"), n_q, 1, false, &layer->q_bias));
        KVQ_TRY(take(l, layer_name(name, i, "attn_k.bias"), n_kv, 1, false, &layer->k_bias));
        return take(l, layer_name(name, i, "attn_v.bias"), n_kv, 1, false, &layer->v_bias);
    }
    kvq_weight all, bias;
    KVQ_TRY(take(l, layer_name(name, i, "attn_qkv.weight"), h->n_embd, n_all, true, &all));
    KVQ_TRY(take(l, layer_name(name, i, "attn_qkv.bias"), n_all, 1, false, &bias));
    layer->q = rows(&all, 0, n_q);
    layer->k = rows(&all, n_q, n_kv);
    layer->v = rows(&all, n_q + n_kv, n_kv);
    KVQ_TRY(elements(&bias, 0, n_q, &layer->q_bias));
    KVQ_TRY(elements(&bias, n_q, n_kv, &layer->k_bias));
    return elements(&bias, n_q + n_kv, n_kv, &layer->v_bias);
}

static pykvq_status take_gate_up(loader *l, uint32_t i, kvq_layer *layer) {
    const kvq_hparams *h = &l->model->h;
    char name[MAX_NAME];
    if (exists(l, layer_name(name, i, "ffn_gate.weight"))) {
        KVQ_TRY(take(l, name, h->n_embd, h->n_ff, true, &layer->gate));
        return take(l, layer_name(name, i, "ffn_up.weight"), h->n_embd, h->n_ff, true, &layer->up);
    }
    kvq_weight both;
    KVQ_TRY(take(l, layer_name(name, i, "ffn_up.weight"), h->n_embd, 2 * h->n_ff, true, &both));
    layer->gate = rows(&both, 0, h->n_ff);
    layer->up = rows(&both, h->n_ff, h->n_ff);
    return PYKVQ_OK;
}

static pykvq_status take_layer(loader *l, uint32_t i, kvq_layer *layer) {
    const kvq_arch *arch = l->model->arch;
    const kvq_hparams *h = &l->model->h;
    char name[MAX_NAME];
    uint32_t n_q = h->n_head * h->head_dim;
    KVQ_TRY(take(l, layer_name(name, i, "attn_norm.weight"), h->n_embd, 1, true, &layer->attn_norm));
    KVQ_TRY(take_qkv(l, i, layer));
    if (arch->qk_norm) {
        KVQ_TRY(take(l, layer_name(name, i, "attn_q_norm.weight"), h->head_dim, 1, true, &layer->q_norm));
        KVQ_TRY(take(l, layer_name(name, i, "attn_k_norm.weight"), h->head_dim, 1, true, &layer->k_norm));
    }
    KVQ_TRY(take(l, layer_name(name, i, "attn_output.weight"), n_q, h->n_embd, true, &layer->o));
    KVQ_TRY(take(l, layer_name(name, i, "attn_output.bias"), h->n_embd, 1, false, &layer->o_bias));
    KVQ_TRY(take(l, layer_name(name, i, "ffn_norm.weight"), h->n_embd, 1, true, &layer->ffn_norm));
    KVQ_TRY(take_gate_up(l, i, layer));
    KVQ_TRY(take(l, layer_name(name, i, "ffn_down.weight"), h->n_ff, h->n_embd, true, &layer->down));
    if (arch->post_norms) {
        KVQ_TRY(take(l, layer_name(name, i, "post_attention_norm.weight"), h->n_embd, 1, true, &layer->post_attn_norm));
        KVQ_TRY(take(l, layer_name(name, i, "post_ffw_norm.weight"), h->n_embd, 1, true, &layer->post_ffn_norm));
    }
    layer->roped = arch->nope_period == 0 || (i + 1) % arch->nope_period != 0;
    return PYKVQ_OK;
}

/* Which layers see only a window: all but the last of each period, or one flag per layer. */
static pykvq_status mark_windows(reader *r, pykvq_model *m) {
    if (m->h.n_window == 0 || m->h.n_window >= m->h.n_ctx_train) {
        m->h.n_window = 0;
        return PYKVQ_OK;
    }
    uint32_t period = m->arch->window_period;
    pykvq_gguf_value value;
    const char *key = key_of(r, "attention.sliding_window_pattern");
    bool flags = kvq_gguf_find(m->gguf, key, &value) && value.is_array;
    if (flags && (value.type != PYKVQ_GGUF_BOOL || value.n != m->h.n_layer))
        return kvq_fail(PYKVQ_E_FORMAT, "%s: expected one flag for each of %u layers", key, m->h.n_layer);
    if (!flags)
        KVQ_TRY(kvq_gguf_u32(m->gguf, key, false, &period));
    if (period == 0)
        period = KVQ_ALL_WINDOWED;
    for (uint32_t i = 0; i < m->h.n_layer; i++)
        m->weights.layers[i].windowed = flags ? value.data[i] != 0 : i % period < period - 1;
    return PYKVQ_OK;
}

/* The optional RoPE factor tensors, as float. */
static pykvq_status take_rope_factors(loader *l) {
    pykvq_model *m = l->model;
    uint32_t n = m->h.n_rot / 2;
    KVQ_TRY(kvq_alloc_array((void **)&m->rope_factors, 2 * (size_t)n, sizeof(float), "RoPE factors"));
    struct {
        const char *name;
        float *values;
        const float **used;
    } tensors[] = {{"rope_freqs.weight", m->rope_factors, &m->h.rope.factors},
                   {"rope_factors_short.weight", m->rope_factors, &m->h.rope.factors},
                   {"rope_factors_long.weight", m->rope_factors + n, &m->h.rope.long_factors}};
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        kvq_weight w;
        KVQ_TRY(take(l, tensors[i].name, n, 1, false, &w));
        if (w.data == NULL)
            continue;
        w.type->dequantize(w.data, tensors[i].values, n);
        *tensors[i].used = tensors[i].values;
        for (uint32_t j = 0; j < n; j++)
            if (!(tensors[i].values[j] > 0.0f))
                return kvq_fail(PYKVQ_E_FORMAT, "tensor '%s': holds %g, expected positive factors", tensors[i].name,
                                (double)tensors[i].values[j]);
    }
    return PYKVQ_OK;
}

/* A tensor without a place means arithmetic this build does not know: refused by name. */
static pykvq_status refuse_unknown_tensors(const loader *l) {
    const pykvq_gguf *gguf = l->model->gguf;
    uint64_t n = pykvq_gguf_n_tensors(gguf);
    for (uint64_t i = 0; l->n_taken < n && i < n; i++) {
        pykvq_gguf_tensor t;
        KVQ_TRY(pykvq_gguf_tensor_at(gguf, i, &t));
        uint64_t j = 0;
        while (j < l->n_taken && l->taken[j] != t.data)
            j++;
        if (j == l->n_taken)
            return kvq_fail(PYKVQ_E_UNSUPPORTED, "tensor '%.*s': not part of architecture %s as this build runs it",
                            (int)(t.n_name < MAX_NAME ? t.n_name : MAX_NAME), t.name, l->model->arch->name);
    }
    return PYKVQ_OK;
}

static pykvq_status take_weights(loader *l) {
    pykvq_model *m = l->model;
    const kvq_hparams *h = &m->h;
    if (h->n_layer > pykvq_gguf_n_tensors(m->gguf))
        return kvq_fail(PYKVQ_E_FORMAT, "the file has %llu tensors, too few for %u layers",
                        (unsigned long long)pykvq_gguf_n_tensors(m->gguf), h->n_layer);
    KVQ_TRY(kvq_alloc_array((void **)&m->weights.layers, h->n_layer, sizeof(kvq_layer), "layers"));
    m->weights.n_layer = h->n_layer;
    KVQ_TRY(take(l, "token_embd.weight", h->n_embd, h->n_vocab, true, &m->weights.embed));
    KVQ_TRY(take(l, "output_norm.weight", h->n_embd, 1, true, &m->weights.output_norm));
    KVQ_TRY(take(l, "output.weight", h->n_embd, h->n_vocab, false, &m->weights.output));
    if (m->weights.output.data == NULL)
        m->weights.output = m->weights.embed;
    for (uint32_t i = 0; i < h->n_layer; i++)
        KVQ_TRY(take_layer(l, i, &m->weights.layers[i]));
    KVQ_TRY(take_rope_factors(l));
    return refuse_unknown_tensors(l);
}

static pykvq_status load_weights(pykvq_model *m) {
    loader l = {.model = m};
    uint64_t n_tensors = pykvq_gguf_n_tensors(m->gguf);
    KVQ_TRY(kvq_alloc_array((void **)&l.taken, n_tensors, sizeof *l.taken, "tensor list"));
    pykvq_status status = take_weights(&l);
    kvq_free(l.taken, n_tensors * sizeof *l.taken);
    return status;
}

pykvq_status kvq_weights_each(kvq_weights *all, kvq_weight_visit *visit, void *context) {
    bool tied = all->output.data == all->embed.data;
    KVQ_TRY(visit(context, &all->embed));
    KVQ_TRY(visit(context, &all->output_norm));
    if (tied)
        all->output = all->embed;
    else
        KVQ_TRY(visit(context, &all->output));
    for (uint32_t i = 0; i < all->n_layer; i++)
        for (uint32_t j = 0; j < KVQ_LAYER_WEIGHTS; j++) {
            kvq_weight *w = (kvq_weight *)&all->layers[i] + j;
            if (w->data != NULL)
                KVQ_TRY(visit(context, w));
        }
    return PYKVQ_OK;
}

/* ---- opening ---- */

/* Names, shapes and types of all tensors, and some bytes of each. */
static uint64_t fingerprint(const pykvq_model *m) {
    uint64_t hash = kvq_hash(KVQ_HASH_START, m->arch->name, strlen(m->arch->name));
    uint64_t n = pykvq_gguf_n_tensors(m->gguf);
    for (uint64_t i = 0; i < n; i++) {
        pykvq_gguf_tensor t;
        if (pykvq_gguf_tensor_at(m->gguf, i, &t) != PYKVQ_OK)
            continue;
        hash = kvq_hash(hash, t.name, t.n_name);
        hash = kvq_hash(hash, t.ne, sizeof t.ne);
        hash = kvq_hash(hash, &t.type, sizeof t.type);
        hash = kvq_hash(hash, t.data, t.n_bytes < 64 ? t.n_bytes : 64);
    }
    hash = kvq_hash(hash, &m->h.rope.base, sizeof m->h.rope.base);
    hash = kvq_hash(hash, &m->h.rope.factor, sizeof m->h.rope.factor);
    return kvq_hash(hash, &m->h.norm_eps, sizeof m->h.norm_eps);
}

static pykvq_status read_model(pykvq_model *m) {
    kvq_str arch_name, name = {"", 0};
    KVQ_TRY(kvq_gguf_str(m->gguf, "general.architecture", true, &arch_name));
    m->arch = kvq_arch_find(arch_name);
    if (m->arch == NULL)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "architecture '%.*s' is not supported; supported are %s",
                        (int)(arch_name.n < 64 ? arch_name.n : 64), arch_name.data, kvq_arch_names());
    KVQ_TRY(kvq_gguf_str(m->gguf, "general.name", false, &name));
    snprintf(m->name, sizeof m->name, "%.*s", (int)(name.n < sizeof m->name ? name.n : sizeof m->name - 1), name.data);
    reader r = {.gguf = m->gguf, .arch = m->arch->name};
    KVQ_TRY(read_hparams(&r, m->arch, &m->h));
    pykvq_gguf_tensor embed;
    if (!kvq_gguf_find_tensor(m->gguf, "token_embd.weight", &embed))
        return kvq_fail(PYKVQ_E_FORMAT, "tensor 'token_embd.weight': missing; a vocabulary-only file cannot be run");
    if (embed.ne[1] > INT32_MAX)
        return kvq_fail(PYKVQ_E_FORMAT, "tensor 'token_embd.weight': %llu rows", (unsigned long long)embed.ne[1]);
    m->h.n_vocab = (uint32_t)embed.ne[1];
    KVQ_TRY(load_weights(m));
    KVQ_TRY(mark_windows(&r, m));
    m->fingerprint = fingerprint(m);
    return PYKVQ_OK;
}

pykvq_status kvq_model_open(pykvq_gguf *gguf, pykvq_model **out) {
    pykvq_model *m;
    pykvq_status status = kvq_alloc_array((void **)&m, 1, sizeof *m, "model");
    if (status != PYKVQ_OK) {
        pykvq_gguf_close(gguf);
        return status;
    }
    m->gguf = gguf;
    status = kvq_float_weights_create(&m->floats);
    if (status == PYKVQ_OK)
        status = read_model(m);
    if (status != PYKVQ_OK) {
        pykvq_model_close(m);
        return status;
    }
    *out = m;
    return PYKVQ_OK;
}

void pykvq_model_close(pykvq_model *m) {
    if (m == NULL)
        return;
    kvq_free(m->weights.layers, m->weights.n_layer * sizeof(kvq_layer));
    kvq_free(m->rope_factors, (size_t)(m->h.n_rot / 2) * 2 * sizeof(float));
    kvq_float_weights_destroy(m->floats);
    pykvq_gguf_close(m->gguf);
    kvq_free(m, sizeof *m);
}

bool kvq_model_key_bias(const pykvq_model *m, uint32_t layer, float *bias) {
    const kvq_layer *l = &m->weights.layers[layer];
    if (l->k_bias.data == NULL || l->k_norm.data != NULL || !l->roped)
        return false;
    l->k_bias.type->dequantize(l->k_bias.data, bias, l->k_bias.n_in);
    return true;
}

uint32_t kvq_model_n_window_layers(const pykvq_model *m) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->h.n_layer; i++)
        n += m->weights.layers[i].windowed;
    return n;
}
