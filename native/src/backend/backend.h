/*
 * The seam between the model's arithmetic and a device. A backend owns memory and runs the few operations that forward.c is
 * written in. They are coarse on purpose, so that a device may fuse inside them. Operations of one step are called between
 * step_begin and step_end from one thread; they cannot fail one by one: a device fault surfaces in step_end.
 *
 * Activations are float32 in backend memory. "rows" are tokens of the step's batch.
 */
#ifndef KVQ_BACKEND_BACKEND_H
#define KVQ_BACKEND_BACKEND_H

#include "base/status.h"
#include "kv/codec.h"
#include "kv/key_bias.h"
#include "quant/quant.h"

/* ---- weights ---- */

/* A weight matrix, vector or table as the file holds it. Immutable. */
typedef struct kvq_weight {
    const kvq_wtype *type;
    uint32_t n_in, n_out; /* rows of n_in elements; a vector is one row */
    const uint8_t *data;  /* (n_out, n_in) in file bytes, host memory */
    void *device;         /* what weight_load made of it; the CPU leaves NULL and reads data */
} kvq_weight;

static inline size_t kvq_weight_row_bytes(const kvq_weight *w) {
    return (size_t)w->n_in / w->type->block_elements * w->type->block_bytes;
}

/* ---- the cache as attention sees it ---- */

/* An entry of a page table: where the tile of 64 positions lies. */
typedef uint32_t kvq_page;
#define KVQ_PAGE_NONE  UINT32_MAX  /* not stored: outside the window, or not reached yet */
#define KVQ_PAGE_CODED 0x80000000u /* set: an encoded page, index in the low bits; clear: an f16 page */

/* One layer's part of the page pools. All layers of a group use the same page numbers. */
typedef struct kvq_kv_layer {
    uint32_t n_head_kv, head_dim;
    const kvq_codec *k, *v;
    /* f16 pages, (n_pages, n_head_kv) of { K (head_dim, 64): tokens fastest; V (64, head_dim): channels fastest } */
    uint16_t *raw;
    /* encoded pages, (n_pages, n_head_kv) of { K tile, V tile }, each tile's size rounded up to 64 bytes; NULL if there are
     * none */
    uint8_t *coded;
    size_t k_tile_bytes, v_tile_bytes; /* rounded up to 64; 0 without encoded pages */
    /* What is taken out of the keys of encoded pages and added to their logits; NULL: nothing. Host memory. */
    const kvq_key_bias *key_bias;
    void *device; /* what kv_load made of the layer; the CPU leaves NULL */
} kvq_kv_layer;

static inline size_t kvq_raw_head_halfs(const kvq_kv_layer *kv) { /* of one head of an f16 page, K and V */
    return (size_t)2 * kv->head_dim * KVQ_TILE;
}

static inline uint16_t *kvq_raw_k(const kvq_kv_layer *kv, kvq_page page, uint32_t head) {
    return kv->raw + ((size_t)page * kv->n_head_kv + head) * kvq_raw_head_halfs(kv);
}

static inline uint16_t *kvq_raw_v(const kvq_kv_layer *kv, kvq_page page, uint32_t head) {
    return kvq_raw_k(kv, page, head) + (size_t)kv->head_dim * KVQ_TILE;
}

static inline uint8_t *kvq_coded_k(const kvq_kv_layer *kv, kvq_page page, uint32_t head) {
    page &= ~KVQ_PAGE_CODED;
    return kv->coded + ((size_t)page * kv->n_head_kv + head) * (kv->k_tile_bytes + kv->v_tile_bytes);
}

static inline uint8_t *kvq_coded_v(const kvq_kv_layer *kv, kvq_page page, uint32_t head) {
    return kvq_coded_k(kv, page, head) + kv->k_tile_bytes;
}

/* A page of a layer: where it lies, and its size. */
static inline void *kvq_page_of(const kvq_kv_layer *kv, kvq_page page) {
    return page & KVQ_PAGE_CODED ? (void *)kvq_coded_k(kv, page, 0) : (void *)kvq_raw_k(kv, page, 0);
}

static inline size_t kvq_layer_page_bytes(const kvq_kv_layer *kv, kvq_page page) {
    return kv->n_head_kv *
           (page & KVQ_PAGE_CODED ? kv->k_tile_bytes + kv->v_tile_bytes : kvq_raw_head_halfs(kv) * sizeof(uint16_t));
}

/* ---- one step ---- */

enum {
    KVQ_MAX_GROUPS = 2,    /* layers that see everything; layers that see a window */
    KVQ_DRAFT_TOKENS = 16, /* on the CPU, a run of up to so many tokens within a tile gives the bits of one at a time */
};

