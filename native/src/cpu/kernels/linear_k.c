/*
 * K-quants and ternary types: blocks of 256 columns, whose scales (and minima) are small integers that are unpacked for all
 * rows of the panel at once, a byte of a lane each.
 */
#include "cpu/kernels/linear.h"

/* The 16 bytes before the codes of q4_k and q5_k. */
typedef struct k_head {
    vf32 d, minus_dmin;
    vi32 scale[2], min[2]; /* of groups 0..3 and 4..7, in bytes */
} k_head;

VEC_INLINE k_head load_k_head(const uint8_t *w, size_t row_bytes) {
    vi32 c[4];
    vi_load_rows(w, row_bytes, c);
    k_head h;
    h.d = vi_f16_to_f32(c[0]);
    h.minus_dmin = vf_sub(vf_zero(), vi_f16_to_f32(vi_shr(c[0], 16)));
    h.scale[0] = byte_bits(c[1], 0, 6, 0);
    h.min[0] = byte_bits(c[2], 0, 6, 0);
    h.scale[1] = vi_or(byte_bits(c[3], 0, 4, 0), byte_bits(c[1], 6, 2, 4));
    h.min[1] = vi_or(byte_bits(c[3], 4, 4, 0), byte_bits(c[2], 6, 2, 4));
    return h;
}

VEC_INLINE void k_scale_min(const k_head *head, int g, span *s) {
    s->scale[0] = vf_mul(head->d, byte_to_f32(head->scale[g / 4], g % 4));
    s->min[0] = vf_mul(head->minus_dmin, byte_to_f32(head->min[g / 4], g % 4));
}

VEC_INLINE void q4_k(const uint8_t *w, size_t row_bytes, sink *out) {
    k_head head = load_k_head(w, row_bytes);
    UNROLL for (int pair = 0; pair < 4; pair++) {
        vi32 q[8];
        load_rows_32(w + 16 + 32 * pair, row_bytes, q);
        UNROLL for (int i = 0; i < 2; i++) {
            span s;
            k_scale_min(&head, 2 * pair + i, &s);
            UNROLL for (int c = 0; c < 8; c++) s.code[c] = byte_bits(q[c], 4 * i, 4, 0);
            put(out, &s);
        }
    }
}
LINEAR_TYPE(q4_k, KVQ_LINEAR_MIN32, 0, 256)

VEC_INLINE void q5_k(const uint8_t *w, size_t row_bytes, sink *out) {
    k_head head = load_k_head(w, row_bytes);
    vi32 high[8];
    load_rows_32(w + 16, row_bytes, high);
    UNROLL for (int pair = 0; pair < 4; pair++) {
        vi32 q[8];
        load_rows_32(w + 48 + 32 * pair, row_bytes, q);
        UNROLL for (int i = 0; i < 2; i++) {
            span s;
            k_scale_min(&head, 2 * pair + i, &s);
            UNROLL for (int c = 0; c < 8; c++)
                s.code[c] = vi_or(byte_bits(q[c], 4 * i, 4, 0), byte_bits(high[c], 2 * pair + i, 1, 4));
            put(out, &s);
        }
    }
}
LINEAR_TYPE(q5_k, KVQ_LINEAR_MIN32, 0, 256)

VEC_INLINE void q6_k(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 scales[4], end[4];
    vi_load_rows(w + 192, row_bytes, scales);
    vi_load_rows(w + 194, row_bytes, end);
    vf32 d = vi_f16_to_f32(vi_shr(end[3], 16));
    UNROLL for (int half = 0; half < 2; half++) {
        vi32 low[16], high[8];
        load_rows_32(w + 64 * half, row_bytes, low);
        load_rows_32(w + 64 * half + 32, row_bytes, low + 8);
        load_rows_32(w + 128 + 32 * half, row_bytes, high);
        UNROLL for (int k = 0; k < 4; k++) {
            span s;
            UNROLL for (int h = 0; h < 2; h++) {
                vi32 scale = vi_sar(vi_shl(scales[2 * half + k / 2], 24 - 8 * (k % 2 * 2 + h)), 24);
                s.scale[h] = vf_mul(d, vi_to_f32(scale));
            }
            UNROLL for (int c = 0; c < 8; c++)
                s.code[c] = vi_or(byte_bits(low[k % 2 * 8 + c], k / 2 * 4, 4, 0), byte_bits(high[c], 2 * k, 2, 4));
            put(out, &s);
        }
    }
}
LINEAR_TYPE(q6_k, KVQ_LINEAR_OFFSET16, 5, 256)

