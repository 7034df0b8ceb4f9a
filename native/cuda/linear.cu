/*
 * Matrix products of 2 to 32 rows (tokens): y = x . w^T on tensor cores, weights dequantized to half pairs in registers.
 *
 * W is the A operand (16 rows x 16 columns), x the B operand: NT tiles of 8 tokens, as fragments of halves
 * (fragments_kernel). A block works on tiles of 128 rows, a quad (256 columns) at a time: weights and x go through stages
 * in shared memory, so that x is read from L2 once per 128 rows. Warp w: row blocks 2 (w % 4) and the next, half w / 4 of
 * the columns.
 *
 * The pairs (tile, quad) are shared out evenly: each block, one per SM, takes some that follow each other. A tile that is
 * cut is summed by the block that is done last, in the order of the columns. A block works on matrices of one kind.
 */
#include "linear.cuh"

namespace {

constexpr int N_WARPS = 8, N_THREADS = 32 * N_WARPS, WARP_BLOCKS = 2; /* row blocks of a warp */
constexpr int TILE_BLOCKS = 8, TILE_ROWS = TILE_BLOCKS * ROWS, MAX_STAGES = 5;

template <int KIND> struct chunk { /* of columns */
    static constexpr int STEPS = KIND == W_F16 ? 2 : QUAD;
    static constexpr bool HAS_ADDENDS = KIND != W_F16 && KIND != W_Q6K;
    static constexpr int WORDS = KIND == W_F16 ? quad_words<KIND>::CODES / 2 : quad_words<KIND>::TOTAL; /* of 16 rows */
};

/* ---- x ---- */

enum { STEP_WORDS = 64, SUM_WORDS = 16 }; /* of 16 bytes, of 8 tokens: fragments of a step; sums of a quad */

__host__ __device__ __forceinline__ uint32_t sums_at(uint32_t n_steps, uint32_t n_tiles) { /* they follow the fragments */
    return n_quads(n_steps) * QUAD * n_tiles * STEP_WORDS;
}

enum { FRAGMENT_THREADS = 256 };

/*
 * Blocks (token, 512 columns): RMS norm if w is given, then B fragments (step, NT, b / 2, lane) of two words for b % 2
 * each, and the sums over 32 columns as the B operand of their addends: (quad, NT, lane) { groups 2 (lane % 4) + { 0, 1 }
 * as halves, what these leave }. Each block sums the squares of the whole row anew: that is faster than another launch.
 */
__global__ void __launch_bounds__(FRAGMENT_THREADS)
    fragments_kernel(const __grid_constant__ linear_args a, uint32_t nt_total) {
    __shared__ float shared[FRAGMENT_THREADS / 32];
    let_next_start();
    uint32_t n_in = a.w[0].n_in, n_steps = a.w[0].n_steps;
    uint32_t token = blockIdx.y, k = 2 * (blockIdx.x * FRAGMENT_THREADS + threadIdx.x);
    bool has_low = k < n_in, has_high = k + 1 < n_in;
    float w_low = a.norm != NULL && has_low ? a.norm[k] : 1.0f, w_high = a.norm != NULL && has_high ? a.norm[k + 1] : 1.0f;
    wait_for_previous();
    const float *row = a.x + (size_t)token * n_in;
    float factor = 1.0f / X_UNIT;
    if (a.norm != NULL) {
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
        factor *= rsqrtf(squares / n_in + a.eps);
    }
    if (k >= n_quads(n_steps) * QUAD * STEP)
        return; /* whole warps: a step is 32 threads */
    float low = has_low ? row[k] * w_low * factor : 0.0f, high = has_high ? row[k + 1] * w_high * factor : 0.0f;
    uint32_t b = k % STEP / 16, c = k % 16, lane = token % 8 * 4 + c % 8 / 2, step = k / STEP, nt = token / 8;
    __half2 pair = __floats2half2_rn(low, high);
    size_t at = ((((size_t)step * nt_total + nt) * 2 + b / 2) * 32 + lane) * 4 + b % 2 * 2 + c / 8;
    reinterpret_cast<__half2 *>(a.fragments)[at] = pair;
    float sum = __low2float(pair) + __high2float(pair); /* 16 threads hold the 32 columns of a group */
    for (int n = 1; n < 16; n *= 2)
        sum += __shfl_xor_sync(~0u, sum, n);
    if (k % 32 != 0)
        return;
    uint32_t group = k / 32 % 8;
    __half whole = __float2half_rn(sum);
    __half *to = reinterpret_cast<__half *>(a.fragments + sums_at(n_steps, nt_total)) +
                 (((size_t)(step / QUAD) * nt_total + nt) * 32 + token % 8 * 4 + group / 2) * 4 + group % 2;
    to[0] = whole;
    to[2] = __float2half_rn(sum - __half2float(whole));
}

/* ---- products ---- */

/* Scales of group g of row lane / 4 + 8 i, of K kinds as pairs of halves; the codes of columns 32-63 are shifted up by 4.
 */
template <int KIND> __device__ __forceinline__ uint32_t integer_scale(uint32_t word, int g) {
    constexpr uint32_t ONE = 0x3c003c00u, SIXTEENTH = 0x2c002c00u; /* the byte is the mantissa of 1024 + byte */
    if (KIND == W_Q6K) {                                           /* signed: flip the sign bit and take 128 away */
        uint32_t s = permute_bytes(word ^ 0x80808080u, 0x64646464u, 0x4040u | 0x0101u * g);
        return g < 2 ? fma_halfs(s, ONE, 0xe480e480u) : fma_halfs(s, SIXTEENTH, 0xd480d480u);
    }
    uint32_t s = permute_bytes(word, 0x64646464u, 0x4040u | 0x0101u * (2 * g));
    return g == 0 ? fma_halfs(s, ONE, 0xe400e400u) : fma_halfs(s, SIXTEENTH, 0xd400d400u);
}

template <int KIND> __device__ __forceinline__ const uint32_t *scales_of(const uint4 *from) {
    return reinterpret_cast<const uint32_t *>(from + quad_words<KIND>::CODES + quad_words<KIND>::HIGH);
}

template <int KIND> __device__ __forceinline__ float2 super_of(const uint4 *from, int row) {
    return __half22float2(reinterpret_cast<const __half2 *>(scales_of<KIND>(from) + 4 * quad_words<KIND>::SCALES)[row]);
}

/* c += codes . x of a step, scaled by the integers of K kinds, times 2^-24. Such products are exact as halves (of Q6K up to
 * 2048). */
template <int KIND, int NT>
__device__ __forceinline__ void multiply_integers(const uint4 *from, int s, int lane, const uint4 (&x)[NT][2],
                                                  float (&c)[NT][4]) {
    constexpr int PER_GROUP = KIND == W_Q6K ? 1 : 2; /* fragments that share a scale */
    uint4 codes[1];
    uint2 high = load_step<KIND>(from, s, lane, codes);
    uint32_t words[2] = {scales_of<KIND>(from)[lane / 4 * 4 + s], scales_of<KIND>(from)[(lane / 4 + 8) * 4 + s]};
#pragma unroll
    for (int g = 0; g < 4 / PER_GROUP; g++) {
        uint32_t scale[2] = {integer_scale<KIND>(words[0], g), integer_scale<KIND>(words[1], g)};
#pragma unroll
        for (int b = g * PER_GROUP; b < (g + 1) * PER_GROUP; b++) {
            uint32_t f[4];
            fragment<KIND>(codes, high, b, f);
#pragma unroll
            for (int r = 0; r < 4; r++)
                if (KIND == W_Q6K) /* - 32 scale 2^-24 */
                    f[r] = fma_halfs(f[r], scale[r % 2], mul_halfs(scale[r % 2], b < 2 ? 0x80208020u : 0x82008200u));
                else
                    f[r] = mul_halfs(f[r], scale[r % 2]);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                const uint32_t *bx = reinterpret_cast<const uint32_t *>(&x[nt][b / 2]) + b % 2 * 2;
                mma(c[nt], f[0], f[1], f[2], f[3], bx[0], bx[1]);
            }
        }
    }
}

