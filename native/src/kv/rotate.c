#include "kv/rotate.h"

#include <math.h>

uint32_t kvq_rotate_block(uint32_t head_dim) {
    return head_dim & -head_dim;
}

static void flip_signs(float *x, uint32_t n_rows, uint32_t head_dim) {
    for (uint32_t d = 0; d < head_dim; d++)
        if (kvq_rotate_negative(d))
            for (uint32_t row = 0; row < n_rows; row++)
                x[row * head_dim + d] = -x[row * head_dim + d];
}

static void hadamard(float *x, uint32_t n, float factor) {
    for (uint32_t stride = 1; stride < n; stride *= 2)
        for (uint32_t start = 0; start < n; start += 2 * stride)
            for (uint32_t i = start; i < start + stride; i++) {
                float a = x[i], b = x[i + stride];
                x[i] = a + b;
                x[i + stride] = a - b;
            }
    for (uint32_t i = 0; i < n; i++)
        x[i] *= factor;
}

static void hadamard_blocks(float *x, uint32_t n_rows, uint32_t head_dim) {
    uint32_t n = kvq_rotate_block(head_dim);
    float factor = (float)(1.0 / sqrt((double)n));
    for (uint32_t i = 0; i < n_rows * head_dim; i += n)
        hadamard(x + i, n, factor);
}

void kvq_rotate(float *x, uint32_t n_rows, uint32_t head_dim) {
    flip_signs(x, n_rows, head_dim);
    hadamard_blocks(x, n_rows, head_dim);
}

void kvq_rotate_back(float *x, uint32_t n_rows, uint32_t head_dim) {
    hadamard_blocks(x, n_rows, head_dim);
    flip_signs(x, n_rows, head_dim);
}
