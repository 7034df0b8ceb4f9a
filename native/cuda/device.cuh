/* Device helpers: the GPU's instructions, and the rotation of kv/rotate.h. */
#ifndef KVQ_CUDA_DEVICE_CUH
#define KVQ_CUDA_DEVICE_CUH

#include "instructions.cuh"

__device__ __forceinline__ float activate(uint32_t activation, float x) {
    if (activation == 0) /* SiLU */
        return x / (1.0f + __expf(-x));
    return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

/* Byte i of x as a float: the mantissa of 2^23 + byte. */
__device__ __forceinline__ float byte_of(uint32_t x, int i) {
    return __uint_as_float(__byte_perm(x, 0x4b000000u, 0x7440u | i)) - 0x1p23f;
}

/* The sign of kv/rotate.h. */
__host__ __device__ __forceinline__ bool rotate_negative(uint32_t channel) {
    uint32_t hash = (channel + 1) * 0x9E3779B1u;
    hash = (hash ^ hash >> 15) * 0x85EBCA77u;
    return (hash ^ hash >> 13) >> 31;
}

/* In place, by all threads of the block: Hadamard over the last dimension of x (n_rows, head_dim), row stride ld, with the
 * butterflies and the factor of kv/rotate.h in its order. */
template <int HD> __device__ __forceinline__ void hadamard(float *x, int n_rows, int ld) {
    constexpr int N = HD & -HD;
    for (int stride = 1; stride < N; stride *= 2) {
        for (int i = threadIdx.x; i < n_rows * (HD / 2); i += blockDim.x) {
            int row = i / (HD / 2), pair = i % (HD / 2);
            float *p = x + row * ld + pair / stride * 2 * stride + pair % stride;
            float a = p[0], b = p[stride];
            p[0] = a + b;
            p[stride] = a - b;
        }
        __syncthreads();
    }
}

__device__ __forceinline__ float hadamard_factor(int head_dim) {
    int n = head_dim & -head_dim; /* a power of two: 1/sqrt(n), rounded once */
    return n == 256 ? 0x1p-4f : n == 128 ? 0x1.6a09e6p-4f : n == 64 ? 0x1p-3f : n == 32 ? 0x1.6a09e6p-3f : 0x1p-2f;
}

template <int HD> __device__ __forceinline__ float hadamard_factor() {
    return hadamard_factor(HD);
}

#endif
