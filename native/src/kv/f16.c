/*
 * f16: keys and values as half floats, in the layout of an f16 page.
 *
 *   K tile   (head_dim, 64) half: channel by channel, tokens fastest
 *   V tile   (64, head_dim) half: token by token, channels fastest
 */
#include "base/half.h"
#include "kv/codec.h"

#include <math.h>

static size_t tile_bytes(const kvq_codec *codec, uint32_t head_dim) {
    return (size_t)KVQ_TILE * head_dim * 2;
}

static size_t place(const kvq_codec *codec, uint32_t head_dim, uint32_t token, uint32_t channel) {
    return codec->side == 'k' ? (size_t)channel * KVQ_TILE + token : (size_t)token * head_dim + channel;
}

static uint32_t encode(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    uint16_t *halfs = (uint16_t *)tile;
    uint32_t n_bad = 0;
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t d = 0; d < head_dim; d++) {
            float value = x[(size_t)t * head_dim + d];
            bool good = fabsf(value) <= 65504.0f;
            n_bad += !good;
            halfs[place(codec, head_dim, t, d)] = kvq_f32_to_f16(good ? value : 0.0f);
        }
    return n_bad;
}

static void decode(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, float *x) {
    const uint16_t *halfs = (const uint16_t *)tile;
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t d = 0; d < head_dim; d++)
            x[(size_t)t * head_dim + d] = kvq_f16_to_f32(halfs[place(codec, head_dim, t, d)]);
}

const kvq_codec kvq_codec_f16_k = {"f16", 'k', 1, false, 16, 1, tile_bytes, encode, decode, NULL};
const kvq_codec kvq_codec_f16_v = {"f16", 'v', 1, false, 16, 1, tile_bytes, encode, decode, NULL};
