/* Device helpers: the GPU's instructions, the rotation of kv/rotate.h, what attention kernels share. */
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
__host__ __device__ __forceinline__ constexpr bool rotate_negative(uint32_t channel) {
    uint32_t hash = (channel + 1) * 0x9E3779B1u;
    hash = (hash ^ hash >> 15) * 0x85EBCA77u;
    return (hash ^ hash >> 13) >> 31;
}

/* Of channels 32 k .. 32 k + 31, a bit each. */
__host__ __device__ constexpr uint32_t rotate_signs_from(uint32_t first) {
    uint32_t signs = 0;
    for (uint32_t i = 0; i < 32; i++)
        signs |= (uint32_t)rotate_negative(first + i) << i;
    return signs;
}

__device__ __forceinline__ uint32_t rotate_signs(int k) { /* k < 4, known to the compiler */
    constexpr uint32_t SIGNS_0 = rotate_signs_from(0), SIGNS_1 = rotate_signs_from(32), SIGNS_2 = rotate_signs_from(64),
                       SIGNS_3 = rotate_signs_from(96);
    return k == 0 ? SIGNS_0 : k == 1 ? SIGNS_1 : k == 2 ? SIGNS_2 : SIGNS_3;
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

/* The same of one row that lies in a warp, lane + 32 i in x[i]; n: of the matrix, head_dim's power of two. */
template <int PER_LANE> __device__ __forceinline__ void hadamard_lanes(float (&x)[PER_LANE], int lane, int n) {
#pragma unroll
    for (int stride = 1; stride < 32; stride *= 2)
#pragma unroll
        for (int i = 0; stride < n && i < PER_LANE; i++) {
            float other = __shfl_xor_sync(~0u, x[i], stride);
            x[i] = lane & stride ? other - x[i] : x[i] + other;
        }
#pragma unroll
    for (int stride = 1; stride < PER_LANE; stride *= 2)
#pragma unroll
        for (int i = 0; i + stride < PER_LANE; i++)
            if (32 * stride < n && !(i & stride)) {
                float a = x[i], b = x[i + stride];
                x[i] = a + b;
                x[i + stride] = a - b;
            }
}

/* The same of a column that lies in the eight lanes with the same lane % 4, element 8 i + lane / 4 in x[i]. */
template <int N_X> __device__ __forceinline__ void hadamard_rows(float (&x)[N_X], int lane, int n) {
#pragma unroll
    for (int stride = 1; stride < 8; stride *= 2) {
        float sign = lane / 4 & stride ? -1.0f : 1.0f;
#pragma unroll
        for (int i = 0; i < N_X; i++)
            x[i] = x[i] * sign + __shfl_xor_sync(~0u, x[i], 4 * stride);
    }
#pragma unroll
    for (int stride = 1; stride < n / 8; stride *= 2)
#pragma unroll
        for (int i = 0; i < N_X; i++)
            if (!(i & stride)) {
                float first = x[i], second = x[i + stride];
                x[i] = first + second;
                x[i + stride] = first - second;
            }
}

/* ---- softmax, in base 2 ---- */

constexpr float LOG2E = 1.44269504f, NO_MAX = -1e30f;

/* cap * tanh(x / cap) */
__device__ __forceinline__ float capped(float x, float cap) {
    return cap - __fdividef(2.0f * cap, 1.0f + exp2_fast(__fdividef(2.0f * LOG2E * x, cap)));
}

/* The extra logit of a head, if there are such, joins sum (against max). Returns the factor of what else was summed. */
__device__ __forceinline__ float add_sink(const float *sink_logits, uint32_t head, float max, float *sum) {
    if (sink_logits == NULL)
        return 1.0f;
    float sink = sink_logits[head] * LOG2E, top = fmaxf(max, sink), factor = exp2_fast(max - top);
    *sum = *sum * factor + exp2_fast(sink - top);
    return factor;
}

#endif
