/* Making an engine, and stepping it. */
#define _POSIX_C_SOURCE 200809L
#include "engine/engine.h"

#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "engine/layout.h"

pykvq_status kvq_engine_enter(pykvq_engine *e) {
    if (atomic_flag_test_and_set_explicit(&e->busy, memory_order_acquire))
        return kvq_fail(PYKVQ_E_BUSY, "engine: another thread is using it; one thread at a time may");
    if (!e->dead)
        return PYKVQ_OK;
    kvq_engine_leave(e);
    return kvq_fail(PYKVQ_E_DEVICE, "engine: its device failed earlier; make a new engine");
}

void kvq_engine_leave(pykvq_engine *e) {
    atomic_flag_clear_explicit(&e->busy, memory_order_release);
}

/* ---- create ---- */

/* Carves the activation buffers out of one allocation. */
static pykvq_status create_activations(pykvq_engine *e) {
    const kvq_hparams *h = &e->model->h;
    kvq_forward *f = &e->forward;
    KVQ_TRY(f->be->ops->alloc(f->be, e->layout.n_activation_bytes, "activations", &e->activations));
    KVQ_TRY(f->be->ops->alloc(f->be, e->layout.n_logits_bytes, "logits", (void **)&f->logits));
    size_t n_q = (size_t)h->n_head * h->head_dim, n_kv = (size_t)h->n_head_kv * h->head_dim;
    struct {
        float **buffer;
        size_t width;
    } buffers[] = {{&f->x, h->n_embd}, {&f->h, h->n_embd}, {&f->q, n_q},     {&f->o, n_q},
                   {&f->k, n_kv},      {&f->v, n_kv},      {&f->ff, h->n_ff}};
    char *next = e->activations;
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        *buffers[i].buffer = (float *)next;
        next += (buffers[i].width * e->layout.n_batch * sizeof(float) + 63) / 64 * 64;
    }
    if (f->be->ops->host_memory)
        return PYKVQ_OK;
    return kvq_alloc_array((void **)&e->host_logits, h->n_vocab, sizeof(float), "logits");
}

static pykvq_status load_weight(void *context, kvq_weight *w) {
    kvq_backend *be = context;
    return be->ops->weight_load(be, w);
}

static pykvq_status free_weight(void *context, kvq_weight *w) {
    kvq_backend *be = context;
    be->ops->weight_free(be, w);
    return PYKVQ_OK;
}

/* The engine's own copy of the weight table, each entry with its device form. */
static pykvq_status create_weights(pykvq_engine *e) {
    const kvq_weights *from = &e->model->weights;
    kvq_layer *layers;
    if (e->layout.limits.exact) {
        KVQ_TRY(kvq_model_take_floats(e->model, &from));
        e->has_floats = true;
    }
    KVQ_TRY(kvq_alloc_array((void **)&layers, from->n_layer, sizeof *layers, "weight table"));
    e->forward.weights = *from;
    e->forward.weights.layers = layers;
    memcpy(layers, from->layers, from->n_layer * sizeof *layers);
    return kvq_weights_each(&e->forward.weights, load_weight, e->forward.be);
}

/* What stands out in the keys of an encoded layer because of its bias, to be taken out of them. */
static pykvq_status create_key_bias(pykvq_engine *e, uint32_t layer, float *bias) {
    const kvq_rope *rope = e->model->weights.layers[layer].windowed ? &e->forward.rope_local : &e->forward.rope_global;
    const kvq_key_bias_rope plain = {rope->inv_freq, rope->n_rot, rope->interleaved, rope->magnitude};
    kvq_kv_layer *kv = &e->forward.kv[layer];
    if (kv->coded == NULL || !kvq_model_key_bias(e->model, layer, bias) ||
        kvq_key_bias_n_pairs(bias, kv->n_head_kv, kv->head_dim, &plain) == 0)
        return PYKVQ_OK;
    kvq_key_bias *created;
    KVQ_TRY(kvq_key_bias_create(bias, kv->n_head_kv, kv->head_dim, &plain, e->layout.n_tiles, &created));
    kv->key_bias = created;
    const kvq_backend_ops *op = e->forward.be->ops;
    return op->kv_load != NULL ? op->kv_load(e->forward.be, kv) : PYKVQ_OK;
}

