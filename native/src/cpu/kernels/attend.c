/*
 * Attention of one unit of work: tile after tile, logits, softmax against the running maximum, weighted values.
 *
 * With few rows the codec's kernels read the stored tiles: the logits of all heads of a page, their probabilities, their
 * values, so that a core has independent work in every phase, while the next page of the table comes in. With many rows
 * each tile is expanded to floats once, 8 head_dim x 64 bytes in cache, and all rows pass over it in groups: 2 x 64
 * head_dim fused multiply-adds per row, about 20 instructions per vector of logits for the softmax. Measured on one Zen 5
 * core, 512 queries at depth 8192: 79% of the fused multiply-add peak with head_dim 64, 82% with 128.
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
    bool whole;                       /* every row sees all of the tile */
    const uint8_t *ahead, *ahead_end; /* what to ask memory for: the rest of the next tile */
    size_t ahead_bytes;               /* at a time */
} state;

/* One head's part of a tile. */
typedef struct operand {
    uint32_t head, basis; /* head: of the unit's */
    const void *k, *v;    /* stored, or expanded; stored, V follows K */
} operand;

/* Rows first .. first + n - 1 of a head at work on its part of a tile. */
typedef struct rows {
    operand tile;
    uint32_t first, n;
    bool expanded;
    size_t row;    /* the first, counted through all heads of the unit */
    float *logits; /* (n, 64), then probabilities */
} rows;

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
    scale_row(w->lanes + row * 16, VF, factor);
    scale_row(w->o[KVQ_PLAIN] + row * s->stride, s->stride, factor);
    if (w->o[KVQ_CODED] != w->o[KVQ_PLAIN])
        scale_row(w->o[KVQ_CODED] + row * s->stride, s->stride, factor);
}

/* Asks for some more of the next tile. A core has room for a few dozen lines on their way, so a little at a time. */
static void fetch_ahead(state *s) {
    const uint8_t *at = s->ahead, *end = s->ahead_end;
    s->ahead += s->ahead_bytes;
    for (end = s->ahead < end ? s->ahead : end; at < end; at += 64)
        __builtin_prefetch(at);
}

/* Turns a row's products q.k (64), of which lo .. hi - 1 are seen, into probabilities against the running maximum. */
static void softmax(const state *s, size_t row, float *logits, int64_t lo, int64_t hi) {
    const kvq_attend_work *w = s->w;
    vf32 x[TILE_VF], scale = vf_set1(w->attention->scale), max = vf_set1(w->max[row]);
#pragma GCC unroll 16
    for (uint32_t i = 0; i < TILE_VF; i++)
        x[i] = vf_mul(vf_load(logits + i * VF), scale);
    if (w->attention->softcap > 0)
        for (uint32_t i = 0; i < TILE_VF; i++)
            x[i] = vf_softcap(x[i], w->attention->softcap);
    if (hi - lo < KVQ_TILE) { /* what was never written may be NaN: it is replaced, not added to */
        for (uint32_t i = 0; i < TILE_VF; i++)
            vf_store(logits + i * VF, x[i]);
        for (int64_t t = 0; t < KVQ_TILE; t++)
            if (t < lo || t >= hi)
                logits[t] = -INFINITY;
        for (uint32_t i = 0; i < TILE_VF; i++)
            x[i] = vf_load(logits + i * VF);
    }
    vf32 top = x[0];
#pragma GCC unroll 16
    for (uint32_t i = 1; i < TILE_VF; i++)
        top = vf_max(top, x[i]);
    if (vf_any_less(max, top)) {
        raise_max(s, row, vf_reduce_max(top));
        max = vf_set1(w->max[row]);
    }
    vf32 sum = vf_load(w->lanes + row * 16);
#pragma GCC unroll 16
    for (uint32_t i = 0; i < TILE_VF; i++) {
        vf32 p = vf_exp(vf_sub(x[i], max));
        vf_store(logits + i * VF, p);
        sum = vf_add(sum, p);
    }
    vf_store(w->lanes + row * 16, sum);
}

