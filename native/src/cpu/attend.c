/*
 * Splits a layer's attention into units of work, runs them on all threads and merges the parts.
 *
 * The tokens of a span are cut into blocks whose rows (tokens x query heads of a KV head) share expanded tiles. A block
 * with few rows takes several KV heads at a time (a set). A block's tiles are cut into pieces where there are fewer blocks
 * than it takes to keep all threads busy. Unit = block x set x piece; threads draw units, those that see most first. A
 * piece leaves {max, sum, weighted values} per row; merging is a second pass. The cut depends on the step and not on the
 * threads (up to 16 of them), so neither do the results.
 *
 * A token that is decoded and the same token in a short run (a draft that is checked) get the same bits, as long as the
 * run stays in one tile: it is cut into pieces as one token would be, and only kernels for few rows see it.
 */
#include "cpu/attend.h"
#include "cpu/isa.h"

#include <math.h>
#include <string.h>

enum {
    TILE_COST_ROWS = 8,   /* reading one head of a tile costs as much as working on so many rows */
    PIECE_MIN_COST = 512, /* in such rows */
    PARTIAL_ROWS = 64,    /* per piece wanted, on average */
};

typedef struct block { /* some tokens of a span */
    const kvq_page *pages;
    uint32_t first, n_tokens, pos; /* row of the batch, position */
    uint32_t first_tile, end_tile;
    uint32_t n_rows, set_heads; /* of one KV head; KV heads in a set */
    uint32_t n_pieces, first_unit;
    bool is_draft;    /* of a run of no more than KVQ_DRAFT_TOKENS */
    uint32_t partial; /* n_pieces > 1: first row in partial results: (n_pieces, n_head_kv, n_rows) */
} block;

typedef struct layout {
    block *blocks;        /* (n_batch) */
    float *max, *sum, *o; /* partial results: (n_partial), (n_partial), (n_partial, stride) */
    uint32_t n_partial, block_rows;
    uint8_t *threads; /* (n_threads, thread_bytes) */
    size_t thread_bytes;
} layout;

typedef struct thread_layout {
    float *q, *q_coded; /* (block_rows, head_dim) */
    float *max, *sum;   /* (block_rows) */
    float *o, *o_coded; /* (block_rows, stride) */
    float *lanes;       /* (block_rows, 16) */
    float *k, *v;       /* (head_dim, 64), (64, stride) */
    uint8_t *prepared;
} thread_layout;

typedef struct job {
    const kvq_attention *attention;
    const kvq_batch *batch;
    const kvq_attend_kernels *kernels;
    kvq_threads *threads;
    layout scratch;
    uint32_t head_group; /* query heads per KV head */
    uint32_t n_blocks, n_units;
    bool split;
} job;

/* The next n_bytes of an area, 64-byte aligned; without an area only *used grows. */
static void *take(uint8_t *area, size_t *used, size_t n_bytes) {
    void *memory = area == NULL ? NULL : area + *used;
    *used += (n_bytes + 63) / 64 * 64;
    return memory;
}

static size_t lay_out_thread(uint8_t *area, uint32_t block_rows, uint32_t head_dim, thread_layout *t) {
    size_t row = head_dim * sizeof(float), out_row = kvq_output_stride(head_dim) * sizeof(float), used = 0;
    t->q = take(area, &used, block_rows * row);
    t->q_coded = take(area, &used, block_rows * row);
    t->max = take(area, &used, block_rows * sizeof(float));
    t->sum = take(area, &used, block_rows * sizeof(float));
    t->o = take(area, &used, block_rows * out_row);
    t->o_coded = take(area, &used, block_rows * out_row);
    t->lanes = take(area, &used, block_rows * 16 * sizeof(float));
    t->k = take(area, &used, KVQ_TILE * row);
    t->v = take(area, &used, KVQ_TILE * out_row);
    t->prepared = take(area, &used, (size_t)block_rows * KVQ_PREPARED_BYTES);
    return used;
}

static const kvq_key_kernels *find_keys(const kvq_attend_kernels *kernels, const kvq_codec *codec) { /* NULL if unknown */
    const kvq_key_kernels *const *at = kernels->keys;
    while (*at != NULL && (*at)->codec != codec)
        at++;
    return *at;
}

static const kvq_value_kernels *find_values(const kvq_attend_kernels *kernels, const kvq_codec *codec) {
    const kvq_value_kernels *const *at = kernels->values;
    while (*at != NULL && (*at)->codec != codec)
        at++;
    return *at;
}

