/* Matrix products of many rows, by cuBLASLt where this machine has it. */
#ifndef KVQ_CUDA_GEMM_H
#define KVQ_CUDA_GEMM_H

#include "load.h"

enum {
    GEMM_MIN_ROWS = 65, /* fewer are faster through linear.cu */
    GEMM_TILE = 128,    /* a matrix is cut at multiples of so many rows */
    GEMM_WORKSPACE_BYTES = 32 << 20
};

typedef struct gemm gemm;

typedef struct gemm_args { /* y = scale x . w^T, or y += that */
    const __half *w;       /* (n_out, n_in) */
    const __half *x;       /* (n_rows, n_in) */
    void *y;               /* (n_rows, ld), the first n_out columns; float or half */
    uint32_t n_out, n_rows, n_in, ld;
    bool y_half, add;
    float scale;
} gemm_args;

/* Is there a cuBLASLt that can be loaded? */
bool gemm_found();
pykvq_status gemm_create(gemm **out); /* NULL without an error if cuBLASLt is not there */
void gemm_destroy(gemm *g);
/* On the stream; NULL, or what is wrong. Pointers are aligned to 16 bytes; workspace: GEMM_WORKSPACE_BYTES on the device */
const char *gemm_multiply(gemm *g, const gemm_args &args, cudaStream_t stream);

#endif
