/* Converts rows of weights on a team of threads, a chunk of whole rows at a time: decode, encode, decode again to see the
 * loss. */
#include "cpu/quantize.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/memory.h"
#include "cpu/isa.h"
#include "cpu/row.h"

enum { CHUNK_ELEMENTS = 1 << 14, F32 = 0, F16 = 1, BF16 = 30 /* GGML ids */ };

typedef struct job {
    const kvq_rows *rows;
    const kvq_quantizer *quantizer; /* NULL: dst is a float type */
    kvq_threads *threads;
    const float *weights; /* (n_per_row) or NULL */
    uint64_t n_chunk_rows;
    float *space;            /* (n_threads, 2, n_chunk_rows, n_per_row) */
    pykvq_weight_loss *loss; /* (n_threads) */
} job;

static size_t bytes_of(const kvq_wtype *type, uint64_t n) {
    return n / type->block_elements * type->block_bytes;
}

static void decode(const kvq_wtype *type, const uint8_t *src, float *dst, size_t n) {
    if (type->id == F16 && (uintptr_t)src % 2 == 0)
        kvq_kernels_selected()->row->from_f16((const void *)src, n, dst);
    else
        type->dequantize(src, dst, n);
}

static void encode(const job *j, const float *x, size_t n, uint8_t *dst) {
    switch (j->rows->dst_type->id) {
    case F32:
        memcpy(dst, x, n * sizeof *x);
        return;
    case F16:
        for (size_t i = 0; i < n; i++) {
            uint16_t bits = kvq_f32_to_f16(x[i]);
            memcpy(dst + 2 * i, &bits, 2);
        }
        return;
    case BF16:
        for (size_t i = 0; i < n; i++) {
            uint16_t bits = kvq_f32_to_bf16(x[i]);
            memcpy(dst + 2 * i, &bits, 2);
        }
        return;
    default:
        kvq_kernels_selected()->quantize->encode(j->quantizer, x, n, j->weights, j->rows->n_per_row, dst);
    }
}

static void run(void *context, uint32_t thread, uint32_t n_threads) {
    const job *j = context;
    const kvq_rows *r = j->rows;
    float *x = j->space + 2 * thread * j->n_chunk_rows * r->n_per_row, *y = x + j->n_chunk_rows * r->n_per_row;
    pykvq_weight_loss loss = {0};
    uint64_t row;
    while ((row = kvq_threads_next(j->threads) * j->n_chunk_rows) < r->n_rows) {
        uint64_t n_rows = r->n_rows - row < j->n_chunk_rows ? r->n_rows - row : j->n_chunk_rows;
        size_t n = n_rows * r->n_per_row;
        uint8_t *dst = r->dst + bytes_of(r->dst_type, row * r->n_per_row);
        decode(r->src_type, r->src + bytes_of(r->src_type, row * r->n_per_row), x, n);
        encode(j, x, n, dst);
        decode(r->dst_type, dst, y, n);
        kvq_kernels_selected()->quantize->loss(x, y, n, &loss);
    }
    j->loss[thread] = loss;
}

/* Importance with mean 1; never 0, or what a column holds would be lost for nothing. */
static pykvq_status normalize(const float *importance, uint32_t n, float **out) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!(importance[i] >= 0.0f) || isinf(importance[i]))
            return kvq_fail(PYKVQ_E_ARGUMENT, "importance: element %u is %g, expected at least 0", i,
                            (double)importance[i]);
        sum += importance[i];
    }
    KVQ_TRY(kvq_alloc_array((void **)out, n, sizeof **out, "importance"));
    for (uint32_t i = 0; i < n; i++)
        (*out)[i] = sum > 0 ? (float)(importance[i] / sum * n) + 1e-3f : 1.0f;
    return PYKVQ_OK;
}

static pykvq_status run_all(job *j, pykvq_weight_loss *loss) {
    uint32_t n_threads = kvq_threads_count(j->threads);
    kvq_threads_run(j->threads, run, j);
    *loss = (pykvq_weight_loss){0};
    for (uint32_t i = 0; i < n_threads; i++) {
        loss->squares += j->loss[i].squares;
        loss->squared_errors += j->loss[i].squared_errors;
        loss->max_error = fmax(loss->max_error, j->loss[i].max_error);
    }
    if (!isfinite(loss->squares))
        return kvq_fail(PYKVQ_E_NUMERIC, "weights: a value is not finite");
    if (!isfinite(loss->squared_errors))
        return kvq_fail(PYKVQ_E_NUMERIC, "weights: a value is too large for %s", j->rows->dst_type->name);
    return PYKVQ_OK;
}

bool kvq_rows_possible(const kvq_wtype *dst_type) {
    return dst_type->block_elements == 1 || kvq_quantizer_find(dst_type->id) != NULL;
}

pykvq_status kvq_rows_convert(kvq_threads *threads, const kvq_rows *rows, pykvq_weight_loss *loss) {
    uint32_t n = rows->n_per_row, n_threads = kvq_threads_count(threads);
    job j = {.rows = rows, .threads = threads, .quantizer = kvq_quantizer_find(rows->dst_type->id)};
    j.n_chunk_rows = n < CHUNK_ELEMENTS ? CHUNK_ELEMENTS / n : 1;
    size_t n_space = 2 * (size_t)n_threads * j.n_chunk_rows * n;
    float *weights = NULL;
    if (rows->importance != NULL && j.quantizer != NULL)
        KVQ_TRY(normalize(rows->importance, n, &weights));
    j.weights = weights;
    pykvq_status status = kvq_alloc_array((void **)&j.space, n_space, sizeof *j.space, "conversion");
    if (status == PYKVQ_OK)
        status = kvq_alloc_array((void **)&j.loss, n_threads, sizeof *j.loss, "conversion");
    if (status == PYKVQ_OK)
        status = run_all(&j, loss);
    kvq_free(j.loss, n_threads * sizeof *j.loss);
    kvq_free(j.space, n_space * sizeof *j.space);
    kvq_free(weights, n * sizeof *weights);
    return status;
}
