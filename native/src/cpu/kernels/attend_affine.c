/*
 * Attention over kivi, kvarn and tier tiles: codes with a scale and a zero per column.
 *
 *   K: scale, zero of a channel (kivi: and of 32 or 64 tokens)    q.k = sum (q scale) code + q.zero, times a token's factor
 *   V: scale, zero of a token (kivi: and of 32 or 64 channels)    p.v = sum (p scale) code + p.zero, times a channel's
 * factor
 *
 * Scales go into the floats before these become bytes, so a tile's codes are multiplied as they are stored. Tokens are the
 * lanes of K, channels those of V. tier: the query is taken in the tile's order of channels; then it is three K tiles whose
 * sums are one.
 *
 * What rounding takes from a folded float is given back for the middle code of the tile, so only deviations from it are
 * rounded. With AVX-512 and head_dim 64 the folding takes about 25 ns for 3 rows and group, the dot products 30 ns a side.
 */
#include "cpu/kernels/attend_codes.h"
#include "kv/kivi.h"
#include "kv/kvarn.h"
#include "kv/tier.h"

enum { MAX_PARTS = KVQ_N_TIERS, MAX_SETS = 2, MAX_GROUPS = KVQ_MAX_HEAD_DIM / 32 };

VEC_INLINE float middle_code(const uint32_t bits) {
    return 0.5f * (float)((1u << bits) - 1);
}

/* A K tile. Known when a kernel is compiled: n_parts, the bits of the parts, n_sets, and which pointers are NULL. */
typedef struct affine_keys {
    uint32_t head_dim, n_parts;
    packed parts[MAX_PARTS];      /* one after the other in channel order */
    uint32_t n_sets;              /* of scales and zeros: for tokens 0 .. 31 and the rest, or one for all */
    const uint16_t *scale, *zero; /* (n_sets, head_dim) */
    const uint16_t *factor;       /* (64) or NULL */
    const uint8_t *order;         /* (head_dim) channels, or NULL: 0, 1, 2 .. */
} affine_keys;

/* The queries of some rows with a tile's scales folded in. */
typedef struct folded_queries {
    _Alignas(64) int8_t bytes[ROWS * MAX_SETS * BYTES_ROW]; /* (n_sets, n_r, BYTES_ROW) */
    float scale[MAX_SETS][ROWS], zero[MAX_SETS][ROWS];      /* logit = scale * sum + zero */
} folded_queries;

/* q: (n_r, head_dim) in the order of the codes. What rounding loses of a query is put right for the middle code. */
VEC_INLINE void fold_queries(const affine_keys *k, const float *q, const uint32_t n_r, folded_queries *f) {
    _Alignas(64) float x[ROWS * BYTES_ROW], middle[KVQ_MAX_HEAD_DIM + VF];
    uint32_t first = 0;
#pragma GCC unroll 3
    for (uint32_t part = 0; part < k->n_parts; first += k->parts[part++].n)
        for (uint32_t d = first; d < k->head_dim; d += VF)
            vf_store(middle + d, vf_set1(middle_code(k->parts[part].bits)));
    for (uint32_t set = 0; set < k->n_sets; set++) {
        const uint16_t *scales = k->scale + set * k->head_dim, *zeros = k->zero + set * k->head_dim;
        vf32 max[ROWS], zero[ROWS], sum[ROWS];
        for (uint32_t r = 0; r < n_r; r++)
            max[r] = zero[r] = vf_zero();
        for (uint32_t d = 0; d < k->head_dim; d += VF) {
            vf32 scale = vf_load_f16(scales + d), at_middle = vf_fma(scale, vf_load(middle + d), vf_load_f16(zeros + d));
#pragma GCC unroll 4
            for (uint32_t r = 0; r < n_r; r++) {
                vf32 qr = vf_load(q + r * k->head_dim + d), y = vf_mul(qr, scale);
                vf_store(x + r * BYTES_ROW + d, y);
                max[r] = vf_max(vf_abs(y), max[r]);
                zero[r] = vf_fma(qr, at_middle, zero[r]);
            }
        }
        byte_rows rows = {.n = k->head_dim,
                          .n_r = n_r,
                          .terms = 1,
                          .stride = BYTES_ROW,
                          .weight = middle,
                          .bytes = f->bytes + set * n_r * BYTES_ROW};
        to_bytes(&rows, x, BYTES_ROW, max, f->scale[set], sum);
        for (uint32_t r = 0; r < n_r; r++)
            f->zero[set][r] = vf_reduce_add(vf_fma(sum[r], vf_set1(-f->scale[set][r]), zero[r]));
    }
}