VEC_INLINE void q3_k(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 high[8], before[4], end[4], scales[4];
    load_rows_32(w, row_bytes, high);
    vi_load_rows(w + 92, row_bytes, before); /* the 12 bytes of scales, from before[1] on */
    vi_load_rows(w + 94, row_bytes, end);
    vf32 d = vi_f16_to_f32(vi_shr(end[3], 16));
    UNROLL for (int i = 0; i < 4; i++)
        scales[i] = vi_or(byte_bits(before[1 + i % 2], i / 2 * 4, 4, 0), byte_bits(before[3], 2 * i, 2, 4));
    UNROLL for (int half = 0; half < 2; half++) {
        vi32 q[8];
        load_rows_32(w + 32 + 32 * half, row_bytes, q);
        UNROLL for (int k = 0; k < 4; k++) {
            span s;
            UNROLL for (int h = 0; h < 2; h++) {
                vf32 scale = byte_to_f32(scales[2 * half + k / 2], k % 2 * 2 + h);
                s.scale[h] = vf_mul(d, vf_sub(scale, vf_set1(32)));
            }
            UNROLL for (int c = 0; c < 8; c++)
                s.code[c] = vi_or(byte_bits(q[c], 2 * k, 2, 0), byte_bits(high[c], 4 * half + k, 1, 2));
            put(out, &s);
        }
    }
}
LINEAR_TYPE(q3_k, KVQ_LINEAR_OFFSET16, 2, 256)

VEC_INLINE void q2_k(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 scales[4], end[4];
    vi_load_rows(w, row_bytes, scales);
    vi_load_rows(w + 68, row_bytes, end);
    vf32 d = vi_f16_to_f32(end[3]), minus_dmin = vf_sub(vf_zero(), vi_f16_to_f32(vi_shr(end[3], 16)));
    UNROLL for (int half = 0; half < 2; half++) {
        vi32 q[8];
        load_rows_32(w + 16 + 32 * half, row_bytes, q);
        UNROLL for (int k = 0; k < 4; k++) {
            span s;
            UNROLL for (int h = 0; h < 2; h++) {
                vi32 both = vi_shr(scales[2 * half + k / 2], 8 * (k % 2 * 2 + h));
                s.scale[h] = vf_mul(d, vi_to_f32(bits(both, 0, 4)));
                s.min[h] = vf_mul(minus_dmin, vi_to_f32(bits(both, 4, 4)));
            }
            UNROLL for (int c = 0; c < 8; c++) s.code[c] = byte_bits(q[c], 2 * k, 2, 0);
            put(out, &s);
        }
    }
}
LINEAR_TYPE(q2_k, KVQ_LINEAR_MIN16, 0, 256)

VEC_INLINE void tq2_0(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 end[4];
    span s;
    vi_load_rows(w + 50, row_bytes, end);
    s.scale[0] = vi_f16_to_f32(vi_shr(end[3], 16));
    UNROLL for (int half = 0; half < 2; half++) {
        vi32 q[8];
        load_rows_32(w + 32 * half, row_bytes, q);
        UNROLL for (int k = 0; k < 4; k++) {
            UNROLL for (int c = 0; c < 8; c++) s.code[c] = byte_bits(q[c], 2 * k, 2, 0);
            put(out, &s);
        }
    }
}
LINEAR_TYPE(tq2_0, KVQ_LINEAR_OFFSET32, 0, 256)

/* Trit k of each byte, a fraction of 256 in base 3: (byte * 3^k mod 256) * 3 / 256. Bytes in pairs, with room for products.
 */
VEC_INLINE vi32 trits(vi32 a, int k) {
    static const int power[5] = {1, 3, 9, 27, 81};
    vi32 result = vi_set1(0);
    UNROLL for (int odd = 0; odd < 2; odd++) {
        vi32 mask = vi_set1(0x00ff00ff);
        vi32 fraction = vi_and(vi_mul(vi_and(vi_shr(a, 8 * odd), mask), vi_set1(power[k])), mask);
        vi32 trit = vi_and(vi_shr(vi_mul(fraction, vi_set1(3)), 8), mask);
        result = vi_or(result, vi_shl(trit, 8 * odd));
    }
    return result;
}

VEC_INLINE void tq1_0(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 q[12], end[4];
    span s;
    load_rows_32(w, row_bytes, q);
    vi_load_rows(w + 32, row_bytes, q + 8);
    vi_load_rows(w + 38, row_bytes, end); /* bytes 48 to 53 are 4 of trits and d */
    vi32 last = vi_or(vi_shr(end[2], 16), vi_shl(end[3], 16));
    s.scale[0] = vi_f16_to_f32(vi_shr(end[3], 16));
    UNROLL for (int k = 0; k < 5; k++) { /* trit k of 32 bytes */
        UNROLL for (int c = 0; c < 8; c++) s.code[c] = trits(q[c], k);
        put(out, &s);
    }
    UNROLL for (int k = 0; k < 6; k += 2) { /* trits k and k + 1 of 16 bytes; in place of trit 5, 4 trits of 4 bytes */
        UNROLL for (int c = 0; c < 4; c++) {
            s.code[c] = trits(q[8 + c], k);
            s.code[4 + c] = k < 4 ? trits(q[8 + c], k + 1) : trits(last, c);
        }
        put(out, &s);
    }
}
LINEAR_TYPE(tq1_0, KVQ_LINEAR_OFFSET32, 0, 256)
