/*
 * Attention of spans of many query tokens: stage.cu turns a bounded run of tiles into half floats, prefill.cu attends to
 * them, and so on in rounds until all that a span sees has been met; what a row has summed up so far lies in its output.
 */
#ifndef KVQ_CUDA_PREFILL_H
#define KVQ_CUDA_PREFILL_H

#include <cuda_runtime.h>

extern "C" {
#include "backend/backend.h"
}
#include "format.h"
#include "tile.h"

enum {
    PREFILL_LEAST = 17,          /* tokens of a span; shorter ones are for attend.cu */
    PREFILL_MAX_SPANS = 64,      /* in one launch */
    PREFILL_MAX_BLOCKS = 160,    /* when spans are cut so that every SM has some of them */
    MAX_STAGED_BYTES = 64 << 20, /* what a round attends to */
};

typedef struct prefill_span {
    uint32_t table;                  /* where its page table starts, in entries */
    uint32_t row, n_tokens, pos;     /* first row of the batch; position of its first token */
    uint32_t first_tile, n_tiles;    /* that it sees, in all rounds */
    uint32_t slot;                   /* of its first tile of a round */
    uint32_t first_block, first_row; /* its blocks of rows, its tokens, among those of all these spans */
} prefill_span;

/*
 * Staged tiles (slot, head, { K, V }) are matrices of 8 x 8 half floats, 8 of one token (K) or channel (V) in 16 bytes:
 *
 *   K: (channel / 8, token / 8) of (token, channel)     V: (token / 8, channel / 8) of (channel, token)
 *
 * which is what ldmatrix and wgmma take without conflicts between banks. An element (row, col) of a matrix lies in word
 * row * 4 + col / 2, the lane of a tensor-core fragment.
 */
typedef struct prefill_args {
    const float *q; /* (n_tokens, n_head, head_dim) */
    float *o;       /* the same */
    const uint32_t *tables;
    const uint8_t *raw, *coded; /* the layer's pools */
    uint8_t *staged;            /* (staged_bytes) */
    size_t staged_bytes;
    float *partial;           /* (split, token, head, head_dim), if there is more than one split */
    float2 *max_sum;          /* (split, token, head), base 2 */
    const float *sink_logits; /* (n_head) or NULL */
    tile_side k, v;           /* of encoded tiles */
    uint32_t k_tile_bytes, v_tile_bytes;
    uint32_t k_rotated, v_rotated; /* what is staged: raw tiles are rotated as well, queries and outputs follow */
    uint32_t n_head, n_head_kv, head_dim;
    float scale, softcap;
    uint32_t window;
    bias_tables bias;
    uint32_t nth_round, n_rounds, n_splits, n_rows; /* n_rows: tokens of all these spans */
    uint32_t n_spans;
    prefill_span spans[PREFILL_MAX_SPANS];
} prefill_args;

/* The first tile of a span that is staged in round i. */
KVQ_BOTH uint32_t round_start(const prefill_span &s, uint32_t i, uint32_t n_rounds) {
    return s.first_tile + (uint32_t)((uint64_t)s.n_tiles * i / n_rounds);
}

/* ---- host ---- */

bool takes_prefill(const kvq_span *span);
/* The long spans of a batch; the plan is filled in. tables: where each span's page table of this group
 * starts. Without encoded tiles nothing is rotated, whatever the arguments say. */
cudaError_t launch_prefill(prefill_args *args, const kvq_batch *batch, const uint32_t *tables, uint32_t group,
                           uint32_t n_sms, cudaStream_t stream);
size_t prefill_staged_bytes(const kvq_backend_limits *limits); /* a context and a tile more, if that is less */
size_t prefill_partial_bytes(const kvq_backend_limits *limits);
size_t prefill_max_sum_bytes(const kvq_backend_limits *limits);

/* stage.cu */
cudaError_t launch_stage(const prefill_args &args, uint32_t n_slots, cudaStream_t stream);

#endif
