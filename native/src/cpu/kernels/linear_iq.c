/*
 * The iq types of 1 to 3 bits: 8 (iq3: 4) columns are a row of a grid, fetched with gathers, 4 columns each. They are bound
 * by the gathers, not by memory.
 */
#include "cpu/kernels/linear.h"

/* Grid codes, negated where the 4 bits of `signs` from bit n say so, + 64. */
VEC_INLINE vi32 signed_codes(vi32 grid, vi32 signs, int n) {
    vi32 one = spread_bits(signs, n, 0), ones = vi_sub8(vi_set1(0), one);
    return vi_sub8(vi_add(vi_xor(grid, ones), one), vi_set1((int32_t)0xc0c0c0c0));
}

/* 7 stored sign bits from bit n to 8: their number is even. */
VEC_INLINE vi32 even_signs(vi32 a, int n) {
    vi32 stored = bits(a, n, 7), parity = vi_xor(stored, vi_shr(stored, 4));
    parity = vi_xor(parity, vi_shr(parity, 2));
    parity = vi_xor(parity, vi_shr(parity, 1));
    return vi_or(stored, vi_shl(parity, 7));
}

/* 8 columns: half i of row `index` of a grid of 8 bytes a row, for i = 0 and 1 */
VEC_INLINE void grid8(const void *grid, vi32 index, vi32 code[2]) {
    vi32 offset = vi_shl(index, 1);
    code[0] = vi_gather(grid, offset);
    code[1] = vi_gather((const uint8_t *)grid + 4, offset);
}

VEC_INLINE vf32 d_of(const uint8_t *w, size_t row_bytes) { /* f16 at w */
    vi32 head[4];
    vi_load_rows(w, row_bytes, head);
    return vi_f16_to_f32(head[0]);
}

/* d * (0.5 + n) * factor */
VEC_INLINE vf32 half_step(vf32 d, vi32 n, float factor) {
    return vf_mul(vf_mul(d, vf_add(vi_to_f32(n), vf_set1(0.5f))), vf_set1(factor));
}

/* d * (2 n + 1) */
VEC_INLINE vf32 odd_step(vf32 d, vi32 n) {
    return vf_mul(d, vi_to_f32(vi_add(vi_add(n, n), vi_set1(1))));
}

VEC_INLINE void iq2_xxs(const uint8_t *w, size_t row_bytes, sink *out) {
    vf32 d = d_of(w, row_bytes);
    UNROLL for (int pair = 0; pair < 4; pair++) {
        vi32 q[4];
        vi_load_rows(w + 2 + 16 * pair, row_bytes, q);
        UNROLL for (int i = 0; i < 4; i += 2) { /* 4 grid rows; their signs, and 4 bits of scale */
            span s;
            s.scale[0] = half_step(d, vi_shr(q[i + 1], 28), 0.25f);
            UNROLL for (int l = 0; l < 4; l++) {
                vi32 grid[2], signs = even_signs(q[i + 1], 7 * l);
                grid8(kvq_iq2xxs_grid, bits(q[i], 8 * l, 8), grid);
                s.code[2 * l] = signed_codes(grid[0], signs, 0);
                s.code[2 * l + 1] = signed_codes(grid[1], signs, 4);
            }
            put(out, &s);
        }
    }
}
LINEAR_TYPE(iq2_xxs, KVQ_LINEAR_OFFSET32, 6, 256)

VEC_INLINE void iq2_xs(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 end[4];
    vf32 d = d_of(w, row_bytes);
    vi_load_rows(w + 58, row_bytes, end); /* scales in end[2] and end[3] */
    UNROLL for (int pair = 0; pair < 4; pair++) {
        vi32 q[4];
        vi_load_rows(w + 2 + 16 * pair, row_bytes, q);
        UNROLL for (int i = 0; i < 2; i++) {
            span s;
            UNROLL for (int h = 0; h < 2; h++)
                s.scale[h] = half_step(d, bits(end[2 + pair / 2], 8 * (pair % 2 * 2 + i) + 4 * h, 4), 0.25f);
            UNROLL for (int l = 0; l < 4; l++) { /* 9 bits of grid, 7 of signs */
                vi32 grid[2], two = q[2 * i + l / 2], signs = even_signs(two, l % 2 * 16 + 9);
                grid8(kvq_iq2xs_grid, bits(two, l % 2 * 16, 9), grid);
                s.code[2 * l] = signed_codes(grid[0], signs, 0);
                s.code[2 * l + 1] = signed_codes(grid[1], signs, 4);
            }
            put(out, &s);
        }
    }
}
LINEAR_TYPE(iq2_xs, KVQ_LINEAR_OFFSET16, 6, 256)

VEC_INLINE void iq2_s(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 q[8], signs[8], end[4]; /* end: 8 bytes of high bits, 8 of scales */
    vf32 d = d_of(w, row_bytes);
    load_rows_32(w + 2, row_bytes, q);
    load_rows_32(w + 34, row_bytes, signs);
    vi_load_rows(w + 66, row_bytes, end);
    UNROLL for (int k = 0; k < 8; k++) {
        span s;
        UNROLL for (int h = 0; h < 2; h++) s.scale[h] = half_step(d, bits(end[2 + k / 4], 8 * (k % 4) + 4 * h, 4), 0.25f);
        UNROLL for (int l = 0; l < 4; l++) {
            vi32 grid[2], high = bits(end[k / 4], 8 * (k % 4) + 2 * l, 2);
            grid8(kvq_iq2s_grid, vi_or(bits(q[k], 8 * l, 8), vi_shl(high, 8)), grid);
            s.code[2 * l] = signed_codes(grid[0], signs[k], 8 * l);
            s.code[2 * l + 1] = signed_codes(grid[1], signs[k], 8 * l + 4);
        }
        put(out, &s);
    }
}
LINEAR_TYPE(iq2_s, KVQ_LINEAR_OFFSET16, 6, 256)

