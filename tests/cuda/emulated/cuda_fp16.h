/* Half floats as CUDA spells them; conversions of native/src/base/half.h. */
#ifndef EMULATED_CUDA_FP16_H
#define EMULATED_CUDA_FP16_H

#include "base/half.h"
#include "cuda_runtime.h"

struct __half {
    uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};

extern __attribute__((visibility("default"))) const float *emulated_halfs; /* the value of each of the 65536 */

static inline float __half2float(__half h) {
    return emulated_halfs[h.bits];
}
static inline __half __float2half_rn(float x) {
    return {kvq_f32_to_f16(x)};
}
static inline __half __ushort_as_half(uint16_t bits) {
    return {bits};
}
static inline __half2 __floats2half2_rn(float x, float y) {
    return {__float2half_rn(x), __float2half_rn(y)};
}
static inline float2 __half22float2(__half2 h) {
    return {__half2float(h.x), __half2float(h.y)};
}
static inline float __low2float(__half2 h) {
    return __half2float(h.x);
}
static inline float __high2float(__half2 h) {
    return __half2float(h.y);
}
static inline __half2 __hmul2(__half2 a, __half2 b) { /* a product of two halves is exact in a float */
    return __floats2half2_rn(__half2float(a.x) * __half2float(b.x), __half2float(a.y) * __half2float(b.y));
}
static inline bool __hisnan(__half h) {
    return (h.bits & 0x7fff) > 0x7c00;
}
static inline bool __hisinf(__half h) {
    return (h.bits & 0x7fff) == 0x7c00;
}

#endif
