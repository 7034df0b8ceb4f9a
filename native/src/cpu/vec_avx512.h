/* vec.h for AVX-512 F, BW, DQ, VL, VNNI. The operations' meanings stand in vec_scalar.h. */
/* clang-format off: one operation a line */
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
VEC_INLINE vf32 vf_fma(vf32 a, vf32 b, vf32 c) {
    return _mm512_fmadd_ps(a, b, c);
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
VEC_INLINE vf32 vf_round(vf32 a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
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
