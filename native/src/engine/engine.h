/* An engine: a model on a backend, its page pools and its sequences. */
#ifndef KVQ_ENGINE_ENGINE_H
#define KVQ_ENGINE_ENGINE_H

#include <stdatomic.h>

#include "engine/pages.h"
#include "kv/spec.h"
#include "model/forward.h"

/* Everything create allocates, computed before anything is: what the plan reports is what is taken. */
typedef struct kvq_layout {
    kvq_device device;
    uint32_t n_ctx, n_seq, n_batch, n_logits, n_threads;
    uint32_t n_tiles; /* of a full context */
    kvq_kv_spec spec;
    kvq_group groups[KVQ_MAX_GROUPS]; /* without their pools */
    size_t n_cache_bytes;             /* all pages of all layers */
    size_t n_activation_bytes;        /* of the buffers in kvq_forward but the logits */
    size_t n_logits_bytes;
    size_t n_weight_bytes; /* what the device holds: on the CPU, the mapped file */
    size_t n_bias_bytes;   /* tables of key biases */
    size_t n_host_bytes;   /* page tables, token lists, batch arrays, copies of the weight table */
    kvq_backend_limits limits;
} kvq_layout;

/* A tile that leaves the tail in the step being run. */
typedef struct kvq_leaving {
    pykvq_seq *seq;
    kvq_encode_job job;
} kvq_leaving;

struct pykvq_engine {
    const pykvq_model *model;
    kvq_layout layout;
    kvq_group groups[KVQ_MAX_GROUPS];
    kvq_forward forward;
    float *inv_freq;    /* (2, n_rot / 2) */
    void *activations;  /* layout.n_activation_bytes of backend memory */
    void *cache;        /* layout.n_cache_bytes of backend memory: the pages of forward.kv */
    float *host_logits; /* (n_vocab) a row on its way to the sampler; NULL where backend memory is host memory */

    pykvq_seq **seqs; /* (n_seq) open ones first */
    uint32_t n_open;
    bool has_floats; /* of the model, to be released */

    /* the step being run */
    kvq_span *spans;                      /* (n_seq) */
    pykvq_seq **span_seqs;                /* (n_seq) */
    int32_t *tokens;                      /* (n_batch) */
    int32_t *positions;                   /* (n_batch) */
    uint32_t *logit_rows;                 /* (n_logits) */
    kvq_leaving *leaving[KVQ_MAX_GROUPS]; /* (n_leaving_max) */
    kvq_encode_job *jobs;                 /* (n_leaving_max) */
    uint32_t n_leaving[KVQ_MAX_GROUPS], n_leaving_max;

    uint64_t step; /* counts steps; logits of a sequence are those of the step it remembers */
    pykvq_engine_stats stats;
    atomic_flag busy;
    atomic_bool cancel;
    bool dead; /* the device failed */
};

struct pykvq_seq {
    pykvq_engine *engine;
    int32_t *tokens; /* (n_ctx) */
    uint32_t n_tokens, n_cached;
    kvq_page *pages[KVQ_MAX_GROUPS];     /* (n_tiles) */
    uint32_t n_settled[KVQ_MAX_GROUPS];  /* tiles before this one are sink, encoded or gone */
    uint32_t first_tile[KVQ_MAX_GROUPS]; /* tiles before this one are out of the window and gone */
    bool keep_all_logits;
    uint64_t logits_step;
    uint32_t first_logits_row, n_logits_rows;
    uint32_t first_logits_token; /* the position that the first of those rows predicts */
};

/* One caller at a time: PYKVQ_E_BUSY if another thread is inside. */
pykvq_status kvq_engine_enter(pykvq_engine *engine);
void kvq_engine_leave(pykvq_engine *engine);
/* Bytes of one page of all layers of the group. */
static inline size_t kvq_page_bytes(const kvq_group *g, kvq_page page) {
    return page & KVQ_PAGE_CODED ? g->coded_page_bytes : g->raw_page_bytes;
}

/* sequence.c: what the step needs of a sequence */

/* Makes the pages of the next n_new tokens present and writable, and lists the tiles that leave the tail with them, with a
 * page to encode each into. On failure the sequence holds what it held. */
pykvq_status kvq_seq_reserve(pykvq_seq *seq, uint32_t n_new);
/* After the step: the tokens are cached, the leaving tiles are the encoded ones, tiles out of the window are gone. */
void kvq_seq_commit(pykvq_seq *seq, uint32_t n_new);
/* Instead: pages beyond the cached tokens go back to the pool. */
void kvq_seq_abandon(pykvq_seq *seq);
void kvq_seq_free(pykvq_seq *seq);
/* Gives up all pages and takes fresh ones for tiles first_tile[group] .. n_tiles - 1 of each group, encoded where the next
 * of `coded` is 1. Fails, before anything changes, if the pools cannot hold them. */
pykvq_status kvq_seq_replace_pages(pykvq_seq *seq, const uint32_t first_tile[KVQ_MAX_GROUPS], uint32_t n_tiles,
                                   const uint8_t *coded);

#endif