/* logits: (n_r, 64) */
VEC_INLINE void score_rows(const affine_keys *k, const float *q, const uint32_t n_r, float *logits) {
    folded_queries f;
    fold_queries(k, q, n_r, &f);
    for (uint32_t piece = 0; piece < N_PIECES; piece++) {
        dot_sums s;
        uint32_t first = 0; /* channel */
        start_sums(&s, n_r);
#pragma GCC unroll 3
        for (uint32_t i = 0; i < k->n_parts; i++) {
            key_bytes y = {f.bytes + first, k->n_sets, 1};
            key_dots(&s, &k->parts[i], piece, 0, k->parts[i].n / 4, &y, n_r);
            first += k->parts[i].n;
        }
#pragma GCC unroll 4
        for (uint32_t g = 0; g < 4; g++) {
            uint32_t t = 16 * g + VF * piece, set = g * k->n_sets / 4;
            vf32 factor = k->factor != NULL ? vf_load_f16(k->factor + t) : vf_set1(1.0f);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < n_r; r++) {
                vf32 y = vf_fma(vi_to_f32(s.at[0][r][g]), vf_set1(f.scale[set][r]), vf_set1(f.zero[set][r]));
                vf_store(logits + r * KVQ_TILE + t, k->factor != NULL ? vf_mul(y, factor) : y);
            }
        }
    }
}

VEC_INLINE void score_affine(const affine_keys *k, const float *q, uint32_t n_rows, float *logits) {
    _Alignas(64) float ordered[KVQ_FEW_ROWS * KVQ_MAX_HEAD_DIM];
    if (k->order != NULL) {
        for (uint32_t d = 0; d < k->head_dim; d += VF) {
            vi32 channels = vi_load_u8(k->order + d);
            for (uint32_t r = 0; r < n_rows; r++)
                vf_store(ordered + r * k->head_dim + d, vf_pick(q + r * k->head_dim, k->head_dim, channels));
        }
        q = ordered;
    }
    FOR_ROWS(n_rows, score_rows(k, q + row * k->head_dim, n_r, logits + row * KVQ_TILE));
}

VEC_INLINE void expand_keys(const affine_keys *k, float *out) {
    _Alignas(64) float scale[MAX_SETS * KVQ_MAX_HEAD_DIM], zero[MAX_SETS * KVQ_MAX_HEAD_DIM];
    for (uint32_t d = 0; d < k->n_sets * k->head_dim; d += VF) {
        vf_store(scale + d, vf_load_f16(k->scale + d));
        vf_store(zero + d, vf_load_f16(k->zero + d));
    }
    uint32_t first = 0; /* channel */
#pragma GCC unroll 3
    for (uint32_t part = 0; part < k->n_parts; first += k->parts[part++].n)
        for (uint32_t piece = 0; piece < N_PIECES; piece++) {
            const packed *c = &k->parts[part];
            const uint32_t step = c->bits % 2 ? 2 : 1;
            for (uint32_t i = 0; i < c->n / 4; i += step)
#pragma GCC unroll 2
                for (uint32_t odd = 0; odd < step; odd++) {
                    vi32 x[4];
                    load_dots(c, i + odd, odd, piece, x);
#pragma GCC unroll 4
                    for (uint32_t g = 0; g < 4; g++) {
                        uint32_t t = 16 * g + VF * piece, set = g * k->n_sets / 4;
                        vf32 factor = k->factor != NULL ? vf_load_f16(k->factor + t) : vf_set1(1.0f);
#pragma GCC unroll 4
                        for (uint32_t b = 0; b < 4; b++) {
                            uint32_t d = first + 4 * (i + odd) + b, channel = k->order != NULL ? k->order[d] : d;
                            vf32 y = vf_fma(byte_to_f32(x[g], (int)b), vf_set1(scale[set * k->head_dim + d]),
                                            vf_set1(zero[set * k->head_dim + d]));
                            vf_store(out + channel * KVQ_TILE + t, k->factor != NULL ? vf_mul(y, factor) : y);
                        }
                    }
                }
        }
}

