/*
 * Encoding kivi, kvarn and tier tiles: columns fitted with a scale and a zero (kv/affine.h), of tiles as they are or
 * brought to equal size (kv/normalize.h).
 *
 * Columns are the lanes: channels for K, whose tile is turned over for it, tokens for V. A column is passed over five
 * times, with 3 instructions per vector for its range and 14 for each rounding to codes and the five sums that the next
 * scale and zero are fitted from.
 */
#include "cpu/kernels/encode.h"
#include "kv/affine.h"
#include "kv/kivi.h"
#include "kv/kvarn.h"
#include "kv/tier.h"

enum { MAX_COLS = KVQ_MAX_HEAD_DIM + 16 }; /* whole vectors are taken across the end of the columns */

/* Some columns of x (n_rows, stride). */
typedef struct columns {
    const float *x;
    uint32_t n_rows, stride;
    float n_steps;
} columns;

/* The scale and zero of VF columns, and of their codes q and y = x - zero the sums that a refit needs. */
typedef struct column_fit {
    vf32 scale, zero;
    vf32 q, qq, y, yy, yq;
} column_fit;

VEC_INLINE void start_from_range(const columns *c, const uint32_t n_vectors, column_fit *f) {
    vf32 low[2], high[2];
#pragma GCC unroll 2
    for (uint32_t v = 0; v < n_vectors; v++)
        low[v] = high[v] = vf_load(c->x + v * VF);
    for (uint32_t i = 1; i < c->n_rows; i++)
#pragma GCC unroll 2
        for (uint32_t v = 0; v < n_vectors; v++) {
            vf32 x = vf_load(c->x + i * c->stride + v * VF);
            low[v] = vf_min(x, low[v]);
            high[v] = vf_max(x, high[v]);
        }
    for (uint32_t v = 0; v < n_vectors; v++) {
        f[v].scale = as_half(vf_div(vf_sub(high[v], low[v]), vf_set1(c->n_steps)));
        f[v].zero = as_half(low[v]);
    }
}

/* codes: (n_rows, stride), or NULL */
VEC_INLINE void round_codes(const columns *c, const uint32_t n_vectors, column_fit *f, uint8_t *codes) {
    vf32 inverse[2];
#pragma GCC unroll 2
    for (uint32_t v = 0; v < n_vectors; v++) {
        inverse[v] = reciprocal(f[v].scale);
        f[v].q = f[v].qq = f[v].y = f[v].yy = f[v].yq = vf_zero();
    }
    for (uint32_t i = 0; i < c->n_rows; i++)
#pragma GCC unroll 2
        for (uint32_t v = 0; v < n_vectors; v++) {
            vf32 y = vf_sub(vf_load(c->x + i * c->stride + v * VF), f[v].zero);
            vf32 q = round_even(clamp(vf_mul(y, inverse[v]), 0.0f, c->n_steps));
            if (codes != NULL)
                store_codes(codes + i * c->stride + v * VF, vi_from_f32(q));
            f[v].q = vf_add(f[v].q, q);
            f[v].qq = vf_add(f[v].qq, vf_mul(q, q));
            f[v].y = vf_add(f[v].y, y);
            f[v].yy = vf_add(f[v].yy, vf_mul(y, y));
            f[v].yq = vf_add(f[v].yq, vf_mul(y, q));
        }
}

typedef enum rule { LEAST_SQUARES, KEEP_NORM, UNBIASED } rule;

VEC_INLINE void refit(uint32_t n_rows, rule how, column_fit *f) {
    vf32 n = vf_set1((float)n_rows), none = vf_zero();
    vf32 var_q = vf_sub(f->qq, vf_div(vf_mul(f->q, f->q), n));
    vf32 var_y = vf_sub(f->yy, vf_div(vf_mul(f->y, f->y), n));
    vf32 cov = vf_sub(f->yq, vf_div(vf_mul(f->y, f->q), n));
    vf32 scale = how == LEAST_SQUARES ? vf_div(cov, var_q)
                 : how == KEEP_NORM   ? vf_sqrt(vf_div(var_y, var_q))
                                      : vf_div(var_y, cov);
    scale = as_half(scale);
    vf32 zero = as_half(vf_add(f->zero, vf_div(vf_sub(f->y, vf_mul(scale, f->q)), n)));
    vf32 least = vf_min(vf_min(var_q, var_y), cov); /* one code, or too small to measure: stay */
    f->scale = vf_select_less(none, least, scale, f->scale);
    f->zero = vf_select_less(none, least, zero, f->zero);
}

