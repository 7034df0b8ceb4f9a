/*
 * pykvq.h - the one public header: run GGUF language models with a compressed KV cache.
 *
 * Four nouns. A MODEL is an opened GGUF file: immutable, shared between engines and threads. An ENGINE is a model on a
 * device with a pool of cache pages, sized once; it steps many sequences together and is used by one thread at a time (a
 * second caller gets PYKVQ_E_BUSY, never a race). A SEQUENCE is one timeline of tokens on an engine. A SAMPLER turns
 * logits into a token.
 *
 *     pykvq_model_open -> pykvq_engine_create -> pykvq_seq_create
 *     pykvq_seq_sync(prompt) -> pykvq_engine_step until nothing is pending -> pykvq_seq_sample -> pykvq_seq_push -> step
 * ...
 *
 * Every call that can fail returns a pykvq_status; pykvq_last_error() then holds this thread's sentence: the object, what
 * is wrong, what was expected. A failing call leaves its objects as they were. The library never prints, aborts, exits or
 * reads the environment. The caller owns every buffer that crosses. Parameter structs start with their size in bytes, so
 * that they can grow. Strings are UTF-8, NUL-terminated.
 *
 * The part between the two cffi marks is also read by the Python build, so it stays plain declarations.
 */
#ifndef PYKVQ_H
#define PYKVQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PYKVQ_API __attribute__((visibility("default")))
#else
#define PYKVQ_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin */

#define PYKVQ_ABI 1 /* grows with every incompatible change of this header */

typedef enum pykvq_status {
    PYKVQ_OK = 0,
    PYKVQ_E_ARGUMENT = 1,    /* the caller asked for something impossible */
    PYKVQ_E_FILE = 2,        /* the operating system refused: missing, no permission, unreadable */
    PYKVQ_E_FORMAT = 3,      /* the bytes of a file are not what they should be */
    PYKVQ_E_UNSUPPORTED = 4, /* well formed, but not something this build can run */
    PYKVQ_E_MEMORY = 5,      /* host or device memory ran out */
    PYKVQ_E_FULL = 6,        /* a context or the page pool is full */
    PYKVQ_E_BUSY = 7,        /* another thread is using the object */
    PYKVQ_E_CANCELLED = 8,   /* pykvq_engine_cancel was called */
    PYKVQ_E_DEVICE = 9,      /* the device failed; the engine is dead */
    PYKVQ_E_NUMERIC = 10     /* logits are not finite */
} pykvq_status;

/* ---- library ---- */

PYKVQ_API int pykvq_abi(void);
PYKVQ_API const char *pykvq_version(void);
PYKVQ_API const char *pykvq_last_error(void); /* this thread's last sentence; "" if none; valid until the next failure */
PYKVQ_API const char *pykvq_cpu_isa(void);    /* the instruction set in use: "scalar", "avx2", "avx512", "neon" */
PYKVQ_API uint32_t pykvq_cpu_cores(void);     /* cores this process may use: what n_threads 0 stands for */
/* PYKVQ_OK if engines run on this device ("cpu", "cuda"); else pykvq_last_error() says what is missing. */
PYKVQ_API pykvq_status pykvq_device_check(const char *device);
/* Bytes of a GPU's memory ("cuda") that are free now, and of all of it. */
PYKVQ_API pykvq_status pykvq_device_memory(const char *device, uint64_t *n_free, uint64_t *n_total);
/* Tests only: use a narrower instruction set from now on, for every engine. NULL restores the widest. */
PYKVQ_API pykvq_status pykvq_cpu_select(const char *isa);
/* Tests only: the n-th allocation from now (0: the next) fails, once; UINT64_MAX: none does. */
PYKVQ_API void pykvq_fail_allocation(uint64_t n);
PYKVQ_API uint64_t pykvq_allocated_bytes(void); /* living host memory of the library */

/* ---- GGUF files: metadata and tensors, without loading a model ---- */

typedef struct pykvq_gguf pykvq_gguf;

