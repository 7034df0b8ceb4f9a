/* What an engine will take, computed from the model and the parameters before anything is allocated. */
#include <string.h>

#include "base/memory.h"
#include "base/threads.h"
#include "engine/layout.h"

enum { DEFAULT_BATCH = 512, DEFAULT_BATCH_CUDA = 2048, MAX_BATCH = 1 << 16, MAX_SEQ = 1 << 12, MAX_THREADS = 512 };

size_t kvq_tile_stride(const kvq_codec *codec, uint32_t head_dim) {
    return (codec->tile_bytes(codec, head_dim) + 63) / 64 * 64;
}

static pykvq_status check_params(const pykvq_engine_params *p) {
    if (p->n_seq > MAX_SEQ)
        return kvq_fail(PYKVQ_E_ARGUMENT, "engine: %u sequences, the most is %d", p->n_seq, MAX_SEQ);
    if (p->n_batch > MAX_BATCH)
        return kvq_fail(PYKVQ_E_ARGUMENT, "engine: a batch of %u tokens, the most is %d", p->n_batch, MAX_BATCH);
    if (p->n_threads > MAX_THREADS)
        return kvq_fail(PYKVQ_E_ARGUMENT, "engine: %u threads, the most is %d", p->n_threads, MAX_THREADS);
    if (p->kv_sink < -1 || p->kv_tail < -1)
        return kvq_fail(PYKVQ_E_ARGUMENT, "KV sink %d, tail %d: expected token counts, or -1 for the default", p->kv_sink,
                        p->kv_tail);
    return PYKVQ_OK;
}

static pykvq_status size_counts(const pykvq_model *m, const pykvq_engine_params *p, kvq_layout *l) {
    l->n_ctx = p->n_ctx ? p->n_ctx : m->h.n_ctx_train;
    l->n_seq = p->n_seq ? p->n_seq : 1;
    /* A GPU turns all weights into half floats in each step of a prompt: that is a tenth of the time with 2048 tokens. */
    l->n_batch = p->n_batch ? p->n_batch : l->device == KVQ_DEVICE_CUDA ? DEFAULT_BATCH_CUDA : DEFAULT_BATCH;
    if (l->n_batch < l->n_seq) /* every sequence must be able to take a step */
        l->n_batch = l->n_seq;
    if (l->n_batch / l->n_seq > l->n_ctx)
        l->n_batch = l->n_ctx * l->n_seq;
    l->n_logits = p->n_logits ? p->n_logits : l->n_seq;
    if (l->n_logits > l->n_batch)
        l->n_logits = l->n_batch;
    l->n_threads = p->n_threads ? p->n_threads : kvq_threads_available();
    if (l->n_ctx > INT32_MAX - KVQ_TILE || (uint64_t)l->n_ctx * l->n_seq >= (uint64_t)KVQ_PAGE_CODED * KVQ_TILE)
        return kvq_fail(PYKVQ_E_ARGUMENT, "engine: %u sequences of %u tokens are more than a page table can number",
                        l->n_seq, l->n_ctx);
    l->n_tiles = l->n_ctx / KVQ_TILE + (l->n_ctx % KVQ_TILE != 0);
    return PYKVQ_OK;
}

/* The first KV type is that of the f16 pages themselves: its tiles need no encoding. */
static bool exact(const kvq_codec *codec) {
    return codec == kvq_kv_type_at(0)->k || codec == kvq_kv_type_at(0)->v;
}

static pykvq_status size_groups(const pykvq_model *m, kvq_layout *l) {
    for (uint32_t i = 0; i < m->h.n_layer; i++) {
        bool windowed = m->weights.layers[i].windowed;
        kvq_group *g = &l->groups[windowed];
        const kvq_codec *k = l->spec.k[i], *v = l->spec.v[i];
        size_t k_bytes = kvq_tile_stride(k, m->h.head_dim), v_bytes = kvq_tile_stride(v, m->h.head_dim);
        if (k_bytes == 0 || v_bytes == 0)
            return kvq_fail(PYKVQ_E_UNSUPPORTED, "KV type %s: cannot take heads of %u elements (layer %u)",
                            k_bytes == 0 ? k->name : v->name, m->h.head_dim, i);
        g->n_layer++;
        g->window = windowed ? m->h.n_window : 0;
        g->coded |= !exact(k) || !exact(v);
        g->raw_page_bytes += (size_t)2 * KVQ_TILE * m->h.head_dim * sizeof(uint16_t) * m->h.n_head_kv;
        g->coded_page_bytes += (k_bytes + v_bytes) * m->h.n_head_kv;
    }
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++) {
        kvq_group *g = &l->groups[i];
        g->sink_tiles = g->coded ? l->spec.sink / KVQ_TILE : 0;
        g->tail = l->spec.tail;
        if (g->n_layer > 0)
            kvq_group_size_pools(g, l->n_ctx, l->n_seq, l->n_batch);
        l->n_cache_bytes += g->n_raw_pages * g->raw_page_bytes + g->n_coded_pages * g->coded_page_bytes;
    }
    return PYKVQ_OK;
}