VEC_INLINE void fit_columns(const columns *c, const uint32_t n_vectors, rule last, float *scale, float *zero,
                            uint8_t *codes) {
    column_fit f[2];
    start_from_range(c, n_vectors, f);
    for (int i = 0; i < 3; i++) {
        round_codes(c, n_vectors, f, NULL);
        for (uint32_t v = 0; v < n_vectors; v++)
            refit(c->n_rows, LEAST_SQUARES, &f[v]);
    }
    round_codes(c, n_vectors, f, codes);
    for (uint32_t v = 0; v < n_vectors; v++) {
        refit(c->n_rows, last, &f[v]);
        vf_store(scale + v * VF, f[v].scale);
        vf_store(zero + v * VF, f[v].zero);
    }
}

/* kvq_affine_encode of the first n_cols columns of x (n_rows, stride), and of what fills up the last 16; codes:
 * (n_rows, stride); scale, zero: (n_cols) half floats, and as the floats they stand for in `fit` */
typedef struct fitted {
    float scale[MAX_COLS], zero[MAX_COLS];
} fitted;

static void encode_columns(const float *x, uint32_t n_rows, uint32_t n_cols, uint32_t stride, uint32_t bits, kvq_fit how,
                           fitted *fit, uint8_t *codes) {
    rule last = how == KVQ_FIT_NORM ? KEEP_NORM : UNBIASED;
    for (uint32_t col = 0; col < n_cols;) {
        columns c = {x + col, n_rows, stride, (float)((1u << bits) - 1)};
        const uint32_t n_vectors = col + VF < n_cols ? 2 : 1;
        if (n_vectors == 2)
            fit_columns(&c, 2, last, fit->scale + col, fit->zero + col, codes + col);
        else
            fit_columns(&c, 1, last, fit->scale + col, fit->zero + col, codes + col);
        col += n_vectors * VF;
    }
}

/* h (n) = x as half floats, which hold it exactly; x is read up to the next multiple of 16 */
static void store_halfs(const float *x, uint32_t n, uint16_t *h) {
    uint16_t all[MAX_COLS];
    for (uint32_t i = 0; i < n; i += VF)
        vf_store_f16(all + i, vf_load(x + i));
    memcpy(h, all, n * sizeof *h);
}

/* ---- kivi ---- */

void KVQ_NAME(kvq_encode_kivi)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    _Alignas(64) float y[TILE_ELEMENTS], turned[TILE_ELEMENTS];
    uint8_t codes[TILE_ELEMENTS];
    uint16_t *scale = (uint16_t *)(tile + kvq_kivi_scales(codec, head_dim));
    uint16_t *zero = (uint16_t *)(tile + kvq_kivi_zeros(codec, head_dim));
    bool is_k = codec->side == 'k';
    uint32_t n_cols = kvq_kivi_n_cols(codec, head_dim), n_rows = is_k ? KVQ_TILE : head_dim;
    load_tile(codec->side, x, head_dim, false, y);
    if (is_k)
        turn(y, head_dim, KVQ_TILE, turned);
    const float *rows = is_k ? turned : y; /* (n_rows, n_cols): a group is some rows of one column */
    for (uint32_t g = 0; g < kvq_kivi_n_groups(codec, head_dim); g++) {
        uint32_t first = g * codec->group, n = n_rows - first < codec->group ? n_rows - first : codec->group;
        fitted fit;
        encode_columns(rows + first * n_cols, n, n_cols, n_cols, codec->bits, is_k ? KVQ_FIT_NORM : KVQ_FIT_UNBIASED, &fit,
                       codes + first * n_cols);
        store_halfs(fit.scale, n_cols, scale + g * n_cols);
        store_halfs(fit.zero, n_cols, zero + g * n_cols);
    }
    pack(&(code_rows){codes, is_k, n_cols}, codec->side, codec->bits, head_dim, tile);
}