/* y += w . x of a step, but for the addends; scales come after the product, in f32. */
template <int KIND, int NT>
__device__ __forceinline__ void multiply_floats(const uint4 *from, int s, int lane, const uint4 (&x)[NT][2],
                                                float (&y)[NT][4]) {
    uint4 codes[kind_traits<KIND>::N_CODES];
    load_step<KIND>(from, s, lane, codes);
#pragma unroll
    for (int g = 0; g < 2; g++) {
        float c[NT][4] = {};
#pragma unroll
        for (int b = 2 * g; b < 2 * g + 2; b++) {
            uint32_t f[4];
            fragment<KIND>(codes, make_uint2(0, 0), b, f);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                const uint32_t *bx = reinterpret_cast<const uint32_t *>(&x[nt][b / 2]) + b % 2 * 2;
                mma(KIND == W_F16 ? y[nt] : c[nt], f[0], f[1], f[2], f[3], bx[0], bx[1]);
            }
        }
        if constexpr (KIND != W_F16) {
            float scale[2], unit = (float)(1 << 24) / (float)(1 << code_shift<KIND>(2 * g));
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int at = (lane / 4 + 8 * i) * 4 + s;
                scale[i] = unit * (KIND == W_Q4M ? half_of(scales_of<KIND>(from)[2 * at + g], 0)
                                                 : half_of(scales_of<KIND>(from)[at], g));
            }
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    y[nt][i] += c[nt][i] * scale[i / 2];
        }
    }
}

