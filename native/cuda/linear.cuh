/* What products with quantized weights share, of one row (gemv.cu) and of more (linear.cu): codes as A fragments. */
#ifndef KVQ_CUDA_LINEAR_CUH
#define KVQ_CUDA_LINEAR_CUH

#include <type_traits>

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
    static_assert(TOTAL * 16 == quad_bytes(KIND), "what matrices consist of");
};

/* Where the lanes of a warp find their parts of what 16 rows have in a quad. */
struct quad_source {
    const uint4 *codes, *high, *meta;
    uint32_t n_steps; /* from here to the end of the row */
};

template <int KIND>
__device__ __forceinline__ quad_source source_of(const matrix &m, uint32_t rb, uint32_t step, int lane) {
    typedef quad_words<KIND> words;
    size_t at = (size_t)rb * m.n_steps + step, quad = (size_t)rb * n_quads(m.n_steps) + step / QUAD;
    quad_source from;
    from.codes = m.codes + at * (words::CODES / QUAD) + lane;
    from.high = reinterpret_cast<const uint4 *>(m.high) + at * (words::HIGH / QUAD) + lane;
    from.meta = lane < words::SCALES
                    ? reinterpret_cast<const uint4 *>(m.scales) + quad * words::SCALES + lane
                    : reinterpret_cast<const uint4 *>(m.super) + quad * words::SUPER + lane - words::SCALES;
    from.n_steps = m.n_steps - step;
    return from;
}

/* n times STEPS steps on: a quad, of halves also less. */
template <int KIND, int STEPS = QUAD> __device__ __forceinline__ void advance(quad_source &from, uint32_t n, int lane) {
    typedef quad_words<KIND> words;
    from.codes += n * (words::CODES / QUAD * STEPS);
    from.high += n * (words::HIGH / QUAD * STEPS);
    from.meta += n * (lane < words::SCALES ? words::SCALES : words::SUPER);
    from.n_steps -= n * STEPS;
}

/* Asks for STEPS steps. */
template <int KIND, int STEPS = QUAD> __device__ __forceinline__ void fetch(const quad_source &from, int lane, uint4 *to) {
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

#define EVERY_KIND(CASE)                                                                                                   \
    CASE(W_F16)                                                                                                            \
    CASE(W_Q8)                                                                                                             \
    CASE(W_Q4S)                                                                                                            \
    CASE(W_Q4M)                                                                                                            \
    CASE(W_Q4K)                                                                                                            \
    CASE(W_Q5K)                                                                                                            \
    CASE(W_Q6K)

/* f(kind as a constant). KIND: that of all matrices of a launch, ANY_KIND if they differ. */
enum { ANY_KIND = -1 };

template <int KIND, typename F> __device__ __forceinline__ void with_kind(uint32_t kind, const F &f) {
    if constexpr (KIND != ANY_KIND) {
        f(std::integral_constant<int, KIND>());
    } else {
        switch (kind) {
#define CASE(kind)                                                                                                         \
    case kind:                                                                                                             \
        f(std::integral_constant<int, kind>());                                                                            \
        break;
            EVERY_KIND(CASE)
#undef CASE
        }
    }
}

/*
 * Matrices of one kind that follow each other are a run, which has blocks of its own: so one launch takes matrices of
 * several kinds. Gated matrices are one run.
 */
struct run {
    uint32_t matrix, first, end;  /* its first matrix; row blocks of the launch */
    uint32_t n_units, unit_bytes; /* what its blocks share */
    uint32_t first_block, n_blocks;
    uint32_t n_stages; /* of linear.cu, in shared memory */
};

struct runs {
    run of[3];
    uint32_t n;
};

/* Of this block. */
template <int KIND> __device__ __forceinline__ run run_of_block(const runs &r) {
    if (KIND != ANY_KIND) /* there is one */
        return {0, 0, r.of[0].end, r.of[0].n_units, 0, 0, gridDim.x, r.of[0].n_stages};
    uint32_t i = 0;
    while (i + 1 < r.n && blockIdx.x >= r.of[i + 1].first_block)
        i++;
    return r.of[i];
}

inline runs find_runs(const linear_args &a) {
    runs r = {};
    uint32_t end = 0;
    for (uint32_t i = 0; i < (a.gated ? 1 : a.n); i++) {
        if (i == 0 || a.w[i].kind != a.w[i - 1].kind)
            r.of[r.n++] = {i, end};
        end += (a.w[i].n_out + ROWS - 1) / ROWS;
        r.of[r.n - 1].end = end;
    }
    return r;
}

/* Gives each run some of n_blocks, the next one always to the run that takes longest. Returns how many have work. */
inline uint32_t share_blocks(runs &r, uint32_t n_blocks) {
    uint32_t n = r.n;
    for (uint32_t i = 0; i < r.n; i++)
        r.of[i].n_blocks = 1;
    for (; n < n_blocks; n++) {
        run *longest = NULL;
        uint64_t most = 0;
        for (uint32_t i = 0; i < r.n; i++) {
            run &one = r.of[i];
            uint64_t n_bytes = (uint64_t)((one.n_units + one.n_blocks - 1) / one.n_blocks) * one.unit_bytes;
            if (one.n_blocks < one.n_units && n_bytes > most) {
                longest = &one;
                most = n_bytes;
            }
        }
        if (longest == NULL)
            break;
        longest->n_blocks++;
    }
    for (uint32_t i = 1; i < r.n; i++)
        r.of[i].first_block = r.of[i - 1].first_block + r.of[i - 1].n_blocks;
    return n;
}

inline int common_kind(const linear_args &a) { /* or ANY_KIND */
    for (uint32_t i = 1; i < a.n; i++)
        if (a.w[i].kind != a.w[0].kind)
            return ANY_KIND;
    return (int)a.w[0].kind;
}

inline bool fits_shared(size_t n_bytes) {
    static const size_t most = (size_t)attribute_of_device(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    return n_bytes + 1024 <= most; /* beside what kernels hold statically */
}

void launch_gemv(const linear_args &args, cudaStream_t stream); /* one row */
bool gemv_fits(const linear_args &args);

#endif
