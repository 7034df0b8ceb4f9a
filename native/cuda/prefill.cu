/*
 * Prefill attention: a block takes 128 rows (query tokens x query heads of a KV head), 16 per warp, and walks over the
 * staged tiles of a round: S = Q K^T and O += P V, rows as the A operand from registers, tiles as the B operand. A row's
 * maximum, sum and O live in registers during a round, in the output (or, if spans are split, in scratch) between rounds.
 *
 * There are two kernels of one name: for compute capability 9.0a, and for all others.
 *
 * Compiled once per head_dim (KVQ_HEAD_DIM).
 */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && KVQ_HEAD_DIM >= 64
#define WARP_GROUPS
#include "wgmma.cuh"
#endif
#include "prefill.cuh"

namespace {

/* With warp groups: one more, of which a thread copies, and a ring of tiles and its barriers; queries of wide heads are
 * behind it. */
constexpr int GROUP_THREADS = 3 * 128, N_STAGES = HD > 128 ? 2 : 4, RING_BYTES = N_STAGES * (2 * SIDE_BYTES + 32);

#ifdef WARP_GROUPS

/* Stages of keys and of values, each with a barrier for "full" and one for "free". */
struct ring {
    uint8_t *tiles; /* (stage, { K, V }) */
    uint64_t *full, *empty;

    __device__ __forceinline__ uint8_t *at(int i, int side) const {
        return tiles + (i % N_STAGES * 2 + side) * SIDE_BYTES;
    }
    __device__ __forceinline__ void fill(int i, int side, const uint8_t *from) const {
        int n = i % N_STAGES * 2 + side;
        if (i >= N_STAGES)
            barrier_wait(&empty[n], i / N_STAGES - 1 & 1);
        copy_bulk(at(i, side), from + side * SIDE_BYTES, SIDE_BYTES, &full[n]);
    }
    __device__ __forceinline__ void wait(int i, int side) const {
        barrier_wait(&full[i % N_STAGES * 2 + side], i / N_STAGES & 1);
    }
    __device__ __forceinline__ void release(int i, int side, int lane) const {
        if (lane == 0)
            barrier_arrive(&empty[i % N_STAGES * 2 + side]);
    }
};

/* s = q . K^T, under way */
__device__ __forceinline__ void begin_keys(const query_block &q, const uint8_t *keys, float (&s)[8][4]) {
    keep_order(s);
    products_begin();
    uint64_t k = matrix_descriptor(keys, 8 * 128, 128), shared = matrix_descriptor(q.shared, 8 * 128, 128);
#pragma unroll
    for (int j = 0; j < N_J; j++)
        if (query_block::SHARED)
            warpgroup_mma(s, shared + j * (16 * 128 >> 4), k + j * (16 * 128 >> 4), j > 0);
        else
            warpgroup_mma(s, q.mine[query_block::SHARED ? 0 : j], k + j * (16 * 128 >> 4), j > 0);
    products_commit();
    keep_order(s);
}

/* o += p . V, under way */
__device__ __forceinline__ void begin_values(const uint4 (&p)[4], const uint8_t *values, float (&o)[N_C][4]) {
    keep_order(o);
    products_begin();
    uint64_t v = matrix_descriptor(values, N_C * 128, 128);
#pragma unroll
    for (int b = 0; b < 4; b++)
        warpgroup_mma(o, p[b], v + b * (2 * N_C * 128 >> 4), true);
    products_commit();
    keep_order(o);
}

/* The scores of a tile are under way while the tile before it is mixed, its softmax while that still goes on. */
__device__ __forceinline__ void walk(const prefill_args &a, const unit &u, row_state &r, const query_block &q,
                                     const ring &tiles, int lane, float (&o)[N_C][4]) {
    float s[8][4];
    uint4 p[4];
    int n = u.end - u.first;
    tiles.wait(0, 0);
    begin_keys(q, tiles.at(0, 0), s);
    products_wait<0>();
    keep_order(s);
    tiles.release(0, 0, lane);
    cap_and_mask(a, r, u.first, lane, s);
    rescale(o, softmax(r, s));
    pack_rows(s, p);
    if (n > 1)
        tiles.wait(1, 0);
    for (int i = 1; i < n; i++) {
        keep_order(p);
        begin_keys(q, tiles.at(i, 0), s);
        tiles.wait(i - 1, 1);
        begin_values(p, tiles.at(i - 1, 1), o);
        products_wait<1>();
        keep_order(s);
        tiles.release(i, 0, lane);
        cap_and_mask(a, r, u.first + i, lane, s);
        float2 factor = softmax(r, s);
        keep_order(s);
        /* Here, and as if it depended on all exponentials: the assembler must neither move these behind the wait for
         * products nor that in front of them. */
        if (i + 1 < n && !(r.sum[0] + r.sum[1] < 0.0f))
            tiles.wait(i + 1, 0);
        products_wait<0>();
        keep_order(o);
        keep_order(s);
        tiles.release(i - 1, 1, lane);
        rescale(o, factor);
        pack_rows(s, p);
    }
    tiles.wait(n - 1, 1);
    begin_values(p, tiles.at(n - 1, 1), o);
    products_wait<0>();
    keep_order(o);
}

__global__ void __launch_bounds__(GROUP_THREADS, 1) prefill_kernel(const __grid_constant__ prefill_args a) {
    let_next_start();
    uint8_t *memory = shared_memory();
    uint64_t *barriers = reinterpret_cast<uint64_t *>(memory + N_STAGES * 2 * SIDE_BYTES);
    ring tiles = {memory, barriers, barriers + 2 * N_STAGES};
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x < 2 * N_STAGES) {
        barrier_init(&tiles.full[threadIdx.x], 1);
        barrier_init(&tiles.empty[threadIdx.x], N_THREADS / 32);
    }
    barrier_init_done();
    __syncthreads();
    wait_for_previous();
    unit u = find_unit(a);
    if (warp >= N_THREADS / 32) {
        give_registers();
        for (int i = 0; i < u.end - u.first && threadIdx.x == N_THREADS; i++) {
            const uint8_t *tile = tile_keys(a, u, u.first + i);
            tiles.fill(i, 0, tile);
            tiles.fill(i, 1, tile);
        }
        return;
    }
    take_registers();
    row_state r = find_rows(a, u, warp, lane);
    query_block q;
    load_queries(a, u, r, warp, lane, memory + RING_BYTES, q);
    keep_order(q.mine);
    float o[N_C][4];
    load_state(a, u, r, lane, o);
    if (u.first < u.end)
        walk(a, u, r, q, tiles, lane, o);
    finish(a, u, r, lane, o);
}

