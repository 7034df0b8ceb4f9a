/*
 * The CUDA backend. A step is a graph: its operations are captured, then launched as one. The graph of a decode step (one
 * token per sequence) is kept and replayed: tokens, positions, page tables and the units of attention are read from device
 * memory, so nothing in it changes from step to step.
 */
#include <cuda_runtime.h>
#include <stdlib.h>
#include <string.h>

#include "attend.h"
#include "backend/cuda_library.h"
#include "codecs.h"
#include "kernels.h"
#include "load.h"
#include "plan.h"

namespace {

enum {
    MAX_ROPES = 4,
    MAX_VARIANTS = 32,
    MAX_GRAPHS = 64,
    STAGING_BYTES = 64 << 20,
    MAX_SPANS = 1 << 12,
    MAX_BLOCKS = 1024
};

/* A way to cut a step's attention, shared by the layers that cut alike. */
struct variant {
    plan_shape shape;
    uint32_t n_blocks;  /* launched */
    attend_unit *units; /* (max_units) device */
    uint32_t *n_units;  /* device */
    attend_unit *host_units;
    uint32_t *host_n_units;
};

struct kept_graph {
    cudaGraphExec_t exec;
    uint32_t n_tokens, n_logits;
    uint32_t variants; /* bit set of those it launches */
};

struct step_arrays { /* the same arrays in pinned host memory and on the device */
    int32_t *tokens;
    uint32_t *positions, *logit_rows;
    uint32_t *pages[KVQ_MAX_GROUPS];  /* (n_batch) f16 page of each row */
    uint32_t *tables[KVQ_MAX_GROUPS]; /* page tables, span after span */
    unsigned long long *n_bad;        /* elements of keys and values that were not finite half floats */
    encode_job *jobs;
};

struct cuda_backend {
    kvq_backend base;
    kvq_backend_limits limits;
    int n_sms;
    cudaStream_t stream;
    cudaError_t error;   /* first of the step */
    const char *refusal; /* what the step cannot do */

    step_arrays host, device;
    uint32_t tables_at[KVQ_MAX_GROUPS][MAX_SPANS], n_tables[KVQ_MAX_GROUPS]; /* entries */
    uint32_t n_jobs, max_jobs, max_units, max_partials;
    struct {
        const float *host;
        float *device;
    } ropes[MAX_ROPES];
    uint32_t n_ropes;
    uint4 *fragments;
    float *x_sums;
    uint8_t *staging;
    uint8_t *units, *host_units;  /* (MAX_VARIANTS, { n_units, units }) device, pinned */
    float *partial, *partial_max; /* of the attention that runs: layers wait for each other */
    uint32_t *arrived;            /* (max_units) */
    variant variants[MAX_VARIANTS];
    uint32_t n_variants, variants_used;
    kept_graph graphs[MAX_GRAPHS];
    uint32_t n_graphs;
    size_t n_scratch_bytes;

