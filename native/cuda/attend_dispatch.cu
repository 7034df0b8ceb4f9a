/* One attention kernel per head_dim: which of them to call. */
#include "attend.h"

#define DECLARE(hd)                                                                                                        \
    extern "C" int kvq_cuda_attend_blocks_##hd(int n_tiles, const attend_args *args);                                      \
    extern "C" cudaError_t kvq_cuda_attend_attributes_##hd(cudaFuncAttributes *out);                                       \
    extern "C" cudaError_t kvq_cuda_attend_launch_##hd(int n_tiles, const attend_args *args, uint32_t n_blocks,            \
                                                       cudaStream_t stream);
EACH_HEAD_DIM(DECLARE)

/* Of a warp's ring, so that two blocks fit an SM of compute capability 9.0; what columns and barriers need beside the
 * rings. */
enum { RING_BYTES = 13824, BESIDE_RINGS = 12 << 10 };

uint32_t attend_scratch_bytes(uint32_t head_dim, const tile_side *k, const tile_side *v) {
    bool is_split = k->path == PATH_SPLIT_2 || k->path == PATH_SPLIT_3 || v->path == PATH_SPLIT_2 ||
                    v->path == PATH_SPLIT_3;
    return is_split ? 33 * head_dim : 0; /* split_scratch */
}

uint32_t attend_ring_bytes(uint32_t head_dim, const tile_side *k, const tile_side *v) {
    int shared = 0; /* of a block */
    cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    uint32_t f16_stage = 2 * 16 * head_dim * 2, stage = k->chunk_bytes + k->meta_bytes + v->chunk_bytes + v->meta_bytes;
    uint32_t n_warps = attend_warps(head_dim), most = RING_BYTES * (8 / n_warps);
    uint32_t fits = ((uint32_t)shared - BESIDE_RINGS) / n_warps, two = 2 * stage + attend_scratch_bytes(head_dim, k, v);
    uint32_t n_stages = two <= (most < fits ? most : fits) ? 2 : 1;
    uint32_t n_bytes = n_stages * stage > f16_stage ? n_stages * stage : f16_stage;
    return (n_bytes + 127) / 128 * 128;
}

int attend_blocks_per_sm(uint32_t head_dim, int n_tiles, const attend_args *args) {
    switch (head_dim) {
#define BLOCKS(hd)                                                                                                         \
    case hd:                                                                                                               \
        return kvq_cuda_attend_blocks_##hd(n_tiles, args);
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
