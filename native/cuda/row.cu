/* Operations on rows of activations: norms, gathers, caps, and keys and values on their way into f16 pages. */
#include "device.cuh"
#include "kernels.h"
#include "tile.h"

namespace {

__device__ float sum_of_block(float x, float *shared) {
    for (int k = 16; k > 0; k /= 2)
        x += __shfl_xor_sync(~0u, x, k);
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < (int)blockDim.x / 32; i++)
        sum += shared[i];
    return sum;
}

__global__ void norm_kernel(const float *x, const float *w, float eps, uint32_t n, bool add, float *y) {
    __shared__ float shared[32];
    let_next_start();
    wait_for_previous();
    const float *row = x + (size_t)blockIdx.x * n;
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        squares += row[i] * row[i];
    float factor = rsqrtf(sum_of_block(squares, shared) / n + eps);
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        float *to = &y[(size_t)blockIdx.x * n + i], value = row[i] * factor * w[i];
        *to = add ? *to + value : value;
    }
}

/* The first of the eight columns in 16 bytes of expanded rows: they are column + { 0, 1, 8, 9, 16, 17, 24, 25 }. */
__device__ __forceinline__ uint32_t first_column(uint32_t eight) {
    return eight / 4 * 32 + eight % 4 * 2;
}

/* A block per row, of whole pairs; of whole quadruples if there is a norm. */
__global__ void halfs_kernel(const float *x, const float *w, float eps, uint32_t n, __half *halfs) {
    __shared__ float shared[32];
    let_next_start();
    wait_for_previous();
    const float *row = x + (size_t)blockIdx.x * n;
    float factor = 1.0f / X_UNIT;
    if (w != NULL) {
        const float4 *row4 = reinterpret_cast<const float4 *>(row);
        float squares = 0.0f;
#pragma unroll 4
        for (uint32_t i = threadIdx.x; i < n / 4; i += blockDim.x) {
            float4 v = row4[i];
            squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
        factor *= rsqrtf(sum_of_block(squares, shared) / n + eps);
    }
    const float2 *pairs = reinterpret_cast<const float2 *>(row), *w_pairs = reinterpret_cast<const float2 *>(w);
    uint4 *to = reinterpret_cast<uint4 *>(halfs + (size_t)blockIdx.x * round_step(n));
#pragma unroll 2
    for (uint32_t i = threadIdx.x; i < round_step(n) / 8; i += blockDim.x) {
        uint32_t out[4];
#pragma unroll
        for (uint32_t p = 0; p < 4; p++) {
            uint32_t pair = first_column(i) / 2 + 4 * p;
            float2 v = pair < n / 2 ? pairs[pair] : make_float2(0.0f, 0.0f);
            float2 by = w != NULL && pair < n / 2 ? w_pairs[pair] : make_float2(1.0f, 1.0f);
            out[p] = pack_halfs(v.x * factor * by.x, v.y * factor * by.y);
        }
        to[i] = make_uint4(out[0], out[1], out[2], out[3]);
    }
}

/* A thread per 16 bytes of halfs. */
__global__ void gate_kernel(const __half *gate, const __half *up, uint32_t activation, uint32_t n, uint32_t n_rows,
                            __half *halfs) {
    let_next_start();
    wait_for_previous();
    uint32_t i = blockIdx.y * blockDim.x + threadIdx.x, width = round_step(n);
    if (i >= width / 8)
        return;
    size_t row = (size_t)blockIdx.x * width;
    uint32_t out[4];
#pragma unroll
    for (uint32_t p = 0; p < 4; p++) {
        uint32_t col = first_column(i) + 8 * p;
        float2 g = __half22float2(*reinterpret_cast<const __half2 *>(gate + row + col));
        float2 u = __half22float2(*reinterpret_cast<const __half2 *>(up + row + col));
        out[p] = pack_halfs(col < n ? activate(activation, g.x * X_UNIT) * u.x : 0.0f,
                            col + 1 < n ? activate(activation, g.y * X_UNIT) * u.y : 0.0f);
    }
    reinterpret_cast<uint4 *>(halfs + row)[i] = make_uint4(out[0], out[1], out[2], out[3]);
}

__global__ void floats_kernel(const __half *halfs, uint32_t n, float *y) {
    let_next_start();
    wait_for_previous();
    uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < n)
        y[(size_t)blockIdx.x * n + i] =
            X_UNIT * __half2float(halfs[(size_t)blockIdx.x * round_step(n) + i / STEP * STEP + expanded_place(i % STEP)]);
}

__global__ void bias_kernel(const float *bias, uint32_t n, bool add, float *y) {
    let_next_start();
    wait_for_previous();
    uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < n)
        y[(size_t)blockIdx.x * n + i] = bias[i] + (add ? y[(size_t)blockIdx.x * n + i] : 0.0f);
}

/* rows ascend and row i of y comes from a row >= i of x, so y may be x if rows are moved one after the other */
__global__ void gather_kernel(const float *x, uint32_t n, const uint32_t *rows, uint32_t n_rows, float *y) {
    let_next_start();
    wait_for_previous();
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    for (uint32_t r = 0; i < n && r < n_rows; r++)
        y[(size_t)r * n + i] = x[(size_t)rows[r] * n + i];
}

__global__ void softcap_kernel(float cap, size_t n, float *x) {
    let_next_start();
    wait_for_previous();
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        x[i] = cap * tanhf(x[i] / cap);
}

