/* Products with weights of every kind that the GPU keeps, against float64 over the dequantized weights; and their time. */
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "check.h"

enum { MAX_N_IN = 14336, MAX_N_FF = 14336, N_BATCH = 2048 };

/* Types that have kernels of their own, and three that are expanded when loaded. at, n: halves that are scales. */
static const struct {
    const char *name;
    uint32_t at, n;
} types[] = {{"F16", 0, 1},  {"Q8_0", 0, 1},   {"Q4_0", 0, 1}, {"Q4_1", 0, 2}, {"Q4_K", 0, 2},
             {"Q5_K", 0, 2}, {"Q6_K", 208, 1}, {"Q5_0", 0, 1}, {"BF16", 0, 0}, {"F32", 0, 0}};

enum { N_TYPES = sizeof types / sizeof types[0] };

static const kvq_wtype *find_type(const char *name) {
    for (uint32_t i = 0; i < kvq_wtype_count(); i++)
        if (strcmp(kvq_wtype_at(i)->name, name) == 0)
            return kvq_wtype_at(i);
    die(name);
    return NULL;
}

static uint8_t random_byte(void) {
    return (uint8_t)(uniform() * 256);
}

static kvq_weight make_weight(kvq_backend *be, uint32_t type, uint32_t n_in, uint32_t n_out) {
    kvq_weight w = {.type = find_type(types[type].name), .n_in = n_in, .n_out = n_out};
    size_t n_bytes = kvq_weight_row_bytes(&w) * n_out;
    uint8_t *data = malloc(n_bytes);
    for (size_t i = 0; i < n_bytes; i++)
        data[i] = random_byte();
    for (size_t block = 0; types[type].n > 0 && block < n_bytes / w.type->block_bytes; block++)
        for (uint32_t i = 0; i < types[type].n; i++) {
            uint16_t scale = kvq_f32_to_f16(normal() * (types[type].at > 0 ? 0.003f : 0.01f));
            memcpy(data + block * w.type->block_bytes + types[type].at + 2 * i, &scale, sizeof scale);
        }
    for (size_t i = 0; types[type].n == 0 && i < n_bytes / w.type->block_bytes; i++) { /* floats, and their high halves */
        float x = normal();
        memcpy(data + i * w.type->block_bytes, (uint8_t *)&x + 4 - w.type->block_bytes, w.type->block_bytes);
    }
    w.data = data;
    TRY(be->ops->weight_load(be, &w));
    return w;
}

static void drop_weight(kvq_backend *be, kvq_weight *w) {
    be->ops->weight_free(be, w);
    free((void *)w->data);
}

/* (n) floats: host memory, and the same on the device. */
typedef struct floats {
    float *host, *device;
    size_t n;
} floats;

static floats make_floats(kvq_backend *be, size_t n) {
    floats f = {malloc(n * sizeof(float)), device(be, n * sizeof(float)), n};
    for (size_t i = 0; i < n; i++)
        f.host[i] = normal();
    TRY(be->ops->copy(be, f.device, f.host, n * sizeof(float)));
    return f;
}

static void drop_floats(kvq_backend *be, floats *f) {
    be->ops->free(be, f->device, 0);
    free(f->host);
}

static void begin(kvq_backend *be, uint32_t n_rows) {
    static int32_t zeros[N_BATCH];
    static kvq_page pages[N_BATCH / KVQ_TILE];
    static kvq_span span;
    static kvq_batch batch;
    span = (kvq_span){.n_tokens = n_rows, .pages = {pages}};
    batch = (kvq_batch){.n_tokens = n_rows, .n_spans = 1, .tokens = zeros, .positions = zeros, .spans = &span};
    TRY(be->ops->step_begin(be, &batch));
}

typedef double reference_function(const void *context, uint32_t row, uint32_t out);

/* How far y (n_rows, n_out) is from the reference, as a fraction of its norm; every stride-th element. */
static double error_of(const float *y, uint32_t n_rows, uint32_t n_out, uint32_t stride, reference_function *reference,
                       const void *context) {
    double differences = 0, squares = 0;
    for (uint32_t row = 0; row < n_rows; row++)
        for (uint32_t out = row % stride; out < n_out; out += stride) {
            double expected = reference(context, row, out), difference = y[(size_t)row * n_out + out] - expected;
            differences += difference * difference;
            squares += expected * expected;
        }
    return sqrt(differences / squares);
}

