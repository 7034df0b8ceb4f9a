/*
 * Weights times activations on the CPU: y = x . w^T for weights as the GGUF file holds them, never repacked.
 *
 * Float weights (F32, F16, BF16) multiply the float activations. For all other types a token's activations are first
 * rounded to int8 in groups of 32, and products are exact integers inside a group, so an output differs from the float
 * product by at most sum over groups of max|x| / 254 * sum|w|. Every output is computed by the same operations in the same
 * order whatever the number of tokens and threads: a token's result does not depend on its batch.
 */
#ifndef KVQ_CPU_LINEAR_H
#define KVQ_CPU_LINEAR_H

#include "backend/backend.h"
#include "base/threads.h"

/* Bytes of `scratch` below, which is 64-byte aligned. */
size_t kvq_linear_scratch_bytes(uint32_t n_threads, uint32_t n_batch, uint32_t max_n_in);
/* y[i] (n_rows, w[i]->n_out) = x (n_rows, n_in) . w[i]^T + bias[i] for i < n <= 3; if add, y += that. bias, and any
 * bias[i], may be NULL. */
void kvq_linear_project(kvq_threads *threads, void *scratch, const float *x, uint32_t n_rows, uint32_t n,
                        const kvq_weight *const *w, const float *const *bias, bool add, float *const *y);
/* y (n_rows, n_ff) = act(x . gate^T) * (x . up^T) */
void kvq_linear_gated(kvq_threads *threads, void *scratch, const float *x, uint32_t n_rows, const kvq_weight *gate,
                      const kvq_weight *up, kvq_activation act, float *y);

/* ---- the kernels, one table per instruction set ---- */

enum {
    KVQ_GROUP = 32, /* activations that share a scale */
    KVQ_LINEAR_MAX_LANES = 16,
    KVQ_LINEAR_COLUMNS = 512,                                                               /* of a tile of codes */
    KVQ_LINEAR_FLOAT_COLUMNS = 128,                                                         /* of a tile of floats */
    KVQ_LINEAR_TILE_BYTES = KVQ_LINEAR_COLUMNS / KVQ_GROUP * 12 * KVQ_LINEAR_MAX_LANES * 4, /* of either at most */
    KVQ_LINEAR_TYPES = 41                                                                   /* GGML type ids are below */
};

/* 32 activations of a token: x = scale * code. The sums are what minima and offsets of weights are multiplied with. */
typedef struct kvq_linear_group {
    int8_t code[KVQ_GROUP]; /* -127 .. 127 */
    float scale;
    float sum;         /* scale * (sum of codes) */
    float half_sum[2]; /* the same of 16 each */
    int32_t minus_sum; /* -(sum of codes) */
    int32_t minus_half_sum[2];
    uint32_t unused; /* a cache line in all */
} kvq_linear_group;

/* How the codes of a weight type become weights: scale * (code - offset), or scale * code + min; one scale for 32 or
 * for 16. */
typedef enum kvq_linear_kind {
    KVQ_LINEAR_FLOAT,
    KVQ_LINEAR_OFFSET32, /* codes 0 .. 127, offset 2^shift */
    KVQ_LINEAR_OFFSET16,
    KVQ_LINEAR_WIDE32, /* codes of 8 bits: -128 .. 127 */
    KVQ_LINEAR_MIN32,  /* codes 0 .. 127 */
    KVQ_LINEAR_MIN16
} kvq_linear_kind;

typedef struct kvq_linear_type {
    kvq_linear_kind kind;
    int shift;
    /* In both, `ahead` is where the panel lies that comes next: its bytes are asked for, not read. */
    /* One token, n_lanes rows of w: y (n_lanes). x: float (n_in), or kvq_linear_group (n_in / 32). */
    void (*dot)(const uint8_t *w, size_t row_bytes, uint32_t n_in, const uint8_t *ahead, const void *x, float *y);
    /* n_columns of n_lanes rows into a tile */
    void (*unpack)(const uint8_t *w, size_t row_bytes, uint32_t n_columns, const uint8_t *ahead, void *tile);
} kvq_linear_type;

typedef struct kvq_linear_kernels {
    uint32_t n_lanes; /* rows of w that are computed together; outputs of any fewer are the scalar kernels' */
    const kvq_linear_type *types[KVQ_LINEAR_TYPES]; /* by GGML id */
    void (*quantize)(const float *x, uint32_t n_in, kvq_linear_group *groups);
    /* acc (n_tokens, 2, n_lanes) += tokens times two tiles of n_columns; x: rows of x_bytes, of float or of groups */
    void (*multiply)(const kvq_linear_type *type, const void *const tiles[2], uint32_t n_columns, const void *x,
                     size_t x_bytes, uint32_t n_tokens, float *acc);
    /* y (n_lanes of rows of n_y floats) = acc + bias, or +=; bias may be NULL; lanes below skip are left alone */
    void (*store)(const float *acc, size_t acc_stride, uint32_t n_tokens, uint32_t skip, const float *bias, bool add,
                  float *y, size_t n_y);
} kvq_linear_kernels;

#endif