/* ---- tokens and channels of equal size (kv/normalize.h) ---- */

/* Divides each of n_lines columns of x (n, n_lines) by its root mean square, and the rows of turned (n_lines, n), which are
 * the same numbers; multiplies what it divided by to factor (n_lines). */
static void normalize_lines(float *x, float *turned, uint32_t n, uint32_t n_lines, float *factor) {
    const vf32 least = vf_set1(0x1p-126f), one = vf_set1(1.0f);
    for (uint32_t line = 0; line < n_lines; line += VF) {
        float inverses[VF];
        vf32 sum = vf_zero();
        for (uint32_t i = 0; i < n; i++) {
            vf32 u = vf_load(x + i * n_lines + line);
            sum = vf_add(sum, vf_mul(u, u));
        }
        vf32 rms = vf_sqrt(vf_div(sum, vf_set1((float)n)));
        rms = vf_select_less(least, rms, rms, one); /* else there is nothing to scale */
        vf32 inverse = vf_div(one, rms);
        for (uint32_t i = 0; i < n; i++)
            vf_store(x + i * n_lines + line, vf_mul(vf_load(x + i * n_lines + line), inverse));
        vf_store(factor + line, vf_mul(vf_load(factor + line), rms));
        vf_store(inverses, inverse);
        for (uint32_t i = 0; i < VF; i++)
            for (uint32_t j = 0; j < n; j += VF) {
                float *at = turned + (line + i) * n + j;
                vf_store(at, vf_mul(vf_load(at), vf_set1(inverses[i])));
            }
    }
}

/* kvq_normal_factors of y (head_dim, 64) and the same turned over, as half floats hold them */
static void normal_factors(const float *y, const float *turned, uint32_t head_dim, float *token, float *channel) {
    _Alignas(64) float u[TILE_ELEMENTS], u_turned[TILE_ELEMENTS];
    memcpy(u, y, (size_t)KVQ_TILE * head_dim * sizeof *u);
    memcpy(u_turned, turned, (size_t)KVQ_TILE * head_dim * sizeof *u);
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        token[t] = 1.0f;
    for (uint32_t d = 0; d < head_dim; d++)
        channel[d] = 1.0f;
    for (int round = 0; round < 2; round++) {
        normalize_lines(u_turned, u, KVQ_TILE, head_dim, channel);
        normalize_lines(u, u_turned, head_dim, KVQ_TILE, token);
    }
    for (uint32_t t = 0; t < KVQ_TILE; t += VF)
        vf_store(token + t, as_half(vf_load(token + t)));
    for (uint32_t d = 0; d < head_dim; d += VF)
        vf_store(channel + d, as_half(vf_load(channel + d)));
}

/* normal (n_rows, n_cols) = x, its rows divided by their factors */
static void divide_rows(const float *x, const float *factor, uint32_t n_rows, uint32_t n_cols, float *normal) {
    for (uint32_t r = 0; r < n_rows; r++) {
        vf32 inverse = vf_set1(kvq_reciprocal(factor[r]));
        for (uint32_t i = r * n_cols; i < (r + 1) * n_cols; i += VF)
            vf_store(normal + i, vf_mul(vf_load(x + i), inverse));
    }
}

/* Rows order[0 .. n - 1] of x (head_dim, 64) = what codes (64, stride) of n channels stand for */
static void decode_channels(const uint8_t *codes, uint32_t stride, const fitted *fit, const uint8_t *order, uint32_t n,
                            float *x) {
    for (uint32_t t = 0; t < KVQ_TILE; t += VF)
        for (uint32_t i = 0; i < n; i += 16) {
            vi32 dots[4];
            vi_load_rows(codes + t * stride + i, stride, dots);
#pragma GCC unroll 16
            for (uint32_t j = 0; j < 16; j++) {
                if (i + j >= n)
                    break;
                vf32 q = vi_to_f32(vi_and(vi_shr(dots[j / 4], (int)(8 * (j % 4))), vi_set1(0xff)));
                vf32 level = vf_add(vf_mul(vf_set1(fit->scale[i + j]), q), vf_set1(fit->zero[i + j]));
                vf_store(x + (order != NULL ? order[i + j] : i + j) * KVQ_TILE + t, level);
            }
        }
}

