/*
 * What the attention kernels of encoded tiles share: dot products of stored codes with floats that became bytes.
 *
 * Codes are unsigned bytes of at most 7 bits (or 8: q8_0) once they are out of their words, 4 to a 32-bit lane (kv/pack.h).
 * The other side, a query or the probabilities of a tile, becomes signed bytes: beside codes of up to 4 bits one per float,
 * 7 bits under the largest magnitude, whose error is small beside that of the codes; beside 8-bit codes two, x ~ scale *
 * (128 first + second). Probabilities are dithered before they are rounded, so that many small ones do not vanish together.
 * One dot product per vector, row and byte, without a sum across lanes; words are taken apart once for ROWS rows.
 *
 * Measured (tools/attend_speed.c: one Zen 5 core at 4.3 GHz that reads 42 GB/s, 3 rows, head_dim 64), ns for a head's tile
 * with softmax, from memory (share of the bandwidth) and from L2:
 *
 *   f16 596 (66%) 342    q8_0 462 (45%) 283    fp8 515 (39%) 335    q4_0 294 (38%) 203    nvfp4 361 (31%) 268
 *   kivi4 335 (37%) 225  kivi2 290 (25%) 211   turbo4 248 (42%) 167 turbo3 277 (29%) 177  turbo2 213 (26%) 157
 *   kvarn4 281 (41%) 185 kvarn3 307 (30%) 194  kvarn2 247 (27%) 173 tier3 327 (29%) 212   tier2 295 (23%) 200
 *
 * turbo2 takes about 2850 instructions of the 5400 that 157 ns have room for (8 a cycle). Every kernel's instructions,
 * bandwidth and shares of the limits: tools/bench/REPORT.md, from tools/bench/cpu_kernels.jsonl.
 */
#ifndef KVQ_CPU_ATTEND_CODES_H
#define KVQ_CPU_ATTEND_CODES_H

#include "cpu/attend.h"
#include "cpu/isa.h"
#include "cpu/vec.h"
#include "kv/pack.h"

enum {
    ROWS = 3,                     /* rows whose sums are in registers at a time */
    N_PIECES = 16 / VF,           /* vectors in the 16 lanes of a dot vector */
    TERM = 128,                   /* what a first byte of two counts */
    BYTES_ROW = KVQ_MAX_HEAD_DIM, /* from one row of queries as bytes to the next */
};

/* Runs `call` with n_r, a constant for the compiler, rows at a time: rows row .. row + n_r - 1 of n_rows. */
#define FOR_ROWS(n_rows, call)                                                                                             \
    for (uint32_t row = 0; row < (n_rows);) {                                                                              \
        switch ((n_rows) - row < ROWS ? (n_rows) - row : ROWS) {                                                           \
        case 1: {                                                                                                          \
            enum { n_r = 1 };                                                                                              \
            call;                                                                                                          \
            row += n_r;                                                                                                    \
            break;                                                                                                         \
        }                                                                                                                  \
        case 2: {                                                                                                          \
            enum { n_r = 2 };                                                                                              \
            call;                                                                                                          \
            row += n_r;                                                                                                    \
            break;                                                                                                         \
        }                                                                                                                  \
        default: {                                                                                                         \
            enum { n_r = ROWS };                                                                                           \
            call;                                                                                                          \
            row += n_r;                                                                                                    \
        }                                                                                                                  \
        }                                                                                                                  \
    }

/* ---- floats as bytes ---- */

/* The bytes a float becomes beside codes of these bits. */
VEC_INLINE uint32_t n_terms(const uint32_t bits) {
    return bits > 4 ? 2 : 1;
}

/* Less than half of either sign, evenly spread over any run of tokens: numbers with this added before they are rounded are
 * right on average, however small. */
static const float dither[KVQ_TILE] = {
#define DITHER(t)  (float)((t) * 0x9E37u % 0x10000u) * 0x1p-16f - 0.49999f
#define DITHER4(t) DITHER(t), DITHER(t + 1), DITHER(t + 2), DITHER(t + 3)
    DITHER4(0),  DITHER4(4),  DITHER4(8),  DITHER4(12), DITHER4(16), DITHER4(20), DITHER4(24), DITHER4(28),
    DITHER4(32), DITHER4(36), DITHER4(40), DITHER4(44), DITHER4(48), DITHER4(52), DITHER4(56), DITHER4(60),
};

/* Rows of n floats as bytes: x ~ scale * integer, integer = (TERM *) first byte (+ second byte). What to_bytes is told: */
typedef struct byte_rows {
    uint32_t n;          /* a multiple of 16 */
    uint32_t n_r, terms; /* rows, bytes for a float */
    uint32_t stride;     /* of bytes */
    const float *offset; /* (n) to add before rounding, or NULL */
    const float *weight; /* (n) of the integers in `sum`, or NULL: 1 */
    int8_t *bytes;       /* (n_r, terms, stride) */
} byte_rows;

