/*
 * Prefill attention: a block takes 128 rows (query tokens x query heads of a KV head), 16 per warp, and walks over the
 * staged tiles of a round: S = Q K^T and O += P V, rows as the A operand from registers, tiles as the B operand. A row's
 * maximum, sum and O live in registers during a round, in the output (or, if spans are split, in scratch) between rounds.
 *
 * Compiled once per head_dim (KVQ_HEAD_DIM).
 */
#include "prefill.cuh"

namespace {

/* ---- products ---- */

/* s = q . K^T; queries of wide heads do not fit the registers beside O */
__device__ __forceinline__ void multiply_keys(const query_block &q, const uint8_t *keys, int lane, float (&s)[8][4]) {
#pragma unroll
    for (int i = 0; i < 32; i++)
        s[i / 4][i % 4] = 0.0f;
    const uint8_t *row = keys + (lane / 16 * 8 + lane / 8 % 2) * 128 + lane % 8 * 16;
#pragma unroll
    for (int j = 0; j < N_J; j++) {
        uint4 a = q.get(j);
#pragma unroll
        for (int b = 0; b < 4; b++) {
            uint32_t k[4]; /* (channel / 8, token / 8) */
            load_matrices(row + (16 * j + 2 * b) * 128, k);
            mma(s[2 * b], a.x, a.y, a.z, a.w, k[0], k[2]);
            mma(s[2 * b + 1], a.x, a.y, a.z, a.w, k[1], k[3]);
        }
    }
}

/* o += p . V */
__device__ __forceinline__ void multiply_values(const uint4 (&p)[4], const uint8_t *values, int lane, float (&o)[N_C][4]) {
    const uint8_t *row = values + (lane / 16 * N_C + lane / 8 % 2) * 128 + lane % 8 * 16;
#pragma unroll
    for (int b = 0; b < 4; b++)
#pragma unroll
        for (int j = 0; j < N_J; j++) {
            uint32_t v[4]; /* (token / 8, channel / 8) */
            load_matrices(row + (2 * b * N_C + 2 * j) * 128, v);
            mma(o[2 * j], p[b].x, p[b].y, p[b].z, p[b].w, v[0], v[2]);
            mma(o[2 * j + 1], p[b].x, p[b].y, p[b].z, p[b].w, v[1], v[3]);
        }
}

/* ---- the walk over tiles ---- */

__device__ __forceinline__ void fetch(uint8_t *to, const uint8_t *from) {
#pragma unroll 4
    for (int i = threadIdx.x * 16; i < SIDE_BYTES; i += N_THREADS * 16)
        copy16_async(to + i, from + i);
    commit_async();
}

/* One buffer for keys, one for values: each is filled while the other is multiplied with. */
__global__ void __launch_bounds__(N_THREADS) prefill_kernel(const __grid_constant__ prefill_args a) {
    let_next_start();
    wait_for_previous();
    uint8_t *keys = shared_memory(), *values = keys + SIDE_BYTES;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    unit u = find_unit(a);
    row_state r = find_rows(a, u, warp, lane);
    query_block q;
    load_queries(a, u, r, lane, reinterpret_cast<uint4 *>(values + SIDE_BYTES) + warp * N_J * 32, q);
    float o[N_C][4], s[8][4];
    load_state(a, u, r, lane, o);
    if (u.first < u.end)
        fetch(keys, tile_keys(a, u, u.first));
    for (int tile = u.first; tile < u.end; tile++) {
        const uint8_t *k = tile_keys(a, u, tile);
        wait_async<0>();
        __syncthreads();
        fetch(values, k + SIDE_BYTES);
        multiply_keys(q, keys, lane, s);
        cap_and_mask(a, r, tile, lane, s);
        uint4 p[4];
        rescale(o, softmax(r, s, p));
        wait_async<0>();
        __syncthreads();
        if (tile + 1 < u.end)
            fetch(keys, tile_keys(a, u, tile + 1));
        multiply_values(p, values, lane, o);
    }
    finish(a, u, r, lane, o);
}

} // namespace

#define NAME2(name, hd) name##_##hd
#define NAME1(name, hd) NAME2(name, hd)

extern "C" cudaError_t NAME1(kvq_cuda_prefill, KVQ_HEAD_DIM)(const prefill_args *args, uint32_t n_blocks,
                                                             cudaStream_t stream) {
    size_t shared = 2 * SIDE_BYTES + query_block::SHARED_BYTES;
    cudaError_t error = cudaFuncSetAttribute(prefill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error != cudaSuccess)
        return error;
    return launch(prefill_kernel, dim3(args->n_head_kv, n_blocks, args->n_splits), N_THREADS, shared, stream, *args);
}