typedef enum pykvq_gguf_type { /* value types of the GGUF specification */
                               PYKVQ_GGUF_U8 = 0,
                               PYKVQ_GGUF_I8 = 1,
                               PYKVQ_GGUF_U16 = 2,
                               PYKVQ_GGUF_I16 = 3,
                               PYKVQ_GGUF_U32 = 4,
                               PYKVQ_GGUF_I32 = 5,
                               PYKVQ_GGUF_F32 = 6,
                               PYKVQ_GGUF_BOOL = 7,
                               PYKVQ_GGUF_STRING = 8,
                               PYKVQ_GGUF_ARRAY = 9,
                               PYKVQ_GGUF_U64 = 10,
                               PYKVQ_GGUF_I64 = 11,
                               PYKVQ_GGUF_F64 = 12
} pykvq_gguf_type;

typedef struct pykvq_gguf_value {
    const char *key; /* not NUL-terminated: n_key bytes of valid UTF-8 */
    uint64_t n_key;
    uint32_t type;         /* pykvq_gguf_type of the value, or of the elements if is_array */
    uint32_t is_array;     /* 0 or 1 */
    uint64_t n;            /* elements (1 if not an array) */
    const uint8_t *data;   /* little-endian elements as in the file; strings are uint64 length, then bytes */
    uint64_t n_data_bytes; /* bytes at data */
} pykvq_gguf_value;

typedef struct pykvq_gguf_tensor {
    const char *name; /* not NUL-terminated: n_name bytes of valid UTF-8 */
    uint64_t n_name;
    uint32_t type; /* GGML type id */
    uint32_t n_dims;
    uint64_t ne[4];      /* elements per dimension, fastest first; 1 beyond n_dims */
    const uint8_t *data; /* in the mapped file */
    uint64_t n_bytes;
} pykvq_gguf_tensor;

/* Opens a file, or the first of a sharded set (-00001-of-0000N). Every count, offset, string and type is checked. */
PYKVQ_API pykvq_status pykvq_gguf_open(const char *path, pykvq_gguf **out);
PYKVQ_API void pykvq_gguf_close(pykvq_gguf *gguf);
PYKVQ_API uint64_t pykvq_gguf_n_values(const pykvq_gguf *gguf);
PYKVQ_API uint64_t pykvq_gguf_n_tensors(const pykvq_gguf *gguf);
PYKVQ_API uint64_t pykvq_gguf_n_bytes(const pykvq_gguf *gguf); /* mapped bytes, all shards */
PYKVQ_API uint32_t pykvq_gguf_version(const pykvq_gguf *gguf);
PYKVQ_API pykvq_status pykvq_gguf_value_at(const pykvq_gguf *gguf, uint64_t i, pykvq_gguf_value *out);
PYKVQ_API pykvq_status pykvq_gguf_tensor_at(const pykvq_gguf *gguf, uint64_t i, pykvq_gguf_tensor *out);
/* Byte offsets of the n strings of a string array in value.data: offsets[i] .. offsets[i] + lengths[i]. */
PYKVQ_API pykvq_status pykvq_gguf_strings(const pykvq_gguf_value *value, uint64_t *offsets, uint64_t *lengths);

/* ---- weight types ---- */

typedef struct pykvq_weight_type {
    const char *name; /* "Q4_K" */
    uint32_t id;      /* GGML type id */
    uint32_t block_elements;
    uint32_t block_bytes;
} pykvq_weight_type;

PYKVQ_API uint32_t pykvq_n_weight_types(void);
PYKVQ_API pykvq_status pykvq_weight_type_at(uint32_t i, pykvq_weight_type *out);
/* src: n_elements / block_elements blocks; dst: (n_elements) */
PYKVQ_API pykvq_status pykvq_weight_dequantize(uint32_t type, const void *src, uint64_t n_src_bytes, float *dst,
                                               uint64_t n_elements);
/* y (n_tokens, n_out) = x (n_tokens, n_in) . w (n_out, n_in)^T with the selected CPU kernels */
PYKVQ_API pykvq_status pykvq_weight_matmul(uint32_t type, const void *w, uint64_t n_w_bytes, uint32_t n_out, uint32_t n_in,
                                           const float *x, uint32_t n_tokens, float *y, uint32_t n_threads);

