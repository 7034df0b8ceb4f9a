/* The kernels behind the backend's operations, but for attention, which is compiled once per head_dim. */
#ifndef KVQ_CUDA_KERNELS_H
#define KVQ_CUDA_KERNELS_H

#include <cuda_runtime.h>

#include "format.h"
#include "weights.cuh"

constexpr float X_UNIT = 64.0f; /* activations enter matrix products as halves of x / 64: up to 4 million, steps of 4e-6 */

/* ---- weights.cu ---- */

void launch_arrange(const matrix &m, const uint8_t *source, size_t row_bytes, uint32_t first_block, uint32_t n_blocks,
                    cudaStream_t stream);
/* out (16 n_blocks, 64 n_steps) = rows of the matrix from 16 first_block on; expanded_place is the order of columns */
void launch_expand(const matrix &m, uint32_t first_block, uint32_t n_blocks, __half *out, cudaStream_t stream);
void launch_embed(const matrix &m, const int32_t *tokens, uint32_t n_tokens, float scale, float *x, cudaStream_t stream);

/* ---- linear.cu, gemv.cu: few rows ---- */

enum {
    LINEAR_MAX_ROWS = 64,
    LINEAR_MAX_BLOCKS = 256,                                          /* of a launch */
    LINEAR_SCRATCH_BYTES = LINEAR_MAX_BLOCKS * (4 + 2 * 32 * 128 * 4) /* a counter, two partial tiles per block */
};

typedef struct linear_args {
    matrix w[3];
    const float *bias[3]; /* or NULL */
    float *y[3];
    uint32_t n, n_rows;
    const float *x, *norm; /* (n_rows, n_in), through an RMS norm if norm is given */
    float eps;
    uint4 *fragments; /* scratch: linear_fragments_bytes */
    uint8_t *scratch; /* LINEAR_SCRATCH_BYTES, zeros at first */
    bool add;
    bool times; /* y = act(x . w) * y: how linear.cu ends a gated product whose kinds differ */
    bool gated; /* y[0] = act(x . w[0]) * (x . w[1]) */
    uint32_t activation;
} linear_args;

size_t linear_fragments_bytes(uint32_t n_in);
void launch_linear(const linear_args &args, cudaStream_t stream);

/* ---- row.cu ---- */

typedef struct store_args { /* kvq_heads, on the device */
    float *q;
    const float *k, *v, *q_norm, *k_norm, *inv_freq;
    const uint32_t *positions, *pages; /* (n_tokens) positions; f16 pages that they lie in */
    __half *raw;
    unsigned long long *n_bad; /* counts elements that no half float can hold */
    float norm_eps, magnitude;
    uint32_t n_head, n_head_kv, head_dim, n_rot;
    bool interleaved;
} store_args;

/* Rows of halves x / X_UNIT have their columns in the order of expanded_place, and zeros up to whole steps. */
/* halfs (n_rows, n padded) = x (n_rows, n), through an RMS norm if w is given */
void launch_halfs(const float *x, const float *w, float eps, uint32_t n, uint32_t n_rows, __half *halfs,
                  cudaStream_t stream);
/* halfs (n_rows, n padded) = act(gate) * up, which are (n_rows, n padded) halves of x / X_UNIT as a product writes them */
void launch_gate(const __half *gate, const __half *up, uint32_t activation, uint32_t n, uint32_t n_rows, __half *halfs,
                 cudaStream_t stream);
/* y (n_rows, n) = what halfs stand for */
void launch_floats(const __half *halfs, uint32_t n, uint32_t n_rows, float *y, cudaStream_t stream);
/* y (n_rows, n) = bias, or += */
void launch_bias(const float *bias, uint32_t n, uint32_t n_rows, bool add, float *y, cudaStream_t stream);
void launch_norm(const float *x, const float *w, float eps, uint32_t n, uint32_t n_rows, bool add, float *y,
                 cudaStream_t stream);
void launch_gather(const float *x, uint32_t n, const uint32_t *rows, uint32_t n_rows, float *y, cudaStream_t stream);
void launch_softcap(float cap, size_t n, float *x, cudaStream_t stream);
void launch_store(const store_args &args, uint32_t n_rows, cudaStream_t stream);

#endif
