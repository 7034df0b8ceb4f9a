/* The parts of q8_0 and q4_0 tiles, for their codecs and for the kernels that read them. */
#ifndef KVQ_KV_BLOCKS_H
#define KVQ_KV_BLOCKS_H

#include "kv/pack.h"

enum { KVQ_BLOCK = 32 /* channels of one token that share a scale */ };

static inline uint32_t kvq_n_blocks(uint32_t head_dim) {
    return (head_dim + KVQ_BLOCK - 1) / KVQ_BLOCK; /* head_dim 80: 32, 32, 16 */
}

/* Byte offset of the scales, (n_blocks, 64) half floats; the codes lie at 0. */
static inline size_t kvq_blocks_scales(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_codes_bytes(codec->bits, head_dim);
}

static inline int kvq_blocks_bias(const kvq_codec *codec) { /* the code that stands for 0 */
    return codec->bits == 8 ? 128 : 8;
}

#endif