/* kvq_refit_tokens: token (64) half floats, from `before` where there is nothing to fit; y, of: (head_dim, 64) */
static void refit_tokens(const float *y, const float *of, uint32_t head_dim, const float *before, uint16_t *token) {
    for (uint32_t t = 0; t < KVQ_TILE; t += VF) {
        vf32 cross = vf_zero(), square = vf_zero();
        for (uint32_t d = 0; d < head_dim; d++) {
            vf32 a = vf_load(of + d * KVQ_TILE + t);
            cross = vf_add(cross, vf_mul(a, vf_load(y + d * KVQ_TILE + t)));
            square = vf_add(square, vf_mul(a, a));
        }
        vf32 factor = as_half(vf_div(cross, square));
        vf_store_f16(token + t, vf_select_less(vf_zero(), vf_min(cross, square), factor, vf_load(before + t)));
    }
}

/* ---- kvarn ---- */

static void encode_kvarn_k(const kvq_codec *codec, const float *y, uint32_t head_dim, uint8_t *tile) {
    _Alignas(64) float turned[TILE_ELEMENTS], levels[TILE_ELEMENTS], token[KVQ_TILE], channel[KVQ_MAX_HEAD_DIM];
    uint8_t codes[TILE_ELEMENTS];
    fitted fit;
    turn(y, head_dim, KVQ_TILE, turned);
    normal_factors(y, turned, head_dim, token, channel);
    divide_rows(turned, token, KVQ_TILE, head_dim, turned);
    encode_columns(turned, KVQ_TILE, head_dim, head_dim, codec->bits, KVQ_FIT_UNBIASED, &fit, codes);
    decode_channels(codes, head_dim, &fit, NULL, head_dim, levels);
    refit_tokens(y, levels, head_dim, token, (uint16_t *)(tile + kvq_kvarn_factors(codec, head_dim)));
    store_halfs(fit.scale, head_dim, (uint16_t *)(tile + kvq_kvarn_scales(codec, head_dim)));
    store_halfs(fit.zero, head_dim, (uint16_t *)(tile + kvq_kvarn_zeros(codec, head_dim)));
    pack(&(code_rows){codes, true, head_dim}, 'k', codec->bits, head_dim, tile);
}

static void encode_kvarn_v(const kvq_codec *codec, const float *y, uint32_t head_dim, uint8_t *tile) {
    _Alignas(64) float work[TILE_ELEMENTS], token[KVQ_TILE], channel[KVQ_MAX_HEAD_DIM];
    uint8_t codes[TILE_ELEMENTS];
    fitted fit;
    turn(y, head_dim, KVQ_TILE, work);
    normal_factors(y, work, head_dim, token, channel);
    divide_rows(y, channel, head_dim, KVQ_TILE, work);
    encode_columns(work, head_dim, KVQ_TILE, KVQ_TILE, codec->bits, KVQ_FIT_UNBIASED, &fit, codes);
    store_halfs(fit.scale, KVQ_TILE, (uint16_t *)(tile + kvq_kvarn_scales(codec, head_dim)));
    store_halfs(fit.zero, KVQ_TILE, (uint16_t *)(tile + kvq_kvarn_zeros(codec, head_dim)));
    store_halfs(channel, head_dim, (uint16_t *)(tile + kvq_kvarn_factors(codec, head_dim)));
    pack(&(code_rows){codes, false, KVQ_TILE}, 'v', codec->bits, head_dim, tile);
}

void KVQ_NAME(kvq_encode_kvarn)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    _Alignas(64) float y[TILE_ELEMENTS];
    load_tile(codec->side, x, head_dim, true, y);
    if (codec->side == 'k')
        encode_kvarn_k(codec, y, head_dim, tile);
    else
        encode_kvarn_v(codec, y, head_dim, tile);
}

