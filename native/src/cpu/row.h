/* Operations on rows of activations: norms, RoPE, activations, half floats. One table per instruction set. */
#ifndef KVQ_CPU_ROW_H
#define KVQ_CPU_ROW_H

#include "backend/backend.h"

typedef struct kvq_row_kernels {
    /* y (n) = x / rms(x) * w; if add, y += that. y may be x. */
    void (*norm)(const float *x, const float *w, float eps, uint32_t n, bool add, float *y);
    /* Turns the pairs of one head in place; cos, sin: (n_rot / 2) */
    void (*rope)(float *x, const float *cos, const float *sin, uint32_t n_rot, bool interleaved);
    /* y (n) = act(gate) * up; y may be gate or up */
    void (*activate)(kvq_activation act, const float *gate, const float *up, size_t n, float *y);
    /* x (n) = cap * tanh(x / cap) */
    void (*softcap)(float cap, size_t n, float *x);
    void (*to_f16)(const float *x, size_t n, uint16_t *y); /* round to nearest even */
    /* NaN becomes 0, infinity the largest half float; returns how many of h (n) did */
    uint32_t (*make_finite)(uint16_t *h, size_t n);
    void (*from_f16)(const uint16_t *x, size_t n, float *y);
} kvq_row_kernels;

#endif
