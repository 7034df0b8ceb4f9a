/*
 * nvfp4: e2m1 floats of a rotated tile in groups of 16 channels of one token with e4m3 scales, as NVIDIA's format of this
 * name.
 *
 *   y[t][d] ~ tile_scale * e4m3[scale[d / 16][t]] * e2m1[code]        y = x rotated (kv/rotate.h)
 *
 *   tile    codes        64 * head_dim codes, kv/pack.h; bit 3 is the sign
 *           scale        e4m3[head_dim / 16][64]
 *           tile_scale   float32, the largest element / (4 * 448)
 *
 * Bits per element: 4.5 and 32 per tile. A group's scale is searched: from one e4m3 step below the one that puts the
 * group's largest element on 6 to six steps above it (past the one that puts it on 4), the least squared error wins.
 */
#include "kv/nvfp4.h"
#include "kv/float8.h"
#include "kv/rotate.h"
#include "kv/tile.h"

#include <math.h>

static size_t tile_bytes(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_takes_head_dim(head_dim) ? kvq_nvfp4_tile_scale(head_dim) + sizeof(float) : 0;
}

static float largest_magnitude(const float *x, uint32_t n) {
    float largest = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    return largest;
}

/* Rounds a group with this scale; returns the sum of the squared errors. */
static float round_group(const float *x, float scale, uint8_t *codes) {
    float inverse = kvq_reciprocal(scale), error = 0.0f;
    for (uint32_t i = 0; i < KVQ_NVFP4_GROUP; i++) {
        codes[i] = kvq_f32_to_e2m1(x[i] * inverse);
        float difference = scale * kvq_e2m1_to_f32(codes[i]) - x[i];
        error += difference * difference;
    }
    return error;
}

static uint8_t encode_group(const float *x, float tile_scale, uint8_t *codes) {
    float least = INFINITY, inverse = kvq_reciprocal(tile_scale);
    int start = kvq_f32_to_e4m3(largest_magnitude(x, KVQ_NVFP4_GROUP) * inverse / 6.0f), best = 0;
    for (int code = start - 1; code <= start + 6; code++) {
        if (code < 0 || code > 0x7e)
            continue;
        float error = round_group(x, tile_scale * kvq_e4m3_to_f32((uint8_t)code), codes);
        best = error < least ? code : best;
        least = error < least ? error : least;
    }
    round_group(x, tile_scale * kvq_e4m3_to_f32((uint8_t)best), codes);
    return (uint8_t)best;
}

static uint32_t encode(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    float y[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM], *scale = tile + kvq_nvfp4_scales(head_dim);
    uint32_t n_bad = kvq_tile_load(x, head_dim, true, y);
    float tile_scale = largest_magnitude(y, KVQ_TILE * head_dim) / (4.0f * KVQ_E4M3_MAX);
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t g = 0; g < head_dim / KVQ_NVFP4_GROUP; g++) {
            uint32_t first = t * head_dim + g * KVQ_NVFP4_GROUP;
            scale[g * KVQ_TILE + t] = encode_group(y + first, tile_scale, codes + first);
        }
    kvq_pack(codec->side, 4, head_dim, codes, tile);
    memcpy(tile + kvq_nvfp4_tile_scale(head_dim), &tile_scale, sizeof tile_scale);
    return n_bad;
}

static void decode(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, float *x) {
    const uint8_t *scale = tile + kvq_nvfp4_scales(head_dim);
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    float tile_scale;
    memcpy(&tile_scale, tile + kvq_nvfp4_tile_scale(head_dim), sizeof tile_scale);
    kvq_unpack(codec->side, 4, head_dim, tile, codes);
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t d = 0; d < head_dim; d++) {
            float group_scale = tile_scale * kvq_e4m3_to_f32(scale[d / KVQ_NVFP4_GROUP * KVQ_TILE + t]);
            x[t * head_dim + d] = group_scale * kvq_e2m1_to_f32(codes[t * head_dim + d]);
        }
    kvq_rotate_back(x, KVQ_TILE, head_dim);
}

const kvq_codec kvq_codec_nvfp4_k = {"nvfp4", 'k', 1, true, 4, KVQ_NVFP4_GROUP, tile_bytes, encode, decode, NULL};
const kvq_codec kvq_codec_nvfp4_v = {"nvfp4", 'v', 1, true, 4, KVQ_NVFP4_GROUP, tile_bytes, encode, decode, NULL};
