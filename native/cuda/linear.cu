/*
 * Matrix products of few rows (1 to 64 tokens): y = x . w^T on tensor cores, weights dequantized to half pairs in
 * registers.
 *
 * W is the A operand (16 rows x 16 columns), x the B operand: 8 NT tokens. A block owns 16 rows; its eight warps take every
 * eighth step of 64 columns and are summed in shared memory. x comes as B fragments of halves (fragments_kernel).
 *
 * It must read the weights once: bytes / 4.5 TB/s. Codes are multiplied as they are (f16 subnormals), scales come after, so
 * that 4 bits cost about 2 instructions per weight, 0.45 of the issue slots of that time.
 */
#include "device.cuh"
#include "kernels.h"

namespace {

constexpr int N_WARPS = 8;

template <int KIND> struct kind_traits {
    static constexpr int N_CODES = KIND == W_F16 ? 4 : KIND == W_Q8 ? 2 : 1; /* 16-byte words of codes of a step */
    [[maybe_unused]] static constexpr float OFFSET = KIND == W_Q8    ? 128
                                                     : KIND == W_Q4S ? 8
                                                     : KIND == W_Q6K ? 32
                                                                     : 0;            /* the code of zero */
    static constexpr bool HAS_MIN = KIND == W_Q4M || KIND == W_Q4K || KIND == W_Q5K; /* an addend per 32 columns */
};

template <int KIND> struct quad_data { /* what a lane loads of four steps: its rows are lane / 4 and lane / 4 + 8 */
    uint4 codes[QUAD][kind_traits<KIND>::N_CODES];
    uint2 high[QUAD];
    uint4 scales[2][KIND == W_Q4M ? 2 : 1]; /* per row, 4 steps */
    __half2 super[2];
};

template <int KIND>
__device__ __forceinline__ void load_quad(const matrix &m, uint32_t rb, uint32_t quad, int lane, quad_data<KIND> &d) {
    constexpr int N = kind_traits<KIND>::N_CODES, WORDS = KIND == W_Q4M ? 2 : 1;
    size_t at = (size_t)rb * m.n_steps + quad * QUAD;
    const uint4 *codes = m.codes + at * 32 * N + lane;
#pragma unroll
    for (int s = 0; s < QUAD; s++) {
        if (KIND < W_Q4K && quad * QUAD + s >= m.n_steps)
            break;
#pragma unroll
        for (int i = 0; i < N; i++)
            d.codes[s][i] = __ldcs(codes + (s * N + i) * 32);
        if constexpr (KIND == W_Q5K)
            d.high[s].x = __ldcs(reinterpret_cast<const uint32_t *>(m.high) + (at + s) * 32 + lane);
        if constexpr (KIND == W_Q6K)
            d.high[s] = __ldcs(reinterpret_cast<const uint2 *>(m.high) + (at + s) * 32 + lane);
    }
    size_t row = ((size_t)rb * n_quads(m.n_steps) + quad) * ROWS + lane / 4;
    if constexpr (KIND != W_F16)
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int w = 0; w < WORDS; w++)
                d.scales[i][w] = __ldg(reinterpret_cast<const uint4 *>(m.scales) + (row + 8 * i) * WORDS + w);
            if constexpr (KIND >= W_Q4K)
                d.super[i] = __ldg(m.super + row + 8 * i);
        }
}

/* The codes of fragment b as pairs of f16 subnormals; those of columns 32-63 of a 4-bit kind stay shifted up by 4. */
template <int KIND> __device__ constexpr int code_shift(int b) {
    return KIND >= W_Q4S ? 4 * (b / 2) : 0;
}

template <int KIND> __device__ __forceinline__ void fragment(const quad_data<KIND> &d, int s, int b, uint32_t (&a)[4]) {
    constexpr uint32_t ONES = 0x00010001u;
    const uint32_t *words = reinterpret_cast<const uint32_t *>(d.codes[s]);
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
                a[r] |= (d.high[s].x >> (4 * r + b) & ONES) << (UP + shift);
            if constexpr (KIND == W_Q6K)
                a[r] |= ((r < 2 ? d.high[s].x : d.high[s].y) >> (8 * (r % 2) + 2 * b) & 3 * ONES) << (UP + shift);
        }
    }
}

