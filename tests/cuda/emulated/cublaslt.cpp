/* A stand-in for cuBLASLt: the functions of native/cuda/cublaslt.h, for what gemm.cu asks of them. */
#include "cublaslt.h"

#include "cuda_fp16.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

struct lt_opaque_layout {
    int type;
    uint64_t n_rows, n_cols;
    int64_t ld;
};
struct lt_opaque_desc {
    int transpose_a;
};

static int make(void **out, size_t n_bytes) {
    *out = calloc(1, n_bytes);
    return *out == NULL;
}

EXPORT int cublasLtCreate(lt_handle *out) {
    return make((void **)out, 1);
}
EXPORT int cublasLtDestroy(lt_handle handle) {
    free(handle);
    return 0;
}
EXPORT int cublasLtMatmulDescCreate(lt_desc *out, int compute_type, int scale_type) {
    return compute_type != LT_COMPUTE_32F || scale_type != LT_F32 || make((void **)out, sizeof **out);
}
EXPORT int cublasLtMatmulDescDestroy(lt_desc desc) {
    free(desc);
    return 0;
}
EXPORT int cublasLtMatmulDescSetAttribute(lt_desc desc, int attribute, const void *value, size_t n_bytes) {
    if (attribute != LT_DESC_TRANSA || n_bytes != sizeof(int32_t))
        return 1;
    desc->transpose_a = *(const int32_t *)value;
    return 0;
}
EXPORT int cublasLtMatrixLayoutCreate(lt_layout *out, int type, uint64_t n_rows, uint64_t n_cols, int64_t ld) {
    if (ld < (int64_t)n_rows || make((void **)out, sizeof **out) != 0)
        return 1;
    **out = {type, n_rows, n_cols, ld};
    return 0;
}
EXPORT int cublasLtMatrixLayoutDestroy(lt_layout layout) {
    free(layout);
    return 0;
}
EXPORT int cublasLtMatmulPreferenceCreate(lt_preference *out) {
    return make((void **)out, 1);
}
EXPORT int cublasLtMatmulPreferenceDestroy(lt_preference preference) {
    free(preference);
    return 0;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(lt_preference, int, const void *, size_t) {
    return 0;
}
EXPORT int cublasLtMatmulAlgoGetHeuristic(lt_handle, lt_desc desc, lt_layout a, lt_layout b, lt_layout c, lt_layout d,
                                          lt_preference, int, lt_result *result, int *n_found) {
    bool fits = desc->transpose_a == LT_TRANSPOSE && a->n_rows == b->n_rows && a->n_cols == d->n_rows &&
                b->n_cols == d->n_cols && c->n_rows == d->n_rows && c->n_cols == d->n_cols && a->type == LT_F16 &&
                b->type == LT_F16;
    *result = {};
    *n_found = fits;
    return !fits;
}

static float element(const void *matrix, const lt_opaque_layout &of, uint64_t row, uint64_t col) {
    size_t at = row + col * of.ld;
    return of.type == LT_F16 ? __half2float(((const __half *)matrix)[at]) : ((const float *)matrix)[at];
}

EXPORT int cublasLtMatmul(lt_handle, lt_desc, const void *alpha, const void *a, lt_layout a_layout, const void *b,
                          lt_layout b_layout, const void *beta, const void *c, lt_layout c_layout, void *d,
                          lt_layout d_layout, const lt_algo *, void *, size_t, cudaStream_t) {
    float scale = *(const float *)alpha, keep = *(const float *)beta;
    lt_opaque_layout of_a = *a_layout, of_b = *b_layout, of_c = *c_layout, of_d = *d_layout;
    emulated_do([=] {
        for (uint64_t col = 0; col < of_d.n_cols; col++)
            for (uint64_t row = 0; row < of_d.n_rows; row++) {
                float sum = 0;
                for (uint64_t k = 0; k < of_a.n_rows; k++)
                    sum += element(a, of_a, k, row) * element(b, of_b, k, col);
                sum = scale * sum + (keep != 0 ? keep * element(c, of_c, row, col) : 0);
                if (of_d.type == LT_F16)
                    ((__half *)d)[row + col * of_d.ld] = __float2half_rn(sum);
                else
                    ((float *)d)[row + col * of_d.ld] = sum;
            }
    });
    return 0;
}
