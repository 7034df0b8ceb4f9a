/*
 * Encoding what has scales of single tokens: q8_0, q4_0, fp8, nvfp4, turbo; and f16.
 *
 * Tokens are the lanes, a loop runs down the channels of a block. Where a codec tries several scales and keeps the best,
 * the loop carries all of them: an element is loaded once, and their sums do not wait for each other. Per vector of
 * elements q4_0 takes 9 instructions for each of 4 scales and the final rounding, nvfp4 12 for each of 8, turbo 10 and two
 * for each positive midpoint of the codebook (1, 3 or 7) for each of 3.
 */
#include "cpu/kernels/encode.h"
#include "kv/blocks.h"
#include "kv/float8.h"
#include "kv/nvfp4.h"
#include "kv/turbo.h"

/* The largest magnitude of each column of x (n, 64) */
VEC_INLINE vf32 column_max(const float *x, uint32_t n) {
    vf32 largest = vf_zero();
    for (uint32_t i = 0; i < n; i++)
        largest = largest_of(largest, vf_load(x + i * KVQ_TILE));
    return largest;
}

/* The largest magnitude of y (n) */
static float largest_magnitude(const float *y, uint32_t n) {
    vf32 largest[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    for (uint32_t i = 0; i < n; i += 4 * VF)
        for (uint32_t j = 0; j < 4; j++)
            largest[j] = largest_of(largest[j], vf_load(y + i + j * VF));
    return vf_reduce_max(vf_max(vf_max(largest[0], largest[1]), vf_max(largest[2], largest[3])));
}

void KVQ_NAME(kvq_encode_f16)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    _Alignas(64) float good[TILE_ELEMENTS];
    copy_good(x, KVQ_TILE * head_dim, good); /* a tile is laid out as a page */
    for (uint32_t i = 0; i < KVQ_TILE * head_dim; i += VF)
        vf_store_f16((uint16_t *)tile + i, vf_load(good + i));
}

/* ---- q8_0, q4_0: y, codes: of a block (n, 64), VF tokens ---- */

static void encode_8(const float *y, uint32_t n, uint16_t *scale, uint8_t *codes) {
    vf32 as_stored = as_half(vf_div(column_max(y, n), vf_set1(127.0f))), inverse = reciprocal(as_stored);
    vf_store_f16(scale, as_stored);
    for (uint32_t i = 0; i < n; i++) {
        vf32 q = round_even(clamp(vf_mul(vf_load(y + i * KVQ_TILE), inverse), -127.0f, 127.0f));
        store_codes(codes + i * KVQ_TILE, vi_from_f32(vf_add(q, vf_set1(128.0f))));
    }
}

static void encode_4(char side, const float *y, uint32_t n, uint16_t *scale, uint8_t *codes) {
    static const float stretch[4] = {1.0f, 0.9375f, 0.875f, 1.0625f};
    vf32 top = vf_load(y), scales[4], inverses[4], errors[4];
    for (uint32_t i = 1; i < n; i++) { /* the first element of largest magnitude, with its sign */
        vf32 x = vf_load(y + i * KVQ_TILE);
        top = vf_select_less(vf_abs(top), vf_abs(x), x, top);
    }
    top = vf_div(top, vf_set1(-8.0f));
#pragma GCC unroll 4
    for (uint32_t s = 0; s < 4; s++) {
        scales[s] = as_half(vf_mul(top, vf_set1(stretch[s])));
        inverses[s] = reciprocal(scales[s]);
        errors[s] = vf_zero();
    }
    for (uint32_t i = 0; i < n; i++) {
        vf32 x = vf_load(y + i * KVQ_TILE);
#pragma GCC unroll 4
        for (uint32_t s = 0; s < 4; s++) {
            vf32 q = round_even(clamp(vf_mul(x, inverses[s]), -8.0f, 7.0f));
            vf32 difference = vf_sub(vf_mul(scales[s], q), x);
            errors[s] = vf_add(errors[s], vf_mul(difference, difference));
        }
    }
    vf32 best = scales[0], least = errors[0];
#pragma GCC unroll 4
    for (uint32_t s = 1; s < 4; s++) {
        best = vf_select_less(errors[s], least, scales[s], best);
        least = vf_min(errors[s], least);
    }
    vf32 inverse = reciprocal(best), xx = vf_zero(), xq = vf_zero();
    for (uint32_t i = 0; i < n; i++) {
        vf32 x = vf_load(y + i * KVQ_TILE), q = round_even(clamp(vf_mul(x, inverse), -8.0f, 7.0f));
        store_codes(codes + i * KVQ_TILE, vi_from_f32(vf_add(q, vf_set1(8.0f))));
        xx = vf_add(xx, vf_mul(x, x));
        xq = vf_add(xq, vf_mul(x, q));
    }
    if (side == 'v')
        best = vf_select_less(vf_zero(), vf_abs(xq), as_half(vf_div(xx, xq)), best);
    vf_store_f16(scale, best);
}

