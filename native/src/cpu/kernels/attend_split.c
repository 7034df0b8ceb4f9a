/*
 * Attention over turbo3.5 and turbo2.5 tiles: two sets of channels, wide and narrow, each a turbo tile of its own.
 *
 * A tile's mask says which channels are wide, and each set has its own rotation, so the rotations cannot be done once for
 * all tiles: per tile, each query is split by the mask and rotated before its scores, and the weighted values are rotated
 * back and merged by the mask. At head_dim 64 that is about 100 instructions per row and side with AVX-512, as many as the
 * dot products. For many rows a tile is expanded with tokens in lanes on both sides, where rotating is additions between
 * rows: 0.9 us at head_dim 64, of the 15 us that 192 rows then take. Measured limits: tools/bench/REPORT.md.
 */
#include "cpu/kernels/attend_levels.h"
#include "cpu/kernels/rows.h"
#include "kv/turbo.h"

/* A tile's two sets. Known when a kernel is compiled: their bits, so loops over them are unrolled. */
typedef struct split_tile {
    uint32_t head_dim;
    scaled_codes sets[2];
    const uint8_t *mask; /* head_dim bits: channels of set 0 */
} split_tile;

/* Rows of both sets have this room: whole vectors are stored across their ends. */
enum { SET_ROW = KVQ_MAX_HEAD_DIM / 2 + 16 + VF };

typedef float set_rows[KVQ_FEW_ROWS * SET_ROW];

VEC_INLINE split_tile get_split(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, const uint32_t bits) {
    kvq_turbo_set sets[2];
    kvq_turbo_sets(codec, head_dim, sets);
    return (split_tile){
        .head_dim = head_dim,
        .sets = {turbo_codes(tile + sets[0].codes, tile + sets[0].scales, sets[0].n, bits + 1),
                 turbo_codes(tile + sets[1].codes, tile + sets[1].scales, sets[1].n, bits)},
        .mask = tile + kvq_turbo_mask(codec, head_dim),
    };
}

/* Bits channel .. channel + VF - 1 of a mask */
VEC_INLINE uint32_t mask_bits(const uint8_t *mask, uint32_t channel) {
    uint32_t bits = mask[channel / 8] | (VF > 8 ? (uint32_t)mask[channel / 8 + 1] << 8 : 0);
    return bits >> channel % 8 & ((1u << VF) - 1);
}

/* x (head_dim) -> its wide channels, its narrow ones */
static void split_row(const float *x, const uint8_t *mask, uint32_t head_dim, float *wide, float *narrow) {
    for (uint32_t d = 0; d < head_dim; d += VF) {
        uint32_t bits = mask_bits(mask, d), n_wide = (uint32_t)__builtin_popcount(bits);
        vf_store_split(vf_load(x + d), bits, wide, narrow);
        wide += n_wide;
        narrow += VF - n_wide;
    }
}

/* The inverse, added to out */
static void merge_row(const float *wide, const float *narrow, const uint8_t *mask, uint32_t head_dim, float *out) {
    for (uint32_t d = 0; d < head_dim; d += VF) {
        uint32_t bits = mask_bits(mask, d), n_wide = (uint32_t)__builtin_popcount(bits);
        vf32 x = vf_load_merged(bits, wide, narrow);
        vf_store(out + d, vf_add(vf_load(out + d), x));
        wide += n_wide;
        narrow += VF - n_wide;
    }
}

void KVQ_NAME(kvq_attend_rotate)(float *x, uint32_t n_rows, uint32_t n);
void KVQ_NAME(kvq_attend_rotate_back)(float *x, uint32_t n_rows, uint32_t n);

/* ---- attention ---- */

VEC_INLINE void score_split(const split_tile *s, const float *q, const uint32_t bits, uint32_t n_rows, float *logits) {
    _Alignas(64) set_rows rows[2];
    _Alignas(64) uint8_t prepared[KVQ_FEW_ROWS * KVQ_PREPARED_BYTES];
    uint32_t n[2] = {s->sets[0].codes.n, s->sets[1].codes.n};
    for (uint32_t r = 0; r < n_rows; r++)
        split_row(q + r * s->head_dim, s->mask, s->head_dim, rows[0] + r * n[0], rows[1] + r * n[1]);
#pragma GCC unroll 2
    for (uint32_t i = 0; i < 2; i++) {
        KVQ_NAME(kvq_attend_rotate)(rows[i], n_rows, n[i]);
        prepare_queries(rows[i], n_rows, n[i], bits + 1 - i, turbo_bias(bits + 1 - i), KVQ_MAX_HEAD_DIM, prepared);
        score_scaled(&s->sets[i], prepared, n_rows, i > 0, logits);
    }
}

VEC_INLINE void mix_split(const split_tile *s, const float *p, uint32_t n_rows, float *o) {
    _Alignas(64) set_rows rows[2];
    uint32_t n[2] = {s->sets[0].codes.n, s->sets[1].codes.n};
#pragma GCC unroll 2
    for (uint32_t i = 0; i < 2; i++) {
        memset(rows[i], 0, n_rows * n[i] * sizeof(float));
        mix_scaled(&s->sets[i], p, n_rows, rows[i]);
        KVQ_NAME(kvq_attend_rotate_back)(rows[i], n_rows, n[i]);
    }
    for (uint32_t r = 0; r < n_rows; r++)
        merge_row(rows[0] + r * n[0], rows[1] + r * n[1], s->mask, s->head_dim, o + r * kvq_output_stride(s->head_dim));
}

