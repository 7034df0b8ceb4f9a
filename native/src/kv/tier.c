/*
 * tier3, tier2 (K): bits go where the energy is. The channels of a tile are sorted by variance and get 4, 2 or 1 bits
 * (tier2: a quarter, a quarter, half of them) or 4, 3 or 2 bits (tier3: a quarter, half, a quarter).
 *
 * After RoPE a head's key channels differ in variance by orders of magnitude. A rotation makes them equal and so must spend
 * equal bits on all; without it, bits follow the logarithm of the variance (reverse water-filling), which loses less at
 * the same size. Each channel has its own scale and zero, as in KIVI, each token its own factor, as in KVarN.
 *
 *   x[t][order[i]] ~ factor[t] * (scale[i] * code + zero[i])        i: place in the order of falling variance
 *
 *   tile    codes                   of the three tiers, one after the other, each as a K tile of its channels (kv/pack.h)
 *           scale  half[head_dim]   in that order
 *           zero   half[head_dim]
 *           factor half[64]
 *           order  u8[head_dim]     the channel at place i
 *
 * Bits per element: bits + 0.75 at head_dim 128, bits + 0.875 at 64.
 * Attention gathers the query by the order while it folds the scales into it; then it is three small K tiles.
 * Values do not differ so between channels: the V side of tier2 and tier3 is that of kvarn2 and kvarn3.
 */
#include "kv/tier.h"
#include "kv/affine.h"
#include "kv/normalize.h"
#include "kv/tile.h"

static size_t tile_bytes(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_takes_head_dim(head_dim) ? kvq_tier_order(codec, head_dim) + head_dim : 0;
}

/* order: channels of x (KVQ_TILE, head_dim) by falling variance, equal ones by index */
static void sort_channels(const float *x, uint32_t head_dim, uint8_t *order) {
    float variance[KVQ_MAX_HEAD_DIM];
    for (uint32_t d = 0; d < head_dim; d++) {
        float mean = 0.0f, sum = 0.0f;
        for (uint32_t t = 0; t < KVQ_TILE; t++)
            mean += x[t * head_dim + d];
        mean /= (float)KVQ_TILE;
        for (uint32_t t = 0; t < KVQ_TILE; t++)
            sum += (x[t * head_dim + d] - mean) * (x[t * head_dim + d] - mean);
        variance[d] = sum;
        uint32_t place = d;
        for (; place > 0 && variance[order[place - 1]] < sum; place--)
            order[place] = order[place - 1];
        order[place] = (uint8_t)d;
    }
}

/* y: (KVQ_TILE, n) = the channels order[0..n-1] of x (KVQ_TILE, head_dim) */
static void gather(const float *x, uint32_t head_dim, const uint8_t *order, uint32_t n, float *y) {
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t i = 0; i < n; i++)
            y[t * n + i] = x[t * head_dim + order[i]];
}

static void scatter(const float *y, uint32_t head_dim, const uint8_t *order, uint32_t n, float *x) {
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t i = 0; i < n; i++)
            x[t * head_dim + order[i]] = y[t * n + i];
}

static uint32_t encode(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    float y[KVQ_TILE * KVQ_MAX_HEAD_DIM], normal[KVQ_TILE * KVQ_MAX_HEAD_DIM], part[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint16_t *scale = (uint16_t *)(tile + kvq_tier_scales(codec, head_dim));
    uint16_t *zero = (uint16_t *)(tile + kvq_tier_zeros(codec, head_dim));
    uint16_t *factor = (uint16_t *)(tile + kvq_tier_factors(codec, head_dim));
    uint8_t *order = tile + kvq_tier_order(codec, head_dim);
    kvq_tier tiers[KVQ_N_TIERS];
    kvq_tiers(codec, head_dim, tiers);

    uint32_t n_bad = kvq_tile_load(x, head_dim, false, y);
    kvq_normal_factors(y, head_dim, factor, NULL);
    kvq_divide_tokens(y, head_dim, factor, normal);
    sort_channels(normal, head_dim, order);
    float *fitted = normal; /* tier by tier, what the codes say takes the place of what they say it of */
    for (uint32_t i = 0; i < KVQ_N_TIERS; i++) {
        const kvq_tier *tier = &tiers[i];
        uint16_t *tier_scale = scale + tier->first, *tier_zero = zero + tier->first;
        gather(normal, head_dim, order + tier->first, tier->n, part);
        kvq_affine_encode(part, KVQ_TILE, tier->n, tier->bits, KVQ_FIT_NORM, tier_scale, tier_zero, codes);
        kvq_pack('k', tier->bits, tier->n, codes, tile + tier->offset);
        kvq_affine_decode(codes, tier_scale, tier_zero, KVQ_TILE, tier->n, part);
        scatter(part, head_dim, order + tier->first, tier->n, fitted);
    }
    kvq_refit_tokens(y, fitted, head_dim, factor);
    return n_bad;
}

static void decode(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, float *x) {
    float part[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    const uint16_t *scale = (const uint16_t *)(tile + kvq_tier_scales(codec, head_dim));
    const uint16_t *zero = (const uint16_t *)(tile + kvq_tier_zeros(codec, head_dim));
    const uint16_t *factor = (const uint16_t *)(tile + kvq_tier_factors(codec, head_dim));
    const uint8_t *order = tile + kvq_tier_order(codec, head_dim);
    kvq_tier tiers[KVQ_N_TIERS];
    kvq_tiers(codec, head_dim, tiers);
    for (uint32_t i = 0; i < KVQ_N_TIERS; i++) {
        const kvq_tier *tier = &tiers[i];
        kvq_unpack('k', tier->bits, tier->n, tile + tier->offset, codes);
        kvq_affine_decode(codes, scale + tier->first, zero + tier->first, KVQ_TILE, tier->n, part);
        scatter(part, head_dim, order + tier->first, tier->n, x);
    }
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t d = 0; d < head_dim; d++)
            x[t * head_dim + d] *= kvq_f16_to_f32(factor[t]);
}

/* Is every channel there once? */
static bool valid(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim) {
    const uint8_t *order = tile + kvq_tier_order(codec, head_dim);
    bool seen[KVQ_MAX_HEAD_DIM] = {false};
    for (uint32_t i = 0; i < head_dim; i++) {
        if (order[i] >= head_dim || seen[order[i]])
            return false;
        seen[order[i]] = true;
    }
    return true;
}

const kvq_codec kvq_codec_tier3_k = {"tier3", 'k', 1, false, 3, KVQ_TILE, tile_bytes, encode, decode, valid};
const kvq_codec kvq_codec_tier2_k = {"tier2", 'k', 1, false, 2, KVQ_TILE, tile_bytes, encode, decode, valid};
