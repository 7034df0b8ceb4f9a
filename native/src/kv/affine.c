#include "kv/affine.h"
#include "kv/tile.h"

#include <math.h>

/* Per column: the scale and zero as stored, and what a refit needs of the codes q and of y = x - zero. */
typedef struct columns {
    float scale[KVQ_MAX_HEAD_DIM], zero[KVQ_MAX_HEAD_DIM];
    float q[KVQ_MAX_HEAD_DIM], qq[KVQ_MAX_HEAD_DIM];                       /* sums of q, q*q */
    float y[KVQ_MAX_HEAD_DIM], yy[KVQ_MAX_HEAD_DIM], yq[KVQ_MAX_HEAD_DIM]; /* sums of y, y*y, y*q */
} columns;

static float as_f16(float x) {
    return kvq_f16_to_f32(kvq_f16_saturated(x));
}

static void start_from_range(const float *x, uint32_t n_rows, uint32_t n_cols, float n_steps, columns *c) {
    for (uint32_t j = 0; j < n_cols; j++) {
        float low = x[j], high = x[j];
        for (uint32_t i = 1; i < n_rows; i++) {
            float value = x[i * n_cols + j];
            low = value < low ? value : low;
            high = value > high ? value : high;
        }
        c->scale[j] = as_f16((high - low) / n_steps);
        c->zero[j] = as_f16(low);
    }
}

static void round_codes(const float *x, uint32_t n_rows, uint32_t n_cols, float n_steps, columns *c, uint8_t *codes) {
    float inverse[KVQ_MAX_HEAD_DIM];
    for (uint32_t j = 0; j < n_cols; j++) {
        inverse[j] = kvq_reciprocal(c->scale[j]);
        c->q[j] = c->qq[j] = c->y[j] = c->yy[j] = c->yq[j] = 0.0f;
    }
    for (uint32_t i = 0; i < n_rows; i++)
        for (uint32_t j = 0; j < n_cols; j++) {
            float y = x[i * n_cols + j] - c->zero[j];
            float q = kvq_round(kvq_clamp(y * inverse[j], 0.0f, n_steps));
            codes[i * n_cols + j] = (uint8_t)q;
            c->q[j] += q;
            c->qq[j] += q * q;
            c->y[j] += y;
            c->yy[j] += y * y;
            c->yq[j] += y * q;
        }
}

typedef enum rule { LEAST_SQUARES, KEEP_NORM, UNBIASED } rule;

static void refit(uint32_t n_rows, uint32_t n_cols, rule how, columns *c) {
    float n = (float)n_rows;
    for (uint32_t j = 0; j < n_cols; j++) {
        float var_q = c->qq[j] - c->q[j] * c->q[j] / n;
        float var_y = c->yy[j] - c->y[j] * c->y[j] / n;
        float cov = c->yq[j] - c->y[j] * c->q[j] / n;
        if (!(var_q > 0.0f && var_y > 0.0f && cov > 0.0f))
            continue; /* one code, or too small to measure: stay */
        float scale = how == LEAST_SQUARES ? cov / var_q : how == KEEP_NORM ? sqrtf(var_y / var_q) : var_y / cov;
        c->scale[j] = as_f16(scale);
        c->zero[j] = as_f16(c->zero[j] + (c->y[j] - c->scale[j] * c->q[j]) / n);
    }
}

void kvq_affine_encode(const float *x, uint32_t n_rows, uint32_t n_cols, uint32_t bits, kvq_fit fit, uint16_t *scale,
                       uint16_t *zero, uint8_t *codes) {
    float n_steps = (float)((1u << bits) - 1);
    columns c;
    start_from_range(x, n_rows, n_cols, n_steps, &c);
    round_codes(x, n_rows, n_cols, n_steps, &c, codes);
    for (int i = 0; i < 3; i++) {
        refit(n_rows, n_cols, LEAST_SQUARES, &c);
        round_codes(x, n_rows, n_cols, n_steps, &c, codes);
    }
    refit(n_rows, n_cols, fit == KVQ_FIT_NORM ? KEEP_NORM : UNBIASED, &c);
    for (uint32_t j = 0; j < n_cols; j++) {
        scale[j] = kvq_f16_saturated(c.scale[j]);
        zero[j] = kvq_f16_saturated(c.zero[j]);
    }
}

void kvq_affine_decode(const uint8_t *codes, const uint16_t *scale, const uint16_t *zero, uint32_t n_rows, uint32_t n_cols,
                       float *x) {
    for (uint32_t i = 0; i < n_rows; i++)
        for (uint32_t j = 0; j < n_cols; j++)
            x[i * n_cols + j] = kvq_f16_to_f32(scale[j]) * (float)codes[i * n_cols + j] + kvq_f16_to_f32(zero[j]);
}
