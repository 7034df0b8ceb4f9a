/* vec.h for plain C: one lane. */
/* clang-format off: one operation a line */
#define VF 1

typedef float vf32;
typedef int32_t vi32;

VEC_INLINE vf32 vf_load(const float *p) {
    return *p;
}
VEC_INLINE void vf_store(float *p, vf32 a) {
    *p = a;
}
VEC_INLINE vf32 vf_load_n(const float *p, size_t n) {
    return n ? *p : 0;
} /* n < VF; other lanes are 0 */
VEC_INLINE void vf_store_n(float *p, vf32 a, size_t n) {
    if (n)
        *p = a;
}
VEC_INLINE vf32 vf_load_f16(const uint16_t *p) {
    return kvq_f16_to_f32(*p);
}
VEC_INLINE void vf_store_f16(uint16_t *p, vf32 a) {
    *p = kvq_f32_to_f16(a);
}
VEC_INLINE vf32 vf_load_bf16(const uint16_t *p) {
    return kvq_bf16_to_f32(*p);
}

VEC_INLINE vf32 vf_zero(void) {
    return 0;
}
VEC_INLINE vf32 vf_set1(float a) {
    return a;
}
VEC_INLINE vf32 vf_add(vf32 a, vf32 b) {
    return a + b;
}
VEC_INLINE vf32 vf_sub(vf32 a, vf32 b) {
    return a - b;
}
VEC_INLINE vf32 vf_mul(vf32 a, vf32 b) {
    return a * b;
}
VEC_INLINE vf32 vf_div(vf32 a, vf32 b) {
    return a / b;
}
VEC_INLINE vf32 vf_fma(vf32 a, vf32 b, vf32 c) {
    return fmaf(a, b, c);
} /* a b + c, rounded once */
VEC_INLINE vf32 vf_max(vf32 a, vf32 b) {
    return a > b ? a : b;
} /* b if either is NaN */
VEC_INLINE vf32 vf_min(vf32 a, vf32 b) {
    return a < b ? a : b;
}
VEC_INLINE vf32 vf_select_less(vf32 a, vf32 b, vf32 x, vf32 y) { return a < b ? x : y; } /* a < b ? x : y */
VEC_INLINE vf32 vf_round(vf32 a) {
    return rintf(a);
} /* to nearest even */
VEC_INLINE float vf_reduce_add(vf32 a) {
    return a;
}
VEC_INLINE float vf_reduce_max(vf32 a) {
    return a;
}
/* 2^n for integral n from -127 (which gives 0) to 127 */
VEC_INLINE vf32 vf_pow2(vf32 n) {
    return n == n ? kvq_f32_from_bits((uint32_t)((int32_t)n + 127) << 23) : n;
}
