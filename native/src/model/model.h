/* A model: hyperparameters and weights read from a GGUF file. Immutable once open. */
#ifndef KVQ_MODEL_MODEL_H
#define KVQ_MODEL_MODEL_H

#include "backend/backend.h"
#include "gguf/gguf.h"

#define KVQ_ALL_WINDOWED UINT32_MAX /* as a window period: no layer is the last of one */

/* What distinguishes one architecture from the next: a row of arch.c. Sizes and constants come from the file. */
typedef struct kvq_arch {
    const char *name; /* general.architecture */
    bool rope_interleaved;
    bool qk_norm;      /* per-head RMS norm of q and k before RoPE */
    bool post_norms;   /* the outputs of attention and of the feed-forward are normed before they are added */
    bool embed_scaled; /* embeddings are multiplied by sqrt(n_embd) */
    kvq_activation activation;
    uint32_t window_period; /* of each so many layers all but the last see a window, if there is one; 0: none do */
    uint32_t nope_period;   /* of each so many layers the last has no RoPE; 0: all have it */
    float local_rope_base;  /* RoPE base of window layers if the file gives none; they take no scaling. 0: as the others */
    uint32_t wide_scale_n_layer; /* a model of so many layers scales q.k by 1/sqrt(n_embd / n_head), not 1/sqrt(head_dim) */
    uint32_t default_window;     /* if the file gives none */
    float default_attn_softcap, default_logit_softcap;
} kvq_arch;

const kvq_arch *kvq_arch_find(kvq_str name);
/* "llama, qwen2, ..." */
const char *kvq_arch_names(void);

/* RoPE scaling. It applies to the global layers, and to the local ones unless the architecture gives those their own base.
 */
typedef struct kvq_rope_params {
    float base, local_base;
    float factor; /* positions are divided by it (linear), or the slow dimensions' are (yarn); 1: none */
    bool yarn;
    float beta_fast, beta_slow; /* yarn: turns within the original context between which the two are blended */
    float magnitude;            /* factor on cos and sin */
    uint32_t n_ctx_orig;        /* the context before scaling */
    const float *factors;       /* (n_rot / 2) divide the frequencies, or NULL */
    const float *long_factors;  /* the same when an engine's context exceeds n_ctx_orig, or NULL */
} kvq_rope_params;

typedef struct kvq_hparams {
    uint32_t n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab, n_ctx_train;
    uint32_t n_rot, n_window;
    float norm_eps, embed_scale, attn_scale, attn_softcap, logit_softcap;
    kvq_rope_params rope;
} kvq_hparams;

/* A weight that an architecture does not have has no data. The weights come first, so that they can be walked as an array.
 */
typedef struct kvq_layer {
    kvq_weight attn_norm, q, k, v, q_bias, k_bias, v_bias, q_norm, k_norm, o, o_bias, post_attn_norm;
    kvq_weight ffn_norm, gate, up, down, post_ffn_norm;
    bool windowed; /* sees n_window tokens */
    bool roped;
} kvq_layer;

enum { KVQ_LAYER_WEIGHTS = offsetof(kvq_layer, windowed) / sizeof(kvq_weight) };

/* All weights, flat, so that an engine can copy them and give each its device form. */
typedef struct kvq_weights {
    kvq_weight embed, output_norm, output;
    uint32_t n_layer;
    kvq_layer *layers; /* (n_layer) */
} kvq_weights;

/* visit(context, weight) for each weight there is, until one fails. A tied output is the embedding: visited once, and what
 * becomes of the embedding becomes of it. */
typedef pykvq_status kvq_weight_visit(void *context, kvq_weight *w);
pykvq_status kvq_weights_each(kvq_weights *weights, kvq_weight_visit *visit, void *context);

typedef struct kvq_float_weights kvq_float_weights;

struct pykvq_model {
    pykvq_gguf *gguf;
    const kvq_arch *arch;
    kvq_hparams h;
    kvq_weights weights;
    uint64_t n_params, fingerprint;
    char name[256];      /* general.name, cut to fit */
    float *rope_factors; /* (2, n_rot / 2) what rope.factors and rope.long_factors point to */
    kvq_float_weights *floats;
};

pykvq_status kvq_model_open(pykvq_gguf *gguf, pykvq_model **out); /* takes the gguf over, also on failure */
uint32_t kvq_model_n_window_layers(const pykvq_model *model);

/* floats.c: the weights with every quantized one as float32. Made for the first who asks, from any thread, and shared until
 * as many have released them. */
pykvq_status kvq_float_weights_create(kvq_float_weights **out);
void kvq_float_weights_destroy(kvq_float_weights *floats);
pykvq_status kvq_model_take_floats(const pykvq_model *model, const kvq_weights **out);
void kvq_model_release_floats(const pykvq_model *model);
size_t kvq_model_float_bytes(const pykvq_model *model); /* what they take */

/* The bias that a layer adds to its keys just before RoPE, (n_head_kv, head_dim); false if it adds none. */
bool kvq_model_key_bias(const pykvq_model *model, uint32_t layer, float *bias);

/* RoPE of an engine with this context: inv_freq is (2, n_rot / 2), global then local, filled here; ropes point into it. */
void kvq_model_ropes(const pykvq_model *model, uint32_t n_ctx, float *inv_freq, kvq_rope *global, kvq_rope *local);

#endif
