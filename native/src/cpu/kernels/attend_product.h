/*
 * The matrix product of the attention kernels: c (n_rows, n_cols) (+)= a (n_rows, n_k) . b (n_k, n_cols).
 *
 * Columns in lanes. A block of NR rows x NV vectors of c stays in registers over all of n_k: per step NV loads of b
 * (floats, or half floats converted as they are loaded), NR broadcasts of a and NR x NV fused multiply-adds. n_cols is a
 * multiple of 16, b_stride and c_stride count elements.
 */
#ifndef KVQ_CPU_ATTEND_PRODUCT_H
#define KVQ_CPU_ATTEND_PRODUCT_H

#include "cpu/vec.h"

#include <stdbool.h>

#if KVQ_ISA_avx512 || KVQ_ISA_neon
enum { NR = 6, NV = 4 }; /* of 32 registers 24 hold sums */
#else
enum { NR = 6, NV = 2 }; /* of 16 registers 12 hold sums */
#endif

typedef struct product {
    const float *a;
    const void *b;
    float *c;
    size_t a_stride, b_stride, c_stride;
    uint32_t n_k;
    uint32_t ahead; /* half floats: what lies so far behind b is needed next */
    bool add;
} product;

VEC_INLINE void product_block(const product *p, uint32_t row, uint32_t col, const uint32_t n_r, const uint32_t n_v,
                              const bool half) {
    const float *a = p->a + row * p->a_stride;
    float *c = p->c + row * p->c_stride + col;
    const float *b_float = (const float *)p->b + col;
    const uint16_t *b_half = (const uint16_t *)p->b + col;
    vf32 sums[NR][NV];
#pragma GCC unroll 8
    for (uint32_t r = 0; r < n_r; r++)
#pragma GCC unroll 8
        for (uint32_t v = 0; v < n_v; v++)
            sums[r][v] = p->add ? vf_load(c + r * p->c_stride + v * VF) : vf_zero();
    for (uint32_t k = 0; k < p->n_k; k++) {
        vf32 b[NV];
        if (half && row == 0)
            for (uint32_t i = 0; i < n_v * VF; i += 32)
                __builtin_prefetch(b_half + k * p->b_stride + i + p->ahead);
#pragma GCC unroll 8
        for (uint32_t v = 0; v < n_v; v++)
            b[v] = half ? vf_load_f16(b_half + k * p->b_stride + v * VF) : vf_load(b_float + k * p->b_stride + v * VF);
#pragma GCC unroll 8
        for (uint32_t r = 0; r < n_r; r++) {
            vf32 ar = vf_set1(a[r * p->a_stride + k]);
#pragma GCC unroll 8
            for (uint32_t v = 0; v < n_v; v++)
                sums[r][v] = vf_fma(ar, b[v], sums[r][v]);
        }
    }
#pragma GCC unroll 8
    for (uint32_t r = 0; r < n_r; r++)
#pragma GCC unroll 8
        for (uint32_t v = 0; v < n_v; v++)
            vf_store(c + r * p->c_stride + v * VF, sums[r][v]);
}

VEC_INLINE void product_rows(const product *p, uint32_t row, uint32_t n_cols, const uint32_t n_r, const bool half) {
    uint32_t col = 0;
    for (; col + NV * VF <= n_cols; col += NV * VF)
        product_block(p, row, col, n_r, NV, half);
#if KVQ_ISA_avx512 /* elsewhere a block is 8 or 16 columns wide and nothing is left */
    switch ((n_cols - col) / VF) {
    case 3:
        product_block(p, row, col, n_r, 3, half);
        break;
    case 2:
        product_block(p, row, col, n_r, 2, half);
        break;
    case 1:
        product_block(p, row, col, n_r, 1, half);
    }
#endif
}

VEC_INLINE void product_all(const product *p, uint32_t n_rows, uint32_t n_cols, const bool half) {
    uint32_t row = 0;
    for (; row + NR <= n_rows; row += NR)
        product_rows(p, row, n_cols, NR, half);
    switch (n_rows - row) {
    case 5:
        product_rows(p, row, n_cols, 5, half);
        break;
    case 4:
        product_rows(p, row, n_cols, 4, half);
        break;
    case 3:
        product_rows(p, row, n_cols, 3, half);
        break;
    case 2:
        product_rows(p, row, n_cols, 2, half);
        break;
    case 1:
        product_rows(p, row, n_cols, 1, half);
    }
}

#endif
