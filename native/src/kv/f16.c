/*
 * f16: keys and values as half floats, in the layout of an f16 page.
 *
 *   K tile   (head_dim, 64) half: channel by channel, tokens fastest
 *   V tile   (64, head_dim) half: token by token, channels fastest
 */
#include "base/half.h"
#include "kv/codec.h"

static size_t tile_bytes(uint32_t head_dim) {
    return (size_t)KVQ_TILE * head_dim * 2;
}

static void encode_k(const float *x, uint32_t head_dim, uint8_t *tile) {
    uint16_t *halfs = (uint16_t *)tile;
    for (uint32_t d = 0; d < head_dim; d++)
        for (uint32_t t = 0; t < KVQ_TILE; t++)
            halfs[d * KVQ_TILE + t] = kvq_f32_to_f16(x[(size_t)t * head_dim + d]);
}

static void decode_k(const uint8_t *tile, uint32_t head_dim, float *x) {
    const uint16_t *halfs = (const uint16_t *)tile;
    for (uint32_t d = 0; d < head_dim; d++)
        for (uint32_t t = 0; t < KVQ_TILE; t++)
            x[(size_t)t * head_dim + d] = kvq_f16_to_f32(halfs[d * KVQ_TILE + t]);
}

static void encode_v(const float *x, uint32_t head_dim, uint8_t *tile) {
    uint16_t *halfs = (uint16_t *)tile;
    for (uint32_t i = 0; i < KVQ_TILE * head_dim; i++)
        halfs[i] = kvq_f32_to_f16(x[i]);
}

static void decode_v(const uint8_t *tile, uint32_t head_dim, float *x) {
    const uint16_t *halfs = (const uint16_t *)tile;
    for (uint32_t i = 0; i < KVQ_TILE * head_dim; i++)
        x[i] = kvq_f16_to_f32(halfs[i]);
}

const kvq_codec kvq_codec_f16_k = {"f16", 1, false, tile_bytes, encode_k, decode_k};
const kvq_codec kvq_codec_f16_v = {"f16", 1, false, tile_bytes, encode_v, decode_v};