    const kvq_batch *batch;
    kept_graph *replay; /* operations of this step are in it */
    struct {
        const kvq_kv_layer *kv;
        uint32_t first, n;
    } *encodes; /* (max_encodes) of this step, run after the graph */
    uint32_t n_encodes, max_encodes;
    struct { /* a norm that the next projection may take in */
        const float *x, *y;
        const kvq_weight *w;
        float eps;
        uint32_t n_rows;
    } norm;
};

cuda_backend *cuda_of(kvq_backend *be) {
    return reinterpret_cast<cuda_backend *>(be);
}

void note(cuda_backend *c, cudaError_t error) {
    if (c->error == cudaSuccess)
        c->error = error;
}

/* ---- memory ---- */

pykvq_status op_alloc(kvq_backend *be, size_t n_bytes, const char *what, void **out) {
    return take(n_bytes, what, out);
}

void op_free(kvq_backend *, void *memory, size_t) {
    cudaFree(memory);
}

pykvq_status op_copy(kvq_backend *, void *dst, const void *src, size_t n_bytes) {
    return copy(dst, src, n_bytes);
}

size_t op_scratch_bytes(const kvq_backend *be) {
    return reinterpret_cast<const cuda_backend *>(be)->n_scratch_bytes;
}

/* ---- weights ---- */

void op_weight_free(kvq_backend *, kvq_weight *w) {
    weight_memory *memory = (weight_memory *)w->device;
    if (memory != NULL)
        cudaFree(memory->memory);
    free(memory);
    w->device = NULL;
}

pykvq_status op_weight_load(kvq_backend *be, kvq_weight *w) {
    cuda_backend *c = cuda_of(be);
    weight_memory *memory = (weight_memory *)calloc(1, sizeof *memory);
    w->device = memory;
    if (memory == NULL)
        return fail(PYKVQ_E_MEMORY, "weights: out of host memory");
    return load_weight(w, c->staging, c->stream, memory);
}

const matrix &matrix_of(const kvq_weight *w) {
    return ((weight_memory *)w->device)->m;
}

const float *vector_of(const kvq_weight *w) {
    return w != NULL ? ((weight_memory *)w->device)->vector : NULL;
}

pykvq_status op_kv_check(kvq_backend *be, const kvq_codec *k, const kvq_codec *v) {
    tile_side side;
    tile_format format;
    uint32_t head_dim = cuda_of(be)->limits.max_head_dim;
    for (const kvq_codec *codec : {k, v})
        if (!describe_codec(codec, head_dim, &side, &format))
            return fail(PYKVQ_E_UNSUPPORTED,
                        "KV type %s (%s): the GPU has no kernels for it with heads of %u elements; cpu has", codec->name,
                        codec->side == 'k' ? "keys" : "values", head_dim);
    cudaFuncAttributes attributes;
    if (attend_attributes(head_dim, &attributes) != cudaSuccess)
        return fail(PYKVQ_E_UNSUPPORTED, "attention: the GPU has no kernel for heads of %u elements", head_dim);
    return PYKVQ_OK;
}

/* The key bias's one allocation, the same on the device; the pointers into it move along. */
struct layer_memory {
    void *memory;
    bias_tables bias;
};

template <typename T> const T *moved(const T *p, const kvq_key_bias *from, void *to) {
    return (const T *)((uint8_t *)to + ((const uint8_t *)p - (const uint8_t *)from));
}

void op_kv_free(kvq_backend *, kvq_kv_layer *kv) {
    layer_memory *memory = (layer_memory *)kv->device;
    if (memory != NULL)
        cudaFree(memory->memory);
    free(memory);
    kv->device = NULL;
}

pykvq_status op_kv_load(kvq_backend *, kvq_kv_layer *kv) {
    const kvq_key_bias *b = kv->key_bias;
    layer_memory *memory = (layer_memory *)calloc(1, sizeof *memory);
    kv->device = memory;
    if (memory == NULL)
        return fail(PYKVQ_E_MEMORY, "key bias: out of host memory");
    KVQ_TRY(take(b->n_bytes, "key bias", &memory->memory));
    KVQ_TRY(copy(memory->memory, b, b->n_bytes));
    void *to = memory->memory;
    memory->bias = {b->n_pairs,           b->n_tiles,           moved(b->c, b, to),    moved(b->s, b, to),
                    moved(b->b_c, b, to), moved(b->b_s, b, to), moved(b->wave, b, to), moved(b->turn, b, to)};
    return PYKVQ_OK;
}

bias_tables bias_of(const kvq_kv_layer *kv) {
    return kv->device != NULL ? ((const layer_memory *)kv->device)->bias : bias_tables{};
}

/* ---- steps ---- */

void upload(cuda_backend *c, void *device, const void *host, size_t n_bytes) {
    if (n_bytes > 0)
        note(c, cudaMemcpyAsync(device, host, n_bytes, cudaMemcpyHostToDevice, c->stream));
}

/* What the graph reads, into pinned memory. */
pykvq_status fill_arrays(cuda_backend *c, const kvq_batch *batch) {
    if (batch->n_spans > c->limits.n_seq)
        return fail(PYKVQ_E_ARGUMENT, "step: %u sequences, the backend was made for %u", batch->n_spans, c->limits.n_seq);
    memcpy(c->host.tokens, batch->tokens, batch->n_tokens * sizeof(int32_t));
    memcpy(c->host.positions, batch->positions, batch->n_tokens * sizeof(uint32_t));
    memcpy(c->host.logit_rows, batch->logit_rows, batch->n_logits * sizeof(uint32_t));
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < batch->n_spans; i++) {
            const kvq_span *span = &batch->spans[i];
            uint32_t n_tiles = (span->pos + span->n_tokens - 1) / KVQ_TILE + 1;
            c->tables_at[group][i] = n;
            if (span->pages[group] == NULL)
                continue;
            memcpy(c->host.tables[group] + n, span->pages[group], n_tiles * sizeof(uint32_t));
            for (uint32_t t = 0; t < span->n_tokens; t++)
                c->host.pages[group][span->first + t] = span->pages[group][(span->pos + t) / KVQ_TILE];
            n += n_tiles;
        }
        c->n_tables[group] = n;
    }
    return PYKVQ_OK;
}