/* What was taken out of the keys of an encoded tile goes back into the logits. */
static void add_key_bias(const state *s, const rows *a) {
    const kvq_key_bias *bias = s->w->attention->kv->key_bias;
    uint32_t head = s->w->first_head + a->tile.head;
    float ab[KVQ_FEW_ROWS * KVQ_MAX_HEAD_DIM]; /* (n, 2 n_pairs) */
    for (uint32_t r = 0; r < a->n; r++)
        kvq_key_bias_query(bias, head, s->tile, s->w->q[KVQ_PLAIN] + (a->row + r) * s->head_dim,
                           ab + r * 2 * bias->n_pairs);
    product p = {.a = ab,
                 .b = kvq_key_bias_wave(bias, head),
                 .c = a->logits,
                 .a_stride = 2 * bias->n_pairs,
                 .b_stride = KVQ_TILE,
                 .c_stride = KVQ_TILE,
                 .n_k = 2 * bias->n_pairs,
                 .add = true};
    product_all(&p, a->n, KVQ_TILE, false);
}

static void score(state *s, const rows *a) {
    const kvq_attend_work *w = s->w;
    const kvq_key_kernels *keys = w->keys[a->tile.basis];
    const float *q = w->q[a->tile.basis] + a->row * s->head_dim;
    fetch_ahead(s);
    if (a->expanded) {
        product p = {.a = q,
                     .b = a->tile.k,
                     .c = a->logits,
                     .a_stride = s->head_dim,
                     .b_stride = KVQ_TILE,
                     .c_stride = KVQ_TILE,
                     .n_k = s->head_dim};
        product_all(&p, a->n, KVQ_TILE, false);
    } else if (keys->prepare == NULL) {
        keys->score(a->tile.k, s->head_dim, q, a->n, a->logits);
    } else {
        const void *prepared = w->prepared + (size_t)a->tile.head * a->n * KVQ_PREPARED_BYTES;
        keys->score(a->tile.k, s->head_dim, prepared, a->n, a->logits);
    }
    if (a->tile.basis == KVQ_CODED && w->attention->kv->key_bias != NULL)
        add_key_bias(s, a);
}

static void weigh(state *s, const rows *a) {
    int64_t lo = 0, hi = KVQ_TILE;
    for (uint32_t r = 0; r < a->n; r++) {
        fetch_ahead(s);
        if (!s->whole)
            visible(s, a->first + r, &lo, &hi);
        if (lo < hi)
            softmax(s, a->row + r, a->logits + r * KVQ_TILE, lo, hi);
        else
            memset(a->logits + r * KVQ_TILE, 0, KVQ_TILE * sizeof(float));
    }
}

/* n_tokens: what the last row sees */
static void mix(state *s, const rows *a, uint32_t n_tokens) {
    const kvq_attend_work *w = s->w;
    float *o = w->o[a->tile.basis] + a->row * s->stride;
    fetch_ahead(s);
    if (a->expanded) {
        product p = {.a = a->logits,
                     .b = a->tile.v,
                     .c = o,
                     .a_stride = KVQ_TILE,
                     .b_stride = s->stride,
                     .c_stride = s->stride,
                     .n_k = n_tokens,
                     .add = true};
        product_all(&p, a->n, s->stride, false);
    } else {
        w->values[a->tile.basis]->mix(a->tile.v, s->head_dim, n_tokens, a->logits, a->n, o);
    }
}

/* Rows first .. first + n - 1 of n_heads heads against their part of the current tile. Heads do not depend on each other:
 * doing the same to all of them in turn keeps a core busier than one head after the other. */
