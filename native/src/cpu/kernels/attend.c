/*
 * Attention of one unit of work: tile after tile, logits, softmax against the running maximum, weighted values.
 *
 * With few rows the codec's kernels read the stored tiles and memory is the limit. With many rows each tile is expanded to
 * floats once, 8 head_dim x 64 bytes in cache, and all rows pass over it in groups: 2 n_rows head_dim x 64 fused
 * multiply-adds, about 40 instructions per 16 logits for the softmax.
 */
#include "cpu/attend.h"
#include "cpu/isa.h"
#include "cpu/kernels/attend_product.h"

enum { GROUP_ROWS = 12 }; /* rows whose logits are alive at a time; at most KVQ_FEW_ROWS */

typedef struct state {
    const kvq_attend_work *w;
    uint32_t tile, head_dim, stride;
    const kvq_key_kernels *keys[2];
    const kvq_value_kernels *values[2];
    const void *prepared[2];               /* queries as score takes them */
    float logits[KVQ_FEW_ROWS * KVQ_TILE]; /* (rows, 64), then probabilities */
} state;

static const kvq_key_kernels *find_keys(const kvq_key_kernels *const *all, const kvq_codec *codec) {
    while ((*all)->codec != codec)
        all++;
    return *all;
}

static const kvq_value_kernels *find_values(const kvq_value_kernels *const *all, const kvq_codec *codec) {
    while ((*all)->codec != codec)
        all++;
    return *all;
}

/* The tokens of the current tile that a row sees: lo .. hi - 1, none if lo >= hi. */
static void visible(const state *s, uint32_t row, int64_t *lo, int64_t *hi) {
    int64_t pos = s->w->pos + row / s->w->rows_per_token, start = (int64_t)s->tile * KVQ_TILE;
    uint32_t window = s->w->attention->window;
    *hi = pos + 1 - start < KVQ_TILE ? pos + 1 - start : KVQ_TILE;
    *lo = window > 0 && pos + 1 - window > start ? pos + 1 - window - start : 0;
}

/* Turns a row's logits x (64) into probabilities against the new maximum and scales what was summed so far. */
static void softmax(const state *s, uint32_t row, float *x) {
    const kvq_attend_work *w = s->w;
    const kvq_attention *a = w->attention;
    int64_t lo, hi;
    visible(s, row, &lo, &hi);
    if (lo >= hi) {
        memset(x, 0, KVQ_TILE * sizeof *x);
        return;
    }
    for (uint32_t t = 0; t < KVQ_TILE; t += VF) {
        vf32 logit = vf_mul(vf_load(x + t), vf_set1(a->scale));
        vf_store(x + t, a->softcap > 0 ? vf_softcap(logit, a->softcap) : logit);
    }
    for (int64_t t = 0; t < lo; t++)
        x[t] = -INFINITY;
    for (int64_t t = hi; t < KVQ_TILE; t++) /* never written perhaps: whatever it was, even NaN */
        x[t] = -INFINITY;

    vf32 max = vf_load(x), sum = vf_zero();
    for (uint32_t t = VF; t < KVQ_TILE; t += VF)
        max = vf_max(max, vf_load(x + t));
    float old_max = w->max[row], new_max = fmaxf(old_max, vf_reduce_max(max));
    for (uint32_t t = 0; t < KVQ_TILE; t += VF) {
        vf32 p = vf_exp(vf_sub(vf_load(x + t), vf_set1(new_max)));
        vf_store(x + t, p);
        sum = vf_add(sum, p);
    }
    if (new_max > old_max) {
        float factor = expf(old_max - new_max);
        w->max[row] = new_max;
        w->sum[row] *= factor;
        for (uint32_t basis = KVQ_PLAIN; basis <= (w->o[KVQ_CODED] != w->o[KVQ_PLAIN] ? KVQ_CODED : KVQ_PLAIN); basis++)
            for (uint32_t c = 0; c < s->stride; c += VF) {
                float *o = w->o[basis] + (size_t)row * s->stride + c;
                vf_store(o, vf_mul(vf_load(o), vf_set1(factor)));
            }
    }
    w->sum[row] += vf_reduce_add(sum);
}

