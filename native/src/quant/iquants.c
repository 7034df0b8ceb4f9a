/* The iq types of 1 to 3 bits: rows of a fixed grid, with stored signs (iq2, iq3) or a shift (iq1). */
#include "base/half.h"
#include "quant/blocks.h"
#include "quant/dequantize.h"
#include "quant/iq_tables.h"

/* n elements of a grid row, negated where the bit of `signs` is set. */
static inline void put_signed(const uint8_t *row, int n, uint32_t signs, float scale, float *dst) {
    for (int j = 0; j < n; j++)
        dst[j] = kvq_f32_from_bits(kvq_f32_bits(scale * (float)row[j]) ^ (signs >> j & 1) << 31);
}

static inline void put_shifted(const int8_t *row, float shift, float scale, float *dst) {
    for (int j = 0; j < 8; j++)
        dst[j] = scale * ((float)row[j] + shift);
}

static inline int nibble(const uint8_t *bytes, int i) {
    return bytes[i / 2] >> i % 2 * 4 & 15;
}

KVQ_DEQUANTIZE(iq2_xxs) {
    const kvq_iq2_xxs *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d);
        for (int g = 0; g < 32; g++, dst += 8) {
            uint32_t signs = b->of32[g / 4].signs;
            float scale = d * (0.5f + (float)(signs >> 28)) * 0.25f;
            put_signed(kvq_iq2xxs_grid[b->of32[g / 4].grid[g % 4]], 8, kvq_iq_signs(signs >> 7 * (g % 4)), scale, dst);
        }
    }
}

KVQ_DEQUANTIZE(iq2_xs) {
    const kvq_iq2_xs *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d);
        for (int g = 0; g < 32; g++, dst += 8) {
            float scale = d * (0.5f + (float)nibble(b->scales, g / 2)) * 0.25f;
            put_signed(kvq_iq2xs_grid[b->qs[g] & 511], 8, kvq_iq_signs(b->qs[g] >> 9), scale, dst);
        }
    }
}

KVQ_DEQUANTIZE(iq2_s) {
    const kvq_iq2_s *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d);
        for (int g = 0; g < 32; g++, dst += 8) {
            float scale = d * (0.5f + (float)nibble(b->scales, g / 2)) * 0.25f;
            int row = b->qs[g] | (b->qh[g / 4] >> g % 4 * 2 & 3) << 8;
            put_signed(kvq_iq2s_grid[row], 8, b->signs[g], scale, dst);
        }
    }
}

KVQ_DEQUANTIZE(iq3_xxs) {
    const kvq_iq3_xxs *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d);
        for (int g = 0; g < 32; g++, dst += 8) {
            uint32_t bits = b->signs[g / 4], signs = kvq_iq_signs(bits >> 7 * (g % 4));
            float scale = d * (0.5f + (float)(bits >> 28)) * 0.5f;
            put_signed(kvq_iq3xxs_grid[b->qs[2 * g]], 4, signs, scale, dst);
            put_signed(kvq_iq3xxs_grid[b->qs[2 * g + 1]], 4, signs >> 4, scale, dst + 4);
        }
    }
}

KVQ_DEQUANTIZE(iq3_s) {
    const kvq_iq3_s *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d);
        for (int g = 0; g < 32; g++, dst += 8) {
            float scale = d * (float)(1 + 2 * nibble(b->scales, g / 4));
            int high = b->qh[g / 4] >> g % 4 * 2;
            put_signed(kvq_iq3s_grid[b->qs[2 * g] | (high & 1) << 8], 4, b->signs[g], scale, dst);
            put_signed(kvq_iq3s_grid[b->qs[2 * g + 1] | (high & 2) << 7], 4, b->signs[g] >> 4, scale, dst + 4);
        }
    }
}

KVQ_DEQUANTIZE(iq1_s) {
    const kvq_iq1_s *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        float d = kvq_f16_to_f32(b->d);
        for (int g = 0; g < 32; g++, dst += 8) {
            int qh = b->qh[g / 4];
            float scale = d * (float)(2 * (qh >> 12 & 7) + 1);
            int row = b->qs[g] | (qh >> g % 4 * 3 & 7) << 8;
            put_shifted(kvq_iq1s_grid[row], qh & 0x8000 ? -0.125f : 0.125f, scale, dst);
        }
    }
}

KVQ_DEQUANTIZE(iq1_m) {
    const kvq_iq1_m *b = src;
    for (size_t i = 0; i < n; i += 256, b++) {
        int bits = b->scales[0] >> 12 | (b->scales[1] >> 12) << 4 | (b->scales[2] >> 12) << 8 | (b->scales[3] >> 12) << 12;
        float d = kvq_f16_to_f32((uint16_t)bits);
        for (int g = 0; g < 32; g++, dst += 8) {
            int qh = nibble(b->qh, g);
            float scale = d * (float)(2 * (b->scales[g / 8] >> g / 2 % 4 * 3 & 7) + 1);
            put_shifted(kvq_iq1s_grid[b->qs[g] | (qh & 7) << 8], qh & 8 ? -0.125f : 0.125f, scale, dst);
        }
    }
}