/* y += the addends of a quad times the sums of x: an addend per row and group of 32 columns, as the A operand. */
template <int KIND, int NT>
__device__ __forceinline__ void add_addends(const uint4 *from, int lane, const uint2 *sums, float (&y)[NT][4]) {
    uint32_t f[2];
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = lane / 4 + 8 * i, at = row * 4 + lane % 4;
        const uint32_t *scales = scales_of<KIND>(from);
        if constexpr (KIND == W_Q4K || KIND == W_Q5K) {
            f[i] = scales[at] >> 8 & 0x00ff00ffu;
            factor[i] = super_of<KIND>(from, row).y * -(float)(1 << 24);
        } else if constexpr (KIND == W_Q4M) {
            f[i] = permute_bytes(scales[2 * at], scales[2 * at + 1], 0x7632u);
            factor[i] = 1.0f;
        } else {
            f[i] = scales[at];
            factor[i] = -kind_traits<KIND>::OFFSET;
        }
    }
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        float c[4] = {};
        uint2 bx = sums[nt * 32 + lane];
        mma(c, f[0], f[1], f[0], f[1], bx.x, bx.y);
#pragma unroll
        for (int i = 0; i < 4; i++)
            y[nt][i] += c[i] * factor[i / 2];
    }
}

/* y += w . x of a warp's part of a chunk. from: its row blocks; x: fragments of the chunk, then sums */
template <int KIND, int NT>
__device__ __forceinline__ void multiply_chunk(const uint4 *from, const uint4 *x, uint32_t n_steps, int part, int lane,
                                               float (&y)[WARP_BLOCKS][NT][4]) {
    constexpr int STEPS = chunk<KIND>::STEPS;
    float c[WARP_BLOCKS][NT][4] = {};
#pragma unroll
    for (int i = 0; i < STEPS / 2; i++) {
        int s = part * (STEPS / 2) + i;
        if (KIND < W_Q4K && s >= n_steps)
            break;
        uint4 bx[NT][2];
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                bx[nt][h] = x[(s * NT + nt) * STEP_WORDS + h * 32 + lane];
#pragma unroll
        for (int r = 0; r < WARP_BLOCKS; r++)
            if constexpr (KIND >= W_Q4K)
                multiply_integers<KIND, NT>(from + r * chunk<KIND>::WORDS, s, lane, bx, c[r]);
            else
                multiply_floats<KIND, NT>(from + r * chunk<KIND>::WORDS, s, lane, bx, y[r]);
    }
    if constexpr (KIND >= W_Q4K)
#pragma unroll
        for (int r = 0; r < WARP_BLOCKS; r++) {
            float low = super_of<KIND>(from + r * chunk<KIND>::WORDS, lane / 4).x * (float)(1 << 24);
            float high = super_of<KIND>(from + r * chunk<KIND>::WORDS, lane / 4 + 8).x * (float)(1 << 24);
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    y[r][nt][i] += c[r][nt][i] * (i < 2 ? low : high);
        }
    if constexpr (chunk<KIND>::HAS_ADDENDS) {
        const uint2 *sums = reinterpret_cast<const uint2 *>(x + STEPS * NT * STEP_WORDS);
        static_assert(WARP_BLOCKS == 2, "a row block for each half of the columns");
        if (part == 0)
            add_addends<KIND, NT>(from, lane, sums, y[0]);
        else
            add_addends<KIND, NT>(from + chunk<KIND>::WORDS, lane, sums, y[1]);
    }
}

