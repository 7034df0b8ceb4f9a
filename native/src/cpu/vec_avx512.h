/* vec.h for AVX-512 F, BW, DQ, VL, VNNI. The operations' meanings stand in vec_scalar.h. */
#include <immintrin.h>

#define VF 16

typedef __m512 vf32;
typedef __m512i vi32;

VEC_INLINE __mmask16 vec_mask(size_t n) {
    return (__mmask16)((1u << n) - 1);
}
VEC_INLINE vf32 vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
VEC_INLINE void vf_store(float *p, vf32 a) {
    _mm512_storeu_ps(p, a);
}
VEC_INLINE vf32 vf_load_n(const float *p, size_t n) {
    return _mm512_maskz_loadu_ps(vec_mask(n), p);
}
VEC_INLINE void vf_store_n(float *p, vf32 a, size_t n) {
    _mm512_mask_storeu_ps(p, vec_mask(n), a);
}
VEC_INLINE vf32 vf_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
VEC_INLINE void vf_store_f16(uint16_t *p, vf32 a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC_INLINE vf32 vf_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

VEC_INLINE vf32 vf_zero(void) {
    return _mm512_setzero_ps();
}
VEC_INLINE vf32 vf_set1(float a) {
    return _mm512_set1_ps(a);
}
VEC_INLINE vf32 vf_add(vf32 a, vf32 b) {
    return _mm512_add_ps(a, b);
}
VEC_INLINE vf32 vf_sub(vf32 a, vf32 b) {
    return _mm512_sub_ps(a, b);
}
VEC_INLINE vf32 vf_mul(vf32 a, vf32 b) {
    return _mm512_mul_ps(a, b);
}
VEC_INLINE vf32 vf_div(vf32 a, vf32 b) {
    return _mm512_div_ps(a, b);
}
VEC_INLINE vf32 vf_sqrt(vf32 a) {
    return _mm512_sqrt_ps(a);
}
VEC_INLINE vf32 vf_fma(vf32 a, vf32 b, vf32 c) {
    return _mm512_fmadd_ps(a, b, c);
}
VEC_INLINE vf32 vf_abs(vf32 a) {
    return _mm512_abs_ps(a);
}
VEC_INLINE vf32 vf_max(vf32 a, vf32 b) {
    return _mm512_max_ps(a, b);
}
VEC_INLINE vf32 vf_min(vf32 a, vf32 b) {
    return _mm512_min_ps(a, b);
}
VEC_INLINE vf32 vf_select_less(vf32 a, vf32 b, vf32 x, vf32 y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
VEC_INLINE bool vf_any_less(vf32 a, vf32 b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0;
}
VEC_INLINE vf32 vf_round(vf32 a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VEC_INLINE vf32 vf_swap(vf32 a, const int n) {
    return n == 1   ? _mm512_permute_ps(a, 0xb1)
           : n == 2 ? _mm512_permute_ps(a, 0x4e)
           : n == 4 ? _mm512_shuffle_f32x4(a, a, 0xb1)
                    : _mm512_shuffle_f32x4(a, a, 0x4e);
}
VEC_INLINE void vf_store_split(vf32 a, uint32_t mask, float *ones, float *zeros) {
    _mm512_storeu_ps(ones, _mm512_maskz_compress_ps((__mmask16)mask, a));
    _mm512_storeu_ps(zeros, _mm512_maskz_compress_ps((__mmask16)~mask, a));
}
VEC_INLINE vf32 vf_load_merged(uint32_t mask, const float *ones, const float *zeros) {
    __m512 a = _mm512_maskz_expand_ps((__mmask16)~mask, _mm512_loadu_ps(zeros));
    return _mm512_mask_expand_ps(a, (__mmask16)mask, _mm512_loadu_ps(ones));
}
VEC_INLINE float vf_reduce_add(vf32 a) {
    return _mm512_reduce_add_ps(a);
}
VEC_INLINE float vf_reduce_max(vf32 a) {
    return _mm512_reduce_max_ps(a);
}
VEC_INLINE vf32 vf_pow2(vf32 n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}

VEC_INLINE vi32 vi_load(const void *p) {
    return _mm512_loadu_si512(p);
}
VEC_INLINE void vi_store(void *p, vi32 a) {
    _mm512_storeu_si512(p, a);
}
VEC_INLINE vi32 vi_load1(const void *p) {
    int32_t a;
    memcpy(&a, p, 4);
    return _mm512_set1_epi32(a);
}
VEC_INLINE vi32 vi_load_u8(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}
VEC_INLINE vi32 vi_set1(int32_t a) {
    return _mm512_set1_epi32(a);
}
VEC_INLINE vi32 vi_and(vi32 a, vi32 b) {
    return _mm512_and_si512(a, b);
}
VEC_INLINE vi32 vi_or(vi32 a, vi32 b) {
    return _mm512_or_si512(a, b);
}
VEC_INLINE vi32 vi_xor(vi32 a, vi32 b) {
    return _mm512_xor_si512(a, b);
}
VEC_INLINE vi32 vi_add(vi32 a, vi32 b) {
    return _mm512_add_epi32(a, b);
}
VEC_INLINE vi32 vi_sub(vi32 a, vi32 b) {
    return _mm512_sub_epi32(a, b);
}
VEC_INLINE vi32 vi_mul(vi32 a, vi32 b) {
    return _mm512_mullo_epi32(a, b);
}
VEC_INLINE vi32 vi_max(vi32 a, vi32 b) {
    return _mm512_max_epi32(a, b);
}
VEC_INLINE vi32 vi_shl(vi32 a, int n) { /* the operators take constants and variables */
    return (vi32)((__v16su)a << n);
}
VEC_INLINE vi32 vi_shr(vi32 a, int n) {
    return (vi32)((__v16su)a >> n);
}
VEC_INLINE vi32 vi_sar(vi32 a, int n) {
    return (vi32)((__v16si)a >> n);
}
VEC_INLINE vi32 vi_sub8(vi32 a, vi32 b) {
    return _mm512_sub_epi8(a, b);
}
VEC_INLINE int32_t vi_reduce_add(vi32 a) {
    return _mm512_reduce_add_epi32(a);
}
VEC_INLINE int32_t vi_reduce_max(vi32 a) {
    return _mm512_reduce_max_epi32(a);
}
VEC_INLINE void vi_store_i8(int8_t *p, vi32 a) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a));
}
VEC_INLINE vi32 vi_from_f32(vf32 a) {
    return _mm512_cvtps_epi32(a);
}
VEC_INLINE vf32 vi_to_f32(vi32 a) {
    return _mm512_cvtepi32_ps(a);
}
VEC_INLINE vi32 vi_from_bits(vf32 a) {
    return _mm512_castps_si512(a);
}
VEC_INLINE vf32 vi_to_bits(vi32 a) {
    return _mm512_castsi512_ps(a);
}
VEC_INLINE vf32 vi_f16_to_f32(vi32 a) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a));
}
VEC_INLINE vi32 vi_lookup16(const uint8_t *bytes, vi32 index) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)bytes)), index);
}
VEC_INLINE vf32 vf_pick(const float *x, uint32_t n, vi32 index) {
    __m512 y = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += 32) {
        __m512 high = _mm512_loadu_ps(x + (i + 16 < n ? i + 16 : i));
        __mmask16 here = _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32((int)i));
        y = _mm512_mask_mov_ps(y, here, _mm512_permutex2var_ps(_mm512_loadu_ps(x + i), index, high));
    }
    return y;
}
VEC_INLINE vi32 vi_gather(const void *table, vi32 index) {
    return _mm512_i32gather_epi32(index, table, 4);
}
VEC_INLINE __m512i vec_load4x16(const uint8_t *p, size_t stride) { /* 16 bytes each of rows 0, 4, 8, 12 */
    __m512i a = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)p));
    a = _mm512_inserti32x4(a, _mm_loadu_si128((const __m128i *)(p + 4 * stride)), 1);
    a = _mm512_inserti32x4(a, _mm_loadu_si128((const __m128i *)(p + 8 * stride)), 2);
    return _mm512_inserti32x4(a, _mm_loadu_si128((const __m128i *)(p + 12 * stride)), 3);
}
VEC_INLINE void vi_load_rows(const uint8_t *p, size_t stride, vi32 c[4]) {
    __m512i r0 = vec_load4x16(p, stride), r1 = vec_load4x16(p + stride, stride);
    __m512i r2 = vec_load4x16(p + 2 * stride, stride), r3 = vec_load4x16(p + 3 * stride, stride);
    __m512i low01 = _mm512_unpacklo_epi32(r0, r1), high01 = _mm512_unpackhi_epi32(r0, r1);
    __m512i low23 = _mm512_unpacklo_epi32(r2, r3), high23 = _mm512_unpackhi_epi32(r2, r3);
    c[0] = _mm512_unpacklo_epi64(low01, low23);
    c[1] = _mm512_unpackhi_epi64(low01, low23);
    c[2] = _mm512_unpacklo_epi64(high01, high23);
    c[3] = _mm512_unpackhi_epi64(high01, high23);
}
VEC_INLINE vi32 vi_dot(vi32 acc, vi32 w, vi32 x) {
    return _mm512_dpbusd_epi32(acc, w, x);
}
#define VI_WIDE_OFFSET 128
VEC_INLINE vi32 vi_dot_wide(vi32 acc, vi32 w, vi32 x) {
    return _mm512_dpbusd_epi32(acc, w, x);
}