__device__ __forceinline__ float half_of(uint32_t halfs, int i) {
    return __half2float(__ushort_as_half((uint16_t)(halfs >> 16 * i)));
}

/* Byte i of x, times d: the byte becomes the mantissa of a float 2^23 + byte. d_offset = -2^23 d */
__device__ __forceinline__ float scaled_byte(uint32_t x, int i, float d, float d_offset) {
    return fmaf(__uint_as_float(__byte_perm(x, 0x4b000000u, 0x7440u | i)), d, d_offset);
}

/* Factor and addend of row i (0: lane / 4, 1: + 8) in group g of 32 columns (of 16 for Q6K), for codes as f16 subnormals.
 */
template <int KIND> __device__ __forceinline__ float2 scale_of(const quad_data<KIND> &d, int s, int i, int g) {
    const uint32_t *words = reinterpret_cast<const uint32_t *>(d.scales[i]);
    float unit = (float)(1 << 24) / (float)(1 << code_shift<KIND>(KIND == W_Q6K ? g : 2 * g));
    if constexpr (KIND == W_Q4K || KIND == W_Q5K) {
        float2 super = __half22float2(d.super[i]);
        float factor = super.x * unit;
        return make_float2(scaled_byte(words[s], 2 * g, factor, -0x1p23f * factor),
                           scaled_byte(words[s], 2 * g + 1, -super.y, 0x1p23f * super.y));
    } else if constexpr (KIND == W_Q6K) {
        float factor = __low2float(d.super[i]) * unit; /* the scale is signed: flip its sign bit and take 128 away */
        float byte = scaled_byte(words[s] ^ 0x80808080u, g, factor, -0x1p23f * factor); /* each step is exact */
        return make_float2(byte - 128.0f * factor, 0.0f);
    } else if constexpr (KIND == W_Q4M) {
        return make_float2(half_of(words[2 * s + g], 0) * unit, half_of(words[2 * s + g], 1));
    } else {
        return make_float2(half_of(words[s], g) * unit, 0.0f);
    }
}

/* What the columns of x bring to a step: B fragments (b, 2 registers); sums over 16 columns of tokens 2 (lane % 4) + { 0, 1
 * }. */
template <int NT> struct step_x {
    uint4 q[NT][2];
    float2 sums[NT][4];
};

template <int KIND, int NT>
__device__ __forceinline__ void load_x(const linear_args &a, uint32_t step, int lane, step_x<NT> &x) {
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        x.q[nt][0] = x.q[nt][1] = make_uint4(0, 0, 0, 0);
        if (8 * nt + lane / 4 < a.n_rows) {
            const uint4 *from = a.x + ((size_t)step * NT + nt) * 64 + lane * 2;
            x.q[nt][0] = __ldg(from);
            x.q[nt][1] = __ldg(from + 1);
        }
        if constexpr (KIND != W_F16) {
            const float4 *sums = reinterpret_cast<const float4 *>(a.x_sums) + (((size_t)step * NT + nt) * 4 + lane % 4) * 2;
            float4 low = __ldg(sums), high = __ldg(sums + 1);
            x.sums[nt][0] = make_float2(low.x, low.y);
            x.sums[nt][1] = make_float2(low.z, low.w);
            x.sums[nt][2] = make_float2(high.x, high.y);
            x.sums[nt][3] = make_float2(high.z, high.w);
        }
    }
}

/*
 * y += w . x of one step. The codes are multiplied as integers (times 2^-24), from what their offset takes away on; their
 * scale comes after, in f32: 4 FMAs per group of 32 columns, and 4 for the addend of those kinds that have one.
 */