/* ---- what a block works on ---- */

template <int KIND> __host__ __device__ __forceinline__ uint32_t count_chunks(uint32_t n_steps) {
    return (n_steps + chunk<KIND>::STEPS - 1) / chunk<KIND>::STEPS;
}

template <int KIND, int NT> struct stage { /* in shared memory, in words of 16 bytes */
    static constexpr int WEIGHTS = TILE_BLOCKS * chunk<KIND>::WORDS;
    static constexpr int SUMS = chunk<KIND>::HAS_ADDENDS ? NT * SUM_WORDS : 0;
    static constexpr int X = chunk<KIND>::STEPS * NT * STEP_WORDS;
    static constexpr int TOTAL = WEIGHTS + X + SUMS;
};

constexpr int LD = TILE_ROWS + 4; /* of a tile of results in shared memory, (8 NT tokens, LD) */

template <int KIND, int NT> constexpr size_t shared_bytes(uint32_t n_stages) {
    return (size_t)n_stages * stage<KIND, NT>::TOTAL * 16 + 8 * NT * LD * sizeof(float);
}

/* What a block asks for, chunk after chunk: warp w the weights of row block w of the tile, all of them x. */
template <int KIND, int NT> struct walk {
    typedef stage<KIND, NT> st;
    static constexpr int STEPS = chunk<KIND>::STEPS;
    uint32_t tile, c, x_c, n_chunks; /* c: chunk of the weights, x_c: of x */
    bool is_inside;
    quad_source from;

    __device__ __forceinline__ void start(const linear_args &a, const run &r, int warp, int lane) {
        uint32_t rb = r.first + tile * TILE_BLOCKS + warp, i = 0;
        if (a.gated) { /* half of the row blocks of a tile from each matrix */
            i = warp / (TILE_BLOCKS / 2);
            rb = tile * (TILE_BLOCKS / 2) + warp % (TILE_BLOCKS / 2);
        }
        is_inside = rb < r.end;
        if (!is_inside)
            return;
        if (!a.gated)
            i = matrix_at(a, rb);
        from = source_of<KIND>(a.w[i], rb, c * STEPS, lane);
    }

    __device__ __forceinline__ void next_weights(const linear_args &a, const run &r, int warp, int lane, uint4 *to) {
        if (is_inside)
            fetch<KIND, STEPS>(from, lane, to + warp * chunk<KIND>::WORDS);
        advance<KIND, STEPS>(from, 1, lane);
        if (++c == n_chunks) {
            c = 0;
            tile++;
            start(a, r, warp, lane);
        }
    }

    __device__ __forceinline__ void next_x(const linear_args &a, uint4 *to) {
        const uint4 *x = a.fragments + x_c * st::X + threadIdx.x;
        to += st::WEIGHTS + threadIdx.x;
#pragma unroll
        for (int i = 0; i < st::X; i += N_THREADS)
            if (i + N_THREADS <= st::X || i + (int)threadIdx.x < st::X)
                copy16_async(to + i, x + i);
        if (st::SUMS > 0 && (int)threadIdx.x < st::SUMS)
            copy16_async(to + st::X, a.fragments + sums_at(a.w[0].n_steps, NT) + x_c * st::SUMS + threadIdx.x);
        x_c = x_c + 1 == n_chunks ? 0 : x_c + 1;
    }
};

__device__ __forceinline__ void wait_stages(uint32_t n_open) {
    switch (n_open) {
    case 0:
        wait_async<0>();
        break;
    case 1:
        wait_async<1>();
        break;
    case 2:
        wait_async<2>();
        break;
    default:
        wait_async<3>();
    }
}

