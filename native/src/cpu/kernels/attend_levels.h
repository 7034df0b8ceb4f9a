/*
 * Codes that stand for integer levels, with a scale per token and block of channels: for attend_levels.c, and for
 * attend_split.c, whose tiles are two of them.
 */
#ifndef KVQ_CPU_ATTEND_LEVELS_H
#define KVQ_CPU_ATTEND_LEVELS_H

#include "cpu/kernels/attend_codes.h"

#include <math.h>

enum { MAX_BLOCKS = KVQ_MAX_HEAD_DIM / 16 };

/* x[t][d] ~ unit * scale[d / block][t] * (level[code] - bias). Known when a kernel is compiled: bits, bias, block, e4m3 and
 * whether there are levels. */
typedef struct scaled_codes {
    packed codes;
    int32_t bias;
    uint32_t block;       /* channels that share a token's scale; a multiple of 16 */
    bool e4m3;            /* scales are e4m3, else half floats */
    const uint8_t *scale; /* (n_blocks, 64) */
    float unit;
} scaled_codes;

/* Scales of tokens t .. t + VF - 1, without the unit */
VEC_INLINE vf32 load_scales(const scaled_codes *c, uint32_t block, uint32_t t) {
    if (c->e4m3)
        return e4m3_to_f32(vi_shl(vi_load_u8(c->scale + block * KVQ_TILE + t), 24));
    return vf_load_f16((const uint16_t *)c->scale + block * KVQ_TILE + t);
}

/* What the dot product has to take off per unit of the other side */
VEC_INLINE int32_t dot_bias(const uint32_t bits, const int32_t bias) {
    return bits == 8 ? WIDE_BIAS : bias;
}

VEC_INLINE uint32_t n_blocks(const scaled_codes *c) {
    return (c->codes.n + c->block - 1) / c->block;
}

/* ---- keys ---- */

/* What prepare leaves: one of these per row, then all rows' bytes. */
typedef struct prepared_row {
    float scale;               /* of its integers */
    int32_t start[MAX_BLOCKS]; /* of a block's sum: -bias * the sum of its integers */
} prepared_row;

VEC_INLINE int8_t *prepared_bytes(const void *prepared, uint32_t n_rows) { /* (n_rows, terms, BYTES_ROW) */
    return (int8_t *)((prepared_row *)prepared + n_rows);
}

/* Rows row .. row + n_r - 1 of q (n_rows, n), for codes of these bits, bias and block */
VEC_INLINE void prepare_rows(const float *q, uint32_t n_rows, uint32_t n, const uint32_t bits, const int32_t bias,
                             const uint32_t block, uint32_t row, const uint32_t n_r, void *prepared) {
    byte_rows y = {.n = n,
                   .n_r = n_r,
                   .terms = n_terms(bits),
                   .stride = BYTES_ROW,
                   .bytes = prepared_bytes(prepared, n_rows) + row * n_terms(bits) * BYTES_ROW};
    prepared_row *rows = (prepared_row *)prepared + row;
    float scale[ROWS];
    vf32 max[ROWS], all[ROWS], sum[ROWS];
    q += row * n;
    for (uint32_t r = 0; r < n_r; r++)
        max[r] = all[r] = vf_zero();
    for (uint32_t d = 0; d < n; d += VF)
#pragma GCC unroll 4
        for (uint32_t r = 0; r < n_r; r++) {
            max[r] = vf_max(vf_abs(vf_load(q + r * n + d)), max[r]);
            all[r] = vf_add(vf_load(q + r * n + d), all[r]);
        }
    to_bytes(&y, q, n, max, scale, sum);
    for (uint32_t r = 0; r < n_r; r++) {
        const int8_t *at = y.bytes + r * y.terms * BYTES_ROW;
        rows[r].scale = isnan(vf_reduce_add(all[r])) ? NAN : scale[r]; /* the maximum passes over NaN */
        rows[r].start[0] = -dot_bias(bits, bias) * (int32_t)vf_reduce_add(sum[r]);
        for (uint32_t d = 0; d < n && block < n; d++)
            rows[r].start[d / block] = (d % block ? rows[r].start[d / block] : 0) -
                                       dot_bias(bits, bias) * (y.terms == 2 ? TERM * at[d] + at[BYTES_ROW + d] : at[d]);
    }
}

VEC_INLINE void prepare_queries(const float *q, uint32_t n_rows, uint32_t n, const uint32_t bits, const int32_t bias,
                                const uint32_t block, void *prepared) {
    FOR_ROWS(n_rows, prepare_rows(q, n_rows, n, bits, bias, block, row, n_r, prepared));
}

