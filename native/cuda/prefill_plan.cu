/* Cutting prefill attention into rounds, blocks and splits; the merge of splits; one kernel per head_dim. */
#include "prefill.h"

#include "device.cuh"

#define DECLARE(hd)                                                                                                        \
    extern "C" cudaError_t kvq_cuda_prefill_##hd(const prefill_args *args, uint32_t n_blocks, cudaStream_t stream);        \
    extern "C" cudaError_t kvq_cuda_prefill_rows_##hd(uint32_t *n_rows);
EACH_HEAD_DIM(DECLARE)

static cudaError_t launch_rows(const prefill_args &a, uint32_t n_blocks, cudaStream_t stream) {
    switch (a.head_dim) {
#define LAUNCH(hd)                                                                                                         \
    case hd:                                                                                                               \
        return kvq_cuda_prefill_##hd(&a, n_blocks, stream);
        EACH_HEAD_DIM(LAUNCH)
    }
    return cudaErrorInvalidValue;
}

/* Rows of a block. */
static cudaError_t find_rows(uint32_t head_dim, uint32_t *n_rows) {
    switch (head_dim) {
#define FIND(hd)                                                                                                           \
    case hd:                                                                                                               \
        return kvq_cuda_prefill_rows_##hd(n_rows);
        EACH_HEAD_DIM(FIND)
    }
    return cudaErrorInvalidValue;
}

/* ---- merging splits ---- */

namespace {

/* One warp per query token and head. */
__global__ void __launch_bounds__(128) merge_kernel(const __grid_constant__ prefill_args a) {
    let_next_start();
    wait_for_previous();
    uint32_t n = a.n_rows * a.n_head, row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= n)
        return;
    uint32_t token = row / a.n_head, head = row % a.n_head, i = 0;
    while (i + 1 < a.n_spans && a.spans[i + 1].first_row <= token)
        i++;
    float max = a.sink_logits != NULL ? a.sink_logits[head] * LOG2E : NO_MAX, sum = 0.0f;
    for (uint32_t k = 0; k < a.n_splits; k++)
        max = fmaxf(max, a.max_sum[(size_t)k * n + row].x);
    for (uint32_t k = 0; k < a.n_splits; k++)
        sum += a.max_sum[(size_t)k * n + row].y * exp2_fast(a.max_sum[(size_t)k * n + row].x - max);
    if (a.sink_logits != NULL)
        sum += exp2_fast(a.sink_logits[head] * LOG2E - max);
    float *o = a.o + ((size_t)(a.spans[i].row + token - a.spans[i].first_row) * a.n_head + head) * a.head_dim;
    for (uint32_t d = lane; d < a.head_dim; d += 32) {
        float x = 0.0f;
        for (uint32_t k = 0; k < a.n_splits; k++)
            x += a.partial[((size_t)k * n + row) * a.head_dim + d] * exp2_fast(a.max_sum[(size_t)k * n + row].x - max);
        o[d] = x / sum;
    }
}

} // namespace

/* ---- plan ---- */

bool takes_prefill(const kvq_span *span) {
    return span->n_tokens >= PREFILL_LEAST;
}

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static uint32_t divide_up(uint32_t a, uint32_t b) {
    return (a + b - 1) / b;
}

/* Slots that a round takes; the first of each span. */
static uint32_t lay_out_slots(prefill_args *a) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < a->n_spans; i++) {
        a->spans[i].slot = n;
        n += divide_up(a->spans[i].n_tiles, a->n_rounds);
    }
    return n;
}

struct prefill_size {
    uint32_t n_blocks, n_tiles, longest; /* of all spans; tiles of the longest */
    bool any_coded;
};

