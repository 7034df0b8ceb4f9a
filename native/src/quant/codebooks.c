/* 4-bit codes that index a codebook of 16 values, and the ternary types. */
#include "base/half.h"
#include "quant/blocks.h"
#include "quant/dequantize.h"
#include "quant/iq_tables.h"

/* 16 bytes: element j in the low nibble of byte j, j + 16 in its high nibble. */
static void look_up_32(const uint8_t qs[16], const int8_t codebook[16], float scale, float dst[32]) {
    for (int j = 0; j < 16; j++) {
        dst[j] = scale * (float)codebook[qs[j] & 15];
        dst[j + 16] = scale * (float)codebook[qs[j] >> 4];
    }
}

KVQ_DEQUANTIZE(iq4_nl) {
    const kvq_iq4_nl *b = src;
    for (size_t i = 0; i < n; i += 32, b++, dst += 32)
        look_up_32(b->qs, kvq_iq4_values, kvq_f16_to_f32(b->d), dst);
}

KVQ_DEQUANTIZE(iq4_xs) {
    const kvq_iq4_xs *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d);
        for (int g = 0; g < 8; g++, dst += 32) {
            int scale = (b->scales_l[g / 2] >> g % 2 * 4 & 15) | (b->scales_h >> 2 * g & 3) << 4;
            look_up_32(b->qs + 16 * g, kvq_iq4_values, d * (float)(scale - 32), dst);
        }
    }
}

/* Half of 2^(e - 127): the codebook holds doubled values. */
static float half_of_e8m0(uint32_t e) {
    return kvq_f32_from_bits(e < 2 ? 0x200000u << e : (e - 1) << 23);
}

KVQ_DEQUANTIZE(mxfp4) {
    const kvq_mxfp4 *b = src;
    for (size_t i = 0; i < n; i += 32, b++, dst += 32)
        look_up_32(b->qs, kvq_fp4_values, half_of_e8m0(b->e), dst);
}

/* Half of an e4m3 number without its sign. 0x7f, its NaN, counts as 0; 0xff does not. */
static float half_of_e4m3(uint8_t bits) {
    uint32_t exponent = bits >> 3 & 15, mantissa = bits & 7;
    if (bits == 0x7f)
        return 0;
    if (exponent == 0)
        return (float)mantissa * 0x1p-10f;
    return kvq_f32_from_bits((exponent + 119) << 23 | mantissa << 20); /* 119 = 127 - 7 - 1 */
}

KVQ_DEQUANTIZE(nvfp4) {
    const kvq_nvfp4 *b = src;
    for (size_t i = 0; i < n; i += 64, b++) {
        for (int g = 0; g < 4; g++, dst += 16) {
            float d = half_of_e4m3(b->d[g]);
            for (int j = 0; j < 8; j++) {
                dst[j] = d * (float)kvq_fp4_values[b->qs[g][j] & 15];
                dst[j + 8] = d * (float)kvq_fp4_values[b->qs[g][j] >> 4];
            }
        }
    }
}

/* A byte is a fraction of 256 whose base-3 digits are the trits: trit k of n_bytes bytes becomes n_bytes elements. */
static float *unpack_trits(const uint8_t *qs, int n_bytes, int n_trits, float d, float *dst) {
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    for (int k = 0; k < n_trits; k++, dst += n_bytes) {
        for (int l = 0; l < n_bytes; l++) {
            uint8_t fraction = (uint8_t)(qs[l] * power[k]);
            dst[l] = d * (float)((fraction * 3 >> 8) - 1);
        }
    }
    return dst;
}

KVQ_DEQUANTIZE(tq1_0) {
    const kvq_tq1_0 *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d);
        dst = unpack_trits(b->qs, 32, 5, d, dst);
        dst = unpack_trits(b->qs + 32, 16, 5, d, dst);
        dst = unpack_trits(b->qh, 4, 4, d, dst);
    }
}

KVQ_DEQUANTIZE(tq2_0) {
    const kvq_tq2_0 *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d);
        for (int g = 0; g < 8; g++, dst += 32) {
            const uint8_t *qs = b->qs + g / 4 * 32;
            for (int l = 0; l < 32; l++)
                dst[l] = d * (float)((qs[l] >> g % 4 * 2 & 3) - 1);
        }
    }
}