VEC_INLINE void score_scaled_rows(const scaled_codes *k, const void *prepared, uint32_t n_rows, uint32_t row,
                                  const uint32_t n_r, bool add, float *logits) {
    const uint32_t terms = n_terms(k->codes.bits);
    const prepared_row *rows = (const prepared_row *)prepared + row;
    key_bytes q = {prepared_bytes(prepared, n_rows) + row * terms * BYTES_ROW, 1, terms};
    logits += row * KVQ_TILE;
    for (uint32_t piece = 0; piece < N_PIECES; piece++) {
        vf32 sums[ROWS][4];
        for (uint32_t r = 0; r < n_r; r++)
            for (uint32_t g = 0; g < 4; g++)
                sums[r][g] = vf_zero();
        for (uint32_t b = 0; b < n_blocks(k); b++) {
            uint32_t end = (b + 1) * k->block < k->codes.n ? (b + 1) * k->block : k->codes.n;
            dot_sums s;
            start_sums(&s, n_r);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < n_r; r++)
                for (uint32_t g = 0; g < 4; g++)
                    s.at[terms - 1][r][g] = vi_set1(rows[r].start[b]);
            key_dots(&s, &k->codes, piece, b * k->block / 4, end / 4, &q, n_r);
#pragma GCC unroll 4
            for (uint32_t g = 0; g < 4; g++) {
                vf32 scale = load_scales(k, b, 16 * g + VF * piece);
#pragma GCC unroll 4
                for (uint32_t r = 0; r < n_r; r++)
                    sums[r][g] = vf_fma(terms_to_f32(terms, s.at[0][r][g], s.at[1][r][g]), scale, sums[r][g]);
            }
        }
#pragma GCC unroll 4
        for (uint32_t r = 0; r < n_r; r++)
#pragma GCC unroll 4
            for (uint32_t g = 0; g < 4; g++) {
                float *out = logits + r * KVQ_TILE + 16 * g + VF * piece;
                vf32 y = vf_mul(sums[r][g], vf_set1(k->unit * rows[r].scale));
                vf_store(out, add ? vf_add(y, vf_load(out)) : y);
            }
    }
}

/* logits (n_rows, 64) = q . k, or += */
VEC_INLINE void score_scaled(const scaled_codes *k, const void *prepared, uint32_t n_rows, bool add, float *logits) {
    FOR_ROWS(n_rows, score_scaled_rows(k, prepared, n_rows, row, n_r, add, logits));
}

VEC_INLINE vf32 level_of(const scaled_codes *c, vf32 byte, vf32 scale) {
    return vf_mul(vf_sub(byte, vf_set1((float)c->bias)), scale);
}

/* The first two strides of a Hadamard matrix between channels d .. d + 3; y: from row d on */
VEC_INLINE void store_rotating(const vf32 x[4], float *y) {
    vf32 a = vf_add(x[0], x[1]), b = vf_sub(x[0], x[1]), c = vf_add(x[2], x[3]), d = vf_sub(x[2], x[3]);
    vf_store(y, vf_add(a, c));
    vf_store(y + KVQ_TILE, vf_add(b, d));
    vf_store(y + 2 * KVQ_TILE, vf_sub(a, c));
    vf_store(y + 3 * KVQ_TILE, vf_sub(b, d));
}

/* out: (n, 64), tokens in lanes; rotating: with two strides of the rotation on the way back */
VEC_INLINE void expand_scaled_keys(const scaled_codes *k, const bool rotating, float *out) {
    const uint32_t step = k->codes.bits % 2 ? 2 : 1;
    for (uint32_t piece = 0; piece < N_PIECES; piece++)
        for (uint32_t i = 0; i < k->codes.n / 4; i += step)
#pragma GCC unroll 2
            for (uint32_t odd = 0; odd < step; odd++) {
                vi32 dots[4];
                load_dots(&k->codes, i + odd, odd, piece, dots);
#pragma GCC unroll 4
                for (uint32_t g = 0; g < 4; g++) {
                    uint32_t d = 4 * (i + odd), t = 16 * g + VF * piece;
                    vf32 x[4], scale = vf_mul(load_scales(k, d / k->block, t), vf_set1(k->unit));
#pragma GCC unroll 4
                    for (uint32_t b = 0; b < 4; b++)
                        x[b] = level_of(k, byte_to_f32(dots[g], (int)b), scale);
                    if (rotating)
                        store_rotating(x, out + d * KVQ_TILE + t);
#pragma GCC unroll 4
                    for (uint32_t b = 0; !rotating && b < 4; b++)
                        vf_store(out + (d + b) * KVQ_TILE + t, x[b]);
                }
            }
}

/* ---- values ---- */

/* Probabilities of some rows with a block's scales folded in. */
typedef struct scaled_probs {
    _Alignas(64) int8_t bytes[ROWS * 2 * KVQ_TILE]; /* (n_rows, terms, 64) */
    float scale[ROWS];
    int32_t start[ROWS];
} scaled_probs;

