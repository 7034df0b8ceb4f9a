/* The parts of a tiered K tile, for its codec and for the kernels that read it. */
#ifndef KVQ_KV_TIER_H
#define KVQ_KV_TIER_H

#include "kv/pack.h"

enum { KVQ_N_TIERS = 3 };

/* A tier: `n` channels from place `first` of the channel order on, with codes of `bits` bits, packed as a K tile of n
 * channels `offset` bytes into the tile. */
typedef struct kvq_tier {
    uint32_t bits, first, n;
    size_t offset;
} kvq_tier;

/* codec->bits 2: a quarter at 4 bits, a quarter at 2, half at 1. codec->bits 3: a quarter at 4, half at 3, a quarter at 2.
 */
static inline void kvq_tiers(const kvq_codec *codec, uint32_t head_dim, kvq_tier tiers[KVQ_N_TIERS]) {
    static const uint32_t bits[2][KVQ_N_TIERS] = {{4, 2, 1}, {4, 3, 2}};
    static const uint32_t quarters[2][KVQ_N_TIERS] = {{1, 1, 2}, {1, 2, 1}};
    uint32_t first = 0;
    size_t offset = 0;
    for (uint32_t i = 0; i < KVQ_N_TIERS; i++) {
        tiers[i] = (kvq_tier){bits[codec->bits - 2][i], first, quarters[codec->bits - 2][i] * head_dim / 4, offset};
        first += tiers[i].n;
        offset += kvq_codes_bytes(tiers[i].bits, tiers[i].n);
    }
}

/* Byte offsets of: scale and zero, head_dim half floats each, in channel order; factor, 64 half floats; order, head_dim
 * bytes. */
static inline size_t kvq_tier_scales(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_codes_bytes(codec->bits, head_dim);
}

static inline size_t kvq_tier_zeros(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_tier_scales(codec, head_dim) + (size_t)head_dim * 2;
}

static inline size_t kvq_tier_factors(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_tier_zeros(codec, head_dim) + (size_t)head_dim * 2;
}

static inline size_t kvq_tier_order(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_tier_factors(codec, head_dim) + KVQ_TILE * 2;
}

#endif
