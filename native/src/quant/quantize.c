/* Codes and scales into block bytes, the inverse of kvq_dequantize_*; and the table of types that can be made. */
#include "quant/quantize.h"

#include <string.h>

#include "base/half.h"
#include "quant/blocks.h"
#include "quant/iq_tables.h"

/* Element j (0 .. 32 n_groups_of_32 - 1) of the block whose first group is `first`; codes move up by offset. */
static uint32_t code32(const kvq_fit *fit, uint32_t first, uint32_t j, int offset) {
    return (uint32_t)(fit->codes[j % 32][first + j / 32] + offset);
}

static uint32_t code16(const kvq_fit *fit, uint32_t first, uint32_t j, int offset) {
    return (uint32_t)(fit->codes[j % 16][first + j / 16] + offset);
}

/* 32 codes of 4 bits; returns bit 4 of each. */
static uint32_t pack_nibbles(const kvq_fit *fit, uint32_t group, int offset, uint8_t qs[16]) {
    uint32_t high = 0;
    for (uint32_t j = 0; j < 16; j++) {
        uint32_t a = code32(fit, group, j, offset), b = code32(fit, group, j + 16, offset);
        qs[j] = (uint8_t)((a & 15) | b << 4);
        high |= (a >> 4 & 1) << j | (b >> 4 & 1) << (j + 16);
    }
    return high;
}

static void pack_q4_0(const kvq_fit *fit, uint32_t first, void *block) {
    kvq_q4_0 *b = block;
    b->d = kvq_f32_to_f16(fit->d[first]);
    pack_nibbles(fit, first, 8, b->qs);
}

static void pack_q4_1(const kvq_fit *fit, uint32_t first, void *block) {
    kvq_q4_1 *b = block;
    b->d = kvq_f32_to_f16(fit->d[first]);
    b->m = kvq_f32_to_f16(-fit->dmin[first]);
    pack_nibbles(fit, first, 0, b->qs);
}

static void pack_q5_0(const kvq_fit *fit, uint32_t first, void *block) {
    kvq_q5_0 *b = block;
    b->d = kvq_f32_to_f16(fit->d[first]);
    b->qh = pack_nibbles(fit, first, 16, b->qs);
}

static void pack_q5_1(const kvq_fit *fit, uint32_t first, void *block) {
    kvq_q5_1 *b = block;
    b->d = kvq_f32_to_f16(fit->d[first]);
    b->m = kvq_f32_to_f16(-fit->dmin[first]);
    b->qh = pack_nibbles(fit, first, 0, b->qs);
}

static void pack_q8_0(const kvq_fit *fit, uint32_t first, void *block) {
    kvq_q8_0 *b = block;
    b->d = kvq_f32_to_f16(fit->d[first]);
    for (uint32_t j = 0; j < 32; j++)
        b->qs[j] = (int8_t)fit->codes[j][first];
}

static void pack_iq4_nl(const kvq_fit *fit, uint32_t first, void *block) {
    kvq_iq4_nl *b = block;
    b->d = kvq_f32_to_f16(fit->d[first]);
    pack_nibbles(fit, first, 0, b->qs);
}

static void pack_q2_k(const kvq_fit *fit, uint32_t first, void *block) {
    kvq_q2_k *b = block;
    b->d = kvq_f32_to_f16(fit->d[first]);
    b->dmin = kvq_f32_to_f16(fit->dmin[first]);
    for (uint32_t g = 0; g < 16; g++)
        b->scales[g] = (uint8_t)((int)fit->scale[first + g] | (int)fit->min[first + g] << 4);
    for (uint32_t half = 0; half < 2; half++)
        for (uint32_t l = 0; l < 32; l++) {
            uint32_t byte = 0;
            for (uint32_t i = 0; i < 4; i++)
                byte |= code16(fit, first, 128 * half + 32 * i + l, 0) << 2 * i;
            b->qs[32 * half + l] = (uint8_t)byte;
        }
}

static void pack_q3_k(const kvq_fit *fit, uint32_t first, void *block) {
    kvq_q3_k *b = block;
    memset(b, 0, sizeof *b);
    b->d = kvq_f32_to_f16(fit->d[first]);
    for (uint32_t g = 0; g < 16; g++) {
        uint32_t scale = (uint32_t)(fit->scale[first + g] + 32);
        b->scales[g % 8] |= (uint8_t)((scale & 15) << g / 8 * 4);
        b->scales[8 + g % 4] |= (uint8_t)(scale >> 4 << g / 4 * 2);
    }
    for (uint32_t j = 0; j < 256; j++) {
        uint32_t code = code16(fit, first, j, 4);
        b->qs[j / 128 * 32 + j % 32] |= (uint8_t)((code & 3) << j % 128 / 32 * 2);
        b->hmask[j % 32] |= (uint8_t)(code >> 2 << j / 32);
    }
}

/* See kvq_scale_min_k4. */
static void pack_scales_k4(const kvq_fit *fit, uint32_t first, uint8_t scales[12]) {
    for (uint32_t g = 0; g < 4; g++) {
        uint32_t s = (uint32_t)fit->scale[first + g], s4 = (uint32_t)fit->scale[first + g + 4];
        uint32_t m = (uint32_t)fit->min[first + g], m4 = (uint32_t)fit->min[first + g + 4];
        scales[g] = (uint8_t)(s | s4 >> 4 << 6);
        scales[g + 4] = (uint8_t)(m | m4 >> 4 << 6);
        scales[g + 8] = (uint8_t)((s4 & 15) | m4 << 4);
    }
}

