/*
 * Rows and matrices: embedding, norms, projections. What comes in front of a projection is put off and taken in by it: a
 * norm, and with many rows the gated product, which is left as the halves that the projection reads.
 */
#include "backend.cuh"

namespace {

struct norm_source { /* rows, through a norm if w is given */
    const float *x, *w;
    float eps;
};

/* x, or what it is the norm of. */
norm_source source_of(cuda_backend *c, const float *x, uint32_t n_rows) {
    norm_source source = {x, NULL, 0.0f};
    if (c->norm.y == x && c->norm.n_rows == n_rows) {
        source = {c->norm.x, vector_of(c->norm.w), c->norm.eps};
        c->norm.y = NULL;
    }
    flush_pending(c);
    return source;
}

/* y[i] of args from x (n_rows, n_in) */
void run_linear(cuda_backend *c, const float *x, uint32_t n_rows, linear_args args) {
    norm_source source = source_of(c, x, n_rows);
    args.x = source.x;
    args.norm = source.w;
    args.eps = source.eps;
    args.n_rows = n_rows;
    args.fragments = c->fragments;
    args.scratch = c->linear_scratch;
    launch_linear(args, c->stream);
}

/* ---- many rows: matrices expanded to halves, products by cuBLASLt ---- */

bool by_gemm(const cuda_backend *c, const matrix &w, uint32_t n_rows) {
    return c->gemm != NULL && n_rows >= GEMM_MIN_ROWS && w.n_in % 2 == 0;
}

/* c->halfs = x (n_rows, n_in); gated may have left it there. */
void load_halfs(cuda_backend *c, const float *x, uint32_t n_rows, uint32_t n_in) {
    bool there = c->gated.y == x && c->gated.n_rows == n_rows;
    if (there)
        c->gated.y = NULL;
    norm_source source = source_of(c, x, n_rows);
    if (!there)
        launch_halfs(source.x, source.w, source.eps, n_in, n_rows, c->halfs, c->stream);
}

/* y (n_rows, ld) = c->halfs . w^T, as many rows of w at a time as there is room for. */
void multiply_halfs(cuda_backend *c, const matrix &w, uint32_t n_rows, gemm_args args) {
    args.n_in = w.n_steps * STEP;
    args.n_rows = n_rows;
    args.x = c->halfs;
    args.w = (const __half *)c->staging;
    uint32_t most = (uint32_t)(c->staging_bytes / sizeof(__half) / args.n_in / GEMM_TILE * GEMM_TILE);
    uint32_t n_parts = (w.n_out + most - 1) / most, n_tiles = (w.n_out + GEMM_TILE - 1) / GEMM_TILE;
    uint32_t n_part = (n_tiles + n_parts - 1) / n_parts * GEMM_TILE;
    for (uint32_t first = 0; first < w.n_out; first += n_part) {
        gemm_args part = args;
        part.n_out = w.n_out - first < n_part ? w.n_out - first : n_part;
        part.y = (uint8_t *)args.y + (size_t)first * (args.y_half ? sizeof(__half) : sizeof(float));
        launch_expand(w, first / ROWS, (part.n_out + ROWS - 1) / ROWS, (__half *)c->staging, c->stream);
        const char *refusal = gemm_multiply(c->gemm, part, c->stream);
        c->refusal = c->refusal == NULL ? refusal : c->refusal;
    }
}

void project_many(cuda_backend *c, const float *x, uint32_t n_rows, const linear_args &args) {
    load_halfs(c, x, n_rows, args.w[0].n_in);
    for (uint32_t i = 0; i < args.n; i++) {
        gemm_args product = {};
        product.y = args.y[i];
        product.ld = args.w[i].n_out;
        product.add = args.add || args.bias[i] != NULL;
        product.scale = X_UNIT;
        if (args.bias[i] != NULL)
            launch_bias(args.bias[i], product.ld, n_rows, args.add, args.y[i], c->stream);
        multiply_halfs(c, args.w[i], n_rows, product);
    }
}

/* The result stays in c->halfs, for the projection that follows. */
void gated_many(cuda_backend *c, const float *x, uint32_t n_rows, const linear_args &args) {
    uint32_t n_ff = args.w[0].n_out;
    load_halfs(c, x, n_rows, args.w[0].n_in);
    for (uint32_t i = 0; i < 2; i++) {
        gemm_args product = {};
        product.y = c->gate_up[i];
        product.ld = round_step(n_ff);
        product.y_half = true;
        product.scale = 1.0f; /* they stay in X_UNIT */
        multiply_halfs(c, args.w[i], n_rows, product);
    }
    launch_gate(c->gate_up[0], c->gate_up[1], args.activation, n_ff, n_rows, c->halfs, c->stream);
    c->gated = {args.y[0], n_ff, n_rows};
}

} // namespace