/* Takes spans from *next on, as many as one launch can. */
static prefill_size take_spans(prefill_args *a, const kvq_batch *batch, const uint32_t *tables, uint32_t group,
                               uint32_t block_rows, uint32_t max_spans, uint32_t *next) {
    uint32_t head_group = a->n_head / a->n_head_kv;
    prefill_size size = {};
    a->n_spans = a->n_rows = 0;
    for (; *next < batch->n_spans && a->n_spans < max_spans; ++*next) {
        const kvq_span *span = &batch->spans[*next];
        if (!takes_prefill(span))
            continue;
        prefill_span *s = &a->spans[a->n_spans++];
        s->table = tables[*next];
        s->row = span->first;
        s->n_tokens = span->n_tokens;
        s->pos = span->pos;
        s->first_tile = a->window > 0 && span->pos + 1 > a->window ? (span->pos + 1 - a->window) / KVQ_TILE : 0;
        s->n_tiles = (span->pos + span->n_tokens - 1) / KVQ_TILE + 1 - s->first_tile;
        s->first_block = size.n_blocks;
        s->first_row = a->n_rows;
        size.n_blocks += divide_up(span->n_tokens * head_group, block_rows);
        size.n_tiles += s->n_tiles;
        size.longest = s->n_tiles > size.longest ? s->n_tiles : size.longest;
        a->n_rows += span->n_tokens;
        for (uint32_t tile = 0; tile < s->n_tiles && !size.any_coded; tile++)
            size.any_coded = span->pages[group][s->first_tile + tile] & KVQ_PAGE_CODED;
    }
    return size;
}

/* Some SMs without a block: rows are split, each part takes some of the tiles of every round. */
static uint32_t count_splits(const prefill_args *a, const prefill_size &size, uint32_t n_sms) {
    uint32_t n = least(n_sms, PREFILL_MAX_BLOCKS) / (size.n_blocks * a->n_head_kv);
    n = least(n, divide_up(size.longest, a->n_rounds) / 2);
    return n > 1 ? n : 1;
}

cudaError_t launch_prefill(prefill_args *a, const kvq_batch *batch, const uint32_t *tables, uint32_t group, uint32_t n_sms,
                           cudaStream_t stream) {
    uint32_t max_slots = (uint32_t)a->staged_bytes / (a->n_head_kv * a->head_dim * TILE_TOKENS * 4), next = 0;
    uint32_t block_rows = 0;
    bool k_rotated = a->k_rotated, v_rotated = a->v_rotated;
    cudaError_t error = max_slots >= 2 ? find_rows(a->head_dim, &block_rows) : cudaErrorInvalidValue;
    for (;;) {
        if (error != cudaSuccess)
            return error;
        prefill_size size = take_spans(a, batch, tables, group, block_rows, least(PREFILL_MAX_SPANS, max_slots / 2), &next);
        if (a->n_spans == 0)
            return cudaSuccess;
        a->k_rotated = k_rotated && size.any_coded;
        a->v_rotated = v_rotated && size.any_coded;
        uint32_t n_slots;
        for (a->n_rounds = divide_up(size.n_tiles, max_slots); (n_slots = lay_out_slots(a)) > max_slots; a->n_rounds++)
            ;
        a->n_splits = count_splits(a, size, n_sms);
        for (a->nth_round = 0; a->nth_round < a->n_rounds && error == cudaSuccess; a->nth_round++) {
            error = launch_stage(*a, n_slots, stream);
            if (error == cudaSuccess)
                error = launch_rows(*a, size.n_blocks, stream);
        }
        if (a->n_splits > 1 && error == cudaSuccess)
            error = launch(merge_kernel, dim3(divide_up(a->n_rows * a->n_head, 4)), 128, 0, stream, *a);
    }
}

size_t prefill_staged_bytes(const kvq_backend_limits *limits) {
    size_t n = (limits->n_tiles + (size_t)1) * limits->max_n_head * limits->max_head_dim * TILE_TOKENS * 4;
    return n < MAX_STAGED_BYTES ? n : MAX_STAGED_BYTES;
}

size_t prefill_partial_bytes(const kvq_backend_limits *limits) {
    return (size_t)PREFILL_MAX_BLOCKS * 128 * limits->max_head_dim * sizeof(float);
}

size_t prefill_max_sum_bytes(const kvq_backend_limits *limits) {
    size_t n_rows = (size_t)limits->n_batch * limits->max_n_head, n_split = PREFILL_MAX_BLOCKS * 128;
    return (n_rows > n_split ? n_rows : n_split) * sizeof(float2);
}