/* The tokens of one sequence in this step: rows first .. first + n_tokens - 1 at positions pos .. pos + n_tokens - 1. */
typedef struct kvq_span {
    uint32_t first, n_tokens, pos;
    const kvq_page *pages[KVQ_MAX_GROUPS]; /* by tile (position / 64), filled up to the last position of this step */
} kvq_span;

typedef struct kvq_batch {
    uint32_t n_tokens, n_spans, n_logits;
    const int32_t *tokens;      /* (n_tokens) */
    const int32_t *positions;   /* (n_tokens) */
    const kvq_span *spans;      /* (n_spans), in row order, covering all rows */
    const uint32_t *logit_rows; /* (n_logits) rows whose logits are wanted, ascending */
} kvq_batch;

typedef struct kvq_rope {
    bool interleaved;      /* pairs (2i, 2i+1), else (i, i + n_rot/2) */
    uint32_t n_rot;        /* leading dimensions that turn; 0: none (NoPE) */
    const float *inv_freq; /* (n_rot / 2) radians per position, scaling included; host memory */
    float magnitude;       /* factor on cos and sin (longrope, yarn); 1 otherwise */
} kvq_rope;

typedef enum kvq_activation { KVQ_SILU, KVQ_GELU_TANH } kvq_activation;

/* Queries, keys and values of a layer on their way into attention. */
typedef struct kvq_heads {
    uint32_t n_head, n_head_kv, head_dim;
    float *q;                          /* (n_tokens, n_head, head_dim), changed in place */
    float *k, *v;                      /* (n_tokens, n_head_kv, head_dim) */
    const kvq_weight *q_norm, *k_norm; /* RMS norm over head_dim before RoPE, or NULL */
    float norm_eps;
    const kvq_rope *rope;
    const kvq_kv_layer *kv;
    uint32_t group; /* which page table of a span */
} kvq_heads;

typedef struct kvq_attention {
    uint32_t n_head;
    const float *q;           /* (n_tokens, n_head, head_dim) */
    float *o;                 /* (n_tokens, n_head, head_dim) */
    float scale;              /* of q.k */
    float softcap;            /* logits become softcap * tanh(logit / softcap); 0: none */
    uint32_t window;          /* a query sees positions > its own - window; 0: all up to its own */
    const float *sink_logits; /* (n_head), backend memory, or NULL: an extra logit without value in each softmax */
    const kvq_kv_layer *kv;
    uint32_t group;
} kvq_attention;

/* An f16 page to encode into an encoded page, at the end of a step. */
typedef struct kvq_encode_job {
    kvq_page raw, coded;
    uint32_t tile; /* its positions are 64 tile .. 64 tile + 63 */
} kvq_encode_job;

typedef struct kvq_backend kvq_backend;