static void attend_rows(state *s, const operand *tiles, uint32_t n_heads, uint32_t first, uint32_t n, bool expanded) {
    alignas(64) float logits[KVQ_SET_ROWS * KVQ_TILE];
    rows a[KVQ_SET_ROWS];
    int64_t lo = 0, end = KVQ_TILE;
    if (!s->whole) {
        visible(s, first, &lo, &(int64_t){0});
        visible(s, first + n - 1, &(int64_t){0}, &end); /* the last row sees furthest */
        if (lo >= KVQ_TILE || end <= 0)
            return;
    }
    for (uint32_t i = 0; i < n_heads; i++) {
        a[i] = (rows){
            tiles[i], first, n, expanded, (size_t)tiles[i].head * s->w->n_rows + first, logits + i * n * KVQ_TILE};
        score(s, &a[i]);
    }
    for (uint32_t i = 0; i < n_heads; i++)
        weigh(s, &a[i]);
    for (uint32_t i = 0; i < n_heads; i++)
        mix(s, &a[i], (uint32_t)end);
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

/* The next tile comes in while this one is worked on. fetch_ahead is called twice for a group of rows, and for each row. */
static void set_ahead(state *s, uint32_t group_rows) {
    const kvq_attend_work *w = s->w;
    const kvq_kv_layer *kv = w->attention->kv;
    operand next = s->tile + 1 < w->end_tile ? stored_tile(w, s->tile + 1, 0) : (operand){0};
    if (next.basis == KVQ_PLAIN && w->n_rows <= KVQ_FEW_ROWS) /* the f16 kernels do so themselves */
        next.k = NULL;
    size_t head_bytes = next.basis == KVQ_CODED ? kv->k_tile_bytes + kv->v_tile_bytes : 2 * kvq_raw_head_halfs(kv);
    uint32_t n_groups = (w->n_rows + group_rows - 1) / group_rows;
    s->ahead = next.k;
    s->ahead_end = next.k == NULL ? NULL : s->ahead + w->n_heads * head_bytes;
    s->ahead_bytes = (head_bytes / (w->n_rows + 2 * n_groups) + 63) / 64 * 64;
}

/* All rows of a head pass over its expanded tile. */
static void attend_expanded(state *s, operand tile) {
    const kvq_attend_work *w = s->w;
    w->keys[tile.basis]->expand(tile.k, s->head_dim, w->k);
    w->values[tile.basis]->expand(tile.v, s->head_dim, w->v);
    tile.k = w->k;
    tile.v = w->v;
    for (uint32_t r = 0; r < w->n_rows; r += GROUP_ROWS)
        attend_rows(s, &tile, 1, r, w->n_rows - r < GROUP_ROWS ? w->n_rows - r : GROUP_ROWS, true);
}

static void attend_tile(state *s) {
    const kvq_attend_work *w = s->w;
    uint32_t window = w->attention->window, last_pos = w->pos + (w->n_rows - 1) / w->rows_per_token;
    uint64_t start = (uint64_t)s->tile * KVQ_TILE;
    operand tiles[KVQ_SET_ROWS];
    if (w->pages[s->tile] == KVQ_PAGE_NONE)
        return;
    s->whole = start + KVQ_TILE <= (uint64_t)w->pos + 1 && (window == 0 || last_pos < start + window);
    set_ahead(s, w->n_rows <= KVQ_FEW_ROWS ? w->n_rows : GROUP_ROWS);
    for (uint32_t i = 0; i < w->n_heads; i++)
        tiles[i] = stored_tile(w, s->tile, i);
    if (w->n_rows <= KVQ_FEW_ROWS)
        attend_rows(s, tiles, w->n_heads, 0, w->n_rows, false);
    else
        for (uint32_t i = 0; i < w->n_heads; i++)
            attend_expanded(s, tiles[i]);
}

void KVQ_NAME(kvq_attend_run)(const kvq_attend_work *w) {
    const kvq_kv_layer *kv = w->attention->kv;
    state s = {.w = w, .head_dim = kv->head_dim, .stride = kvq_output_stride(kv->head_dim)};
    bool few = w->n_rows <= KVQ_FEW_ROWS;
    for (uint32_t i = 0; i < w->n_heads && few && w->keys[KVQ_CODED]->prepare != NULL; i++)
        w->keys[KVQ_CODED]->prepare(w->q[KVQ_CODED] + (size_t)i * w->n_rows * s.head_dim, w->n_rows, s.head_dim,
                                    w->prepared + (size_t)i * w->n_rows * KVQ_PREPARED_BYTES);
    size_t n_rows = (size_t)w->n_heads * w->n_rows;
    memset(w->o[KVQ_PLAIN], 0, n_rows * s.stride * sizeof(float));
    memset(w->o[KVQ_CODED], 0, n_rows * s.stride * sizeof(float));
    memset(w->lanes, 0, n_rows * 16 * sizeof(float));
    for (size_t row = 0; row < n_rows; row++)
        w->max[row] = -INFINITY;
    for (s.tile = w->first_tile; s.tile < w->end_tile; s.tile++)
        attend_tile(&s);
    for (size_t row = 0; row < n_rows; row++)
        w->sum[row] = vf_reduce_add(vf_load(w->lanes + row * 16));
}
