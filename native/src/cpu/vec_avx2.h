/* vec.h for AVX2, FMA, F16C. The operations' meanings stand in vec_scalar.h. */
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
VEC_INLINE vf32 vf_sqrt(vf32 a) {
    return _mm256_sqrt_ps(a);
}
VEC_INLINE vf32 vf_fma(vf32 a, vf32 b, vf32 c) {
    return _mm256_fmadd_ps(a, b, c);
}
VEC_INLINE vf32 vf_abs(vf32 a) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
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
VEC_INLINE bool vf_any_less(vf32 a, vf32 b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)) != 0;
}
VEC_INLINE vf32 vf_round(vf32 a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VEC_INLINE vf32 vf_swap(vf32 a, const int n) {
    return n == 1 ? _mm256_permute_ps(a, 0xb1) : n == 2 ? _mm256_permute_ps(a, 0x4e) : _mm256_permute2f128_ps(a, a, 1);
}
VEC_INLINE void vf_store_split(vf32 a, uint32_t mask, float *ones, float *zeros) {
    float x[8];
    _mm256_storeu_ps(x, a);
    for (int i = 0; i < 8; i++)
        *(mask >> i & 1 ? ones++ : zeros++) = x[i];
}
VEC_INLINE vf32 vf_load_merged(uint32_t mask, const float *ones, const float *zeros) {
    float x[8];
    for (int i = 0; i < 8; i++)
        x[i] = *(mask >> i & 1 ? ones++ : zeros++);
    return _mm256_loadu_ps(x);
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

VEC_INLINE vi32 vi_load(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
VEC_INLINE void vi_store(void *p, vi32 a) {
    _mm256_storeu_si256((__m256i *)p, a);
}
VEC_INLINE vi32 vi_load1(const void *p) {
    int32_t a;
    memcpy(&a, p, 4);
    return _mm256_set1_epi32(a);
}
VEC_INLINE vi32 vi_load_u8(const uint8_t *p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}
VEC_INLINE vi32 vi_set1(int32_t a) {
    return _mm256_set1_epi32(a);
}
VEC_INLINE vi32 vi_and(vi32 a, vi32 b) {
    return _mm256_and_si256(a, b);
}
VEC_INLINE vi32 vi_or(vi32 a, vi32 b) {
    return _mm256_or_si256(a, b);
}
VEC_INLINE vi32 vi_xor(vi32 a, vi32 b) {
    return _mm256_xor_si256(a, b);
}
VEC_INLINE vi32 vi_add(vi32 a, vi32 b) {
    return _mm256_add_epi32(a, b);
}
VEC_INLINE vi32 vi_sub(vi32 a, vi32 b) {
    return _mm256_sub_epi32(a, b);
}
VEC_INLINE vi32 vi_mul(vi32 a, vi32 b) {
    return _mm256_mullo_epi32(a, b);
}
VEC_INLINE vi32 vi_max(vi32 a, vi32 b) {
    return _mm256_max_epi32(a, b);
}
VEC_INLINE vi32 vi_shl(vi32 a, int n) { /* the operators take constants and variables */
    return (vi32)((__v8su)a << n);
}
VEC_INLINE vi32 vi_shr(vi32 a, int n) {
    return (vi32)((__v8su)a >> n);
}
VEC_INLINE vi32 vi_sar(vi32 a, int n) {
    return (vi32)((__v8si)a >> n);
}
VEC_INLINE vi32 vi_sub8(vi32 a, vi32 b) {
    return _mm256_sub_epi8(a, b);
}
VEC_INLINE int32_t vi_reduce_add(vi32 a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 1);
}
VEC_INLINE int32_t vi_reduce_max(vi32 a) {
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_max_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 1)));
}
VEC_INLINE void vi_store_i8(int8_t *p, vi32 a) {
    __m128i s = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(s, s));
}
VEC_INLINE vi32 vi_from_f32(vf32 a) {
    return _mm256_cvtps_epi32(a);
}
VEC_INLINE vf32 vi_to_f32(vi32 a) {
    return _mm256_cvtepi32_ps(a);
}
VEC_INLINE vi32 vi_from_bits(vf32 a) {
    return _mm256_castps_si256(a);
}
VEC_INLINE vf32 vi_to_bits(vi32 a) {
    return _mm256_castsi256_ps(a);
}
VEC_INLINE vf32 vi_f16_to_f32(vi32 a) {
    a = _mm256_and_si256(a, _mm256_set1_epi32(0xffff));
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
}
VEC_INLINE vi32 vi_lookup16(const uint8_t *bytes, vi32 index) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes)), index);
}
VEC_INLINE vf32 vf_pick(const float *x, uint32_t n, vi32 index) {
    return _mm256_i32gather_ps(x, index, 4);
}
VEC_INLINE vi32 vi_gather(const void *table, vi32 index) {
    return _mm256_i32gather_epi32(table, index, 4);
}
VEC_INLINE __m256i vec_load2x16(const uint8_t *p, size_t stride) { /* 16 bytes each of rows 0 and 4 */
    __m256i a = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)p));
    return _mm256_inserti128_si256(a, _mm_loadu_si128((const __m128i *)(p + 4 * stride)), 1);
}
VEC_INLINE void vi_load_rows(const uint8_t *p, size_t stride, vi32 c[4]) {
    __m256i r0 = vec_load2x16(p, stride), r1 = vec_load2x16(p + stride, stride);
    __m256i r2 = vec_load2x16(p + 2 * stride, stride), r3 = vec_load2x16(p + 3 * stride, stride);
    __m256i low01 = _mm256_unpacklo_epi32(r0, r1), high01 = _mm256_unpackhi_epi32(r0, r1);
    __m256i low23 = _mm256_unpacklo_epi32(r2, r3), high23 = _mm256_unpackhi_epi32(r2, r3);
    c[0] = _mm256_unpacklo_epi64(low01, low23);
    c[1] = _mm256_unpackhi_epi64(low01, low23);
    c[2] = _mm256_unpacklo_epi64(high01, high23);
    c[3] = _mm256_unpackhi_epi64(high01, high23);
}
VEC_INLINE vi32 vi_dot(vi32 acc, vi32 w, vi32 x) { /* pairs of products are below 2^15: nothing saturates */
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
#define VI_WIDE_OFFSET 0
VEC_INLINE vi32 vi_dot_wide(vi32 acc, vi32 w, vi32 x) { /* |w| <= 128 and |x| <= 127, as above */
    return vi_dot(acc, _mm256_sign_epi8(w, w), _mm256_sign_epi8(x, w));
}
