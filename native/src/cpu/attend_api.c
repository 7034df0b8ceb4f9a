/* pykvq_kv_attend: the real store, encode and attend operations on one layer of one sequence, from plain arrays. */
#include "backend/backend.h"
#include "base/memory.h"
#include "cpu/attend.h"

#include <string.h>

typedef struct fixture {
    const pykvq_kv_attend_params *p;
    kvq_backend *be;
    kvq_kv_layer kv;
    uint32_t n_tiles, n_coded; /* tiles encoded_from .. encoded_from + n_coded - 1 are encoded */
    uint32_t coded_from;
    size_t n_raw_bytes, n_coded_bytes;
    kvq_page *pages;      /* (n_tiles) */
    int32_t *positions;   /* (n_kv) */
    kvq_encode_job *jobs; /* (n_coded) */
} fixture;

static pykvq_status check(const pykvq_kv_attend_params *p) {
    if (p == NULL || p->size != sizeof *p)
        return kvq_fail(PYKVQ_E_ARGUMENT, "attention: size is not that of pykvq_kv_attend_params (%zu)", sizeof *p);
    if (p->q == NULL || p->k == NULL || p->v == NULL || p->o == NULL || p->type_k == NULL || p->type_v == NULL)
        return kvq_fail(PYKVQ_E_ARGUMENT, "attention: an array or a type is missing");
    if (p->n_head_kv == 0 || p->n_head == 0 || p->n_head % p->n_head_kv != 0)
        return kvq_fail(PYKVQ_E_ARGUMENT, "attention: %u query heads, expected a multiple of %u KV heads", p->n_head,
                        p->n_head_kv);
    if (p->head_dim == 0 || p->n_q == 0 || p->n_q > p->n_kv || p->n_kv > 1u << 30)
        return kvq_fail(PYKVQ_E_ARGUMENT, "attention: %u query tokens of %u with head_dim %u, expected 1 to all of them",
                        p->n_q, p->n_kv, p->head_dim);
    if (p->sink % KVQ_TILE != 0)
        return kvq_fail(PYKVQ_E_ARGUMENT, "attention: sink %u, expected a multiple of %d", p->sink, KVQ_TILE);
    return PYKVQ_OK;
}

static pykvq_status find_codecs(fixture *f) {
    const kvq_kv_type *k = kvq_kv_type_find(f->p->type_k), *v = kvq_kv_type_find(f->p->type_v);
    if (k == NULL || v == NULL)
        return kvq_fail(PYKVQ_E_ARGUMENT, "KV type '%s': unknown", k == NULL ? f->p->type_k : f->p->type_v);
    f->kv = (kvq_kv_layer){.n_head_kv = f->p->n_head_kv, .head_dim = f->p->head_dim, .k = k->k, .v = v->v};
    f->kv.k_tile_bytes = (k->k->tile_bytes(k->k, f->p->head_dim) + 63) / 64 * 64;
    f->kv.v_tile_bytes = (v->v->tile_bytes(v->v, f->p->head_dim) + 63) / 64 * 64;
    if (f->kv.k_tile_bytes == 0 || f->kv.v_tile_bytes == 0)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "KV type '%s': it cannot take head_dim %u",
                        f->kv.k_tile_bytes == 0 ? f->p->type_k : f->p->type_v, f->p->head_dim);
    return kvq_attend_check(k->k, v->v);
}

/* Whole tiles behind the sink and before the tail are encoded. */
static void lay_out(fixture *f) {
    const pykvq_kv_attend_params *p = f->p;
    f->n_tiles = (p->n_kv + KVQ_TILE - 1) / KVQ_TILE;
    uint32_t n_old = p->tail < p->n_kv ? (p->n_kv - p->tail) / KVQ_TILE : 0;
    f->coded_from = p->sink / KVQ_TILE;
    f->n_coded = n_old > f->coded_from ? n_old - f->coded_from : 0;
    f->n_raw_bytes = f->n_tiles * f->kv.n_head_kv * kvq_raw_head_halfs(&f->kv) * sizeof(uint16_t);
    f->n_coded_bytes = (size_t)f->n_coded * f->kv.n_head_kv * (f->kv.k_tile_bytes + f->kv.v_tile_bytes);
}

