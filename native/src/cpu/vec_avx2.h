/* vec.h for AVX2, FMA, F16C. The operations' meanings stand in vec_scalar.h. */
/* clang-format off: one operation a line */
#include <immintrin.h>

#define VF 8

typedef __m256 vf32;
typedef __m256i vi32;

VEC_INLINE __m256i vec_mask(size_t n) { /* lanes below n all ones */
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VEC_INLINE vf32 vf_load(const float *p) {
    return _mm256_loadu_ps(p);
}
VEC_INLINE void vf_store(float *p, vf32 a) {
    _mm256_storeu_ps(p, a);
}
VEC_INLINE vf32 vf_load_n(const float *p, size_t n) {
    return _mm256_maskload_ps(p, vec_mask(n));
}
VEC_INLINE void vf_store_n(float *p, vf32 a, size_t n) {
    _mm256_maskstore_ps(p, vec_mask(n), a);
}
VEC_INLINE vf32 vf_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
VEC_INLINE void vf_store_f16(uint16_t *p, vf32 a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC_INLINE vf32 vf_load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

VEC_INLINE vf32 vf_zero(void) {
    return _mm256_setzero_ps();
}
VEC_INLINE vf32 vf_set1(float a) {
    return _mm256_set1_ps(a);
}
VEC_INLINE vf32 vf_add(vf32 a, vf32 b) {
    return _mm256_add_ps(a, b);
}
VEC_INLINE vf32 vf_sub(vf32 a, vf32 b) {
    return _mm256_sub_ps(a, b);
}
VEC_INLINE vf32 vf_mul(vf32 a, vf32 b) {
    return _mm256_mul_ps(a, b);
}
VEC_INLINE vf32 vf_div(vf32 a, vf32 b) {
    return _mm256_div_ps(a, b);
}
VEC_INLINE vf32 vf_fma(vf32 a, vf32 b, vf32 c) {
    return _mm256_fmadd_ps(a, b, c);
}
VEC_INLINE vf32 vf_max(vf32 a, vf32 b) {
    return _mm256_max_ps(a, b);
}
VEC_INLINE vf32 vf_min(vf32 a, vf32 b) {
    return _mm256_min_ps(a, b);
}
VEC_INLINE vf32 vf_select_less(vf32 a, vf32 b, vf32 x, vf32 y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
VEC_INLINE vf32 vf_round(vf32 a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VEC_INLINE float vf_reduce_add(vf32 a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
VEC_INLINE float vf_reduce_max(vf32 a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
VEC_INLINE vf32 vf_pow2(vf32 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
