/*
 * kvarn4, kvarn3, kvarn2: a rotated tile, its tokens and channels brought to equal size, then asymmetric uniform codes.
 * KVarN (arXiv 2606.03458).
 *
 *   K: y[t][d] ~ factor[t] * (scale[d] * code + zero[d])
 *   V: y[t][d] ~ factor[d] * (scale[t] * code + zero[t])        y = x rotated (kv/rotate.h)
 *
 *   tile    codes                64 * head_dim codes, kv/pack.h
 *           scale  half[N]       K: N = head_dim, V: N = 64
 *           zero   half[N]
 *           factor half[M]       K: M = 64, V: M = head_dim
 *
 * Bits per element: bits + 16 (2 N + M) / (64 head_dim): 0.625 (K) and 0.5 (V) at head_dim 128, 0.75 at 64.
 * Attention: K scales fold into the query, zeros into one dot product with it, factors into the scores; V scales and zeros
 * into the probabilities, factors into the output of the tile.
 *
 * What differs from the paper: tiles of 64 tokens, root mean squares instead of standard deviations (no special case for a
 * constant channel), two rounds instead of eight (no more to gain), scale and zero refitted unbiased (kv/affine.h), and the
 * tokens' factors of K fitted once more to the codes by least squares.
 */
#include "kv/kvarn.h"
#include "kv/affine.h"
#include "kv/normalize.h"
#include "kv/rotate.h"
#include "kv/tile.h"

static size_t tile_bytes(const kvq_codec *codec, uint32_t head_dim) {
    if (!kvq_takes_head_dim(head_dim))
        return 0;
    return kvq_kvarn_factors(codec, head_dim) + (codec->side == 'k' ? KVQ_TILE : head_dim) * 2;
}

static void encode_k(const kvq_codec *codec, const float *y, uint32_t head_dim, uint8_t *tile) {
    float normal[KVQ_TILE * KVQ_MAX_HEAD_DIM], fitted[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint16_t *scale = (uint16_t *)(tile + kvq_kvarn_scales(codec, head_dim));
    uint16_t *zero = (uint16_t *)(tile + kvq_kvarn_zeros(codec, head_dim));
    uint16_t *factor = (uint16_t *)(tile + kvq_kvarn_factors(codec, head_dim));

    kvq_normal_factors(y, head_dim, factor, NULL);
    kvq_divide_tokens(y, head_dim, factor, normal);
    kvq_affine_encode(normal, KVQ_TILE, head_dim, codec->bits, KVQ_FIT_UNBIASED, scale, zero, codes);
    kvq_affine_decode(codes, scale, zero, KVQ_TILE, head_dim, fitted);
    kvq_refit_tokens(y, fitted, head_dim, factor);
    kvq_pack('k', codec->bits, head_dim, codes, tile);
}

static void encode_v(const kvq_codec *codec, const float *y, uint32_t head_dim, uint8_t *tile) {
    float turned[KVQ_TILE * KVQ_MAX_HEAD_DIM]; /* (head_dim, KVQ_TILE) */
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM], turned_codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint16_t *scale = (uint16_t *)(tile + kvq_kvarn_scales(codec, head_dim));
    uint16_t *zero = (uint16_t *)(tile + kvq_kvarn_zeros(codec, head_dim));
    uint16_t *factor = (uint16_t *)(tile + kvq_kvarn_factors(codec, head_dim));

    kvq_normal_factors(y, head_dim, NULL, factor);
    for (uint32_t d = 0; d < head_dim; d++) {
        float inverse = kvq_reciprocal(kvq_f16_to_f32(factor[d]));
        for (uint32_t t = 0; t < KVQ_TILE; t++)
            turned[d * KVQ_TILE + t] = y[t * head_dim + d] * inverse;
    }
    kvq_affine_encode(turned, head_dim, KVQ_TILE, codec->bits, KVQ_FIT_UNBIASED, scale, zero, turned_codes);
    kvq_transpose_codes(turned_codes, head_dim, KVQ_TILE, codes);
    kvq_pack('v', codec->bits, head_dim, codes, tile);
}

static uint32_t encode(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    float y[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint32_t n_bad = kvq_tile_load(x, head_dim, true, y);
    if (codec->side == 'k')
        encode_k(codec, y, head_dim, tile);
    else
        encode_v(codec, y, head_dim, tile);
    return n_bad;
}

static void decode(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, float *x) {
    const uint16_t *scale = (const uint16_t *)(tile + kvq_kvarn_scales(codec, head_dim));
    const uint16_t *zero = (const uint16_t *)(tile + kvq_kvarn_zeros(codec, head_dim));
    const uint16_t *factor = (const uint16_t *)(tile + kvq_kvarn_factors(codec, head_dim));
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    kvq_unpack(codec->side, codec->bits, head_dim, tile, codes);
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t d = 0; d < head_dim; d++) {
            uint32_t col = codec->side == 'k' ? d : t, row = codec->side == 'k' ? t : d;
            float level = kvq_f16_to_f32(scale[col]) * (float)codes[t * head_dim + d] + kvq_f16_to_f32(zero[col]);
            x[t * head_dim + d] = kvq_f16_to_f32(factor[row]) * level;
        }
    kvq_rotate_back(x, KVQ_TILE, head_dim);
}

#define KVARN(id, name, bits)                                                                                              \
    const kvq_codec kvq_codec_##id##_k = {name, 'k', 1, true, bits, KVQ_TILE, tile_bytes, encode, decode, NULL};           \
    const kvq_codec kvq_codec_##id##_v = {name, 'v', 1, true, bits, KVQ_TILE, tile_bytes, encode, decode, NULL}

KVARN(kvarn4, "kvarn4", 4);
KVARN(kvarn3, "kvarn3", 3);
KVARN(kvarn2, "kvarn2", 2);