template <int KIND, int NT>
__device__ __forceinline__ void multiply_step(const quad_data<KIND> &d, int s, const step_x<NT> &x, float (&y)[NT][4]) {
    constexpr int PER_GROUP = KIND == W_Q6K ? 1 : 2; /* fragments that share a scale */
    if constexpr (KIND == W_F16) {
#pragma unroll
        for (int b = 0; b < 4; b++) {
            uint32_t a[4];
            fragment<KIND>(d, s, b, a);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                const uint32_t *bx = reinterpret_cast<const uint32_t *>(x.q[nt]) + 2 * b;
                mma(y[nt], a[0], a[1], a[2], a[3], bx[0], bx[1]);
            }
        }
    } else {
#pragma unroll
        for (int g = 0; g < 4 / PER_GROUP; g++) {
            float c[NT][4];
            float2 sum[NT];
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                float start = -kind_traits<KIND>::OFFSET / (float)(1 << 24) * (float)(1 << code_shift<KIND>(g * PER_GROUP));
                sum[nt] = x.sums[nt][g * PER_GROUP];
                if constexpr (PER_GROUP == 2)
                    sum[nt] = make_float2(sum[nt].x + x.sums[nt][2 * g + 1].x, sum[nt].y + x.sums[nt][2 * g + 1].y);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    c[nt][i] = kind_traits<KIND>::OFFSET == 0 ? 0.0f : start * (i % 2 == 0 ? sum[nt].x : sum[nt].y);
            }
#pragma unroll
            for (int b = g * PER_GROUP; b < (g + 1) * PER_GROUP; b++) {
                uint32_t a[4];
                fragment<KIND>(d, s, b, a);
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
                    const uint32_t *bx = reinterpret_cast<const uint32_t *>(x.q[nt]) + 2 * b;
                    mma(c[nt], a[0], a[1], a[2], a[3], bx[0], bx[1]);
                }
            }
            float2 low = scale_of<KIND>(d, s, 0, g), high = scale_of<KIND>(d, s, 1, g);
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float2 scale = i < 2 ? low : high;
                    y[nt][i] += c[nt][i] * scale.x;
                    if constexpr (kind_traits<KIND>::HAS_MIN)
                        y[nt][i] += (i % 2 == 0 ? sum[nt].x : sum[nt].y) * scale.y;
                }
        }
    }
}

/* Rows of block rb: this warp takes quads warp, warp + n_warps, ... The first weights are asked for before x is there: they
 * depend on nothing. */
template <int KIND, int NT>
__device__ __forceinline__ void multiply(const linear_args &a, const matrix &m, uint32_t rb, int warp, int n_warps,
                                         int lane, float (&y)[NT][4]) {
    constexpr int AHEAD = NT >= 4 || KIND == W_F16 || KIND == W_Q8 ? 1 : 2; /* quads in flight */
    uint32_t n = n_quads(m.n_steps);
    quad_data<KIND> d[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        if (warp + i * n_warps < n)
            load_quad<KIND>(m, rb, warp + i * n_warps, lane, d[i]);
    wait_for_previous();
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            y[nt][i] = 0.0f;
#pragma unroll 1
    for (uint32_t first = warp; first < n; first += AHEAD * n_warps) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            uint32_t quad = first + i * n_warps;
            if (quad >= n)
                break;
            constexpr int X = NT == 1 ? 2 : 1; /* steps of x in flight */
            step_x<NT> x[X];
            load_x<KIND, NT>(a, quad * QUAD, lane, x[0]);
#pragma unroll
            for (int s = 0; s < QUAD; s++) {
                if (KIND < W_Q4K && quad * QUAD + s >= m.n_steps) /* rows of K kinds are whole quads */
                    break;
                if (X == 2 && s + 1 < QUAD && (KIND >= W_Q4K || quad * QUAD + s + 1 < m.n_steps))
                    load_x<KIND, NT>(a, quad * QUAD + s + 1, lane, x[(s + 1) % X]);
                multiply_step<KIND, NT>(d[i], s, x[s % X], y);
                if (X == 1 && s + 1 < QUAD && (KIND >= W_Q4K || quad * QUAD + s + 1 < m.n_steps))
                    load_x<KIND, NT>(a, quad * QUAD + s + 1, lane, x[0]);
            }
            if (quad + AHEAD * n_warps < n)
                load_quad<KIND>(m, rb, quad + AHEAD * n_warps, lane, d[i]);
        }
    }
}

