/*
 * Matrix times vector: y = w . x of one token, on tensor cores. It must read the weights once: bytes / 4.5 TB/s.
 *
 * A block per SM takes every n-th block of 16 rows; its eight warps share the columns, a quad (256 columns) at a time. Each
 * warp keeps a ring of quads in shared memory filled by asynchronous copies, which start before the kernel in front of this
 * one is done: weights depend on nothing. So a small matrix is on its way when its input comes.
 *
 * A kernel for each kind, and one for launches with several: there a block works on matrices of one kind, of gated ones
 * each half of its warps.
 *
 * Columns of B are groups of 32 columns of w, not tokens: the product of group g's codes with x lies in column g of C, and
 * a lane ends up with the two groups whose scales only it has to look at. 4 bits cost 1.5 instructions per weight of
 * the 4.4 there is time for.
 */
#include "linear.cuh"

namespace {

constexpr int N_WARPS = 8, N_THREADS = 32 * N_WARPS;
constexpr int N_KEPT = N_THREADS / ROWS;          /* row blocks whose sums wait for the other warps: an output per thread */
constexpr int RING_BYTES = 80 << 10, GROUPS = 16; /* of 16 columns in a quad */

/* Quads in the ring of a warp. */
__host__ __device__ constexpr int ring_depth(uint32_t kind) {
    return N_WARPS * 2 * quad_bytes(kind) > RING_BYTES ? 2 : RING_BYTES / (N_WARPS * quad_bytes(kind));
}

struct plan { /* of a launch */
    runs r;
    uint32_t ring_bytes; /* of a warp, if kinds differ */
};

/* Shared memory behind the rings. */
struct shared_parts {
    uint2 *x;    /* (n_quads, 16 fragments, 4 lanes) B fragments of 16 columns */
    float *sums; /* (n_quads, 16 fragments) of x */
    float *all;  /* (N_KEPT, N_WARPS, ROWS) */
};

size_t shared_bytes(uint32_t ring_bytes, uint32_t n_quads) {
    return (size_t)N_WARPS * ring_bytes + n_quads * GROUPS * (32 + 4) + N_KEPT * N_WARPS * ROWS * 4;
}

__device__ __forceinline__ shared_parts parts_of(uint32_t ring_bytes, uint32_t n_quads) {
    uint8_t *at = shared_memory() + N_WARPS * ring_bytes;
    shared_parts s;
    s.x = reinterpret_cast<uint2 *>(at);
    s.sums = reinterpret_cast<float *>(at + n_quads * GROUPS * 32);
    s.all = s.sums + n_quads * GROUPS;
    return s;
}

/* What a warp works on: quads first, first + stride ... of n of each row block of its block. */
struct warp_share {
    uint32_t end, step; /* row blocks */
    uint32_t first, stride, n;
    int part, lane; /* gated: half of the warps for each matrix */
};

/* The quads of a warp, row block after row block, as they are asked for. */
struct walk {
    uint32_t rb, quad;
    quad_source from;

    template <int KIND> __device__ __forceinline__ void start(const linear_args &a, const warp_share &m) {
        uint32_t local = rb, i = a.gated ? m.part : matrix_at(a, local);
        if (rb < m.end)
            from = source_of<KIND>(a.w[i], local, quad * QUAD, m.lane);
    }

