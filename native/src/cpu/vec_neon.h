/* vec.h for AArch64 with the dot product extension. The operations' meanings stand in vec_scalar.h. */
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
VEC_INLINE vf32 vf_sqrt(vf32 a) {
    return vsqrtq_f32(a);
}
VEC_INLINE vf32 vf_fma(vf32 a, vf32 b, vf32 c) {
    return vfmaq_f32(c, a, b);
}
VEC_INLINE vf32 vf_abs(vf32 a) {
    return vabsq_f32(a);
}
VEC_INLINE vf32 vf_max(vf32 a, vf32 b) {
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
VEC_INLINE vf32 vf_min(vf32 a, vf32 b) {
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
VEC_INLINE vf32 vf_select_less(vf32 a, vf32 b, vf32 x, vf32 y) {
    return vbslq_f32(vcltq_f32(a, b), x, y);
}
VEC_INLINE bool vf_any_less(vf32 a, vf32 b) {
    return vmaxvq_u32(vcltq_f32(a, b)) != 0;
}
VEC_INLINE vf32 vf_round(vf32 a) {
    return vrndnq_f32(a);
}
VEC_INLINE vf32 vf_swap(vf32 a, const int n) {
    return n == 1 ? vrev64q_f32(a) : vextq_f32(a, a, 2);
}
VEC_INLINE void vf_store_split(vf32 a, uint32_t mask, float *ones, float *zeros) {
    float x[4];
    vst1q_f32(x, a);
    for (int i = 0; i < 4; i++)
        *(mask >> i & 1 ? ones++ : zeros++) = x[i];
}
VEC_INLINE vf32 vf_load_merged(uint32_t mask, const float *ones, const float *zeros) {
    float x[4];
    for (int i = 0; i < 4; i++)
        x[i] = *(mask >> i & 1 ? ones++ : zeros++);
    return vld1q_f32(x);
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

VEC_INLINE vi32 vi_load(const void *p) {
    return vreinterpretq_s32_u8(vld1q_u8(p));
}
VEC_INLINE void vi_store(void *p, vi32 a) {
    vst1q_u8(p, vreinterpretq_u8_s32(a));
}
VEC_INLINE vi32 vi_load1(const void *p) {
    int32_t a;
    memcpy(&a, p, 4);
    return vdupq_n_s32(a);
}
VEC_INLINE vi32 vi_load_u8(const uint8_t *p) {
    uint32_t a;
    memcpy(&a, p, 4);
    uint16x8_t wide = vmovl_u8(vcreate_u8(a));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
}
VEC_INLINE vi32 vi_set1(int32_t a) {
    return vdupq_n_s32(a);
}
VEC_INLINE vi32 vi_and(vi32 a, vi32 b) {
    return vandq_s32(a, b);
}
VEC_INLINE vi32 vi_or(vi32 a, vi32 b) {
    return vorrq_s32(a, b);
}
VEC_INLINE vi32 vi_xor(vi32 a, vi32 b) {
    return veorq_s32(a, b);
}
VEC_INLINE vi32 vi_add(vi32 a, vi32 b) {
    return vaddq_s32(a, b);
}
VEC_INLINE vi32 vi_sub(vi32 a, vi32 b) {
    return vsubq_s32(a, b);
}
VEC_INLINE vi32 vi_mul(vi32 a, vi32 b) {
    return vmulq_s32(a, b);
}
VEC_INLINE vi32 vi_max(vi32 a, vi32 b) {
    return vmaxq_s32(a, b);
}
VEC_INLINE vi32 vi_shl(vi32 a, int n) { /* the operators take constants and variables */
    return vreinterpretq_s32_u32(vreinterpretq_u32_s32(a) << n);
}
VEC_INLINE vi32 vi_shr(vi32 a, int n) {
    return vreinterpretq_s32_u32(vreinterpretq_u32_s32(a) >> n);
}
VEC_INLINE vi32 vi_sar(vi32 a, int n) {
    return a >> n;
}
VEC_INLINE vi32 vi_sub8(vi32 a, vi32 b) {
    return vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)));
}
VEC_INLINE int32_t vi_reduce_add(vi32 a) {
    return vaddvq_s32(a);
}
VEC_INLINE int32_t vi_reduce_max(vi32 a) {
    return vmaxvq_s32(a);
}
VEC_INLINE void vi_store_i8(int8_t *p, vi32 a) {
    int16x4_t s = vmovn_s32(a);
    int8x8_t b = vmovn_s16(vcombine_s16(s, s));
    memcpy(p, &b, 4);
}
VEC_INLINE vi32 vi_from_f32(vf32 a) {
    return vcvtnq_s32_f32(a);
}
VEC_INLINE vf32 vi_to_f32(vi32 a) {
    return vcvtq_f32_s32(a);
}
VEC_INLINE vi32 vi_from_bits(vf32 a) {
    return vreinterpretq_s32_f32(a);
}
VEC_INLINE vf32 vi_to_bits(vi32 a) {
    return vreinterpretq_f32_s32(a);
}
VEC_INLINE vf32 vi_f16_to_f32(vi32 a) {
    return vcvt_f32_f16(vreinterpret_f16_s16(vmovn_s32(a)));
}
VEC_INLINE vi32 vi_lookup16(const uint8_t *bytes, vi32 index) {
    return vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(bytes), vreinterpretq_u8_s32(index)));
}
VEC_INLINE vf32 vf_pick(const float *x, uint32_t n, vi32 index) {
    float a[4] = {x[index[0]], x[index[1]], x[index[2]], x[index[3]]};
    return vld1q_f32(a);
}
VEC_INLINE vi32 vi_gather(const void *table, vi32 index) {
    int32_t a[4];
    for (int i = 0; i < 4; i++)
        memcpy(&a[i], (const uint8_t *)table + 4 * (size_t)index[i], 4);
    return vld1q_s32(a);
}
VEC_INLINE void vi_load_rows(const uint8_t *p, size_t stride, vi32 c[4]) {
    vi32 r0 = vi_load(p), r1 = vi_load(p + stride), r2 = vi_load(p + 2 * stride), r3 = vi_load(p + 3 * stride);
    int64x2_t even01 = vreinterpretq_s64_s32(vtrn1q_s32(r0, r1)), odd01 = vreinterpretq_s64_s32(vtrn2q_s32(r0, r1));
    int64x2_t even23 = vreinterpretq_s64_s32(vtrn1q_s32(r2, r3)), odd23 = vreinterpretq_s64_s32(vtrn2q_s32(r2, r3));
    c[0] = vreinterpretq_s32_s64(vtrn1q_s64(even01, even23));
    c[1] = vreinterpretq_s32_s64(vtrn1q_s64(odd01, odd23));
    c[2] = vreinterpretq_s32_s64(vtrn2q_s64(even01, even23));
    c[3] = vreinterpretq_s32_s64(vtrn2q_s64(odd01, odd23));
}
VEC_INLINE vi32 vi_dot(vi32 acc, vi32 w, vi32 x) {
    return vdotq_s32(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
}
#define VI_WIDE_OFFSET 0
VEC_INLINE vi32 vi_dot_wide(vi32 acc, vi32 w, vi32 x) {
    return vi_dot(acc, w, x);
}