typedef struct kvq_backend_ops {
    const char *name; /* "cpu" */
    bool host_memory; /* what alloc gives can be read by the caller directly */

    void (*destroy)(kvq_backend *be);
    /* Zeroed memory, 64-byte aligned at least; freed with the size it was asked with. */
    pykvq_status (*alloc)(kvq_backend *be, size_t n_bytes, const char *what, void **out);
    void (*free)(kvq_backend *be, void *memory, size_t n_bytes);
    pykvq_status (*copy)(kvq_backend *be, void *dst, const void *src, size_t n_bytes); /* either side may be host memory */
    pykvq_status (*weight_load)(kvq_backend *be, kvq_weight *w); /* before the first step; makes w->device */
    void (*weight_free)(kvq_backend *be, kvq_weight *w);         /* what weight_load made, if anything */
    pykvq_status (*kv_load)(kvq_backend *be,
                            kvq_kv_layer *kv);          /* before the first step, of layers with a key bias; or NULL */
    void (*kv_free)(kvq_backend *be, kvq_kv_layer *kv); /* what kv_load made, if anything */
    /* A page of a layer to and from host memory, where it is as described above, whatever the order on the device. */
    pykvq_status (*page_read)(kvq_backend *be, const kvq_kv_layer *kv, kvq_page page, void *out);
    pykvq_status (*page_write)(kvq_backend *be, const kvq_kv_layer *kv, kvq_page page, const void *from);

    /* batch lives until step_end */
    pykvq_status (*step_begin)(kvq_backend *be, const kvq_batch *batch);
    pykvq_status (*step_end)(kvq_backend *be, bool run); /* run false: the step was given up, nothing of it need happen */

    /* x (n_tokens, n_embd) = scale * rows of table */
    void (*embed)(kvq_backend *be, const kvq_weight *table, float scale, float *x);
    /* y (n_rows, n) = x / rms(x) * w; if add, y += that */
    void (*norm)(kvq_backend *be, const float *x, const kvq_weight *w, float eps, uint32_t n_rows, bool add, float *y);
    /* y[i] (n_rows, w[i]->n_out) = x (n_rows, n_in) . w[i]^T + bias[i] for i < n <= 3; bias[i] may be NULL; if add, y +=
     * that */
    void (*project)(kvq_backend *be, const float *x, uint32_t n_rows, uint32_t n, const kvq_weight *const *w,
                    const kvq_weight *const *bias, bool add, float *const *y);
    /* y (n_rows, n_ff) = act(x . gate^T) * (x . up^T) */
    void (*gated)(kvq_backend *be, const float *x, uint32_t n_rows, const kvq_weight *gate, const kvq_weight *up,
                  kvq_activation act, float *y);
    /* y (n_rows, n) = x at these rows, ascending; y may be x */
    void (*gather)(kvq_backend *be, const float *x, uint32_t n, const uint32_t *rows, uint32_t n_rows, float *y);
    /* x (n) = softcap * tanh(x / softcap) */
    void (*softcap)(kvq_backend *be, float softcap, size_t n, float *x);
    /* q, k: norm, then RoPE; then K and V go to their f16 pages (round to nearest even). What no half float can hold does
     * not get there, so that one bad number cannot spread to later tokens: NaN becomes 0, what is too large the largest;
     * counted in n_bad_elements. */
    void (*store)(kvq_backend *be, const kvq_heads *heads);
    void (*attend)(kvq_backend *be, const kvq_attention *attention);
    /* f16 pages of a layer into encoded pages; pairs of (jobs), after all layers have attended */
    void (*encode)(kvq_backend *be, const kvq_kv_layer *kv, const kvq_encode_job *jobs, uint32_t n_jobs);
} kvq_backend_ops;

struct kvq_backend { /* the first member of every backend's own struct */
    const kvq_backend_ops *ops;
    uint64_t n_bad_elements;  /* keys and values that were not finite half floats, since create; true after step_end */
    pykvq_observer *observer; /* NULL: none; called in project and gated by backends with host memory */
    void *observer_context;
};

/* What a backend must be able to hold at once. */
typedef struct kvq_backend_limits {
    uint32_t n_threads, n_batch;
    bool exact;                                        /* no rounding of activations, whatever the weights' type */
    uint32_t n_seq, n_tiles;                           /* sequences in a step; tiles of a full context */
    uint32_t max_n_in;                                 /* widest row of any weight */
    uint32_t max_n_ff;                                 /* widest gated output */
    uint32_t max_n_head, max_head_dim, max_head_group; /* head_group: query heads per KV head */
    size_t n_weight_bytes; /* of a GPU's memory, taken at once for the weights; those beyond it take their own */
} kvq_backend_limits;

/* ---- choosing one ---- */

typedef enum kvq_device { KVQ_DEVICE_CPU, KVQ_DEVICE_CUDA } kvq_device;

/* "cpu" (NULL means it), "cuda", or "auto": cuda where there is a GPU that it can use. */
pykvq_status kvq_device_find(const char *name, kvq_device *out);
pykvq_status kvq_backend_create(kvq_device device, const kvq_backend_limits *limits, kvq_backend **out);
size_t kvq_backend_scratch_bytes(kvq_device device, const kvq_backend_limits *limits); /* what the create above takes */

/* Can attention read encoded pages of these? or a sentence */
pykvq_status kvq_device_kv_check(kvq_device device, const kvq_codec *k, const kvq_codec *v, uint32_t head_dim);
/* What an allocation of so many bytes takes of the device's memory: a GPU's driver rounds up. */
size_t kvq_device_taken_bytes(kvq_device device, size_t n_bytes);
/* Of GPUs: what a weight adds to limits.n_weight_bytes, and how much memory there is. */
size_t kvq_device_weight_bytes(kvq_device device, const kvq_weight *w);
pykvq_status kvq_device_memory(kvq_device device, size_t *n_free, size_t *n_total);

pykvq_status kvq_cpu_kv_check(const kvq_codec *k, const kvq_codec *v);
pykvq_status kvq_cpu_backend_create(const kvq_backend_limits *limits, kvq_backend **out);
size_t kvq_cpu_backend_scratch_bytes(const kvq_backend_limits *limits); /* what the create above takes */

#endif