static pykvq_status allocate(fixture *f) {
    const pykvq_kv_attend_params *p = f->p;
    void *raw, *coded, *pages, *positions, *jobs;
    KVQ_TRY(kvq_alloc_array(&raw, f->n_raw_bytes, 1, "f16 pages"));
    f->kv.raw = raw;
    KVQ_TRY(kvq_alloc_array(&coded, f->n_coded_bytes, 1, "encoded pages"));
    f->kv.coded = coded;
    KVQ_TRY(kvq_alloc_array(&pages, f->n_tiles, sizeof *f->pages, "page table"));
    f->pages = pages;
    KVQ_TRY(kvq_alloc_array(&positions, p->n_kv, sizeof *f->positions, "positions"));
    f->positions = positions;
    KVQ_TRY(kvq_alloc_array(&jobs, f->n_coded, sizeof *f->jobs, "encode jobs"));
    f->jobs = jobs;
    return kvq_cpu_backend_create(
        &(kvq_backend_limits){
            .n_threads = p->n_threads > 0 ? p->n_threads : 1,
            .n_batch = p->n_kv,
            .max_n_in = p->head_dim,
            .max_n_ff = p->head_dim,
            .max_n_head = p->n_head,
            .max_head_dim = p->head_dim,
            .max_head_group = p->n_head / p->n_head_kv,
        },
        &f->be);
}

static void release(fixture *f) {
    kvq_free(f->kv.raw, f->n_raw_bytes);
    kvq_free(f->kv.coded, f->n_coded_bytes);
    kvq_free(f->pages, f->n_tiles * sizeof *f->pages);
    kvq_free(f->positions, f->p->n_kv * sizeof *f->positions);
    kvq_free(f->jobs, f->n_coded * sizeof *f->jobs);
    if (f->be != NULL)
        f->be->ops->destroy(f->be);
}

/* The last n_tokens of the n_kv as the batch of a step. */
static pykvq_status begin(fixture *f, kvq_batch *batch, kvq_span *span, uint32_t n_tokens) {
    *span = (kvq_span){.n_tokens = n_tokens, .pos = f->p->n_kv - n_tokens, .pages = {f->pages}};
    *batch = (kvq_batch){.n_tokens = n_tokens, .n_spans = 1, .positions = f->positions + span->pos, .spans = span};
    return f->be->ops->step_begin(f->be, batch);
}

static pykvq_status run(fixture *f) {
    const pykvq_kv_attend_params *p = f->p;
    const kvq_backend_ops *ops = f->be->ops;
    kvq_batch batch;
    kvq_span span;
    memset(f->kv.raw, 0xff, f->n_raw_bytes); /* what is never written is NaN, so that reading it shows */
    for (uint32_t i = 0; i < p->n_kv; i++)
        f->positions[i] = (int32_t)i;
    for (uint32_t i = 0; i < f->n_tiles; i++)
        f->pages[i] = f->n_tiles - 1 - i; /* no kernel may take pages to be in order */

    KVQ_TRY(begin(f, &batch, &span, p->n_kv));
    /* without norms and RoPE nothing changes k and v, and there are no queries */
    ops->store(
        f->be,
        &(kvq_heads){
            .n_head_kv = p->n_head_kv, .head_dim = p->head_dim, .k = (float *)p->k, .v = (float *)p->v, .kv = &f->kv});
    for (uint32_t i = 0; i < f->n_coded; i++)
        f->jobs[i] = (kvq_encode_job){
            .raw = f->pages[f->coded_from + i], .coded = i | KVQ_PAGE_CODED, .tile = f->coded_from + i};
    ops->encode(f->be, &f->kv, f->jobs, f->n_coded);
    KVQ_TRY(ops->step_end(f->be, true));
    for (uint32_t i = 0; i < f->n_coded; i++)
        f->pages[f->coded_from + i] = f->jobs[i].coded;
    uint32_t n_seen = p->n_kv - p->n_q + 1; /* by the first query */
    for (uint32_t i = 0; p->window > 0 && (uint64_t)(i + 1) * KVQ_TILE + p->window <= n_seen; i++)
        f->pages[i] = KVQ_PAGE_NONE; /* fell out of every window */

    KVQ_TRY(begin(f, &batch, &span, p->n_q));
    ops->attend(f->be, &(kvq_attention){.n_head = p->n_head,
                                        .q = p->q,
                                        .o = p->o,
                                        .scale = p->scale,
                                        .softcap = p->softcap,
                                        .window = p->window,
                                        .sink_logits = p->sink_logits,
                                        .kv = &f->kv});
    return ops->step_end(f->be, true);
}

pykvq_status pykvq_kv_attend(const pykvq_kv_attend_params *params) {
    KVQ_TRY(check(params));
    fixture f = {.p = params};
    KVQ_TRY(find_codecs(&f));
    lay_out(&f);
    pykvq_status status = allocate(&f);
    if (status == PYKVQ_OK)
        status = run(&f);
    release(&f);
    return status;
}
