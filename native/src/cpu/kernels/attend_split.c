/*
 * Attention over turbo3.5 and turbo2.5 tiles: two sets of channels, wide and narrow, each a turbo tile of its own.
 *
 * A tile's mask says which channels are wide, and each set has its own rotation, so the rotations cannot be done once for
 * all tiles: per tile, each query is split by the mask and rotated before its scores, and the weighted values are rotated
 * back and merged by the mask. At head_dim 64 that is about 100 instructions per row and side with AVX-512, as many as the
 * dot products. Measured as in attend_codes.h: turbo3.5 523 ns from memory (19% of the bandwidth), turbo2.5 491 (16%).
 */
#include "cpu/kernels/attend_levels.h"
#include "kv/rotate.h"
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

/* The inverse; out = that, or += */
static void merge_row(const float *wide, const float *narrow, const uint8_t *mask, uint32_t head_dim, bool add,
                      float *out) {
    for (uint32_t d = 0; d < head_dim; d += VF) {
        uint32_t bits = mask_bits(mask, d), n_wide = (uint32_t)__builtin_popcount(bits);
        vf32 x = vf_load_merged(bits, wide, narrow);
        vf_store(out + d, add ? vf_add(vf_load(out + d), x) : x);
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
        merge_row(rows[0] + r * n[0], rows[1] + r * n[1], s->mask, s->head_dim, true,
                  o + r * kvq_output_stride(s->head_dim));
}

/* x (n, 64) -> the original basis: tokens in lanes, butterflies between rows */
VEC_INLINE void rotate_back_rows(float *x, uint32_t n) {
    uint32_t block = kvq_rotate_block(n);
    for (uint32_t half = 1; half < block; half *= 2)
        for (uint32_t d = 0; d < n; d++)
            for (uint32_t t = 0; t < KVQ_TILE && (d & half) == 0; t += VF) {
                float *at = x + d * KVQ_TILE + t;
                vf32 a = vf_load(at), b = vf_load(at + half * KVQ_TILE);
                vf_store(at, vf_add(a, b));
                vf_store(at + half * KVQ_TILE, vf_sub(a, b));
            }
    float factor = 1.0f / sqrtf((float)block);
    for (uint32_t d = 0; d < n; d++)
        for (uint32_t t = 0; t < KVQ_TILE; t += VF) {
            float *at = x + d * KVQ_TILE + t;
            vf_store(at, vf_mul(vf_load(at), vf_set1(kvq_rotate_negative(d) ? -factor : factor)));
        }
}

VEC_INLINE void expand_split_keys(const split_tile *s, float *k) {
    _Alignas(64) float x[KVQ_MAX_HEAD_DIM * KVQ_TILE];
    uint8_t channels[KVQ_MAX_HEAD_DIM], *channel = channels;
    kvq_turbo_channels(s->mask, s->head_dim, channels);
#pragma GCC unroll 2
    for (uint32_t i = 0; i < 2; channel += s->sets[i++].codes.n) {
        expand_scaled_keys(&s->sets[i], x);
        rotate_back_rows(x, s->sets[i].codes.n);
        for (uint32_t d = 0; d < s->sets[i].codes.n; d++)
            memcpy(k + channel[d] * KVQ_TILE, x + d * KVQ_TILE, KVQ_TILE * sizeof *k);
    }
}

VEC_INLINE void expand_split_values(const split_tile *s, float *v) {
    _Alignas(64) float rows[2][KVQ_TILE * (KVQ_MAX_HEAD_DIM / 2 + 16) + VF];
    uint32_t n[2] = {s->sets[0].codes.n, s->sets[1].codes.n};
#pragma GCC unroll 2
    for (uint32_t i = 0; i < 2; i++) {
        expand_scaled_values(&s->sets[i], rows[i]);
        KVQ_NAME(kvq_attend_rotate_back)(rows[i], KVQ_TILE, n[i]);
    }
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        merge_row(rows[0] + t * n[0], rows[1] + t * n[1], s->mask, s->head_dim, false,
                  v + t * kvq_output_stride(s->head_dim));
}

#define SPLIT(id, bits)                                                                                                    \
    extern const kvq_codec kvq_codec_##id##_k, kvq_codec_##id##_v;                                                         \
    static void score_##id(const void *tile, uint32_t head_dim, const void *q, uint32_t n_rows, float *logits) {           \
        split_tile k = get_split(&kvq_codec_##id##_k, tile, head_dim, bits);                                               \
        score_split(&k, q, bits, n_rows, logits);                                                                          \
    }                                                                                                                      \
    static void expand_k_##id(const void *tile, uint32_t head_dim, float *out) {                                           \
        split_tile k = get_split(&kvq_codec_##id##_k, tile, head_dim, bits);                                               \
        expand_split_keys(&k, out);                                                                                        \
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