typedef struct pykvq_weight_loss { /* of a conversion: sums over all elements, x before and y after */
    double squares;                /* x^2 */
    double squared_errors;         /* (x - y)^2 */
    double max_error;              /* |x - y| */
} pykvq_weight_loss;

typedef struct pykvq_weight_convert_params { /* rows of weights from one type to another */
    uint64_t size;
    uint32_t src_type, dst_type; /* GGML type ids; dst: F32, F16, BF16, or a type that can be quantized to */
    uint64_t n_rows;
    uint32_t n_per_row;
    uint32_t n_threads;      /* 0: the cores this process may use */
    const float *importance; /* (n_per_row) how much an error in each column counts, or NULL: all the same */
    const void *src;         /* (n_rows, n_per_row) */
    uint64_t n_src_bytes;
    void *dst;
    uint64_t n_dst_bytes;
} pykvq_weight_convert_params;

/* The same bytes with any number of threads and any instruction set. Fails with PYKVQ_E_NUMERIC if a source value is not
 * finite, or too large for the type; dst then holds no result. */
PYKVQ_API pykvq_status pykvq_weight_convert(const pykvq_weight_convert_params *params, pykvq_weight_loss *loss);

/* ---- models ---- */

typedef struct pykvq_model pykvq_model;

typedef struct pykvq_model_info {
    const char *arch; /* "llama" */
    const char *name; /* general.name, or "" */
    uint32_t n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab;
    uint32_t n_ctx_train;    /* the context it was trained for */
    uint32_t n_window;       /* tokens a sliding-window layer sees; 0: none */
    uint32_t n_layer_window; /* how many layers have that window */
    uint64_t n_params;
    uint64_t n_file_bytes;
    uint64_t fingerprint; /* of hyperparameters, tensor table and samples of the weights */
} pykvq_model_info;

PYKVQ_API pykvq_status pykvq_model_open(const char *path, pykvq_model **out);
PYKVQ_API void pykvq_model_close(pykvq_model *model); /* after the last engine on it */
PYKVQ_API void pykvq_model_get_info(const pykvq_model *model, pykvq_model_info *out);
PYKVQ_API const pykvq_gguf *pykvq_model_gguf(const pykvq_model *model);

/* ---- KV types ---- */

typedef struct pykvq_kv_type {
    const char *name;    /* what --kv takes: "kivi2" */
    const char *summary; /* one line: when to use it */
    uint32_t sink, tail; /* default tokens kept in f16; tail UINT32_MAX: never encoded */
    const char *instead; /* what models of under 1e9 parameters should take instead: with this type, their likeliest next
                            token was another one more than once in ten; NULL: it suits them */
} pykvq_kv_type;

PYKVQ_API uint32_t pykvq_n_kv_types(void);
PYKVQ_API pykvq_status pykvq_kv_type_at(uint32_t i, pykvq_kv_type *out);
/* Bytes of one encoded tile (64 tokens of one KV head); side is 'k' or 'v'. Fails if the type cannot take head_dim. */
PYKVQ_API pykvq_status pykvq_kv_tile_bytes(const char *type, char side, uint32_t head_dim, uint64_t *n_bytes);
/* x: (64, head_dim) in the original basis; tile: pykvq_kv_tile_bytes bytes, canonical order */
PYKVQ_API pykvq_status pykvq_kv_encode(const char *type, char side, uint32_t head_dim, const float *x, uint8_t *tile);
PYKVQ_API pykvq_status pykvq_kv_decode(const char *type, char side, uint32_t head_dim, const uint8_t *tile, float *x);

