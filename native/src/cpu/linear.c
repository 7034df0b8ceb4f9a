/*
 * Shares the work of weights times activations among threads. The unit is a panel, n_lanes rows of a weight matrix. One
 * token takes panels straight from the file's bytes; several tokens take two panels at a time, unpacked once for up to
 * MAX_TOKENS.
 */
#include "cpu/linear.h"

#include "cpu/isa.h"
#include "cpu/row.h"

#include <stdalign.h>
#include <string.h>

enum {
    MAX_WEIGHTS = 3,  /* of one call */
    MAX_TOKENS = 256, /* of one work item */
    ITEMS_PER_THREAD = 4
};

/* What a thread computes in: a tile of each panel; sums for each of gate and up. */
typedef struct workspace {
    alignas(64) uint8_t tiles[2][KVQ_LINEAR_TILE_BYTES];
    float acc[2][MAX_TOKENS * 2 * KVQ_LINEAR_MAX_LANES]; /* (n_tokens, 2, n_lanes) */
} workspace;

/* One output: of a weight, or of gate and up. */
typedef struct output {
    const kvq_weight *w[2]; /* w[1]: up, or NULL */
    const kvq_linear_kernels *kernels;
    const float *bias;
    float *y;          /* (n_rows, n_out) */
    uint32_t n_panels; /* the last may overlap the one before */
    uint32_t n_items;
} output;

extern const kvq_linear_kernels kvq_linear_scalar; /* for outputs narrower than a panel */

typedef struct call {
    kvq_threads *threads;
    const float *x;           /* (n_rows, n_in) */
    kvq_linear_group *groups; /* (n_rows, n_in / 32); NULL if all weights are float */
    workspace *workspaces;    /* (n_threads) */
    uint32_t n_rows, n_in, n_outputs;
    uint32_t n_item_panels, n_token_blocks; /* an item: so many panels, one block of tokens */
    bool add;
    kvq_activation act;
    output outputs[MAX_WEIGHTS];
} call;

static size_t groups_bytes(uint32_t n_rows, uint32_t n_in) {
    return (size_t)n_rows * ((n_in + KVQ_GROUP - 1) / KVQ_GROUP) * sizeof(kvq_linear_group);
}

size_t kvq_linear_scratch_bytes(uint32_t n_threads, uint32_t n_batch, uint32_t max_n_in) {
    return groups_bytes(n_batch, max_n_in) + n_threads * sizeof(workspace);
}