/* x: (n_r, x_stride). By row, max: lanes whose maximum is that of |x|; scale; sum: lanes whose sum is that of the integers.
 */
VEC_INLINE void to_bytes(const byte_rows *b, const float *x, uint32_t x_stride, const vf32 *max, float *scale, vf32 *sum) {
    const float top = b->terms == 2 ? 127 * TERM : 127;
    vf32 inverse[ROWS];
#pragma GCC unroll 4
    for (uint32_t r = 0; r < b->n_r; r++) {
        float largest = vf_reduce_max(max[r]);
        scale[r] = largest * (1.0f / top);
        inverse[r] = vf_set1(largest > 1e-30f ? top / largest : 0.0f);
        sum[r] = vf_zero();
    }
    for (uint32_t i = 0; i < b->n; i += VF)
#pragma GCC unroll 4
        for (uint32_t r = 0; r < b->n_r; r++) {
            int8_t *at = b->bytes + r * b->terms * b->stride + i;
            vf32 y = vf_load(x + r * x_stride + i);
            vi32 z = vi_from_f32(b->offset ? vf_fma(y, inverse[r], vf_load(b->offset + i)) : vf_mul(y, inverse[r]));
            vf32 zf = vi_to_f32(z);
            sum[r] = b->weight ? vf_fma(zf, vf_load(b->weight + i), sum[r]) : vf_add(zf, sum[r]);
            if (b->terms == 2) {
                vi32 high = vi_sar(vi_add(z, vi_set1(TERM / 2)), 7);
                vi_store_i8(at + b->stride, vi_sub(z, vi_shl(high, 7)));
                z = high;
            }
            vi_store_i8(at, z);
        }
}

/* ---- codes out of their words ---- */

/* Codes packed as the tile of n channels. What a kernel knows when it is compiled: bits, and whether there are levels. */
typedef struct packed {
    const uint8_t *codes;
    uint32_t bits, n;
    const uint8_t *levels; /* what each of the 2^bits codes multiplies as (16 bytes); NULL: itself */
} packed;

/* Dot vectors 4 i .. 4 i + 3, lanes VF piece .. VF piece + VF - 1. K: channels 4 i .. 4 i + 3 of 16 tokens each. V: of
 * channels 16 (i / 4) .. + 15 tokens 16 (i % 4) .. + 15, 4 in each. i_odd: i % 2 if bits is odd. */
VEC_INLINE void load_dots(const packed *c, uint32_t i, const uint32_t i_odd, uint32_t piece, vi32 x[4]) {
    const uint8_t *at = c->codes + 4 * VF * piece;
    const uint32_t bits = c->bits;
    if (bits == 8) {
        for (uint32_t f = 0; f < 4; f++)
            x[f] = vi_load(at + 64 * (4 * i + f));
    } else if (bits == 4) {
        for (uint32_t w = 0; w < 2; w++) {
            vi32 word = vi_load(at + 64 * (2 * i + w));
            x[2 * w] = vi_and(word, vi_set1(0x0f0f0f0f));
            x[2 * w + 1] = vi_and(vi_shr(word, 4), vi_set1(0x0f0f0f0f));
        }
    } else if (bits == 1) {
        vi32 word = vi_load(at + 64 * (i / 2));
#pragma GCC unroll 4
        for (uint32_t f = 0; f < 4; f++)
            x[f] = vi_and(vi_shr(word, (int)(4 * i_odd + f)), vi_set1(0x01010101));
    } else {
        vi32 word = vi_load(at + 64 * i);
#pragma GCC unroll 4
        for (uint32_t f = 0; f < 4; f++)
            x[f] = vi_and(vi_shr(word, (int)(2 * f)), vi_set1(0x03030303));
    }
    if (bits == 3) { /* the plane of the high bit: its bit 4 i_odd + f becomes bit 2 */
        vi32 word = vi_load(at + kvq_codes_bytes(2, c->n) + 64 * (i / 2));
#pragma GCC unroll 4
        for (uint32_t f = 0; f < 4; f++) {
            int from = (int)(4 * i_odd + f);
            vi32 bit = from < 2 ? vi_shl(word, 2 - from) : vi_shr(word, from - 2);
            x[f] = vi_or(x[f], vi_and(bit, vi_set1(0x04040404)));
        }
    }
    if (c->levels != NULL)
        for (uint32_t f = 0; f < 4; f++)
            x[f] = vi_lookup16(c->levels, x[f]);
}

