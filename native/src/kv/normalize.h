/* Bringing the tokens and channels of a tile to equal size: factors per token and per channel. */
#ifndef KVQ_KV_NORMALIZE_H
#define KVQ_KV_NORMALIZE_H

#include "kv/codec.h"

/* Twice: divides every channel of y (KVQ_TILE, head_dim) by its root mean square, then every token by its own. What each
 * token and channel was divided by in all: token (KVQ_TILE), channel (head_dim), half floats; either may be NULL. */
void kvq_normal_factors(const float *y, uint32_t head_dim, uint16_t *token, uint16_t *channel);
/* normal = y, each token divided by its factor */
void kvq_divide_tokens(const float *y, uint32_t head_dim, const uint16_t *token, float *normal);
/* The factors that bring fitted (KVQ_TILE, head_dim) nearest to y, token by token; those with nothing to fit stay. */
void kvq_refit_tokens(const float *y, const float *fitted, uint32_t head_dim, uint16_t *token);

#endif