void KVQ_NAME(kvq_encode_blocks)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    _Alignas(64) float y[TILE_ELEMENTS];
    uint8_t codes[TILE_ELEMENTS];
    uint16_t *scale = (uint16_t *)(tile + kvq_blocks_scales(codec, head_dim));
    load_tile(codec->side, x, head_dim, true, y);
    for (uint32_t first = 0; first < head_dim; first += KVQ_BLOCK, scale += KVQ_TILE)
        for (uint32_t t = 0; t < KVQ_TILE; t += VF) {
            uint32_t n = head_dim - first < KVQ_BLOCK ? head_dim - first : KVQ_BLOCK, at = first * KVQ_TILE + t;
            if (codec->bits == 8)
                encode_8(y + at, n, scale + t, codes + at);
            else
                encode_4(codec->side, y + at, n, scale + t, codes + at);
        }
    pack(&(code_rows){codes, false, KVQ_TILE}, codec->side, codec->bits, head_dim, tile);
}

/* ---- the small floats (kv/float8.h) ---- */

/* kvq_f32_to_e4m3 of x >= 0 */
VEC_INLINE vi32 to_e4m3(vf32 x) {
    x = vf_min(x, vf_set1(KVQ_E4M3_MAX));
    vi32 bits = vi_from_bits(x);
    vi32 rounded = vi_add(vi_add(bits, vi_set1(0x7ffff)), vi_and(vi_shr(bits, 20), vi_set1(1)));
    vi32 normal = vi_sub(vi_shr(rounded, 20), vi_set1(120 << 3));
    vi32 subnormal = vi_sub(vi_from_bits(vf_add(x, vf_set1(0x1p14f))), vi_from_bits(vf_set1(0x1p14f)));
    return vi_from_bits(vf_select_less(x, vf_set1(0x1p-6f), vi_to_bits(subnormal), vi_to_bits(normal)));
}

VEC_INLINE vf32 from_e4m3(vi32 code) { /* code: 0 .. 0x7e */
    return vf_mul(vi_to_bits(vi_shl(code, 20)), vf_set1(0x1p120f));
}

/* The e2m1 value nearest to x >= 0, ties to the even code: one bit of mantissa, at least steps of a half */
VEC_INLINE vf32 round_e2m1(vf32 x) {
    x = vf_min(x, vf_set1(6.0f));
    vf32 power = vi_to_bits(vi_and(vi_from_bits(x), vi_set1(0x7f800000)));
    vf32 magic = vf_mul(vf_max(power, vf_set1(1.0f)), vf_set1(0x1.8p22f));
    return vf_sub(vf_add(x, magic), magic);
}

/* sign: x; where the code is 0 there is none */
VEC_INLINE vi32 with_sign(vi32 code, vf32 x, int32_t bit) {
    vf32 sign = vf_select_less(x, vf_zero(), vi_to_bits(vi_set1(bit)), vf_zero());
    vf32 nonzero = vf_select_less(vf_zero(), vi_to_f32(code), sign, vf_zero());
    return vi_or(code, vi_from_bits(nonzero));
}

static float fp8_scale(float largest) {
    int exponent;
    float fraction = frexpf(largest, &exponent); /* 448 = 0.875 * 2^9 */
    exponent -= fraction > 0.875f ? 8 : 9;
    return ldexpf(1.0f, exponent < -100 || largest == 0.0f ? -100 : exponent);
}