void upload_arrays(cuda_backend *c, uint32_t variants) {
    const kvq_batch *batch = c->batch;
    upload(c, c->device.tokens, c->host.tokens, batch->n_tokens * sizeof(int32_t));
    upload(c, c->device.positions, c->host.positions, batch->n_tokens * sizeof(uint32_t));
    upload(c, c->device.logit_rows, c->host.logit_rows, batch->n_logits * sizeof(uint32_t));
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        if (c->n_tables[group] == 0)
            continue;
        upload(c, c->device.pages[group], c->host.pages[group], batch->n_tokens * sizeof(uint32_t));
        upload(c, c->device.tables[group], c->host.tables[group], c->n_tables[group] * sizeof(uint32_t));
    }
    for (uint32_t i = 0; i < c->n_variants; i++) {
        variant *v = &c->variants[i];
        if (!(variants >> i & 1))
            continue;
        *v->host_n_units = plan_units(&v->shape, batch, c->tables_at[v->shape.group], v->host_units, c->max_units);
        if (*v->host_n_units == 0)
            c->refusal = "attention: more units than the backend was made for";
        upload(c, v->n_units, v->host_n_units, sizeof(uint32_t));
        upload(c, v->units, v->host_units, *v->host_n_units * sizeof(attend_unit));
    }
    upload(c, c->device.jobs, c->host.jobs, c->n_jobs * sizeof(encode_job));
}

bool is_decode(const kvq_batch *batch) {
    return batch->n_tokens == batch->n_spans && batch->n_logits == batch->n_tokens && batch->n_tokens <= LINEAR_MAX_ROWS;
}

pykvq_status op_step_begin(kvq_backend *be, const kvq_batch *batch) {
    cuda_backend *c = cuda_of(be);
    KVQ_TRY(fill_arrays(c, batch));
    c->batch = batch;
    c->error = cudaSuccess;
    c->refusal = NULL;
    c->n_jobs = c->n_encodes = c->variants_used = 0;
    c->norm.y = NULL;
    c->replay = NULL;
    for (uint32_t i = 0; is_decode(batch) && i < c->n_graphs; i++)
        if (c->graphs[i].n_tokens == batch->n_tokens && c->graphs[i].n_logits == batch->n_logits)
            c->replay = &c->graphs[i];
    if (c->replay == NULL)
        note(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeRelaxed));
    return PYKVQ_OK;
}

void run_encodes(cuda_backend *c) {
    for (uint32_t i = 0; i < c->n_encodes; i++) {
        const kvq_kv_layer *kv = c->encodes[i].kv;
        tile_side side;
        encode_args a = {};
        a.raw = (const __half *)kv->raw;
        a.coded = kv->coded;
        a.jobs = c->device.jobs + c->encodes[i].first;
        describe_codec(kv->k, kv->head_dim, &side, &a.k);
        describe_codec(kv->v, kv->head_dim, &side, &a.v);
        a.k_tile_bytes = (uint32_t)kv->k_tile_bytes;
        a.v_tile_bytes = (uint32_t)kv->v_tile_bytes;
        a.n_head_kv = kv->n_head_kv;
        a.head_dim = kv->head_dim;
        a.bias = bias_of(kv);
        note(c, launch_encode(a, c->encodes[i].n, c->stream));
    }
}

/* The norm that was put off, if this is not the projection that takes it in. */
void flush_norm(cuda_backend *c) {
    if (c->norm.y == NULL)
        return;
    launch_norm(c->norm.x, vector_of(c->norm.w), c->norm.eps, c->norm.w->n_in, c->norm.n_rows, false, (float *)c->norm.y,
                c->stream);
    c->norm.y = NULL;
}

