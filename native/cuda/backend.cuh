/*
 * The CUDA backend's own state, shared by the files that its operations are in: backend.cu (life, memory, weights), step.cu
 * (a step as a graph), operations.cu (rows and matrices), cache.cu (keys and values, attention).
 */
#ifndef KVQ_CUDA_BACKEND_CUH
#define KVQ_CUDA_BACKEND_CUH

#include <cuda_runtime.h>
#include <stdlib.h>
#include <string.h>

#include "attend.h"
#include "backend/cuda_library.h"
#include "codecs.h"
#include "gemm.h"
#include "kernels.h"
#include "load.h"
#include "plan.h"
#include "prefill.h"

enum { MAX_ROPES = 2, MAX_VARIANTS = 32, MAX_GRAPHS = 64, MAX_SPANS = 1 << 12, MAX_BLOCKS = 1024 };

/* A way to cut a step's attention, shared by the layers that cut alike. */
struct variant {
    plan_shape shape;
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
    size_t rows_bytes; /* of tokens, positions, logit_rows and pages, which lie side by side */
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
    uint32_t n_jobs, max_jobs, max_units;
    struct {
        const float *host;
        float *device;
    } ropes[MAX_ROPES];
    uint32_t n_ropes;
    uint4 *fragments;
    uint8_t *linear_scratch;
    uint8_t *weights;      /* limits.n_weight_bytes */
    size_t n_weight_bytes; /* of these in use */
    uint8_t *staging;      /* weights on their way in; when running, a matrix as halves */
    size_t staging_bytes;
    struct gemm *gemm;            /* NULL: without cuBLASLt */
    __half *halfs;                /* (n_batch, max_n_in) rows that a product reads, / X_UNIT */
    __half *gate_up[2];           /* (n_batch, max_n_ff) each */
    uint8_t *units, *host_units;  /* (MAX_VARIANTS, { n_units, units }) device, pinned */
    float *partial, *partial_max; /* of the attention that runs: layers wait for each other */
    uint32_t *arrived;            /* (max_units) */
    uint8_t *staged;              /* tiles of prefill attention, and its sums */
    float *prefill_partial;
    float2 *prefill_max_sum;
    variant variants[MAX_VARIANTS];
    uint32_t n_variants, variants_used;
    kept_graph graphs[MAX_GRAPHS];
    uint32_t n_graphs;
    size_t n_scratch_bytes;

    const kvq_batch *batch;
    kept_graph *replay; /* operations of this step are in it */
    bool captures;      /* the step becomes such a graph; if neither, operations are launched as they come */
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
    struct { /* y (n_rows, n) is not there, but in halfs */
        float *y;
        uint32_t n, n_rows;
    } gated;
};

static inline cuda_backend *cuda_of(kvq_backend *be) {
    return reinterpret_cast<cuda_backend *>(be);
}

static inline void note(cuda_backend *c, cudaError_t error) {
    if (c->error == cudaSuccess)
        c->error = error;
}

static inline size_t round_256(size_t n) {
    return (n + 255) / 256 * 256;
}

enum { UNITS_AT = 256 }; /* bytes of a variant in front of its units */

static inline size_t units_bytes(const cuda_backend *c) { /* of a variant: its number of units, then the units */
    return UNITS_AT + round_256(c->max_units * sizeof(attend_unit));
}

static inline const matrix &matrix_of(const kvq_weight *w) {
    return ((weight_memory *)w->device)->m;
}

static inline const float *vector_of(const kvq_weight *w) {
    return w != NULL ? ((weight_memory *)w->device)->vector : NULL;
}

/* ---- step.cu ---- */

pykvq_status op_step_begin(kvq_backend *be, const kvq_batch *batch);
pykvq_status op_step_end(kvq_backend *be, bool run);
void upload_units(cuda_backend *c, variant *v); /* plans this step's */

/* ---- operations.cu ---- */

void flush_pending(cuda_backend *c); /* what was put off, if this is not the projection that takes it in */
void op_embed(kvq_backend *be, const kvq_weight *table, float scale, float *x);
void op_norm(kvq_backend *be, const float *x, const kvq_weight *w, float eps, uint32_t n_rows, bool add, float *y);
void op_project(kvq_backend *be, const float *x, uint32_t n_rows, uint32_t n, const kvq_weight *const *w,
                const kvq_weight *const *bias, bool add, float *const *y);
void op_gated(kvq_backend *be, const float *x, uint32_t n_rows, const kvq_weight *gate, const kvq_weight *up,
              kvq_activation act, float *y);
void op_gather(kvq_backend *be, const float *x, uint32_t n, const uint32_t *rows, uint32_t n_rows, float *y);
void op_softcap(kvq_backend *be, float softcap, size_t n, float *x);

/* ---- cache.cu ---- */

pykvq_status check_kv(const kvq_codec *k, const kvq_codec *v, uint32_t head_dim);
pykvq_status op_kv_load(kvq_backend *be, kvq_kv_layer *kv);
void op_kv_free(kvq_backend *be, kvq_kv_layer *kv);
pykvq_status op_page_read(kvq_backend *be, const kvq_kv_layer *kv, kvq_page page, void *out);
pykvq_status op_page_write(kvq_backend *be, const kvq_kv_layer *kv, kvq_page page, const void *from);
void op_store(kvq_backend *be, const kvq_heads *heads);
void op_attend(kvq_backend *be, const kvq_attention *attention);
void op_encode(kvq_backend *be, const kvq_kv_layer *kv, const kvq_encode_job *jobs, uint32_t n_jobs);
void run_encodes(cuda_backend *c); /* what op_encode was given in this step */

#endif
