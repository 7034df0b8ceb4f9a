/* The parts of a KIVI tile, for its codec and for the kernels that read it. */
#ifndef KVQ_KV_KIVI_H
#define KVQ_KV_KIVI_H

#include "kv/pack.h"

/* A group is `group` consecutive tokens of one channel (K), or up to `group` consecutive channels of one token (V). */
static inline uint32_t kvq_kivi_n_groups(const kvq_codec *codec, uint32_t head_dim) { /* along the grouped side */
    return codec->side == 'k' ? KVQ_TILE / codec->group : (head_dim + codec->group - 1) / codec->group;
}

static inline uint32_t kvq_kivi_n_cols(const kvq_codec *codec, uint32_t head_dim) { /* scales of a group row */
    return codec->side == 'k' ? head_dim : KVQ_TILE;
}

/* Byte offset of the scales, (n_groups, n_cols) half floats; the zeros follow, as many; the codes lie at 0. */
static inline size_t kvq_kivi_scales(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_codes_bytes(codec->bits, head_dim);
}

static inline size_t kvq_kivi_zeros(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_kivi_scales(codec, head_dim) +
           (size_t)kvq_kivi_n_groups(codec, head_dim) * kvq_kivi_n_cols(codec, head_dim) * 2;
}

#endif
