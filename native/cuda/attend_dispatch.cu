/* One attention kernel per head_dim: which of them to call. */
#include "attend.h"

#define EACH_HEAD_DIM(X) X(16) X(32) X(64) X(80) X(96) X(112) X(128) X(256)

#define DECLARE(hd)                                                                                                        \
    extern "C" int kvq_cuda_attend_blocks_##hd(int n_tiles, uint32_t ring_bytes, uint32_t n_pairs);                        \
    extern "C" cudaError_t kvq_cuda_attend_attributes_##hd(cudaFuncAttributes *out);                                       \
    extern "C" cudaError_t kvq_cuda_attend_launch_##hd(int n_tiles, const attend_args *args, uint32_t n_blocks,            \
                                                       cudaStream_t stream);
EACH_HEAD_DIM(DECLARE)

/* Of a warp's ring so that four blocks of heads of 128 elements fit an SM. More warps hide more than a second stage does.
 */
enum { FOUR_BLOCKS_BYTES = 12800 };

static uint32_t larger(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

uint32_t attend_ring_bytes(uint32_t head_dim, const tile_side *k, const tile_side *v) {
    uint32_t f16_stage = 2 * 16 * head_dim * 2, stage = k->chunk_bytes + k->meta_bytes + v->chunk_bytes + v->meta_bytes;
    if (k->chunk_tokens == 64 && v->chunk_tokens == 64) /* whole tiles, each rounded up */
        stage += 2 * 63;
    bool is_f16 = k->chunk_tokens == 16 && v->chunk_tokens == 16;
    uint32_t n_stages = is_f16 || 2 * stage <= FOUR_BLOCKS_BYTES ? 2 : 1;
    return (larger(f16_stage, n_stages * stage) + 127) / 128 * 128;
}

int attend_blocks_per_sm(uint32_t head_dim, int n_tiles, uint32_t ring_bytes, uint32_t n_pairs) {
    switch (head_dim) {
#define BLOCKS(hd)                                                                                                         \
    case hd:                                                                                                               \
        return kvq_cuda_attend_blocks_##hd(n_tiles, ring_bytes, n_pairs);
        EACH_HEAD_DIM(BLOCKS)
    }
    return 0;
}

cudaError_t attend_launch(uint32_t head_dim, int n_tiles, const attend_args *args, uint32_t n_blocks, cudaStream_t stream) {
    switch (head_dim) {
#define LAUNCH(hd)                                                                                                         \
    case hd:                                                                                                               \
        return kvq_cuda_attend_launch_##hd(n_tiles, args, n_blocks, stream);
        EACH_HEAD_DIM(LAUNCH)
    }
    return cudaErrorInvalidValue;
}

cudaError_t attend_attributes(uint32_t head_dim, cudaFuncAttributes *out) {
    switch (head_dim) {
#define ATTRIBUTES(hd)                                                                                                     \
    case hd:                                                                                                               \
        return kvq_cuda_attend_attributes_##hd(out);
        EACH_HEAD_DIM(ATTRIBUTES)
    }
    return cudaErrorInvalidValue;
}
