/*
 * Cutting attention of short spans into units: for each span, KV head and group of columns one unit or more for each run of
 * f16 tiles and for each run of encoded tiles; the units of one such output are merged by the last block to finish.
 *
 * Encoded runs are cut so that all blocks that run at the same time have a unit, all of about the same size. A decode of
 * one sequence then is one wave; with more outputs than blocks, pieces are a third of a block's share, so that the last
 * wave is short.
 */
#include "plan.h"

#include "prefill.h"

enum { MAX_RUNS = 64, MIN_TILES = 4 /* tiles of a piece, one per warp */ };

typedef struct run {
    uint32_t first, n_tiles, n_pieces;
    bool coded;
} run;

static uint32_t tiles_seen(const kvq_span *span, uint32_t last_token) {
    return (span->pos + last_token) / KVQ_TILE + 1;
}

/* Runs of tiles of one kind that columns of tokens first .. last of a span see. */
static uint32_t find_runs(const plan_shape *shape, const kvq_span *span, uint32_t first_token, uint32_t last_token,
                          run *runs) {
    uint32_t first_pos = span->pos + first_token, n = 0;
    uint32_t tile = shape->window > 0 && first_pos + 1 > shape->window ? (first_pos + 1 - shape->window) / KVQ_TILE : 0;
    const kvq_page *pages = span->pages[shape->group];
    for (uint32_t end = tiles_seen(span, last_token); tile < end; tile++) {
        if (pages[tile] == KVQ_PAGE_NONE)
            continue;
        bool coded = pages[tile] & KVQ_PAGE_CODED;
        bool grows = n > 0 && runs[n - 1].coded == coded && runs[n - 1].first + runs[n - 1].n_tiles == tile;
        if (grows)
            runs[n - 1].n_tiles++;
        else if (n < MAX_RUNS)
            runs[n++] = run{tile, 1, 1, coded};
    }
    return n;
}

static uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* Work of a run, in encoded tiles: an f16 tile is about four. */
static uint32_t cost(const run *r) {
    return r->n_tiles * (r->coded ? 1 : 4);
}

/* Calls back for every (span, column group): runs found, columns first_col .. first_col + n_cols - 1. */
template <typename F> static void for_outputs(const plan_shape *shape, const kvq_batch *batch, F &&f) {
    run runs[MAX_RUNS];
    for (uint32_t i = 0; i < batch->n_spans; i++) {
        const kvq_span *span = &batch->spans[i];
        uint32_t n_cols = takes_prefill(span) ? 0 : span->n_tokens * shape->head_group;
        for (uint32_t col = 0; col < n_cols; col += shape->n_cols) {
            uint32_t n = least(n_cols - col, shape->n_cols);
            uint32_t n_runs = find_runs(shape, span, col / shape->head_group, (col + n - 1) / shape->head_group, runs);
            f(i, span, col, n, runs, n_runs);
        }
    }
}

uint32_t plan_units(const plan_shape *shape, const kvq_batch *batch, const uint32_t *tables, attend_unit *units,
                    uint32_t max_units) {
    uint64_t total = 0;
    uint32_t n_runs_all = 0, n_units = 0, output = 0;
    for_outputs(shape, batch, [&](uint32_t, const kvq_span *, uint32_t, uint32_t, run *runs, uint32_t n_runs) {
        for (uint32_t r = 0; r < n_runs; r++)
            total += (uint64_t)cost(&runs[r]) * shape->n_head_kv;
        n_runs_all += n_runs * shape->n_head_kv;
    });
    uint32_t waves = n_runs_all < shape->n_blocks / 2 ? 1 : 3;
    uint32_t n_pieces_all = shape->n_blocks * waves > n_runs_all ? shape->n_blocks * waves - n_runs_all : 1;
    bool fits = true;
    for_outputs(shape, batch,
                [&](uint32_t i, const kvq_span *span, uint32_t col, uint32_t n_cols, run *runs, uint32_t n_runs) {
                    uint32_t n_units_output = 0;
                    for (uint32_t r = 0; r < n_runs; r++) {
                        uint32_t share = (uint32_t)((uint64_t)cost(&runs[r]) * n_pieces_all / (total > 0 ? total : 1));
                        uint32_t most = (runs[r].n_tiles + MIN_TILES - 1) / MIN_TILES;
                        runs[r].n_pieces = share < 1 ? 1 : least(share, most);
                        n_units_output += runs[r].n_pieces;
                    }
                    for (uint32_t head = 0; head < shape->n_head_kv; head++, output++) {
                        uint32_t first_unit = n_units;
                        if (n_units + n_units_output > max_units) {
                            fits = false;
                            return;
                        }
                        for (uint32_t r = 0; r < n_runs; r++)
                            for (uint32_t p = 0; p < runs[r].n_pieces; p++) {
                                uint32_t from = (uint32_t)((uint64_t)runs[r].n_tiles * p / runs[r].n_pieces);
                                uint32_t to = (uint32_t)((uint64_t)runs[r].n_tiles * (p + 1) / runs[r].n_pieces);
                                attend_unit *u = &units[n_units++];
                                *u = attend_unit{};
                                u->table = tables[i];
                                u->first_tile = runs[r].first + from;
                                u->n_tiles = to - from;
                                u->head = head;
                                u->coded = runs[r].coded;
                                u->row = span->first;
                                u->first_col = col;
                                u->n_cols = n_cols;
                                u->pos = span->pos;
                                u->end = span->pos + span->n_tokens;
                                u->output = output;
                                u->first_unit = first_unit;
                                u->n_units = n_units_output;
                            }
                    }
                });
    return fits ? n_units : 0;
}

uint32_t plan_max_units(const kvq_backend_limits *limits, uint32_t n_blocks) {
    uint64_t most = (uint64_t)limits->n_seq * (PREFILL_LEAST - 1);
    uint32_t n_tokens = most < limits->n_batch ? (uint32_t)most : limits->n_batch; /* of short spans */
    uint32_t n_outputs = (n_tokens * limits->max_n_head + 15) / 16 + (limits->n_seq + 1) * limits->max_n_head;
    return 3 * n_blocks + 4 * n_outputs;
}
