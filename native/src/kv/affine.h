/*
 * Uniform codes with a scale and a zero, fitted column by column: x ~ scale * code + zero.
 *
 * The paper's rule (scale and zero from the smallest and largest element) wastes levels on outliers of a bell-shaped
 * column. Same bytes, less loss: start from that rule, then three times fit scale and zero to the codes by least squares
 * and round again. Least squares shrinks what it reconstructs, so a last step corrects the scale with the codes as they
 * are:
 *
 *   KVQ_FIT_NORM      the column keeps its variance
 *   KVQ_FIT_UNBIASED  the regression of the column's elements on what is reconstructed has slope 1: rounding errors of
 *                     different tokens then average out in an attention output instead of shrinking it
 *
 * Every step is float32, sums run down the rows in order, so that a column gives the same bits however columns are
 * vectorized.
 */
#ifndef KVQ_KV_AFFINE_H
#define KVQ_KV_AFFINE_H

#include "kv/codec.h"

typedef enum kvq_fit { KVQ_FIT_NORM, KVQ_FIT_UNBIASED } kvq_fit;

/* x, codes: (n_rows, n_cols), n_cols <= KVQ_MAX_HEAD_DIM; scale, zero: (n_cols) half floats */
void kvq_affine_encode(const float *x, uint32_t n_rows, uint32_t n_cols, uint32_t bits, kvq_fit fit, uint16_t *scale,
                       uint16_t *zero, uint8_t *codes);
/* x = scale * codes + zero */
void kvq_affine_decode(const uint8_t *codes, const uint16_t *scale, const uint16_t *zero, uint32_t n_rows, uint32_t n_cols,
                       float *x);

#endif