typedef struct product {
    const float *w, *x, *bias, *before; /* (n_out, n_in), (n_rows, n_in), (n_out) or NULL, (n_rows, n_out) or NULL */
    uint32_t n_in, n_out;
} product;

static double dot(const float *a, const float *b, uint32_t n) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

static double product_reference(const void *context, uint32_t row, uint32_t out) {
    const product *p = context;
    return dot(p->x + (size_t)row * p->n_in, p->w + (size_t)out * p->n_in, p->n_in) + (p->bias ? p->bias[out] : 0) +
           (p->before ? p->before[(size_t)row * p->n_out + out] : 0);
}

typedef struct feed_forward {   /* of (n_in) to (n_ff) and back, what is to come out of the latter */
    const float *gate, *up, *x; /* x through the norm */
    uint32_t n_in, n_ff;
    kvq_activation activation;
} feed_forward;

static double gated_reference(const void *context, uint32_t row, uint32_t out) {
    const feed_forward *f = context;
    double gate = dot(f->x + (size_t)row * f->n_in, f->gate + (size_t)out * f->n_in, f->n_in);
    double up = dot(f->x + (size_t)row * f->n_in, f->up + (size_t)out * f->n_in, f->n_in);
    double act = f->activation == KVQ_SILU ? gate / (1 + exp(-gate))
                                           : 0.5 * gate * (1 + tanh(0.7978845608 * (gate + 0.044715 * gate * gate * gate)));
    return act * up;
}

static uint32_t n_checks, n_failed;

static void report(const char *what, const char *type, uint32_t n_rows, uint32_t n_in, uint32_t n_out, double error,
                   double limit) {
    bool good = error < limit;
    n_checks++;
    n_failed += !good;
    if (!good || getenv("VERBOSE"))
        printf("%s %-8s %-5s %4u rows, %5u -> %5u: error %.2e\n", good ? "ok  " : "FAIL", what, type, n_rows, n_in, n_out,
               error);
}

static float *dequantized(const kvq_weight *w) {
    float *out = malloc((size_t)w->n_in * w->n_out * sizeof(float));
    w->type->dequantize(w->data, out, (size_t)w->n_in * w->n_out);
    return out;
}

static kvq_weight make_vector(kvq_backend *be, uint32_t n) {
    return make_weight(be, N_TYPES - 1, n, 1);
}

/* Two matrices from one x, the second with a bias and added. */
static void check_project(kvq_backend *be, uint32_t type, uint32_t n_rows, uint32_t n_in, uint32_t n_out, uint32_t stride) {
    kvq_weight w = make_weight(be, type, n_in, n_out), bias = make_vector(be, n_out);
    floats x = make_floats(be, (size_t)n_rows * n_in), y = make_floats(be, (size_t)n_rows * n_out);
    float *weights = dequantized(&w), *before = malloc(y.n * sizeof(float));
    for (int added = 0; added < 2; added++) {
        memcpy(before, y.host, y.n * sizeof(float));
        begin(be, n_rows);
        be->ops->project(be, x.device, n_rows, 1, (const kvq_weight *[]){&w}, (const kvq_weight *[]){added ? &bias : NULL},
                         added, (float *[]){y.device});
        TRY(be->ops->step_end(be, true));
        TRY(be->ops->copy(be, y.host, y.device, y.n * sizeof(float)));
        product p = {weights, x.host, added ? (const float *)bias.data : NULL, added ? before : NULL, n_in, n_out};
        report(added ? "add" : "project", types[type].name, n_rows, n_in, n_out,
               error_of(y.host, n_rows, n_out, stride, product_reference, &p), 1e-3);
    }
    drop_weight(be, &w), drop_weight(be, &bias);
    drop_floats(be, &x), drop_floats(be, &y);
    free(weights), free(before);
}