/* A V tile. Known when a kernel is compiled: the bits and whether there are factors. */
typedef struct affine_values {
    uint32_t head_dim, group; /* channels that share a token's scale and zero */
    packed codes;
    const uint16_t *scale, *zero; /* (n_groups, 64) */
    const uint16_t *factor;       /* (head_dim) or NULL */
} affine_values;

/* Probabilities of some rows with a group's scales folded in. */
typedef struct folded_probs {
    _Alignas(64) int8_t bytes[ROWS * KVQ_TILE]; /* (n_rows, 64) */
    float scale[ROWS], zero[ROWS];              /* weighted value = scale * sum + zero */
} folded_probs;

/* p: (n_r, 64) */
VEC_INLINE void fold_probs(const affine_values *v, uint32_t group, const float *p, const uint32_t n_r, folded_probs *f) {
    _Alignas(64) float x[ROWS * KVQ_TILE];
    const uint16_t *scales = v->scale + group * KVQ_TILE, *zeros = v->zero + group * KVQ_TILE;
    const float middle = middle_code(v->codes.bits);
    vf32 max[ROWS], zero[ROWS], sum[ROWS];
    for (uint32_t r = 0; r < n_r; r++)
        max[r] = zero[r] = vf_zero();
#pragma GCC unroll 4
    for (uint32_t t = 0; t < KVQ_TILE; t += VF) {
        vf32 scale = vf_load_f16(scales + t), at_middle = vf_fma(scale, vf_set1(middle), vf_load_f16(zeros + t));
#pragma GCC unroll 4
        for (uint32_t r = 0; r < n_r; r++) {
            vf32 pr = vf_load(p + r * KVQ_TILE + t), y = vf_mul(pr, scale);
            vf_store(x + r * KVQ_TILE + t, y);
            max[r] = vf_max(vf_abs(y), max[r]);
            zero[r] = vf_fma(pr, at_middle, zero[r]);
        }
    }
    byte_rows rows = {.n = KVQ_TILE, .n_r = n_r, .terms = 1, .stride = KVQ_TILE, .offset = dither, .bytes = f->bytes};
    to_bytes(&rows, x, KVQ_TILE, max, f->scale, sum);
    for (uint32_t r = 0; r < n_r; r++)
        f->zero[r] = vf_reduce_add(vf_fma(sum[r], vf_set1(-middle * f->scale[r]), zero[r]));
}

/* o: (n_r, stride) */
VEC_INLINE void mix_rows(const affine_values *v, const float *p, const uint32_t n_r, float *o) {
    folded_probs groups[MAX_GROUPS]; /* all before any dot product: a core works on several at once */
    for (uint32_t first = 0; first < v->head_dim; first += v->group)
        fold_probs(v, first / v->group, p, n_r, &groups[first / v->group]);
    for (uint32_t piece = 0; piece < N_PIECES; piece++)
        for (uint32_t channel = 0; channel < v->head_dim; channel += 16) {
            const folded_probs *f = &groups[channel / v->group];
            dot_sums s;
            start_sums(&s, n_r);
            value_dots(&s, &v->codes, piece, channel / 16, f->bytes, n_r);
            vf32 factor = v->factor != NULL ? vf_load_f16(v->factor + channel + VF * piece) : vf_set1(1.0f);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < n_r; r++) {
                float *out = o + r * kvq_output_stride(v->head_dim) + channel + VF * piece;
                vf32 y = vf_fma(value_sum(1, &s, r), vf_set1(f->scale[r]), vf_set1(f->zero[r]));
                vf_store(out, v->factor != NULL ? vf_fma(y, factor, vf_load(out)) : vf_add(y, vf_load(out)));
            }
        }
}

