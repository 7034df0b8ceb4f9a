/* What products with quantized weights share, of one row (gemv.cu) and of more (linear.cu): codes as A fragments. */
#ifndef KVQ_CUDA_LINEAR_CUH
#define KVQ_CUDA_LINEAR_CUH

#include "device.cuh"
#include "kernels.h"

template <int KIND> struct kind_traits {
    static constexpr int N_CODES = KIND == W_F16 ? 4 : KIND == W_Q8 ? 2 : 1; /* 16-byte words of codes of a step and lane */
    [[maybe_unused]] static constexpr float OFFSET = KIND == W_Q8    ? 128
                                                     : KIND == W_Q4S ? 8
                                                     : KIND == W_Q6K ? 32
                                                                     : 0;            /* the code of zero */
    static constexpr bool HAS_MIN = KIND == W_Q4M || KIND == W_Q4K || KIND == W_Q5K; /* an addend per 32 columns */
};

/* The codes of fragment b as pairs of f16 subnormals; those of columns 32-63 of a 4-bit kind stay shifted up by 4. */
template <int KIND> __device__ constexpr int code_shift(int b) {
    return KIND >= W_Q4S ? 4 * (b / 2) : 0;
}

/* words: a lane's codes of the step */
template <int KIND>
__device__ __forceinline__ void fragment(const uint4 (&codes)[kind_traits<KIND>::N_CODES], uint2 high, int b,
                                         uint32_t (&a)[4]) {
    constexpr uint32_t ONES = 0x00010001u;
    const uint32_t *words = reinterpret_cast<const uint32_t *>(codes);
    constexpr int UP = 4;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        int shift = code_shift<KIND>(b);
        if constexpr (KIND == W_F16) {
            a[r] = words[4 * b + r];
        } else if constexpr (KIND == W_Q8) {
            a[r] = words[b / 2 * 4 + r] >> 8 * (b % 2) & 0xff * ONES;
        } else {
            a[r] = words[r] >> 8 * (b % 2) & (0xf * ONES) << shift;
            if constexpr (KIND == W_Q5K)
                a[r] |= (high.x >> (4 * r + b) & ONES) << (UP + shift);
            if constexpr (KIND == W_Q6K)
                a[r] |= ((r < 2 ? high.x : high.y) >> (8 * (r % 2) + 2 * b) & 3 * ONES) << (UP + shift);
        }
    }
}

__device__ __forceinline__ float half_of(uint32_t halfs, int i) {
    return __half2float(__ushort_as_half((uint16_t)(halfs >> 16 * i)));
}

/* What a quad of 16 rows consists of, in words of 16 bytes, as it lies in shared memory. */
template <int KIND> struct quad_words {
    static constexpr int CODES = QUAD * 32 * kind_traits<KIND>::N_CODES;
    static constexpr int HIGH = KIND == W_Q5K ? 32 : KIND == W_Q6K ? 64 : 0;
    static constexpr int SCALES = KIND == W_F16 ? 0 : KIND == W_Q4M ? 32 : 16;
    static constexpr int SUPER = KIND >= W_Q4K ? 4 : 0;
    static constexpr int TOTAL = CODES + HIGH + SCALES + SUPER;
};

/* Where the lanes of a warp find their parts of what 16 rows have in a quad. */
template <int KIND> struct quad_source {
    const uint4 *codes, *high, *meta;
    uint32_t n_steps; /* from here to the end of the row */
};

template <int KIND>
__device__ __forceinline__ quad_source<KIND> source_of(const matrix &m, uint32_t rb, uint32_t step, int lane) {
    typedef quad_words<KIND> words;
    size_t at = (size_t)rb * m.n_steps + step, quad = (size_t)rb * n_quads(m.n_steps) + step / QUAD;
    quad_source<KIND> from;
    from.codes = m.codes + at * (words::CODES / QUAD) + lane;
    from.high = reinterpret_cast<const uint4 *>(m.high) + at * (words::HIGH / QUAD) + lane;
    from.meta = lane < words::SCALES
                    ? reinterpret_cast<const uint4 *>(m.scales) + quad * words::SCALES + lane
                    : reinterpret_cast<const uint4 *>(m.super) + quad * words::SUPER + lane - words::SCALES;
    from.n_steps = m.n_steps - step;
    return from;
}