VEC_INLINE void iq3_xxs(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 end[8]; /* signs, and 4 bits of scale */
    vf32 d = d_of(w, row_bytes);
    load_rows_32(w + 66, row_bytes, end);
    UNROLL for (int pair = 0; pair < 4; pair++) {
        vi32 q[4];
        vi_load_rows(w + 2 + 16 * pair, row_bytes, q);
        UNROLL for (int i = 0; i < 2; i++) {
            span s;
            s.scale[0] = half_step(d, vi_shr(end[2 * pair + i], 28), 0.5f);
            UNROLL for (int c = 0; c < 8; c++) {
                vi32 grid = vi_gather(kvq_iq3xxs_grid, bits(q[2 * i + c / 4], c % 4 * 8, 8));
                s.code[c] = signed_codes(grid, even_signs(end[2 * pair + i], c / 2 * 7), c % 2 * 4);
            }
            put(out, &s);
        }
    }
}
LINEAR_TYPE(iq3_xxs, KVQ_LINEAR_OFFSET32, 6, 256)

VEC_INLINE void iq3_s(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 middle[4], end[12]; /* middle: 8 bytes of high bits; end: 32 bytes of signs from byte 74 on, then 4 of scales */
    vf32 d = d_of(w, row_bytes);
    vi_load_rows(w + 66, row_bytes, middle);
    vi_load_rows(w + 74, row_bytes, end);
    vi_load_rows(w + 90, row_bytes, end + 4);
    vi_load_rows(w + 94, row_bytes, end + 8);
    vi32 scales = end[11];
    UNROLL for (int pair = 0; pair < 4; pair++) {
        vi32 q[4];
        vi_load_rows(w + 2 + 16 * pair, row_bytes, q);
        UNROLL for (int i = 0; i < 2; i++) {
            int k = 2 * pair + i;
            span s;
            s.scale[0] = odd_step(d, bits(scales, 4 * k, 4));
            UNROLL for (int c = 0; c < 8; c++) {
                vi32 high = bits(middle[k / 4], k % 4 * 8 + c, 1);
                vi32 index = vi_or(bits(q[2 * i + c / 4], c % 4 * 8, 8), vi_shl(high, 8));
                s.code[c] = signed_codes(vi_gather(kvq_iq3s_grid, index), end[k], 4 * c);
            }
            put(out, &s);
        }
    }
}
LINEAR_TYPE(iq3_s, KVQ_LINEAR_OFFSET32, 6, 256)

/* 8 (grid row) + 1, or - 1 if bit n of `signs` is set; + 16 */
VEC_INLINE void shifted_codes(vi32 index, vi32 signs, int n, vi32 code[2]) {
    vi32 minus = vi_add(vi_mul(bits(signs, n, 1), vi_set1(0x02020202)), vi_set1((int32_t)0xefefefef)); /* -17 or -15 */
    grid8(kvq_iq1s_grid, index, code);
    UNROLL for (int i = 0; i < 2; i++) code[i] = vi_sub8(byte_bits(code[i], 0, 5, 3), minus);
}

VEC_INLINE void iq1_s(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 q[8], high[4];
    vf32 d = vf_mul(d_of(w, row_bytes), vf_set1(0.125f));
    load_rows_32(w + 2, row_bytes, q);
    vi_load_rows(w + 34, row_bytes, high);
    UNROLL for (int k = 0; k < 8; k++) { /* 4 x 3 bits of grid row, 3 of scale, the sign of the shift */
        vi32 qh = bits(high[k / 2], k % 2 * 16, 16);
        span s;
        s.scale[0] = odd_step(d, bits(qh, 12, 3));
        UNROLL for (int l = 0; l < 4; l++) {
            vi32 index = vi_or(bits(q[k], 8 * l, 8), vi_shl(bits(qh, 3 * l, 3), 8));
            shifted_codes(index, qh, 15, &s.code[2 * l]);
        }
        put(out, &s);
    }
}
LINEAR_TYPE(iq1_s, KVQ_LINEAR_OFFSET32, 4, 256)

VEC_INLINE void iq1_m(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 q[8], high[4], end[4]; /* end[2], end[3]: 4 x (4 x 3 bits of scale, 4 bits of d) */
    load_rows_32(w, row_bytes, q);
    vi_load_rows(w + 32, row_bytes, high);
    vi_load_rows(w + 40, row_bytes, end);
    vi32 d_low = vi_or(bits(end[2], 12, 4), vi_shl(bits(end[2], 28, 4), 4));
    vi32 d_high = vi_or(bits(end[3], 12, 4), vi_shl(bits(end[3], 28, 4), 4));
    vf32 d = vf_mul(vi_f16_to_f32(vi_or(d_low, vi_shl(d_high, 8))), vf_set1(0.125f));
    UNROLL for (int k = 0; k < 8; k++) {
        span s;
        UNROLL for (int h = 0; h < 2; h++)
            s.scale[h] = odd_step(d, bits(end[2 + k / 4], k / 2 % 2 * 16 + 3 * (k % 2 * 2 + h), 3));
        UNROLL for (int l = 0; l < 4; l++) { /* 3 bits of grid row, the sign of the shift */
            vi32 nibble = vi_shr(high[k / 2], 16 * (k % 2) + 4 * l);
            vi32 index = vi_or(bits(q[k], 8 * l, 8), vi_shl(bits(nibble, 0, 3), 8));
            shifted_codes(index, nibble, 3, &s.code[2 * l]);
        }
        put(out, &s);
    }
}
LINEAR_TYPE(iq1_m, KVQ_LINEAR_OFFSET16, 4, 256)
