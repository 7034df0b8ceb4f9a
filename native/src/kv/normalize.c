#include "kv/normalize.h"
#include "kv/tile.h"

#include <math.h>
#include <string.h>

enum { N_ROUNDS = 2 };

/* Divides elements u[0], u[stride] ... (n of them) by their root mean square and multiplies it to the factor. */
static void normalize_line(float *u, uint32_t n, uint32_t stride, float *factor) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        sum += u[i * stride] * u[i * stride];
    float rms = sqrtf(sum / (float)n), inverse = kvq_reciprocal(rms);
    if (inverse == 0.0f)
        return; /* nothing there to scale */
    for (uint32_t i = 0; i < n; i++)
        u[i * stride] *= inverse;
    *factor *= rms;
}

void kvq_normal_factors(const float *y, uint32_t head_dim, uint16_t *token, uint16_t *channel) {
    float u[KVQ_TILE * KVQ_MAX_HEAD_DIM], tokens[KVQ_TILE], channels[KVQ_MAX_HEAD_DIM];
    memcpy(u, y, (size_t)KVQ_TILE * head_dim * sizeof *u);
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        tokens[t] = 1.0f;
    for (uint32_t d = 0; d < head_dim; d++)
        channels[d] = 1.0f;
    for (int round = 0; round < N_ROUNDS; round++) {
        for (uint32_t d = 0; d < head_dim; d++)
            normalize_line(u + d, KVQ_TILE, head_dim, &channels[d]);
        for (uint32_t t = 0; t < KVQ_TILE; t++)
            normalize_line(u + t * head_dim, head_dim, 1, &tokens[t]);
    }
    for (uint32_t t = 0; token && t < KVQ_TILE; t++)
        token[t] = kvq_f16_saturated(tokens[t]);
    for (uint32_t d = 0; channel && d < head_dim; d++)
        channel[d] = kvq_f16_saturated(channels[d]);
}

void kvq_divide_tokens(const float *y, uint32_t head_dim, const uint16_t *token, float *normal) {
    for (uint32_t t = 0; t < KVQ_TILE; t++) {
        float inverse = kvq_reciprocal(kvq_f16_to_f32(token[t]));
        for (uint32_t d = 0; d < head_dim; d++)
            normal[t * head_dim + d] = y[t * head_dim + d] * inverse;
    }
}

void kvq_refit_tokens(const float *y, const float *fitted, uint32_t head_dim, uint16_t *token) {
    for (uint32_t t = 0; t < KVQ_TILE; t++) {
        float cross = 0.0f, square = 0.0f;
        for (uint32_t i = t * head_dim; i < (t + 1) * head_dim; i++) {
            cross += fitted[i] * y[i];
            square += fitted[i] * fitted[i];
        }
        if (cross > 0.0f && square > 0.0f)
            token[t] = kvq_f16_saturated(cross / square);
    }
}
