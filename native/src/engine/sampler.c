/*
 * Sampling: logits -> one token. The order is llama.cpp's: top-k, top-p, min-p, temperature, draw. Greedy (temperature 0)
 * is the highest logit, the lowest id among equals.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/status.h"

typedef struct candidate {
    float logit; /* later: probability */
    int32_t id;
} candidate;

struct pykvq_sampler {
    pykvq_sampler_params params;
    uint64_t state;        /* of the generator */
    candidate *candidates; /* (n_vocab), grown on first use with a larger vocabulary */
    uint32_t n_vocab;
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

pykvq_status pykvq_sampler_create(const pykvq_sampler_params *p, pykvq_sampler **out) {
    if (p->size != sizeof *p)
        return kvq_fail(PYKVQ_E_ARGUMENT, "sampler parameters: size is %llu, this library expects %zu",
                        (unsigned long long)p->size, sizeof *p);
    if (!(p->temp >= 0.0f) || !isfinite(p->temp))
        return kvq_fail(PYKVQ_E_ARGUMENT, "sampler: temp %g, expected a number of at least 0", (double)p->temp);
    if (p->top_k < 0)
        return kvq_fail(PYKVQ_E_ARGUMENT, "sampler: top_k %d, expected at least 0 (0: off)", p->top_k);
    if (!(p->top_p > 0.0f && p->top_p <= 1.0f))
        return kvq_fail(PYKVQ_E_ARGUMENT, "sampler: top_p %g, expected above 0 and at most 1 (1: off)", (double)p->top_p);
    if (!(p->min_p >= 0.0f && p->min_p <= 1.0f))
        return kvq_fail(PYKVQ_E_ARGUMENT, "sampler: min_p %g, expected 0 to 1 (0: off)", (double)p->min_p);
    pykvq_sampler *s;
    KVQ_TRY(kvq_alloc_array((void **)&s, 1, sizeof *s, "sampler"));
    s->params = *p;
    s->state = p->seed;
    *out = s;
    return PYKVQ_OK;
}

void pykvq_sampler_destroy(pykvq_sampler *s) {
    if (s == NULL)
        return;
    kvq_free(s->candidates, s->n_vocab * sizeof(candidate));
    kvq_free(s, sizeof *s);
}

static pykvq_status reserve(pykvq_sampler *s, uint32_t n_vocab) {
    if (n_vocab <= s->n_vocab)
        return PYKVQ_OK;
    candidate *grown;
    KVQ_TRY(kvq_alloc_array((void **)&grown, n_vocab, sizeof *grown, "sampler"));
    kvq_free(s->candidates, s->n_vocab * sizeof(candidate));
    s->candidates = grown;
    s->n_vocab = n_vocab;
    return PYKVQ_OK;
}

/* Highest logit first; the lower id first among equals, so that the order is total. */
static int by_logit(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Moves the k highest of n to the front (in no order), by Wirth's quickselect. */
static void select_top(candidate *c, int32_t n, int32_t k) {
    int32_t low = 0, high = n - 1;
    while (low < high) {
        candidate pivot = c[k - 1];
        int32_t i = low, j = high;
        do {
            while (by_logit(&c[i], &pivot) < 0)
                i++;
            while (by_logit(&pivot, &c[j]) < 0)
                j--;
            if (i <= j) {
                candidate swap = c[i];
                c[i++] = c[j];
                c[j--] = swap;
            }
        } while (i <= j);
        if (j < k - 1)
            low = i;
        if (k - 1 < i)
            high = j;
    }
}

static void softmax(candidate *c, uint32_t n, float temp) {
    float top = c[0].logit;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += c[i].logit = expf((c[i].logit - top) / temp);
    for (uint32_t i = 0; i < n; i++)
        c[i].logit = (float)(c[i].logit / sum);
}

/* Candidates left by top-k, top-p and min-p, highest first. */
static uint32_t filter(const pykvq_sampler_params *p, candidate *c, uint32_t n) {
    if (p->top_k > 0 && (uint32_t)p->top_k < n) {
        select_top(c, (int32_t)n, p->top_k);
        n = (uint32_t)p->top_k;
    }
    qsort(c, n, sizeof *c, by_logit);
    if (p->top_p < 1.0f) { /* the fewest whose probabilities reach top_p */
        double sum = 0, reached = 0;
        for (uint32_t i = 0; i < n; i++)
            sum += exp(c[i].logit - c[0].logit);
        uint32_t kept = 0;
        while (kept < n && reached < p->top_p * sum)
            reached += exp(c[kept++].logit - c[0].logit);
        n = kept;
    }
    if (p->min_p > 0.0f) { /* those at least min_p times as probable as the first */
        float least = c[0].logit + logf(p->min_p);
        uint32_t kept = 1;
        while (kept < n && c[kept].logit >= least)
            kept++;
        n = kept;
    }
    return n;
}

static pykvq_status greedy(const float *logits, uint32_t n_vocab, int32_t *token) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n_vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    *token = (int32_t)best;
    return PYKVQ_OK;
}

pykvq_status pykvq_sampler_sample(pykvq_sampler *s, const float *logits, uint32_t n_vocab, int32_t *token) {
    if (n_vocab == 0)
        return kvq_fail(PYKVQ_E_ARGUMENT, "sampler: no logits given");
    for (uint32_t i = 0; i < n_vocab; i++)
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return kvq_fail(PYKVQ_E_NUMERIC, "logits: token %u has %g; the model or its cache is broken", i,
                            (double)logits[i]);
    if (s->params.temp == 0.0f)
        return greedy(logits, n_vocab, token);
    KVQ_TRY(reserve(s, n_vocab));
    candidate *c = s->candidates;
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_vocab; i++)
        if (logits[i] != -INFINITY)
            c[n++] = (candidate){logits[i], (int32_t)i};
    if (n == 0)
        return kvq_fail(PYKVQ_E_NUMERIC, "logits: every token is excluded");
    n = filter(&s->params, c, n);
    softmax(c, n, s->params.temp);
    double left = next_uniform(&s->state);
    uint32_t i = 0;
    while (i + 1 < n && (left -= c[i].logit) >= 0)
        i++;
    *token = c[i].id;
    return PYKVQ_OK;
}