typedef struct pykvq_kv_attend_params { /* one sequence through the CPU attention kernels, from plain arrays */
    uint64_t size;
    const char *type_k, *type_v;
    uint32_t n_head, n_head_kv, head_dim;
    uint32_t n_q;    /* query tokens: the last n_q positions */
    uint32_t n_kv;   /* tokens in the cache, the n_q included */
    uint32_t sink;   /* first tokens kept in f16 (multiple of 64) */
    uint32_t tail;   /* newest tokens kept in f16; a tile is encoded once all of it is older */
    uint32_t window; /* 0: none */
    uint32_t n_threads;
    float scale;              /* of the logits */
    float softcap;            /* 0: none */
    const float *q;           /* (n_q, n_head, head_dim) */
    const float *k, *v;       /* (n_kv, n_head_kv, head_dim), K after RoPE */
    const float *sink_logits; /* (n_head) learned attention-sink logits, or NULL */
    float *o;                 /* out: (n_q, n_head, head_dim) */
} pykvq_kv_attend_params;

PYKVQ_API pykvq_status pykvq_kv_attend(const pykvq_kv_attend_params *params);

/* ---- engines ---- */

typedef struct pykvq_engine pykvq_engine;
typedef struct pykvq_seq pykvq_seq;

typedef struct pykvq_engine_params {
    uint64_t size;
    const char *device; /* "cpu" (NULL means it) */
    uint32_t n_ctx;     /* most tokens of one sequence; 0: what the model was trained for */
    uint32_t n_seq;     /* sequences whose full context the pool holds; 0: 1 */
    uint32_t n_batch;   /* most tokens in one step; 0: 512, on a GPU 2048 */
    uint32_t n_logits;  /* most logit rows kept from one step; 0: n_seq */
    uint32_t n_threads; /* 0: the cores this process may use */
    const char *kv;     /* KV type, e.g. "kivi2"; NULL: "f16" */
    const char *kv_k;   /* K type if it differs; NULL: kv */
    const char *kv_v;
    const char *kv_layers; /* "0-1,-1:q8_0,4:f16"; NULL: none */
    int32_t kv_sink;       /* tokens; -1: the type's default */
    int32_t kv_tail;       /* tokens; -1: the type's default */
    bool exact; /* for measuring: on the CPU, weights become float32 in memory (once for all exact engines of a model) and
                 * activations are never rounded to int8, which moves logits by more than a good KV type does; a GPU keeps
                 * activations as half floats in products, exact or not */
} pykvq_engine_params;

typedef struct pykvq_plan {
    uint64_t n_weight_bytes;  /* the mapped file; of a GPU, as all these, its own memory */
    uint64_t n_kv_bytes;      /* the page pools */
    uint64_t n_scratch_bytes; /* activations, logits, tables */
    uint64_t n_total_bytes;
    double kv_bytes_per_token;                           /* of one sequence, once encoded, all layers */
    double kv_bits_per_element;                          /* over a full context: codes, scales, sink and tail */
    uint32_t n_ctx, n_seq, n_batch, n_logits, n_threads; /* after defaults */
} pykvq_plan;

typedef struct pykvq_engine_stats {
    uint64_t n_prompt_tokens, n_decode_tokens; /* fed so far: in runs of several, one at a time */
    double prompt_seconds, decode_seconds;
    uint64_t n_kv_bytes_used;   /* pages in use now */
    uint64_t n_kv_bad_elements; /* keys and values that were NaN or beyond what f16 holds, and were made finite */
    uint32_t n_seq_open;
} pykvq_engine_stats;

PYKVQ_API pykvq_status pykvq_engine_plan(const pykvq_model *model, const pykvq_engine_params *params, pykvq_plan *out);
PYKVQ_API pykvq_status pykvq_engine_create(const pykvq_model *model, const pykvq_engine_params *params, pykvq_engine **out);
PYKVQ_API void pykvq_engine_destroy(pykvq_engine *engine); /* with all its sequences */
PYKVQ_API void pykvq_engine_get_plan(const pykvq_engine *engine, pykvq_plan *out);
PYKVQ_API pykvq_status pykvq_engine_get_stats(pykvq_engine *engine, pykvq_engine_stats *out);
/* Feeds pending tokens of these sequences, together at most n_batch: single pending tokens first, then the rest in order.
 * On failure or cancellation every sequence is as before. */
PYKVQ_API pykvq_status pykvq_engine_step(pykvq_engine *engine, pykvq_seq **seqs, uint32_t n_seqs);
/* The one call allowed while another thread steps. on: the step that runs, or else the next one, ends soon with
 * PYKVQ_E_CANCELLED. off: takes that back where it has found no step to end. */