static pykvq_status create_key_biases(pykvq_engine *e) {
    const kvq_hparams *h = &e->model->h;
    float *bias; /* (n_head_kv, head_dim) */
    KVQ_TRY(kvq_alloc_array((void **)&bias, (size_t)h->n_head_kv * h->head_dim, sizeof *bias, "key bias"));
    pykvq_status status = PYKVQ_OK;
    for (uint32_t i = 0; i < h->n_layer && status == PYKVQ_OK; i++)
        status = create_key_bias(e, i, bias);
    kvq_free(bias, (size_t)h->n_head_kv * h->head_dim * sizeof *bias);
    return status;
}

/* All pages of all layers are one allocation, which large memory pages can back. */
static pykvq_status create_cache(pykvq_engine *e) {
    const kvq_hparams *h = &e->model->h;
    kvq_backend *be = e->forward.be;
    KVQ_TRY(kvq_alloc_array((void **)&e->forward.kv, h->n_layer, sizeof(kvq_kv_layer), "KV layers"));
    KVQ_TRY(be->ops->alloc(be, e->layout.n_cache_bytes, "KV cache", &e->cache));
    uint8_t *next = e->cache;
    for (uint32_t i = 0; i < h->n_layer; i++) {
        kvq_kv_layer *kv = &e->forward.kv[i];
        const kvq_group *g = &e->groups[e->model->weights.layers[i].windowed];
        *kv = (kvq_kv_layer){
            .n_head_kv = h->n_head_kv, .head_dim = h->head_dim, .k = e->layout.spec.k[i], .v = e->layout.spec.v[i]};
        kv->raw = (uint16_t *)next;
        next += g->n_raw_pages * kvq_raw_head_halfs(kv) * h->n_head_kv * sizeof(uint16_t);
        if (g->n_coded_pages == 0)
            continue;
        kv->k_tile_bytes = kvq_tile_stride(kv->k, h->head_dim);
        kv->v_tile_bytes = kvq_tile_stride(kv->v, h->head_dim);
        kv->coded = next;
        next += g->n_coded_pages * (kv->k_tile_bytes + kv->v_tile_bytes) * h->n_head_kv;
    }
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++) {
        KVQ_TRY(kvq_pool_create(e->groups[i].n_raw_pages, &e->groups[i].raw));
        KVQ_TRY(kvq_pool_create(e->groups[i].n_coded_pages, &e->groups[i].coded_pool));
    }
    return PYKVQ_OK;
}

static pykvq_status create_batch(pykvq_engine *e) {
    const kvq_layout *l = &e->layout;
    e->n_leaving_max = l->n_batch / KVQ_TILE + 1 + l->n_seq;
    KVQ_TRY(kvq_alloc_array((void **)&e->seqs, l->n_seq, sizeof *e->seqs, "sequences"));
    KVQ_TRY(kvq_alloc_array((void **)&e->spans, l->n_seq, sizeof *e->spans, "batch"));
    KVQ_TRY(kvq_alloc_array((void **)&e->span_seqs, l->n_seq, sizeof *e->span_seqs, "batch"));
    KVQ_TRY(kvq_alloc_array((void **)&e->tokens, l->n_batch, sizeof *e->tokens, "batch"));
    KVQ_TRY(kvq_alloc_array((void **)&e->positions, l->n_batch, sizeof *e->positions, "batch"));
    KVQ_TRY(kvq_alloc_array((void **)&e->logit_rows, l->n_logits, sizeof *e->logit_rows, "batch"));
    KVQ_TRY(kvq_alloc_array((void **)&e->jobs, e->n_leaving_max, sizeof *e->jobs, "batch"));
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++)
        KVQ_TRY(kvq_alloc_array((void **)&e->leaving[i], e->n_leaving_max, sizeof *e->leaving[i], "batch"));
    return PYKVQ_OK;
}

static pykvq_status create(pykvq_engine *e) {
    uint32_t n_rot = e->model->h.n_rot;
    memcpy(e->groups, e->layout.groups, sizeof e->groups);
    KVQ_TRY(kvq_backend_create(e->layout.device, &e->layout.limits, &e->forward.be));
    KVQ_TRY(kvq_alloc_array((void **)&e->inv_freq, n_rot, sizeof(float), "RoPE frequencies"));
    kvq_model_ropes(e->model, e->layout.n_ctx, e->inv_freq, &e->forward.rope_global, &e->forward.rope_local);
    KVQ_TRY(create_activations(e));
    KVQ_TRY(create_weights(e));
    KVQ_TRY(create_cache(e));
    KVQ_TRY(create_key_biases(e));
    return create_batch(e);
}

/* Destroys what could not be created. Of a GPU without enough memory, which another process may have taken since it was
 * looked at, the sentence is that of the look. */