/* Three matrices of any types from one x, as queries, keys and values; the second has a bias. */
static void check_mixed(kvq_backend *be, const uint32_t type[3], uint32_t n_rows, uint32_t n_in) {
    static const uint32_t n_out[3] = {336, 48, 133};
    kvq_weight w[3], bias = make_vector(be, n_out[1]);
    floats x = make_floats(be, (size_t)n_rows * n_in), y[3];
    for (int i = 0; i < 3; i++) {
        w[i] = make_weight(be, type[i], n_in, n_out[i]);
        y[i] = make_floats(be, (size_t)n_rows * n_out[i]);
    }
    begin(be, n_rows);
    be->ops->project(be, x.device, n_rows, 3, (const kvq_weight *[]){&w[0], &w[1], &w[2]},
                     (const kvq_weight *[]){NULL, &bias, NULL}, false, (float *[]){y[0].device, y[1].device, y[2].device});
    TRY(be->ops->step_end(be, true));
    for (int i = 0; i < 3; i++) {
        float *weights = dequantized(&w[i]);
        TRY(be->ops->copy(be, y[i].host, y[i].device, y[i].n * sizeof(float)));
        product p = {weights, x.host, i == 1 ? (const float *)bias.data : NULL, NULL, n_in, n_out[i]};
        report("mixed", types[type[i]].name, n_rows, n_in, n_out[i],
               error_of(y[i].host, n_rows, n_out[i], 1, product_reference, &p), 1e-3);
        drop_weight(be, &w[i]), drop_floats(be, &y[i]);
        free(weights);
    }
    drop_weight(be, &bias), drop_floats(be, &x);
}

/* norm, gated, project: what they leave in between is looked at too. */
static void check_feed_forward(kvq_backend *be, uint32_t type, uint32_t up_type, uint32_t n_rows, uint32_t n_in,
                               uint32_t n_ff, kvq_activation activation) {
    kvq_weight gate = make_weight(be, type, n_in, n_ff), up = make_weight(be, up_type, n_in, n_ff);
    kvq_weight down = make_weight(be, type, n_ff, n_in), norm = make_vector(be, n_in);
    floats x = make_floats(be, (size_t)n_rows * n_in), h = make_floats(be, x.n), y = make_floats(be, x.n);
    floats ff = make_floats(be, (size_t)n_rows * n_ff);
    float *weights[] = {dequantized(&gate), dequantized(&up), dequantized(&down)};
    for (int looked_at = 1; looked_at >= 0; looked_at--) {
        begin(be, n_rows);
        be->ops->norm(be, x.device, &norm, 1e-5f, n_rows, false, h.device);
        be->ops->gated(be, h.device, n_rows, &gate, &up, activation, ff.device);
        if (!looked_at)
            be->ops->project(be, ff.device, n_rows, 1, (const kvq_weight *[]){&down}, (const kvq_weight *[]){NULL}, false,
                             (float *[]){y.device});
        TRY(be->ops->step_end(be, true));
        if (looked_at)
            TRY(be->ops->copy(be, ff.host, ff.device, ff.n * sizeof(float)));
    }
    TRY(be->ops->copy(be, y.host, y.device, y.n * sizeof(float)));
    for (uint32_t row = 0; row < n_rows; row++) {
        const float *from = x.host + (size_t)row * n_in;
        double factor = 1 / sqrt(dot(from, from, n_in) / n_in + 1e-5);
        for (uint32_t i = 0; i < n_in; i++)
            h.host[(size_t)row * n_in + i] = (float)(from[i] * factor * ((const float *)norm.data)[i]);
    }
    feed_forward f = {weights[0], weights[1], h.host, n_in, n_ff, activation};
    report("gated", types[type].name, n_rows, n_in, n_ff, error_of(ff.host, n_rows, n_ff, 1, gated_reference, &f), 1e-3);
    product p = {weights[2], ff.host, NULL, NULL, n_ff, n_in};
    report("down", types[type].name, n_rows, n_ff, n_in, error_of(y.host, n_rows, n_in, 1, product_reference, &p), 1e-3);
    drop_weight(be, &gate), drop_weight(be, &up), drop_weight(be, &down), drop_weight(be, &norm);
    drop_floats(be, &x), drop_floats(be, &h), drop_floats(be, &y), drop_floats(be, &ff);
    free(weights[0]), free(weights[1]), free(weights[2]);
}

static kvq_backend *open_products(uint32_t max_n_in, uint32_t n_batch) {
    return open_backend(&(kvq_backend_limits){.n_threads = 1,
                                              .n_batch = n_batch,
                                              .n_seq = 1,
                                              .n_tiles = N_BATCH / KVQ_TILE,
                                              .max_n_in = max_n_in,
                                              .max_n_ff = max_n_in,
                                              .max_n_head = 1,
                                              .max_head_dim = 64,
                                              .max_head_group = 1});
}

