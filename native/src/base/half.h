/* Half floats as bits: scalar conversions, exact and round-to-nearest-even. */
#ifndef KVQ_BASE_HALF_H
#define KVQ_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float kvq_f32_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t kvq_f32_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float kvq_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 0x1f, mantissa = h & 0x3ff;
    if (exponent == 0) { /* zero or subnormal: mantissa x 2^-24 */
        float x = (float)mantissa * 0x1p-24f;
        return kvq_f32_from_bits(kvq_f32_bits(x) | sign);
    }
    if (exponent == 31) /* infinity or NaN; a signalling NaN becomes quiet, as the hardware conversion does */
        return kvq_f32_from_bits(sign | 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0));
    return kvq_f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

static inline uint16_t kvq_f32_to_f16(float x) {
    uint32_t bits = kvq_f32_bits(x), magnitude = bits & 0x7fffffff;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) /* NaN: keep the payload's top bits, make it quiet */
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) /* 65520 and more round to infinity */
        return sign | 0x7c00;
    if (magnitude < 0x38800000) { /* below 2^-14: subnormal; the addition aligns and rounds */
        float shifted = kvq_f32_from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (kvq_f32_bits(shifted) - 0x3f000000));
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (rounded - 0x38000000) >> 13);
}

static inline float kvq_bf16_to_f32(uint16_t h) {
    return kvq_f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t kvq_f32_to_bf16(float x) {
    uint32_t bits = kvq_f32_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif
