/* Weights from one type to another: the best codes and scales for each block, searched on the CPU. */
#ifndef KVQ_CPU_QUANTIZE_H
#define KVQ_CPU_QUANTIZE_H

#include "base/threads.h"
#include "quant/quant.h"
#include "quant/quantize.h"

typedef struct kvq_rows { /* a matrix of weights on its way into another type */
    const kvq_wtype *src_type, *dst_type;
    const uint8_t *src; /* (n_rows, n_per_row) in file bytes */
    uint8_t *dst;
    uint64_t n_rows;
    uint32_t n_per_row;
    const float *importance; /* (n_per_row) of the columns, at least 0, or NULL: all the same */
} kvq_rows;

/* Whether dst_type can be made: a float type, or one with a quantizer. */
bool kvq_rows_possible(const kvq_wtype *dst_type);
/* loss: sums over all elements, from the decoded dst. */
pykvq_status kvq_rows_convert(kvq_threads *threads, const kvq_rows *rows, pykvq_weight_loss *loss);

/* ---- the kernels, one table per instruction set ---- */

typedef struct kvq_quantize_kernels {
    /* n elements (whole blocks) of consecutive rows. weights (n_per_row) or NULL. Same bytes on every instruction set. */
    void (*encode)(const kvq_quantizer *quantizer, const float *x, size_t n, const float *weights, uint32_t n_per_row,
                   uint8_t *dst);
    /* Adds the sums of x^2 and (x - y)^2, n elements, and keeps the largest |x - y|. */
    void (*loss)(const float *x, const float *y, size_t n, pykvq_weight_loss *loss);
} kvq_quantize_kernels;

#endif