/* Byte b of each lane */
VEC_INLINE vf32 byte_to_f32(vi32 x, const int b) {
    return vi_to_f32(vi_and(vi_shr(x, 8 * b), vi_set1(0xff)));
}

/* e4m3 in the top byte of each lane */
VEC_INLINE vf32 e4m3_to_f32(vi32 x) {
    return vf_mul(vi_to_bits(vi_and(vi_sar(x, 4), vi_set1((int32_t)0x87f00000))), vf_set1(0x1p120f));
}

/* ---- dot products ---- */

/* acc + x . y; 8-bit codes stand for themselves minus 128, and what is then left to subtract is wide_bias */
VEC_INLINE vi32 dot(const uint32_t bits, vi32 acc, vi32 x, vi32 y) {
    if (bits < 8)
        return vi_dot(acc, x, y);
    return vi_dot_wide(acc, VI_WIDE_OFFSET ? x : vi_xor(x, vi_set1((int32_t)0x80808080)), y);
}

enum { WIDE_BIAS = VI_WIDE_OFFSET };

/* Sums of dot products: [term][row][4]. K: of 16 tokens each; V: four whose sum is wanted, so that chains of additions do
 * not wait for each other. */
typedef struct dot_sums {
    vi32 at[2][ROWS][4];
} dot_sums;

VEC_INLINE void start_sums(dot_sums *s, const uint32_t n_r) {
    for (uint32_t r = 0; r < n_r; r++)
        for (uint32_t i = 0; i < 4; i++)
            s->at[0][r][i] = s->at[1][r][i] = vi_set1(0);
}

/* Queries as bytes: (n_sets, n_r, terms, BYTES_ROW). With two sets the first is for tokens 0 .. 31, the second for the
 * rest. */
typedef struct key_bytes {
    const int8_t *at;
    uint32_t n_sets, terms;
} key_bytes;

/* s += codes . queries over the codes' words first .. end - 1 of 4 channels each; q: the first row, at the codes' first
 * channel */
VEC_INLINE void key_dots(dot_sums *s, const packed *c, uint32_t piece, uint32_t first, uint32_t end, const key_bytes *q,
                         const uint32_t n_r) {
    const uint32_t step = c->bits % 2 ? 2 : 1;
#pragma GCC unroll 4
    for (uint32_t i = first; i < end; i += step)
#pragma GCC unroll 2
        for (uint32_t odd = 0; odd < step; odd++) {
            vi32 x[4];
            load_dots(c, i + odd, odd, piece, x);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < n_r; r++)
#pragma GCC unroll 4
                for (uint32_t set = 0; set < q->n_sets; set++)
#pragma GCC unroll 2
                    for (uint32_t term = 0; term < q->terms; term++) {
                        vi32 y = vi_load1(q->at + ((set * n_r + r) * q->terms + term) * BYTES_ROW + 4 * (i + odd));
#pragma GCC unroll 4
                        for (uint32_t g = set * 4 / q->n_sets; g < (set + 1) * 4 / q->n_sets; g++)
                            s->at[term][r][g] = dot(c->bits, s->at[term][r][g], x[g], y);
                    }
        }
}

VEC_INLINE vf32 terms_to_f32(const uint32_t terms, vi32 first, vi32 second) {
    return vi_to_f32(terms == 2 ? vi_add(vi_shl(first, 7), second) : first);
}

/* s += probabilities (n_r, terms, 64) . codes of the 16 channels of block `channels` */
VEC_INLINE void value_dots(dot_sums *s, const packed *c, uint32_t piece, uint32_t channels, const int8_t *p,
                           const uint32_t n_r) {
    const uint32_t terms = n_terms(c->bits);
#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; j++) {
        vi32 x[4];
        load_dots(c, 4 * channels + j, j % 2, piece, x);
#pragma GCC unroll 4
        for (uint32_t f = 0; f < 4; f++)
#pragma GCC unroll 4
            for (uint32_t r = 0; r < n_r; r++)
#pragma GCC unroll 2
                for (uint32_t term = 0; term < terms; term++) {
                    vi32 y = vi_load1(p + (r * terms + term) * KVQ_TILE + 16 * j + 4 * f);
                    s->at[term][r][f] = dot(c->bits, s->at[term][r][f], x[f], y);
                }
    }
}

VEC_INLINE vf32 value_sum(const uint32_t terms, const dot_sums *s, uint32_t r) {
    vi32 sums[2];
    for (uint32_t term = 0; term < terms; term++)
        sums[term] = vi_add(vi_add(s->at[term][r][0], s->at[term][r][1]), vi_add(s->at[term][r][2], s->at[term][r][3]));
    return terms_to_f32(terms, sums[0], sums[terms - 1]);
}

#endif