    template <int KIND> __device__ __forceinline__ void next(const linear_args &a, const warp_share &m, uint4 *to) {
        if (rb < m.end) {
            fetch<KIND>(from, m.lane, to);
            quad += m.stride;
            advance<KIND>(from, m.stride, m.lane);
            if (quad >= m.n) {
                quad = m.first;
                rb += m.step;
                start<KIND>(a, m);
            }
        }
        commit_async();
    }
};

/* ---- x ---- */

__device__ __forceinline__ void load8(const float *x, uint32_t col, uint32_t n, float (&v)[8]) {
    const float4 *from = reinterpret_cast<const float4 *>(x + col); /* n is a multiple of 4 */
    float4 low = make_float4(0, 0, 0, 0), high = low;
    if (col < n)
        low = __ldcg(from);
    if (col + 4 < n)
        high = __ldcg(from + 1);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

/* 8 columns of a lane: half of a fragment. */
__device__ __forceinline__ void put8(const float (&v)[8], float factor, uint32_t quad, int lane, const shared_parts &s) {
    uint32_t *to = reinterpret_cast<uint32_t *>(s.x + (quad * GROUPS + lane / 2) * 4) + lane % 2;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        __half2 pair = __floats2half2_rn(v[2 * i] * factor, v[2 * i + 1] * factor);
        sum += __low2float(pair) + __high2float(pair);
        to[2 * i] = *reinterpret_cast<uint32_t *>(&pair);
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    if (lane % 2 == 0)
        s.sums[quad * GROUPS + lane / 2] = sum;
}

/* x into shared memory, up to N quads per warp at once. */
template <int N>
__device__ __forceinline__ void prepare_x(const linear_args &a, uint32_t n, int warp, int lane, const shared_parts &s) {
    uint32_t n_in = a.w[0].n_in;
    wait_for_previous();
#pragma unroll 1
    for (uint32_t first = warp; first < n; first += N * N_WARPS) {
        float v[N][8];
#pragma unroll
        for (int i = 0; i < N; i++)
            if (first + i * N_WARPS < n)
                load8(a.x, (first + i * N_WARPS) * 256 + lane * 8, n_in, v[i]);
#pragma unroll
        for (int i = 0; i < N; i++)
            if (first + i * N_WARPS < n)
                put8(v[i], 1.0f / X_UNIT, first + i * N_WARPS, lane, s);
    }
    __syncthreads();
}

enum { NORM_QUADS = 4 }; /* of a warp: rows of up to 8192 go through a norm here */

/* The same through an RMS norm; its weights are asked for before x is there. */
__device__ __forceinline__ void prepare_normed_x(const linear_args &a, uint32_t n, int warp, int lane,
                                                 const shared_parts &s) {
    uint32_t n_in = a.w[0].n_in;
    float w[NORM_QUADS][8], v[NORM_QUADS][8], squares = 0.0f;
#pragma unroll
    for (int i = 0; i < NORM_QUADS; i++)
        if (warp + i * N_WARPS < n)
            load8(a.norm, (warp + i * N_WARPS) * 256 + lane * 8, n_in, w[i]);
    wait_for_previous();
#pragma unroll
    for (int i = 0; i < NORM_QUADS; i++)
        if (warp + i * N_WARPS < n) {
            load8(a.x, (warp + i * N_WARPS) * 256 + lane * 8, n_in, v[i]);
#pragma unroll
            for (int k = 0; k < 8; k++)
                squares += v[i][k] * v[i][k];
        }
    for (int k = 16; k > 0; k /= 2)
        squares += __shfl_xor_sync(~0u, squares, k);
    if (lane == 0)
        s.all[warp] = squares;
    __syncthreads();
    squares = 0.0f;
    for (int k = 0; k < N_WARPS; k++)
        squares += s.all[k];
    float factor = rsqrtf(squares / n_in + a.eps) / X_UNIT;
#pragma unroll
    for (int i = 0; i < NORM_QUADS; i++)
        if (warp + i * N_WARPS < n) {
#pragma unroll
            for (int k = 0; k < 8; k++)
                v[i][k] *= w[i][k];
            put8(v[i], factor, warp + i * N_WARPS, lane, s);
        }
    __syncthreads();
}

/* ---- the product ---- */

/*
 * Products of codes and x of a quad, as integers times 2^-24: dot[i][e] of row lane / 4 + 8 i and group 2 (lane % 4) + e.
 * part: in kinds with groups of 16 columns, the first or second 8 groups. mask[s]: 1 if lane % 4 == s, else 0
 */
template <int KIND>
__device__ __forceinline__ void multiply_groups(const uint4 *from, uint32_t n_steps, const uint2 *x, int part, int lane,
                                                const float (&mask)[4], float (&dot)[2][2]) {
    constexpr int PER_GROUP = KIND == W_Q6K ? 1 : 2; /* fragments */
    uint2 bx[PER_GROUP];                             /* of column lane / 4: of that group */
#pragma unroll
    for (int i = 0; i < PER_GROUP; i++)
        bx[i] = x[((8 * part + lane / 4) * PER_GROUP + i) * 4 + lane % 4];
#pragma unroll
    for (int step = 0; step < 2 * PER_GROUP; step++) {
        int s = 2 * part + step;
        if (KIND < W_Q4K && s >= n_steps)
            break;
        uint4 codes[kind_traits<KIND>::N_CODES];
        uint2 high = load_step<KIND>(from, s, lane, codes);
#pragma unroll
        for (int g = 0; g < 4 / PER_GROUP; g++) {
            float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int i = 0; i < PER_GROUP; i++) {
                uint32_t frag[4];
                fragment<KIND>(codes, high, g * PER_GROUP + i, frag);
                mma(c, frag[0], frag[1], frag[2], frag[3], bx[i].x, bx[i].y);
            }
            int column = step * (4 / PER_GROUP) + g;
            dot[0][g % 2] += c[g % 2] * mask[column / 2];
            dot[1][g % 2] += c[2 + g % 2] * mask[column / 2];
        }
    }
}

/* y[i] += dot of row lane / 4 + 8 i, scaled */
template <int KIND>
__device__ __forceinline__ void scale_groups(const uint4 *from, const float *sums, int part, int lane,
                                             const float (&dot)[2][2], float (&y)[2]) {
    const uint32_t *scales = reinterpret_cast<const uint32_t *>(from + quad_words<KIND>::CODES + quad_words<KIND>::HIGH);
    const __half2 *super = reinterpret_cast<const __half2 *>(scales + 4 * quad_words<KIND>::SCALES);
    float sum[2];
#pragma unroll
    for (int e = 0; e < 2; e++)
        sum[e] = KIND == W_Q6K ? sums[8 * part + lane % 4 * 2 + e]
                               : sums[lane % 4 * 4 + 2 * e] + sums[lane % 4 * 4 + 2 * e + 1];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = lane / 4 + 8 * i;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            bool is_up = KIND == W_Q6K ? lane % 2 == 1 : code_shift<KIND>(2 * e) > 0;
            float value = dot[i][e] * (is_up ? (float)(1 << 20) : (float)(1 << 24));
            if constexpr (kind_traits<KIND>::OFFSET != 0)
                value -= kind_traits<KIND>::OFFSET * sum[e];
            if constexpr (KIND == W_Q4K || KIND == W_Q5K) {
                float2 d = __half22float2(super[row]);
                uint32_t word = scales[row * 4 + lane % 4];
                y[i] += value * (byte_of(word, 2 * e) * d.x);
                y[i] += sum[e] * (byte_of(word, 2 * e + 1) * -d.y);
            } else if constexpr (KIND == W_Q6K) { /* a scale is signed: flip its sign bit and take 128 away */
                float d = __low2float(super[row]);
                uint32_t word = (scales[row * 4 + 2 * part + lane % 4 / 2] >> lane % 2 * 16) ^ 0x80808080u;
                y[i] += value * ((byte_of(word, e) - 128.0f) * d);
            } else if constexpr (KIND == W_Q4M) {
                uint32_t word = scales[(row * 4 + lane % 4) * 2 + e];
                y[i] += value * half_of(word, 0) + sum[e] * half_of(word, 1);
            } else {
                y[i] += value * half_of(scales[row * 4 + lane % 4], e);
            }
        }
    }
}

