/* The parts of a variance-normalized tile, for its codec and for the kernels that read it. */
#ifndef KVQ_KV_KVARN_H
#define KVQ_KV_KVARN_H

#include "kv/pack.h"

/* Byte offsets of: scale and zero, half floats per channel (K) or per token (V); then the factor, half floats per token (K)
 * or per channel (V). The codes lie at 0. */
static inline uint32_t kvq_kvarn_n_cols(const kvq_codec *codec, uint32_t head_dim) {
    return codec->side == 'k' ? head_dim : KVQ_TILE;
}

static inline size_t kvq_kvarn_scales(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_codes_bytes(codec->bits, head_dim);
}

static inline size_t kvq_kvarn_zeros(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_kvarn_scales(codec, head_dim) + kvq_kvarn_n_cols(codec, head_dim) * 2;
}

static inline size_t kvq_kvarn_factors(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_kvarn_zeros(codec, head_dim) + kvq_kvarn_n_cols(codec, head_dim) * 2;
}

#endif