int check_products(void) {
    static const uint32_t rows[] = {1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 150};
    kvq_backend *be = open_products(8448, 256);
    for (uint32_t type = 0; type < N_TYPES; type++) {
        uint32_t block = find_type(types[type].name)->block_elements, other = (type + 1) % N_TYPES;
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            check_project(be, type, rows[i], 512, 133, 1);
            if (block < 64) /* a step that is not whole, a quad that is not whole */
                check_project(be, type, rows[i], 3 * 32, 48, 1);
            check_feed_forward(be, type, i % 3 == 0 ? other : type, rows[i], 256, 512, i % 2 ? KVQ_SILU : KVQ_GELU_TANH);
        }
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i += 3) {
            check_mixed(be, (const uint32_t[]){type, type, other}, rows[i], 512);
            check_mixed(be, (const uint32_t[]){type, other, type}, rows[i], 768);
        }
        check_project(be, type, 1, 768, 1100, 1);                    /* many rows of weights for each block */
        check_feed_forward(be, type, type, 1, 2304, 512, KVQ_SILU);  /* more columns than a ring holds */
        check_feed_forward(be, type, type, 1, 8448, 256, KVQ_SILU);  /* too many for a norm inside of the product */
        check_feed_forward(be, type, type, 13, 4096, 256, KVQ_SILU); /* tiles that several blocks share */
    }
    be->ops->destroy(be);
    printf("%u checks, %u failed\n", n_checks, n_failed);
    return n_failed > 0;
}

/* ---- time, at the shapes of Llama-3.1-8B ---- */

static double time_project(kvq_backend *be, const kvq_weight *w, const floats *x, const floats *y, uint32_t n_rows) {
    enum { N = 10 };
    double best = 1e9;
    for (int turn = 0; turn < 4; turn++) {
        double start = seconds();
        begin(be, n_rows);
        for (int i = 0; i < N; i++)
            be->ops->project(be, x->device, n_rows, 1, (const kvq_weight *[]){w}, (const kvq_weight *[]){NULL}, false,
                             (float *[]){y->device});
        TRY(be->ops->step_end(be, true));
        double elapsed = (seconds() - start) / N;
        best = turn > 0 && elapsed < best ? elapsed : best;
    }
    return best;
}

int time_products(void) {
    static const uint32_t rows[] = {32, 64, 65, 96, 128, 256, 512, 1024, 2048},
                          shapes[][2] = {{4096, 4096}, {4096, 14336}, {14336, 4096}};
    kvq_backend *be = open_products(MAX_N_IN, N_BATCH);
    floats x = make_floats(be, (size_t)N_BATCH * MAX_N_IN), y = make_floats(be, (size_t)N_BATCH * MAX_N_FF);
    check_project(be, 4, 65, MAX_N_IN, 4700, 101); /* more than there is room for at once */
    for (uint32_t type = 0; type < 7; type++)
        for (int s = 0; s < 3; s++) {
            kvq_weight w = make_weight(be, type, shapes[s][0], shapes[s][1]);
            for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
                if (type != 4 && type != 6 && rows[i] != 2048)
                    continue;
                double time = time_project(be, &w, &x, &y, rows[i]);
                printf("{\"weights\": \"%s\", \"n_in\": %u, \"n_out\": %u, \"rows\": %u, \"us\": %.1f, "
                       "\"teraflops\": %.1f}\n",
                       types[type].name, w.n_in, w.n_out, rows[i], time * 1e6, 2e-12 * w.n_in * w.n_out * rows[i] / time);
            }
            drop_weight(be, &w);
        }
    drop_floats(be, &x), drop_floats(be, &y);
    be->ops->destroy(be);
    return n_failed > 0;
}

/* ---- time of decode steps' products ---- */

enum { MOST_ROWS = 64 };

/* A step of one token per sequence, whose graph is kept. */
static void begin_decode(kvq_backend *be, uint32_t n_rows) {
    static int32_t zeros[MOST_ROWS];
    static uint32_t logit_rows[MOST_ROWS];
    static kvq_page page;
    static kvq_span spans[MOST_ROWS];
    static kvq_batch batch;
    for (uint32_t i = 0; i < n_rows; i++) {
        logit_rows[i] = i;
        spans[i] = (kvq_span){.first = i, .n_tokens = 1, .pages = {&page}};
    }
    batch = (kvq_batch){.n_tokens = n_rows,
                        .n_spans = n_rows,
                        .n_logits = n_rows,
                        .tokens = zeros,
                        .positions = zeros,
                        .spans = spans,
                        .logit_rows = logit_rows};
    TRY(be->ops->step_begin(be, &batch));
}

typedef struct shape {
    const char *name;
    uint32_t n_in, n_out[3], n; /* gated if n is 2 */
} shape;

