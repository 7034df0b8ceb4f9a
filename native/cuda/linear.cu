/*
 * Matrix products of few rows (1 to 64 tokens): y = x . w^T on tensor cores, weights dequantized to half pairs in registers.
 *
 * W is the A operand (16 rows x 16 columns), x the B operand: 8 NT tokens. A block owns 16 rows; its eight warps take every
 * eighth step of 64 columns and are summed in shared memory. x comes as B fragments of halves, each token divided by its
 * largest element (fragments_kernel), which the epilogue multiplies back.
 *
 * It must read the weights once: bytes / 4.5 TB/s. At 4 bits it spends about 2 instructions per weight (half an AND, half a
 * shift, a subtraction and an FMA per pair), 0.45 of the issue slots of that time.
 */
#include "device.cuh"
#include "kernels.h"

namespace {

constexpr int N_WARPS = 8;
constexpr uint32_t ONES = 0x00010001u, MAGIC = 0x64006400u; /* halves 1024 + code */

__device__ __forceinline__ uint32_t code_pair(uint32_t bits) { /* two codes in the low bits of the halves -> half pair */
    uint32_t x = bits | MAGIC;
    __half2 h = __hsub2(*reinterpret_cast<__half2 *>(&x), __half2half2(__ushort_as_half(0x6400)));
    return *reinterpret_cast<uint32_t *>(&h);
}

__device__ __forceinline__ uint32_t fma_pair(uint32_t a, __half2 b, __half2 c) {
    __half2 h = __hfma2(*reinterpret_cast<__half2 *>(&a), b, c);
    return *reinterpret_cast<uint32_t *>(&h);
}

template <int KIND> struct step_data { /* what a lane loads of one step: its rows are lane / 4 and lane / 4 + 8 */
    uint4 codes[KIND == W_F16 ? 4 : KIND == W_Q8 ? 2 : 1];
    uint2 high;
    uint2 scales[2];
    __half2 super[2];
};

template <int KIND> __device__ __forceinline__ void load_step(const matrix &m, uint32_t rb, uint32_t step, int lane, step_data<KIND> &d) {
    constexpr int N = KIND == W_F16 ? 4 : KIND == W_Q8 ? 2 : 1;
    size_t at = (size_t)rb * m.n_steps + step;
#pragma unroll
    for (int i = 0; i < N; i++)
        d.codes[i] = __ldcs(&m.codes[at * 32 * N + i * 32 + lane]);
    if constexpr (KIND == W_Q5K)
        d.high.x = __ldcs(reinterpret_cast<const uint32_t *>(m.high) + at * 32 + lane);
    if constexpr (KIND == W_Q6K)
        d.high = __ldcs(reinterpret_cast<const uint2 *>(m.high) + at * 32 + lane);
    if constexpr (KIND != W_F16)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            size_t row = at * ROWS + lane / 4 + 8 * i;
            if constexpr (KIND == W_Q4M)
                d.scales[i] = reinterpret_cast<const uint2 *>(m.scales)[row];
            else
                d.scales[i].x = m.scales[row];
            if constexpr (KIND >= W_Q4K)
                d.super[i] = m.super[((size_t)rb * ((m.n_steps + 3) / 4) + step / 4) * ROWS + lane / 4 + 8 * i];
        }
}

/* Factor and addend of the codes of row i (0: lane / 4, 1: + 8) in fragment b. */
template <int KIND> __device__ __forceinline__ void scale_of(const step_data<KIND> &d, int i, int b, __half2 &factor, __half2 &addend) {
    if constexpr (KIND == W_Q4K || KIND == W_Q5K) {
        uint32_t sm = d.scales[i].x >> (b < 2 ? 0 : 16);
        float2 super = __half22float2(d.super[i]);
        factor = __float2half2_rn(super.x * (float)(sm & 0xff));
        addend = __float2half2_rn(-super.y * (float)(sm >> 8 & 0xff));
    } else if constexpr (KIND == W_Q6K) {
        float scale = __low2float(d.super[i]) * (float)(int8_t)(d.scales[i].x >> 8 * b & 0xff);
        factor = __float2half2_rn(scale);
        addend = __float2half2_rn(-32.0f * scale);
    } else if constexpr (KIND == W_Q4M) {
        uint32_t dm = b < 2 ? d.scales[i].x : d.scales[i].y;
        __half2 both = *reinterpret_cast<__half2 *>(&dm);
        factor = __low2half2(both);
        addend = __high2half2(both);
    } else {
        factor = __half2half2(__ushort_as_half((uint16_t)(d.scales[i].x >> (b < 2 ? 0 : 16))));
        addend = __hmul2(factor, __half2half2(__float2half_rn(KIND == W_Q8 ? -128.0f : -8.0f)));
    }
}

