/* What the codecs share: taking a tile in, rounding that every machine repeats, half-float scales. */
#ifndef KVQ_KV_TILE_H
#define KVQ_KV_TILE_H

#include "base/half.h"
#include "kv/codec.h"

#define KVQ_F16_MAX 65504.0f

/* Rounds to the nearest integer, ties to even, for |x| < 2^22, in plain float32 additions. */
static inline float kvq_round(float x) {
    return (x + 0x1.8p23f) - 0x1.8p23f;
}

static inline float kvq_clamp(float x, float low, float high) {
    return x < low ? low : x > high ? high : x;
}

/* 1/x; 0 where that is infinite or x is 0, so that what is too small to scale becomes code 0 */
static inline float kvq_reciprocal(float x) {
    return x > 0x1p-126f || x < -0x1p-126f ? 1.0f / x : 0.0f;
}

/* The half float nearest to x, the largest finite one beyond; a zero has no sign. */
static inline uint16_t kvq_f16_saturated(float x) {
    uint16_t half = kvq_f32_to_f16(kvq_clamp(x, -KVQ_F16_MAX, KVQ_F16_MAX));
    return half & 0x7fff ? half : 0;
}

static inline bool kvq_takes_head_dim(uint32_t head_dim) {
    return head_dim % 16 == 0 && head_dim > 0 && head_dim <= KVQ_MAX_HEAD_DIM;
}

/* y (KVQ_TILE, head_dim) = x with 0 for what no half float can hold, rotated if asked for; returns how many became 0. */
uint32_t kvq_tile_load(const float *x, uint32_t head_dim, bool rotated, float *y);
/* y: (n_cols, n_rows) = x: (n_rows, n_cols) turned over */
void kvq_transpose(const float *x, uint32_t n_rows, uint32_t n_cols, float *y);
void kvq_transpose_codes(const uint8_t *x, uint32_t n_rows, uint32_t n_cols, uint8_t *y);

#endif