/* n times STEPS steps on: a quad, of halves also less. */
template <int KIND, int STEPS = QUAD>
__device__ __forceinline__ void advance(quad_source<KIND> &from, uint32_t n, int lane) {
    typedef quad_words<KIND> words;
    from.codes += n * (words::CODES / QUAD * STEPS);
    from.high += n * (words::HIGH / QUAD * STEPS);
    from.meta += n * (lane < words::SCALES ? words::SCALES : words::SUPER);
    from.n_steps -= n * STEPS;
}

/* Asks for STEPS steps. */
template <int KIND, int STEPS = QUAD>
__device__ __forceinline__ void fetch(const quad_source<KIND> &from, int lane, uint4 *to) {
    typedef quad_words<KIND> words;
    constexpr int N = kind_traits<KIND>::N_CODES;
    to += lane;
#pragma unroll
    for (int i = 0; i < STEPS * N; i++)
        if (KIND >= W_Q4K || i / N < from.n_steps)
            copy16_async(to + i * 32, from.codes + i * 32);
#pragma unroll
    for (int i = 0; i < words::HIGH / 32; i++)
        copy16_async(to + words::CODES + i * 32, from.high + i * 32);
    if (lane < words::SCALES + words::SUPER)
        copy16_async(to + words::CODES + words::HIGH, from.meta);
}

/* Row block rb of the launch: which matrix, and its row block. */
__device__ __forceinline__ uint32_t matrix_at(const linear_args &a, uint32_t &rb) {
    uint32_t i = 0;
    for (; i + 1 < a.n && rb >= (a.w[i].n_out + ROWS - 1) / ROWS; i++)
        rb -= (a.w[i].n_out + ROWS - 1) / ROWS;
    return i;
}

/* The codes of a lane in a step. */
template <int KIND>
__device__ __forceinline__ uint2 load_step(const uint4 *from, int s, int lane, uint4 (&codes)[kind_traits<KIND>::N_CODES]) {
    constexpr int N = kind_traits<KIND>::N_CODES;
#pragma unroll
    for (int i = 0; i < N; i++)
        codes[i] = from[(s * N + i) * 32 + lane];
    uint2 high = make_uint2(0, 0);
    if constexpr (KIND == W_Q5K)
        high.x = reinterpret_cast<const uint32_t *>(from + quad_words<KIND>::CODES)[s * 32 + lane];
    if constexpr (KIND == W_Q6K)
        high = reinterpret_cast<const uint2 *>(from + quad_words<KIND>::CODES)[s * 32 + lane];
    return high;
}

inline int attribute_of_device(cudaDeviceAttr attribute) {
    int value = 0;
    cudaDeviceGetAttribute(&value, attribute, 0);
    return value;
}

inline uint32_t count_blocks(const linear_args &a) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < (a.gated ? 1 : a.n); i++)
        n += (a.w[i].n_out + ROWS - 1) / ROWS;
    return n;
}

#define EVERY_KIND(CASE)                                                                                                   \
    CASE(W_F16)                                                                                                            \
    CASE(W_Q8)                                                                                                             \
    CASE(W_Q4S)                                                                                                            \
    CASE(W_Q4M)                                                                                                            \
    CASE(W_Q4K)                                                                                                            \
    CASE(W_Q5K)                                                                                                            \
    CASE(W_Q6K)

inline bool fits_shared(size_t n_bytes) {
    static const size_t most = (size_t)attribute_of_device(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    return n_bytes + 1024 <= most; /* beside what kernels hold statically */
}

void launch_gemv(const linear_args &args, cudaStream_t stream); /* one row, matrices of one kind */
bool gemv_fits(const linear_args &args);

#endif
