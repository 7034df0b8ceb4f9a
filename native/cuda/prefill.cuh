/* Prefill attention, rows: what they are, their queries, softmax, state and outputs. A warp has 16 rows; a lane has
 * elements 8 n + lane % 4 * 2 + { 0, 1 } of rows lane / 4 and lane / 4 + 8, as tensor cores leave them: x[n][2 * (row / 8)
 * + i]. */
#ifndef KVQ_CUDA_PREFILL_CUH
#define KVQ_CUDA_PREFILL_CUH

#include "device.cuh"
#include "prefill.h"

namespace {

constexpr int HD = KVQ_HEAD_DIM, N_C = HD / 8, N_J = HD / 16, SIDE_BYTES = HD * TILE_TOKENS * 2;

/* Of a block. Without warp groups, wide heads leave registers and shared memory for half as many. */
#ifdef WARP_GROUPS
constexpr int N_ROWS = 128;
#else
constexpr int N_ROWS = HD > 128 ? 64 : 128;
#endif
constexpr int N_THREADS = 2 * N_ROWS; /* that have rows */

struct unit { /* of a block: rows of a KV head, a run of tiles of this round */
    const prefill_span *span;
    int head, head_group, first_col; /* columns: query token x query head of the KV head */
    int first, end;                  /* tiles */
    int slot;                        /* of tile 0, if it were staged */
    uint32_t split;
};

struct row_state {               /* of the two rows of a lane */
    int token[2], head[2];       /* of the span, -1: none; of all query heads */
    int first_query, last_query; /* positions, of the warp's rows */
    int query[2];
    float scale[2];       /* of q . k to base-2 logits, undoing the norm */
    float max[2], sum[2]; /* base 2; the lane's part of the sum */
};

__device__ __forceinline__ unit find_unit(const prefill_args &a) {
    unit u;
    uint32_t block = gridDim.y - 1 - blockIdx.y, i = 0; /* those that see most first */
    while (i + 1 < a.n_spans && a.spans[i + 1].first_block <= block)
        i++;
    const prefill_span &s = a.spans[i];
    u.span = &s;
    u.head = blockIdx.x;
    u.head_group = a.n_head / a.n_head_kv;
    u.first_col = (block - s.first_block) * N_ROWS;
    u.split = blockIdx.z;
    int staged = round_start(s, a.nth_round, a.n_rounds), end = round_start(s, a.nth_round + 1, a.n_rounds);
    u.slot = (int)s.slot - staged;
    int last_col = min(u.first_col + N_ROWS, (int)s.n_tokens * u.head_group) - 1;
    int first_query = s.pos + u.first_col / u.head_group, last_query = s.pos + last_col / u.head_group;
    int first_seen = a.window > 0 ? max(first_query + 1 - (int)a.window, 0) / TILE_TOKENS : 0;
    int from = max(staged, first_seen), to = min(end, last_query / TILE_TOKENS + 1), n = max(to - from, 0);
    u.first = from + n * (int)u.split / (int)a.n_splits;
    u.end = from + n * ((int)u.split + 1) / (int)a.n_splits;
    return u;
}

__device__ __forceinline__ const uint8_t *tile_keys(const prefill_args &a, const unit &u, int tile) {
    return a.staged + ((size_t)(u.slot + tile) * a.n_head_kv + u.head) * 2 * SIDE_BYTES;
}

__device__ __forceinline__ row_state find_rows(const prefill_args &a, const unit &u, int warp, int lane) {
    row_state r;
    int n_cols = u.span->n_tokens * u.head_group, first = u.first_col + 16 * warp;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int col = first + 8 * i + lane / 4;
        r.token[i] = col < n_cols ? col / u.head_group : -1;
        r.head[i] = u.head * u.head_group + col % u.head_group;
        r.query[i] = (int)u.span->pos + min(col, n_cols - 1) / u.head_group;
    }
    r.first_query = (int)u.span->pos + min(first, n_cols - 1) / u.head_group;
    r.last_query = (int)u.span->pos + min(first + 15, n_cols - 1) / u.head_group;
    return r;
}

/* ---- rotation: kv/rotate.h without its factor and signs ---- */

__device__ __forceinline__ void hadamard_rows(int lane, float (&x)[N_C][4]) {
    constexpr int N = HD & -HD;
#pragma unroll
    for (int n = 0; n < N_C; n++)
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            float a = x[n][i], b = x[n][i + 1];
            x[n][i] = a + b;
            x[n][i + 1] = a - b;
        }
#pragma unroll
    for (int k = 1; k < 4; k *= 2)
#pragma unroll
        for (int n = 0; n < N_C * 4; n++) {
            float mine = x[n / 4][n % 4], other = __shfl_xor_sync(~0u, mine, k);
            x[n / 4][n % 4] = lane & k ? other - mine : mine + other;
        }
#pragma unroll
    for (int k = 1; k < N / 8; k *= 2)
