/*
 * Attention of one unit of work: tile after tile, logits, softmax against the running maximum, weighted values.
 *
 * With few rows the codec's kernels read the stored tiles, all heads of a page in the order they lie in memory, and memory
 * is the limit. With many rows each tile is expanded to floats once, 8 head_dim x 64 bytes in cache, and all rows pass over
 * it in groups: 2 x 64 head_dim fused multiply-adds per row, about 20 instructions per vector of logits for the softmax.
 * Measured on one Zen 5 core, 512 queries at depth 8192: 79% of the fused multiply-add peak with head_dim 64, 82% with 128.
 */
#include "cpu/attend.h"
#include "cpu/isa.h"
#include "cpu/kernels/attend_product.h"

#include <stdalign.h>

enum {
    GROUP_ROWS = 12,         /* rows whose logits are alive at a time; at most KVQ_FEW_ROWS */
    TILE_VF = KVQ_TILE / VF, /* vectors in a row of logits */
};

typedef struct state {
    const kvq_attend_work *w;
    uint32_t tile, head_dim, stride;
    bool whole;                                        /* every row sees all of the tile */
    alignas(64) float logits[KVQ_FEW_ROWS * KVQ_TILE]; /* (rows, 64), then probabilities */
} state;

/* One head's part of a tile. */
typedef struct operand {
    uint32_t head, basis; /* head: of the unit's */
    const void *k, *v;    /* stored, or expanded; stored, V follows K */
} operand;

/* The tokens of the current tile that row r of a head sees: lo .. hi - 1, none if lo >= hi. */
static void visible(const state *s, uint32_t r, int64_t *lo, int64_t *hi) {
    int64_t pos = s->w->pos + r / s->w->rows_per_token, start = (int64_t)s->tile * KVQ_TILE;
    uint32_t window = s->w->attention->window;
    *hi = pos + 1 - start < KVQ_TILE ? pos + 1 - start : KVQ_TILE;
    *lo = window > 0 && pos + 1 - window > start ? pos + 1 - window - start : 0;
}

static void scale_row(float *x, uint32_t n, float factor) {
    for (uint32_t i = 0; i < n; i += VF)
        vf_store(x + i, vf_mul(vf_load(x + i), vf_set1(factor)));
}

/* Makes new_max the maximum of a row: scales what was summed so far. */
static void raise_max(const state *s, size_t row, float new_max) {
    const kvq_attend_work *w = s->w;
    float factor = expf(w->max[row] - new_max);
    w->max[row] = new_max;
    w->sum[row] *= factor;
    scale_row(w->o[KVQ_PLAIN] + row * s->stride, s->stride, factor);
    if (w->o[KVQ_CODED] != w->o[KVQ_PLAIN])
        scale_row(w->o[KVQ_CODED] + row * s->stride, s->stride, factor);
}

/* Turns a row's products q.k (64), of which lo .. hi - 1 are seen, into probabilities against the running maximum. */
static void softmax(const state *s, size_t row, float *logits, int64_t lo, int64_t hi) {
    const kvq_attention *a = s->w->attention;
    vf32 x[TILE_VF];
#pragma GCC unroll 16
    for (uint32_t i = 0; i < TILE_VF; i++)
        x[i] = vf_mul(vf_load(logits + i * VF), vf_set1(a->scale));
    if (a->softcap > 0)
        for (uint32_t i = 0; i < TILE_VF; i++)
            x[i] = vf_softcap(x[i], a->softcap);
    if (hi - lo < KVQ_TILE) { /* what was never written may be NaN: it is replaced, not added to */
        for (uint32_t i = 0; i < TILE_VF; i++)
            vf_store(logits + i * VF, x[i]);
        for (int64_t t = 0; t < KVQ_TILE; t++)
            if (t < lo || t >= hi)
                logits[t] = -INFINITY;
        for (uint32_t i = 0; i < TILE_VF; i++)
            x[i] = vf_load(logits + i * VF);
    }
    vf32 max = x[0];
#pragma GCC unroll 16
    for (uint32_t i = 1; i < TILE_VF; i++)
        max = vf_max(max, x[i]);
    if (vf_any_less(vf_set1(s->w->max[row]), max))
        raise_max(s, row, vf_reduce_max(max));
    max = vf_set1(s->w->max[row]);
    vf32 sum = vf_zero();
#pragma GCC unroll 16
    for (uint32_t i = 0; i < TILE_VF; i++) {
        vf32 p = vf_exp(vf_sub(x[i], max));
        vf_store(logits + i * VF, p);
        sum = vf_add(sum, p);
    }
    s->w->sum[row] += vf_reduce_add(sum);
}