void KVQ_NAME(kvq_encode_fp8)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    _Alignas(64) float y[TILE_ELEMENTS];
    uint8_t codes[TILE_ELEMENTS];
    load_tile(codec->side, x, head_dim, true, y);
    float scale = fp8_scale(largest_magnitude(y, KVQ_TILE * head_dim));
    vf32 inverse = vf_set1(1.0f / scale);
    for (uint32_t i = 0; i < KVQ_TILE * head_dim; i += VF) {
        vf32 z = vf_mul(vf_load(y + i), inverse);
        store_codes(codes + i, with_sign(to_e4m3(vf_abs(z)), z, 0x80));
    }
    pack(&(code_rows){codes, false, KVQ_TILE}, codec->side, 8, head_dim, tile);
    memcpy(tile + kvq_codes_bytes(8, head_dim), &scale, sizeof scale);
}

/* Squared errors of a group y (KVQ_NVFP4_GROUP, 64) with four scales; the sign changes none. */
VEC_INLINE void group_errors(const float *y, const vf32 scales[4], vf32 errors[4]) {
    vf32 inverses[4];
#pragma GCC unroll 4
    for (uint32_t s = 0; s < 4; s++) {
        inverses[s] = reciprocal(scales[s]);
        errors[s] = vf_zero();
    }
    for (uint32_t i = 0; i < KVQ_NVFP4_GROUP; i++) {
        vf32 x = vf_abs(vf_load(y + i * KVQ_TILE));
#pragma GCC unroll 4
        for (uint32_t s = 0; s < 4; s++) {
            vf32 difference = vf_sub(vf_mul(scales[s], round_e2m1(vf_mul(x, inverses[s]))), x);
            errors[s] = vf_add(errors[s], vf_mul(difference, difference));
        }
    }
}

static void encode_nvfp4_group(const float *y, float tile_scale, uint8_t *scale, uint8_t *codes) {
    static const uint8_t code_of_twice[16] = {0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7};
    vf32 largest = vf_mul(column_max(y, KVQ_NVFP4_GROUP), vf_set1(kvq_reciprocal(tile_scale)));
    vf32 start = vi_to_f32(to_e4m3(vf_div(largest, vf_set1(6.0f)))), best = vf_zero(), least = vf_set1(INFINITY);
    for (int first = -1; first < 7; first += 4) {
        vf32 candidates[4], scales[4], errors[4];
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
            candidates[s] = vf_add(start, vf_set1((float)(first + s)));
            scales[s] = vf_mul(vf_set1(tile_scale), from_e4m3(vi_from_f32(clamp(candidates[s], 0, 0x7e))));
        }
        group_errors(y, scales, errors);
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
            vf32 error = vf_select_less(candidates[s], vf_zero(), vf_set1(INFINITY), errors[s]);
            error = vf_select_less(vf_set1(0x7e), candidates[s], vf_set1(INFINITY), error);
            best = vf_select_less(error, least, candidates[s], best);
            least = vf_min(error, least);
        }
    }
    vi32 code = vi_from_f32(best);
    store_codes(scale, code);
    vf32 inverse = reciprocal(vf_mul(vf_set1(tile_scale), from_e4m3(code)));
    for (uint32_t i = 0; i < KVQ_NVFP4_GROUP; i++) {
        vf32 z = vf_mul(vf_load(y + i * KVQ_TILE), inverse), a = round_e2m1(vf_abs(z));
        vi32 magnitude = vi_lookup16(code_of_twice, vi_from_f32(vf_add(a, a)));
        store_codes(codes + i * KVQ_TILE, with_sign(magnitude, z, 8));
    }
}