/* Rows first .. first + n - 1 against the current tile. */
static void attend_rows(state *s, uint32_t first, uint32_t n, const void *k, const void *v, uint32_t basis, bool expanded) {
    const kvq_attend_work *w = s->w;
    int64_t lo, hi, first_lo;
    visible(s, first + n - 1, &lo, &hi); /* the last row sees furthest */
    visible(s, first, &first_lo, &(int64_t){0});
    if (hi <= 0 || first_lo >= KVQ_TILE)
        return;
    float *o = w->o[basis] + (size_t)first * s->stride;
    if (expanded) {
        product p = {.a = w->q[basis] + (size_t)first * s->head_dim,
                     .b = k,
                     .c = s->logits,
                     .a_stride = s->head_dim,
                     .b_stride = KVQ_TILE,
                     .c_stride = KVQ_TILE,
                     .n_k = s->head_dim};
        product_all(&p, n, KVQ_TILE, false);
    } else {
        s->keys[basis]->score(k, s->head_dim, s->prepared[basis], n, s->logits);
    }
    for (uint32_t r = 0; r < n; r++)
        softmax(s, first + r, s->logits + r * KVQ_TILE);
    if (expanded) {
        product p = {.a = s->logits,
                     .b = v,
                     .c = o,
                     .a_stride = KVQ_TILE,
                     .b_stride = s->stride,
                     .c_stride = s->stride,
                     .n_k = (uint32_t)hi,
                     .add = true};
        product_all(&p, n, s->stride, false);
    } else {
        s->values[basis]->mix(v, s->head_dim, (uint32_t)hi, s->logits, n, o);
    }
}

void KVQ_NAME(kvq_attend_run)(const kvq_attend_work *w) {
    const kvq_kv_layer *kv = w->attention->kv;
    extern const kvq_attend_kernels KVQ_NAME(kvq_attend);
    const kvq_attend_kernels *kernels = &KVQ_NAME(kvq_attend);
    state s = {.w = w, .head_dim = kv->head_dim, .stride = kvq_output_stride(kv->head_dim)};
    s.keys[KVQ_PLAIN] = kernels->keys[0];
    s.values[KVQ_PLAIN] = kernels->values[0];
    s.keys[KVQ_CODED] = find_keys(kernels->keys, kv->k);
    s.values[KVQ_CODED] = find_values(kernels->values, kv->v);
    bool expanded = w->n_rows > KVQ_FEW_ROWS;
    for (uint32_t basis = KVQ_PLAIN; basis <= KVQ_CODED; basis++) {
        s.prepared[basis] = w->q[basis];
        if (s.keys[basis]->prepare != NULL && !expanded) {
            s.keys[basis]->prepare(w->q[basis], w->n_rows, s.head_dim, w->prepared);
            s.prepared[basis] = w->prepared;
        }
        memset(w->o[basis], 0, (size_t)w->n_rows * s.stride * sizeof(float));
    }
    for (uint32_t r = 0; r < w->n_rows; r++) {
        w->max[r] = -INFINITY;
        w->sum[r] = 0;
    }
    for (s.tile = w->first_tile; s.tile < w->end_tile; s.tile++) {
        kvq_page page = w->pages[s.tile];
        if (page == KVQ_PAGE_NONE)
            continue;
        uint32_t basis = page & KVQ_PAGE_CODED ? KVQ_CODED : KVQ_PLAIN;
        const void *k = basis == KVQ_CODED ? (const void *)kvq_coded_k(kv, page, w->head) : kvq_raw_k(kv, page, w->head);
        const void *v = basis == KVQ_CODED ? (const void *)kvq_coded_v(kv, page, w->head) : kvq_raw_v(kv, page, w->head);
        if (!expanded) {
            attend_rows(&s, 0, w->n_rows, k, v, basis, false);
            continue;
        }
        s.keys[basis]->expand(k, s.head_dim, w->k);
        s.values[basis]->expand(v, s.head_dim, w->v);
        for (uint32_t r = 0; r < w->n_rows; r += GROUP_ROWS)
            attend_rows(&s, r, w->n_rows - r < GROUP_ROWS ? w->n_rows - r : GROUP_ROWS, w->k, w->v, basis, true);
    }
}