template <int KIND> __device__ __forceinline__ void fragment(const step_data<KIND> &d, int b, uint32_t (&a)[4]) {
    const uint32_t *words = reinterpret_cast<const uint32_t *>(d.codes);
    if constexpr (KIND == W_F16) {
#pragma unroll
        for (int r = 0; r < 4; r++)
            a[r] = words[4 * b + r];
        return;
    }
    __half2 factor[2], addend[2];
#pragma unroll
    for (int i = 0; i < 2; i++)
        scale_of<KIND>(d, i, b, factor[i], addend[i]);
#pragma unroll
    for (int r = 0; r < 4; r++) {
        uint32_t code;
        if constexpr (KIND == W_Q8)
            code = words[b / 2 * 4 + r] >> 8 * (b % 2) & 0xff * ONES;
        else
            code = words[r] >> 4 * b & 0xf * ONES;
        if constexpr (KIND == W_Q5K)
            code |= (d.high.x >> (4 * r + b) & ONES) << 4;
        if constexpr (KIND == W_Q6K)
            code |= ((r < 2 ? d.high.x : d.high.y) >> (8 * (r % 2) + 2 * b) & 3 * ONES) << 4;
        if constexpr (KIND == W_Q8 || KIND == W_Q4S) {
            uint32_t x = code | MAGIC; /* code - offset is exact before the product */
            __half2 h = __hsub2(*reinterpret_cast<__half2 *>(&x),
                                __half2half2(__ushort_as_half(KIND == W_Q8 ? 0x6480 : 0x6408)));
            h = __hmul2(h, factor[r % 2]);
            a[r] = *reinterpret_cast<uint32_t *>(&h);
        } else if constexpr (KIND == W_Q6K) {
            uint32_t x = code | MAGIC;
            __half2 h = __hmul2(__hsub2(*reinterpret_cast<__half2 *>(&x), __half2half2(__ushort_as_half(0x6420))), factor[r % 2]);
            a[r] = *reinterpret_cast<uint32_t *>(&h);
        } else {
            a[r] = fma_pair(code_pair(code), factor[r % 2], addend[r % 2]);
        }
    }
}

/* x: B fragments (step, NT, lane, fragment b, 2 registers) */
template <int NT> __device__ __forceinline__ void load_x(const uint4 *x, uint32_t step, int lane, int n_cols, uint4 (&q)[NT][2]) {
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        q[nt][0] = q[nt][1] = make_uint4(0, 0, 0, 0);
        if (8 * nt + lane / 4 < n_cols) {
            const uint4 *from = x + ((size_t)step * NT + nt) * 64 + lane * 2;
            q[nt][0] = __ldg(from);
            q[nt][1] = __ldg(from + 1);
        }
    }
}

