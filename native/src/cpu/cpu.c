/*
 * The CPU backend: memory is host memory, weights are read where the file is mapped, operations run on a team of threads.
 * All scratch is taken when the backend is created.
 */
#include "backend/backend.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/attend.h"
#include "cpu/encode.h"
#include "cpu/isa.h"
#include "cpu/linear.h"
#include "cpu/row.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

enum { FORK_ELEMENTS = 16384 }; /* with fewer elements than this, waking the team costs more than the work */

typedef struct rope_table { /* of one step */
    const kvq_rope *rope;
    float *cos_sin; /* (n_tokens, { cos (n_rot / 2), sin (n_rot / 2) }) */
} rope_table;

typedef struct cpu_backend {
    kvq_backend base;
    kvq_backend_limits limits;
    kvq_threads *threads;
    const kvq_batch *batch;
    rope_table ropes[KVQ_MAX_GROUPS];
    uint32_t n_ropes; /* in this step */
    void *linear_scratch, *attend_scratch;
} cpu_backend;

static cpu_backend *cpu_of(kvq_backend *be) {
    return (cpu_backend *)be;
}

static const kvq_row_kernels *row_kernels(void) {
    return kvq_kernels_selected()->row;
}

/* ---- life and memory ---- */

/* Sizes of the one allocation: the backend, then rope tables, linear and attention scratch, each 64-byte aligned. */
typedef struct sizes {
    size_t backend, rope, linear, attend, total;
} sizes;

static size_t round_64(size_t n) {
    return (n + 63) / 64 * 64;
}

static sizes sizes_of(const kvq_backend_limits *limits) {
    sizes s = {
        .backend = round_64(sizeof(cpu_backend)),
        .rope = round_64((size_t)limits->n_batch * limits->max_head_dim * sizeof(float)),
        .linear = round_64(kvq_linear_scratch_bytes(limits->n_threads, limits->n_batch, limits->max_n_in)),
        .attend = kvq_attend_scratch_bytes(limits),
    };
    s.total = s.backend + KVQ_MAX_GROUPS * s.rope + s.linear + s.attend;
    return s;
}

size_t kvq_cpu_backend_scratch_bytes(const kvq_backend_limits *limits) {
    return sizes_of(limits).total;
}

static void op_destroy(kvq_backend *be) {
    kvq_threads_destroy(cpu_of(be)->threads);
    kvq_free(be, kvq_cpu_backend_scratch_bytes(&((const cpu_backend *)be)->limits));
}

static pykvq_status op_alloc(kvq_backend *be, size_t n_bytes, const char *what, void **out) {
    return kvq_alloc_array(out, n_bytes, 1, what);
}

static void op_free(kvq_backend *be, void *memory, size_t n_bytes) {
    kvq_free(memory, n_bytes);
}

static pykvq_status op_copy(kvq_backend *be, void *dst, const void *src, size_t n_bytes) {
    memcpy(dst, src, n_bytes);
    return PYKVQ_OK;
}

/* Vectors (norms, biases) are used as float32: in place if the file has them so, else converted once. */
static bool must_convert(const kvq_weight *w) {
    bool is_f32 = w->type->block_elements == 1 && w->type->block_bytes == sizeof(float);
    return w->n_out == 1 && !(is_f32 && (uintptr_t)w->data % sizeof(float) == 0);
}

static pykvq_status op_weight_load(kvq_backend *be, kvq_weight *w) {
    size_t n = (size_t)w->n_in * w->n_out;
    w->device = NULL;
    if (!must_convert(w))
        return PYKVQ_OK;
    KVQ_TRY(kvq_alloc_array(&w->device, n, sizeof(float), "weights as float32"));
    w->type->dequantize(w->data, w->device, n);
    w->type = kvq_wtype_find(0); /* F32 */
    w->data = w->device;
    return PYKVQ_OK;
}

static void op_weight_free(kvq_backend *be, kvq_weight *w) {
    kvq_free(w->device, (size_t)w->n_in * w->n_out * sizeof(float));
    w->device = NULL;
}

static const float *vector_of(const kvq_weight *w) { /* (n_in) */
    return (const void *)w->data;
}

static pykvq_status op_step_begin(kvq_backend *be, const kvq_batch *batch) {
    cpu_of(be)->batch = batch;
    cpu_of(be)->n_ropes = 0;
    return PYKVQ_OK;
}

static pykvq_status op_step_end(kvq_backend *be, bool run) {
    cpu_of(be)->batch = NULL;
    return PYKVQ_OK;
}

/* ---- operations on rows ---- */

/* fn(context, first, end) for even parts of n items, on all threads if there is enough to do. */
typedef void part_fn(void *context, size_t first, size_t end);