/* ---- many rows ---- */

/* The bytes of a V tile's codes, turned over: (n, 64) */
VEC_INLINE void turn_codes(const packed *c, uint8_t *rows) {
    for (uint32_t channel = 0; channel < c->n; channel += 16) {
        _Alignas(64) uint8_t dots[16 * 64]; /* (token / 4, channel, 4) */
        vi32 x[4];
        for (uint32_t piece = 0; piece < N_PIECES; piece++)
#pragma GCC unroll 4
            for (uint32_t j = 0; j < 4; j++) {
                load_dots(c, channel / 4 + j, j % 2, piece, x);
                for (uint32_t f = 0; f < 4; f++)
                    vi_store(dots + 64 * (4 * j + f) + 4 * VF * piece, x[f]);
            }
        for (uint32_t fours = 0; fours < 16; fours += VF)
            for (uint32_t j = 0; j < 16; j += 4) {
                vi_load_rows(dots + 64 * fours + 4 * j, 64, x);
                for (uint32_t i = 0; i < 4; i++)
                    vi_store(rows + (channel + j + i) * KVQ_TILE + 4 * fours, x[i]);
            }
    }
}

/* y: (n, 64), two strides of the rotation on the way back */
VEC_INLINE void expand_set_values(const scaled_codes *v, float *y) {
    _Alignas(64) uint8_t codes[KVQ_MAX_HEAD_DIM * KVQ_TILE];
    turn_codes(&v->codes, codes);
    for (uint32_t t = 0; t < KVQ_TILE; t += VF) {
        vf32 x[4], scale = vf_mul(load_scales(v, 0, t), vf_set1(v->unit));
        for (uint32_t d = 0; d < v->codes.n; d += 4) {
#pragma GCC unroll 4
            for (uint32_t b = 0; b < 4; b++)
                x[b] = level_of(v, vi_to_f32(vi_load_u8(codes + (d + b) * KVQ_TILE + t)), scale);
            store_rotating(x, y + d * KVQ_TILE + t);
        }
    }
}

/* x: (head_dim, 64), on either side */
VEC_INLINE void expand_split(split_tile *s, const bool is_k, float *x) {
    _Alignas(64) float y[KVQ_MAX_HEAD_DIM * KVQ_TILE];
    uint8_t channels[KVQ_MAX_HEAD_DIM], *channel = channels;
    kvq_turbo_channels(s->mask, s->head_dim, channels);
#pragma GCC unroll 2
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t n = s->sets[i].codes.n;
        s->sets[i].unit /= sqrtf((float)kvq_rotate_block(n));
        if (is_k)
            expand_scaled_keys(&s->sets[i], true, y);
        else
            expand_set_values(&s->sets[i], y);
        hadamard_rows(y, n, 4);
        for (uint32_t d = 0; d < n; d++, channel++) {
            vf32 sign = vf_set1(kvq_rotate_negative(d) ? -1.0f : 1.0f);
            for (uint32_t t = 0; t < KVQ_TILE; t += VF)
                vf_store(x + *channel * KVQ_TILE + t, vf_mul(vf_load(y + d * KVQ_TILE + t), sign));
        }
    }
}

VEC_INLINE void expand_split_values(split_tile *s, float *v) {
    _Alignas(64) float x[KVQ_MAX_HEAD_DIM * KVQ_TILE];
    expand_split(s, false, x);
    turn(x, s->head_dim, KVQ_TILE, v); /* head_dim is its stride, being a multiple of 16 */
}

#define SPLIT(id, bits)                                                                                                    \
    extern const kvq_codec kvq_codec_##id##_k, kvq_codec_##id##_v;                                                         \
    static void score_##id(const void *tile, uint32_t head_dim, const void *q, uint32_t n_rows, float *logits) {           \
        split_tile k = get_split(&kvq_codec_##id##_k, tile, head_dim, bits);                                               \
        score_split(&k, q, bits, n_rows, logits);                                                                          \
    }                                                                                                                      \
    static void expand_k_##id(const void *tile, uint32_t head_dim, float *out) {                                           \
        split_tile k = get_split(&kvq_codec_##id##_k, tile, head_dim, bits);                                               \
        expand_split(&k, true, out);                                                                                       \
    }                                                                                                                      \
    static void mix_##id(const void *tile, uint32_t head_dim, uint32_t n_tokens, const float *p, uint32_t n_rows,          \
                         float *o) {                                                                                       \
        split_tile v = get_split(&kvq_codec_##id##_v, tile, head_dim, bits);                                               \
        mix_split(&v, p, n_rows, o);                                                                                       \
    }                                                                                                                      \
    static void expand_v_##id(const void *tile, uint32_t head_dim, float *out) {                                           \
        split_tile v = get_split(&kvq_codec_##id##_v, tile, head_dim, bits);                                               \
        expand_split_values(&v, out);                                                                                      \
    }                                                                                                                      \
    const kvq_key_kernels KVQ_NAME(kvq_keys_##id) = {&kvq_codec_##id##_k, NULL, score_##id, expand_k_##id};                \
    const kvq_value_kernels KVQ_NAME(kvq_values_##id) = {&kvq_codec_##id##_v, mix_##id, expand_v_##id}

SPLIT(turbo3_5, 3);
SPLIT(turbo2_5, 2);