#pragma unroll
        for (int n = 0; n < N_C * 4; n++)
            if (!(n / 4 & k)) {
                float a = x[n / 4][n % 4], b = x[n / 4 + k][n % 4];
                x[n / 4][n % 4] = a + b;
                x[n / 4 + k][n % 4] = a - b;
            }
}

/* x times the sign of its channel and factor */
__device__ __forceinline__ void apply_signs(int lane, float factor, float (&x)[N_C][4]) {
#pragma unroll
    for (int n = 0; n < N_C; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            x[n][i] *= rotate_negative(8 * n + lane % 4 * 2 + i % 2) ? -factor : factor;
}

/* ---- queries ---- */

/*
 * A fragments of 16 rows: in registers, of wide heads in shared memory; there in the order of fragments (j, lane) for
 * mma.sync, for the 64 rows of a warp group as matrices (channel / 8, row / 8) of 8 x 8.
 */
struct query_block {
    static constexpr bool SHARED = HD > 128;
    uint4 mine[SHARED ? 1 : N_J];
    uint8_t *shared; /* of the warp, or of its group */

    __device__ __forceinline__ uint4 get(int j, int lane) const {
        return SHARED ? reinterpret_cast<uint4 *>(shared)[j * 32 + lane] : mine[SHARED ? 0 : j];
    }
    __device__ __forceinline__ void set(int j, int warp, int lane, uint4 x) {
        if (!SHARED) {
            mine[SHARED ? 0 : j] = x;
            return;
        }
#ifdef WARP_GROUPS
        uint32_t *to = reinterpret_cast<uint32_t *>(shared) + (16 * j + warp % 4 * 2) * 32 + lane;
        to[0] = x.x;
        to[32] = x.y;
        to[8 * 32] = x.z;
        to[9 * 32] = x.w;
#else
        reinterpret_cast<uint4 *>(shared)[j * 32 + lane] = x;
#endif
    }
    __device__ __forceinline__ void complete(int warp) {
#ifdef WARP_GROUPS
        if (SHARED)
            share_with_products(warp / 4);
#endif
    }
};

/* Each normed by its largest element. shared: of the block */
__device__ __forceinline__ void load_queries(const prefill_args &a, const unit &u, row_state &r, int warp, int lane,
                                             uint8_t *shared, query_block &q) {
    float x[N_C][4], most[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float *row = a.q + ((size_t)(u.span->row + r.token[i]) * a.n_head + r.head[i]) * HD + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < N_C; n++) {
            float2 two = r.token[i] >= 0 ? *reinterpret_cast<const float2 *>(row + 8 * n) : make_float2(0.0f, 0.0f);
            x[n][2 * i] = two.x;
            x[n][2 * i + 1] = two.y;
        }
    }
    if (a.k_rotated) {
        apply_signs(lane, hadamard_factor<HD>(), x);
        hadamard_rows(lane, x);
    }
#pragma unroll
    for (int n = 0; n < N_C * 4; n++)
        most[n % 4 / 2] = fmaxf(most[n % 4 / 2], fabsf(x[n / 4][n % 4]));
    float inverse[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        for (int k = 1; k < 4; k *= 2)
            most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], k));
        float norm = most[i] > 0.0f ? most[i] : 1.0f;
        inverse[i] = 1.0f / norm;
        r.scale[i] = norm * a.scale * LOG2E;
    }
#ifdef WARP_GROUPS
    q.shared = shared + warp / 4 * 64 * HD * 2;
#else
    q.shared = shared + warp * 16 * HD * 2;
#endif
#pragma unroll
    for (int j = 0; j < N_J; j++) {
        float (&low)[4] = x[2 * j], (&high)[4] = x[2 * j + 1];
        q.set(j, warp, lane,
              make_uint4(pack_halfs(low[0] * inverse[0], low[1] * inverse[0]),
                         pack_halfs(low[2] * inverse[1], low[3] * inverse[1]),
                         pack_halfs(high[0] * inverse[0], high[1] * inverse[0]),
                         pack_halfs(high[2] * inverse[1], high[3] * inverse[1])));
    }
    q.complete(warp);
}

/* ---- state between rounds ---- */

__device__ __forceinline__ float *state_row(const prefill_args &a, const unit &u, const row_state &r, int i) {
    if (a.n_splits == 1)
        return a.o + ((size_t)(u.span->row + r.token[i]) * a.n_head + r.head[i]) * HD;
    return a.partial + ((size_t)(u.split * a.n_rows + u.span->first_row + r.token[i]) * a.n_head + r.head[i]) * HD;
}

__device__ __forceinline__ float2 *state_max_sum(const prefill_args &a, const unit &u, const row_state &r, int i) {
    return a.max_sum + (size_t)(u.split * a.n_rows + u.span->first_row + r.token[i]) * a.n_head + r.head[i];
}

