/*
 * fp8: e4m3 floats of a rotated tile, scaled by a power of two.
 *
 *   y[t][d] ~ scale * e4m3[code]        y = x rotated (kv/rotate.h)
 *
 *   tile    codes           64 * head_dim bytes, e4m3, kv/pack.h
 *           scale  float32  the smallest power of two with which the largest element stays within 448
 *
 * Bits per element: 8 and 32 per tile. The scale only moves the range, rounding is relative: no per-channel scale would
 * gain much. Rotated, because a float rounds its largest elements worst and outliers are the largest.
 */
#include "kv/float8.h"
#include "kv/pack.h"
#include "kv/rotate.h"
#include "kv/tile.h"

#include <math.h>

static size_t tile_bytes(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_takes_head_dim(head_dim) ? kvq_codes_bytes(8, head_dim) + sizeof(float) : 0;
}

static float choose_scale(const float *y, uint32_t n) {
    float largest = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        largest = fabsf(y[i]) > largest ? fabsf(y[i]) : largest;
    int exponent;
    float fraction = frexpf(largest, &exponent); /* 448 = 0.875 * 2^9 */
    exponent -= fraction > 0.875f ? 8 : 9;
    return ldexpf(1.0f, exponent < -100 || largest == 0.0f ? -100 : exponent);
}

static uint32_t encode(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    float y[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint32_t n_bad = kvq_tile_load(x, head_dim, true, y);
    float scale = choose_scale(y, KVQ_TILE * head_dim), inverse = 1.0f / scale;
    for (uint32_t i = 0; i < KVQ_TILE * head_dim; i++)
        codes[i] = kvq_f32_to_e4m3(y[i] * inverse);
    kvq_pack(codec->side, 8, head_dim, codes, tile);
    memcpy(tile + kvq_codes_bytes(8, head_dim), &scale, sizeof scale);
    return n_bad;
}

static void decode(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, float *x) {
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    float scale;
    memcpy(&scale, tile + kvq_codes_bytes(8, head_dim), sizeof scale);
    kvq_unpack(codec->side, 8, head_dim, tile, codes);
    for (uint32_t i = 0; i < KVQ_TILE * head_dim; i++)
        x[i] = scale * kvq_e4m3_to_f32(codes[i]);
    kvq_rotate_back(x, KVQ_TILE, head_dim);
}

const kvq_codec kvq_codec_fp8_k = {"fp8", 'k', 1, true, 8, 0, tile_bytes, encode, decode, NULL};
const kvq_codec kvq_codec_fp8_v = {"fp8", 'v', 1, true, 8, 0, tile_bytes, encode, decode, NULL};
