/*
 * q8_0, q4_0: symmetric uniform codes in blocks of 32 channels of one token, as GGUF's types of these names, of rotated
 * tiles.
 *
 *   y[t][d] ~ scale[d / 32][t] * (code - bias)        y = x rotated (kv/rotate.h); bias 128 (q8_0), 8 (q4_0)
 *
 *   tile    codes              64 * head_dim codes, kv/pack.h
 *           scale  half[B][64] B = head_dim / 32, up (head_dim 80: blocks of 32, 32, 16)
 *
 * Bits per element: 8.5, 4.5. Codes are unsigned, so that one operand of the byte dot product is; the bias comes off as
 * bias * sum(query) or bias * sum(probability).
 *
 * What differs from GGUF: scales and codes lie apart, codes are rounded with the scale as stored, and q4_0 tries four
 * scales per block and keeps the one with the least squared error; values then get the unbiased scale (kv/affine.h says
 * why).
 */
#include "kv/blocks.h"
#include "kv/rotate.h"
#include "kv/tile.h"

#include <math.h>

static size_t tile_bytes(const kvq_codec *codec, uint32_t head_dim) {
    if (!kvq_takes_head_dim(head_dim))
        return 0;
    return kvq_blocks_scales(codec, head_dim) + (size_t)kvq_n_blocks(head_dim) * KVQ_TILE * 2;
}

/* The element of largest magnitude, the first of them. */
static float extreme(const float *x, uint32_t n) {
    float found = x[0];
    for (uint32_t i = 1; i < n; i++)
        found = fabsf(x[i]) > fabsf(found) ? x[i] : found;
    return found;
}

static uint16_t encode_8(const float *x, uint32_t n, uint8_t *codes) {
    uint16_t scale = kvq_f16_saturated(fabsf(extreme(x, n)) / 127.0f);
    float inverse = kvq_reciprocal(kvq_f16_to_f32(scale));
    for (uint32_t i = 0; i < n; i++)
        codes[i] = (uint8_t)(kvq_round(kvq_clamp(x[i] * inverse, -127.0f, 127.0f)) + 128.0f);
    return scale;
}

/* Rounds x with this scale; returns the sum of the squared errors. */
static float round_4(const float *x, uint32_t n, float scale, uint8_t *codes) {
    float inverse = kvq_reciprocal(scale), error = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        float q = kvq_round(kvq_clamp(x[i] * inverse, -8.0f, 7.0f));
        float difference = scale * q - x[i];
        codes[i] = (uint8_t)(q + 8.0f);
        error += difference * difference;
    }
    return error;
}

static uint16_t encode_4(char side, const float *x, uint32_t n, uint8_t *codes) {
    static const float stretch[4] = {1.0f, 0.9375f, 0.875f, 1.0625f};
    float top = extreme(x, n) / -8.0f, least = INFINITY;
    uint16_t best = 0;
    for (uint32_t i = 0; i < 4; i++) {
        uint16_t scale = kvq_f16_saturated(top * stretch[i]);
        float error = round_4(x, n, kvq_f16_to_f32(scale), codes);
        best = error < least ? scale : best;
        least = error < least ? error : least;
    }
    round_4(x, n, kvq_f16_to_f32(best), codes);
    if (side == 'k')
        return best;
    float xx = 0.0f, xq = 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        xx += x[i] * x[i];
        xq += x[i] * ((float)codes[i] - 8.0f);
    }
    return xq == 0.0f ? best : kvq_f16_saturated(xx / xq);
}

static uint32_t encode(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    float y[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint16_t *scale = (uint16_t *)(tile + kvq_blocks_scales(codec, head_dim));
    uint32_t n_bad = kvq_tile_load(x, head_dim, true, y);
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t b = 0; b < kvq_n_blocks(head_dim); b++) {
            uint32_t first = b * KVQ_BLOCK, n = head_dim - first < KVQ_BLOCK ? head_dim - first : KVQ_BLOCK;
            const float *block = y + t * head_dim + first;
            uint8_t *block_codes = codes + t * head_dim + first;
            scale[b * KVQ_TILE + t] = codec->bits == 8 ? encode_8(block, n, block_codes)
                                                       : encode_4(codec->side, block, n, block_codes);
        }
    kvq_pack(codec->side, codec->bits, head_dim, codes, tile);
    return n_bad;
}

static void decode(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, float *x) {
    const uint16_t *scale = (const uint16_t *)(tile + kvq_blocks_scales(codec, head_dim));
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    kvq_unpack(codec->side, codec->bits, head_dim, tile, codes);
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t d = 0; d < head_dim; d++)
            x[t * head_dim + d] = kvq_f16_to_f32(scale[d / KVQ_BLOCK * KVQ_TILE + t]) *
                                  (float)(codes[t * head_dim + d] - kvq_blocks_bias(codec));
    kvq_rotate_back(x, KVQ_TILE, head_dim);
}

#define BLOCKS(id, name, bits)                                                                                             \
    const kvq_codec kvq_codec_##id##_k = {name, 'k', 1, true, bits, KVQ_BLOCK, tile_bytes, encode, decode, NULL};          \
    const kvq_codec kvq_codec_##id##_v = {name, 'v', 1, true, bits, KVQ_BLOCK, tile_bytes, encode, decode, NULL}

BLOCKS(q8_0, "q8_0", 8);
BLOCKS(q4_0, "q4_0", 4);
