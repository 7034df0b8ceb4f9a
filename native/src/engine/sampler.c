/*
 * Sampling: logits -> one token. The order of the steps and what they mean is llama.cpp's; pykvq.h has the list.
 * Greedy (temperature 0) is the highest logit, the lowest id among equals.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/status.h"
#include "engine/sampler.h"

struct pykvq_sampler {
    pykvq_sampler_params params; /* its arrays are the sampler's own, the breakers sorted */
    uint64_t state;              /* of the random numbers */
    float mu;                    /* mirostat: the surprise that the next token may have, bits */
    uint32_t n_vocab;            /* what the next three hold; grows with the first larger vocabulary */
    float *logits;               /* (n_vocab) after mask, bias and penalties */
    kvq_candidate *candidates;   /* (n_vocab) */
    uint32_t *tally;             /* (n_vocab) zeros between two steps */
    uint32_t n_matches;
    uint32_t *matches; /* (n_matches) scratch of DRY, as long as the longest history so far */
    bool masked;
    uint32_t n_mask;
    uint32_t *mask; /* (n_mask) */
};

/* SplitMix64: the state counts up, the output is its hash. */
static uint64_t next_bits(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static double next_uniform(uint64_t *state) { /* [0, 1) */
    return (double)(next_bits(state) >> 11) * 0x1p-53;
}

/* ---- making ---- */

static pykvq_status check_float(const char *name, float value, float low, float high, const char *expected) {
    if (value >= low && value <= high)
        return PYKVQ_OK;
    return kvq_fail(PYKVQ_E_ARGUMENT, "sampler: %s %g, expected %s", name, (double)value, expected);
}

static pykvq_status check_int(const char *name, int32_t value, int32_t low, const char *expected) {
    if (value >= low)
        return PYKVQ_OK;
    return kvq_fail(PYKVQ_E_ARGUMENT, "sampler: %s %d, expected %s", name, value, expected);
}

static pykvq_status check_params(const pykvq_sampler_params *p) {
    const float most = 1e6f; /* of numbers without a natural limit */
    KVQ_TRY(check_float("temp", p->temp, 0, most, "0 to 1e6 (0: greedy)"));
    KVQ_TRY(check_int("top_k", p->top_k, 0, "at least 0 (0: off)"));
    KVQ_TRY(check_float("top_p", p->top_p, FLT_TRUE_MIN, 1, "above 0 and at most 1 (1: off)"));
    KVQ_TRY(check_float("min_p", p->min_p, 0, 1, "0 to 1 (0: off)"));
    KVQ_TRY(check_float("temp_range", p->temp_range, 0, most, "0 to 1e6 (0: off)"));
    KVQ_TRY(check_float("temp_exponent", p->temp_exponent, 0, most, "0 to 1e6"));
    KVQ_TRY(check_float("typical_p", p->typical_p, FLT_TRUE_MIN, 1, "above 0 and at most 1 (1: off)"));
    KVQ_TRY(check_float("top_n_sigma", p->top_n_sigma, 0, most, "0 to 1e6 (0: off)"));
    KVQ_TRY(check_float("xtc_probability", p->xtc_probability, 0, 1, "0 to 1 (0: off)"));
    KVQ_TRY(check_float("xtc_threshold", p->xtc_threshold, 0, 1, "0 to 1"));
    KVQ_TRY(check_float("repeat_penalty", p->repeat_penalty, FLT_MIN, most, "above 0 and at most 1e6 (1: off)"));
    KVQ_TRY(check_float("frequency_penalty", p->frequency_penalty, -most, most, "-1e6 to 1e6 (0: off)"));
    KVQ_TRY(check_float("presence_penalty", p->presence_penalty, -most, most, "-1e6 to 1e6 (0: off)"));
    KVQ_TRY(check_int("penalty_last_n", p->penalty_last_n, -1, "at least -1 (-1: all tokens)"));
    KVQ_TRY(check_float("dry_multiplier", p->dry_multiplier, 0, most, "0 to 1e6 (0: off)"));
    KVQ_TRY(check_float("dry_base", p->dry_base, 1, most, "1 to 1e6"));
    KVQ_TRY(check_int("dry_allowed_length", p->dry_allowed_length, 1, "at least 1"));
    KVQ_TRY(check_int("dry_last_n", p->dry_last_n, -1, "at least -1 (-1: all tokens)"));
    if (p->mirostat > 2)
        return kvq_fail(PYKVQ_E_ARGUMENT, "sampler: mirostat %u, expected 0 (off), 1 or 2", p->mirostat);
    KVQ_TRY(check_float("mirostat_tau", p->mirostat_tau, 0, most, "0 to 1e6"));
    KVQ_TRY(check_float("mirostat_eta", p->mirostat_eta, 0, most, "0 to 1e6"));
    for (uint32_t i = 0; i < p->n_bias; i++)
        if (p->bias_tokens[i] < 0 || isnan(p->bias[i]) || p->bias[i] == INFINITY)
            return kvq_fail(PYKVQ_E_ARGUMENT, "sampler: bias %g of token %d, expected a number, or -inf, and a token id",
                            (double)p->bias[i], p->bias_tokens[i]);
    return PYKVQ_OK;
}

static pykvq_status copy_array(const void *src, uint32_t n, size_t element_bytes, const void **out) {
    void *copy = NULL;
    if (n > 0) {
        KVQ_TRY(kvq_alloc_array(&copy, n, element_bytes, "sampler"));
        memcpy(copy, src, n * element_bytes);
    }
    *out = copy;
    return PYKVQ_OK;
}

static int by_id(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static pykvq_status copy_params(const pykvq_sampler_params *p, pykvq_sampler_params *out) {
    *out = *p;
    out->dry_breakers = out->bias_tokens = NULL;
    out->bias = NULL;
    KVQ_TRY(copy_array(p->dry_breakers, p->n_dry_breakers, sizeof(int32_t), (const void **)&out->dry_breakers));
    KVQ_TRY(copy_array(p->bias_tokens, p->n_bias, sizeof(int32_t), (const void **)&out->bias_tokens));
    KVQ_TRY(copy_array(p->bias, p->n_bias, sizeof(float), (const void **)&out->bias));
    if (out->n_dry_breakers > 0)
        qsort((int32_t *)out->dry_breakers, out->n_dry_breakers, sizeof(int32_t), by_id);
    return PYKVQ_OK;
}

pykvq_status pykvq_sampler_create(const pykvq_sampler_params *p, pykvq_sampler **out) {
    if (p->size != sizeof *p)
        return kvq_fail(PYKVQ_E_ARGUMENT, "sampler parameters: size is %llu, this library expects %zu",
                        (unsigned long long)p->size, sizeof *p);
    KVQ_TRY(check_params(p));
    pykvq_sampler *s;
    KVQ_TRY(kvq_alloc_array((void **)&s, 1, sizeof *s, "sampler"));
    s->state = p->seed;
    s->mu = 2 * p->mirostat_tau;
    pykvq_status status = copy_params(p, &s->params);
    if (status != PYKVQ_OK) {
        pykvq_sampler_destroy(s);
        return status;
    }
    *out = s;
    return PYKVQ_OK;
}

static void free_vocabulary(pykvq_sampler *s) {
    kvq_free(s->logits, s->n_vocab * sizeof *s->logits);
    kvq_free(s->candidates, s->n_vocab * sizeof *s->candidates);
    kvq_free(s->tally, s->n_vocab * sizeof *s->tally);
    s->logits = NULL;
    s->candidates = NULL;
    s->tally = NULL;
}

void pykvq_sampler_destroy(pykvq_sampler *s) {
    if (s == NULL)
        return;
    const pykvq_sampler_params *p = &s->params;
    free_vocabulary(s);
    kvq_free(s->matches, s->n_matches * sizeof *s->matches);
    kvq_free(s->mask, s->n_mask * sizeof *s->mask);
    kvq_free((void *)p->dry_breakers, p->n_dry_breakers * sizeof *p->dry_breakers);
    kvq_free((void *)p->bias_tokens, p->n_bias * sizeof *p->bias_tokens);
    kvq_free((void *)p->bias, p->n_bias * sizeof *p->bias);
    kvq_free(s, sizeof *s);
}

pykvq_status pykvq_sampler_allow(pykvq_sampler *s, const uint32_t *mask, uint32_t n_words) {
    if (mask != NULL && n_words != s->n_mask) {
        uint32_t *grown;
        KVQ_TRY(kvq_alloc_array((void **)&grown, n_words, sizeof *grown, "sampler mask"));
        kvq_free(s->mask, s->n_mask * sizeof *s->mask);
        s->mask = grown;
        s->n_mask = n_words;
    }
    s->masked = mask != NULL;
    if (s->masked)
        memcpy(s->mask, mask, n_words * sizeof *mask);
    return PYKVQ_OK;
}

/* Room for a vocabulary. Also on failure n_vocab is what was allocated. */
static pykvq_status reserve_vocabulary(pykvq_sampler *s, uint32_t n_vocab) {
    if (s->logits != NULL && s->candidates != NULL && s->tally != NULL && n_vocab <= s->n_vocab)
        return PYKVQ_OK;
    free_vocabulary(s);
    s->n_vocab = n_vocab;
    KVQ_TRY(kvq_alloc_array((void **)&s->logits, n_vocab, sizeof *s->logits, "sampler"));
    KVQ_TRY(kvq_alloc_array((void **)&s->candidates, n_vocab, sizeof *s->candidates, "sampler"));
    return kvq_alloc_array((void **)&s->tally, n_vocab, sizeof *s->tally, "sampler");
}

static pykvq_status reserve_history(pykvq_sampler *s, uint32_t n_history) {
    if (s->params.dry_multiplier == 0.0f || n_history <= s->n_matches)
        return PYKVQ_OK;
    uint32_t *grown;
    uint32_t n = n_history + n_history / 2;
    KVQ_TRY(kvq_alloc_array((void **)&grown, n, sizeof *grown, "sampler history"));
    kvq_free(s->matches, s->n_matches * sizeof *s->matches);
    s->matches = grown;
    s->n_matches = n;
    return PYKVQ_OK;
}

/* ---- drawing ---- */

static void apply_mask(const pykvq_sampler *s, float *logits, uint32_t n_vocab) {
    for (uint32_t t = 0; t < n_vocab; t++)
        if (t / 32 >= s->n_mask || !(s->mask[t / 32] >> t % 32 & 1))
            logits[t] = -INFINITY;
}

static void apply_bias(const pykvq_sampler_params *p, float *logits, uint32_t n_vocab) {
    for (uint32_t i = 0; i < p->n_bias; i++)
        if ((uint32_t)p->bias_tokens[i] < n_vocab)
            logits[p->bias_tokens[i]] += p->bias[i];
}

static uint32_t highest(const float *logits, uint32_t n_vocab) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n_vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* The candidates left, highest first, with their probabilities. */
static uint32_t filter(pykvq_sampler *s, kvq_candidate *c, uint32_t n) {
    const pykvq_sampler_params *p = &s->params;
    if (p->top_n_sigma > 0)
        n = kvq_keep_top_n_sigma(c, n, p->top_n_sigma);
    if (p->top_k > 0)
        n = kvq_keep_top_k(c, n, p->top_k);
    kvq_sort_candidates(c, n);
    if (p->typical_p < 1)
        n = kvq_keep_typical(c, n, p->typical_p);
    if (p->top_p < 1)
        n = kvq_keep_top_p(c, n, p->top_p);
    if (p->min_p > 0)
        n = kvq_keep_min_p(c, n, p->min_p);
    if (p->xtc_probability > 0 && next_uniform(&s->state) < p->xtc_probability)
        n = kvq_drop_top_choices(c, n, p->xtc_threshold);
    kvq_apply_temperature(c, n, p);
    kvq_softmax(c, n);
    return n;
}

static uint32_t filter_mirostat(pykvq_sampler *s, kvq_candidate *c, uint32_t n, uint32_t n_vocab) {
    kvq_sort_candidates(c, n);
    kvq_apply_temperature(c, n, &s->params);
    n = kvq_keep_mirostat(c, n, s->params.mirostat, s->mu, n_vocab);
    kvq_softmax(c, n);
    return n;
}

static int32_t draw(pykvq_sampler *s, uint32_t n_vocab) {
    kvq_candidate *c = s->candidates;
    uint32_t n = 0, i = 0;
    for (uint32_t t = 0; t < n_vocab; t++)
        if (s->logits[t] != -INFINITY)
            c[n++] = (kvq_candidate){.logit = s->logits[t], .id = (int32_t)t};
    n = s->params.mirostat ? filter_mirostat(s, c, n, n_vocab) : filter(s, c, n);
    double left = next_uniform(&s->state);
    while (i + 1 < n && (left -= c[i].p) >= 0)
        i++;
    if (s->params.mirostat)
        s->mu -= s->params.mirostat_eta * (-log2f(fmaxf(c[i].p, FLT_MIN)) - s->params.mirostat_tau);
    return c[i].id;
}

pykvq_status pykvq_sampler_sample(pykvq_sampler *s, const float *logits, uint32_t n_vocab, const int32_t *history,
                                  uint32_t n_history, int32_t *token) {
    const pykvq_sampler_params *p = &s->params;
    if (n_vocab == 0)
        return kvq_fail(PYKVQ_E_ARGUMENT, "sampler: no logits given");
    for (uint32_t i = 0; i < n_vocab; i++)
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return kvq_fail(PYKVQ_E_NUMERIC, "logits: token %u has %g; the model or its cache is broken", i,
                            (double)logits[i]);
    KVQ_TRY(reserve_vocabulary(s, n_vocab));
    KVQ_TRY(reserve_history(s, n_history));
    memcpy(s->logits, logits, n_vocab * sizeof *logits);
    if (s->masked)
        apply_mask(s, s->logits, n_vocab);
    apply_bias(p, s->logits, n_vocab);
    kvq_apply_penalties(p, s->logits, n_vocab, history, n_history, s->tally);
    kvq_apply_dry(p, s->logits, n_vocab, history, n_history, s->tally, s->matches);
    uint32_t best = highest(s->logits, n_vocab);
    if (s->logits[best] == -INFINITY)
        return kvq_fail(PYKVQ_E_NUMERIC, "logits: every token is excluded");
    *token = p->temp == 0.0f ? (int32_t)best : draw(s, n_vocab);
    return PYKVQ_OK;
}