pykvq_status kvq_attend_check(const kvq_codec *k, const kvq_codec *v) {
    const kvq_kernels *kernels = kvq_kernels_selected();
    bool k_known = find_keys(kernels->attend, k) != NULL, v_known = find_values(kernels->attend, v) != NULL;
    if (k_known && v_known)
        return PYKVQ_OK;
    return kvq_fail(PYKVQ_E_UNSUPPORTED, "KV type '%s': the CPU (%s) cannot attend to its %s", k_known ? v->name : k->name,
                    kernels->isa, k_known ? "values" : "keys");
}

static uint32_t pieces_wanted(uint32_t n_threads) {
    return n_threads > 16 ? 4 * n_threads : 64;
}

static size_t lay_out(uint8_t *area, const kvq_backend_limits *limits, layout *s) {
    size_t used = 0;
    thread_layout unused;
    s->block_rows = limits->max_head_group > KVQ_BLOCK_ROWS ? limits->max_head_group : KVQ_BLOCK_ROWS;
    uint32_t draft_rows = limits->max_n_head * KVQ_DRAFT_TOKENS;
    s->n_partial = pieces_wanted(limits->n_threads) * (draft_rows > PARTIAL_ROWS ? draft_rows : PARTIAL_ROWS);
    s->thread_bytes = lay_out_thread(NULL, s->block_rows, limits->max_head_dim, &unused);
    s->blocks = take(area, &used, limits->n_batch * sizeof(block));
    s->max = take(area, &used, s->n_partial * sizeof(float));
    s->sum = take(area, &used, s->n_partial * sizeof(float));
    s->o = take(area, &used, (size_t)s->n_partial * kvq_output_stride(limits->max_head_dim) * sizeof(float));
    s->threads = take(area, &used, limits->n_threads * s->thread_bytes);
    return used;
}

size_t kvq_attend_scratch_bytes(const kvq_backend_limits *limits) {
    layout unused;
    return lay_out(NULL, limits, &unused);
}

static uint32_t block_tiles(const block *b) {
    return b->end_tile - b->first_tile;
}

/* Rows of a KV head that cost is reckoned with, and KV heads of a set: of a draft as if it were one token. */
static uint32_t cost_rows(const job *j, const block *b) {
    return b->is_draft ? j->head_group : b->n_rows;
}

static uint32_t set_heads(uint32_t n_rows) {
    return n_rows < KVQ_SET_ROWS ? KVQ_SET_ROWS / n_rows : 1;
}

static uint64_t block_cost(const job *j, const block *b) { /* of one KV head */
    return (uint64_t)block_tiles(b) * (cost_rows(j, b) + TILE_COST_ROWS);
}