/* Ends the capture; launches what was captured or kept. */
void run_graph(cuda_backend *c, bool run) {
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = c->replay != NULL ? c->replay->exec : NULL;
    uint32_t variants = c->replay != NULL ? c->replay->variants : c->variants_used;
    if (c->replay == NULL) {
        flush_norm(c);
        note(c, cudaStreamEndCapture(c->stream, &graph));
        if (c->error == cudaSuccess && run)
            note(c, cudaGraphInstantiate(&exec, graph, 0));
    }
    if (run && c->error == cudaSuccess)
        upload_arrays(c, variants);
    if (run && c->error == cudaSuccess && c->refusal == NULL) {
        note(c, cudaGraphLaunch(exec, c->stream));
        run_encodes(c);
        note(c, cudaMemcpyAsync(c->host.n_bad, c->device.n_bad, sizeof *c->host.n_bad, cudaMemcpyDeviceToHost, c->stream));
    }
    note(c, cudaStreamSynchronize(c->stream));
    if (run && c->error == cudaSuccess)
        c->base.n_bad_elements = *c->host.n_bad;
    if (c->replay == NULL && exec != NULL) {
        bool keep = is_decode(c->batch) && c->error == cudaSuccess && c->refusal == NULL && c->n_graphs < MAX_GRAPHS;
        if (keep)
            c->graphs[c->n_graphs++] = kept_graph{exec, c->batch->n_tokens, c->batch->n_logits, variants};
        else
            cudaGraphExecDestroy(exec);
    }
    if (graph != NULL)
        cudaGraphDestroy(graph);
}

pykvq_status op_step_end(kvq_backend *be, bool run) {
    cuda_backend *c = cuda_of(be);
    run_graph(c, run);
    c->batch = NULL;
    if (c->error != cudaSuccess)
        return fail(PYKVQ_E_DEVICE, "GPU: %s", cudaGetErrorString(c->error));
    return c->refusal == NULL ? PYKVQ_OK : fail(PYKVQ_E_UNSUPPORTED, "%s", c->refusal);
}

/* ---- operations ---- */

void op_embed(kvq_backend *be, const kvq_weight *table, float scale, float *x) {
    cuda_backend *c = cuda_of(be);
    if (c->replay == NULL)
        launch_embed(matrix_of(table), c->device.tokens, c->batch->n_tokens, scale, x, c->stream);
}

void op_norm(kvq_backend *be, const float *x, const kvq_weight *w, float eps, uint32_t n_rows, bool add, float *y) {
    cuda_backend *c = cuda_of(be);
    if (c->replay != NULL)
        return;
    flush_norm(c);
    if (add || x == y || n_rows > LINEAR_MAX_ROWS || w->n_in % 4 != 0) {
        launch_norm(x, vector_of(w), eps, w->n_in, n_rows, add, y, c->stream);
        return;
    }
    c->norm = {x, y, w, eps, n_rows};
}

/* One launch for each run of matrices of one kind. */
void launch_linears(const linear_args &args, cudaStream_t stream) {
    for (uint32_t first = 0, n; first < args.n; first += n) {
        linear_args part = args;
        for (n = 1; first + n < args.n && args.w[first + n].kind == args.w[first].kind; n++)
            ;
        for (uint32_t i = 0; i < n; i++) {
            part.w[i] = args.w[first + i];
            part.bias[i] = args.bias[first + i];
            part.y[i] = args.y[first + i];
        }
        part.n = n;
        launch_linear(part, stream);
    }
}

/* y[i] of args from x (n_rows, n_in), 64 rows at a time. */
void run_linear(cuda_backend *c, const float *x, uint32_t n_rows, uint32_t n_in, linear_args args) {
    const float *source = x, *norm = NULL;
    float eps = 0.0f;
    if (c->norm.y == x && c->norm.n_rows == n_rows) {
        source = c->norm.x;
        norm = vector_of(c->norm.w);
        eps = c->norm.eps;
        c->norm.y = NULL;
    }
    flush_norm(c);
    float *y[3] = {args.y[0], args.y[1], args.y[2]};
    for (uint32_t first = 0; first < n_rows; first += LINEAR_MAX_ROWS) {
        args.n_rows = n_rows - first < LINEAR_MAX_ROWS ? n_rows - first : LINEAR_MAX_ROWS;
        args.x = c->fragments;
        args.x_sums = c->x_sums;
        for (uint32_t i = 0; i < args.n && (i == 0 || !args.gated); i++)
            args.y[i] = y[i] + (size_t)first * args.w[i].n_out;
        launch_fragments(source + (size_t)first * n_in, norm, eps, n_in, args.n_rows, linear_tiles(args.n_rows),
                         c->fragments, c->x_sums, c->stream);
        launch_linears(args, c->stream);
    }
}