#else

/* ---- products ---- */

/* s = q . K^T */
__device__ __forceinline__ void multiply_keys(const query_block &q, const uint8_t *keys, int lane, float (&s)[8][4]) {
#pragma unroll
    for (int i = 0; i < 32; i++)
        s[i / 4][i % 4] = 0.0f;
    const uint8_t *row = keys + (lane / 16 * 8 + lane / 8 % 2) * 128 + lane % 8 * 16;
#pragma unroll
    for (int j = 0; j < N_J; j++) {
        uint4 a = q.get(j, lane);
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
    load_queries(a, u, r, warp, lane, values + SIDE_BYTES, q);
    float o[N_C][4], s[8][4];
    load_state(a, u, r, lane, o);
    if (u.first < u.end)
        fetch(keys, tile_keys(a, u, u.first));
    for (int tile = u.first; tile < u.end; tile++) {
        wait_async<0>();
        __syncthreads();
        fetch(values, tile_keys(a, u, tile) + SIDE_BYTES);
        multiply_keys(q, keys, lane, s);
        cap_and_mask(a, r, tile, lane, s);
        rescale(o, softmax(r, s));
        uint4 p[4];
        pack_rows(s, p);
        wait_async<0>();
        __syncthreads();
        if (tile + 1 < u.end)
            fetch(keys, tile_keys(a, u, tile + 1));
        multiply_values(p, values, lane, o);
    }
    finish(a, u, r, lane, o);
}

#endif

} // namespace

#define NAME2(name, hd) name##_##hd
#define NAME1(name, hd) NAME2(name, hd)

/* Which of the two kernels has this GPU? */
static cudaError_t find_kernel(bool *has_groups) {
    cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, prefill_kernel);
    *has_groups = attributes.maxThreadsPerBlock == GROUP_THREADS;
    return error;
}

extern "C" cudaError_t NAME1(kvq_cuda_prefill_rows, KVQ_HEAD_DIM)(uint32_t *n_rows) {
    bool has_groups;
    cudaError_t error = find_kernel(&has_groups);
    *n_rows = has_groups ? 128 : N_ROWS;
    return error;
}

extern "C" cudaError_t NAME1(kvq_cuda_prefill, KVQ_HEAD_DIM)(const prefill_args *args, uint32_t n_blocks,
                                                             cudaStream_t stream) {
    bool has_groups;
    cudaError_t error = find_kernel(&has_groups);
    size_t n_rows = has_groups ? 128 : N_ROWS, shared = has_groups ? RING_BYTES : 2 * SIDE_BYTES;
    shared += query_block::SHARED ? n_rows * HD * sizeof(__half) : 0;
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(prefill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error != cudaSuccess)
        return error;
    return launch(prefill_kernel, dim3(args->n_head_kv, n_blocks, args->n_splits), has_groups ? GROUP_THREADS : N_THREADS,
                  shared, stream, *args);
}