static pykvq_status give_up(pykvq_engine *e, const pykvq_engine_params *params, pykvq_status status) {
    const pykvq_model *model = e->model;
    kvq_layout layout = e->layout;
    pykvq_plan plan;
    kvq_layout_plan(model, &layout, &plan);
    e->layout.spec = (kvq_kv_spec){0}; /* stays for the look */
    pykvq_engine_destroy(e);
    if (status == PYKVQ_E_MEMORY) {
        kvq_fail_in(status, "engine of %.1f MiB (%.1f MiB of it KV cache for %u tokens)",
                    (double)(plan.n_kv_bytes + plan.n_scratch_bytes) / 0x1p20, (double)plan.n_kv_bytes / 0x1p20,
                    plan.n_ctx);
        pykvq_status fits = kvq_fit_check(model, params, &layout);
        status = fits == PYKVQ_OK ? status : fits;
    }
    kvq_kv_spec_free(&layout.spec);
    return status;
}

pykvq_status pykvq_engine_create(const pykvq_model *model, const pykvq_engine_params *params, pykvq_engine **out) {
    kvq_layout layout;
    KVQ_TRY(kvq_layout_compute(model, params, &layout));
    pykvq_engine *e = NULL;
    pykvq_status status = kvq_fit_check(model, params, &layout);
    if (status == PYKVQ_OK)
        status = kvq_alloc_array((void **)&e, 1, sizeof *e, "engine");
    if (status != PYKVQ_OK) {
        kvq_kv_spec_free(&layout.spec);
        return status;
    }
    e->model = model;
    e->forward.model = model;
    e->layout = layout;
    atomic_flag_clear(&e->busy);
    status = create(e);
    if (status == PYKVQ_OK)
        *out = e;
    else
        status = give_up(e, params, status);
    return status;
}

static void destroy_device_memory(pykvq_engine *e) {
    kvq_forward *f = &e->forward;
    const kvq_backend_ops *op = f->be->ops;
    if (f->weights.layers != NULL)
        kvq_weights_each(&f->weights, free_weight, f->be);
    if (e->has_floats)
        kvq_model_release_floats(e->model);
    for (uint32_t i = 0; f->kv != NULL && i < e->model->h.n_layer; i++) {
        if (op->kv_free != NULL)
            op->kv_free(f->be, &f->kv[i]);
        kvq_key_bias_destroy((kvq_key_bias *)f->kv[i].key_bias);
    }
    op->free(f->be, e->cache, e->layout.n_cache_bytes);
    op->free(f->be, e->activations, e->layout.n_activation_bytes);
    op->free(f->be, f->logits, e->layout.n_logits_bytes);
    op->destroy(f->be);
}

void pykvq_engine_destroy(pykvq_engine *e) {
    if (e == NULL)
        return;
    const kvq_layout *l = &e->layout;
    while (e->n_open > 0)
        kvq_seq_free(e->seqs[--e->n_open]);
    if (e->forward.be != NULL)
        destroy_device_memory(e);
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++) {
        kvq_pool_destroy(&e->groups[i].raw);
        kvq_pool_destroy(&e->groups[i].coded_pool);
        kvq_free(e->leaving[i], e->n_leaving_max * sizeof *e->leaving[i]);
    }
    kvq_free(e->forward.kv, e->model->h.n_layer * sizeof(kvq_kv_layer));
    kvq_free(e->forward.weights.layers, e->forward.weights.n_layer * sizeof(kvq_layer));
    kvq_free(e->inv_freq, e->model->h.n_rot * sizeof(float));
    kvq_free(e->host_logits, e->model->h.n_vocab * sizeof(float));
    kvq_free(e->seqs, l->n_seq * sizeof *e->seqs);
    kvq_free(e->spans, l->n_seq * sizeof *e->spans);
    kvq_free(e->span_seqs, l->n_seq * sizeof *e->span_seqs);
    kvq_free(e->tokens, l->n_batch * sizeof *e->tokens);
    kvq_free(e->positions, l->n_batch * sizeof *e->positions);
    kvq_free(e->logit_rows, l->n_logits * sizeof *e->logit_rows);
    kvq_free(e->jobs, e->n_leaving_max * sizeof *e->jobs);
    kvq_kv_spec_free(&e->layout.spec);
    kvq_free(e, sizeof *e);
}

/* ---- plan and statistics ---- */