template <int KIND, int NT>
__device__ __forceinline__ void multiply(const matrix &m, uint32_t rb, const uint4 *x, int n_cols, int warp, int lane, float (&c)[NT][4]) {
    constexpr int AHEAD = NT >= 4 || KIND == W_F16 ? 2 : 4; /* steps in flight */
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            c[nt][i] = 0.0f;
#pragma unroll 1
    for (uint32_t first = warp; first < m.n_steps; first += AHEAD * N_WARPS) {
        step_data<KIND> d[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (first + i * N_WARPS < m.n_steps)
                load_step<KIND>(m, rb, first + i * N_WARPS, lane, d[i]);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (first + i * N_WARPS >= m.n_steps)
                break;
            uint4 q[NT][2];
            load_x<NT>(x, first + i * N_WARPS, lane, n_cols, q);
#pragma unroll
            for (int b = 0; b < 4; b++) {
                uint32_t a[4];
                fragment<KIND>(d[i], b, a);
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
                    const uint32_t *bx = reinterpret_cast<const uint32_t *>(q[nt]) + 2 * b;
                    mma(c[nt], a[0], a[1], a[2], a[3], bx[0], bx[1]);
                }
            }
        }
    }
}

template <int NT>
__device__ __forceinline__ void multiply_any(const matrix &m, uint32_t rb, const uint4 *x, int n_cols, int warp, int lane,
                                             float (&c)[NT][4]) {
    switch (m.kind) {
    case W_F16:
        multiply<W_F16, NT>(m, rb, x, n_cols, warp, lane, c);
        break;
    case W_Q8:
        multiply<W_Q8, NT>(m, rb, x, n_cols, warp, lane, c);
        break;
    case W_Q4S:
        multiply<W_Q4S, NT>(m, rb, x, n_cols, warp, lane, c);
        break;
    case W_Q4M:
        multiply<W_Q4M, NT>(m, rb, x, n_cols, warp, lane, c);
        break;
    case W_Q4K:
        multiply<W_Q4K, NT>(m, rb, x, n_cols, warp, lane, c);
        break;
    case W_Q5K:
        multiply<W_Q5K, NT>(m, rb, x, n_cols, warp, lane, c);
        break;
    default:
        multiply<W_Q6K, NT>(m, rb, x, n_cols, warp, lane, c);
    }
}

/* Sums the warps: sums (16 rows, 8 NT columns) in shared memory. */
template <int NT> __device__ __forceinline__ void sum_warps(const float (&c)[NT][4], int warp, int lane, float *sums, float *all) {
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            all[(warp * ROWS + lane / 4 + 8 * (i / 2)) * (8 * NT + 1) + 8 * nt + lane % 4 * 2 + i % 2] = c[nt][i];
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * 8 * NT; i += blockDim.x) {
        float sum = 0.0f;
        for (int w = 0; w < N_WARPS; w++)
            sum += all[(w * ROWS + i / (8 * NT)) * (8 * NT + 1) + i % (8 * NT)];
        sums[i] = sum;
    }
    __syncthreads();
}