typedef struct parts {
    part_fn *fn;
    void *context;
    size_t n;
} parts;

static void run_part(void *context, uint32_t i, uint32_t n_threads) {
    const parts *p = context;
    p->fn(p->context, p->n * i / n_threads, p->n * (i + 1) / n_threads);
}

static void for_parts(cpu_backend *cpu, size_t n, size_t item_elements, part_fn *fn, void *context) {
    if (n * item_elements < FORK_ELEMENTS)
        fn(context, 0, n);
    else
        kvq_threads_run(cpu->threads, run_part, &(parts){fn, context, n});
}

typedef struct embed_job {
    const kvq_weight *table;
    const int32_t *tokens;
    float scale, *x;
} embed_job;

static void embed_part(void *context, size_t first, size_t end) {
    const embed_job *j = context;
    uint32_t n = j->table->n_in;
    for (size_t row = first; row < end; row++) {
        float *x = j->x + row * n;
        j->table->type->dequantize(j->table->data + (size_t)j->tokens[row] * kvq_weight_row_bytes(j->table), x, n);
        for (uint32_t i = 0; i < n && j->scale != 1.0f; i++)
            x[i] *= j->scale;
    }
}

static void op_embed(kvq_backend *be, const kvq_weight *table, float scale, float *x) {
    const kvq_batch *batch = cpu_of(be)->batch;
    embed_job job = {table, batch->tokens, scale, x};
    for_parts(cpu_of(be), batch->n_tokens, table->n_in, embed_part, &job);
}

typedef struct norm_job {
    const float *x, *w;
    float eps, *y;
    uint32_t n;
    bool add;
} norm_job;

static void norm_part(void *context, size_t first, size_t end) {
    const norm_job *j = context;
    const kvq_row_kernels *kernels = row_kernels();
    for (size_t row = first; row < end; row++)
        kernels->norm(j->x + row * j->n, j->w, j->eps, j->n, j->add, j->y + row * j->n);
}

static void op_norm(kvq_backend *be, const float *x, const kvq_weight *w, float eps, uint32_t n_rows, bool add, float *y) {
    norm_job job = {x, vector_of(w), eps, y, w->n_in, add};
    for_parts(cpu_of(be), n_rows, w->n_in, norm_part, &job);
}

static void op_gather(kvq_backend *be, const float *x, uint32_t n, const uint32_t *rows, uint32_t n_rows, float *y) {
    for (uint32_t i = 0; i < n_rows; i++)
        memmove(y + (size_t)i * n, x + (size_t)rows[i] * n, n * sizeof *y);
}

typedef struct softcap_job {
    float softcap, *x;
} softcap_job;

static void softcap_part(void *context, size_t first, size_t end) {
    const softcap_job *j = context;
    row_kernels()->softcap(j->softcap, end - first, j->x + first);
}

static void op_softcap(kvq_backend *be, float softcap, size_t n, float *x) {
    for_parts(cpu_of(be), n, 1, softcap_part, &(softcap_job){softcap, x});
}

/* ---- matrix products ---- */

static void observe(const kvq_backend *be, const kvq_weight *w, const float *x, uint32_t n_rows) {
    if (be->observer != NULL)
        be->observer(be->observer_context, w->data, x, n_rows, w->n_in);
}

static void op_project(kvq_backend *be, const float *x, uint32_t n_rows, uint32_t n, const kvq_weight *const *w,
                       const kvq_weight *const *bias, bool add, float *const *y) {
    const float *bias_f32[3];
    for (uint32_t i = 0; i < n; i++) {
        bias_f32[i] = bias[i] != NULL ? vector_of(bias[i]) : NULL;
        observe(be, w[i], x, n_rows);
    }
    kvq_linear_project(cpu_of(be)->threads, cpu_of(be)->linear_scratch, x, n_rows, n, w, bias_f32, add, y);
}

static void op_gated(kvq_backend *be, const float *x, uint32_t n_rows, const kvq_weight *gate, const kvq_weight *up,
                     kvq_activation act, float *y) {
    observe(be, gate, x, n_rows);
    observe(be, up, x, n_rows);
    kvq_linear_gated(cpu_of(be)->threads, cpu_of(be)->linear_scratch, x, n_rows, gate, up, act, y);
}

/* ---- keys and values ---- */

