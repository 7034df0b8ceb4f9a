/* Device memory, and weights put into it: the file's bytes go through a staging buffer and are arranged by the GPU. */
#include "load.h"

#include <stdio.h>
#include <stdlib.h>

decltype(kvq_cuda_host::fail) fail;

/* Steps run in a stream that does not wait for the default one, and cudaMemset and cudaMemcpy from pageable memory return
 * before the device's memory has changed. */
static cudaError_t wait_for_default_stream(void) {
    return cudaStreamSynchronize(cudaStreamLegacy);
}

pykvq_status fail_cuda(const char *what, cudaError_t error) {
    if (error != cudaErrorMemoryAllocation)
        return fail(PYKVQ_E_DEVICE, "%s: %s", what, cudaGetErrorString(error));
    size_t n_free = 0, n_total = 0;
    cudaGetLastError(); /* of this call; the next ones may succeed */
    cudaMemGetInfo(&n_free, &n_total);
    return fail(PYKVQ_E_MEMORY, "%s: out of GPU memory, %zu of %zu bytes are free", what, n_free, n_total);
}

pykvq_status take(size_t n_bytes, const char *what, void **out) {
    *out = NULL;
    if (n_bytes == 0)
        return PYKVQ_OK;
    cudaError_t error = cudaMalloc(out, n_bytes);
    if (error == cudaSuccess)
        error = cudaMemset(*out, 0, n_bytes);
    if (error == cudaSuccess)
        error = wait_for_default_stream();
    if (error == cudaSuccess)
        return PYKVQ_OK;
    char text[128];
    snprintf(text, sizeof text, "%s of %zu bytes", what, n_bytes);
    return fail_cuda(text, error);
}

/* Measured on an H200: small allocations share blocks of 2 MiB, others are such blocks. */
size_t taken_bytes(size_t n_bytes) {
    const size_t block = 2 << 20;
    return n_bytes > block / 2 ? (n_bytes + block - 1) / block * block : n_bytes;
}

pykvq_status copy(void *dst, const void *src, size_t n_bytes) {
    cudaError_t error = cudaMemcpy(dst, src, n_bytes, cudaMemcpyDefault);
    if (error == cudaSuccess)
        error = wait_for_default_stream();
    return error == cudaSuccess ? PYKVQ_OK : fail_cuda("GPU copy", error);
}