__device__ __forceinline__ float activate(uint32_t activation, float x) {
    if (activation == 0) /* SiLU */
        return x / (1.0f + __expf(-x));
    return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

template <int NT> __global__ void __launch_bounds__(32 * N_WARPS, NT <= 2 ? 2 : 1) linear_kernel(const __grid_constant__ linear_args a) {
    __shared__ float all[N_WARPS * ROWS * (8 * NT + 1)], sums[2][ROWS * 8 * NT];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t rb = blockIdx.x, i = 0;
    while (!a.gated && rb >= (a.w[i].n_out + ROWS - 1) / ROWS)
        rb -= (a.w[i++].n_out + ROWS - 1) / ROWS;
    for (int part = 0; part < (a.gated ? 2 : 1); part++) {
        float c[NT][4];
        multiply_any<NT>(a.w[i + part], rb, a.x, a.n_rows, warp, lane, c);
        sum_warps<NT>(c, warp, lane, sums[part], all);
    }
    uint32_t n_out = a.w[i].n_out;
    for (uint32_t e = threadIdx.x; e < ROWS * 8 * NT; e += blockDim.x) {
        uint32_t token = e / ROWS, row = rb * ROWS + e % ROWS, at = e % ROWS * 8 * NT + token;
        if (token >= a.n_rows || row >= n_out)
            continue;
        float *y = &a.y[i][(size_t)token * n_out + row], value = sums[0][at] * a.x_scale[token];
        if (a.gated)
            value = activate(a.activation, value) * (sums[1][at] * a.x_scale[token]);
        if (a.bias[i] != NULL)
            value += a.bias[i][row];
        *y = a.add ? *y + value : value;
    }
}

/* ---- x as B fragments ---- */

__device__ float block_reduce(float x, bool max, float *shared) {
    for (int k = 16; k > 0; k /= 2) {
        float y = __shfl_xor_sync(~0u, x, k);
        x = max ? fmaxf(x, y) : x + y;
    }
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = shared[threadIdx.x % (blockDim.x / 32)];
    for (int k = 16; k > 0; k /= 2) {
        float y = __shfl_xor_sync(~0u, x, k);
        x = max ? fmaxf(x, y) : x + y;
    }
    __syncthreads();
    return max ? x : x * (blockDim.x / 32) / 32.0f;
}

/* One block per token: RMS norm if w is given, then fragments. Fragment layout: (step, NT, lane, b, 2) words. */
__global__ void fragments_kernel(const float *x, const float *w, float eps, uint32_t n_in, uint32_t n_steps, uint32_t nt_total,
                                 uint4 *fragments, float *x_scale) {
    __shared__ float shared[32];
    uint32_t token = blockIdx.x;
    const float *row = x + (size_t)token * n_in;
    float squares = 0.0f, max = 0.0f;
    for (uint32_t i = threadIdx.x; i < n_in; i += blockDim.x) {
        float value = row[i];
        squares += value * value;
        max = fmaxf(max, fabsf(w != NULL ? value * w[i] : value));
    }
    float factor = w != NULL ? rsqrtf(block_reduce(squares, false, shared) / n_in + eps) : 1.0f;
    max = block_reduce(max, true, shared);
    float norm = max > 0.0f ? 1.0f / max : 0.0f;
    __half2 *out = reinterpret_cast<__half2 *>(fragments);
    for (uint32_t i = threadIdx.x; i < n_steps * STEP / 2; i += blockDim.x) {
        uint32_t k = 2 * i, step = k / STEP, b = k % STEP / 16, c = k % 16, lane = token % 8 * 4 + c % 8 / 2;
        float low = k < n_in ? row[k] : 0.0f, high = k + 1 < n_in ? row[k + 1] : 0.0f;
        if (w != NULL && k < n_in)
            low *= w[k], high *= k + 1 < n_in ? w[k + 1] : 0.0f;
        out[(((size_t)step * nt_total + token / 8) * 32 + lane) * 8 + 2 * b + c / 8] = __floats2half2_rn(low * norm, high * norm);
    }
    if (threadIdx.x == 0)
        x_scale[token] = max * factor;
}

} // namespace

void launch_fragments(const float *x, const float *w, float eps, uint32_t n_in, uint32_t n_rows, uint32_t n_tiles, uint4 *fragments,
                      float *x_scale, cudaStream_t stream) {
    fragments_kernel<<<n_rows, n_in >= 1024 ? 1024 : 256, 0, stream>>>(x, w, eps, n_in, (n_in + STEP - 1) / STEP, n_tiles, fragments,
                                                                    x_scale);
}

uint32_t linear_tiles(uint32_t n_rows) {
    return n_rows <= 8 ? 1 : n_rows <= 16 ? 2 : n_rows <= 32 ? 4 : 8;
}

void launch_linear(const linear_args &args, cudaStream_t stream) {
    uint32_t n_blocks = 0;
    for (uint32_t i = 0; i < (args.gated ? 1 : args.n); i++)
        n_blocks += (args.w[i].n_out + ROWS - 1) / ROWS;
    switch (linear_tiles(args.n_rows)) {
    case 1:
        linear_kernel<1><<<n_blocks, 32 * N_WARPS, 0, stream>>>(args);
        break;
    case 2:
        linear_kernel<2><<<n_blocks, 32 * N_WARPS, 0, stream>>>(args);
        break;
    case 4:
        linear_kernel<4><<<n_blocks, 32 * N_WARPS, 0, stream>>>(args);
        break;
    default:
        linear_kernel<8><<<n_blocks, 32 * N_WARPS, 0, stream>>>(args);
    }
}