/* y[i] += w . x of a quad, of row lane / 4 + 8 i; to be summed over lane % 4 */
template <int KIND>
__device__ __forceinline__ void multiply_quad(const uint4 *from, uint32_t n_steps, const uint2 *x, const float *sums,
                                              int lane, const float (&mask)[4], float (&y)[2]) {
    if constexpr (KIND == W_F16) { /* no scales: every column of B is x */
        float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int s = 0; s < QUAD; s++) {
            if (s >= n_steps)
                break;
            uint4 codes[4];
            load_step<KIND>(from, s, lane, codes);
#pragma unroll
            for (int b = 0; b < 4; b++) {
                uint2 bx = x[(s * 4 + b) * 4 + lane % 4];
                mma(c, codes[b].x, codes[b].y, codes[b].z, codes[b].w, bx.x, bx.y);
            }
        }
        y[0] += c[0] * mask[0];
        y[1] += c[2] * mask[0];
    } else {
#pragma unroll
        for (int part = 0; part < (KIND == W_Q6K ? 2 : 1); part++) {
            float dot[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
            multiply_groups<KIND>(from, n_steps, x, part, lane, mask, dot);
            scale_groups<KIND>(from, sums, part, lane, dot, y);
        }
    }
}

/* Asks for as many quads as the ring holds. */
template <int KIND>
__device__ __forceinline__ void fill_ring(const linear_args &a, const warp_share &m, uint4 *ring, walk &ahead) {
    ahead.start<KIND>(a, m);
    for (int i = 0; i < ring_depth(KIND); i++)
        ahead.next<KIND>(a, m, ring + i * quad_words<KIND>::TOTAL);
}

