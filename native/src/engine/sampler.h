/* Inside a sampler: the candidates, and the steps of the chain. sampler.c has the order. */
#ifndef KVQ_ENGINE_SAMPLER_H
#define KVQ_ENGINE_SAMPLER_H

#include "pykvq.h"

typedef struct kvq_candidate {
    float logit;
    float p; /* probability, where the step before has set it */
    int32_t id;
} kvq_candidate;

/* sampler_penalties.c: these change logits (n_vocab); ids outside the vocabulary are passed over. */
void kvq_apply_penalties(const pykvq_sampler_params *p, float *logits, uint32_t n_vocab, const int32_t *history,
                         uint32_t n_history, uint32_t *tally); /* tally (n_vocab): zeros, and zeros again afterwards */
/* matches (n_history): scratch */
void kvq_apply_dry(const pykvq_sampler_params *p, float *logits, uint32_t n_vocab, const int32_t *history,
                   uint32_t n_history, uint32_t *tally, uint32_t *matches);

/* sampler_filters.c: candidates c (n), highest first unless said otherwise; each returns how many are left, at least 1. */
void kvq_sort_candidates(kvq_candidate *c, uint32_t n);
void kvq_softmax(kvq_candidate *c, uint32_t n);
uint32_t kvq_keep_top_n_sigma(kvq_candidate *c, uint32_t n, float n_sigma); /* in no order, before and after */
uint32_t kvq_keep_top_k(kvq_candidate *c, uint32_t n, int32_t k);           /* in no order, before and after */
uint32_t kvq_keep_typical(kvq_candidate *c, uint32_t n, float typical_p);
uint32_t kvq_keep_top_p(kvq_candidate *c, uint32_t n, float top_p);
uint32_t kvq_keep_min_p(const kvq_candidate *c, uint32_t n, float min_p);
uint32_t kvq_drop_top_choices(kvq_candidate *c, uint32_t n, float threshold); /* XTC */
void kvq_apply_temperature(kvq_candidate *c, uint32_t n, const pykvq_sampler_params *p);
/* mu: the surprise a token may have, bits */
uint32_t kvq_keep_mirostat(kvq_candidate *c, uint32_t n, uint32_t version, float mu, uint32_t n_vocab);

#endif