/* Sums the warps, or each half of them: sums (n_parts, 16 rows, 8 NT columns) in shared memory. */
template <int NT>
__device__ __forceinline__ void sum_warps(const float (&c)[NT][4], int warp, int lane, int n_parts, float *sums,
                                          float *all) {
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            all[(warp * ROWS + lane / 4 + 8 * (i / 2)) * (8 * NT + 1) + 8 * nt + lane % 4 * 2 + i % 2] = c[nt][i];
    __syncthreads();
    int n_warps = N_WARPS / n_parts;
    for (int i = threadIdx.x; i < n_parts * ROWS * 8 * NT; i += blockDim.x) {
        int part = i / (ROWS * 8 * NT), at = i % (ROWS * 8 * NT);
        float sum = 0.0f;
        for (int w = part * n_warps; w < (part + 1) * n_warps; w++)
            sum += all[(w * ROWS + at / (8 * NT)) * (8 * NT + 1) + at % (8 * NT)];
        sums[i] = sum;
    }
    __syncthreads();
}

template <int KIND, int NT>
__global__ void __launch_bounds__(32 * N_WARPS, NT <= 2 ? 2 : 1) linear_kernel(const __grid_constant__ linear_args a) {
    __shared__ float all[N_WARPS * ROWS * (8 * NT + 1)], sums[2 * ROWS * 8 * NT];
    let_next_start();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t rb = blockIdx.x, i = 0;
    while (!a.gated && rb >= (a.w[i].n_out + ROWS - 1) / ROWS)
        rb -= (a.w[i++].n_out + ROWS - 1) / ROWS;
    int n_parts = a.gated ? 2 : 1, n_warps = N_WARPS / n_parts; /* gated: half of the warps for each matrix */
    float y[NT][4];
    multiply<KIND, NT>(a, a.w[i + warp / n_warps], rb, warp % n_warps, n_warps, lane, y);
    sum_warps<NT>(y, warp, lane, n_parts, sums, all);
    uint32_t n_out = a.w[i].n_out;
    for (uint32_t e = threadIdx.x; e < ROWS * 8 * NT; e += blockDim.x) {
        uint32_t token = e / ROWS, row = rb * ROWS + e % ROWS, at = e % ROWS * 8 * NT + token;
        if (token >= a.n_rows || row >= n_out)
            continue;
        float *to = &a.y[i][(size_t)token * n_out + row], value = sums[at] * X_UNIT;
        if (a.gated)
            value = activate(a.activation, value) * (sums[ROWS * 8 * NT + at] * X_UNIT);
        if (a.bias[i] != NULL)
            value += a.bias[i][row];
        *to = a.times ? activate(a.activation, value) * *to : a.add ? *to + value : value;
    }
}

/* ---- x as B fragments ---- */

enum { FRAGMENT_THREADS = 256 };

/*
 * Blocks (token, 512 columns): RMS norm if w is given, then B fragments (step, NT, lane, b, 2 registers) and their sums
 * over 16 columns (step, NT, lane % 4, b, 2 tokens). Each block sums the squares of the whole row anew: that is faster than
 * another launch.
 */