void op_project(kvq_backend *be, const float *x, uint32_t n_rows, uint32_t n, const kvq_weight *const *w,
                const kvq_weight *const *bias, bool add, float *const *y) {
    cuda_backend *c = cuda_of(be);
    if (c->replay != NULL)
        return;
    linear_args args = {};
    args.n = n;
    args.add = add;
    for (uint32_t i = 0; i < n; i++) {
        args.w[i] = matrix_of(w[i]);
        args.bias[i] = vector_of(bias[i]);
        args.y[i] = y[i];
    }
    run_linear(c, x, n_rows, w[0]->n_in, args);
}

void op_gated(kvq_backend *be, const float *x, uint32_t n_rows, const kvq_weight *gate, const kvq_weight *up,
              kvq_activation act, float *y) {
    cuda_backend *c = cuda_of(be);
    if (c->replay != NULL)
        return;
    linear_args args = {};
    args.n = 2;
    args.gated = true;
    args.activation = act == KVQ_SILU ? 0 : 1;
    args.w[0] = matrix_of(gate);
    args.w[1] = matrix_of(up);
    args.y[0] = y;
    if (args.w[0].kind == args.w[1].kind) {
        run_linear(c, x, n_rows, gate->n_in, args);
        return;
    }
    flush_norm(c); /* kinds differ: one kernel each, both read x */
    linear_args one = {};
    one.n = 1;
    one.w[0] = args.w[1];
    one.y[0] = y;
    run_linear(c, x, n_rows, gate->n_in, one);
    one.w[0] = args.w[0];
    one.times = true;
    one.activation = args.activation;
    run_linear(c, x, n_rows, gate->n_in, one);
}

void op_gather(kvq_backend *be, const float *x, uint32_t n, const uint32_t *, uint32_t n_rows, float *y) {
    cuda_backend *c = cuda_of(be);
    bool in_place = x == y && n_rows == c->batch->n_tokens; /* rows ascend: all of them are where they should be */
    if (c->replay != NULL || n_rows == 0 || in_place)
        return;
    flush_norm(c);
    launch_gather(x, n, c->device.logit_rows, n_rows, y, c->stream);
}

void op_softcap(kvq_backend *be, float softcap, size_t n, float *x) {
    cuda_backend *c = cuda_of(be);
    if (c->replay == NULL)
        launch_softcap(softcap, n, x, c->stream);
}

const float *rope_of(cuda_backend *c, const kvq_rope *rope) {
    for (uint32_t i = 0; i < c->n_ropes; i++)
        if (c->ropes[i].host == rope->inv_freq)
            return c->ropes[i].device;
    if (c->n_ropes == MAX_ROPES) {
        c->refusal = "RoPE: more than 4 kinds in one model";
        return NULL;
    }
    float *device = c->ropes[c->n_ropes].device;
    note(c, cudaMemcpy(device, rope->inv_freq, rope->n_rot / 2 * sizeof(float), cudaMemcpyHostToDevice));
    c->ropes[c->n_ropes++].host = rope->inv_freq;
    return device;
}

void op_store(kvq_backend *be, const kvq_heads *h) {
    cuda_backend *c = cuda_of(be);
    if (c->replay != NULL)
        return;
    flush_norm(c);
    store_args a = {};
    a.q = h->q;
    a.k = h->k;
    a.v = h->v;
    a.q_norm = vector_of(h->q_norm);
    a.k_norm = vector_of(h->k_norm);
    a.n_rot = h->rope != NULL ? h->rope->n_rot : 0;
    if (a.n_rot > 0) {
        a.inv_freq = rope_of(c, h->rope);
        a.magnitude = h->rope->magnitude;
        a.interleaved = h->rope->interleaved;
    }
    a.positions = c->device.positions;
    a.pages = c->device.pages[h->group];
    a.raw = (__half *)h->kv->raw;
    a.n_bad = c->device.n_bad;
    a.norm_eps = h->norm_eps;
    a.n_head = h->n_head;
    a.n_head_kv = h->n_head_kv;
    a.head_dim = h->head_dim;
    launch_store(a, c->batch->n_tokens, c->stream);
}

size_t round_256(size_t n) {
    return (n + 255) / 256 * 256;
}

size_t units_bytes(const cuda_backend *c) { /* of a variant: its number of units, then the units */
    return 256 + round_256(c->max_units * sizeof(attend_unit));
}

size_t partial_bytes(const cuda_backend *c) { /* units of 16 columns */
    return (size_t)c->max_units * 16 * c->limits.max_head_dim * sizeof(float);
}

size_t partial_max_bytes(const cuda_backend *c) {
    return (size_t)c->max_units * 16 * 2 * sizeof(float);
}