/* Can the device read the pages that there will be? */
static pykvq_status check_types(const pykvq_model *m, const kvq_layout *l) {
    const kvq_kv_type *f16 = kvq_kv_type_at(0);
    KVQ_TRY(kvq_device_kv_check(l->device, f16->k, f16->v, m->h.head_dim));
    for (uint32_t i = 0; i < m->h.n_layer; i++)
        if (l->groups[m->weights.layers[i].windowed].n_coded_pages > 0)
            KVQ_TRY(kvq_device_kv_check(l->device, l->spec.k[i], l->spec.v[i], m->h.head_dim));
    return PYKVQ_OK;
}

/* Bytes of what create_key_biases makes. */
static pykvq_status size_key_biases(const pykvq_model *m, kvq_layout *l) {
    const kvq_hparams *h = &m->h;
    const kvq_key_bias_rope rope = {.n_rot = h->n_rot, .interleaved = m->arch->rope_interleaved};
    float *bias; /* (n_head_kv, head_dim) */
    KVQ_TRY(kvq_alloc_array((void **)&bias, (size_t)h->n_head_kv * h->head_dim, sizeof *bias, "key bias"));
    for (uint32_t i = 0; i < h->n_layer; i++) {
        bool coded = l->groups[m->weights.layers[i].windowed].n_coded_pages > 0 && kvq_model_key_bias(m, i, bias);
        uint32_t n_pairs = coded ? kvq_key_bias_n_pairs(bias, h->n_head_kv, h->head_dim, &rope) : 0;
        if (n_pairs > 0)
            l->n_bias_bytes += kvq_device_taken_bytes(l->device, kvq_key_bias_bytes(n_pairs, h->n_head_kv, l->n_tiles));
    }
    kvq_free(bias, (size_t)h->n_head_kv * h->head_dim * sizeof *bias);
    return PYKVQ_OK;
}

static pykvq_status add_weight(void *context, kvq_weight *w) {
    kvq_layout *l = context;
    l->n_weight_bytes += kvq_device_weight_bytes(l->device, w);
    return PYKVQ_OK;
}

/* What the device holds of the weights. */
static void size_weights(const pykvq_model *m, kvq_layout *l) {
    kvq_weights weights = m->weights;
    if (l->device == KVQ_DEVICE_CPU)
        l->n_weight_bytes = pykvq_gguf_n_bytes(m->gguf);
    else
        kvq_weights_each(&weights, add_weight, l);
}

static void size_buffers(const pykvq_model *m, bool exact, kvq_layout *l) {
    const kvq_hparams *h = &m->h;
    size_t n_q = (size_t)h->n_head * h->head_dim, n_kv = (size_t)h->n_head_kv * h->head_dim;
    size_t per_token = 2 * (size_t)h->n_embd + 2 * n_q + 2 * n_kv + h->n_ff;
    l->n_activation_bytes = per_token * l->n_batch * sizeof(float) + 8 * 64; /* each buffer starts on a cache line */
    l->n_logits_bytes = (size_t)l->n_logits * h->n_vocab * sizeof(float);
    size_t seq_bytes = sizeof(pykvq_seq) + (size_t)l->n_ctx * sizeof(int32_t) +
                       KVQ_MAX_GROUPS * l->n_tiles * sizeof(kvq_page);
    l->n_host_bytes = l->n_seq * seq_bytes + (size_t)h->n_layer * (sizeof(kvq_layer) + sizeof(kvq_kv_layer));
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++)
        l->n_host_bytes += kvq_pool_table_bytes(l->groups[i].n_raw_pages) +
                           kvq_pool_table_bytes(l->groups[i].n_coded_pages);
    if (exact) /* the first exact engine of a model takes them, later ones share them */
        l->n_host_bytes += kvq_model_float_bytes(m) + (size_t)h->n_layer * sizeof(kvq_layer);
    uint32_t widest = h->n_embd > h->n_ff ? h->n_embd : h->n_ff;
    l->limits = (kvq_backend_limits){
        .n_threads = l->n_threads,
        .n_batch = l->n_batch,
        .exact = exact,
        .n_seq = l->n_seq,
        .n_tiles = l->n_tiles,
        .max_n_in = n_q > widest ? (uint32_t)n_q : widest,
        .max_n_ff = h->n_ff,
        .max_n_head = h->n_head,
        .max_head_dim = h->head_dim,
        .max_head_group = h->n_head / h->n_head_kv,
        .n_weight_bytes = l->device == KVQ_DEVICE_CPU ? 0 : l->n_weight_bytes,
    };
}

