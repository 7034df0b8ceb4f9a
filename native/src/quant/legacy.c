/* Plain floats, and the first GGML types: 32 elements share one f16 scale (and one minimum). */
#include "base/half.h"
#include "quant/blocks.h"
#include "quant/dequantize.h"

KVQ_DEQUANTIZE(f32) {
    memcpy(dst, src, n * sizeof *dst);
}

static uint16_t load_u16(const void *src, size_t i) {
    uint16_t bits;
    memcpy(&bits, (const uint8_t *)src + 2 * i, 2);
    return bits;
}

KVQ_DEQUANTIZE(f16) {
    for (size_t i = 0; i < n; i++)
        dst[i] = kvq_f16_to_f32(load_u16(src, i));
}

KVQ_DEQUANTIZE(bf16) {
    for (size_t i = 0; i < n; i++)
        dst[i] = kvq_bf16_to_f32(load_u16(src, i));
}

KVQ_DEQUANTIZE(q4_0) {
    const kvq_q4_0 *b = src;
    for (size_t i = 0; i < n; i += 32, b++, dst += 32) {
        float d = kvq_f16_to_f32(b->d);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)((b->qs[j] & 15) - 8);
            dst[j + 16] = d * (float)((b->qs[j] >> 4) - 8);
        }
    }
}

KVQ_DEQUANTIZE(q4_1) {
    const kvq_q4_1 *b = src;
    for (size_t i = 0; i < n; i += 32, b++, dst += 32) {
        float d = kvq_f16_to_f32(b->d), m = kvq_f16_to_f32(b->m);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)(b->qs[j] & 15) + m;
            dst[j + 16] = d * (float)(b->qs[j] >> 4) + m;
        }
    }
}

KVQ_DEQUANTIZE(q5_0) {
    const kvq_q5_0 *b = src;
    for (size_t i = 0; i < n; i += 32, b++, dst += 32) {
        float d = kvq_f16_to_f32(b->d);
        uint32_t qh = b->qh;
        for (int j = 0; j < 16; j++) {
            int low = (int)((b->qs[j] & 15) | (qh >> j & 1) << 4);
            int high = (int)(b->qs[j] >> 4 | (qh >> (j + 16) & 1) << 4);
            dst[j] = d * (float)(low - 16);
            dst[j + 16] = d * (float)(high - 16);
        }
    }
}

KVQ_DEQUANTIZE(q5_1) {
    const kvq_q5_1 *b = src;
    for (size_t i = 0; i < n; i += 32, b++, dst += 32) {
        float d = kvq_f16_to_f32(b->d), m = kvq_f16_to_f32(b->m);
        uint32_t qh = b->qh;
        for (int j = 0; j < 16; j++) {
            int low = (int)((b->qs[j] & 15) | (qh >> j & 1) << 4);
            int high = (int)(b->qs[j] >> 4 | (qh >> (j + 16) & 1) << 4);
            dst[j] = d * (float)low + m;
            dst[j + 16] = d * (float)high + m;
        }
    }
}

KVQ_DEQUANTIZE(q8_0) {
    const kvq_q8_0 *b = src;
    for (size_t i = 0; i < n; i += 32, b++, dst += 32) {
        float d = kvq_f16_to_f32(b->d);
        for (int j = 0; j < 32; j++)
            dst[j] = (float)b->qs[j] * d;
    }
}
