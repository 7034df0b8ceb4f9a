/* The small float formats: e4m3 (OCP: no infinities, 0x7f is NaN, largest 448) and e2m1 (largest 6). */
#ifndef KVQ_KV_FLOAT8_H
#define KVQ_KV_FLOAT8_H

#include "base/half.h"

#define KVQ_E4M3_MAX 448.0f

static inline float kvq_e4m3_to_f32(uint8_t code) {
    uint32_t magnitude = code & 0x7f, sign = (uint32_t)(code & 0x80) << 24;
    float x = magnitude < 8 ? (float)magnitude * 0x1p-9f : kvq_f32_from_bits((magnitude << 20) + (120u << 23));
    return kvq_f32_from_bits(kvq_f32_bits(x) | sign);
}

/* Nearest, ties to even; the largest finite value beyond it; zero has no sign. x: finite */
static inline uint8_t kvq_f32_to_e4m3(float x) {
    uint32_t bits = kvq_f32_bits(x) & 0x7fffffff, code;
    if (bits < kvq_f32_bits(0x1p-6f)) /* subnormal: multiples of 2^-9, the sum aligns and rounds */
        code = kvq_f32_bits(kvq_f32_from_bits(bits) + 0x1p14f) - kvq_f32_bits(0x1p14f);
    else
        code = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120u << 3);
    code = code > 0x7e ? 0x7e : code;
    return (uint8_t)(code | (x < 0.0f && code ? 0x80 : 0));
}

/* e2m1: sign, two bits of exponent, one of mantissa. 0, 0.5, 1, 1.5, 2, 3, 4, 6. */
static inline float kvq_e2m1_to_f32(uint8_t code) {
    static const float values[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    return code & 8 ? -values[code & 7] : values[code & 7];
}

/* Nearest, ties to the even code; zero has no sign. */
static inline uint8_t kvq_f32_to_e2m1(float x) {
    float a = x < 0.0f ? -x : x;
    uint8_t code = (uint8_t)((a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) +
                             (a > 5.0f));
    return (uint8_t)(code | (x < 0.0f && code ? 8 : 0));
}

#endif