/* First item of block b of a run. */
__device__ __forceinline__ uint32_t first_item(const run &r, uint32_t b) {
    return (uint32_t)((uint64_t)b * r.n_units / r.n_blocks);
}

/* The results of a tile in shared memory: the two halves of the columns summed. */
template <int NT>
__device__ __forceinline__ void gather_tile(const float (&y)[WARP_BLOCKS][NT][4], int warp, int lane, float *tile) {
#pragma unroll
    for (int part = 1; part >= 0; part--) {
        if (warp / 4 == part)
#pragma unroll
            for (int r = 0; r < WARP_BLOCKS; r++)
#pragma unroll
                for (int nt = 0; nt < NT; nt++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int row = (warp % 4 * WARP_BLOCKS + r) * ROWS + lane / 4 + 8 * (i / 2);
                        float *to = tile + (8 * nt + lane % 4 * 2 + i % 2) * LD + row;
                        *to = part == 1 ? y[r][nt][i] : *to + y[r][nt][i];
                    }
        __syncthreads();
    }
}

/* Of a tile that several blocks work on: adds this one's share; true for the last of them, which gets the sum. */
template <int NT>
__device__ __forceinline__ bool share_tile(const linear_args &a, const run &r, uint32_t n_chunks, uint32_t t,
                                           uint32_t n_mine, float *tile) {
    __shared__ bool is_last;
    uint32_t start = t * n_chunks;
    uint32_t first = (uint32_t)(((uint64_t)(start + 1) * r.n_blocks - 1) / r.n_units); /* block of its first item */
    auto partial = [&](uint32_t b) { /* a block has two, for the tiles at both ends of what it works on */
                                     uint32_t at = 2 * (r.first_block + b) + (first_item(r, b) / n_chunks != t);
                                     return reinterpret_cast<float *>(a.scratch + LINEAR_MAX_BLOCKS * sizeof(uint32_t)) +
                                            (size_t)at * 8 * NT * TILE_ROWS;
    };
    uint32_t *arrived = reinterpret_cast<uint32_t *>(a.scratch) + r.first_block + first;
    float *mine = partial(blockIdx.x - r.first_block);
    for (uint32_t e = threadIdx.x; e < 8 * NT * TILE_ROWS; e += N_THREADS)
        mine[e] = tile[e / TILE_ROWS * LD + e % TILE_ROWS];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(arrived, n_mine) + n_mine == n_chunks;
        if (is_last)
            *arrived = 0;
    }
    __syncthreads();
    if (!is_last)
        return false;
    __threadfence();
    float sum[8 * NT * TILE_ROWS / N_THREADS] = {};
    for (uint32_t b = first; b < r.n_blocks && first_item(r, b) < start + n_chunks; b++) {
        const float *from = partial(b);
#pragma unroll
        for (int i = 0; i < 8 * NT * TILE_ROWS / N_THREADS; i++)
            sum[i] += __ldcg(from + i * N_THREADS + threadIdx.x);
    }
#pragma unroll
    for (int i = 0; i < 8 * NT * TILE_ROWS / N_THREADS; i++)
        tile[(i * N_THREADS + threadIdx.x) / TILE_ROWS * LD + threadIdx.x % TILE_ROWS] = sum[i];
    __syncthreads();
    return true;
}

/* From shared memory to y. */
__device__ __forceinline__ void put_tile(const linear_args &a, const run &r, uint32_t t, const float *tile) {
    uint32_t n_rows = a.gated ? TILE_ROWS / 2 : TILE_ROWS, col = threadIdx.x % n_rows;
    uint32_t rb = r.first + t * (n_rows / ROWS) + col / ROWS, i = 0;
    if (rb >= r.end)
        return;
    if (!a.gated)
        i = matrix_at(a, rb);
    uint32_t row = rb * ROWS + col % ROWS, n_out = a.w[i].n_out;
    if (row >= n_out)
        return;
    float bias = a.bias[i] != NULL ? a.bias[i][row] : 0.0f;
    for (uint32_t token = threadIdx.x / n_rows; token < a.n_rows; token += N_THREADS / n_rows) {
        float *to = &a.y[i][(size_t)token * n_out + row], value = tile[token * LD + col] * X_UNIT;
        if (a.gated)
            value = activate(a.activation, value) * (tile[token * LD + col + n_rows] * X_UNIT);
        value += bias;
        *to = a.times ? activate(a.activation, value) * *to : a.add ? *to + value : value;
    }
}