static void pack_q4_k(const kvq_fit *fit, uint32_t first, void *block) {
    kvq_q4_k *b = block;
    b->d = kvq_f32_to_f16(fit->d[first]);
    b->dmin = kvq_f32_to_f16(fit->dmin[first]);
    pack_scales_k4(fit, first, b->scales);
    for (uint32_t g = 0; g < 8; g += 2)
        for (uint32_t l = 0; l < 32; l++)
            b->qs[16 * g + l] = (uint8_t)(fit->codes[l][first + g] | fit->codes[l][first + g + 1] << 4);
}

static void pack_q5_k(const kvq_fit *fit, uint32_t first, void *block) {
    kvq_q5_k *b = block;
    b->d = kvq_f32_to_f16(fit->d[first]);
    b->dmin = kvq_f32_to_f16(fit->dmin[first]);
    pack_scales_k4(fit, first, b->scales);
    memset(b->qh, 0, sizeof b->qh);
    for (uint32_t g = 0; g < 8; g += 2)
        for (uint32_t l = 0; l < 32; l++) {
            int32_t low = fit->codes[l][first + g], high = fit->codes[l][first + g + 1];
            b->qs[16 * g + l] = (uint8_t)((low & 15) | (high & 15) << 4);
            b->qh[l] |= (uint8_t)(low >> 4 << g | high >> 4 << (g + 1));
        }
}

static void pack_q6_k(const kvq_fit *fit, uint32_t first, void *block) {
    kvq_q6_k *b = block;
    b->d = kvq_f32_to_f16(fit->d[first]);
    for (uint32_t g = 0; g < 16; g++)
        b->scales[g] = (int8_t)fit->scale[first + g];
    for (uint32_t half = 0; half < 2; half++)
        for (uint32_t l = 0; l < 32; l++) {
            uint32_t c[4], high = 0;
            for (uint32_t i = 0; i < 4; i++) {
                c[i] = code16(fit, first, 128 * half + 32 * i + l, 32);
                high |= c[i] >> 4 << 2 * i;
            }
            b->ql[64 * half + l] = (uint8_t)((c[0] & 15) | (c[2] & 15) << 4);
            b->ql[64 * half + 32 + l] = (uint8_t)((c[1] & 15) | (c[3] & 15) << 4);
            b->qh[32 * half + l] = (uint8_t)high;
        }
}

/*
 * reach: largest element at 1 +- reach / |code_min| of the end of the codes.
 * evenness: least squares shrinks what it stores, by 8% at 2 bits, unless large elements count more. The divergence of a
 * small trained model in Q2_K is 11% lower with 0.2 than with 1 (30% with importance), in Q3_K_M 8% (15%); Q4_K_S would
 * lose 6%, and SmolLM2 in Q4_0 with importance 7% if large elements counted more there (tools/compare_quantize.py).
 */
static const kvq_quantizer quantizers[] = {
    {2, 32, 1, sizeof(kvq_q4_0), -8, 7, 1, 1, 0, 0.9f, 1.0f, NULL, pack_q4_0},
    {3, 32, 1, sizeof(kvq_q4_1), 0, 15, 1, 1, 1, 1.0f, 1.0f, NULL, pack_q4_1},
    {6, 32, 1, sizeof(kvq_q5_0), -16, 15, 1, 1, 0, 0.9f, 1.0f, NULL, pack_q5_0},
    {7, 32, 1, sizeof(kvq_q5_1), 0, 31, 1, 1, 1, 1.0f, 1.0f, NULL, pack_q5_1},
    {8, 32, 1, sizeof(kvq_q8_0), -127, 127, 1, 1, 0, 0.0f, 1.0f, NULL, pack_q8_0},
    {20, 32, 1, sizeof(kvq_iq4_nl), -127, 113, 1, 1, 0, 12.0f, 1.0f, kvq_iq4_values, pack_iq4_nl},
    {10, 16, 16, sizeof(kvq_q2_k), 0, 3, 0, 15, 15, 1.0f, 0.2f, NULL, pack_q2_k},
    {11, 16, 16, sizeof(kvq_q3_k), -4, 3, -32, 31, 0, 0.9f, 0.2f, NULL, pack_q3_k},
    {12, 32, 8, sizeof(kvq_q4_k), 0, 15, 0, 63, 63, 1.0f, 1.0f, NULL, pack_q4_k},
    {13, 32, 8, sizeof(kvq_q5_k), 0, 31, 0, 63, 63, 1.0f, 1.0f, NULL, pack_q5_k},
    {14, 16, 16, sizeof(kvq_q6_k), -32, 31, -128, 127, 0, 0.9f, 1.0f, NULL, pack_q6_k},
};

const kvq_quantizer *kvq_quantizer_find(uint32_t ggml_id) {
    for (size_t i = 0; i < sizeof quantizers / sizeof *quantizers; i++)
        if (quantizers[i].type == ggml_id)
            return &quantizers[i];
    return NULL;
}
