#include "kv/tile.h"
#include "kv/rotate.h"

#include <math.h>

uint32_t kvq_tile_load(const float *x, uint32_t head_dim, bool rotated, float *y) {
    uint32_t n_bad = 0;
    for (uint32_t i = 0; i < KVQ_TILE * head_dim; i++) {
        bool good = fabsf(x[i]) <= KVQ_F16_MAX;
        y[i] = good ? x[i] : 0.0f;
        n_bad += !good;
    }
    if (rotated)
        kvq_rotate(y, KVQ_TILE, head_dim);
    return n_bad;
}

void kvq_transpose(const float *x, uint32_t n_rows, uint32_t n_cols, float *y) {
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t c = 0; c < n_cols; c++)
            y[c * n_rows + r] = x[r * n_cols + c];
}

void kvq_transpose_codes(const uint8_t *x, uint32_t n_rows, uint32_t n_cols, uint8_t *y) {
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t c = 0; c < n_cols; c++)
            y[c * n_rows + r] = x[r * n_cols + c];
}