/* ---- tier ---- */

/* order: the columns of x (64, head_dim) by falling variance, equal ones by index */
static void sort_channels(const float *x, uint32_t head_dim, uint8_t *order) {
    _Alignas(64) float variance[KVQ_MAX_HEAD_DIM];
    uint32_t place[KVQ_MAX_HEAD_DIM];
    for (uint32_t d = 0; d < head_dim; d += VF) {
        vf32 mean = vf_zero(), sum = vf_zero();
        for (uint32_t t = 0; t < KVQ_TILE; t++)
            mean = vf_add(mean, vf_load(x + t * head_dim + d));
        mean = vf_div(mean, vf_set1((float)KVQ_TILE));
        for (uint32_t t = 0; t < KVQ_TILE; t++) {
            vf32 difference = vf_sub(vf_load(x + t * head_dim + d), mean);
            sum = vf_add(sum, vf_mul(difference, difference));
        }
        vf_store(variance + d, sum);
    }
    rank_channels(variance, head_dim, place);
    for (uint32_t d = 0; d < head_dim; d++)
        order[place[d]] = (uint8_t)d;
}

/* sorted: channels order[0], order[1] .. of y (head_dim, 64) with tokens divided by their factors, then 16 of zeros */
static void sort_normal(const float *y, const float *token, const uint8_t *order, uint32_t head_dim, float *sorted) {
    for (uint32_t t = 0; t < KVQ_TILE; t += VF) {
        vf32 inverse = reciprocal(vf_load(token + t));
        for (uint32_t i = 0; i < head_dim; i++)
            vf_store(sorted + i * KVQ_TILE + t, vf_mul(vf_load(y + order[i] * KVQ_TILE + t), inverse));
    }
    memset(sorted + head_dim * KVQ_TILE, 0, 16 * KVQ_TILE * sizeof *sorted);
}

void KVQ_NAME(kvq_encode_tier)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    _Alignas(64) float y[TILE_ELEMENTS], levels[TILE_ELEMENTS], sorted[KVQ_TILE * MAX_COLS], turned[KVQ_TILE * MAX_COLS];
    _Alignas(64) float token[KVQ_TILE], channel[KVQ_MAX_HEAD_DIM];
    uint8_t codes[KVQ_TILE * MAX_COLS], *order = tile + kvq_tier_order(codec, head_dim);
    uint16_t *scale = (uint16_t *)(tile + kvq_tier_scales(codec, head_dim));
    uint16_t *zero = (uint16_t *)(tile + kvq_tier_zeros(codec, head_dim));
    kvq_tier tiers[KVQ_N_TIERS];
    kvq_tiers(codec, head_dim, tiers);

    load_tile('k', x, head_dim, false, y);
    turn(y, head_dim, KVQ_TILE, turned);
    normal_factors(y, turned, head_dim, token, channel);
    divide_rows(turned, token, KVQ_TILE, head_dim, turned);
    sort_channels(turned, head_dim, order);
    sort_normal(y, token, order, head_dim, sorted);
    for (uint32_t i = 0; i < KVQ_N_TIERS; i++) {
        const kvq_tier *tier = &tiers[i];
        uint32_t n = tier->n, n_cols = (n + 15) / 16 * 16;
        fitted fit;
        turn(sorted + tier->first * KVQ_TILE, n_cols, KVQ_TILE, turned);
        encode_columns(turned, KVQ_TILE, n, n_cols, tier->bits, KVQ_FIT_NORM, &fit, codes);
        store_halfs(fit.scale, n, scale + tier->first);
        store_halfs(fit.zero, n, zero + tier->first);
        pack(&(code_rows){codes, true, n_cols}, 'k', tier->bits, n, tile + tier->offset);
        decode_channels(codes, n_cols, &fit, order + tier->first, n, levels);
    }
    refit_tokens(y, levels, head_dim, token, (uint16_t *)(tile + kvq_tier_factors(codec, head_dim)));
}
