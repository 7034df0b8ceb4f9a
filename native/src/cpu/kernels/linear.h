/*
 * Inside the linear kernels: how a weight type is written down once and serves both decode and prefill.
 *
 * Rows in lanes: a panel is VF rows of the weight matrix, row i in lane i. vi_load_rows takes 16 bytes of every row and
 * transposes them, so a lane holds 4 consecutive bytes of its row, and masks and shifts make them 4 consecutive codes: just
 * what a dot product instruction multiplies with 4 activations that all lanes share. Scales are one vector for VF rows, no
 * sum across lanes is ever needed, and outputs come out side by side.
 *
 * A type's unpacker turns a block of every row into spans of 32 columns and puts them, in order, into a sink. The sink is a
 * tile (prefill: unpacked once, multiplied with many tokens) or a token (decode: multiplied at once, in registers).
 *
 * Decode should cost what reading the file's bytes costs. A block of Q4_K of 16 rows, 2304 bytes, takes 650 instructions
 * with AVX-512, of Q6_K, 3360 bytes, 1050: 41 to 57 GB/s of weights from the cache on one Zen 5 core at 4.0 GHz, for Q4_0,
 * Q4_1, Q8_0, F16 and the k-quants. From memory, of which the core reads 40 GB/s, 30 to 42 GB/s, and 11 to 21 without the
 * prefetch below. With AVX2: 26 to 36 GB/s.
 */
#ifndef KVQ_CPU_KERNELS_LINEAR_H
#define KVQ_CPU_KERNELS_LINEAR_H

#include "cpu/isa.h"
#include "cpu/linear.h"
#include "cpu/vec.h"
#include "quant/blocks.h"
#include "quant/iq_tables.h"

#define UNROLL _Pragma("GCC unroll 16")

/* 32 columns of a panel. Byte b of code[c] is column 4 c + b. Halves: columns 0..15 and 16..31, if the kind has them. */
typedef struct span {
    vi32 code[8];
    vf32 scale[2], min[2];
} span;

VEC_INLINE bool has_halves(kvq_linear_kind kind) {
    return kind == KVQ_LINEAR_OFFSET16 || kind == KVQ_LINEAR_MIN16;
}

VEC_INLINE bool has_min(kvq_linear_kind kind) {
    return kind == KVQ_LINEAR_MIN32 || kind == KVQ_LINEAR_MIN16;
}

/* The integer that a sum of code * x starts from, so that offsets vanish. */
VEC_INLINE vi32 dot_start(kvq_linear_kind kind, int shift, const int32_t *minus_sum) {
    if (has_min(kind) || (kind == KVQ_LINEAR_WIDE32 && VI_WIDE_OFFSET == 0))
        return vi_set1(0);
    return vi_shl(vi_load1(minus_sum), kind == KVQ_LINEAR_WIDE32 ? 7 : shift);
}

/* sum (n_panels, n_tokens) += spans (n_panels) times one group of each token. All loops unroll: sums live in registers. */
VEC_INLINE void multiply_span(kvq_linear_kind kind, int shift, int n_panels, int n_tokens, const span *const *spans,
                              const kvq_linear_group *const *x, vf32 *sum) {
    int n_halves = has_halves(kind) ? 2 : 1, n_codes = has_halves(kind) ? 4 : 8;
    UNROLL for (int h = 0; h < n_halves; h++) {
        vi32 dot[16];
        UNROLL for (int t = 0; t < n_tokens; t++) {
            vi32 start = dot_start(kind, shift, n_halves == 2 ? &x[t]->minus_half_sum[h] : &x[t]->minus_sum);
            UNROLL for (int p = 0; p < n_panels; p++) dot[p * n_tokens + t] = start;
        }
        UNROLL for (int i = 0; i < n_codes; i++) UNROLL for (int t = 0; t < n_tokens; t++) {
            int c = h * n_codes + i;
            vi32 code = vi_load1(&x[t]->code[4 * c]);
            UNROLL for (int p = 0; p < n_panels; p++) {
                vi32 *d = &dot[p * n_tokens + t];
                *d = kind == KVQ_LINEAR_WIDE32 ? vi_dot_wide(*d, spans[p]->code[c], code)
                                               : vi_dot(*d, spans[p]->code[c], code);
            }
        }
        UNROLL for (int t = 0; t < n_tokens; t++) {
            vf32 x_scale = vf_set1(x[t]->scale), x_sum = vf_set1(n_halves == 2 ? x[t]->half_sum[h] : x[t]->sum);
            UNROLL for (int p = 0; p < n_panels; p++) {
                vf32 *s = &sum[p * n_tokens + t];
                *s = vf_fma(vi_to_f32(dot[p * n_tokens + t]), vf_mul(spans[p]->scale[h], x_scale), *s);
                if (has_min(kind))
                    *s = vf_fma(spans[p]->min[h], x_sum, *s);
            }
        }
    }
}

/* Where the panel lies that the thread takes next: it asks for the bytes while it computes, in the file's order, each cache
 * line once (the rows of a panel are too many streams for the processor to foresee). That may be beyond the weights:
 * nothing is read. */