pykvq_status kvq_layout_compute(const pykvq_model *m, const pykvq_engine_params *given, kvq_layout *out) {
    pykvq_engine_params p = {.kv_sink = -1, .kv_tail = -1};
    if (given != NULL) {
        if (given->size != sizeof p)
            return kvq_fail(PYKVQ_E_ARGUMENT, "engine parameters: size is %llu, this library expects %zu",
                            (unsigned long long)given->size, sizeof p);
        p = *given;
    }
    kvq_layout l = {0};
    KVQ_TRY(check_params(&p));
    KVQ_TRY(kvq_device_find(p.device, &l.device));
    KVQ_TRY(size_counts(m, &p, &l));
    KVQ_TRY(kvq_kv_spec_parse(p.kv, p.kv_k, p.kv_v, p.kv_layers, p.kv_sink, p.kv_tail, m->h.n_layer, &l.spec));
    pykvq_status status = size_groups(m, &l);
    size_weights(m, &l);
    size_buffers(m, p.exact && l.device == KVQ_DEVICE_CPU, &l); /* a GPU never rounds activations to int8 */
    if (status == PYKVQ_OK)
        status = check_types(m, &l);
    if (status == PYKVQ_OK)
        status = size_key_biases(m, &l);
    if (status != PYKVQ_OK) {
        kvq_kv_spec_free(&l.spec);
        return status;
    }
    *out = l;
    return PYKVQ_OK;
}

void kvq_layout_plan(const pykvq_model *m, const kvq_layout *l, pykvq_plan *out) {
    pykvq_plan plan = {
        .n_ctx = l->n_ctx, .n_seq = l->n_seq, .n_batch = l->n_batch, .n_logits = l->n_logits, .n_threads = l->n_threads};
    double context_bits = 0, context_elements = 0;
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++) {
        const kvq_group *g = &l->groups[i];
        plan.kv_bytes_per_token += (double)(g->coded ? g->coded_page_bytes : g->raw_page_bytes) / KVQ_TILE;
        if (g->n_layer == 0)
            continue;
        double first = kvq_group_first_window_tile(g, l->n_ctx), end = kvq_group_first_tail_tile(g, l->n_ctx);
        double start = first > g->sink_tiles ? first : g->sink_tiles;
        double n_tiles = l->n_tiles - first, n_coded = g->coded && end > start ? end - start : 0;
        context_bits += 8 * (n_coded * g->coded_page_bytes + (n_tiles - n_coded) * g->raw_page_bytes);
        context_elements += n_tiles * g->raw_page_bytes / sizeof(uint16_t);
    }
    plan.kv_bits_per_element = context_bits / context_elements;
    plan.n_kv_bytes = kvq_device_taken_bytes(l->device, l->n_cache_bytes);
    plan.n_weight_bytes = kvq_device_taken_bytes(l->device, l->n_weight_bytes);
    plan.n_scratch_bytes = kvq_device_taken_bytes(l->device, l->n_activation_bytes) +
                           kvq_device_taken_bytes(l->device, l->n_logits_bytes) + l->n_bias_bytes +
                           kvq_backend_scratch_bytes(l->device, &l->limits);
    if (l->device == KVQ_DEVICE_CPU)
        plan.n_scratch_bytes += l->n_host_bytes;
    plan.n_total_bytes = plan.n_weight_bytes + plan.n_kv_bytes + plan.n_scratch_bytes;
    *out = plan;
}
