/*
 * turbo4, turbo3, turbo2 and turbo3.5, turbo2.5: rotated tokens on the best codebook for a normal distribution.
 * TurboQuant (Zandieh et al., ICLR 2026, arXiv 2504.19874), the codec the paper calls Q_mse.
 *
 *   y[t][d] ~ scale[t] * centroid[code]        y = x rotated (kv/rotate.h)
 *
 *   turbo4, turbo3, turbo2
 *     tile   codes                64 * head_dim codes, kv/pack.h
 *            scale  half[64]
 *
 *   turbo3.5, turbo2.5: two independent instances, as in the paper, on the wide (outlier) and on the narrow channels
 *     tile   codes, wide          64 * n_wide codes of bits + 1, packed as a tile of n_wide channels
 *            codes, narrow        64 * n_narrow codes of bits
 *            scale  half[64]      of the wide channels
 *            scale  half[64]      of the narrow channels
 *            mask   head_dim bits the wide channels
 *
 * The rotated coordinates of a token are close to normal with the token's root mean square as deviation; codes are the
 * nearest centroids (Lloyd-Max) at that size, or at a tenth less or more if that fits better. Then the scale: for keys the
 * least-squares one, for values the one whose reconstruction projects onto the token with length 1 (unbiased, as in EDEN),
 * so that errors average out over tokens.
 *
 * Wide channels: the half (head_dim / 32 * 16) with most energy in the tile, before rotation; ties to the lower index. The
 * sets are in ascending channel order, and each is rotated by the Hadamard of its own size. So a tile stores which channels
 * are wide, and a kernel that meets another mask than the last tile's gathers and rotates the query anew.
 *
 * Bits per element at head_dim 128: turbo4 4.125, turbo3 3.125, turbo2 2.125, turbo3.5 3.766, turbo2.5 2.766.
 *
 * What differs from the paper: Hadamard with signs instead of a dense random rotation, the table for the normal instead of
 * the exact distribution of a coordinate, the scale, and which channels are wide is decided tile by tile. Not used: the
 * 1-bit sketch of the residual (Q_prod), which loses more than a bit spent on the code.
 */
#include "kv/turbo.h"
#include "kv/rotate.h"
#include "kv/tile.h"

#include <math.h>
#include <string.h>

static const float centroids2[4] = {-1.510418f, -0.452780f, 0.452780f, 1.510418f};
static const float centroids3[8] = {-2.151946f, -1.343909f, -0.756005f, -0.245094f,
                                    0.245094f,  0.756005f,  1.343909f,  2.151946f};
static const float centroids4[16] = {-2.732590f, -2.069017f, -1.618046f, -1.256231f, -0.942340f, -0.656759f,
                                     -0.388048f, -0.128395f, 0.128395f,  0.388048f,  0.656759f,  0.942340f,
                                     1.256231f,  1.618046f,  2.069017f,  2.732590f};

const float *kvq_turbo_centroids(uint32_t bits) {
    return bits == 2 ? centroids2 : bits == 3 ? centroids3 : centroids4;
}

/* The nearest centroid: how many of the midpoints between centroids lie below. */
static uint8_t nearest(float x, const float *centroids, uint32_t n) {
    uint8_t code = 0;
    for (uint32_t i = 1; i < n; i++)
        code += x > (centroids[i - 1] + centroids[i]) * 0.5f;
    return code;
}

/* The codes of a token y (n) divided by `size`, and what scales are fitted from: sums of y * centroid and of centroid^2. */
static void round_token(const float *y, uint32_t n, uint32_t bits, float size, uint8_t *codes, float *yc, float *cc) {
    const float *centroids = kvq_turbo_centroids(bits);
    float inverse = kvq_reciprocal(size);
    *yc = *cc = 0.0f;
    for (uint32_t d = 0; d < n; d++) {
        codes[d] = nearest(y[d] * inverse, centroids, 1u << bits);
        *yc += y[d] * centroids[codes[d]];
        *cc += centroids[codes[d]] * centroids[codes[d]];
    }
}

/* The codes and the scale of a token. */
static uint16_t encode_token(char side, const float *y, uint32_t n, uint32_t bits, uint8_t *codes) {
    static const float stretch[3] = {1.0f, 0.90625f, 1.09375f};
    float yy = 0.0f, yc, cc, most = -1.0f, best = 1.0f;
    for (uint32_t d = 0; d < n; d++)
        yy += y[d] * y[d];
    float rms = sqrtf(yy / (float)n);
    for (uint32_t i = 0; i < 3; i++) {
        round_token(y, n, bits, rms * stretch[i], codes, &yc, &cc);
        float explained = yc * yc / cc; /* of yy, by the least-squares scale */
        best = explained > most ? stretch[i] : best;
        most = explained > most ? explained : most;
    }
    round_token(y, n, bits, rms * best, codes, &yc, &cc);
    return kvq_f16_saturated(yc <= 0.0f ? 0.0f : side == 'k' ? yc / cc : yy / yc);
}

/* One instance: rotates y (KVQ_TILE, n) in place and encodes it. */
static void encode_set(char side, float *y, uint32_t n, uint32_t bits, uint8_t *packed, uint16_t *scale) {
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    kvq_rotate(y, KVQ_TILE, n);
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        scale[t] = encode_token(side, y + t * n, n, bits, codes + t * n);
    kvq_pack(side, bits, n, codes, packed);
}

static void decode_set(char side, const uint8_t *packed, const uint16_t *scale, uint32_t n, uint32_t bits, float *y) {
    const float *centroids = kvq_turbo_centroids(bits);
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    kvq_unpack(side, bits, n, packed, codes);
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t d = 0; d < n; d++)
            y[t * n + d] = kvq_f16_to_f32(scale[t]) * centroids[codes[t * n + d]];
    kvq_rotate_back(y, KVQ_TILE, n);
}

