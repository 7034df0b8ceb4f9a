/* The filters of the sampling chain, and the temperature. Candidates of equal logits are ordered by id, so every filter has
 * one result. */
#include <math.h>
#include <stdlib.h>

#include "engine/sampler.h"

static int by_logit(const void *a, const void *b) {
    const kvq_candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

void kvq_sort_candidates(kvq_candidate *c, uint32_t n) {
    qsort(c, n, sizeof *c, by_logit);
}

void kvq_softmax(kvq_candidate *c, uint32_t n) {
    float top = c[0].logit;
    double sum = 0;
    for (uint32_t i = 1; i < n; i++)
        top = fmaxf(top, c[i].logit);
    for (uint32_t i = 0; i < n; i++)
        sum += c[i].p = expf(c[i].logit - top);
    for (uint32_t i = 0; i < n; i++)
        c[i].p = (float)(c[i].p / sum);
}

uint32_t kvq_keep_top_n_sigma(kvq_candidate *c, uint32_t n, float n_sigma) {
    double sum = 0, squares = 0;
    float top = c[0].logit;
    for (uint32_t i = 0; i < n; i++) {
        top = fmaxf(top, c[i].logit);
        sum += c[i].logit;
    }
    for (uint32_t i = 0; i < n; i++)
        squares += (c[i].logit - sum / n) * (c[i].logit - sum / n);
    double least = top - n_sigma * sqrt(squares / n);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++)
        if (c[i].logit >= least)
            c[kept++] = c[i];
    return kept;
}

/* Moves the k highest of n to the front, by Wirth's quickselect. */
uint32_t kvq_keep_top_k(kvq_candidate *c, uint32_t n, int32_t k) {
    if ((uint32_t)k >= n)
        return n;
    int32_t low = 0, high = (int32_t)n - 1;
    while (low < high) {
        kvq_candidate pivot = c[k - 1];
        int32_t i = low, j = high;
        do {
            while (by_logit(&c[i], &pivot) < 0)
                i++;
            while (by_logit(&pivot, &c[j]) < 0)
                j--;
            if (i <= j) {
                kvq_candidate swap = c[i];
                c[i++] = c[j];
                c[j--] = swap;
            }
        } while (i <= j);
        if (j < k - 1)
            low = i;
        if (k - 1 < i)
            high = j;
    }
    return (uint32_t)k;
}

/* The fewest from the front whose probabilities reach part of the sum. */
static uint32_t reaching(const kvq_candidate *c, uint32_t n, float part) {
    double reached = 0;
    uint32_t kept = 0;
    while (kept < n && reached < part)
        reached += c[kept++].p;
    return kept;
}

/* While p holds how far a token's surprise is from the entropy: nearest first. */
static int by_distance(const void *a, const void *b) {
    const kvq_candidate *x = a, *y = b;
    if (x->p != y->p)
        return x->p > y->p ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

static double entropy_of(const kvq_candidate *c, uint32_t n) { /* nats */
    double entropy = 0;
    for (uint32_t i = 0; i < n; i++)
        if (c[i].p > 0)
            entropy -= c[i].p * log(c[i].p);
    return entropy;
}

uint32_t kvq_keep_typical(kvq_candidate *c, uint32_t n, float typical_p) {
    kvq_softmax(c, n);
    double entropy = entropy_of(c, n), log_sum = c[0].logit - log(c[0].p), reached = 0;
    for (uint32_t i = 0; i < n; i++)
        c[i].p = (float)fabs(log_sum - c[i].logit - entropy);
    qsort(c, n, sizeof *c, by_distance);
    uint32_t kept = 0;
    while (kept < n && reached < typical_p)
        reached += exp(c[kept++].logit - log_sum);
    kvq_sort_candidates(c, kept);
    return kept;
}

uint32_t kvq_keep_top_p(kvq_candidate *c, uint32_t n, float top_p) {
    kvq_softmax(c, n);
    return reaching(c, n, top_p);
}

uint32_t kvq_keep_min_p(const kvq_candidate *c, uint32_t n, float min_p) {
    float least = c[0].logit + logf(min_p);
    uint32_t kept = 1;
    while (kept < n && c[kept].logit >= least)
        kept++;
    return kept;
}

uint32_t kvq_drop_top_choices(kvq_candidate *c, uint32_t n, float threshold) {
    kvq_softmax(c, n);
    uint32_t n_top = 0;
    while (n_top < n && c[n_top].p >= threshold)
        n_top++;
    if (n_top < 2)
        return n;
    uint32_t n_dropped = n_top - 1;
    for (uint32_t i = n_dropped; i < n; i++)
        c[i - n_dropped] = c[i];
    return n - n_dropped;
}

void kvq_apply_temperature(kvq_candidate *c, uint32_t n, const pykvq_sampler_params *p) {
    double temp = p->temp;
    if (p->temp_range > 0 && n > 1) {
        kvq_softmax(c, n);
        double low = fmax(0, p->temp - p->temp_range), high = p->temp + p->temp_range;
        temp = low + (high - low) * pow(entropy_of(c, n) / log(n), p->temp_exponent);
    }
    float top = c[0].logit; /* subtracted first, so that a temperature near 0 does not overflow */
    for (uint32_t i = 0; i < n; i++)
        c[i].logit = c[i].logit == top ? 0 : (float)fmax((c[i].logit - top) / temp, -1e30);
}

/* Version 1 chooses k from an estimate of the exponent s of Zipf's law over the most likely 100. */
static uint32_t mirostat_k(const kvq_candidate *c, uint32_t n, float mu, uint32_t n_vocab) {
    double products = 0, squares = 0;
    for (uint32_t i = 0; i + 1 < n && i < 99 && c[i + 1].p > 0; i++) {
        double t = log((i + 2.0) / (i + 1.0)), b = log((double)c[i].p / c[i + 1].p);
        products += t * b;
        squares += t * t;
    }
    double s = products / squares, epsilon = s - 1; /* n is 1: not a number, and so is k */
    double k = pow(epsilon * exp2(mu) / (1 - pow(n_vocab, -epsilon)), 1 / s);
    return k < n ? k < 1 ? 1 : (uint32_t)k : n;
}

uint32_t kvq_keep_mirostat(kvq_candidate *c, uint32_t n, uint32_t version, float mu, uint32_t n_vocab) {
    kvq_softmax(c, n);
    if (version == 1)
        return mirostat_k(c, n, mu, n_vocab);
    uint32_t kept = 1;
    while (kept < n && -log2f(c[kept].p) <= mu)
        kept++;
    return kept;
}