/* What was taken out of the keys of an encoded tile goes back into the logits of rows row .. row + n - 1. */
static void add_key_bias(state *s, const operand *tile, size_t row, uint32_t n) {
    const kvq_key_bias *bias = s->w->attention->kv->key_bias;
    uint32_t head = s->w->first_head + tile->head;
    float ab[KVQ_FEW_ROWS * KVQ_MAX_HEAD_DIM]; /* (n, 2 n_pairs) */
    for (uint32_t r = 0; r < n; r++)
        kvq_key_bias_query(bias, head, s->tile, s->w->q[KVQ_PLAIN] + (row + r) * s->head_dim, ab + r * 2 * bias->n_pairs);
    product p = {.a = ab,
                 .b = kvq_key_bias_wave(bias, head),
                 .c = s->logits,
                 .a_stride = 2 * bias->n_pairs,
                 .b_stride = KVQ_TILE,
                 .c_stride = KVQ_TILE,
                 .n_k = 2 * bias->n_pairs,
                 .add = true};
    product_all(&p, n, KVQ_TILE, false);
}

/* Rows first .. first + n - 1 of a head against its part of the current tile. */
static void attend_rows(state *s, const operand *tile, uint32_t first, uint32_t n, bool expanded) {
    const kvq_attend_work *w = s->w;
    size_t row = (size_t)tile->head * w->n_rows + first;
    int64_t lo = 0, hi = KVQ_TILE, end = KVQ_TILE;
    if (!s->whole) {
        visible(s, first, &lo, &hi);
        visible(s, first + n - 1, &(int64_t){0}, &end); /* the last row sees furthest */
        if (lo >= KVQ_TILE || end <= 0)
            return;
    }
    if (expanded) {
        product p = {.a = w->q[tile->basis] + row * s->head_dim,
                     .b = tile->k,
                     .c = s->logits,
                     .a_stride = s->head_dim,
                     .b_stride = KVQ_TILE,
                     .c_stride = KVQ_TILE,
                     .n_k = s->head_dim};
        product_all(&p, n, KVQ_TILE, false);
    } else if (w->keys[tile->basis]->prepare == NULL) {
        w->keys[tile->basis]->score(tile->k, s->head_dim, w->q[tile->basis] + row * s->head_dim, n, s->logits);
    } else {
        const void *prepared = w->prepared + tile->head * kvq_prepared_bytes(n, s->head_dim);
        w->keys[tile->basis]->score(tile->k, s->head_dim, prepared, n, s->logits);
    }
    if (tile->basis == KVQ_CODED && w->attention->kv->key_bias != NULL)
        add_key_bias(s, tile, row, n);
    for (uint32_t r = 0; r < n; r++) {
        if (!s->whole)
            visible(s, first + r, &lo, &hi);
        if (lo < hi)
            softmax(s, row + r, s->logits + r * KVQ_TILE, lo, hi);
        else
            memset(s->logits + r * KVQ_TILE, 0, KVQ_TILE * sizeof(float));
    }
    float *o = w->o[tile->basis] + row * s->stride;
    if (expanded) {
        product p = {.a = s->logits,
                     .b = tile->v,
                     .c = o,
                     .a_stride = KVQ_TILE,
                     .b_stride = s->stride,
                     .c_stride = s->stride,
                     .n_k = (uint32_t)end,
                     .add = true};
        product_all(&p, n, s->stride, false);
    } else {
        w->values[tile->basis]->mix(tile->v, s->head_dim, (uint32_t)end, s->logits, n, o);
    }
}