enum { STORE_WARPS = 4 };

/* One warp per (token, head): query heads, then key heads, then value heads. */
__global__ void store_kernel(const __grid_constant__ store_args a) {
    __shared__ float heads[STORE_WARPS][256];
    let_next_start();
    wait_for_previous();
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.y, hd = a.head_dim;
    uint32_t head = blockIdx.x * STORE_WARPS + warp, n_kv = a.n_head_kv;
    if (head >= a.n_head + 2 * n_kv)
        return;
    bool is_q = head < a.n_head, is_k = !is_q && head < a.n_head + n_kv;
    uint32_t kv_head = is_q ? 0 : (head - a.n_head) % n_kv;
    float *from = is_q ? a.q + ((size_t)row * a.n_head + head) * hd
                       : const_cast<float *>(is_k ? a.k : a.v) + ((size_t)row * n_kv + kv_head) * hd;
    const float *norm = is_q ? a.q_norm : is_k ? a.k_norm : NULL;
    float *x = heads[warp], squares = 0.0f;
    for (uint32_t d = lane; d < hd; d += 32) {
        x[d] = from[d];
        squares += x[d] * x[d];
    }
    if (norm != NULL) {
        for (int k = 16; k > 0; k /= 2)
            squares += __shfl_xor_sync(~0u, squares, k);
        float factor = rsqrtf(squares / hd + a.norm_eps);
        for (uint32_t d = lane; d < hd; d += 32)
            x[d] *= factor * norm[d];
    }
    __syncwarp();
    uint32_t pos = a.positions[row], half = a.n_rot / 2;
    for (uint32_t i = lane; (is_q || is_k) && i < half; i += 32) {
        float angle = (float)pos * a.inv_freq[i], sine, cosine;
        sincosf(angle, &sine, &cosine);
        sine *= a.magnitude;
        cosine *= a.magnitude;
        uint32_t first = a.interleaved ? 2 * i : i, second = a.interleaved ? 2 * i + 1 : i + half;
        float u = x[first], v = x[second];
        x[first] = u * cosine - v * sine;
        x[second] = u * sine + v * cosine;
    }
    __syncwarp();
    if (is_q) {
        for (uint32_t d = lane; d < hd; d += 32)
            from[d] = x[d];
        return;
    }
    __half *tile = a.raw + ((size_t)a.pages[row] * n_kv + kv_head) * 2 * TILE_TOKENS * hd + (is_k ? 0 : TILE_TOKENS * hd);
    uint32_t n_bad = 0;
    for (uint32_t d = lane; d < hd; d += 32) {
        float value = x[d];
        bool good = fabsf(value) <= 65504.0f;
        n_bad += !good;
        if (!good) /* NaN becomes 0, what is too large the largest */
            value = value > 0.0f ? 65504.0f : value < 0.0f ? -65504.0f : 0.0f;
        tile[place_half(is_k, hd, pos % TILE_TOKENS, d)] = __float2half_rn(value);
    }
    if (n_bad > 0)
        atomicAdd(a.n_bad, n_bad);
}

} // namespace

void launch_norm(const float *x, const float *w, float eps, uint32_t n, uint32_t n_rows, bool add, float *y,
                 cudaStream_t stream) {
    launch(norm_kernel, dim3(n_rows), n >= 1024 ? 1024 : 256, 0, stream, x, w, eps, n, add, y);
}

void launch_halfs(const float *x, const float *w, float eps, uint32_t n, uint32_t n_rows, __half *halfs,
                  cudaStream_t stream) {
    launch(halfs_kernel, dim3(n_rows), 256, 0, stream, x, w, eps, n, halfs);
}

void launch_gate(const __half *gate, const __half *up, uint32_t activation, uint32_t n, uint32_t n_rows, __half *halfs,
                 cudaStream_t stream) {
    launch(gate_kernel, dim3(n_rows, (n + 2047) / 2048), 256, 0, stream, gate, up, activation, n, n_rows, halfs);
}

void launch_floats(const __half *halfs, uint32_t n, uint32_t n_rows, float *y, cudaStream_t stream) {
    launch(floats_kernel, dim3(n_rows, (n + 255) / 256), 256, 0, stream, halfs, n, y);
}

void launch_bias(const float *bias, uint32_t n, uint32_t n_rows, bool add, float *y, cudaStream_t stream) {
    launch(bias_kernel, dim3(n_rows, (n + 255) / 256), 256, 0, stream, bias, n, add, y);
}

void launch_gather(const float *x, uint32_t n, const uint32_t *rows, uint32_t n_rows, float *y, cudaStream_t stream) {
    launch(gather_kernel, dim3((n + 255) / 256), 256, 0, stream, x, n, rows, n_rows, y);
}

void launch_softcap(float cap, size_t n, float *x, cudaStream_t stream) {
    launch(softcap_kernel, dim3((unsigned)((n + 255) / 256)), 256, 0, stream, cap, n, x);
}

void launch_store(const store_args &args, uint32_t n_rows, cudaStream_t stream) {
    uint32_t n_heads = args.n_head + 2 * args.n_head_kv;
    launch(store_kernel, dim3((n_heads + STORE_WARPS - 1) / STORE_WARPS, n_rows), 32 * STORE_WARPS, 0, stream, args);
}