namespace {

bool native_kind(const kvq_wtype *type, uint32_t *kind) {
    switch (type->id) { /* GGML's ids */
    case 1:
        *kind = W_F16;
        return true;
    case 2:
        *kind = W_Q4S;
        return true;
    case 3:
        *kind = W_Q4M;
        return true;
    case 8:
        *kind = W_Q8;
        return true;
    case 12:
        *kind = W_Q4K;
        return true;
    case 13:
        *kind = W_Q5K;
        return true;
    case 14:
        *kind = W_Q6K;
        return true;
    default: /* expanded to halves when loaded */
        *kind = W_F16;
        return false;
    }
}

struct matrix_sizes {
    size_t codes, high, scales, super;
};

matrix_sizes sizes_of(uint32_t kind, uint32_t n_in, uint32_t n_out) {
    matrix_sizes s;
    size_t n_blocks = (n_out + ROWS - 1) / ROWS, n_steps = (n_in + STEP - 1) / STEP;
    s.codes = n_blocks * n_steps * step_code_bytes(kind);
    s.high = n_blocks * n_steps * step_high_bytes(kind);
    s.scales = n_blocks * n_quads((uint32_t)n_steps) * QUAD * ROWS * 4 * step_scale_words(kind);
    s.super = has_super(kind) ? n_blocks * n_quads((uint32_t)n_steps) * ROWS * 4 : 0;
    return s;
}

pykvq_status load_vector(const kvq_weight *w, weight_memory *to) {
    float *host = (float *)malloc(w->n_in * sizeof(float));
    if (host == NULL)
        return fail(PYKVQ_E_MEMORY, "weight vector: out of host memory");
    w->type->dequantize(w->data, host, w->n_in);
    pykvq_status status = copy(to->memory, host, w->n_in * sizeof(float));
    free(host);
    to->vector = (float *)to->memory;
    return status;
}

/* Rows first .. first + n - 1 as halves, on the host. */
pykvq_status expand_rows(const kvq_weight *w, uint32_t first, uint32_t n, __half *out, float *row) {
    for (uint32_t r = 0; r < n; r++) {
        w->type->dequantize(w->data + (first + r) * kvq_weight_row_bytes(w), row, w->n_in);
        for (uint32_t i = 0; i < w->n_in; i++) {
            if (!(row[i] <= 65504.0f && row[i] >= -65504.0f))
                return fail(PYKVQ_E_UNSUPPORTED, "weight of type %s: holds %g, the GPU keeps such weights as half floats",
                            w->type->name, (double)row[i]);
            out[(size_t)r * w->n_in + i] = __float2half_rn(row[i]);
        }
    }
    return PYKVQ_OK;
}

pykvq_status load_matrix(const kvq_weight *w, uint8_t *staging, cudaStream_t stream, weight_memory *to) {
    matrix *m = &to->m;
    bool native = native_kind(w->type, &m->kind);
    m->n_in = w->n_in;
    m->n_out = w->n_out;
    m->n_steps = (w->n_in + STEP - 1) / STEP;
    uint32_t n_blocks = (w->n_out + ROWS - 1) / ROWS;
    matrix_sizes s = sizes_of(m->kind, w->n_in, w->n_out);
    uint8_t *at = (uint8_t *)to->memory;
    m->codes = (uint4 *)at;
    m->high = at + s.codes;
    m->scales = (uint32_t *)(at + s.codes + s.high);
    m->super = (__half2 *)(at + s.codes + s.high + s.scales);

    size_t row_bytes = native ? kvq_weight_row_bytes(w) : (size_t)w->n_in * 2;
    uint32_t chunk = (uint32_t)(STAGING_BYTES / (row_bytes * ROWS));
    if (chunk == 0)
        return fail(PYKVQ_E_UNSUPPORTED, "weights: rows of %zu bytes, the GPU loader takes %d", row_bytes,
                    STAGING_BYTES / ROWS);
    __half *halfs = native ? NULL : (__half *)malloc(chunk * ROWS * row_bytes);
    float *row = native ? NULL : (float *)malloc(w->n_in * sizeof(float));
    pykvq_status status = native || (halfs && row) ? PYKVQ_OK : fail(PYKVQ_E_MEMORY, "weights: out of host memory");
    for (uint32_t block = 0; status == PYKVQ_OK && block < n_blocks; block += chunk) {
        uint32_t n = n_blocks - block < chunk ? n_blocks - block : chunk, first = block * ROWS;
        uint32_t n_rows = w->n_out - first < n * ROWS ? w->n_out - first : n * ROWS;
        if (!native)
            status = expand_rows(w, first, n_rows, halfs, row);
        if (status == PYKVQ_OK)
            status = copy(staging, native ? (const void *)(w->data + first * row_bytes) : halfs, n_rows * row_bytes);
        if (status == PYKVQ_OK) {
            launch_arrange(*m, staging, row_bytes, block, n, stream);
            cudaError_t error = cudaStreamSynchronize(stream);
            if (error != cudaSuccess)
                status = fail_cuda("weights", error);
        }
    }
    free(halfs);
    free(row);
    return status;
}

} // namespace

size_t weight_bytes(const kvq_weight *w) {
    uint32_t kind;
    native_kind(w->type, &kind);
    matrix_sizes s = sizes_of(kind, w->n_in, w->n_out);
    size_t n_bytes = w->n_out == 1 ? w->n_in * sizeof(float) : s.codes + s.high + s.scales + s.super;
    return (n_bytes + 255) / 256 * 256;
}

pykvq_status load_weight(const kvq_weight *w, uint8_t *staging, cudaStream_t stream, weight_memory *to) {
    return w->n_out == 1 ? load_vector(w, to) : load_matrix(w, staging, stream, to);
}