typedef struct stream {
    const uint8_t *next, *end; /* next: the start of a cache line */
} stream;

VEC_INLINE stream stream_from(const uint8_t *p) {
    return (stream){p + (-(uintptr_t)p & 63), p};
}

VEC_INLINE void prefetch(stream *s, size_t n_bytes) {
    for (s->end += n_bytes; s->next < s->end; s->next += 64)
        __builtin_prefetch(s->next);
}

typedef struct sink {
    kvq_linear_kind kind;
    int shift;
    span *tile;                /* or NULL: */
    const kvq_linear_group *x; /* multiply with it */
    vf32 sum;
    stream ahead;
    size_t panel_bytes; /* of a span of a panel */
} sink;

VEC_INLINE void put(sink *out, const span *s) {
    if (out->tile) {
        span *to = out->tile++;
        UNROLL for (int c = 0; c < 8; c++) to->code[c] = s->code[c];
        UNROLL for (int h = 0; h < 2; h++) {
            if (h == 1 && !has_halves(out->kind))
                continue;
            to->scale[h] = s->scale[h];
            if (has_min(out->kind))
                to->min[h] = s->min[h];
        }
    } else {
        multiply_span(out->kind, out->shift, 1, 1, &s, &out->x, &out->sum);
        out->x++;
    }
    prefetch(&out->ahead, out->panel_bytes);
}

/* Makes the kernels of a type from `VEC_INLINE void name(const uint8_t *w, size_t row_bytes, sink *out)`, its unpacker of
 * one block of each row. */
#define LINEAR_TYPE(name, KIND, SHIFT, block_columns)                                                                      \
    VEC_INLINE void each_##name(const uint8_t *w, size_t row_bytes, uint32_t n_columns, sink *out) {                       \
        out->kind = KIND;                                                                                                  \
        out->shift = SHIFT;                                                                                                \
        out->panel_bytes = VF * sizeof(kvq_##name) * KVQ_GROUP / (block_columns);                                          \
        for (uint32_t n = n_columns / (block_columns); n > 0; n--, w += sizeof(kvq_##name))                                \
            name(w, row_bytes, out);                                                                                       \
    }                                                                                                                      \
    static void dot_##name(const uint8_t *w, size_t row_bytes, uint32_t n_in, const uint8_t *ahead, const void *x,         \
                           float *y) {                                                                                     \
        sink out = {.x = x, .sum = vf_zero(), .ahead = stream_from(ahead)};                                                \
        each_##name(w, row_bytes, n_in, &out);                                                                             \
        vf_store(y, out.sum);                                                                                              \
    }                                                                                                                      \
    static void unpack_##name(const uint8_t *w, size_t row_bytes, uint32_t n_columns, const uint8_t *ahead, void *tile) {  \
        sink out = {.tile = tile, .ahead = stream_from(ahead)};                                                            \
        each_##name(w, row_bytes, n_columns, &out);                                                                        \
    }                                                                                                                      \
    const kvq_linear_type KVQ_NAME(kvq_linear_##name) = {KIND, SHIFT, dot_##name, unpack_##name};

/* ---- pieces of unpackers ---- */

/* n_bits bits from bit n of each lane, as an integer */
VEC_INLINE vi32 bits(vi32 a, int n, int n_bits) {
    return vi_and(vi_shr(a, n), vi_set1((1 << n_bits) - 1));
}

/* n_bits bits from bit n of each byte, moved to bit `to` of it; n_bits + to <= 8 */
VEC_INLINE vi32 byte_bits(vi32 a, int n, int n_bits, int to) {
    vi32 moved = n > to ? vi_shr(a, n - to) : vi_shl(a, to - n);
    return vi_and(moved, vi_set1((int32_t)((((1u << n_bits) - 1) << to) * 0x01010101u)));
}

/* 4 bits from bit n of each lane, one into each byte, at bit `to` <= 4 of it */
VEC_INLINE vi32 spread_bits(vi32 a, int n, int to) {
    return vi_and(vi_mul(bits(a, n, 4), vi_set1(0x00204081 << to)), vi_set1(0x01010101 << to));
}

/* byte n of each lane, as a number */
VEC_INLINE vf32 byte_to_f32(vi32 a, int n) {
    return vi_to_f32(bits(a, 8 * n, 8));
}

/* signed codes as vi_dot_wide wants them */
VEC_INLINE vi32 wide(vi32 a) {
    return VI_WIDE_OFFSET ? vi_xor(a, vi_set1((int32_t)0x80808080)) : a;
}

/* 32 bytes of each row */
VEC_INLINE void load_rows_32(const uint8_t *p, size_t row_bytes, vi32 c[8]) {
    vi_load_rows(p, row_bytes, c);
    vi_load_rows(p + 16, row_bytes, c + 4);
}

_Static_assert(KVQ_LINEAR_COLUMNS / KVQ_GROUP * sizeof(span) <= KVQ_LINEAR_TILE_BYTES, "a tile of codes fits");

#endif
