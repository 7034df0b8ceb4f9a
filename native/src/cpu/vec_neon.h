/* vec.h for AArch64 with the dot product extension. The operations' meanings stand in vec_scalar.h. */
/* clang-format off: one operation a line */
#include <arm_neon.h>

#define VF 4

typedef float32x4_t vf32;
typedef int32x4_t vi32;

VEC_INLINE vf32 vf_load(const float *p) {
    return vld1q_f32(p);
}
VEC_INLINE void vf_store(float *p, vf32 a) {
    vst1q_f32(p, a);
}
VEC_INLINE vf32 vf_load_n(const float *p, size_t n) {
    float x[4] = {0, 0, 0, 0};
    memcpy(x, p, n * sizeof *x);
    return vld1q_f32(x);
}
VEC_INLINE void vf_store_n(float *p, vf32 a, size_t n) {
    float x[4];
    vst1q_f32(x, a);
    memcpy(p, x, n * sizeof *x);
}
VEC_INLINE vf32 vf_load_f16(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
VEC_INLINE void vf_store_f16(uint16_t *p, vf32 a) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a)));
}
VEC_INLINE vf32 vf_load_bf16(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}

VEC_INLINE vf32 vf_zero(void) {
    return vdupq_n_f32(0);
}
VEC_INLINE vf32 vf_set1(float a) {
    return vdupq_n_f32(a);
}
VEC_INLINE vf32 vf_add(vf32 a, vf32 b) {
    return vaddq_f32(a, b);
}
VEC_INLINE vf32 vf_sub(vf32 a, vf32 b) {
    return vsubq_f32(a, b);
}
VEC_INLINE vf32 vf_mul(vf32 a, vf32 b) {
    return vmulq_f32(a, b);
}
VEC_INLINE vf32 vf_div(vf32 a, vf32 b) {
    return vdivq_f32(a, b);
}
VEC_INLINE vf32 vf_fma(vf32 a, vf32 b, vf32 c) {
    return vfmaq_f32(c, a, b);
}
VEC_INLINE vf32 vf_max(vf32 a, vf32 b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
VEC_INLINE vf32 vf_min(vf32 a, vf32 b) {
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
VEC_INLINE vf32 vf_select_less(vf32 a, vf32 b, vf32 x, vf32 y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
VEC_INLINE vf32 vf_round(vf32 a) {
    return vrndnq_f32(a);
}
VEC_INLINE float vf_reduce_add(vf32 a) {
    return vaddvq_f32(a);
}
VEC_INLINE float vf_reduce_max(vf32 a) {
    return vmaxvq_f32(a);
}
VEC_INLINE vf32 vf_pow2(vf32 n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