pykvq_status pykvq_engine_plan(const pykvq_model *model, const pykvq_engine_params *params, pykvq_plan *out) {
    kvq_layout layout;
    KVQ_TRY(kvq_layout_compute(model, params, &layout));
    kvq_layout_plan(model, &layout, out);
    kvq_kv_spec_free(&layout.spec);
    return PYKVQ_OK;
}

void pykvq_engine_get_plan(const pykvq_engine *e, pykvq_plan *out) {
    kvq_layout_plan(e->model, &e->layout, out);
}

pykvq_status pykvq_engine_get_stats(pykvq_engine *e, pykvq_engine_stats *out) {
    KVQ_TRY(kvq_engine_enter(e));
    *out = e->stats;
    out->n_seq_open = e->n_open;
    out->n_kv_bad_elements = e->forward.be->n_bad_elements;
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++) {
        const kvq_group *g = &e->groups[i];
        out->n_kv_bytes_used += (g->raw.n_pages - g->raw.n_free) * g->raw_page_bytes +
                                (g->coded_pool.n_pages - g->coded_pool.n_free) * g->coded_page_bytes;
    }
    kvq_engine_leave(e);
    return PYKVQ_OK;
}

void pykvq_engine_cancel(pykvq_engine *e, bool on) {
    atomic_store_explicit(&e->cancel, on, memory_order_relaxed);
}

pykvq_status pykvq_engine_observe(pykvq_engine *e, pykvq_observer *observer, void *context) {
    KVQ_TRY(kvq_engine_enter(e));
    kvq_backend *be = e->forward.be;
    pykvq_status status = PYKVQ_OK;
    if (be->ops->host_memory) {
        be->observer = observer;
        be->observer_context = context;
    } else
        status = kvq_fail(PYKVQ_E_UNSUPPORTED, "observer: device %s keeps activations to itself; cpu can", be->ops->name);
    kvq_engine_leave(e);
    return status;
}

/* ---- step ---- */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static pykvq_status check_seqs(const pykvq_engine *e, pykvq_seq **seqs, uint32_t n_seqs) {
    if (n_seqs == 0 || n_seqs > e->layout.n_seq)
        return kvq_fail(PYKVQ_E_ARGUMENT, "step: %u sequences given, expected 1 to %u", n_seqs, e->layout.n_seq);
    bool pending = false;
    for (uint32_t i = 0; i < n_seqs; i++) {
        if (seqs[i]->engine != e)
            return kvq_fail(PYKVQ_E_ARGUMENT, "step: sequence %u belongs to another engine", i);
        for (uint32_t j = 0; j < i; j++)
            if (seqs[j] == seqs[i])
                return kvq_fail(PYKVQ_E_ARGUMENT, "step: sequence %u is given twice", i);
        pending |= seqs[i]->n_tokens > seqs[i]->n_cached;
    }
    return pending ? PYKVQ_OK : kvq_fail(PYKVQ_E_ARGUMENT, "step: no sequence has pending tokens; push some first");
}

/* Logit rows that a sequence gets from a step that feeds it n_new tokens: of its last token, or of all. */
static uint32_t n_logit_rows(const pykvq_seq *seq, uint32_t n_new) {
    return seq->keep_all_logits ? n_new : seq->n_cached + n_new == seq->n_tokens;
}

/* Adds n_new tokens of a sequence to the batch, with the rows whose logits it wants. */
static void add_span(pykvq_engine *e, kvq_batch *batch, pykvq_seq *seq, uint32_t n_new) {
    kvq_span *span = &e->spans[batch->n_spans];
    e->span_seqs[batch->n_spans++] = seq;
    *span = (kvq_span){.first = batch->n_tokens, .n_tokens = n_new, .pos = seq->n_cached};
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++)
        span->pages[group] = seq->pages[group];
    for (uint32_t i = 0; i < n_new; i++) {
        e->tokens[batch->n_tokens] = seq->tokens[seq->n_cached + i];
        e->positions[batch->n_tokens++] = (int32_t)(seq->n_cached + i);
    }
    for (uint32_t n = n_logit_rows(seq, n_new); n > 0; n--)
        e->logit_rows[batch->n_logits++] = batch->n_tokens - n;
}

/* How many pending tokens of a sequence still fit: rows of the batch, rows of logits. */
static uint32_t fitting(const pykvq_engine *e, const kvq_batch *batch, const pykvq_seq *seq) {
    uint32_t n = seq->n_tokens - seq->n_cached, rows = e->layout.n_batch - batch->n_tokens;
    uint32_t logits = e->layout.n_logits - batch->n_logits;
    if (n > rows)
        n = rows;
    if (seq->keep_all_logits && n > logits)
        n = logits;
    if (logits == 0 && n == seq->n_tokens - seq->n_cached)
        n -= n > 0; /* its last token waits for a step that has a logit row to spare */
    return n;
}