__global__ void __launch_bounds__(FRAGMENT_THREADS)
    fragments_kernel(const float *x, const float *w, float eps, uint32_t n_in, uint32_t n_steps, uint32_t nt_total,
                     uint4 *fragments, float *x_sums) {
    __shared__ float shared[FRAGMENT_THREADS / 32];
    let_next_start();
    uint32_t token = blockIdx.y, i = blockIdx.x * FRAGMENT_THREADS + threadIdx.x, k = 2 * i;
    bool has_low = k < n_in, has_high = k + 1 < n_in;
    float w_low = w != NULL && has_low ? w[k] : 1.0f, w_high = w != NULL && has_high ? w[k + 1] : 1.0f;
    wait_for_previous();
    const float *row = x + (size_t)token * n_in;
    float factor = 1.0f / X_UNIT;
    if (w != NULL) {
        float squares = 0.0f;
        const float4 *row4 = reinterpret_cast<const float4 *>(row); /* rows of normed activations are whole quadruples */
#pragma unroll 4
        for (uint32_t n = threadIdx.x; n < n_in / 4; n += FRAGMENT_THREADS) {
            float4 v = row4[n];
            squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
        for (int n = 16; n > 0; n /= 2)
            squares += __shfl_xor_sync(~0u, squares, n);
        if (threadIdx.x % 32 == 0)
            shared[threadIdx.x / 32] = squares;
        __syncthreads();
        squares = 0.0f;
        for (int n = 0; n < FRAGMENT_THREADS / 32; n++)
            squares += shared[n];
        factor *= rsqrtf(squares / n_in + eps);
    }
    if (k >= n_steps * STEP)
        return; /* whole warps: a step is 32 threads */
    float low = has_low ? row[k] * w_low * factor : 0.0f, high = has_high ? row[k + 1] * w_high * factor : 0.0f;
    uint32_t b = k % STEP / 16, c = k % 16, lane = token % 8 * 4 + c % 8 / 2;
    __half2 pair = __floats2half2_rn(low, high);
    size_t tile = (size_t)(k / STEP) * nt_total + token / 8;
    reinterpret_cast<__half2 *>(fragments)[(tile * 32 + lane) * 8 + 2 * b + c / 8] = pair;
    float sum = __low2float(pair) + __high2float(pair); /* 8 threads hold the 16 columns of a fragment */
    for (int n = 1; n < 8; n *= 2)
        sum += __shfl_xor_sync(~0u, sum, n);
    if (c == 0)
        x_sums[((tile * 4 + token % 8 / 2) * 4 + b) * 2 + token % 2] = sum;
}

} // namespace

void launch_fragments(const float *x, const float *w, float eps, uint32_t n_in, uint32_t n_rows, uint32_t n_tiles,
                      uint4 *fragments, float *x_sums, cudaStream_t stream) {
    uint32_t n_steps = (n_in + STEP - 1) / STEP;
    dim3 grid((n_steps * STEP / 2 + FRAGMENT_THREADS - 1) / FRAGMENT_THREADS, n_rows);
    launch(fragments_kernel, grid, FRAGMENT_THREADS, 0, stream, x, w, eps, n_in, n_steps, n_tiles, fragments, x_sums);
}

uint32_t linear_tiles(uint32_t n_rows) {
    return n_rows <= 8 ? 1 : n_rows <= 16 ? 2 : n_rows <= 32 ? 4 : 8;
}

template <int KIND> static void launch_kind(const linear_args &args, uint32_t n_blocks, cudaStream_t stream) {
    switch (linear_tiles(args.n_rows)) {
    case 1:
        launch(linear_kernel<KIND, 1>, dim3(n_blocks), 32 * N_WARPS, 0, stream, args);
        break;
    case 2:
        launch(linear_kernel<KIND, 2>, dim3(n_blocks), 32 * N_WARPS, 0, stream, args);
        break;
    case 4:
        launch(linear_kernel<KIND, 4>, dim3(n_blocks), 32 * N_WARPS, 0, stream, args);
        break;
    default:
        launch(linear_kernel<KIND, 8>, dim3(n_blocks), 32 * N_WARPS, 0, stream, args);
    }
}

void launch_linear(const linear_args &args, cudaStream_t stream) {
    uint32_t n_blocks = 0;
    for (uint32_t i = 0; i < (args.gated ? 1 : args.n); i++)
        n_blocks += (args.w[i].n_out + ROWS - 1) / ROWS;
    switch (args.w[0].kind) {
#define CASE(kind)                                                                                                         \
    case kind:                                                                                                             \
        launch_kind<kind>(args, n_blocks, stream);                                                                         \
        break
        CASE(W_F16);
        CASE(W_Q8);
        CASE(W_Q4S);
        CASE(W_Q4M);
        CASE(W_Q4K);
        CASE(W_Q5K);
        CASE(W_Q6K);
    }
}