void flush_pending(cuda_backend *c) {
    if (c->norm.y != NULL)
        launch_norm(c->norm.x, vector_of(c->norm.w), c->norm.eps, c->norm.w->n_in, c->norm.n_rows, false,
                    (float *)c->norm.y, c->stream);
    if (c->gated.y != NULL)
        launch_floats(c->halfs, c->gated.n, c->gated.n_rows, c->gated.y, c->stream);
    c->norm.y = c->gated.y = NULL;
}

void op_embed(kvq_backend *be, const kvq_weight *table, float scale, float *x) {
    cuda_backend *c = cuda_of(be);
    if (c->replay == NULL)
        launch_embed(matrix_of(table), c->device.tokens, c->batch->n_tokens, scale, x, c->stream);
}

void op_norm(kvq_backend *be, const float *x, const kvq_weight *w, float eps, uint32_t n_rows, bool add, float *y) {
    cuda_backend *c = cuda_of(be);
    if (c->replay != NULL)
        return;
    flush_pending(c);
    if (add || x == y || w->n_in % 4 != 0) {
        launch_norm(x, vector_of(w), eps, w->n_in, n_rows, add, y, c->stream);
        return;
    }
    c->norm = {x, y, w, eps, n_rows};
}

void op_project(kvq_backend *be, const float *x, uint32_t n_rows, uint32_t n, const kvq_weight *const *w,
                const kvq_weight *const *bias, bool add, float *const *y) {
    cuda_backend *c = cuda_of(be);
    if (c->replay != NULL)
        return;
    linear_args args = {};
    args.n = n;
    args.add = add;
    for (uint32_t i = 0; i < n; i++) {
        args.w[i] = matrix_of(w[i]);
        args.bias[i] = vector_of(bias[i]);
        args.y[i] = y[i];
    }
    if (by_gemm(c, args.w[0], n_rows))
        project_many(c, x, n_rows, args);
    else
        run_linear(c, x, n_rows, args);
}

void op_gated(kvq_backend *be, const float *x, uint32_t n_rows, const kvq_weight *gate, const kvq_weight *up,
              kvq_activation act, float *y) {
    cuda_backend *c = cuda_of(be);
    if (c->replay != NULL)
        return;
    linear_args args = {};
    args.n = 2;
    args.gated = true;
    args.activation = act == KVQ_SILU ? 0 : 1;
    args.w[0] = matrix_of(gate);
    args.w[1] = matrix_of(up);
    args.y[0] = y;
    if (by_gemm(c, args.w[0], n_rows))
        gated_many(c, x, n_rows, args);
    else
        run_linear(c, x, n_rows, args);
}

void op_gather(kvq_backend *be, const float *x, uint32_t n, const uint32_t *, uint32_t n_rows, float *y) {
    cuda_backend *c = cuda_of(be);
    bool in_place = x == y && n_rows == c->batch->n_tokens; /* rows ascend: all of them are where they should be */
    if (c->replay != NULL || n_rows == 0 || in_place)
        return;
    flush_pending(c);
    launch_gather(x, n, c->device.logit_rows, n_rows, y, c->stream);
}

void op_softcap(kvq_backend *be, float softcap, size_t n, float *x) {
    cuda_backend *c = cuda_of(be);
    if (c->replay == NULL)
        launch_softcap(softcap, n, x, c->stream);
}
