/* Device memory, and weights put into it. */
#ifndef KVQ_CUDA_LOAD_H
#define KVQ_CUDA_LOAD_H

#include "backend/cuda_library.h"
#include "kernels.h"

extern decltype(kvq_cuda_host::fail) fail; /* kvq_fail of the core */

enum {
    STAGING_BYTES = 64 << 20,
    MAX_EXPANDED_BYTES = 128 << 20 /* one of an 8B model's matrices as halves: with less, products are cut into odd parts */
};

struct weight_memory { /* kvq_weight.device */
    matrix m;
    float *vector;
    void *memory;
    bool is_own; /* memory is an allocation of this weight's */
};

/* The sentence of an error: the GPU's memory, which other processes may give back, or the device itself. */
pykvq_status fail_cuda(const char *what, cudaError_t error);
/* Zeroed device memory, or a sentence with what is free. */
pykvq_status take(size_t n_bytes, const char *what, void **out);
size_t taken_bytes(size_t n_bytes); /* what that leaves less of the GPU's memory */
pykvq_status copy(void *dst, const void *src, size_t n_bytes);
size_t weight_bytes(const kvq_weight *w); /* of what load_weight makes, in whole 256 */
/* A matrix in fragment order, or a vector of floats, in to->memory. staging: STAGING_BYTES of device memory */
pykvq_status load_weight(const kvq_weight *w, uint8_t *staging, cudaStream_t stream, weight_memory *to);

#endif
