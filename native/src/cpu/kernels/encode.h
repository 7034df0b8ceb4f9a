/*
 * What the tile encoders share: taking a tile in, the rotation, half floats, and codes into their words.
 *
 * A tile is worked on as floats (head_dim, 64): a row is a channel, tokens are the lanes. Whatever a codec computes token
 * by token is then a loop down the rows, 16 tokens at a time with AVX-512; what it computes channel by channel takes the
 * tile turned over, (64, head_dim). Codes come out as bytes in rows like those they were computed in. Nothing here may
 * round otherwise than kv/ does: no fused multiply-add.
 */
#ifndef KVQ_CPU_KERNELS_ENCODE_H
#define KVQ_CPU_KERNELS_ENCODE_H

#include "cpu/encode.h"
#include "cpu/isa.h"
#include "cpu/kernels/rows.h"
#include "kv/pack.h"
#include "kv/tile.h"

enum { TILE_ELEMENTS = KVQ_TILE * KVQ_MAX_HEAD_DIM };

/* ---- the roundings of kv/tile.h ---- */

VEC_INLINE vf32 round_even(vf32 x) { /* kvq_round */
    return vf_sub(vf_add(x, vf_set1(0x1.8p23f)), vf_set1(0x1.8p23f));
}

VEC_INLINE vf32 clamp(vf32 x, float low, float high) {
    return vf_min(vf_max(x, vf_set1(low)), vf_set1(high));
}

VEC_INLINE vf32 reciprocal(vf32 x) { /* kvq_reciprocal */
    return vf_select_less(vf_set1(0x1p-126f), vf_abs(x), vf_div(vf_set1(1.0f), x), vf_zero());
}

/* kvq_f16_saturated, as a float; a zero has no sign */
VEC_INLINE vf32 as_half(vf32 x) {
    uint16_t half[VF];
    vf_store_f16(half, clamp(x, -KVQ_F16_MAX, KVQ_F16_MAX));
    return vf_add(vf_load_f16(half), vf_zero());
}

VEC_INLINE vf32 largest_of(vf32 so_far, vf32 x) {
    return vf_max(vf_abs(x), so_far);
}

/* ---- tiles ---- */

/* y (n) = x, 0 for what no half float can hold */
VEC_INLINE void copy_good(const float *x, uint32_t n, float *y) {
    const vf32 beyond = vf_set1(0x1.ffc002p15f); /* the next float after 65504 */
    for (uint32_t i = 0; i < n; i += VF)
        vf_store(y + i, vf_select_less(vf_abs(vf_load(x + i)), beyond, vf_load(x + i), vf_zero()));
}

/* kvq_rotate of y (n, 64): the same steps, between rows */
static void rotate(float *y, uint32_t n) {
    for (uint32_t d = 0; d < n; d++)
        for (uint32_t t = 0; t < KVQ_TILE && kvq_rotate_negative(d); t += VF)
            vf_store(y + d * KVQ_TILE + t, vf_mul(vf_load(y + d * KVQ_TILE + t), vf_set1(-1.0f)));
    hadamard_rows(y, n, 1);
    vf32 factor = vf_set1((float)(1.0 / sqrt((double)kvq_rotate_block(n))));
    for (uint32_t i = 0; i < n * KVQ_TILE; i += VF)
        vf_store(y + i, vf_mul(vf_load(y + i), factor));
}

/* y (head_dim, 64) = the tile x of an f16 page with 0 for what no half float can hold, rotated if asked for */
static void load_tile(char side, const float *x, uint32_t head_dim, bool rotated, float *y) {
    if (side == 'k') {
        copy_good(x, KVQ_TILE * head_dim, y);
    } else {
        turn(x, KVQ_TILE, head_dim, y);
        copy_good(y, KVQ_TILE * head_dim, y);
    }
    if (rotated)
        rotate(y, head_dim);
}

/* ---- codes into words (kv/pack.h) ---- */

/* Codes of a tile, a byte each: rows of tokens (n, 64), or by_token rows of channels (64, stride). K may be either, V rows
 * of tokens. */
typedef struct code_rows {
    const uint8_t *at;
    bool by_token;
    uint32_t stride;
} code_rows;

