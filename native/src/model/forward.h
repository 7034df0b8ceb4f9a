/* One step of a model: a batch of tokens through all layers. */
#ifndef KVQ_MODEL_FORWARD_H
#define KVQ_MODEL_FORWARD_H

#include <stdatomic.h>

#include "model/model.h"

/* What a step works with besides its batch; owned by an engine. Activations lie in backend memory. */
typedef struct kvq_forward {
    kvq_backend *be;
    const pykvq_model *model;
    kvq_weights weights; /* the model's, with their device forms */
    kvq_rope rope_global, rope_local, rope_none;
    kvq_kv_layer *kv; /* (n_layer) */
    float *x, *h;     /* (n_batch, n_embd) the residual stream; its normed copy */
    float *q, *o;     /* (n_batch, n_head, head_dim) queries; attention outputs */
    float *k, *v;     /* (n_batch, n_head_kv, head_dim) */
    float *ff;        /* (n_batch, n_ff) */
    float *logits;    /* (n_logits, n_vocab) */
} kvq_forward;

/* Leaves logits of batch->logit_rows in f->logits, and keys and values in the f16 pages. Between layers it looks at
 * *cancel. */
pykvq_status kvq_forward_run(const kvq_forward *f, const kvq_batch *batch, const atomic_bool *cancel);

#endif