/* The step's cos and sin for a rope, computed on its first use: the angle is rounded to float32 as in transformers. */
static const float *rope_table_of(cpu_backend *cpu, const kvq_rope *rope) {
    for (uint32_t i = 0; i < cpu->n_ropes && i < KVQ_MAX_GROUPS; i++)
        if (cpu->ropes[i].rope == rope)
            return cpu->ropes[i].cos_sin;
    rope_table *table = &cpu->ropes[cpu->n_ropes++ % KVQ_MAX_GROUPS];
    table->rope = rope;
    uint32_t half = rope->n_rot / 2;
    for (uint32_t t = 0; t < cpu->batch->n_tokens; t++)
        for (uint32_t i = 0; i < half; i++) {
            float angle = (float)cpu->batch->positions[t] * rope->inv_freq[i], *row = table->cos_sin + (size_t)t * 2 * half;
            row[i] = cosf(angle) * rope->magnitude;
            row[half + i] = sinf(angle) * rope->magnitude;
        }
    return table->cos_sin;
}

typedef struct store_job {
    const kvq_heads *heads;
    const kvq_batch *batch;
    const float *cos_sin; /* (n_tokens, n_rot), or NULL */
    atomic_uint *n_bad;
} store_job;

/* x: one head of a token */
static void turn_head(const store_job *j, const kvq_row_kernels *kernels, uint32_t row, const kvq_weight *norm, float *x) {
    const kvq_heads *heads = j->heads;
    if (norm != NULL)
        kernels->norm(x, vector_of(norm), heads->norm_eps, heads->head_dim, false, x);
    if (j->cos_sin != NULL) {
        const float *cos = j->cos_sin + (size_t)row * heads->rope->n_rot;
        kernels->rope(x, cos, cos + heads->rope->n_rot / 2, heads->rope->n_rot, heads->rope->interleaved);
    }
}

/* One KV head of n_tokens from batch row first on, and its query heads; all tokens lie in one tile, from t0 on. */
static void store_tile(const store_job *j, uint32_t head, uint32_t first, uint32_t n_tokens, kvq_page page, uint32_t t0) {
    uint32_t n_bad = 0;
    const kvq_heads *heads = j->heads;
    const kvq_row_kernels *kernels = row_kernels();
    uint32_t head_dim = heads->head_dim, head_group = heads->n_head / heads->n_head_kv;
    uint16_t halfs[KVQ_TILE * KVQ_MAX_HEAD_DIM]; /* (n_tokens, head_dim) */
    uint16_t *k_page = kvq_raw_k(heads->kv, page, head), *v_page = kvq_raw_v(heads->kv, page, head);
    for (uint32_t t = 0; t < n_tokens; t++) {
        size_t row = first + t, kv_offset = (row * heads->n_head_kv + head) * head_dim;
        for (uint32_t g = 0; g < head_group; g++)
            turn_head(j, kernels, first + t, heads->q_norm,
                      heads->q + (row * heads->n_head + head * head_group + g) * head_dim);
        turn_head(j, kernels, first + t, heads->k_norm, heads->k + kv_offset);
        kernels->to_f16(heads->k + kv_offset, head_dim, halfs + t * head_dim);
        kernels->to_f16(heads->v + kv_offset, head_dim, v_page + (t0 + t) * head_dim);
        n_bad += kernels->make_finite(halfs + t * head_dim, head_dim) +
                 kernels->make_finite(v_page + (t0 + t) * head_dim, head_dim);
    }
    if (n_bad > 0)
        atomic_fetch_add_explicit(j->n_bad, n_bad, memory_order_relaxed);
    for (uint32_t d = 0; d < head_dim; d++)
        for (uint32_t t = 0; t < n_tokens; t++)
            k_page[d * KVQ_TILE + t0 + t] = halfs[t * head_dim + d];
}

static void store_part(void *context, size_t part, size_t n_parts) {
    const store_job *j = context;
    size_t turn = 0;
    for (uint32_t i = 0; i < j->batch->n_spans; i++) {
        const kvq_span *span = &j->batch->spans[i];
        for (uint32_t t = 0, n; t < span->n_tokens; t += n) {
            uint32_t pos = span->pos + t, t0 = pos % KVQ_TILE, left = span->n_tokens - t;
            n = left < KVQ_TILE - t0 ? left : KVQ_TILE - t0;
            kvq_page page = span->pages[j->heads->group][pos / KVQ_TILE];
            for (uint32_t head = 0; head < j->heads->n_head_kv; head++)
                if (turn++ % n_parts == part)
                    store_tile(j, head, span->first + t, n, page, t0);
        }
    }
}

static void store_on_thread(void *context, uint32_t i, uint32_t n_threads) {
    store_part(context, i, n_threads);
}

static void op_store(kvq_backend *be, const kvq_heads *heads) {
    cpu_backend *cpu = cpu_of(be);
    bool turns = heads->rope != NULL && heads->rope->n_rot > 0;
    atomic_uint n_bad = 0;
    store_job job = {heads, cpu->batch, turns ? rope_table_of(cpu, heads->rope) : NULL, &n_bad};
    if ((size_t)cpu->batch->n_tokens * heads->n_head * heads->head_dim < FORK_ELEMENTS)
        store_part(&job, 0, 1);
    else
        kvq_threads_run(cpu->threads, store_on_thread, &job);
    be->n_bad_elements += n_bad;
}