/* Lanes VF piece .. of the 16 dot vectors of channels `channel` .. + 15 */
VEC_INLINE void dots_of(const code_rows *c, const char side, uint32_t channel, uint32_t piece, vi32 x[16]) {
    for (uint32_t i = 0; i < 4; i++) {
        if (side == 'v') { /* 16 channels of tokens 4 j .. 4 j + 3 */
            vi_load_rows(c->at + (channel + VF * piece) * KVQ_TILE + 16 * i, KVQ_TILE, x + 4 * i);
        } else if (c->by_token) { /* tokens 16 i .., channels 4 j .. 4 j + 3 */
            vi32 dots[4];
            vi_load_rows(c->at + (16 * i + VF * piece) * c->stride + channel, c->stride, dots);
            for (uint32_t j = 0; j < 4; j++)
                x[4 * j + i] = dots[j];
        } else {
            for (uint32_t j = 0; j < 4; j++) {
                const uint8_t *row = c->at + (channel + 4 * j) * KVQ_TILE + 16 * i + VF * piece;
                x[4 * j + i] = vi_or(
                    vi_or(vi_load_u8(row), vi_shl(vi_load_u8(row + KVQ_TILE), 8)),
                    vi_or(vi_shl(vi_load_u8(row + 2 * KVQ_TILE), 16), vi_shl(vi_load_u8(row + 3 * KVQ_TILE), 24)));
            }
        }
    }
}

/* Bits `from` .. + bits - 1 of the codes of 16 dot vectors into their words, of which there are n_words. */
VEC_INLINE void store_plane(const vi32 x[16], const uint32_t bits, const uint32_t from, uint32_t n_words, uint8_t *words) {
    const uint32_t n_fields = 8 / bits;
    const vi32 mask = vi_set1((int32_t)(0x01010101u * ((1u << bits) - 1)));
#pragma GCC unroll 16
    for (uint32_t w = 0; w < 16 / n_fields; w++) {
        vi32 word = vi_and(vi_shr(x[w * n_fields], (int)from), mask);
#pragma GCC unroll 8
        for (uint32_t f = 1; f < n_fields; f++)
            word = vi_or(word, vi_shl(vi_and(vi_shr(x[w * n_fields + f], (int)from), mask), (int)(f * bits)));
        if (w < n_words)
            vi_store(words + 64 * w, word);
    }
}

VEC_INLINE void pack_as(const code_rows *c, const char side, const uint32_t bits, uint32_t n, uint8_t *tile) {
    const uint32_t plane = bits == 3 ? 2 : bits; /* 3 bits: the low two, then the high one */
    size_t end = kvq_codes_bytes(plane, n), high_end = kvq_codes_bytes(1, n);
    for (uint32_t channel = 0; channel < n; channel += 16)
        for (uint32_t piece = 0; piece < 16 / VF; piece++) {
            vi32 x[16];
            size_t at = kvq_codes_bytes(plane, channel), high = kvq_codes_bytes(1, channel);
            dots_of(c, side, channel, piece, x);
            store_plane(x, plane, 0, (uint32_t)(end - at) / 64, tile + at + 4 * VF * piece);
            if (bits == 3)
                store_plane(x, 1, 2, (uint32_t)(high_end - high) / 64, tile + end + high + 4 * VF * piece);
        }
}

/* kvq_pack of the codes of n channels; n: a multiple of 16, or for K of 4 that fills whole words */
static void pack(const code_rows *c, char side, uint32_t bits, uint32_t n, uint8_t *tile) {
#define PACK_AS(b)                                                                                                         \
    case b:                                                                                                                \
        if (side == 'k')                                                                                                   \
            pack_as(c, 'k', b, n, tile);                                                                                   \
        else                                                                                                               \
            pack_as(c, 'v', b, n, tile);                                                                                   \
        break
    switch (bits) {
        PACK_AS(1);
        PACK_AS(2);
        PACK_AS(3);
        PACK_AS(4);
        PACK_AS(8);
    }
#undef PACK_AS
}

/* The low byte of each lane */
VEC_INLINE void store_codes(uint8_t *codes, vi32 x) {
    vi_store_i8((int8_t *)codes, vi_sar(vi_shl(x, 24), 24));
}

/* ---- channels in order ---- */

/* place (n): how many channels have a larger value, or the same and a lower index; n: a multiple of 16 */
static void rank_channels(const float *value, uint32_t n, uint32_t *place) {
    static const float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const vf32 one = vf_set1(1.0f);
    for (uint32_t d = 0; d < n; d += VF) {
        vf32 mine = vf_load(value + d), index = vf_add(vf_load(lanes), vf_set1((float)d)), n_before = vf_zero();
        for (uint32_t other = 0; other < n; other++) {
            vf32 its = vf_set1(value[other]), if_equal = vf_select_less(vf_set1((float)other), index, one, vf_zero());
            n_before = vf_add(n_before, vf_select_less(mine, its, one, vf_select_less(its, mine, vf_zero(), if_equal)));
        }
        vi_store(place + d, vi_from_f32(n_before));
    }
}

#endif