static uint32_t min_u32(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* What a kernel of this kind reads as activations: the rows' pitch in bytes, and where (row, column) lies. */
static size_t x_bytes(const call *c, kvq_linear_kind kind) {
    return kind == KVQ_LINEAR_FLOAT ? c->n_in * sizeof(float) : c->n_in / KVQ_GROUP * sizeof(kvq_linear_group);
}

static const void *x_at(const call *c, kvq_linear_kind kind, uint32_t row, uint32_t column) {
    if (kind == KVQ_LINEAR_FLOAT)
        return c->x + (size_t)row * c->n_in + column;
    return c->groups + ((size_t)row * c->n_in + column) / KVQ_GROUP;
}

/* First row of a panel; the last panel ends with the last row, and its first *skip rows are another panel's. */
static uint32_t panel_row(const output *out, uint32_t panel, uint32_t *skip) {
    uint32_t row = panel * out->kernels->n_lanes;
    uint32_t first = min_u32(row, out->w[0]->n_out - out->kernels->n_lanes);
    *skip = row - first;
    return first;
}

static void store(const call *c, const output *out, uint32_t panel, const float *acc, uint32_t first_token,
                  uint32_t n_tokens) {
    uint32_t skip, row = panel_row(out, panel, &skip), n_out = out->w[0]->n_out;
    out->kernels->store(acc, 2 * out->kernels->n_lanes, n_tokens, skip, out->bias ? out->bias + row : NULL, c->add,
                        out->y + (size_t)first_token * n_out + row, n_out);
}

static void one_token(const call *c, const output *out, uint32_t panel) {
    alignas(64) float sums[2][KVQ_LINEAR_MAX_LANES];
    uint32_t skip, row = panel_row(out, panel, &skip);
    for (int i = 0; i < 2 && out->w[i]; i++) {
        const kvq_weight *w = out->w[i];
        const kvq_linear_type *type = out->kernels->types[w->type->id];
        size_t row_bytes = kvq_weight_row_bytes(w);
        const uint8_t *data = w->data + row * row_bytes;
        type->dot(data, row_bytes, c->n_in, data + out->kernels->n_lanes * row_bytes, x_at(c, type->kind, 0, 0), sums[i]);
    }
    if (out->w[1])
        kvq_kernels_selected()->row->activate(c->act, sums[0], sums[1], out->kernels->n_lanes, sums[0]);
    store(c, out, panel, sums[0], 0, 1);
}

/* acc (n_tokens, 2, n_lanes) = tokens times the n_panels <= 2 panels from `panel` on of one weight */
static void multiply(const call *c, const output *out, const kvq_weight *w, uint32_t panel, uint32_t n_panels,
                     uint32_t first_token, uint32_t n_tokens, workspace *space, float *acc) {
    const kvq_linear_type *type = out->kernels->types[w->type->id];
    size_t row_bytes = kvq_weight_row_bytes(w);
    uint32_t max_columns = type->kind == KVQ_LINEAR_FLOAT ? KVQ_LINEAR_FLOAT_COLUMNS : KVQ_LINEAR_COLUMNS;
    uint32_t n_lanes = out->kernels->n_lanes;
    size_t n_ahead = 2 * kvq_threads_count(c->threads); /* panels to this thread's next item, if all are as fast */
    const void *tiles[2] = {space->tiles[0], space->tiles[n_panels - 1]};
    memset(acc, 0, n_tokens * 2 * n_lanes * sizeof *acc);
    for (uint32_t k = 0; k < c->n_in; k += max_columns) {
        uint32_t n_columns = min_u32(c->n_in - k, max_columns), skip;
        size_t k_bytes = (size_t)k / w->type->block_elements * w->type->block_bytes;
        for (uint32_t i = 0; i < n_panels; i++) {
            const uint8_t *data = w->data + panel_row(out, panel + i, &skip) * row_bytes;
            type->unpack(data + k_bytes, row_bytes, n_columns, data + n_lanes * (n_ahead * row_bytes + k_bytes),
                         space->tiles[i]);
        }
        out->kernels->multiply(type, tiles, n_columns, x_at(c, type->kind, first_token, k), x_bytes(c, type->kind),
                               n_tokens, acc);
    }
}

static void many_tokens(const call *c, const output *out, uint32_t panel, uint32_t token_block, workspace *space) {
    uint32_t n_panels = min_u32(2, out->n_panels - panel), n_lanes = out->kernels->n_lanes;
    uint32_t first = token_block * MAX_TOKENS, n_tokens = min_u32(c->n_rows - first, MAX_TOKENS);
    for (int i = 0; i < 2 && out->w[i]; i++)
        multiply(c, out, out->w[i], panel, n_panels, first, n_tokens, space, space->acc[i]);
    if (out->w[1])
        kvq_kernels_selected()->row->activate(c->act, space->acc[0], space->acc[1], (size_t)n_tokens * 2 * n_lanes,
                                              space->acc[0]);
    for (uint32_t i = 0; i < n_panels; i++)
        store(c, out, panel + i, space->acc[0] + i * n_lanes, first, n_tokens);
}

static void run(void *context, uint32_t thread, uint32_t n_threads) {
    const call *c = context;
    if (c->n_rows > 1 && c->groups) {
        uint32_t end = (uint32_t)((uint64_t)c->n_rows * (thread + 1) / n_threads);
        for (uint32_t i = (uint32_t)((uint64_t)c->n_rows * thread / n_threads); i < end; i++)
            kvq_kernels_selected()->linear->quantize(c->x + (size_t)i * c->n_in, c->n_in,
                                                     c->groups + (size_t)i * c->n_in / KVQ_GROUP);
        kvq_threads_barrier(c->threads);
    }
    const output *out = c->outputs;
    uint32_t item = kvq_threads_next(c->threads), first = 0; /* first: item of *out */
    while (out < c->outputs + c->n_outputs) {
        if (item - first >= out->n_items) {
            first += out++->n_items;
            continue;
        }
        uint32_t panel = (item - first) / c->n_token_blocks * c->n_item_panels;
        uint32_t end = min_u32(panel + c->n_item_panels, out->n_panels);
        if (c->n_rows > 1)
            many_tokens(c, out, panel, (item - first) % c->n_token_blocks, &c->workspaces[thread]);
        else
            for (; panel < end; panel++)
                one_token(c, out, panel);
        item = kvq_threads_next(c->threads);
    }
}

static void start(call *c, void *scratch) {
    uint32_t n_panels = 0;
    const kvq_kernels *kernels = kvq_kernels_selected();
    for (uint32_t i = 0; i < c->n_outputs; i++) {
        output *out = &c->outputs[i];
        uint32_t n_out = out->w[0]->n_out;
        out->kernels = n_out < kernels->linear->n_lanes ? &kvq_linear_scalar : kernels->linear;
        out->n_panels = (n_out + out->kernels->n_lanes - 1) / out->kernels->n_lanes;
        n_panels += out->n_panels;
        for (int j = 0; j < 2 && out->w[j]; j++)
            if (out->w[j]->type->block_elements > 1)
                c->groups = scratch;
    }
    c->workspaces = (workspace *)((uint8_t *)scratch + groups_bytes(c->n_rows, c->n_in));
    c->n_token_blocks = (c->n_rows + MAX_TOKENS - 1) / MAX_TOKENS;
    uint32_t n_items = kvq_threads_count(c->threads) * ITEMS_PER_THREAD;
    c->n_item_panels = c->n_rows > 1 ? 2 : n_panels / n_items + 1;
    for (uint32_t i = 0; i < c->n_outputs; i++) {
        output *out = &c->outputs[i];
        out->n_items = (out->n_panels + c->n_item_panels - 1) / c->n_item_panels * c->n_token_blocks;
    }
    if (c->n_rows == 1 && c->groups)
        kernels->linear->quantize(c->x, c->n_in, c->groups);
    kvq_threads_run(c->threads, run, c);
}

void kvq_linear_project(kvq_threads *threads, void *scratch, const float *x, uint32_t n_rows, uint32_t n,
                        const kvq_weight *const *w, const float *const *bias, bool add, float *const *y) {
    call c = {.threads = threads, .x = x, .n_rows = n_rows, .n_in = w[0]->n_in, .n_outputs = n, .add = add};
    for (uint32_t i = 0; i < n; i++)
        c.outputs[i] = (output){.w = {w[i]}, .bias = bias ? bias[i] : NULL, .y = y[i]};
    start(&c, scratch);
}

void kvq_linear_gated(kvq_threads *threads, void *scratch, const float *x, uint32_t n_rows, const kvq_weight *gate,
                      const kvq_weight *up, kvq_activation act, float *y) {
    call c = {.threads = threads, .x = x, .n_rows = n_rows, .n_in = gate->n_in, .n_outputs = 1, .act = act};
    c.outputs[0] = (output){.w = {gate, up}, .y = y};
    start(&c, scratch);
}
