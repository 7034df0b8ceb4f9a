/*
 * Cutting attention of short spans into units: the tiles that a group of columns of a span sees, f16 runs first, are a line
 * that is cut into pieces of about the same cost; the pieces of one line (one output) are merged by the last block to
 * finish.
 *
 * Pieces are as long as makes all of them finish soonest: all of one wave of blocks, or so short that the last wave is.
 */
#include "plan.h"

#include "prefill.h"

enum {
    MAX_RUNS = 64,
    MIN_COST = 8,   /* of a piece: a tile for each warp */
    UNIT_COST = 12, /* what a unit takes beside its tiles */
    RAW_COST = 4,   /* of an f16 tile; an encoded one is 1 */
    MAX_WAVES = 4
};

typedef struct run {
    uint32_t first, n;
    bool coded;
} run;

typedef struct line { /* of an output */
    run runs[MAX_RUNS];
    uint32_t n_runs, cost;
} line;

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

static uint32_t run_cost(const run *r) {
    return r->n * (r->coded ? 1 : RAW_COST);
}

/* Runs of tiles of one kind that columns of tokens first .. last of a span see, f16 ones first. */
static void find_line(const plan_shape *shape, const kvq_span *span, uint32_t first_token, uint32_t last_token, line *out) {
    uint32_t first_pos = span->pos + first_token, end = (span->pos + last_token) / KVQ_TILE + 1, n_raw = 0;
    uint32_t first = shape->window > 0 && first_pos + 1 > shape->window ? (first_pos + 1 - shape->window) / KVQ_TILE : 0;
    const kvq_page *pages = span->pages[shape->group];
    run found[MAX_RUNS];
    out->n_runs = out->cost = 0;
    for (uint32_t tile = first, from; tile < end;) {
        kvq_page kind = pages[tile] & KVQ_PAGE_CODED;
        bool is_hole = pages[tile] == KVQ_PAGE_NONE;
        for (from = tile++;
             tile < end && (pages[tile] & KVQ_PAGE_CODED) == kind && (pages[tile] == KVQ_PAGE_NONE) == is_hole;)
            tile++;
        if (is_hole)
            continue;
        if (out->n_runs < MAX_RUNS)
            found[out->n_runs] = run{from, tile - from, kind != 0};
        out->n_runs++;
        n_raw += kind == 0;
    }
    uint32_t n = least(out->n_runs, MAX_RUNS), at_raw = 0, at_coded = n_raw;
    for (uint32_t i = 0; i < n; i++) {
        out->cost += run_cost(&found[i]);
        uint32_t *at = found[i].coded ? &at_coded : &at_raw;
        if (*at < MAX_RUNS)
            out->runs[(*at)++] = found[i];
    }
}

/* Pieces of a line for a share of cost each. */
static uint32_t n_pieces(const line *l, uint32_t share) {
    uint32_t n = (l->cost + share / 2) / share, most = (l->cost + MIN_COST - 1) / MIN_COST;
    return least(n < 1 ? 1 : n, most < 1 ? 1 : most);
}

/* Takes tiles worth up to `cost` off the front of a line into a unit: at most two f16 runs, then an encoded one. */
static void take_piece(line *l, uint32_t *at, uint32_t cost, attend_unit *unit) {
    uint32_t n_raw = 0;
    while (*at < l->n_runs) {
        run *r = &l->runs[*at];
        uint32_t each = r->coded ? 1 : RAW_COST, n = least(r->n, (cost + each - 1) / each);
        if (n == 0 || (r->coded ? unit->coded.n > 0 : n_raw == 2 || unit->coded.n > 0))
            return;
        *(r->coded ? &unit->coded : &unit->raw[n_raw++]) = tile_run{r->first, n};
        cost -= least(cost, n * each);
        r->first += n, r->n -= n;
        if (r->n == 0)
            ++*at;
    }
}

/* Cuts a line into about n units; returns how many, or 0 if they do not fit. */
static uint32_t cut_line(line l, uint32_t n, attend_unit *units, uint32_t max_units) {
    uint32_t at = 0, n_units = 0, left = l.cost;
    if (l.n_runs > MAX_RUNS)
        return 0;
    while (at < l.n_runs) {
        if (n_units == max_units)
            return 0;
        attend_unit *unit = &units[n_units++];
        *unit = attend_unit{};
        take_piece(&l, &at, n > 1 ? (left + n - 1) / n : left, unit);
        uint32_t taken = (unit->raw[0].n + unit->raw[1].n) * RAW_COST + unit->coded.n;
        left -= taken;
        n -= n > 1;
    }
    return n_units;
}