template <int KIND, int NT> __device__ __forceinline__ void multiply_run(const linear_args &a, const run &r) {
    constexpr int WORDS = stage<KIND, NT>::TOTAL;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t b = blockIdx.x - r.first_block, first = first_item(r, b), end = first_item(r, b + 1), n_ahead = r.n_stages - 1;
    uint4 *stages = reinterpret_cast<uint4 *>(shared_memory());
    float *tile = reinterpret_cast<float *>(stages + r.n_stages * WORDS);
    uint32_t n_chunks = count_chunks<KIND>(a.w[0].n_steps), c = first % n_chunks, t = first / n_chunks;
    walk<KIND, NT> ahead = {t, c, c, n_chunks, false, {}};
    ahead.start(a, r, warp, lane);
    for (uint32_t i = 0; i < n_ahead && first + i < end; i++) /* weights depend on nothing */
        ahead.next_weights(a, r, warp, lane, stages + i * WORDS);
    wait_for_previous();
    for (uint32_t i = 0; i < n_ahead; i++) {
        if (first + i < end)
            ahead.next_x(a, stages + i * WORDS);
        commit_async();
    }
    float y[WARP_BLOCKS][NT][4] = {};
    uint32_t place = 0, n_mine = 0; /* chunks of the tile so far */
#pragma unroll 1
    for (uint32_t item = first; item < end; item++) {
        wait_stages(n_ahead - 1);
        __syncthreads();
        uint32_t free_place = place == 0 ? n_ahead : place - 1;
        if (item + n_ahead < end) {
            ahead.next_weights(a, r, warp, lane, stages + free_place * WORDS);
            ahead.next_x(a, stages + free_place * WORDS);
        }
        commit_async();
        const uint4 *from = stages + place * WORDS;
        multiply_chunk<KIND, NT>(from + warp % 4 * WARP_BLOCKS * chunk<KIND>::WORDS, from + stage<KIND, NT>::WEIGHTS,
                                 a.w[0].n_steps - c * chunk<KIND>::STEPS, warp / 4, lane, y);
        place = place == n_ahead ? 0 : place + 1;
        n_mine++;
        c++;
        if (c < n_chunks && item + 1 < end)
            continue;
        gather_tile<NT>(y, warp, lane, tile);
        if (n_mine == n_chunks || share_tile<NT>(a, r, n_chunks, t, n_mine, tile))
            put_tile(a, r, t, tile);
        __syncthreads();
        c = n_mine = 0;
        t++;
#pragma unroll
        for (int e = 0; e < WARP_BLOCKS * NT * 4; e++)
            y[e / (NT * 4)][e / 4 % NT][e % 4] = 0.0f;
    }
}

template <int KIND, int NT>
__global__ void __launch_bounds__(N_THREADS, 1)
    linear_kernel(const __grid_constant__ linear_args a, const __grid_constant__ runs all) {
    let_next_start();
    run r = run_of_block<KIND>(all);
    with_kind<KIND>(a.w[r.matrix].kind, [&](auto kind) { multiply_run<kind.value, NT>(a, r); });
}

/* Returns the bytes of shared memory that blocks of the run need. */
template <int KIND, int NT> size_t plan_run(const linear_args &a, run *r) {
    uint32_t tile_blocks = a.gated ? TILE_BLOCKS / 2 : TILE_BLOCKS;
    r->n_units = (r->end - r->first + tile_blocks - 1) / tile_blocks * count_chunks<KIND>(a.w[0].n_steps);
    r->unit_bytes = stage<KIND, NT>::WEIGHTS * 16;
    r->n_stages = MAX_STAGES;
    while (r->n_stages > 2 && !fits_shared(shared_bytes<KIND, NT>(r->n_stages)))
        r->n_stages--;
    return shared_bytes<KIND, NT>(r->n_stages);
}