/* y = w . x of a row block. place: of its first quad in the ring */
template <int KIND>
__device__ __forceinline__ void multiply_rows(const linear_args &a, const warp_share &m, uint4 *ring, const shared_parts &s,
                                              const float (&mask)[4], walk &ahead, int &place, float (&y)[2]) {
    constexpr int DEPTH = ring_depth(KIND);
#pragma unroll 1
    for (uint32_t quad = m.first; quad < m.n; quad += m.stride) {
        uint4 *from = ring + place * quad_words<KIND>::TOTAL;
        wait_async<DEPTH - 1>();
        __syncwarp();
        multiply_quad<KIND>(from, a.w[0].n_steps - quad * QUAD, s.x + quad * GROUPS * 4, s.sums + quad * GROUPS, m.lane,
                            mask, y);
        __syncwarp();
        ahead.next<KIND>(a, m, from);
        place = place + 1 == DEPTH ? 0 : place + 1;
    }
}

/* ---- results ---- */

struct output { /* of a thread: row threadIdx.x % 16 of one of the row blocks whose sums are kept */
    float *to;
    float old, bias;
};

__device__ __forceinline__ output output_of(const linear_args &a, uint32_t rb, uint32_t end) {
    output out = {NULL, 0.0f, 0.0f};
    if (rb >= end)
        return out;
    uint32_t i = a.gated ? 0 : matrix_at(a, rb), row = rb * ROWS + threadIdx.x % ROWS;
    if (row >= a.w[i].n_out)
        return out;
    out.to = a.y[i] + row;
    out.old = a.add ? __ldcg(out.to) : 0.0f;
    out.bias = a.bias[i] != NULL ? a.bias[i][row] : 0.0f;
    return out;
}

/* all: (N_KEPT, N_WARPS, ROWS) */
__device__ __forceinline__ void put_output(const linear_args &a, const output &out, const float *all) {
    const float *mine = all + threadIdx.x / ROWS * N_WARPS * ROWS + threadIdx.x % ROWS;
    float half[2] = {0.0f, 0.0f};
#pragma unroll
    for (int w = 0; w < N_WARPS; w++)
        half[w / (N_WARPS / 2)] += mine[w * ROWS];
    if (out.to == NULL)
        return;
    float value = a.gated ? activate(a.activation, half[0] * X_UNIT) * (half[1] * X_UNIT) : (half[0] + half[1]) * X_UNIT;
    *out.to = value + out.bias + out.old;
}

