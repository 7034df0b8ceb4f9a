/* The k-quants: superblocks of 256 whose groups of 16 or 32 have small integer scales (and minima) under one f16 each. */
#include "base/half.h"
#include "quant/blocks.h"
#include "quant/dequantize.h"

KVQ_DEQUANTIZE(q2_k) {
    const kvq_q2_k *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d), dmin = kvq_f16_to_f32(b->dmin);
        for (int g = 0; g < 16; g++, dst += 16) { /* group g: 16 elements from 16 g */
            float scale = d * (float)(b->scales[g] & 15), min = dmin * (float)(b->scales[g] >> 4);
            const uint8_t *qs = b->qs + g / 8 * 32 + g % 2 * 16;
            int shift = g % 8 / 2 * 2;
            for (int l = 0; l < 16; l++)
                dst[l] = scale * (float)(qs[l] >> shift & 3) - min;
        }
    }
}

KVQ_DEQUANTIZE(q3_k) {
    const kvq_q3_k *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d);
        for (int g = 0; g < 16; g++, dst += 16) {
            /* 6 bits: the low 4 in nibbles of bytes 0..7 (low nibbles first), the high 2 in bytes 8..11 */
            int low = b->scales[g % 8] >> g / 8 * 4 & 15, high = b->scales[8 + g % 4] >> g / 4 * 2 & 3;
            float scale = d * (float)((low | high << 4) - 32);
            const uint8_t *qs = b->qs + g / 8 * 32 + g % 2 * 16, *hmask = b->hmask + g % 2 * 16;
            int shift = g % 8 / 2 * 2;
            for (int l = 0; l < 16; l++) {
                int high_bit = hmask[l] >> g / 2 & 1;
                dst[l] = scale * (float)((qs[l] >> shift & 3) + 4 * high_bit - 4);
            }
        }
    }
}

KVQ_DEQUANTIZE(q4_k) {
    const kvq_q4_k *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d), dmin = kvq_f16_to_f32(b->dmin);
        for (int g = 0; g < 8; g++, dst += 32) {
            uint8_t s, m;
            kvq_scale_min_k4(b->scales, g, &s, &m);
            float scale = d * (float)s, min = dmin * (float)m;
            const uint8_t *qs = b->qs + g / 2 * 32;
            int shift = g % 2 * 4;
            for (int l = 0; l < 32; l++)
                dst[l] = scale * (float)(qs[l] >> shift & 15) - min;
        }
    }
}

KVQ_DEQUANTIZE(q5_k) {
    const kvq_q5_k *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d), dmin = kvq_f16_to_f32(b->dmin);
        for (int g = 0; g < 8; g++, dst += 32) {
            uint8_t s, m;
            kvq_scale_min_k4(b->scales, g, &s, &m);
            float scale = d * (float)s, min = dmin * (float)m;
            const uint8_t *qs = b->qs + g / 2 * 32;
            int shift = g % 2 * 4;
            for (int l = 0; l < 32; l++)
                dst[l] = scale * (float)((qs[l] >> shift & 15) | (b->qh[l] >> g & 1) << 4) - min;
        }
    }
}

KVQ_DEQUANTIZE(q6_k) {
    const kvq_q6_k *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d);
        for (int g = 0; g < 16; g++, dst += 16) {
            float scale = d * (float)b->scales[g];
            const uint8_t *ql = b->ql + g / 8 * 64 + g % 4 * 16, *qh = b->qh + g / 8 * 32 + g % 2 * 16;
            int shift_l = g % 8 / 4 * 4, shift_h = g % 8 / 2 * 2;
            for (int l = 0; l < 16; l++)
                dst[l] = scale * (float)(((ql[l] >> shift_l & 15) | (qh[l] >> shift_h & 3) << 4) - 32);
        }
    }
}