void KVQ_NAME(kvq_encode_nvfp4)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    _Alignas(64) float y[TILE_ELEMENTS];
    uint8_t codes[TILE_ELEMENTS], *scale = tile + kvq_nvfp4_scales(head_dim);
    load_tile(codec->side, x, head_dim, true, y);
    float tile_scale = largest_magnitude(y, KVQ_TILE * head_dim) / (4.0f * KVQ_E4M3_MAX);
    for (uint32_t first = 0; first < head_dim; first += KVQ_NVFP4_GROUP, scale += KVQ_TILE)
        for (uint32_t t = 0; t < KVQ_TILE; t += VF) {
            uint32_t at = first * KVQ_TILE + t;
            encode_nvfp4_group(y + at, tile_scale, scale + t, codes + at);
        }
    pack(&(code_rows){codes, false, KVQ_TILE}, codec->side, 4, head_dim, tile);
    memcpy(tile + kvq_nvfp4_tile_scale(head_dim), &tile_scale, sizeof tile_scale);
}

/* ---- turbo ---- */

/* The upper half of a codebook; the lower is its mirror image. */
typedef struct codebook {
    uint32_t n;                   /* 2^bits / 2 */
    float centroid[8], middle[8]; /* middle[i]: between centroids i - 1 and i */
} codebook;

VEC_INLINE codebook upper_half(const uint32_t bits) {
    const float *centroids = kvq_turbo_centroids(bits);
    codebook b = {.n = 1u << bits >> 1};
    for (uint32_t i = 0; i < b.n; i++) {
        b.centroid[i] = centroids[b.n + i];
        b.middle[i] = (centroids[b.n + i - 1] + centroids[b.n + i]) * 0.5f;
    }
    return b;
}

/* |x| such that one comparison decides as the reference does: a midpoint belongs to the centroid below it, so for x <= 0 to
 * the outer one; there the magnitude counts as the next larger float. */
VEC_INLINE vf32 magnitude_of(vf32 x) {
    vf32 next = vf_select_less(vf_zero(), x, vf_zero(), vf_set1(0x1p-149f)); /* bits: 0 or 1 */
    return vi_to_bits(vi_add(vi_from_bits(vf_abs(x)), vi_from_bits(next)));
}

/* values[i] of the i that |x| falls to, i counted from the middle of the codebook */
VEC_INLINE vf32 pick(const codebook *b, const uint32_t n, vf32 magnitude, const float *values) {
    vf32 value = vf_set1(values[0]);
#pragma GCC unroll 8
    for (uint32_t i = 1; i < n; i++)
        value = vf_select_less(vf_set1(b->middle[i]), magnitude, vf_set1(values[i]), value);
    return value;
}