/* p: (n_r, 64) */
VEC_INLINE void scale_probs(const scaled_codes *v, uint32_t block, const float *p, const uint32_t n_r, scaled_probs *s) {
    _Alignas(64) float x[ROWS * KVQ_TILE];
    vf32 max[ROWS], sum[ROWS];
    for (uint32_t r = 0; r < n_r; r++)
        max[r] = vf_zero();
#pragma GCC unroll 4
    for (uint32_t t = 0; t < KVQ_TILE; t += VF) {
        vf32 scale = load_scales(v, block, t);
#pragma GCC unroll 4
        for (uint32_t r = 0; r < n_r; r++) {
            vf32 y = vf_mul(vf_load(p + r * KVQ_TILE + t), scale);
            vf_store(x + r * KVQ_TILE + t, y);
            max[r] = vf_max(vf_abs(y), max[r]);
        }
    }
    byte_rows rows = {.n = KVQ_TILE,
                      .n_r = n_r,
                      .terms = n_terms(v->codes.bits),
                      .stride = KVQ_TILE,
                      .offset = dither,
                      .bytes = s->bytes};
    to_bytes(&rows, x, KVQ_TILE, max, s->scale, sum);
    for (uint32_t r = 0; r < n_r; r++) {
        s->scale[r] *= v->unit;
        s->start[r] = -dot_bias(v->codes.bits, v->bias) * (int32_t)vf_reduce_add(sum[r]);
    }
}

/* o (n_r, n) += p (n_r, 64) . v */
VEC_INLINE void mix_scaled_rows(const scaled_codes *v, const float *p, const uint32_t n_r, float *o) {
    const uint32_t terms = n_terms(v->codes.bits);
    scaled_probs blocks[MAX_BLOCKS]; /* all before any dot product: a core works on several at once */
    for (uint32_t b = 0; b < n_blocks(v); b++)
        scale_probs(v, b, p, n_r, &blocks[b]);
    for (uint32_t piece = 0; piece < N_PIECES; piece++)
        for (uint32_t channel = 0; channel < v->codes.n; channel += 16) {
            const scaled_probs *scaled = &blocks[channel / v->block];
            dot_sums s;
            start_sums(&s, n_r);
            for (uint32_t r = 0; r < n_r; r++)
                s.at[terms - 1][r][0] = vi_set1(scaled->start[r]);
            value_dots(&s, &v->codes, piece, channel / 16, scaled->bytes, n_r);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < n_r; r++) {
                float *out = o + r * kvq_output_stride(v->codes.n) + channel + VF * piece;
                vf_store(out, vf_fma(value_sum(terms, &s, r), vf_set1(scaled->scale[r]), vf_load(out)));
            }
        }
}

VEC_INLINE void mix_scaled(const scaled_codes *v, const float *p, uint32_t n_rows, float *o) {
    FOR_ROWS(n_rows, mix_scaled_rows(v, p + row * KVQ_TILE, n_r, o + row * kvq_output_stride(v->codes.n)));
}

/* out: (64, n) */
VEC_INLINE void expand_scaled_values(const scaled_codes *v, float *out) {
    _Alignas(64) float scale[KVQ_TILE];
    for (uint32_t channel = 0; channel < v->codes.n; channel += 16) {
        for (uint32_t t = 0; t < KVQ_TILE && channel % v->block == 0; t += VF)
            vf_store(scale + t, vf_mul(load_scales(v, channel / v->block, t), vf_set1(v->unit)));
        for (uint32_t piece = 0; piece < N_PIECES; piece++)
#pragma GCC unroll 4
            for (uint32_t j = 0; j < 4; j++) {
                vi32 x[4];
                load_dots(&v->codes, channel / 4 + j, j % 2, piece, x);
#pragma GCC unroll 16
                for (uint32_t i = 0; i < 16; i++) {
                    uint32_t t = 16 * j + i;
                    vf32 level = vf_sub(byte_to_f32(x[i / 4], (int)(i % 4)), vf_set1((float)v->bias));
                    vf_store(out + t * v->codes.n + channel + VF * piece, vf_mul(level, vf_set1(scale[t])));
                }
            }
    }
}

/* ---- turbo ---- */

VEC_INLINE int32_t turbo_bias(const uint32_t bits) {
    return bits == 2 ? 60 : bits == 3 ? 62 : 63;
}

/* A set of n channels in a turbo tile. Its levels are the centroids times 39.729, 28.944 and 23.078, plus the bias: the
 * factors up to 63 / largest centroid with which rounding costs least. */
VEC_INLINE scaled_codes turbo_codes(const uint8_t *codes, const uint8_t *scale, uint32_t n, const uint32_t bits) {
    static const uint8_t levels2[16] = {0, 42, 78, 120};
    static const uint8_t levels3[16] = {0, 23, 40, 55, 69, 84, 101, 124};
    static const uint8_t levels4[16] = {0, 15, 26, 34, 41, 48, 54, 60, 66, 72, 78, 85, 92, 100, 111, 126};
    return (scaled_codes){
        .codes = {codes, bits, n,
                  bits == 2   ? levels2
                  : bits == 3 ? levels3
                              : levels4},
        .bias = turbo_bias(bits),
        .block = KVQ_MAX_HEAD_DIM,
        .scale = scale,
        .unit = 1.0f / (bits == 2   ? 39.729f
                        : bits == 3 ? 28.944f
                                    : 23.078f),
    };
}

#endif