template <int KIND, int NT>
void launch_kernel(const linear_args &args, const runs &all, uint32_t n_blocks, size_t n_shared, cudaStream_t stream) {
    cudaFuncSetAttribute(linear_kernel<KIND, NT>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)n_shared);
    launch(linear_kernel<KIND, NT>, dim3(n_blocks), N_THREADS, n_shared, stream, args, all);
}

/* Matrices of any kinds; gated ones of the same. */
template <int NT> void launch_tiles(const linear_args &args, cudaStream_t stream) {
    static const uint32_t n_sms = min((int)LINEAR_MAX_BLOCKS, attribute_of_device(cudaDevAttrMultiProcessorCount));
    runs all = find_runs(args);
    size_t n_shared = 0;
    for (uint32_t i = 0; i < all.n; i++)
        switch (args.w[all.of[i].matrix].kind) {
#define CASE(kind)                                                                                                         \
    case kind:                                                                                                             \
        n_shared = max(n_shared, plan_run<kind, NT>(args, &all.of[i]));                                                    \
        break;
            EVERY_KIND(CASE)
#undef CASE
        }
    uint32_t n_blocks = share_blocks(all, n_sms);
    switch (common_kind(args)) {
#define CASE(kind)                                                                                                         \
    case kind:                                                                                                             \
        launch_kernel<kind, NT>(args, all, n_blocks, n_shared, stream);                                                    \
        break;
        EVERY_KIND(CASE)
        CASE(ANY_KIND)
#undef CASE
    }
}

/* Rows that a launch can take: 32, less where shared memory is small. */
template <int KIND> uint32_t most_rows() {
    return fits_shared(shared_bytes<KIND, 4>(2)) ? 32 : fits_shared(shared_bytes<KIND, 2>(2)) ? 16 : 8;
}

uint32_t most_rows(const linear_args &a) {
    uint32_t most = 32;
    for (uint32_t i = 0; i < a.n; i++)
        switch (a.w[i].kind) {
#define CASE(kind)                                                                                                         \
    case kind:                                                                                                             \
        most = min(most, most_rows<kind>());                                                                               \
        break;
            EVERY_KIND(CASE)
#undef CASE
        }
    return most;
}

void launch_products(const linear_args &args, cudaStream_t stream) {
    if (args.n_rows <= 8)
        launch_tiles<1>(args, stream);
    else if (args.n_rows <= 16)
        launch_tiles<2>(args, stream);
    else
        launch_tiles<4>(args, stream);
}

/* Rows that one launch takes. */
void launch_rows(const linear_args &args, cudaStream_t stream) {
    if (gemv_fits(args)) {
        launch_gemv(args, stream);
        return;
    }
    uint32_t n_tiles = args.n_rows <= 8 ? 1 : args.n_rows <= 16 ? 2 : 4, n_in = n_quads(args.w[0].n_steps) * QUAD * STEP;
    launch(fragments_kernel, dim3((n_in / 2 + FRAGMENT_THREADS - 1) / FRAGMENT_THREADS, args.n_rows), FRAGMENT_THREADS, 0,
           stream, args, n_tiles);
    if (!args.gated || args.w[0].kind == args.w[1].kind) {
        launch_products(args, stream);
        return;
    }
    linear_args one = args; /* up, then gate times that */
    one.gated = false;
    one.n = 1;
    one.w[0] = args.w[1];
    launch_products(one, stream);
    one.w[0] = args.w[0];
    one.times = true;
    launch_products(one, stream);
}

} // namespace

size_t linear_fragments_bytes(uint32_t n_in) {
    uint32_t n_steps = (n_in + STEP - 1) / STEP;
    return (sums_at(n_steps, 4) + n_quads(n_steps) * 4 * SUM_WORDS) * sizeof(uint4);
}

void launch_linear(const linear_args &args, cudaStream_t stream) {
    uint32_t most = most_rows(args);
    for (uint32_t first = 0; first < args.n_rows; first += most) {
        linear_args part = args;
        part.n_rows = min(most, args.n_rows - first);
        part.x = args.x + (size_t)first * args.w[0].n_in;
        for (uint32_t i = 0; i < (args.gated ? 1 : args.n); i++)
            part.y[i] = args.y[i] + (size_t)first * args.w[i].n_out;
        launch_rows(part, stream);
    }
}