VEC_INLINE void mix_affine(const affine_values *v, const float *p, uint32_t n_rows, float *o) {
    FOR_ROWS(n_rows, mix_rows(v, p + row * KVQ_TILE, n_r, o + row * kvq_output_stride(v->head_dim)));
}

VEC_INLINE void expand_values(const affine_values *v, float *out) {
    uint32_t stride = kvq_output_stride(v->head_dim);
    _Alignas(64) float scale[KVQ_TILE], zero[KVQ_TILE];
    for (uint32_t channel = 0; channel < v->head_dim; channel += 16) {
        for (uint32_t t = 0; t < KVQ_TILE && channel % v->group == 0; t += VF) {
            vf_store(scale + t, vf_load_f16(v->scale + channel / v->group * KVQ_TILE + t));
            vf_store(zero + t, vf_load_f16(v->zero + channel / v->group * KVQ_TILE + t));
        }
        for (uint32_t piece = 0; piece < N_PIECES; piece++) {
            float *at = out + channel + VF * piece;
            vf32 factor = v->factor != NULL ? vf_load_f16(v->factor + channel + VF * piece) : vf_set1(1.0f);
#pragma GCC unroll 4
            for (uint32_t j = 0; j < 4; j++) {
                vi32 x[4];
                load_dots(&v->codes, channel / 4 + j, j % 2, piece, x);
#pragma GCC unroll 16
                for (uint32_t i = 0; i < 16; i++) {
                    uint32_t t = 16 * j + i;
                    vf32 y = vf_fma(byte_to_f32(x[i / 4], (int)(i % 4)), vf_set1(scale[t]), vf_set1(zero[t]));
                    vf_store(at + t * stride, v->factor != NULL ? vf_mul(y, factor) : y);
                }
            }
        }
    }
}

/* ---- the codecs ---- */

