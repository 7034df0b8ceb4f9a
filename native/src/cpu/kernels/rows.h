/*
 * Tiles as rows of 64 tokens: turning them over, and Hadamard matrices between rows, where every lane does the same and no
 * lanes are swapped.
 */
#ifndef KVQ_CPU_KERNELS_ROWS_H
#define KVQ_CPU_KERNELS_ROWS_H

#include "cpu/vec.h"
#include "kv/codec.h"
#include "kv/rotate.h"

/* y (n_cols, n_rows) = x (n_rows, n_cols); n_rows: a multiple of 16, n_cols: of 4 */
static void turn(const float *x, uint32_t n_rows, uint32_t n_cols, float *y) {
    for (uint32_t row = 0; row < n_rows; row += VF)
        for (uint32_t col = 0; col < n_cols; col += 4) {
            vi32 c[4];
            vi_load_rows((const uint8_t *)(x + row * n_cols + col), n_cols * sizeof *x, c);
#pragma GCC unroll 4
            for (uint32_t i = 0; i < 4; i++)
                vi_store(y + (col + i) * n_rows + row, c[i]);
        }
}

/* A butterfly network between n rows of VF tokens, `stride` rows apart: (a + b, a - b) with strides 1, 2 .. n / 2. */
VEC_INLINE void butterflies(float *y, uint32_t stride, const uint32_t n) {
    vf32 x[8];
#pragma GCC unroll 8
    for (uint32_t i = 0; i < n; i++)
        x[i] = vf_load(y + i * stride * KVQ_TILE);
#pragma GCC unroll 3
    for (uint32_t half = 1; half < n; half *= 2)
#pragma GCC unroll 8
        for (uint32_t i = 0; i < n; i++)
            if ((i & half) == 0) {
                vf32 a = x[i], b = x[i + half];
                x[i] = vf_add(a, b);
                x[i + half] = vf_sub(a, b);
            }
#pragma GCC unroll 8
    for (uint32_t i = 0; i < n; i++)
        vf_store(y + i * stride * KVQ_TILE, x[i]);
}

VEC_INLINE void butterfly_pass(float *y, uint32_t n_rows, uint32_t stride, const uint32_t n) {
    for (uint32_t start = 0; start < n_rows; start += n * stride)
        for (uint32_t i = start; i < start + stride; i++)
            for (uint32_t t = 0; t < KVQ_TILE; t += VF)
                butterflies(y + i * KVQ_TILE + t, stride, n);
}

/* The Hadamard matrices of kvq_rotate without their factor, of y (n, 64), from this stride on. Three strides at a time stay
 * in registers. */
static void hadamard_rows(float *y, uint32_t n, uint32_t stride) {
    uint32_t block = kvq_rotate_block(n);
    for (; stride * 8 <= block; stride *= 8)
        butterfly_pass(y, n, stride, 8);
    if (block / stride == 4)
        butterfly_pass(y, n, stride, 4);
    else if (block / stride == 2)
        butterfly_pass(y, n, stride, 2);
}

#endif
