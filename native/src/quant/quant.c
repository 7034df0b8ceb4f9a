/* The table of weight types. */
#include "quant/quant.h"

#include "quant/blocks.h"
#include "quant/dequantize.h"

#define TYPE(NAME, id, n, bytes, function) {NAME, id, n, bytes, kvq_dequantize_##function}

static const kvq_wtype supported[] = {
    TYPE("F32", 0, 1, 4, f32),
    TYPE("F16", 1, 1, 2, f16),
    TYPE("BF16", 30, 1, 2, bf16),
    TYPE("Q4_0", 2, 32, sizeof(kvq_q4_0), q4_0),
    TYPE("Q4_1", 3, 32, sizeof(kvq_q4_1), q4_1),
    TYPE("Q5_0", 6, 32, sizeof(kvq_q5_0), q5_0),
    TYPE("Q5_1", 7, 32, sizeof(kvq_q5_1), q5_1),
    TYPE("Q8_0", 8, 32, sizeof(kvq_q8_0), q8_0),
    TYPE("Q2_K", 10, 256, sizeof(kvq_q2_k), q2_k),
    TYPE("Q3_K", 11, 256, sizeof(kvq_q3_k), q3_k),
    TYPE("Q4_K", 12, 256, sizeof(kvq_q4_k), q4_k),
    TYPE("Q5_K", 13, 256, sizeof(kvq_q5_k), q5_k),
    TYPE("Q6_K", 14, 256, sizeof(kvq_q6_k), q6_k),
    TYPE("IQ4_NL", 20, 32, sizeof(kvq_iq4_nl), iq4_nl),
    TYPE("IQ4_XS", 23, 256, sizeof(kvq_iq4_xs), iq4_xs),
    TYPE("IQ3_S", 21, 256, sizeof(kvq_iq3_s), iq3_s),
    TYPE("IQ3_XXS", 18, 256, sizeof(kvq_iq3_xxs), iq3_xxs),
    TYPE("IQ2_S", 22, 256, sizeof(kvq_iq2_s), iq2_s),
    TYPE("IQ2_XS", 17, 256, sizeof(kvq_iq2_xs), iq2_xs),
    TYPE("IQ2_XXS", 16, 256, sizeof(kvq_iq2_xxs), iq2_xxs),
    TYPE("IQ1_M", 29, 256, sizeof(kvq_iq1_m), iq1_m),
    TYPE("IQ1_S", 19, 256, sizeof(kvq_iq1_s), iq1_s),
    TYPE("TQ2_0", 35, 256, sizeof(kvq_tq2_0), tq2_0),
    TYPE("TQ1_0", 34, 256, sizeof(kvq_tq1_0), tq1_0),
    TYPE("MXFP4", 39, 32, sizeof(kvq_mxfp4), mxfp4),
    TYPE("NVFP4", 40, 64, sizeof(kvq_nvfp4), nvfp4),
};

/* Types that a file may hold but this build cannot compute with; 0 bytes: types that GGML itself no longer reads. */
static const kvq_wtype others[] = {
    {"I8", 24, 1, 1, NULL},         {"I16", 25, 1, 2, NULL},        {"I32", 26, 1, 4, NULL},
    {"I64", 27, 1, 8, NULL},        {"F64", 28, 1, 8, NULL},        {"Q8_K", 15, 256, 292, NULL},
    {"Q1_0", 41, 128, 18, NULL},    {"Q2_0", 42, 64, 18, NULL},     {"Q8_1", 9, 0, 0, NULL},
    {"Q4_2", 4, 0, 0, NULL},        {"Q4_3", 5, 0, 0, NULL},        {"Q4_0_4_4", 31, 0, 0, NULL},
    {"Q4_0_4_8", 32, 0, 0, NULL},   {"Q4_0_8_8", 33, 0, 0, NULL},   {"IQ4_NL_4_4", 36, 0, 0, NULL},
    {"IQ4_NL_4_8", 37, 0, 0, NULL}, {"IQ4_NL_8_8", 38, 0, 0, NULL},
};

enum { N_SUPPORTED = sizeof supported / sizeof *supported, N_OTHERS = sizeof others / sizeof *others };

const kvq_wtype *kvq_wtype_find(uint32_t ggml_id) {
    for (uint32_t i = 0; i < N_SUPPORTED; i++)
        if (supported[i].id == ggml_id)
            return &supported[i];
    return NULL;
}

static const kvq_wtype *find_any(uint32_t ggml_id) {
    for (uint32_t i = 0; i < N_OTHERS; i++)
        if (others[i].id == ggml_id)
            return &others[i];
    return kvq_wtype_find(ggml_id);
}

uint32_t kvq_wtype_count(void) {
    return N_SUPPORTED;
}

const kvq_wtype *kvq_wtype_at(uint32_t i) {
    return i < N_SUPPORTED ? &supported[i] : NULL;
}

const char *kvq_wtype_name(uint32_t ggml_id) {
    const kvq_wtype *type = find_any(ggml_id);
    return type ? type->name : NULL;
}

bool kvq_wtype_layout(uint32_t ggml_id, uint32_t *block_elements, uint32_t *block_bytes) {
    const kvq_wtype *type = find_any(ggml_id);
    if (type == NULL || type->block_bytes == 0)
        return false;
    *block_elements = type->block_elements;
    *block_bytes = type->block_bytes;
    return true;
}