/* The functions of kvq_key_kernels and kvq_value_kernels for the codec `id`, whose tiles get_keys and get_values know. */
#define AFFINE_KEYS(id, get_keys, ...)                                                                                     \
    extern const kvq_codec kvq_codec_##id##_k;                                                                             \
    static void score_##id(const void *tile, uint32_t head_dim, const void *q, uint32_t n_rows, float *logits) {           \
        affine_keys k = get_keys(&kvq_codec_##id##_k, tile, head_dim, __VA_ARGS__);                                        \
        score_affine(&k, q, n_rows, logits);                                                                               \
    }                                                                                                                      \
    static void expand_k_##id(const void *tile, uint32_t head_dim, float *out) {                                           \
        affine_keys k = get_keys(&kvq_codec_##id##_k, tile, head_dim, __VA_ARGS__);                                        \
        expand_keys(&k, out);                                                                                              \
    }                                                                                                                      \
    const kvq_key_kernels KVQ_NAME(kvq_keys_##id) = {&kvq_codec_##id##_k, NULL, score_##id, expand_k_##id}

#define AFFINE_VALUES(id, get_values, ...)                                                                                 \
    extern const kvq_codec kvq_codec_##id##_v;                                                                             \
    static void mix_##id(const void *tile, uint32_t head_dim, uint32_t n_tokens, const float *p, uint32_t n_rows,          \
                         float *o) {                                                                                       \
        affine_values v = get_values(&kvq_codec_##id##_v, tile, head_dim, __VA_ARGS__);                                    \
        mix_affine(&v, p, n_rows, o);                                                                                      \
    }                                                                                                                      \
    static void expand_v_##id(const void *tile, uint32_t head_dim, float *out) {                                           \
        affine_values v = get_values(&kvq_codec_##id##_v, tile, head_dim, __VA_ARGS__);                                    \
        expand_values(&v, out);                                                                                            \
    }                                                                                                                      \
    const kvq_value_kernels KVQ_NAME(kvq_values_##id) = {&kvq_codec_##id##_v, mix_##id, expand_v_##id}

VEC_INLINE const uint16_t *halfs(const uint8_t *tile, size_t offset) {
    return (const uint16_t *)(tile + offset);
}

VEC_INLINE affine_keys kivi_keys(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, const uint32_t bits,
                                 const uint32_t group) {
    return (affine_keys){
        .head_dim = head_dim,
        .n_parts = 1,
        .parts = {{tile, bits, head_dim, NULL}},
        .n_sets = KVQ_TILE / group,
        .scale = halfs(tile, kvq_kivi_scales(codec, head_dim)),
        .zero = halfs(tile, kvq_kivi_zeros(codec, head_dim)),
    };
}

VEC_INLINE affine_values kivi_values(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, const uint32_t bits,
                                     const uint32_t group) {
    return (affine_values){
        .head_dim = head_dim,
        .group = group,
        .codes = {tile, bits, head_dim, NULL},
        .scale = halfs(tile, kvq_kivi_scales(codec, head_dim)),
        .zero = halfs(tile, kvq_kivi_zeros(codec, head_dim)),
    };
}

VEC_INLINE affine_keys kvarn_keys(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, const uint32_t bits) {
    return (affine_keys){
        .head_dim = head_dim,
        .n_parts = 1,
        .parts = {{tile, bits, head_dim, NULL}},
        .n_sets = 1,
        .scale = halfs(tile, kvq_kvarn_scales(codec, head_dim)),
        .zero = halfs(tile, kvq_kvarn_zeros(codec, head_dim)),
        .factor = halfs(tile, kvq_kvarn_factors(codec, head_dim)),
    };
}

VEC_INLINE affine_values kvarn_values(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, const uint32_t bits) {
    return (affine_values){
        .head_dim = head_dim,
        .group = KVQ_MAX_HEAD_DIM,
        .codes = {tile, bits, head_dim, NULL},
        .scale = halfs(tile, kvq_kvarn_scales(codec, head_dim)),
        .zero = halfs(tile, kvq_kvarn_zeros(codec, head_dim)),
        .factor = halfs(tile, kvq_kvarn_factors(codec, head_dim)),
    };
}

VEC_INLINE affine_keys tier_keys(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, const uint32_t bits0,
                                 const uint32_t bits1, const uint32_t bits2) {
    kvq_tier tiers[KVQ_N_TIERS];
    kvq_tiers(codec, head_dim, tiers);
    return (affine_keys){
        .head_dim = head_dim,
        .n_parts = KVQ_N_TIERS,
        .parts = {{tile + tiers[0].offset, bits0, tiers[0].n, NULL},
                  {tile + tiers[1].offset, bits1, tiers[1].n, NULL},
                  {tile + tiers[2].offset, bits2, tiers[2].n, NULL}},
        .n_sets = 1,
        .scale = halfs(tile, kvq_tier_scales(codec, head_dim)),
        .zero = halfs(tile, kvq_tier_zeros(codec, head_dim)),
        .factor = halfs(tile, kvq_tier_factors(codec, head_dim)),
        .order = tile + kvq_tier_order(codec, head_dim),
    };
}

AFFINE_KEYS(kivi4, kivi_keys, 4, 32);
AFFINE_KEYS(kivi2, kivi_keys, 2, 32);
AFFINE_KEYS(kivi2_g64, kivi_keys, 2, 64);
AFFINE_KEYS(kvarn4, kvarn_keys, 4);
AFFINE_KEYS(kvarn3, kvarn_keys, 3);
AFFINE_KEYS(kvarn2, kvarn_keys, 2);
AFFINE_KEYS(tier3, tier_keys, 4, 3, 2);
AFFINE_KEYS(tier2, tier_keys, 4, 2, 1);
AFFINE_VALUES(kivi4, kivi_values, 4, 32);
AFFINE_VALUES(kivi2, kivi_values, 2, 32);
AFFINE_VALUES(kivi2_g64, kivi_values, 2, 64);
AFFINE_VALUES(kvarn4, kvarn_values, 4);
AFFINE_VALUES(kvarn3, kvarn_values, 3);
AFFINE_VALUES(kvarn2, kvarn_values, 2);
