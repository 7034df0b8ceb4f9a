/*
 * RoPE frequencies. Scaling comes in four kinds, told apart by what the file holds: linear (all positions divided),
 * frequency factors (Llama 3: one tensor), longrope (Phi-3: two tensors, chosen by the context), YaRN (arXiv 2309.00071).
 */
#include <math.h>

#include "model/model.h"

/* The pair index (as a real number) at which a dimension makes `turns` turns within the original context. */
static double yarn_pair(const kvq_rope_params *p, uint32_t n_rot, double turns) {
    return n_rot * log(p->n_ctx_orig / (turns * 6.283185307179586)) / (2.0 * log(p->base));
}

static double yarn_frequency(const kvq_rope_params *p, uint32_t n_rot, uint32_t pair, double frequency) {
    double low = fmax(0.0, floor(yarn_pair(p, n_rot, p->beta_fast)));
    double high = fmin(n_rot - 1.0, ceil(yarn_pair(p, n_rot, p->beta_slow)));
    double slow = fmin(1.0, fmax(0.0, (pair - low) / fmax(0.001, high - low))); /* 0: keep, 1: divide */
    return frequency * (slow / p->factor + (1.0 - slow));
}

static void fill(const kvq_rope_params *p, float base, bool scaled, const float *factors, uint32_t n_rot, float *inv_freq) {
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        double frequency = 1.0 / pow(base, 2.0 * i / n_rot);
        if (scaled && factors != NULL)
            frequency /= factors[i];
        if (scaled)
            frequency = p->yarn ? yarn_frequency(p, n_rot, i, frequency) : frequency / p->factor;
        inv_freq[i] = (float)frequency;
    }
}

void kvq_model_ropes(const pykvq_model *model, uint32_t n_ctx, float *inv_freq, kvq_rope *global, kvq_rope *local) {
    const kvq_rope_params *p = &model->h.rope;
    uint32_t n_rot = model->h.n_rot;
    const float *factors = p->long_factors != NULL && n_ctx > p->n_ctx_orig ? p->long_factors : p->factors;
    bool local_scaled = model->arch->local_rope_base == 0.0f;
    fill(p, p->base, true, factors, n_rot, inv_freq);
    fill(p, p->local_base, local_scaled, factors, n_rot, inv_freq + n_rot / 2);
    *global = (kvq_rope){model->arch->rope_interleaved, n_rot, inv_freq, p->magnitude};
    *local = (kvq_rope){model->arch->rope_interleaved, n_rot, inv_freq + n_rot / 2, local_scaled ? p->magnitude : 1.0f};
}