template <int KIND>
__global__ void __launch_bounds__(N_THREADS, 2)
    gemv_kernel(const __grid_constant__ linear_args a, const __grid_constant__ plan p) {
    let_next_start();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, place = 0;
    run r = run_of_block<KIND>(p.r);
    uint32_t n = n_quads(a.w[0].n_steps), stride = a.gated ? N_WARPS / 2 : N_WARPS;
    uint32_t first_rb = r.first + blockIdx.x - r.first_block;
    warp_share m = {r.end, r.n_blocks, warp % stride, stride, n, (int)(warp / stride), lane};
    uint32_t kind = KIND != ANY_KIND ? (uint32_t)KIND : uniform(a.w[a.gated ? m.part : r.matrix].kind);
    uint32_t ring_bytes = KIND != ANY_KIND ? ring_depth(KIND) * quad_bytes(KIND) : p.ring_bytes;
    uint4 *ring = reinterpret_cast<uint4 *>(shared_memory() + warp * ring_bytes);
    shared_parts s = parts_of(ring_bytes, n);
    walk ahead = {m.first < n ? first_rb : r.end, m.first, {}};
    with_kind<KIND>(kind, [&](auto k) { fill_ring<k.value>(a, m, ring, ahead); });
    if (a.norm != NULL)
        prepare_normed_x(a, n, warp, lane, s);
    else
        prepare_x<8>(a, n, warp, lane, s);

    float mask[4];
    for (int i = 0; i < 4; i++)
        mask[i] = lane % 4 == i ? 1.0f : 0.0f;
    output out = output_of(a, first_rb + threadIdx.x / ROWS * r.n_blocks, r.end);
    uint32_t kept = 0;
#pragma unroll 1
    for (uint32_t rb = first_rb; rb < r.end; rb += r.n_blocks) {
        float y[2] = {0.0f, 0.0f};
        with_kind<KIND>(kind, [&](auto k) { multiply_rows<k.value>(a, m, ring, s, mask, ahead, place, y); });
#pragma unroll
        for (int i = 0; i < 2; i++) {
            y[i] += __shfl_xor_sync(~0u, y[i], 1);
            y[i] += __shfl_xor_sync(~0u, y[i], 2);
            if (lane % 4 == 0)
                s.all[(kept * N_WARPS + warp) * ROWS + lane / 4 + 8 * i] = y[i];
        }
        if (++kept < N_KEPT && rb + r.n_blocks < r.end)
            continue;
        __syncthreads();
        put_output(a, out, s.all);
        out = output_of(a, rb + (threadIdx.x / ROWS + 1) * r.n_blocks, r.end);
        kept = 0;
        __syncthreads();
    }
}

uint32_t ring_bytes(const linear_args &a) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < a.n; i++)
        most = max(most, ring_depth(a.w[i].kind) * quad_bytes(a.w[i].kind));
    return most;
}

template <int KIND>
void launch_kernel(const linear_args &args, const plan &p, uint32_t n_blocks, size_t n_shared, cudaStream_t stream) {
    cudaFuncSetAttribute(gemv_kernel<KIND>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)n_shared);
    launch(gemv_kernel<KIND>, dim3(n_blocks), N_THREADS, n_shared, stream, args, p);
}

} // namespace

bool gemv_fits(const linear_args &args) {
    uint32_t n = n_quads(args.w[0].n_steps);
    return args.n_rows == 1 && args.w[0].n_in % 4 == 0 && (args.norm == NULL || n <= NORM_QUADS * N_WARPS) &&
           fits_shared(shared_bytes(ring_bytes(args), n));
}

void launch_gemv(const linear_args &args, cudaStream_t stream) {
    static const uint32_t n_sms = (uint32_t)attribute_of_device(cudaDevAttrMultiProcessorCount);
    plan p = {find_runs(args), ring_bytes(args)};
    for (run &r : p.r.of) {
        r.n_units = r.end - r.first;
        r.unit_bytes = quad_bytes(args.w[r.matrix].kind);
    }
    uint32_t n_blocks = share_blocks(p.r, n_sms);
    size_t n_shared = shared_bytes(p.ring_bytes, n_quads(args.w[0].n_steps));
    switch (common_kind(args)) {
#define CASE(kind)                                                                                                         \
    case kind:                                                                                                             \
        launch_kernel<kind>(args, p, n_blocks, n_shared, stream);                                                          \
        break;
        EVERY_KIND(CASE)
        CASE(ANY_KIND)
#undef CASE
    }
}
