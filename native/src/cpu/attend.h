/*
 * Attention on the CPU: queries of one KV head over the tiles of a page table, by online softmax.
 *
 * A row is one query head of one token. The unit of work (kvq_attend_work) is the rows of a run of tokens over a run of
 * tiles: of as many KV heads as have few rows together, because the heads of a page lie one after the other in memory. Each
 * tile gives logits, these give probabilities against the running maximum, and these weigh the values:
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
    KVQ_FEW_ROWS = 16,                               /* up to so many rows read stored tiles directly */
    KVQ_SET_ROWS = 96,                               /* KV heads with few rows are taken together up to so many */
    KVQ_BLOCK_ROWS = 192,                            /* about so many rows share an expanded tile: 2 to 6% of the work */
    KVQ_PREPARED_BYTES = 2 * KVQ_MAX_HEAD_DIM + 128, /* of what prepare makes of a row */
};

/* Outputs have rows of head_dim rounded up to this, so that whole vectors can be stored; what is beyond head_dim is
 * ignored. */
static inline uint32_t kvq_output_stride(uint32_t head_dim) {
    return (head_dim + 15) / 16 * 16;
}

typedef struct kvq_key_kernels {
    const kvq_codec *codec;
    /* q: (n_rows, head_dim) in the codec's basis, n_rows <= KVQ_FEW_ROWS; prepared: (n_rows, KVQ_PREPARED_BYTES), 64-byte
     * aligned. Once for all tiles. NULL: score takes q itself. */
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

/* The rows of some KV heads over tiles first_tile .. end_tile - 1. Row r of a head is a query at pos + r / rows_per_token.
 */
typedef struct kvq_attend_work {
    const kvq_attention *attention;
    const kvq_page *pages;
    uint32_t first_head, n_heads; /* KV heads */
    uint32_t first_tile, end_tile;
    uint32_t n_rows, rows_per_token, pos; /* n_rows: of one head */
    const float *q[2];                    /* (n_heads, n_rows, head_dim) in each basis */
    float *max, *sum;                     /* out: (n_heads, n_rows) of the softmax */
    float *o[2];                    /* out: (n_heads, n_rows, stride) weighted values by basis; may be the same array */
    uint8_t *prepared;              /* scratch: (n_heads, n_rows, KVQ_PREPARED_BYTES) */
    float *lanes;                   /* scratch: (n_heads, n_rows, 16), which add up to sum */
    float *k, *v;                   /* scratch: (head_dim, 64), (64, stride) */
    const kvq_key_kernels *keys[2]; /* by basis */
    const kvq_value_kernels *values[2];
} kvq_attend_work;

typedef struct kvq_attend_kernels {
    const kvq_key_kernels *const *keys;     /* the f16 kernels first, NULL last */
    const kvq_value_kernels *const *values; /* the f16 kernels first, NULL last */
    void (*run)(const kvq_attend_work *work);
    /* kvq_rotate and kvq_rotate_back of (n_rows, head_dim), equal but for rounding */
    void (*rotate)(float *x, uint32_t n_rows, uint32_t head_dim);
    void (*rotate_back)(float *x, uint32_t n_rows, uint32_t head_dim);
} kvq_attend_kernels;

/* Fails with a sentence if attention cannot read pages of these codecs. */
pykvq_status kvq_attend_check(const kvq_codec *k, const kvq_codec *v);
/* Scratch of kvq_attend for these limits. */
size_t kvq_attend_scratch_bytes(const kvq_backend_limits *limits);
/* All of a layer's attention. scratch: kvq_attend_scratch_bytes, 64-byte aligned. */
void kvq_attend(kvq_threads *threads, void *scratch, const kvq_backend_limits *limits, const kvq_batch *batch,
                const kvq_attention *attention);

#endif