/* Calls back for every (span, column group): its line, columns first_col .. first_col + n_cols - 1. */
template <typename F> static void for_outputs(const plan_shape *shape, const kvq_batch *batch, F &&f) {
    line l;
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const kvq_span *span = &batch->spans[i];
        uint32_t n_cols = takes_prefill(span) ? 0 : span->n_tokens * shape->head_group;
        for (uint32_t col = 0; col < n_cols; col += shape->n_cols) {
            uint32_t n = least(n_cols - col, shape->n_cols);
            find_line(shape, span, col / shape->head_group, (col + n - 1) / shape->head_group, &l);
            f(i, span, col, n, &l);
        }
    }
}

/* The share of cost by which all lines are done first, if blocks take units in turn. */
static uint32_t best_share(const plan_shape *shape, const kvq_batch *batch) {
    uint64_t total = 0, best_time = UINT64_MAX;
    uint32_t best = 1, share[MAX_WAVES], n[MAX_WAVES] = {0}, longest[MAX_WAVES] = {0};
    for_outputs(shape, batch, [&](uint32_t, const kvq_span *, uint32_t, uint32_t, const line *l) { total += l->cost; });
    for (uint32_t i = 0; i < MAX_WAVES; i++) {
        uint32_t n_blocks = shape->n_blocks * (i + 1);
        share[i] = (uint32_t)((total * shape->n_head_kv + n_blocks - 1) / n_blocks);
        share[i] = share[i] < MIN_COST ? MIN_COST : share[i];
    }
    for_outputs(shape, batch, [&](uint32_t, const kvq_span *, uint32_t, uint32_t, const line *l) {
        for (uint32_t i = 0; i < MAX_WAVES; i++) {
            uint32_t pieces = n_pieces(l, share[i]), each = (l->cost + pieces - 1) / pieces;
            n[i] += pieces * shape->n_head_kv;
            longest[i] = each > longest[i] ? each : longest[i];
        }
    });
    for (uint32_t i = 0; i < MAX_WAVES; i++) {
        uint64_t time = (uint64_t)((n[i] + shape->n_blocks - 1) / shape->n_blocks) * (longest[i] + UNIT_COST);
        if (time < best_time)
            best = share[i], best_time = time;
    }
    return best;
}

uint32_t plan_units(const plan_shape *shape, const kvq_batch *batch, const uint32_t *tables, attend_unit *units,
                    uint32_t max_units) {
    uint32_t share = best_share(shape, batch), n_units = 0, output = 0;
    bool fits = true;
    for_outputs(shape, batch, [&](uint32_t i, const kvq_span *span, uint32_t col, uint32_t n_cols, const line *l) {
        for (uint32_t head = 0; head < shape->n_head_kv && fits; head++, output++) {
            attend_unit *first = units + n_units;
            uint32_t n = cut_line(*l, n_pieces(l, share), first, max_units - n_units);
            fits = n > 0;
            for (attend_unit *u = first; u < first + n; u++) {
                u->table = tables[i];
                u->head = head;
                u->row = span->first;
                u->first_col = col;
                u->n_cols = n_cols;
                u->pos = span->pos;
                u->end = span->pos + span->n_tokens;
                u->output = output;
                u->first_unit = n_units;
                u->n_units = n;
            }
            n_units += n;
        }
    });
    return fits ? n_units : 0;
}

uint32_t plan_max_units(const kvq_backend_limits *limits, uint32_t n_blocks) {
    uint64_t most = (uint64_t)limits->n_seq * (PREFILL_LEAST - 1);
    uint32_t n_tokens = most < limits->n_batch ? (uint32_t)most : limits->n_batch; /* of short spans */
    uint32_t n_outputs = (n_tokens * limits->max_n_head + 15) / 16 + (limits->n_seq + 1) * limits->max_n_head;
    return MAX_WAVES * n_blocks + 4 * n_outputs;
}
