/*
 * Weights into blocks: what a type can express, and how codes and scales become its bytes. A group of elements x shares a
 * scale and a minimum:
 *
 *     x ~ d * scale * code - dmin * min        (code stands for values[code] if the type has a codebook)
 *
 * In types without superblocks a group has d and dmin of its own, and scale and min are 1. Types without minima have min =
 * 0. The search for the best numbers is cpu/kernels/quantize.c.
 */
#ifndef KVQ_QUANT_QUANTIZE_H
#define KVQ_QUANT_QUANTIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    KVQ_FIT_GROUPS = 16,  /* that are searched together, one per lane */
    KVQ_FIT_ELEMENTS = 32 /* of a group at most */
};

/* 16 groups: one or two superblocks, or 16 blocks. */
typedef struct kvq_fit {
    int32_t codes[KVQ_FIT_ELEMENTS][KVQ_FIT_GROUPS];
    float scale[KVQ_FIT_GROUPS], min[KVQ_FIT_GROUPS]; /* whole numbers */
    float d[KVQ_FIT_GROUPS], dmin[KVQ_FIT_GROUPS];    /* exact in f16; the same for all groups of a superblock */
} kvq_fit;

typedef struct kvq_quantizer {
    uint32_t type;       /* GGML id */
    uint32_t n_elements; /* of a group: 16 or 32 */
    uint32_t n_groups;   /* of a block */
    uint32_t block_bytes;
    float code_min, code_max; /* with a codebook: of the values */
    float scale_min, scale_max;
    float min_max;        /* 0: no minima */
    float reach;          /* how far beyond the codes the largest element may be put in the search; 0: no search */
    float evenness;       /* an error in x counts evenness + |x| / rms; from 1 on, with importance, only that */
    const int8_t *values; /* codebook (16), ascending; NULL: codes are the values */
    /* groups first .. first + n_groups - 1 into one block */
    void (*pack)(const kvq_fit *fit, uint32_t first, void *block);
} kvq_quantizer;

/* NULL if this build cannot quantize to the type. */
const kvq_quantizer *kvq_quantizer_find(uint32_t ggml_id);

#endif