/* Head i of the unit; k is NULL where the page table has no page. */
static operand stored_tile(const kvq_attend_work *w, uint32_t tile, uint32_t i) {
    const kvq_kv_layer *kv = w->attention->kv;
    kvq_page page = w->pages[tile];
    uint32_t head = w->first_head + i;
    if (page == KVQ_PAGE_NONE)
        return (operand){.head = i};
    if (page & KVQ_PAGE_CODED)
        return (operand){i, KVQ_CODED, kvq_coded_k(kv, page, head), kvq_coded_v(kv, page, head)};
    return (operand){i, KVQ_PLAIN, kvq_raw_k(kv, page, head), kvq_raw_v(kv, page, head)};
}

/* All rows of a head pass over its expanded tile; meanwhile the next stored tile comes in. */
static void attend_expanded(state *s, operand tile, const operand *next) {
    const kvq_attend_work *w = s->w;
    const kvq_kv_layer *kv = w->attention->kv;
    w->keys[tile.basis]->expand(tile.k, s->head_dim, w->k);
    w->values[tile.basis]->expand(tile.v, s->head_dim, w->v);
    tile.k = w->k;
    tile.v = w->v;
    size_t next_bytes = next->basis == KVQ_CODED ? kv->k_tile_bytes + kv->v_tile_bytes : 2 * kvq_raw_head_halfs(kv);
    size_t group_bytes = next->k == NULL ? 0 : next_bytes * GROUP_ROWS / w->n_rows;
    const char *at = next->k;
    for (uint32_t r = 0; r < w->n_rows; r += GROUP_ROWS) {
        for (const char *end = at + group_bytes; at < end; at += 64)
            __builtin_prefetch(at);
        attend_rows(s, &tile, r, w->n_rows - r < GROUP_ROWS ? w->n_rows - r : GROUP_ROWS, true);
    }
}

static void attend_tile(state *s) {
    const kvq_attend_work *w = s->w;
    uint32_t window = w->attention->window, last_pos = w->pos + (w->n_rows - 1) / w->rows_per_token;
    uint64_t start = (uint64_t)s->tile * KVQ_TILE;
    s->whole = start + KVQ_TILE <= (uint64_t)w->pos + 1 && (window == 0 || last_pos < start + window);
    for (uint32_t i = 0; i < w->n_heads; i++) {
        operand tile = stored_tile(w, s->tile, i), next = {0};
        if (tile.k == NULL)
            continue;
        if (w->n_rows <= KVQ_FEW_ROWS) {
            attend_rows(s, &tile, 0, w->n_rows, false);
            continue;
        }
        if (i + 1 < w->n_heads)
            next = stored_tile(w, s->tile, i + 1);
        else if (s->tile + 1 < w->end_tile)
            next = stored_tile(w, s->tile + 1, 0);
        attend_expanded(s, tile, &next);
    }
}

void KVQ_NAME(kvq_attend_run)(const kvq_attend_work *w) {
    const kvq_kv_layer *kv = w->attention->kv;
    state s = {.w = w, .head_dim = kv->head_dim, .stride = kvq_output_stride(kv->head_dim)};
    bool few = w->n_rows <= KVQ_FEW_ROWS;
    for (uint32_t i = 0; i < w->n_heads && few && w->keys[KVQ_CODED]->prepare != NULL; i++)
        w->keys[KVQ_CODED]->prepare(w->q[KVQ_CODED] + (size_t)i * w->n_rows * s.head_dim, w->n_rows, s.head_dim,
                                    w->prepared + i * kvq_prepared_bytes(w->n_rows, s.head_dim));
    size_t n_rows = (size_t)w->n_heads * w->n_rows;
    memset(w->o[KVQ_PLAIN], 0, n_rows * s.stride * sizeof(float));
    memset(w->o[KVQ_CODED], 0, n_rows * s.stride * sizeof(float));
    memset(w->sum, 0, n_rows * sizeof(float));
    for (size_t row = 0; row < n_rows; row++)
        w->max[row] = -INFINITY;
    for (s.tile = w->first_tile; s.tile < w->end_tile; s.tile++)
        attend_tile(&s);
}