static void fill_batch(pykvq_engine *e, kvq_batch *batch, pykvq_seq **seqs, uint32_t n_seqs) {
    *batch = (kvq_batch){.tokens = e->tokens, .positions = e->positions, .spans = e->spans, .logit_rows = e->logit_rows};
    for (int single = 1; single >= 0; single--)
        for (uint32_t i = 0; i < n_seqs; i++) {
            bool is_single = seqs[i]->n_tokens - seqs[i]->n_cached == 1;
            uint32_t n = is_single == single ? fitting(e, batch, seqs[i]) : 0;
            if (n > 0)
                add_span(e, batch, seqs[i], n);
        }
}

static void encode_leaving(pykvq_engine *e) {
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        uint32_t n = e->n_leaving[group];
        for (uint32_t i = 0; i < n; i++)
            e->jobs[i] = e->leaving[group][i].job;
        for (uint32_t i = 0; n > 0 && i < e->model->h.n_layer; i++)
            if (e->model->weights.layers[i].windowed == group)
                e->forward.be->ops->encode(e->forward.be, &e->forward.kv[i], e->jobs, n);
    }
}

static pykvq_status run_batch(pykvq_engine *e, const kvq_batch *batch) {
    kvq_backend *be = e->forward.be;
    memset(e->n_leaving, 0, sizeof e->n_leaving);
    for (uint32_t i = 0; i < batch->n_spans; i++)
        KVQ_TRY(kvq_seq_reserve(e->span_seqs[i], batch->spans[i].n_tokens));
    KVQ_TRY(be->ops->step_begin(be, batch));
    pykvq_status status = kvq_forward_run(&e->forward, batch, &e->cancel);
    if (status == PYKVQ_OK)
        encode_leaving(e);
    pykvq_status device_status = be->ops->step_end(be, status == PYKVQ_OK);
    e->dead = device_status == PYKVQ_E_DEVICE;
    return device_status != PYKVQ_OK ? device_status : status;
}

/* Every sequence is as before: the pages taken for the step go back. */
static void undo_batch(pykvq_engine *e, const kvq_batch *batch) {
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++)
        for (uint32_t i = 0; i < e->n_leaving[group]; i++)
            kvq_pool_release(&e->groups[group].coded_pool, e->leaving[group][i].job.coded & ~KVQ_PAGE_CODED);
    for (uint32_t i = 0; i < batch->n_spans; i++)
        kvq_seq_abandon(e->span_seqs[i]);
}

static void finish_batch(pykvq_engine *e, const kvq_batch *batch, double elapsed) {
    bool decode = true;
    uint32_t n_logits = 0;
    e->step++;
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        pykvq_seq *seq = e->span_seqs[i];
        uint32_t n_new = batch->spans[i].n_tokens;
        seq->logits_step = e->step;
        seq->first_logits_row = n_logits;
        seq->n_logits_rows = n_logit_rows(seq, n_new);
        n_logits += seq->n_logits_rows;
        kvq_seq_commit(seq, n_new);
        seq->first_logits_token = seq->n_cached - seq->n_logits_rows + 1;
        decode &= n_new == 1;
    }
    *(decode ? &e->stats.n_decode_tokens : &e->stats.n_prompt_tokens) += batch->n_tokens;
    *(decode ? &e->stats.decode_seconds : &e->stats.prompt_seconds) += elapsed;
}

static pykvq_status step(pykvq_engine *e, pykvq_seq **seqs, uint32_t n_seqs) {
    KVQ_TRY(check_seqs(e, seqs, n_seqs));
    kvq_batch batch;
    double start = seconds();
    fill_batch(e, &batch, seqs, n_seqs);
    pykvq_status status = run_batch(e, &batch);
    if (status == PYKVQ_OK)
        finish_batch(e, &batch, seconds() - start);
    else
        undo_batch(e, &batch);
    if (status == PYKVQ_E_CANCELLED)
        atomic_store_explicit(&e->cancel, false, memory_order_relaxed);
    return status;
}

pykvq_status pykvq_engine_step(pykvq_engine *e, pykvq_seq **seqs, uint32_t n_seqs) {
    KVQ_TRY(kvq_engine_enter(e));
    pykvq_status status = step(e, seqs, n_seqs);
    kvq_engine_leave(e);
    return status;
}