PYKVQ_API void pykvq_engine_cancel(pykvq_engine *engine, bool on);
/* For importance matrices. Called by the stepping thread before each product with weights: `weight` is where the matrix
 * lies (pykvq_gguf_tensor.data; behind it for a part of a fused one), x (n_rows, n_in) what it is multiplied with. It must
 * not call the library with this engine. */
typedef void pykvq_observer(void *context, const void *weight, const float *x, uint32_t n_rows, uint32_t n_in);
PYKVQ_API pykvq_status pykvq_engine_observe(pykvq_engine *engine, pykvq_observer *observer, void *context); /* NULL: none */

/* ---- sequences ---- */

PYKVQ_API pykvq_status pykvq_seq_create(pykvq_engine *engine, pykvq_seq **out);
PYKVQ_API pykvq_status pykvq_seq_destroy(pykvq_seq *seq); /* its pages go back to the pool */
/* The sequence becomes `tokens`: the longest common prefix with what is cached is kept, the rest is pending. At least the
 * last token is always fed again, so that its logits exist. *n_reused (may be NULL) gets the tokens that need no feeding.
 */
PYKVQ_API pykvq_status pykvq_seq_sync(pykvq_seq *seq, const int32_t *tokens, uint32_t n_tokens, uint32_t *n_reused);
PYKVQ_API pykvq_status pykvq_seq_push(pykvq_seq *seq, const int32_t *tokens,
                                      uint32_t n_tokens); /* appends pending tokens */
/* Keeps the first n_tokens. What lies in an encoded tile that is cut is fed again: it becomes pending. */
PYKVQ_API pykvq_status pykvq_seq_rewind(pykvq_seq *seq, uint32_t n_tokens);
PYKVQ_API pykvq_status pykvq_seq_fork(pykvq_seq *seq, pykvq_seq **out); /* shares pages until either writes */
PYKVQ_API uint32_t pykvq_seq_n_tokens(const pykvq_seq *seq);            /* cached and pending */
PYKVQ_API uint32_t pykvq_seq_n_pending(const pykvq_seq *seq);
/* How many tokens the next step may feed as a draft: rewinding to any of them leaves no trace, and on the CPU each has the
 * logits, bit for bit, that it would have if it were fed alone. At least 1 unless the context is full; at most 16 and
 * n_logits. */
PYKVQ_API uint32_t pykvq_seq_n_draft(const pykvq_seq *seq);
PYKVQ_API pykvq_status pykvq_seq_tokens(const pykvq_seq *seq, int32_t *tokens, uint32_t n_tokens); /* the first n_tokens */
PYKVQ_API uint64_t pykvq_seq_kv_bytes(const pykvq_seq *seq); /* of the pages it holds; shared ones count in each */

typedef struct pykvq_kv_layer { /* what one layer's cache of a sequence is, and takes */
    const char *type_k, *type_v;
    uint32_t n_window;    /* tokens it sees; 0: all */
    uint32_t n_held;      /* tokens it holds */
    uint32_t n_encoded;   /* of these, the encoded ones; the rest is f16 */
    uint64_t n_bytes;     /* of the pages in use */
    uint64_t n_f16_bytes; /* what they would take if all were f16 */
} pykvq_kv_layer;

PYKVQ_API pykvq_status pykvq_seq_kv_layer(const pykvq_seq *seq, uint32_t layer, pykvq_kv_layer *out);
/* Writes tokens and cache to a file (complete or not at all), and takes them back: the sequence then continues with the
 * same logits, bit for bit. A file of another model, other KV settings, a newer format or with a flipped bit is refused,
 * and the sequence stays as it was. Pending tokens are saved as such. */
