/*
 * The part of cuBLASLt's API that is used here, as its documentation has it, so that no header of it is needed: the library
 * itself is looked for at run time. The same in CUDA 12 and 13.
 */
#ifndef KVQ_CUDA_CUBLASLT_H
#define KVQ_CUDA_CUBLASLT_H

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

enum { LT_SUCCESS = 0, LT_NO_MEMORY = 3 };             /* cublasStatus_t */
enum { LT_COMPUTE_32F = 68 };                          /* cublasComputeType_t: sums in f32 */
enum { LT_F32 = 0, LT_F16 = 2 };                       /* cudaDataType_t */
enum { LT_TRANSPOSE = 1 };                             /* cublasOperation_t */
enum { LT_DESC_TRANSA = 3 };                           /* cublasLtMatmulDescAttributes_t, of int32 */
enum { LT_PREFER_WORKSPACE = 1 };                      /* cublasLtMatmulPreferenceAttributes_t, of uint64 */
enum { LT_PREFER_ALIGN_C = 7, LT_PREFER_ALIGN_D = 8 }; /* the same, of uint32: bytes */

typedef struct lt_opaque_handle *lt_handle;         /* cublasLtHandle_t */
typedef struct lt_opaque_desc *lt_desc;             /* cublasLtMatmulDesc_t */
typedef struct lt_opaque_layout *lt_layout;         /* cublasLtMatrixLayout_t; columns are contiguous */
typedef struct lt_opaque_preference *lt_preference; /* cublasLtMatmulPreference_t */

typedef struct lt_algo { /* cublasLtMatmulAlgo_t */
    uint64_t data[8];
} lt_algo;

typedef struct lt_result { /* cublasLtMatmulHeuristicResult_t */
    lt_algo algo;
    size_t workspace_bytes;
    int status;
    float n_waves;
    int reserved[4];
} lt_result;

/* D = alpha op(A) op(B) + beta C */
#define LT_FUNCTIONS(F)                                                                                                    \
    F(Create, (lt_handle *))                                                                                               \
    F(Destroy, (lt_handle))                                                                                                \
    F(MatmulDescCreate, (lt_desc *, int compute_type, int scale_type))                                                     \
    F(MatmulDescDestroy, (lt_desc))                                                                                        \
    F(MatmulDescSetAttribute, (lt_desc, int attribute, const void *value, size_t n_bytes))                                 \
    F(MatrixLayoutCreate, (lt_layout *, int type, uint64_t n_rows, uint64_t n_cols, int64_t ld))                           \
    F(MatrixLayoutDestroy, (lt_layout))                                                                                    \
    F(MatmulPreferenceCreate, (lt_preference *))                                                                           \
    F(MatmulPreferenceDestroy, (lt_preference))                                                                            \
    F(MatmulPreferenceSetAttribute, (lt_preference, int attribute, const void *value, size_t n_bytes))                     \
    F(MatmulAlgoGetHeuristic, (lt_handle, lt_desc, lt_layout a, lt_layout b, lt_layout c, lt_layout d, lt_preference,      \
                               int n_wanted, lt_result *, int *n_found))                                                   \
    F(Matmul, (lt_handle, lt_desc, const void *alpha, const void *a, lt_layout, const void *b, lt_layout,                  \
               const void *beta, const void *c, lt_layout, void *d, lt_layout, const lt_algo *, void *workspace,           \
               size_t workspace_bytes, cudaStream_t))

typedef struct lt_library {
#define MEMBER(name, parameters) int(*name) parameters;
    LT_FUNCTIONS(MEMBER)
#undef MEMBER
} lt_library;

#endif