/* Microseconds of one launch, of many in a row as in a step, over at least 400 MB of weights. last: type of the last matrix
 */
static double time_shape(kvq_backend *be, uint32_t type, uint32_t last, const shape *s, uint32_t n_rows, size_t *n_bytes) {
    enum { LAUNCHES = 64, MOST = 64 };
    static kvq_weight w[MOST][3];
    *n_bytes = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        w[0][i] = make_weight(be, i + 1 < s->n ? type : last, s->n_in, s->n_out[i]);
        *n_bytes += kvq_weight_row_bytes(&w[0][i]) * s->n_out[i];
    }
    uint32_t n_distinct = (uint32_t)(400000000 / *n_bytes) + 2;
    n_distinct = n_distinct > MOST ? MOST : n_distinct;
    for (uint32_t d = 1; d < n_distinct; d++)
        for (uint32_t i = 0; i < s->n; i++) {
            w[d][i] = w[0][i];
            w[d][i].device = NULL;
            TRY(be->ops->weight_load(be, &w[d][i]));
        }
    floats x = make_floats(be, (size_t)n_rows * s->n_in), y[3];
    for (uint32_t i = 0; i < s->n; i++)
        y[i] = make_floats(be, (size_t)n_rows * s->n_out[i]);
    double best = 1e9;
    for (int turn = 0; turn < 20; turn++) { /* the first captures the graph */
        double start = seconds();
        begin_decode(be, n_rows);
        for (uint32_t i = 0; i < LAUNCHES; i++) {
            const kvq_weight *m = w[i % n_distinct];
            if (s->n == 2)
                be->ops->gated(be, x.device, n_rows, &m[0], &m[1], KVQ_SILU, y[0].device);
            else
                be->ops->project(be, x.device, n_rows, s->n, (const kvq_weight *[]){&m[0], &m[1], &m[2]},
                                 (const kvq_weight *[]){NULL, NULL, NULL}, false,
                                 (float *[]){y[0].device, y[s->n / 2].device, y[s->n - 1].device});
        }
        TRY(be->ops->step_end(be, true));
        double elapsed = seconds() - start;
        best = turn > 1 && elapsed < best ? elapsed : best;
    }
    for (uint32_t i = 0; i < s->n; i++) {
        for (uint32_t d = 1; d < n_distinct; d++)
            be->ops->weight_free(be, &w[d][i]);
        drop_weight(be, &w[0][i]);
        drop_floats(be, &y[i]);
    }
    drop_floats(be, &x);
    return best / LAUNCHES * 1e6;
}

static uint32_t index_of_type(const char *name) {
    for (uint32_t type = 0; type < N_TYPES; type++)
        if (strcmp(types[type].name, name) == 0)
            return type;
    die(name);
    return 0;
}

static void time_rows(uint32_t type, uint32_t last, const shape *s, uint32_t n_rows) {
    kvq_backend *be = open_backend(&(kvq_backend_limits){.n_threads = 1,
                                                         .n_batch = MOST_ROWS,
                                                         .n_seq = MOST_ROWS,
                                                         .n_tiles = 1,
                                                         .max_n_in = MAX_N_IN,
                                                         .max_n_ff = MAX_N_FF,
                                                         .max_n_head = 1,
                                                         .max_head_dim = 64,
                                                         .max_head_group = 1});
    size_t n_bytes;
    double us = time_shape(be, type, last, s, n_rows, &n_bytes);
    be->ops->destroy(be);
    printf("{\"weights\": \"%s%s%s\", \"shape\": \"%s\", \"rows\": %u, \"us\": %.2f, \"terabytes_per_second\": %.2f}\n",
           types[type].name, last != type ? "+" : "", last != type ? types[last].name : "", s->name, n_rows, us,
           (double)n_bytes / us * 1e-6);
    fflush(stdout);
}

int time_few_rows(const char *only, const char *last) {
    static const shape shapes[] = {{"qkv", 4096, {4096, 1024, 1024}, 3},
                                   {"output", 4096, {4096}, 1},
                                   {"gate_up", 4096, {14336, 14336}, 2},
                                   {"down", 14336, {4096}, 1}};
    static const uint32_t rows[] = {1, 2, 8, 16, 32, 64};
    for (uint32_t type = 0; type < 7; type++)
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++)
                if (only != NULL ? strcmp(only, types[type].name) == 0 : rows[r] == 1 || rows[r] == 32)
                    time_rows(type, last != NULL ? index_of_type(last) : type, &shapes[s], rows[r]);
    return 0;
}
