/*
 * Row kernels: lanes are consecutive elements of a row. All are bound by memory except the activations (about 20
 * instructions per vector of exp).
 */
#include "cpu/row.h"
#include "cpu/isa.h"
#include "cpu/vec.h"

static void norm(const float *x, const float *w, float eps, uint32_t n, bool add, float *y) {
    vf32 sums[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    uint32_t i = 0;
    for (; i + 4 * VF <= n; i += 4 * VF)
        for (uint32_t j = 0; j < 4; j++) {
            vf32 a = vf_load(x + i + j * VF);
            sums[j] = vf_fma(a, a, sums[j]);
        }
    for (; i + VF <= n; i += VF) {
        vf32 a = vf_load(x + i);
        sums[0] = vf_fma(a, a, sums[0]);
    }
    vf32 rest = vf_load_n(x + i, n - i);
    sums[0] = vf_fma(rest, rest, sums[0]);
    float sum = vf_reduce_add(vf_add(vf_add(sums[0], sums[1]), vf_add(sums[2], sums[3])));
    vf32 factor = vf_set1(1.0f / sqrtf(sum / (float)n + eps));
    for (i = 0; i + VF <= n; i += VF) {
        vf32 a = vf_mul(vf_mul(vf_load(x + i), factor), vf_load(w + i));
        vf_store(y + i, add ? vf_add(vf_load(y + i), a) : a);
    }
    vf32 a = vf_mul(vf_mul(rest, factor), vf_load_n(w + i, n - i));
    vf_store_n(y + i, add ? vf_add(vf_load_n(y + i, n - i), a) : a, n - i);
}

static void rope(float *x, const float *cos, const float *sin, uint32_t n_rot, bool interleaved) {
    uint32_t half = n_rot / 2;
    if (interleaved) {
        for (uint32_t i = 0; i < half; i++) {
            float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cos[i] - b * sin[i];
            x[2 * i + 1] = b * cos[i] + a * sin[i];
        }
        return;
    }
    float *low = x, *high = x + half;
    for (uint32_t i = 0; i < half; i++) {
        float a = low[i], b = high[i];
        low[i] = a * cos[i] - b * sin[i];
        high[i] = b * cos[i] + a * sin[i];
    }
}

/* x / (1 + exp(-t)): SiLU with t = x; GELU with t = 2 sqrt(2/pi) (x + 0.044715 x^3), as 1 + tanh(u) = 2 / (1 + exp(-2u)) */
VEC_INLINE vf32 gate_of(kvq_activation act, vf32 x) {
    vf32 minus_t = act == KVQ_SILU ? vf_sub(vf_zero(), x)
                                   : vf_mul(x, vf_fma(vf_mul(x, x), vf_set1(-0.0713548162726f), vf_set1(-1.59576912161f)));
    return vf_div(x, vf_add(vf_set1(1.0f), vf_exp(minus_t)));
}

VEC_INLINE void activate_as(kvq_activation act, const float *gate, const float *up, size_t n, float *y) {
    size_t i = 0;
    for (; i + VF <= n; i += VF)
        vf_store(y + i, vf_mul(gate_of(act, vf_load(gate + i)), vf_load(up + i)));
    vf_store_n(y + i, vf_mul(gate_of(act, vf_load_n(gate + i, n - i)), vf_load_n(up + i, n - i)), n - i);
}

static void activate(kvq_activation act, const float *gate, const float *up, size_t n, float *y) {
    if (act == KVQ_SILU)
        activate_as(KVQ_SILU, gate, up, n, y);
    else
        activate_as(KVQ_GELU_TANH, gate, up, n, y);
}

static void softcap(float cap, size_t n, float *x) {
    size_t i = 0;
    for (; i + VF <= n; i += VF)
        vf_store(x + i, vf_softcap(vf_load(x + i), cap));
    vf_store_n(x + i, vf_softcap(vf_load_n(x + i, n - i), cap), n - i);
}

static void to_f16(const float *x, size_t n, uint16_t *y) {
    size_t i = 0;
    for (; i + VF <= n; i += VF)
        vf_store_f16(y + i, vf_load(x + i));
    for (; i < n; i++)
        y[i] = kvq_f32_to_f16(x[i]);
}

static void from_f16(const uint16_t *x, size_t n, float *y) {
    size_t i = 0;
    for (; i + VF <= n; i += VF)
        vf_store(y + i, vf_load_f16(x + i));
    for (; i < n; i++)
        y[i] = kvq_f16_to_f32(x[i]);
}

static uint32_t make_finite(uint16_t *h, size_t n) {
    uint32_t n_bad = 0;
    for (size_t i = 0; i < n; i++) { /* one per token and head: left to the compiler */
        uint16_t magnitude = h[i] & 0x7fff;
        n_bad += magnitude >= 0x7c00;
        h[i] = magnitude < 0x7c00 ? h[i] : magnitude == 0x7c00 ? (uint16_t)(h[i] - 1) : 0;
    }
    return n_bad;
}

const kvq_row_kernels KVQ_NAME(kvq_row) = {norm, rope, activate, softcap, to_f16, make_finite, from_f16};
