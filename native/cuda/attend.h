/* Attention launches, for every head_dim that attend.cu is compiled for. */
#ifndef KVQ_CUDA_ATTEND_H
#define KVQ_CUDA_ATTEND_H

#include <cuda_runtime.h>

#include "format.h"

/* Warps of a block */
__host__ __device__ constexpr uint32_t attend_warps(uint32_t head_dim) {
    return head_dim <= 128 ? 8 : 4;
}

/* Shared memory of a warp's ring: one or two stages of tiles of these sides, at least one of f16 tiles. */
uint32_t attend_ring_bytes(uint32_t head_dim, const tile_side *k, const tile_side *v);
uint32_t attend_scratch_bytes(uint32_t head_dim, const tile_side *k, const tile_side *v); /* and beside it */
/* n_tiles: column tiles of 8, 1 or 2; args: sides, ring and bias. 0 if there is no kernel for the head_dim, or no room for
 * it. */
int attend_blocks_per_sm(uint32_t head_dim, int n_tiles, const attend_args *args);
cudaError_t attend_launch(uint32_t head_dim, int n_tiles, const attend_args *args, uint32_t n_blocks, cudaStream_t stream);
cudaError_t attend_attributes(uint32_t head_dim, cudaFuncAttributes *out);

#endif