/* The variant of this shape, a new one when first met. */
variant *variant_of(cuda_backend *c, const plan_shape &shape) {
    for (uint32_t i = 0; i < c->n_variants; i++)
        if (memcmp(&c->variants[i].shape, &shape, sizeof shape) == 0) {
            c->variants_used |= 1u << i;
            return &c->variants[i];
        }
    if (c->n_variants == MAX_VARIANTS)
        return NULL;
    variant *v = &c->variants[c->n_variants];
    uint8_t *device = c->units + c->n_variants * units_bytes(c), *host = c->host_units + c->n_variants * units_bytes(c);
    v->n_units = (uint32_t *)device;
    v->units = (attend_unit *)(device + 256);
    v->host_n_units = (uint32_t *)host;
    v->host_units = (attend_unit *)(host + 256);
    v->shape = shape;
    c->variants_used |= 1u << c->n_variants++;
    return v;
}

void op_attend(kvq_backend *be, const kvq_attention *t) {
    cuda_backend *c = cuda_of(be);
    if (c->replay != NULL)
        return;
    flush_norm(c);
    const kvq_kv_layer *kv = t->kv;
    attend_args a = {};
    tile_format format;
    if (!describe_codec(kv->k, kv->head_dim, &a.k, &format) || !describe_codec(kv->v, kv->head_dim, &a.v, &format)) {
        c->refusal = "attention: a KV type that the GPU has no kernel for";
        return;
    }
    a.bias = bias_of(kv);
    if (t->sink_logits != NULL) {
        c->refusal = "attention: sink logits are not implemented on the GPU";
        return;
    }
    plan_shape shape = {};
    uint32_t head_group = t->n_head / kv->n_head_kv, longest = 0;
    for (uint32_t i = 0; i < c->batch->n_spans; i++)
        longest = c->batch->spans[i].n_tokens > longest ? c->batch->spans[i].n_tokens : longest;
    shape.group = t->group;
    shape.window = t->window;
    shape.n_head_kv = kv->n_head_kv;
    shape.head_group = head_group;
    shape.n_cols = longest * head_group <= 8 ? 8 : 16;
    a.ring_bytes = attend_ring_bytes(kv->head_dim, &a.k, &a.v);
    int per_sm = attend_blocks_per_sm(kv->head_dim, shape.n_cols / 8, a.ring_bytes, a.bias.n_pairs);
    if (per_sm == 0) {
        c->refusal = "attention: a head_dim that the GPU has no kernel for";
        return;
    }
    shape.n_blocks = per_sm * c->n_sms;
    variant *v = variant_of(c, shape);
    if (v == NULL) {
        c->refusal = "attention: more shapes of layers than the backend was made for";
        return;
    }
    a.q = t->q;
    a.o = t->o;
    a.units = v->units;
    a.n_units = v->n_units;
    a.tables = c->device.tables[t->group];
    a.raw = (const uint8_t *)kv->raw;
    a.coded = kv->coded;
    a.partial = c->partial;
    a.partial_max = c->partial_max;
    a.arrived = c->arrived;
    a.k_tile_bytes = (uint32_t)kv->k_tile_bytes;
    a.v_tile_bytes = (uint32_t)kv->v_tile_bytes;
    a.n_head = t->n_head;
    a.n_head_kv = kv->n_head_kv;
    a.scale = t->scale;
    a.softcap = t->softcap;
    a.window = t->window;
    note(c, attend_launch(kv->head_dim, shape.n_cols / 8, &a, shape.n_blocks, c->stream));
}

void op_encode(kvq_backend *be, const kvq_kv_layer *kv, const kvq_encode_job *jobs, uint32_t n_jobs) {
    cuda_backend *c = cuda_of(be);
    static_assert(sizeof(encode_job) == sizeof(kvq_encode_job), "the same layout");
    uint32_t last = c->n_encodes > 0 ? c->encodes[c->n_encodes - 1].first : 0;
    bool same = c->n_encodes > 0 && c->encodes[c->n_encodes - 1].n == n_jobs &&
                memcmp(c->host.jobs + last, jobs, n_jobs * sizeof *jobs) == 0;
    if (!same && c->n_jobs + n_jobs > c->max_jobs) {
        c->refusal = "encoding: more tiles than the backend was made for";
        return;
    }
    if (c->n_encodes == c->max_encodes) {
        c->refusal = "encoding: more layers than the backend was made for";
        return;
    }
    if (!same) {
        last = c->n_jobs;
        memcpy(c->host.jobs + last, jobs, n_jobs * sizeof *jobs);
        c->n_jobs += n_jobs;
    }
    c->encodes[c->n_encodes].kv = kv;
    c->encodes[c->n_encodes].first = last;
    c->encodes[c->n_encodes++].n = n_jobs;
}