static void op_attend(kvq_backend *be, const kvq_attention *attention) {
    cpu_backend *cpu = cpu_of(be);
    kvq_attend(cpu->threads, cpu->attend_scratch, &cpu->limits, cpu->batch, attention);
}

typedef struct encode_job {
    const kvq_kv_layer *kv;
    const kvq_encode_job *jobs;
} encode_job;

/* Items are (job, head). */
static void encode_part(void *context, size_t first, size_t end) {
    const encode_job *j = context;
    const kvq_kv_layer *kv = j->kv;
    const kvq_row_kernels *kernels = row_kernels();
    const kvq_tile_encoder *k_encoder = kvq_encoder_of(kv->k), *v_encoder = kvq_encoder_of(kv->v);
    size_t n = (size_t)KVQ_TILE * kv->head_dim;
    float x[KVQ_TILE * KVQ_MAX_HEAD_DIM]; /* a head's tile as its page has it */
    for (size_t i = first; i < end; i++) {
        const kvq_encode_job *job = &j->jobs[i / kv->n_head_kv];
        uint32_t head = (uint32_t)(i % kv->n_head_kv);
        kernels->from_f16(kvq_raw_k(kv, job->raw, head), n, x);
        if (kv->key_bias != NULL)
            kvq_key_bias_remove_rows(kv->key_bias, head, job->tile, x);
        k_encoder->encode(kv->k, x, kv->head_dim, kvq_coded_k(kv, job->coded, head));
        kernels->from_f16(kvq_raw_v(kv, job->raw, head), n, x);
        v_encoder->encode(kv->v, x, kv->head_dim, kvq_coded_v(kv, job->coded, head));
    }
}

static void op_encode(kvq_backend *be, const kvq_kv_layer *kv, const kvq_encode_job *jobs, uint32_t n_jobs) {
    for_parts(cpu_of(be), (size_t)n_jobs * kv->n_head_kv, KVQ_TILE * kv->head_dim, encode_part, &(encode_job){kv, jobs});
}

static pykvq_status op_page_read(kvq_backend *be, const kvq_kv_layer *kv, kvq_page page, void *out) {
    memcpy(out, kvq_page_of(kv, page), kvq_layer_page_bytes(kv, page));
    return PYKVQ_OK;
}

static pykvq_status op_page_write(kvq_backend *be, const kvq_kv_layer *kv, kvq_page page, const void *from) {
    memcpy(kvq_page_of(kv, page), from, kvq_layer_page_bytes(kv, page));
    return PYKVQ_OK;
}

static const kvq_backend_ops ops = {
    .name = "cpu",
    .host_memory = true,
    .destroy = op_destroy,
    .alloc = op_alloc,
    .free = op_free,
    .copy = op_copy,
    .weight_load = op_weight_load,
    .weight_free = op_weight_free,
    .page_read = op_page_read,
    .page_write = op_page_write,
    .step_begin = op_step_begin,
    .step_end = op_step_end,
    .embed = op_embed,
    .norm = op_norm,
    .project = op_project,
    .gated = op_gated,
    .gather = op_gather,
    .softcap = op_softcap,
    .store = op_store,
    .attend = op_attend,
    .encode = op_encode,
};

pykvq_status kvq_cpu_kv_check(const kvq_codec *k, const kvq_codec *v) {
    return kvq_attend_check(k, v);
}

pykvq_status kvq_cpu_backend_create(const kvq_backend_limits *limits, kvq_backend **out) {
    *out = NULL;
    if (limits->max_head_dim > KVQ_MAX_HEAD_DIM || limits->max_head_dim % 8 != 0)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "CPU attention: head_dim %u, expected a multiple of 8 up to %d",
                        limits->max_head_dim, KVQ_MAX_HEAD_DIM);
    sizes s = sizes_of(limits);
    void *memory;
    KVQ_TRY(kvq_alloc_array(&memory, s.total, 1, "CPU scratch"));
    cpu_backend *cpu = memory;
    cpu->base.ops = &ops;
    cpu->limits = *limits;
    uint8_t *at = (uint8_t *)memory + s.backend;
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++, at += s.rope)
        cpu->ropes[i].cos_sin = (float *)at;
    cpu->linear_scratch = at;
    cpu->attend_scratch = at + s.linear;
    pykvq_status status = kvq_threads_create(limits->n_threads, &cpu->threads);
    if (status != PYKVQ_OK) {
        kvq_free(memory, s.total);
        return status;
    }
    *out = &cpu->base;
    return PYKVQ_OK;
}
