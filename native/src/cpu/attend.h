/*
 * Attention on the CPU: queries of one KV head over the tiles of a page table, by online softmax.
 *
 * A row is one query head of one token; the rows of a KV head over a run of tiles are the unit of work (kvq_attend_work).
 * Each tile gives logits, these give probabilities against the running maximum, and these weigh the values:
 *
 *     few rows    score(tile, queries) -> logits     mix(tile, probabilities) -> outputs          reads the stored bytes
 *     many rows   expand both tiles to float once, then two matrix products in registers
 *
 * What a codec adds for an instruction set is one kvq_key_kernels and one kvq_value_kernels, listed in
 * kernels/attend_table.c; attention never asks which codec it is. Rows and outputs are in the codec's basis
 * (kvq_codec.rotated): the driver rotates queries once per unit of work and the summed outputs once at its end. f16 pages
 * always take the f16 kernels.
 */
#ifndef KVQ_CPU_ATTEND_H
#define KVQ_CPU_ATTEND_H

#include "backend/backend.h"
#include "base/threads.h"

enum {
    KVQ_FEW_ROWS = 16,   /* up to so many rows read stored tiles directly */
    KVQ_BLOCK_ROWS = 96, /* about so many rows share an expanded tile */
};

/* Outputs have rows of head_dim rounded up to this, so that whole vectors can be stored; what is beyond head_dim is
 * ignored. */
static inline uint32_t kvq_output_stride(uint32_t head_dim) {
    return (head_dim + 15) / 16 * 16;
}

/* Of what prepare makes. */
static inline size_t kvq_prepared_bytes(uint32_t head_dim) {
    return (size_t)KVQ_FEW_ROWS * (8 * head_dim + 64);
}

typedef struct kvq_key_kernels {
    const kvq_codec *codec;
    /* q: (n_rows, head_dim) in the codec's basis, n_rows <= KVQ_FEW_ROWS; prepared: kvq_prepared_bytes, 64-byte aligned.
     * Once for all tiles. NULL: score takes q itself. */
    void (*prepare)(const float *q, uint32_t n_rows, uint32_t head_dim, void *prepared);
    /* logits (n_rows, 64) = q . k */
    void (*score)(const void *tile, uint32_t head_dim, const void *prepared, uint32_t n_rows, float *logits);
    /* k: (head_dim, 64) in the codec's basis */
    void (*expand)(const void *tile, uint32_t head_dim, float *k);
} kvq_key_kernels;

typedef struct kvq_value_kernels {
    const kvq_codec *codec;
    /* o (n_rows, stride) += p (n_rows, 64) . tile, over the first n_tokens tokens; the others may hold anything */
    void (*mix)(const void *tile, uint32_t head_dim, uint32_t n_tokens, const float *p, uint32_t n_rows, float *o);
    /* v: (64, stride) in the codec's basis */
    void (*expand)(const void *tile, uint32_t head_dim, float *v);
} kvq_value_kernels;

/* Index of the two bases: f16 pages are in the original one, encoded pages in their codec's. */
enum { KVQ_PLAIN, KVQ_CODED };

/* The rows of one KV head over tiles first_tile .. end_tile - 1. */
typedef struct kvq_attend_work {
    const kvq_attention *attention;
    const kvq_page *pages;
    uint32_t head; /* KV head */
    uint32_t first_tile, end_tile;
    uint32_t n_rows, rows_per_token, pos; /* row r is a query at position pos + r / rows_per_token */
    const float *q[2];                    /* (n_rows, head_dim) in each basis */
    float *max, *sum;                     /* out: (n_rows) of the softmax */
    float *o[2];                          /* out: (n_rows, stride) weighted values by basis; may be the same array */
    void *prepared;                       /* scratch: kvq_prepared_bytes */
    float *k, *v;                         /* scratch: (head_dim, 64), (64, stride) */
} kvq_attend_work;

typedef struct kvq_attend_kernels {
    const kvq_key_kernels *const *keys;     /* the f16 kernels first, NULL last */
    const kvq_value_kernels *const *values; /* the f16 kernels first, NULL last */
    void (*run)(const kvq_attend_work *work);
} kvq_attend_kernels;

/* Scratch of kvq_attend for these limits. */
size_t kvq_attend_scratch_bytes(const kvq_backend_limits *limits);
/* All of a layer's attention. scratch: kvq_attend_scratch_bytes, 64-byte aligned. */
void kvq_attend(kvq_threads *threads, void *scratch, const kvq_backend_limits *limits, const kvq_batch *batch,
                const kvq_attention *attention);

#endif