/* ---- life ---- */

void op_destroy(kvq_backend *be) {
    cuda_backend *c = cuda_of(be);
    for (uint32_t i = 0; i < c->n_graphs; i++)
        cudaGraphExecDestroy(c->graphs[i].exec);
    cudaFree(c->units);
    cudaFreeHost(c->host_units);
    cudaFree(c->partial);
    cudaFree(c->partial_max);
    cudaFree(c->arrived);
    cudaFreeHost(c->host.tokens);
    cudaFree(c->device.tokens);
    cudaFree(c->ropes[0].device);
    cudaFree(c->fragments);
    cudaFree(c->x_sums);
    cudaFree(c->staging);
    if (c->stream != NULL)
        cudaStreamDestroy(c->stream);
    free(c->encodes);
    free(c);
}

const kvq_backend_ops ops = {
    .name = "cuda",
    .host_memory = false,
    .destroy = op_destroy,
    .alloc = op_alloc,
    .free = op_free,
    .copy = op_copy,
    .weight_load = op_weight_load,
    .weight_free = op_weight_free,
    .kv_check = op_kv_check,
    .kv_load = op_kv_load,
    .kv_free = op_kv_free,
    .scratch_bytes = op_scratch_bytes,
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

/* Carves the arrays of a step out of one block; returns its size. */
size_t lay_out(const cuda_backend *c, uint8_t *memory, step_arrays *a) {
    const kvq_backend_limits *l = &c->limits;
    size_t row = round_256(l->n_batch * sizeof(uint32_t)), at = 0;
    size_t table = round_256((size_t)l->n_seq * l->n_tiles * sizeof(uint32_t));
    a->tokens = (int32_t *)memory;
    at += row;
    a->positions = (uint32_t *)(memory + at);
    at += row;
    a->logit_rows = (uint32_t *)(memory + at);
    at += row;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        a->pages[group] = (uint32_t *)(memory + at);
        at += row;
        a->tables[group] = (uint32_t *)(memory + at);
        at += table;
    }
    a->n_bad = (unsigned long long *)(memory + at);
    at += 256;
    a->jobs = (encode_job *)(memory + at);
    return at + round_256(c->max_jobs * sizeof(encode_job));
}

struct scratch_sizes {
    size_t arrays, fragments, x_sums, ropes;
};

/* Fills in what follows from the limits, and the sizes. */
scratch_sizes size_scratch(cuda_backend *c) {
    const kvq_backend_limits *l = &c->limits;
    size_t n_steps = (l->max_n_in + STEP - 1) / STEP;
    scratch_sizes s;
    c->max_jobs = KVQ_MAX_GROUPS * (l->n_batch / KVQ_TILE + 1 + l->n_seq);
    c->max_units = plan_max_units(l, MAX_BLOCKS);
    c->max_encodes = 1024;
    s.arrays = lay_out(c, NULL, &c->device);
    s.fragments = n_steps * (LINEAR_MAX_ROWS / 8) * 1024;
    s.x_sums = n_steps * 4 * LINEAR_MAX_ROWS * sizeof(float);
    s.ropes = MAX_ROPES * KVQ_MAX_HEAD_DIM * sizeof(float);
    c->n_scratch_bytes = s.arrays + s.fragments + s.x_sums + s.ropes + STAGING_BYTES + MAX_VARIANTS * units_bytes(c) +
                         partial_bytes(c) + partial_max_bytes(c) + c->max_units * sizeof(uint32_t);
    return s;
}