/* ---- turbo4, turbo3, turbo2 ---- */

static size_t tile_bytes(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_takes_head_dim(head_dim) ? kvq_turbo_scales(codec, head_dim) + KVQ_TILE * 2 : 0;
}

static uint32_t encode(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    float y[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint32_t n_bad = kvq_tile_load(x, head_dim, false, y);
    encode_set(codec->side, y, head_dim, codec->bits, tile, (uint16_t *)(tile + kvq_turbo_scales(codec, head_dim)));
    return n_bad;
}

static void decode(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, float *x) {
    decode_set(codec->side, tile, (const uint16_t *)(tile + kvq_turbo_scales(codec, head_dim)), head_dim, codec->bits, x);
}

/* ---- turbo3.5, turbo2.5 ---- */

static size_t split_tile_bytes(const kvq_codec *codec, uint32_t head_dim) {
    bool two_sets = kvq_takes_head_dim(head_dim) && head_dim >= 32;
    return two_sets ? kvq_turbo_mask(codec, head_dim) + head_dim / 8 : 0;
}

/* mask: the channels of y (KVQ_TILE, head_dim) with most energy */
static void choose_wide(const float *y, uint32_t head_dim, uint8_t *mask) {
    float energy[KVQ_MAX_HEAD_DIM];
    for (uint32_t d = 0; d < head_dim; d++) {
        energy[d] = 0.0f;
        for (uint32_t t = 0; t < KVQ_TILE; t++)
            energy[d] += y[t * head_dim + d] * y[t * head_dim + d];
    }
    memset(mask, 0, head_dim / 8);
    for (uint32_t d = 0; d < head_dim; d++) {
        uint32_t n_before = 0;
        for (uint32_t other = 0; other < head_dim; other++)
            n_before += energy[other] > energy[d] || (energy[other] == energy[d] && other < d);
        mask[d / 8] |= (uint8_t)((n_before < kvq_turbo_n_wide(head_dim)) << d % 8);
    }
}

void kvq_turbo_channels(const uint8_t *mask, uint32_t head_dim, uint8_t *channels) {
    uint32_t wide = 0, narrow = kvq_turbo_n_wide(head_dim);
    for (uint32_t d = 0; d < head_dim; d++)
        channels[mask[d / 8] >> d % 8 & 1 ? wide++ : narrow++] = (uint8_t)d;
}

static uint32_t split_encode(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    float y[KVQ_TILE * KVQ_MAX_HEAD_DIM], part[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint8_t channels[KVQ_MAX_HEAD_DIM], *channel = channels;
    kvq_turbo_set sets[2];
    kvq_turbo_sets(codec, head_dim, sets);
    uint32_t n_bad = kvq_tile_load(x, head_dim, false, y);
    choose_wide(y, head_dim, tile + kvq_turbo_mask(codec, head_dim));
    kvq_turbo_channels(tile + kvq_turbo_mask(codec, head_dim), head_dim, channels);
    for (uint32_t i = 0; i < 2; channel += sets[i++].n) {
        for (uint32_t t = 0; t < KVQ_TILE; t++)
            for (uint32_t d = 0; d < sets[i].n; d++)
                part[t * sets[i].n + d] = y[t * head_dim + channel[d]];
        encode_set(codec->side, part, sets[i].n, sets[i].bits, tile + sets[i].codes, (uint16_t *)(tile + sets[i].scales));
    }
    return n_bad;
}

static void split_decode(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, float *x) {
    float part[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint8_t channels[KVQ_MAX_HEAD_DIM], *channel = channels;
    kvq_turbo_set sets[2];
    kvq_turbo_sets(codec, head_dim, sets);
    kvq_turbo_channels(tile + kvq_turbo_mask(codec, head_dim), head_dim, channels);
    for (uint32_t i = 0; i < 2; channel += sets[i++].n) {
        decode_set(codec->side, tile + sets[i].codes, (const uint16_t *)(tile + sets[i].scales), sets[i].n, sets[i].bits,
                   part);
        for (uint32_t t = 0; t < KVQ_TILE; t++)
            for (uint32_t d = 0; d < sets[i].n; d++)
                x[t * head_dim + channel[d]] = part[t * sets[i].n + d];
    }
}

/* Are as many channels wide as there must be? */
static bool split_valid(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim) {
    const uint8_t *mask = tile + kvq_turbo_mask(codec, head_dim);
    uint32_t n_wide = 0;
    for (uint32_t d = 0; d < head_dim; d++)
        n_wide += mask[d / 8] >> d % 8 & 1;
    return n_wide == kvq_turbo_n_wide(head_dim);
}

#define TURBO(id, name, bits)                                                                                              \
    const kvq_codec kvq_codec_##id##_k = {name, 'k', 1, true, bits, 0, tile_bytes, encode, decode, NULL};                  \
    const kvq_codec kvq_codec_##id##_v = {name, 'v', 1, true, bits, 0, tile_bytes, encode, decode, NULL}

#define TURBO_SPLIT(id, name, bits)                                                                                        \
    const kvq_codec kvq_codec_##id##_k = {name,         'k',          1,          false, bits, 0, split_tile_bytes,        \
                                          split_encode, split_decode, split_valid};                                        \
    const kvq_codec kvq_codec_##id##_v = {name,         'v',          1,          false, bits, 0, split_tile_bytes,        \
                                          split_encode, split_decode, split_valid}

TURBO(turbo4, "turbo4", 4);
TURBO(turbo3, "turbo3", 3);
TURBO(turbo2, "turbo2", 2);
TURBO_SPLIT(turbo3_5, "turbo3.5", 3);
TURBO_SPLIT(turbo2_5, "turbo2.5", 2);