static uint32_t max_u32(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

static void cut_blocks(job *j) {
    const kvq_attention *a = j->attention;
    for (uint32_t i = 0; i < j->batch->n_spans; i++) {
        const kvq_span *span = &j->batch->spans[i];
        bool is_draft = span->n_tokens <= KVQ_DRAFT_TOKENS;
        uint32_t block_tokens = max_u32(1, (is_draft ? KVQ_FEW_ROWS : KVQ_BLOCK_ROWS) / j->head_group);
        for (uint32_t t = 0; t < span->n_tokens; t += block_tokens) {
            block *b = &j->scratch.blocks[j->n_blocks++];
            b->pages = span->pages[a->group];
            b->first = span->first + t;
            b->n_tokens = span->n_tokens - t < block_tokens ? span->n_tokens - t : block_tokens;
            b->pos = span->pos + t;
            b->n_rows = b->n_tokens * j->head_group;
            b->set_heads = set_heads(b->n_rows);
            b->is_draft = is_draft;
            uint32_t n_seen = b->pos + 1; /* by the first token */
            b->first_tile = a->window > 0 && n_seen > a->window ? (n_seen - a->window) / KVQ_TILE : 0;
            b->end_tile = (b->pos + b->n_tokens - 1) / KVQ_TILE + 1;
        }
    }
}

static uint64_t min_u64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static void cut_pieces(job *j) {
    uint32_t n_head_kv = j->attention->kv->n_head_kv, n_partial = 0;
    uint64_t total = 0;
    for (uint32_t i = 0; i < j->n_blocks; i++) {
        const block *b = &j->scratch.blocks[i];
        bool is_counted = b->is_draft && i > 0 && b[-1].pages == b->pages; /* with the block before, of the same run */
        total += is_counted ? 0 : block_cost(j, b) * n_head_kv;
    }
    uint64_t wanted = total / pieces_wanted(kvq_threads_count(j->threads));
    wanted = wanted > PIECE_MIN_COST ? wanted : PIECE_MIN_COST;
    for (uint32_t i = 0; i < j->n_blocks; i++) {
        block *b = &j->scratch.blocks[i];
        uint32_t n_sets = (n_head_kv + b->set_heads - 1) / b->set_heads;
        uint64_t set_cost = block_cost(j, b) * min_u64(set_heads(cost_rows(j, b)), n_head_kv);
        uint64_t fitting = (j->scratch.n_partial - n_partial) / (n_head_kv * b->n_rows);
        uint64_t n_pieces = min_u64(min_u64(set_cost / wanted, block_tiles(b)), fitting);
        b->n_pieces = n_pieces > 1 ? (uint32_t)n_pieces : 1;
        b->first_unit = j->n_units;
        j->n_units += n_sets * b->n_pieces;
        b->partial = n_partial;
        n_partial += b->n_pieces > 1 ? b->n_pieces * n_head_kv * b->n_rows : 0;
        j->split |= b->n_pieces > 1;
    }
}

static const block *find_block(const job *j, uint32_t unit) {
    uint32_t low = 0, high = j->n_blocks; /* low's first unit <= unit < high's */
    while (high - low > 1) {
        uint32_t mid = (low + high) / 2;
        if (j->scratch.blocks[mid].first_unit <= unit)
            low = mid;
        else
            high = mid;
    }
    return &j->scratch.blocks[low];
}

/* Where row r of a block's KV head lies in q and o. */
static size_t row_offset(const job *j, const block *b, uint32_t head, uint32_t r) {
    size_t token = b->first + r / j->head_group, query_head = head * j->head_group + r % j->head_group;
    return (token * j->attention->n_head + query_head) * j->attention->kv->head_dim;
}

/* The row's output: its weighted values over its sum, to which a sink logit may add. */
static void write_row(const job *j, const block *b, uint32_t head, uint32_t r, float max, float sum, const float *o) {
    const kvq_attention *a = j->attention;
    float factor = 1.0f / sum;
    if (a->sink_logits != NULL) {
        float sink = a->sink_logits[head * j->head_group + r % j->head_group], top = fmaxf(max, sink);
        float scale = expf(max - top);
        factor = scale / (sum * scale + expf(sink - top));
    }
    float *out = a->o + row_offset(j, b, head, r);
    for (uint32_t c = 0; c < a->kv->head_dim; c++)
        out[c] = o[c] * factor;
}

/* Queries of n_heads KV heads from first_head on. */
static void gather_queries(const job *j, const block *b, uint32_t first_head, uint32_t n_heads, const thread_layout *t) {
    const kvq_kv_layer *kv = j->attention->kv;
    float *q = t->q;
    for (uint32_t i = 0; i < n_heads; i++)
        for (uint32_t r = 0; r < b->n_rows; r++, q += kv->head_dim)
            memcpy(q, j->attention->q + row_offset(j, b, first_head + i, r), kv->head_dim * sizeof *q);
    if (kv->k->rotated) {
        memcpy(t->q_coded, t->q, (size_t)n_heads * b->n_rows * kv->head_dim * sizeof *q);
        j->kernels->rotate(t->q_coded, n_heads * b->n_rows, kv->head_dim);
    }
}

/* y (stride) += factor * x; the inner loop is short enough for the compiler to make it vectors */
static void add_row(float *y, float factor, const float *x, uint32_t stride) {
    for (uint32_t c = 0; c < stride; c += 16)
        for (uint32_t i = 0; i < 16; i++)
            y[c + i] += factor * x[c + i];
}

/* o += coded, in the original basis; both (n_rows, head_dim), which is a multiple of 16 where a codec rotates */
static void add_rotated_back(const job *j, float *o, float *coded, uint32_t n_rows) {
    uint32_t head_dim = j->attention->kv->head_dim;
    j->kernels->rotate_back(coded, n_rows, head_dim);
    add_row(o, 1.0f, coded, n_rows * head_dim);
}

static void run_unit(const job *j, uint32_t unit, const thread_layout *t) {
    const kvq_attention *a = j->attention;
    const kvq_kv_layer *kv = a->kv;
    const block *b = find_block(j, unit);
    uint32_t set = (unit - b->first_unit) / b->n_pieces, piece = (unit - b->first_unit) % b->n_pieces;
    uint32_t first_head = set * b->set_heads, heads_left = kv->n_head_kv - first_head;
    uint32_t n_heads = heads_left < b->set_heads ? heads_left : b->set_heads, stride = kvq_output_stride(kv->head_dim);
    kvq_attend_work work = {
        .attention = a,
        .pages = b->pages,
        .first_head = first_head,
        .n_heads = n_heads,
        .first_tile = b->first_tile + (uint32_t)((uint64_t)block_tiles(b) * piece / b->n_pieces),
        .end_tile = b->first_tile + (uint32_t)((uint64_t)block_tiles(b) * (piece + 1) / b->n_pieces),
        .n_rows = b->n_rows,
        .rows_per_token = j->head_group,
        .pos = b->pos,
        .q = {t->q, kv->k->rotated ? t->q_coded : t->q},
        .max = t->max,
        .sum = t->sum,
        .o = {t->o, t->o_coded},
        .prepared = t->prepared,
        .lanes = t->lanes,
        .k = t->k,
        .v = t->v,
        .keys = {j->kernels->keys[0], find_keys(j->kernels, kv->k)},
        .values = {j->kernels->values[0], find_values(j->kernels, kv->v)},
    };
    if (b->n_pieces > 1) {
        size_t row = b->partial + ((size_t)piece * kv->n_head_kv + first_head) * b->n_rows;
        work.max = j->scratch.max + row;
        work.sum = j->scratch.sum + row;
        work.o[KVQ_PLAIN] = j->scratch.o + row * stride;
    }
    if (!kv->v->rotated)
        work.o[KVQ_CODED] = work.o[KVQ_PLAIN];
    gather_queries(j, b, first_head, n_heads, t);
    j->kernels->run(&work);
    if (kv->v->rotated)
        add_rotated_back(j, work.o[KVQ_PLAIN], work.o[KVQ_CODED], n_heads * b->n_rows);
    for (uint32_t i = 0; i < n_heads * b->n_rows && b->n_pieces == 1; i++)
        write_row(j, b, first_head + i / b->n_rows, i % b->n_rows, work.max[i], work.sum[i],
                  work.o[KVQ_PLAIN] + (size_t)i * stride);
}

/* Merges the pieces of one row; o: (stride) scratch. */
static void merge_row(const job *j, const block *b, uint32_t head, uint32_t r, float *o) {
    uint32_t stride = kvq_output_stride(j->attention->kv->head_dim);
    size_t step = (size_t)j->attention->kv->n_head_kv * b->n_rows, first = b->partial + (size_t)head * b->n_rows + r;
    float max = -INFINITY, sum = 0;
    for (uint32_t p = 0; p < b->n_pieces; p++)
        max = fmaxf(max, j->scratch.max[first + p * step]);
    memset(o, 0, stride * sizeof *o);
    for (uint32_t p = 0; p < b->n_pieces; p++) {
        size_t row = first + p * step;
        float factor = expf(j->scratch.max[row] - max); /* 0 for a piece of which the row sees nothing */
        sum += factor * j->scratch.sum[row];
        add_row(o, factor, j->scratch.o + row * stride, stride);
    }
    write_row(j, b, head, r, max, sum, o);
}

static void merge(const job *j, uint32_t thread, uint32_t n_threads, float *o) {
    uint32_t turn = 0;
    for (uint32_t i = 0; i < j->n_blocks; i++) {
        const block *b = &j->scratch.blocks[i];
        for (uint32_t head = 0; b->n_pieces > 1 && head < j->attention->kv->n_head_kv; head++)
            for (uint32_t r = 0; r < b->n_rows; r++)
                if (turn++ % n_threads == thread)
                    merge_row(j, b, head, r, o);
    }
}

static void attend(void *context, uint32_t thread, uint32_t n_threads) {
    job *j = context;
    thread_layout t;
    lay_out_thread(j->scratch.threads + thread * j->scratch.thread_bytes, j->scratch.block_rows, j->attention->kv->head_dim,
                   &t);
    for (uint32_t i; (i = kvq_threads_next(j->threads)) < j->n_units;)
        run_unit(j, j->n_units - 1 - i, &t); /* later tokens see more */
    if (j->split) {
        kvq_threads_barrier(j->threads);
        merge(j, thread, n_threads, t.o);
    }
}

void kvq_attend(kvq_threads *threads, void *scratch, const kvq_backend_limits *limits, const kvq_batch *batch,
                const kvq_attention *attention) {
    job j = {
        .attention = attention,
        .batch = batch,
        .kernels = kvq_kernels_selected()->attend,
        .threads = threads,
        .head_group = attention->n_head / attention->kv->n_head_kv,
    };
    lay_out(scratch, limits, &j.scratch);
    cut_blocks(&j);
    cut_pieces(&j);
    if (j.n_units > 1) {
        kvq_threads_run(threads, attend, &j);
        return;
    }
    thread_layout t; /* too little to wake the team for */
    lay_out_thread(j.scratch.threads, j.scratch.block_rows, attention->kv->head_dim, &t);
    run_unit(&j, 0, &t);
}