pykvq_status prepare(cuda_backend *c) {
    scratch_sizes s = size_scratch(c);
    c->encodes = (decltype(c->encodes))calloc(c->max_encodes, sizeof *c->encodes);
    if (c->encodes == NULL)
        return fail(PYKVQ_E_MEMORY, "CUDA backend: out of host memory");
    void *memory;
    KVQ_TRY(take(s.arrays, "batch", &memory));
    lay_out(c, (uint8_t *)memory, &c->device);
    if (cudaMallocHost(&memory, s.arrays) != cudaSuccess)
        return fail(PYKVQ_E_MEMORY, "batch: no %zu bytes of pinned host memory", s.arrays);
    lay_out(c, (uint8_t *)memory, &c->host);
    KVQ_TRY(take(s.fragments, "activation fragments", (void **)&c->fragments));
    KVQ_TRY(take(s.x_sums, "activation sums", (void **)&c->x_sums));
    KVQ_TRY(take(STAGING_BYTES, "weight staging", (void **)&c->staging));
    KVQ_TRY(take(MAX_VARIANTS * units_bytes(c), "units of attention", (void **)&c->units));
    KVQ_TRY(take(partial_bytes(c), "partial attention", (void **)&c->partial));
    KVQ_TRY(take(partial_max_bytes(c), "partial attention", (void **)&c->partial_max));
    KVQ_TRY(take(c->max_units * sizeof(uint32_t), "partial attention", (void **)&c->arrived));
    if (cudaMallocHost(&c->host_units, MAX_VARIANTS * units_bytes(c)) != cudaSuccess)
        return fail(PYKVQ_E_MEMORY, "units of attention: no %zu bytes of pinned host memory",
                    MAX_VARIANTS * units_bytes(c));
    KVQ_TRY(take(s.ropes, "RoPE frequencies", &memory));
    for (uint32_t i = 0; i < MAX_ROPES; i++)
        c->ropes[i].device = (float *)memory + i * KVQ_MAX_HEAD_DIM;
    cudaError_t error = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    return error == cudaSuccess ? PYKVQ_OK : fail(PYKVQ_E_DEVICE, "CUDA stream: %s", cudaGetErrorString(error));
}

/* ---- what the core calls ---- */

pykvq_status check_device() {
    int driver = 0, runtime = 0, n = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        return fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': no NVIDIA driver on this machine");
    cudaError_t error = cudaGetDeviceCount(&n);
    if (error == cudaErrorInsufficientDriver)
        return fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': the driver is for CUDA %d.%d, expected %d.%d or later",
                    driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (error != cudaSuccess || n == 0)
        return fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': no GPU: %s",
                    error != cudaSuccess ? cudaGetErrorString(error) : "none found");
    cudaDeviceProp p;
    error = cudaGetDeviceProperties(&p, 0);
    if (error != cudaSuccess)
        return fail(PYKVQ_E_DEVICE, "device 'cuda': %s", cudaGetErrorString(error));
    cudaFuncAttributes attributes;
    if (p.major < 8 || attend_attributes(128, &attributes) != cudaSuccess)
        return fail(PYKVQ_E_UNSUPPORTED,
                    "device 'cuda': %s has compute capability %d.%d, which this build has no kernels for", p.name, p.major,
                    p.minor);
    return PYKVQ_OK;
}

size_t scratch_bytes(const kvq_backend_limits *limits) {
    cuda_backend *c = (cuda_backend *)calloc(1, sizeof *c);
    if (c == NULL)
        return 0;
    c->limits = *limits;
    size_scratch(c);
    size_t n_bytes = c->n_scratch_bytes;
    free(c);
    return n_bytes;
}

pykvq_status create(const kvq_backend_limits *limits, kvq_backend **out) {
    *out = NULL;
    KVQ_TRY(check_device());
    if (limits->exact)
        return fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': exact engines are for the cpu");
    if (limits->n_seq > MAX_SPANS)
        return fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': %u sequences, the most is %d", limits->n_seq, MAX_SPANS);
    cuda_backend *c = (cuda_backend *)calloc(1, sizeof *c);
    if (c == NULL)
        return fail(PYKVQ_E_MEMORY, "CUDA backend: out of host memory");
    c->base.ops = &ops;
    c->limits = *limits;
    cudaDeviceGetAttribute(&c->n_sms, cudaDevAttrMultiProcessorCount, 0);
    pykvq_status status = prepare(c);
    if (status != PYKVQ_OK) {
        op_destroy(&c->base);
        return status;
    }
    *out = &c->base;
    return PYKVQ_OK;
}

const kvq_cuda_library library = {check_device, create, scratch_bytes};

} // namespace

extern "C" __attribute__((visibility("default"))) const kvq_cuda_library *kvq_cuda_open(const kvq_cuda_host *host) {
    if (host->abi != KVQ_CUDA_ABI || host->limits_bytes != sizeof(kvq_backend_limits) ||
        host->ops_bytes != sizeof(kvq_backend_ops))
        return NULL;
    fail = host->fail;
    return &library;
}