PYKVQ_API pykvq_status pykvq_seq_save(pykvq_seq *seq, const char *path);
PYKVQ_API pykvq_status pykvq_seq_load(pykvq_seq *seq, const char *path);
/* all = true: keep logits of every token fed from now on, not only of the last. */
PYKVQ_API pykvq_status pykvq_seq_keep_logits(pykvq_seq *seq, bool all);
PYKVQ_API uint32_t pykvq_seq_n_logits(const pykvq_seq *seq); /* rows kept; 0 once a later step did not feed it */
/* Copies rows [first, first + n_rows) to out (n_rows, n_vocab). */
PYKVQ_API pykvq_status pykvq_seq_logits(const pykvq_seq *seq, uint32_t first, uint32_t n_rows, float *out);

/* ---- sampling ---- */

typedef struct pykvq_sampler pykvq_sampler;

/* The order: mask, bias, repetition penalties, DRY, top-n-sigma, top-k, typical, top-p, min-p, XTC, temperature, draw. With
 * mirostat, it takes the place of the filters from top-n-sigma to XTC and comes after the temperature. Penalties and DRY
 * see the tokens before the one that is drawn: prompt and answer. */
typedef struct pykvq_sampler_params {
    uint64_t size;
    float temp;    /* 0: greedy, after the penalties; the filters then do not matter and do not apply */
    int32_t top_k; /* keep the k most likely; 0: off */
    float top_p;   /* keep the most likely that together reach this probability; 1: off */
    float min_p;   /* drop those less likely than this part of the most likely; 0: off */
    uint64_t seed;
    float temp_range;      /* temp - range for a certain choice to temp + range for an even one; 0: off */
    float temp_exponent;   /* of the normalized entropy between the two */
    float typical_p;       /* keep the most typical that together reach this probability; 1: off */
    float top_n_sigma;     /* drop logits more than n standard deviations below the highest; 0: off */
    float xtc_probability; /* how often XTC drops all but the least likely of the tokens above its threshold; 0: off */
    float xtc_threshold;
    float repeat_penalty;    /* divides positive logits of seen tokens, multiplies negative ones; 1: off */
    float frequency_penalty; /* subtracted from a logit as often as the token was seen; 0: off */
    float presence_penalty;  /* subtracted once from the logits of seen tokens; 0: off */
    int32_t penalty_last_n;  /* tokens the penalties look back; -1: all */
    float dry_multiplier;    /* subtracted: multiplier * base ^ (length of the repetition - allowed length); 0: off */
    float dry_base;
    int32_t dry_allowed_length;  /* tokens */
    int32_t dry_last_n;          /* tokens DRY looks back; -1: all */
    const int32_t *dry_breakers; /* (n_dry_breakers) tokens that no repetition goes across */
    uint32_t n_dry_breakers;
    uint32_t mirostat;          /* 0: off; 1 or 2: its version */
    float mirostat_tau;         /* surprise to aim at, bits per token */
    float mirostat_eta;         /* learning rate */
    const int32_t *bias_tokens; /* (n_bias) */
    const float *bias;          /* (n_bias) added to the logits of bias_tokens; -INFINITY: never */
    uint32_t n_bias;
} pykvq_sampler_params;

PYKVQ_API pykvq_status pykvq_sampler_create(const pykvq_sampler_params *params,
                                            pykvq_sampler **out); /* copies the arrays */
PYKVQ_API void pykvq_sampler_destroy(pykvq_sampler *sampler);
/* From now on only tokens whose bit is set may be drawn: bit t % 32 of word t / 32, none beyond n_words. NULL: all tokens.
 */
PYKVQ_API pykvq_status pykvq_sampler_allow(pykvq_sampler *sampler, const uint32_t *mask, uint32_t n_words);
/* logits (n_vocab), history (n_history) the tokens before, oldest first */
PYKVQ_API pykvq_status pykvq_sampler_sample(pykvq_sampler *sampler, const float *logits, uint32_t n_vocab,
                                            const int32_t *history, uint32_t n_history, int32_t *token);
/* From a row of the sequence's logits, with the tokens up to that row as history. row -1: the last. */
PYKVQ_API pykvq_status pykvq_seq_sample(pykvq_seq *seq, int32_t row, pykvq_sampler *sampler, int32_t *token);

/* cffi: end */

#ifdef __cplusplus
}
#endif
#endif