__device__ __forceinline__ void load_state(const prefill_args &a, const unit &u, row_state &r, int lane,
                                           float (&o)[N_C][4]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        bool has_state = a.nth_round > 0 && r.token[i] >= 0;
        float2 state = has_state ? *state_max_sum(a, u, r, i) : make_float2(NO_MAX, 0.0f);
        r.max[i] = state.x;
        r.sum[i] = lane % 4 == 0 ? state.y : 0.0f;
        const float *row = state_row(a, u, r, i) + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < N_C; n++) {
            float2 two = has_state ? *reinterpret_cast<const float2 *>(row + 8 * n) : make_float2(0.0f, 0.0f);
            o[n][2 * i] = two.x;
            o[n][2 * i + 1] = two.y;
        }
    }
}

/* What the output is: the sum of a row so far, with the extra logit of its head, as a factor. */
__device__ __forceinline__ float output_factor(const prefill_args &a, int head, float max, float sum) {
    float factor = add_sink(a.sink_logits, head, max, &sum);
    return factor / sum;
}

/* To the state, or, after the last round, to the output. */
__device__ __forceinline__ void finish(const prefill_args &a, const unit &u, row_state &r, int lane, float (&o)[N_C][4]) {
    bool is_last = a.nth_round + 1 == a.n_rounds;
    if (is_last && a.v_rotated) {
        hadamard_rows(lane, o);
        apply_signs(lane, hadamard_factor<HD>(), o);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        for (int k = 1; k < 4; k *= 2)
            r.sum[i] += __shfl_xor_sync(~0u, r.sum[i], k);
        if (r.token[i] < 0)
            continue;
        float factor = is_last && a.n_splits == 1 ? output_factor(a, r.head[i], r.max[i], r.sum[i]) : 1.0f;
        float *row = state_row(a, u, r, i) + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < N_C; n++)
            *reinterpret_cast<float2 *>(row + 8 * n) = make_float2(o[n][2 * i] * factor, o[n][2 * i + 1] * factor);
        if (lane % 4 == 0)
            *state_max_sum(a, u, r, i) = make_float2(r.max[i], r.sum[i]);
    }
}

/* ---- scores ---- */

/* s (n, row, i): of tokens 8 n + lane % 4 * 2 + i of the tile */
__device__ __forceinline__ void cap_and_mask(const prefill_args &a, const row_state &r, int tile, int lane,
                                             float (&s)[8][4]) {
    if (a.softcap > 0.0f) { /* and back to what scale makes base-2 logits of */
        float inverse[2] = {1.0f / r.scale[0], 1.0f / r.scale[1]};
#pragma unroll
        for (int n = 0; n < 32; n++)
            s[n / 4][n % 4] = capped(s[n / 4][n % 4] * r.scale[n % 4 / 2], a.softcap * LOG2E) * inverse[n % 4 / 2];
    }
    int pos = tile * TILE_TOKENS, window = a.window > 0 ? (int)a.window : 1 << 30;
    if (pos + TILE_TOKENS - 1 <= r.first_query && pos > r.last_query - window)
        return;
#pragma unroll
    for (int n = 0; n < 32; n++) {
        int token = pos + n / 4 * 8 + lane % 4 * 2 + n % 2, query = r.query[n % 4 / 2];
        bool seen = (token <= query) & (token > query - window);
        s[n / 4][n % 4] = seen ? s[n / 4][n % 4] : -INFINITY;
    }
}

/* s becomes the probabilities against the new maxima. Returns what earlier sums are to be multiplied by. */
__device__ __forceinline__ float2 softmax(row_state &r, float (&s)[8][4]) {
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float x = fmaxf(s[0][2 * i], s[0][2 * i + 1]);
#pragma unroll
        for (int n = 1; n < 8; n++)
            x = fmaxf(x, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
#pragma unroll
        for (int k = 1; k < 4; k *= 2)
            x = fmaxf(x, __shfl_xor_sync(~0u, x, k));
        float max = fmaxf(r.max[i], x * r.scale[i]);
        factor[i] = exp2_fast(r.max[i] - max);
        r.max[i] = max;
        r.sum[i] *= factor[i];
    }
#pragma unroll
    for (int n = 0; n < 32; n++) {
        int i = n % 4 / 2;
        s[n / 4][n % 4] = exp2_fast(s[n / 4][n % 4] * r.scale[i] - r.max[i]);
        r.sum[i] += s[n / 4][n % 4];
    }
    return make_float2(factor[0], factor[1]);
}

/* A fragments of them */
__device__ __forceinline__ void pack_rows(const float (&s)[8][4], uint4 (&p)[4]) {
#pragma unroll
    for (int b = 0; b < 4; b++) {
        const float (&low)[4] = s[2 * b], (&high)[4] = s[2 * b + 1];
        p[b] = make_uint4(pack_halfs(low[0], low[1]), pack_halfs(low[2], low[3]), pack_halfs(high[0], high[1]),
                          pack_halfs(high[2], high[3]));
    }
}

__device__ __forceinline__ void rescale(float (&o)[N_C][4], float2 factor) {
    if (!__any_sync(~0u, factor.x != 1.0f || factor.y != 1.0f)) /* maxima are rarely met late */
        return;
#pragma unroll
    for (int n = 0; n < N_C * 4; n++)
        o[n / 4][n % 4] *= n % 4 < 2 ? factor.x : factor.y;
}

} // namespace

#endif
