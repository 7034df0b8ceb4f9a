/*
 * Attention over fp8 tiles: e4m3 floats times the tile's scale.
 *
 * A code becomes a float by two shifts, a mask and a factor of 2^120 (kv/pack.h order: 4 channels of a token, or 4 tokens
 * of a channel, per 32-bit lane), then multiplies like one: 4 instructions per vector of floats for all rows and one
 * multiply-add per row. Half of f16's bytes and about its instructions. Tokens are the lanes of K, channels those of V.
 */
#include "cpu/kernels/attend_codes.h"

extern const kvq_codec kvq_codec_fp8_k, kvq_codec_fp8_v;

static float tile_scale(const void *tile, uint32_t head_dim) {
    float scale;
    memcpy(&scale, (const uint8_t *)tile + kvq_codes_bytes(8, head_dim), sizeof scale);
    return scale;
}

/* The e4m3 in byte b of each lane */
VEC_INLINE vf32 float_at(vi32 x, const int b) {
    return e4m3_to_f32(vi_shl(x, 24 - 8 * b));
}

VEC_INLINE void score_rows(const void *tile, uint32_t head_dim, const float *q, const uint32_t n_r, float *logits) {
    vf32 scale = vf_set1(tile_scale(tile, head_dim));
    packed c = {tile, 8, head_dim, NULL};
    for (uint32_t piece = 0; piece < N_PIECES; piece++) {
        vf32 sums[ROWS][4];
        for (uint32_t r = 0; r < n_r; r++)
            for (uint32_t g = 0; g < 4; g++)
                sums[r][g] = vf_zero();
        for (uint32_t d = 0; d < head_dim; d += 4) {
            vi32 x[4];
            load_dots(&c, d / 4, 0, piece, x);
#pragma GCC unroll 4
            for (uint32_t b = 0; b < 4; b++)
#pragma GCC unroll 4
                for (uint32_t g = 0; g < 4; g++) {
                    vf32 k = float_at(x[g], (int)b);
#pragma GCC unroll 4
                    for (uint32_t r = 0; r < n_r; r++)
                        sums[r][g] = vf_fma(k, vf_set1(q[r * head_dim + d + b]), sums[r][g]);
                }
        }
        for (uint32_t r = 0; r < n_r; r++)
            for (uint32_t g = 0; g < 4; g++)
                vf_store(logits + r * KVQ_TILE + 16 * g + VF * piece, vf_mul(sums[r][g], scale));
    }
}

static void score(const void *tile, uint32_t head_dim, const void *prepared, uint32_t n_rows, float *logits) {
    const float *q = prepared;
    FOR_ROWS(n_rows, score_rows(tile, head_dim, q + row * head_dim, n_r, logits + row * KVQ_TILE));
}

VEC_INLINE void mix_rows(const void *tile, uint32_t head_dim, const float *p, const uint32_t n_r, float *o) {
    vf32 scale = vf_set1(tile_scale(tile, head_dim));
    uint32_t stride = kvq_output_stride(head_dim);
    packed c = {tile, 8, head_dim, NULL};
    for (uint32_t channel = 0; channel < head_dim; channel += 16)
        for (uint32_t piece = 0; piece < N_PIECES; piece++) {
            vf32 sums[ROWS][4]; /* by token % 4: chains of additions that do not wait for each other */
            for (uint32_t r = 0; r < n_r; r++)
                for (uint32_t b = 0; b < 4; b++)
                    sums[r][b] = vf_zero();
            for (uint32_t j = 0; j < 4; j++) {
                vi32 x[4];
                load_dots(&c, channel / 4 + j, 0, piece, x);
#pragma GCC unroll 4
                for (uint32_t f = 0; f < 4; f++)
#pragma GCC unroll 4
                    for (uint32_t b = 0; b < 4; b++) {
                        vf32 v = float_at(x[f], (int)b);
#pragma GCC unroll 4
                        for (uint32_t r = 0; r < n_r; r++)
                            sums[r][b] = vf_fma(v, vf_set1(p[r * KVQ_TILE + 16 * j + 4 * f + b]), sums[r][b]);
                    }
            }
            for (uint32_t r = 0; r < n_r; r++) {
                float *out = o + r * stride + channel + VF * piece;
                vf32 sum = vf_add(vf_add(sums[r][0], sums[r][1]), vf_add(sums[r][2], sums[r][3]));
                vf_store(out, vf_fma(sum, scale, vf_load(out)));
            }
        }
}

static void mix(const void *tile, uint32_t head_dim, uint32_t n_tokens, const float *p, uint32_t n_rows, float *o) {
    FOR_ROWS(n_rows, mix_rows(tile, head_dim, p + row * KVQ_TILE, n_r, o + row * kvq_output_stride(head_dim)));
}

static void expand_k(const void *tile, uint32_t head_dim, float *k) {
    vf32 scale = vf_set1(tile_scale(tile, head_dim));
    packed c = {tile, 8, head_dim, NULL};
    for (uint32_t d = 0; d < head_dim; d += 4)
        for (uint32_t piece = 0; piece < N_PIECES; piece++) {
            vi32 x[4];
            load_dots(&c, d / 4, 0, piece, x);
#pragma GCC unroll 16
            for (uint32_t i = 0; i < 16; i++)
                vf_store(k + (d + i % 4) * KVQ_TILE + 16 * (i / 4) + VF * piece,
                         vf_mul(float_at(x[i / 4], (int)(i % 4)), scale));
        }
}

static void expand_v(const void *tile, uint32_t head_dim, float *v) {
    vf32 scale = vf_set1(tile_scale(tile, head_dim));
    uint32_t stride = kvq_output_stride(head_dim);
    packed c = {tile, 8, head_dim, NULL};
    for (uint32_t i = 0; i < head_dim / 4; i++) /* 16 tokens of 16 channels */
        for (uint32_t piece = 0; piece < N_PIECES; piece++) {
            vi32 x[4];
            load_dots(&c, i, 0, piece, x);
#pragma GCC unroll 16
            for (uint32_t t = 0; t < 16; t++)
                vf_store(v + (i % 4 * 16 + t) * stride + i / 4 * 16 + VF * piece,
                         vf_mul(float_at(x[t / 4], (int)(t % 4)), scale));
        }
}

const kvq_key_kernels KVQ_NAME(kvq_keys_fp8) = {&kvq_codec_fp8_k, NULL, score, expand_k};
const kvq_value_kernels KVQ_NAME(kvq_values_fp8) = {&kvq_codec_fp8_v, mix, expand_v};
