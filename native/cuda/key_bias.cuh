/* The key bias of a tile, taken out of its keys or given back: kv/key_bias.h. */
#ifndef KVQ_CUDA_KEY_BIAS_CUH
#define KVQ_CUDA_KEY_BIAS_CUH

#include "format.h"
#include "tile.h"

/* y (64, ld) plus the bias, or minus it if SIGN is -1; by all threads of a block. */
template <int SIGN>
__device__ inline void add_key_bias(const bias_tables &b, uint32_t head, uint32_t tile, float *y, int ld) {
    const float *cos_start = b.turn + ((size_t)head * b.n_tiles + tile) * 2 * b.n_pairs, *sin_start = cos_start + b.n_pairs;
    const float *cos_wave = b.wave + (size_t)head * 2 * b.n_pairs * TILE_TOKENS,
                *sin_wave = cos_wave + b.n_pairs * TILE_TOKENS;
    for (uint32_t i = threadIdx.x; i < b.n_pairs * TILE_TOKENS; i += blockDim.x) {
        uint32_t pair = i / TILE_TOKENS, t = i % TILE_TOKENS, at = head * b.n_pairs + pair;
        float b_c = b.b_c[at], b_s = b.b_s[at];
        if (b_c == 0.0f && b_s == 0.0f) /* it only fills up the head's table */
            continue;
        float cos_j = cos_start[pair] * cos_wave[i] - sin_start[pair] * sin_wave[i];
        float sin_j = sin_start[pair] * cos_wave[i] + cos_start[pair] * sin_wave[i];
        y[t * ld + b.c[at]] += SIGN * (b_c * cos_j - b_s * sin_j);
        y[t * ld + b.s[at]] += SIGN * (b_c * sin_j + b_s * cos_j);
    }
    __syncthreads();
}

#endif
