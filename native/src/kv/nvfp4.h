/* The parts of an nvfp4 tile, for its codec and for the kernels that read it. */
#ifndef KVQ_KV_NVFP4_H
#define KVQ_KV_NVFP4_H

#include "kv/pack.h"

enum { KVQ_NVFP4_GROUP = 16 /* channels of one token that share a scale */ };

/* Byte offset of the group scales, (head_dim / 16, 64) e4m3; the codes lie at 0. */
static inline size_t kvq_nvfp4_scales(uint32_t head_dim) {
    return kvq_codes_bytes(4, head_dim);
}

/* Byte offset of the tile's scale, one float32. */
static inline size_t kvq_nvfp4_tile_scale(uint32_t head_dim) {
    return kvq_nvfp4_scales(head_dim) + (size_t)head_dim / KVQ_NVFP4_GROUP * KVQ_TILE;
}

#endif
