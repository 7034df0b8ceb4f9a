/* Rows and matrices: embedding, norms, projections. A norm in front of a projection is put off and taken in by it. */
#include "backend.cuh"

namespace {

/* One launch for each run of matrices of one kind. */
void launch_linears(const linear_args &args, cudaStream_t stream) {
    for (uint32_t first = 0, n; first < args.n; first += n) {
        linear_args part = args;
        for (n = 1; first + n < args.n && args.w[first + n].kind == args.w[first].kind; n++)
            ;
        for (uint32_t i = 0; i < n; i++) {
            part.w[i] = args.w[first + i];
            part.bias[i] = args.bias[first + i];
            part.y[i] = args.y[first + i];
        }
        part.n = n;
        launch_linear(part, stream);
    }
}

/* y[i] of args from x (n_rows, n_in), 64 rows at a time. */
void run_linear(cuda_backend *c, const float *x, uint32_t n_rows, uint32_t n_in, linear_args args) {
    const float *source = x, *norm = NULL;
    float eps = 0.0f;
    if (c->norm.y == x && c->norm.n_rows == n_rows) {
        source = c->norm.x;
        norm = vector_of(c->norm.w);
        eps = c->norm.eps;
        c->norm.y = NULL;
    }
    flush_norm(c);
    float *y[3] = {args.y[0], args.y[1], args.y[2]};
    for (uint32_t first = 0; first < n_rows; first += LINEAR_MAX_ROWS) {
        args.n_rows = n_rows - first < LINEAR_MAX_ROWS ? n_rows - first : LINEAR_MAX_ROWS;
        args.x = c->fragments;
        args.x_sums = c->x_sums;
        for (uint32_t i = 0; i < args.n && (i == 0 || !args.gated); i++)
            args.y[i] = y[i] + (size_t)first * args.w[i].n_out;
        launch_fragments(source + (size_t)first * n_in, norm, eps, n_in, args.n_rows, linear_tiles(args.n_rows),
                         c->fragments, c->x_sums, c->stream);
        launch_linears(args, c->stream);
    }
}

} // namespace

void flush_norm(cuda_backend *c) {
    if (c->norm.y == NULL)
        return;
    launch_norm(c->norm.x, vector_of(c->norm.w), c->norm.eps, c->norm.w->n_in, c->norm.n_rows, false, (float *)c->norm.y,
                c->stream);
    c->norm.y = NULL;
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
    flush_norm(c);
    if (add || x == y || n_rows > LINEAR_MAX_ROWS || w->n_in % 4 != 0) {
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
    run_linear(c, x, n_rows, w[0]->n_in, args);
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
    if (args.w[0].kind == args.w[1].kind) {
        run_linear(c, x, n_rows, gate->n_in, args);
        return;
    }
    flush_norm(c); /* kinds differ: one kernel each, both read x */
    linear_args one = {};
    one.n = 1;
    one.w[0] = args.w[1];
    one.y[0] = y;
    run_linear(c, x, n_rows, gate->n_in, one);
    one.w[0] = args.w[0];
    one.times = true;
    one.activation = args.activation;
    run_linear(c, x, n_rows, gate->n_in, one);
}

void op_gather(kvq_backend *be, const float *x, uint32_t n, const uint32_t *, uint32_t n_rows, float *y) {
    cuda_backend *c = cuda_of(be);
    bool in_place = x == y && n_rows == c->batch->n_tokens; /* rows ascend: all of them are where they should be */
    if (c->replay != NULL || n_rows == 0 || in_place)
        return;
    flush_norm(c);
    launch_gather(x, n, c->device.logit_rows, n_rows, y, c->stream);
}

void op_softcap(kvq_backend *be, float softcap, size_t n, float *x) {
    cuda_backend *c = cuda_of(be);
    if (c->replay == NULL)
        launch_softcap(softcap, n, x, c->stream);
}
