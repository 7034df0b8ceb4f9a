/*
 * Weight types with blocks of 32 (NVFP4: 64) columns. 16 bytes of codes hold columns 0..15 in their low and 16..31 in their
 * high nibbles, so a transposed dword c is two codes: columns 4 c.. and 16 + 4 c...
 */
#include "cpu/kernels/linear.h"

VEC_INLINE void nibbles(const vi32 q[4], vi32 code[8]) {
    UNROLL for (int c = 0; c < 4; c++) {
        code[c] = byte_bits(q[c], 0, 4, 0);
        code[c + 4] = byte_bits(q[c], 4, 4, 0);
    }
}

VEC_INLINE void q4_0(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 head[4], q[4];
    span s;
    vi_load_rows(w, row_bytes, head);
    vi_load_rows(w + 2, row_bytes, q);
    s.scale[0] = vi_f16_to_f32(head[0]);
    nibbles(q, s.code);
    put(out, &s);
}
LINEAR_TYPE(q4_0, KVQ_LINEAR_OFFSET32, 3, 32)

VEC_INLINE void q4_1(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 head[4], q[4];
    span s;
    vi_load_rows(w, row_bytes, head);
    vi_load_rows(w + 4, row_bytes, q);
    s.scale[0] = vi_f16_to_f32(head[0]);
    s.min[0] = vi_f16_to_f32(vi_shr(head[0], 16));
    nibbles(q, s.code);
    put(out, &s);
}
LINEAR_TYPE(q4_1, KVQ_LINEAR_MIN32, 0, 32)

VEC_INLINE void q5_0(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 head[4], q[4];
    span s;
    vi_load_rows(w, row_bytes, head);
    s.scale[0] = vi_f16_to_f32(head[0]);
    vi32 high = vi_or(vi_shr(head[0], 16), vi_shl(head[1], 16)); /* bytes 2 to 5 */
    vi_load_rows(w + 6, row_bytes, q);
    nibbles(q, s.code);
    UNROLL for (int c = 0; c < 8; c++) s.code[c] = vi_or(s.code[c], spread_bits(high, 4 * c, 4));
    put(out, &s);
}
LINEAR_TYPE(q5_0, KVQ_LINEAR_OFFSET32, 4, 32)

VEC_INLINE void q5_1(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 head[4], q[4];
    span s;
    vi_load_rows(w, row_bytes, head);
    s.scale[0] = vi_f16_to_f32(head[0]);
    s.min[0] = vi_f16_to_f32(vi_shr(head[0], 16));
    vi_load_rows(w + 8, row_bytes, q);
    nibbles(q, s.code);
    UNROLL for (int c = 0; c < 8; c++) s.code[c] = vi_or(s.code[c], spread_bits(head[1], 4 * c, 4));
    put(out, &s);
}
LINEAR_TYPE(q5_1, KVQ_LINEAR_MIN32, 0, 32)

VEC_INLINE void q8_0(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 head[4];
    span s;
    vi_load_rows(w, row_bytes, head);
    s.scale[0] = vi_f16_to_f32(head[0]);
    load_rows_32(w + 2, row_bytes, s.code);
    UNROLL for (int c = 0; c < 8; c++) s.code[c] = wide(s.code[c]);
    put(out, &s);
}
LINEAR_TYPE(q8_0, KVQ_LINEAR_WIDE32, 0, 32)

VEC_INLINE void iq4(const uint8_t *qs, size_t row_bytes, vf32 scale, sink *out) {
    vi32 q[4];
    span s;
    s.scale[0] = scale;
    vi_load_rows(qs, row_bytes, q);
    nibbles(q, s.code);
    UNROLL for (int c = 0; c < 8; c++) s.code[c] = wide(vi_lookup16((const uint8_t *)kvq_iq4_values, s.code[c]));
    put(out, &s);
}

VEC_INLINE void iq4_nl(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 head[4];
    vi_load_rows(w, row_bytes, head);
    iq4(w + 2, row_bytes, vi_f16_to_f32(head[0]), out);
}
LINEAR_TYPE(iq4_nl, KVQ_LINEAR_WIDE32, 0, 32)

VEC_INLINE void iq4_xs(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 head[4]; /* d, scales_h; scales_l */
    vi_load_rows(w, row_bytes, head);
    vf32 d = vi_f16_to_f32(head[0]);
    UNROLL for (int g = 0; g < 8; g++) {
        vi32 scale = vi_or(bits(head[1], 4 * g, 4), vi_shl(bits(head[0], 16 + 2 * g, 2), 4));
        iq4(w + 8 + 16 * g, row_bytes, vf_mul(d, vi_to_f32(vi_add(scale, vi_set1(-32)))), out);
    }
}
LINEAR_TYPE(iq4_xs, KVQ_LINEAR_WIDE32, 0, 256)

/* doubled e2m1 + 16 */
VEC_INLINE vi32 fp4_codes(vi32 index) {
    return vi_sub8(vi_lookup16((const uint8_t *)kvq_fp4_values, index), vi_set1((int32_t)0xf0f0f0f0));
}

VEC_INLINE void mxfp4(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 head[4], q[4];
    span s;
    vi_load_rows(w, row_bytes, head);
    vi_load_rows(w + 1, row_bytes, q);
    /* half of 2^(e - 127) as a product of two normal floats, as it may be subnormal */
    vi32 e = bits(head[0], 0, 8), a = vi_shr(e, 1), b = vi_add(vi_shr(vi_add(e, vi_set1(1)), 1), vi_set1(63));
    s.scale[0] = vf_mul(vi_to_bits(vi_shl(vi_add(a, vi_set1(63)), 23)), vi_to_bits(vi_shl(b, 23)));
    nibbles(q, s.code);
    UNROLL for (int c = 0; c < 8; c++) s.code[c] = fp4_codes(s.code[c]);
    put(out, &s);
}
LINEAR_TYPE(mxfp4, KVQ_LINEAR_OFFSET32, 4, 32)

/* Half of the e4m3 number in byte n, whose sign does not count; 0x7f counts as 0. */
VEC_INLINE vf32 half_of_e4m3(vi32 a, int n) {
    vi32 byte = bits(a, 8 * n, 8);
    vi32 is_7f = vi_sar(vi_add(vi_xor(byte, vi_set1(0x7f)), vi_set1(-1)), 31);
    vi32 number = vi_and(vi_and(byte, vi_set1(0x7f)), vi_xor(is_7f, vi_set1(-1)));
    return vf_mul(vi_to_bits(vi_shl(number, 20)), vf_set1(0x1p119f)); /* subnormal ones too are exact */
}

VEC_INLINE void nvfp4(const uint8_t *w, size_t row_bytes, sink *out) {
    vi32 head[4], q[8];
    vi_load_rows(w, row_bytes, head);
    load_rows_32(w + 4, row_bytes, q);
    UNROLL for (int k = 0; k < 2; k++) {
        span s;
        UNROLL for (int h = 0; h < 2; h++) { /* 8 bytes are 16 columns */
            s.scale[h] = half_of_e4m3(head[0], 2 * k + h);
            UNROLL for (int c = 0; c < 4; c++)
                s.code[4 * h + c] = fp4_codes(byte_bits(q[4 * k + 2 * h + c % 2], c / 2 * 4, 4, 0));
        }
        put(out, &s);
    }
}
LINEAR_TYPE(nvfp4, KVQ_LINEAR_OFFSET16, 4, 64)