/* VF tokens y (n, 64): their codes (n, 64) and scale */
VEC_INLINE void encode_turbo_tokens(char side, const float *y, uint32_t n, const uint32_t bits, uint16_t *scale,
                                    uint8_t *codes) {
    static const float stretch[3] = {1.0f, 0.90625f, 1.09375f}, index[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    const codebook b = upper_half(bits);
    const uint32_t half = 1u << bits >> 1;
    vf32 zero = vf_zero(), yy = zero, yc[3] = {zero, zero, zero}, cc[3] = {zero, zero, zero}, inverses[3];
    for (uint32_t d = 0; d < n; d++) {
        vf32 x = vf_load(y + d * KVQ_TILE);
        yy = vf_add(yy, vf_mul(x, x));
    }
    vf32 rms = vf_sqrt(vf_div(yy, vf_set1((float)n)));
#pragma GCC unroll 3
    for (uint32_t s = 0; s < 3; s++)
        inverses[s] = reciprocal(vf_mul(rms, vf_set1(stretch[s])));
    for (uint32_t d = 0; d < n; d++) {
        vf32 x = vf_load(y + d * KVQ_TILE);
#pragma GCC unroll 3
        for (uint32_t s = 0; s < 3; s++) {
            vf32 z = vf_mul(x, inverses[s]), c = pick(&b, half, magnitude_of(z), b.centroid);
            yc[s] = vf_add(yc[s], vf_mul(x, vf_select_less(zero, z, c, vf_sub(zero, c))));
            cc[s] = vf_add(cc[s], vf_mul(c, c));
        }
    }
    vf32 most = vf_set1(-1.0f), inverse = zero, best_yc = zero, best_cc = zero;
#pragma GCC unroll 3
    for (uint32_t s = 0; s < 3; s++) {
        vf32 explained = vf_div(vf_mul(yc[s], yc[s]), cc[s]); /* of yy, by the least-squares scale */
        inverse = vf_select_less(most, explained, inverses[s], inverse);
        best_yc = vf_select_less(most, explained, yc[s], best_yc);
        best_cc = vf_select_less(most, explained, cc[s], best_cc);
        most = vf_max(explained, most);
    }
    for (uint32_t d = 0; d < n; d++) {
        vf32 z = vf_mul(vf_load(y + d * KVQ_TILE), inverse), i = pick(&b, half, magnitude_of(z), index);
        vf32 code = vf_select_less(zero, z, vf_add(vf_set1((float)half), i), vf_sub(vf_set1((float)half - 1), i));
        store_codes(codes + d * KVQ_TILE, vi_from_f32(code));
    }
    vf32 fitted = side == 'k' ? vf_div(best_yc, best_cc) : vf_div(yy, best_yc);
    vf_store_f16(scale, vf_select_less(zero, best_yc, as_half(fitted), zero));
}

/* One instance: y (n, 64), not yet rotated */
static void encode_turbo_set(char side, float *y, uint32_t n, uint32_t bits, uint8_t *packed, uint16_t *scale) {
    uint8_t codes[TILE_ELEMENTS];
    rotate(y, n);
    for (uint32_t t = 0; t < KVQ_TILE; t += VF)
        if (bits == 4)
            encode_turbo_tokens(side, y + t, n, 4, scale + t, codes + t);
        else if (bits == 3)
            encode_turbo_tokens(side, y + t, n, 3, scale + t, codes + t);
        else
            encode_turbo_tokens(side, y + t, n, 2, scale + t, codes + t);
    pack(&(code_rows){codes, false, KVQ_TILE}, side, bits, n, packed);
}

void KVQ_NAME(kvq_encode_turbo)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    _Alignas(64) float y[TILE_ELEMENTS];
    load_tile(codec->side, x, head_dim, false, y);
    encode_turbo_set(codec->side, y, head_dim, codec->bits, tile, (uint16_t *)(tile + kvq_turbo_scales(codec, head_dim)));
}

/* mask: the channels of y (head_dim, 64) with most energy */
static void choose_wide(const float *y, uint32_t head_dim, uint8_t *mask) {
    _Alignas(64) float turned[TILE_ELEMENTS], energy[KVQ_MAX_HEAD_DIM];
    uint32_t place[KVQ_MAX_HEAD_DIM];
    turn(y, head_dim, KVQ_TILE, turned);
    for (uint32_t d = 0; d < head_dim; d += VF) {
        vf32 sum = vf_zero();
        for (uint32_t t = 0; t < KVQ_TILE; t++) {
            vf32 a = vf_load(turned + t * head_dim + d);
            sum = vf_add(sum, vf_mul(a, a));
        }
        vf_store(energy + d, sum);
    }
    rank_channels(energy, head_dim, place);
    memset(mask, 0, head_dim / 8);
    for (uint32_t d = 0; d < head_dim; d++)
        mask[d / 8] |= (uint8_t)((place[d] < kvq_turbo_n_wide(head_dim)) << d % 8);
}

void KVQ_NAME(kvq_encode_turbo_split)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    _Alignas(64) float y[TILE_ELEMENTS], part[TILE_ELEMENTS];
    uint8_t channels[KVQ_MAX_HEAD_DIM], *channel = channels, *mask = tile + kvq_turbo_mask(codec, head_dim);
    kvq_turbo_set sets[2];
    kvq_turbo_sets(codec, head_dim, sets);
    load_tile(codec->side, x, head_dim, false, y);
    choose_wide(y, head_dim, mask);
    kvq_turbo_channels(mask, head_dim, channels);
    for (uint32_t i = 0; i < 2; channel += sets[i++].n) {
        for (uint32_t d = 0; d < sets[i].n; d++)
            memcpy(part + d * KVQ_TILE, y + channel[d] * KVQ_TILE, KVQ_TILE * sizeof *part);
        encode_turbo_set(codec->side, part, sets[i].n, sets[i].bits, tile + sets[i].codes,
                         (uint16_t *)(tile + sets[i].scales));
    }
}
