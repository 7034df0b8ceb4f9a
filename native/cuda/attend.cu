/*
 * Decode attention: one launch for sinks, encoded body and tail of all sequences. A block takes a unit (a run of tiles of
 * one KV head), its four warps take every fourth tile, each through its own ring of asynchronous copies in shared memory;
 * they are merged, and the last block of an output merges the units.
 *
 * Compiled once per head_dim (KVQ_HEAD_DIM), so that the compilations run side by side.
 */
#include "levels.cuh"
#include "tiers.cuh"

namespace {

constexpr int HD = KVQ_HEAD_DIM, N_J = HD / 16, N_WARPS = 4, LD = HD + 4 /* of float rows, free of bank conflicts */;
constexpr float LOG2E = 1.44269504f, NO_MAX = -1e30f;

template <int NT> struct unit_state {
    const attend_args *a;
    attend_unit u;
    column_block<HD, NT> *cols;
    uint8_t *ring; /* of this warp */
    float *bias;   /* (n_pairs, { C, S }, columns) of kv/key_bias.h, as base-2 logits */
    int warp, lane, head_group;
};

/* ---- columns ---- */

/* Queries of the unit: rotated if the tiles are, normed by their largest element, as B fragments. x: (columns, LD) */
template <int NT>
__device__ void prepare_columns(const attend_args &a, const attend_unit &u, int head_group, float *x,
                                column_block<HD, NT> *cols) {
    constexpr int N_COLS = 8 * NT, PER_WARP = N_COLS / N_WARPS, PER_LANE = (HD + 31) / 32;
    bool rotate = u.coded && a.k.rotated;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float values[PER_WARP][PER_LANE]; /* all loads in flight at once */
#pragma unroll
    for (int i = 0; i < PER_WARP; i++) {
        int c = u.first_col + warp + i * N_WARPS, token = c / head_group;
        const float *q = a.q + ((size_t)(u.row + token) * a.n_head + u.head * head_group + (c - token * head_group)) * HD;
#pragma unroll
        for (int n = 0; n < PER_LANE; n++)
            values[i][n] = warp + i * N_WARPS < (int)u.n_cols && lane + 32 * n < HD ? q[lane + 32 * n] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < PER_WARP; i++)
#pragma unroll
        for (int n = 0; n < PER_LANE; n++) {
            int d = lane + 32 * n;
            if (d < HD)
                x[(warp + i * N_WARPS) * LD + d] = rotate && rotate_negative(d) ? -values[i][n] : values[i][n];
        }
    __syncthreads();
    if (rotate)
        hadamard<HD>(x, N_COLS, LD);
    for (int col = warp; col < N_COLS; col += N_WARPS) {
        float max = 0.0f;
        for (int d = lane; d < HD; d += 32)
            max = fmaxf(max, fabsf(x[col * LD + d]));
        for (int k = 16; k > 0; k /= 2)
            max = fmaxf(max, __shfl_xor_sync(~0u, max, k));
        float norm = max > 0.0f ? max : 1.0f;
        for (int d = lane; d < HD; d += 32)
            x[col * LD + d] = __half2float(__float2half_rn(x[col * LD + d] / norm));
        if (lane == 0)
            cols->scale[col] = norm * (rotate ? hadamard_factor<HD>() : 1.0f) * a.scale * LOG2E;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < N_J * NT * 32; i += blockDim.x) {
        int j = i / (NT * 32), nt = i / 32 % NT, l = i % 32;
        const float *row = x + (8 * nt + l / 4) * LD + 16 * j + l % 4 * 2;
        cols->q[j][nt][l] = make_uint2(pack_halfs(row[0], row[1]), pack_halfs(row[8], row[9]));
    }
    for (int i = threadIdx.x; u.coded && a.k.offset > 0 && i < (HD + 31) / 32 * N_COLS; i += blockDim.x) {
        int g = i / N_COLS, col = i % N_COLS;
        float sum = 0.0f;
        for (int d = 32 * g; d < 32 * g + 32 && d < HD; d++)
            sum += x[col * LD + d];
        cols->q_sum[g][col] = sum;
    }
    __syncthreads();
}

/* ---- the key bias of encoded tiles ---- */

template <int NT> __device__ void prepare_bias(const unit_state<NT> &w) {
    constexpr int N_COLS = 8 * NT;
    const attend_args &a = *w.a;
    for (uint32_t i = threadIdx.x; i < a.bias.n_pairs * N_COLS; i += blockDim.x) {
        uint32_t pair = i / N_COLS, col = i % N_COLS, at = w.u.head * a.bias.n_pairs + pair;
        float C = 0.0f, S = 0.0f;
        if (col < w.u.n_cols) {
            uint32_t c = w.u.first_col + col, row = w.u.row + c / w.head_group,
                     head = w.u.head * w.head_group + c % w.head_group;
            const float *q = a.q + ((size_t)row * a.n_head + head) * HD;
            float q_c = q[a.bias.c[at]], q_s = q[a.bias.s[at]], factor = a.scale * LOG2E;
            C = (q_c * a.bias.b_c[at] + q_s * a.bias.b_s[at]) * factor;
            S = (q_s * a.bias.b_c[at] - q_c * a.bias.b_s[at]) * factor;
        }
        w.bias[2 * pair * N_COLS + col] = C;
        w.bias[(2 * pair + 1) * N_COLS + col] = S;
    }
    __syncthreads();
}

/* s += A cos(f t) + B sin(f t); pos: of the first token of the step */
template <int NT, int NB>
__device__ __forceinline__ void add_bias(const unit_state<NT> &w, int pos, float (&s)[NB][NT][4]) {
    constexpr int N_COLS = 8 * NT;
    const bias_tables &bias = w.a->bias;
    const float *turn = bias.turn + ((size_t)w.u.head * bias.n_tiles + pos / TILE_TOKENS) * 2 * bias.n_pairs;
    const float *cos_wave = bias.wave + (size_t)w.u.head * 2 * bias.n_pairs * TILE_TOKENS + pos % TILE_TOKENS + w.lane / 4;
    const float *sin_wave = cos_wave + bias.n_pairs * TILE_TOKENS;
#pragma unroll 1
    for (uint32_t i = 0; i < bias.n_pairs; i++) {
        float cos_start = __ldg(&turn[i]), sin_start = __ldg(&turn[bias.n_pairs + i]);
#pragma unroll
        for (int n = 0; n < 2 * NT; n++) {
            int col = 8 * (n / 2) + w.lane % 4 * 2 + n % 2;
            float C = w.bias[2 * i * N_COLS + col], S = w.bias[(2 * i + 1) * N_COLS + col];
            float A = C * cos_start + S * sin_start, B = S * cos_start - C * sin_start;
#pragma unroll
            for (int b = 0; b < NB; b++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int t = 16 * b + 8 * half;
                    s[b][n / 2][n % 2 + 2 * half] += A * __ldg(&cos_wave[i * TILE_TOKENS + t]) +
                                                     B * __ldg(&sin_wave[i * TILE_TOKENS + t]);
                }
        }
    }
}

/* ---- one step of a warp: NB blocks of 16 tokens ---- */

/* cap * tanh(x / cap) */
__device__ __forceinline__ float capped(float x, float cap) {
    return cap - __fdividef(2.0f * cap, 1.0f + exp2_fast(__fdividef(2.0f * LOG2E * x, cap)));
}

/* Key bias and cap, then mask what a column does not see. pos: of the first token of the step */
template <int NT, int NB>
__device__ __forceinline__ void cap_and_mask(const unit_state<NT> &w, int pos, float (&s)[NB][NT][4]) {
    const attend_args &a = *w.a;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        float2 scale = *reinterpret_cast<const float2 *>(&w.cols->scale[8 * nt + w.lane % 4 * 2]);
#pragma unroll
        for (int b = 0; b < NB; b++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[b][nt][i] *= i & 1 ? scale.y : scale.x;
    }
#ifndef KVQ_ONLY_K /* few models have a key bias: its instructions are not counted */
    if (a.bias.n_pairs > 0 && w.u.coded)
        add_bias<NT, NB>(w, pos, s);
#endif
    if (a.softcap > 0.0f)
#pragma unroll
        for (int b = 0; b < NB; b++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    s[b][nt][i] = capped(s[b][nt][i], a.softcap * LOG2E);
    int first_query = w.u.pos + w.u.first_col / w.head_group;
    int last_query = w.u.pos + (w.u.first_col + w.u.n_cols - 1) / w.head_group;
    bool all_seen = pos + 16 * NB - 1 <= first_query && (a.window == 0 || pos > last_query - (int)a.window);
    if (all_seen)
        return;
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            int query = w.u.pos + (w.u.first_col + 8 * nt + w.lane % 4 * 2 + c) / w.head_group;
#pragma unroll
            for (int b = 0; b < NB; b++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int token = pos + 16 * b + w.lane / 4 + 8 * half;
                    bool seen = token <= query && (a.window == 0 || token > query - (int)a.window);
                    s[b][nt][c + 2 * half] = seen ? s[b][nt][c + 2 * half] : -INFINITY;
                }
        }
}

#define SCORE_CHANNEL(bits, groups, token)                                                                                 \
    score_channel<HD, NT, NB, bits, groups, token>(codes, meta, b0, w.cols, w.lane, s)

#define SCORE_LEVELS(type) score_levels<HD, NT, NB, type>(codes, meta, b0, w.cols, opaque(w.lane), s)

template <int NT, int NB>
__device__ __forceinline__ void score(const unit_state<NT> &w, uint32_t path, const uint8_t *codes, const uint8_t *meta,
                                      int b0, float (&s)[NB][NT][4]) {
    if constexpr (NB == 2) { /* 8 bits against 8 bits */
        if (path == PATH_FP8)
            SCORE_LEVELS(E4M3);
        else
            score_token<HD, NT, NB, 8, 32, 128>(codes, meta, b0, w.cols, w.lane, s);
        return;
    }
    switch (path) {
    case PATH_CHANNEL_2:
        SCORE_CHANNEL(2, 2, false);
        break;
    case PATH_CHANNEL_4:
        SCORE_CHANNEL(4, 2, false);
        break;
    case PATH_CHANNEL_2_G64:
        SCORE_CHANNEL(2, 1, false);
        break;
    case PATH_NORMED_2:
        SCORE_CHANNEL(2, 1, true);
        break;
    case PATH_NORMED_3:
        SCORE_CHANNEL(3, 1, true);
        break;
    case PATH_NORMED_4:
        SCORE_CHANNEL(4, 1, true);
        break;
    case PATH_TOKEN_4:
        score_token<HD, NT, NB, 4, 32, 8>(codes, meta, b0, w.cols, w.lane, s);
        break;
    case PATH_TURBO_2:
        SCORE_LEVELS(TURBO_2);
        break;
    case PATH_TURBO_3:
        SCORE_LEVELS(TURBO_3);
        break;
    case PATH_TURBO_4:
        SCORE_LEVELS(TURBO_4);
        break;
    case PATH_NVFP4:
        SCORE_LEVELS(E2M1);
        break;
    case PATH_TIER_2:
        if constexpr (HD % 64 == 0)
            score_tiers<HD, NT, NB, 2>(codes, meta, b0, w.cols, opaque(w.lane), s);
        break;
    case PATH_TIER_3:
        if constexpr (HD % 64 == 0)
            score_tiers<HD, NT, NB, 3>(codes, meta, b0, w.cols, opaque(w.lane), s);
        break;
    default:
        if constexpr (NB == 1) {
            if (path == PATH_F16)
                score_f16<HD, NT, NB>(codes, w.cols, w.lane, s);
            else if (path == PATH_FP8)
                SCORE_LEVELS(E4M3);
            else
                score_token<HD, NT, NB, 8, 32, 128>(codes, meta, b0, w.cols, w.lane, s);
        }
    }
}

#define MIX_TOKEN(bits, g, zero, channel) mix_token<HD, NT, NB, bits, g, zero, channel>(codes, meta, b0, p, w.lane, out)
#define MIX_LEVELS(type)                  mix_levels<HD, NT, NB, type>(codes, meta, b0, p, opaque(w.lane), out)

template <int NT, int NB>
__device__ __forceinline__ void mix(const unit_state<NT> &w, uint32_t path, const uint8_t *codes, const uint8_t *meta,
                                    int b0, uint2 keep, const uint32_t (&p)[NB][NT][2], output_block<HD, NT> &out) {
    if constexpr (NB == 2) {
        if (path == PATH_FP8)
            MIX_LEVELS(E4M3);
        else
            MIX_TOKEN(8, 32, false, false);
        return;
    }
    switch (path) {
    case PATH_AFFINE_2:
        MIX_TOKEN(2, 32, true, false);
        break;
    case PATH_AFFINE_4:
        MIX_TOKEN(4, 32, true, false);
        break;
    case PATH_AFFINE_2_G64:
        MIX_TOKEN(2, 64, true, false);
        break;
    case PATH_NORMED_2:
        MIX_TOKEN(2, 256, true, true);
        break;
    case PATH_NORMED_3:
        MIX_TOKEN(3, 256, true, true);
        break;
    case PATH_NORMED_4:
        MIX_TOKEN(4, 256, true, true);
        break;
    case PATH_TOKEN_4:
        MIX_TOKEN(4, 32, false, false);
        break;
    case PATH_TURBO_2:
        MIX_LEVELS(TURBO_2);
        break;
    case PATH_TURBO_3:
        MIX_LEVELS(TURBO_3);
        break;
    case PATH_TURBO_4:
        MIX_LEVELS(TURBO_4);
        break;
    case PATH_NVFP4:
        MIX_LEVELS(E2M1);
        break;
    default:
        if constexpr (NB == 1) {
            if (path == PATH_F16)
                mix_f16<HD, NT, NB>(codes, p, keep, w.lane, out);
            else if (path == PATH_FP8)
                MIX_LEVELS(E4M3);
            else
                MIX_TOKEN(8, 32, false, false);
        }
    }
}

/* ---- a warp's walk over its tiles ---- */

__device__ __forceinline__ void copy_bytes(uint8_t *to, const uint8_t *from, int n_bytes, int lane) {
#pragma unroll 4
    for (int i = lane * 16; i < n_bytes; i += 512)
        copy16_async(to + i, from + i);
}

/* Steps of 16 NB tokens: this warp takes every fourth of the unit's. */
template <int NT, int NB>
__device__ __forceinline__ void walk(const unit_state<NT> &w, const tile_side &k, const tile_side &v,
                                     output_block<HD, NT> &out) {
    constexpr int STEPS = 4 / NB; /* per tile */
    const attend_args &a = *w.a;
    const uint8_t *pool = w.u.coded ? a.coded : a.raw;
    const uint32_t k_bytes = w.u.coded ? a.k_tile_bytes : TILE_TOKENS * HD * 2,
                   v_bytes = w.u.coded ? a.v_tile_bytes : k_bytes;
    constexpr bool WHOLE = NB == 4; /* a stage is a tile as it lies in its page */
    const int k_meta_at = k.chunk_bytes, v_at = WHOLE ? k_bytes : k_meta_at + k.meta_bytes,
              v_meta_at = v_at + v.chunk_bytes;
    const int stage_bytes = WHOLE ? k_bytes + v_bytes : v_meta_at + v.meta_bytes;
    const int n_steps = ((int)w.u.n_tiles * STEPS - w.warp + N_WARPS - 1) / N_WARPS;
    const uint8_t *head = pool + (size_t)w.u.head * (k_bytes + v_bytes);
    const size_t page_bytes = (size_t)a.n_head_kv * (k_bytes + v_bytes);
    const uint32_t *table = a.tables + w.u.table + w.u.first_tile;
    uint32_t pages = 0; /* one lane each, of the next 32 steps */

    auto fetch = [&](int step, uint8_t *stage) {
        int nth = step * N_WARPS + w.warp, b0 = nth % STEPS * NB;
        if (step % 32 == 0) {
            int tile = (nth + w.lane * N_WARPS) / STEPS;
            pages = tile < (int)w.u.n_tiles ? __ldg(table + tile) : 0;
        }
        uint32_t page = __shfl_sync(~0u, pages, step % 32) & 0x7fffffffu;
        const uint8_t *tile_k = head + page * page_bytes, *tile_v = tile_k + k_bytes;
        if (WHOLE) {
            copy_bytes(stage, tile_k, stage_bytes, w.lane);
            return;
        }
        copy_bytes(stage, tile_k + (k.chunk_tokens == 64 ? 0 : b0 * 16 / k.chunk_tokens * k.chunk_bytes), k.chunk_bytes,
                   w.lane);
        copy_bytes(stage + v_at, tile_v + (v.chunk_tokens == 64 ? 0 : b0 * 16 / v.chunk_tokens * v.chunk_bytes),
                   v.chunk_bytes, w.lane);
        if (NB == 1 && !w.u.coded)
            return;
        copy_bytes(stage + k_meta_at, tile_k + TILE_TOKENS / k.chunk_tokens * k.chunk_bytes, k.meta_bytes, w.lane);
        copy_bytes(stage + v_meta_at, tile_v + TILE_TOKENS / v.chunk_tokens * v.chunk_bytes, v.meta_bytes, w.lane);
    };

    const bool two = 2 * stage_bytes <= (int)a.ring_bytes; /* else other warps compute while this one loads */
    if (two && n_steps > 0)
        fetch(0, w.ring);
    commit_async();
    for (int step = 0; step < n_steps; step++) {
        __syncwarp(); /* the stage fetched next was read in the step before */
        if (!two || step + 1 < n_steps)
            fetch(step + two, w.ring + (two && step % 2 == 0 ? stage_bytes : 0));
        commit_async();
        if (two)
            wait_async<1>();
        else
            wait_async<0>();
        __syncwarp();

        const uint8_t *stage = w.ring + (two && step % 2 == 1 ? stage_bytes : 0);
        int nth = step * N_WARPS + w.warp, b0 = nth % STEPS * NB;
        int pos = ((w.u.first_tile + nth / STEPS) * 4 + b0) * 16;
        float s[NB][NT][4];
        uint32_t p[NB][NT][2];
        score<NT, NB>(w, k.path, stage, stage + k_meta_at, b0, s);
        cap_and_mask<NT, NB>(w, pos, s);
        softmax<HD, NT, NB>(s, out, p);
        uint2 keep = make_uint2(~0u, ~0u);
        if (NB == 1 && pos + 16 > (int)w.u.end) {
            int token = pos + w.lane % 4 * 2, end = w.u.end;
            keep.x = (token < end ? 0xffffu : 0) | (token + 1 < end ? 0xffff0000u : 0);
            keep.y = (token + 8 < end ? 0xffffu : 0) | (token + 9 < end ? 0xffff0000u : 0);
        }
        mix<NT, NB>(w, v.path, stage + v_at, stage + v_meta_at, b0, keep, p, out);
    }
    wait_async<0>();
}

/* ---- merging ---- */

/* Column results of the block: o (columns, LD; scratch for 4 times that) in the original basis, max and sum (columns). All
 * in shared memory. */
template <int NT>
__device__ void merge_warps(const unit_state<NT> &w, const tile_side &v, output_block<HD, NT> &out, float *o,
                            float *max_sum) {
    constexpr int N_COLS = 8 * NT;
    float *maxes = max_sum + 2 * N_COLS, *sums = maxes + N_WARPS * N_COLS; /* (warp, column) */
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            for (int k = 4; k < 32; k *= 2)
                out.sum[nt][c] += __shfl_xor_sync(~0u, out.sum[nt][c], k);
            if (w.lane < 4) {
                maxes[w.warp * N_COLS + 8 * nt + 2 * w.lane + c] = out.max[nt][c];
                sums[w.warp * N_COLS + 8 * nt + 2 * w.lane + c] = out.sum[nt][c];
            }
        }
    __syncthreads();
    if (threadIdx.x < N_COLS) {
        float max = NO_MAX, sum = 0.0f;
        for (int i = 0; i < N_WARPS; i++)
            max = fmaxf(max, maxes[i * N_COLS + threadIdx.x]);
        for (int i = 0; i < N_WARPS; i++)
            sum += sums[i * N_COLS + threadIdx.x] * exp2_fast(maxes[i * N_COLS + threadIdx.x] - max);
        max_sum[threadIdx.x] = max;
        max_sum[N_COLS + threadIdx.x] = sum;
    }
    __syncthreads();
    int group = v.path == PATH_AFFINE_2_G64 ? 64 : 32;
    float zero_factor = v.offset > 0 ? -(float)v.offset : 1.0f;
    float *mine = o + w.warp * N_COLS * LD; /* one copy per warp, then their sum */
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            int col = 8 * nt + w.lane % 4 * 2 + c;
            float factor = exp2_fast(out.max[nt][c] - max_sum[col]);
#pragma unroll
            for (int j = 0; j < N_J; j++) {
                /* the zero of channel group g lies in row g: lane 4 g + lane % 4, the first half of rows */
                float zero = __shfl_sync(~0u, out.zero[nt][c], 16 * j / group % 8 * 4 + w.lane % 4) * zero_factor;
#pragma unroll
                for (int half = 0; half < 2; half++)
                    mine[col * LD + 16 * j + w.lane / 4 + 8 * half] = (out.o[j][nt][c + 2 * half] * v.unit + zero) * factor;
            }
        }
    __syncthreads();
    for (int i = threadIdx.x; i < N_COLS * HD; i += blockDim.x) {
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < N_WARPS; n++)
            sum += o[(n * N_COLS + i / HD) * LD + i % HD];
        o[i / HD * LD + i % HD] = sum;
    }
    __syncthreads();
    if (w.u.coded && v.rotated) {
        hadamard<HD>(o, N_COLS, LD);
        for (int i = threadIdx.x; i < N_COLS * HD; i += blockDim.x) {
            float value = o[i / HD * LD + i % HD] * hadamard_factor<HD>();
            o[i / HD * LD + i % HD] = rotate_negative(i % HD) ? -value : value;
        }
        __syncthreads();
    }
}

__device__ __forceinline__ void write_output(const attend_args &a, const attend_unit &u, int head_group, int col, int d,
                                             float o, float max, float sum) {
    int c = u.first_col + col, head = u.head * head_group + c % head_group;
    if (a.sink_logits != NULL) {
        float sink = a.sink_logits[head] * LOG2E, top = fmaxf(max, sink), scale = exp2_fast(max - top);
        o *= scale;
        sum = sum * scale + exp2_fast(sink - top);
    }
    a.o[((size_t)(u.row + c / head_group) * a.n_head + head) * HD + d] = o / sum;
}

/* The last block of an output to arrive merges the units. */
template <int NT>
__device__ void merge_units(const attend_args &a, const attend_unit &u, uint32_t unit, int head_group, float *o,
                            const float *max_sum, bool *is_last) {
    constexpr int N_COLS = 8 * NT;
    float4 *mine = reinterpret_cast<float4 *>(a.partial + (size_t)unit * N_COLS * HD);
    float2 *mine_max = reinterpret_cast<float2 *>(a.partial_max) + (size_t)unit * N_COLS;
    for (int i = threadIdx.x; i < (int)u.n_cols * (HD / 4); i += blockDim.x)
        __stcg(&mine[i], *reinterpret_cast<const float4 *>(&o[i / (HD / 4) * LD + i % (HD / 4) * 4]));
    if (threadIdx.x < u.n_cols)
        __stcg(&mine_max[threadIdx.x], make_float2(max_sum[threadIdx.x], max_sum[N_COLS + threadIdx.x]));
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        *is_last = atomicAdd(&a.arrived[u.output], 1) == u.n_units - 1;
    __syncthreads();
    if (!*is_last)
        return;
    __threadfence();
    if (threadIdx.x == 0)
        a.arrived[u.output] = 0;
    const float4 *all = reinterpret_cast<const float4 *>(a.partial + (size_t)u.first_unit * N_COLS * HD);
    const float2 *all_max = reinterpret_cast<const float2 *>(a.partial_max) + (size_t)u.first_unit * N_COLS;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float *maxes = o, *sums = o + N_COLS; /* of all units, per column */
    for (int col = warp; col < (int)u.n_cols; col += N_WARPS) {
        float max = NO_MAX, sum = 0.0f;
        for (int n = lane; n < (int)u.n_units; n += 32)
            max = fmaxf(max, __ldcg(&all_max[(size_t)n * N_COLS + col]).x);
        for (int k = 16; k > 0; k /= 2)
            max = fmaxf(max, __shfl_xor_sync(~0u, max, k));
        for (int n = lane; n < (int)u.n_units; n += 32) {
            float2 part = __ldcg(&all_max[(size_t)n * N_COLS + col]);
            sum += part.y * exp2_fast(part.x - max);
        }
        for (int k = 16; k > 0; k /= 2)
            sum += __shfl_xor_sync(~0u, sum, k);
        if (lane == 0) {
            maxes[col] = max;
            sums[col] = sum;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < (int)u.n_cols * (HD / 4); i += blockDim.x) {
        int col = i / (HD / 4), d = i % (HD / 4) * 4;
        float max = maxes[col];
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 16
        for (uint32_t n = 0; n < u.n_units; n++) {
            float4 part = __ldcg(&all[(size_t)n * N_COLS * (HD / 4) + i]);
            float factor = exp2_fast(__ldcg(&all_max[(size_t)n * N_COLS + col]).x - max);
            value.x += factor * part.x;
            value.y += factor * part.y;
            value.z += factor * part.z;
            value.w += factor * part.w;
        }
        write_output(a, u, head_group, col, d, value.x, max, sums[col]);
        write_output(a, u, head_group, col, d + 1, value.y, max, sums[col]);
        write_output(a, u, head_group, col, d + 2, value.z, max, sums[col]);
        write_output(a, u, head_group, col, d + 3, value.w, max, sums[col]);
    }
}

template <int NT> __host__ __device__ constexpr size_t columns_bytes() {
    return (sizeof(column_block<HD, NT>) + 127) / 128 * 128;
}

template <int NT> __host__ __device__ inline size_t bias_bytes(uint32_t n_pairs) {
    return ((size_t)n_pairs * 2 * 8 * NT * sizeof(float) + 127) / 128 * 128;
}

template <int NT> __device__ __forceinline__ void run_unit(const attend_args &a, uint32_t unit, uint8_t *memory) {
    constexpr int N_COLS = 8 * NT;
    unit_state<NT> w;
    w.a = &a;
    w.u = a.units[unit];
    w.warp = threadIdx.x / 32;
    w.lane = threadIdx.x % 32;
    w.head_group = a.n_head / a.n_head_kv;
    w.cols = reinterpret_cast<column_block<HD, NT> *>(memory);
    w.bias = reinterpret_cast<float *>(memory + columns_bytes<NT>());
    uint8_t *rings = memory + columns_bytes<NT>() + bias_bytes<NT>(a.bias.n_pairs);
    w.ring = rings + w.warp * a.ring_bytes;
    float *floats = reinterpret_cast<float *>(rings); /* before and after the walk the rings are free */
    prepare_columns<NT>(a, w.u, w.head_group, floats, w.cols);
    if (a.bias.n_pairs > 0 && w.u.coded)
        prepare_bias<NT>(w);

    output_block<HD, NT> out;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out.zero[nt][i] = 0.0f;
#pragma unroll
            for (int j = 0; j < N_J; j++)
                out.o[j][nt][i] = 0.0f;
        }
        out.max[nt][0] = out.max[nt][1] = NO_MAX;
        out.sum[nt][0] = out.sum[nt][1] = 0.0f;
    }
    tile_side raw = {PATH_F16, 16, 0, 16, HD * 32, 0, 0, 1.0f};
    tile_side k = w.u.coded ? a.k : raw, v = w.u.coded ? a.v : raw;
#ifdef KVQ_ONLY_K /* one pair alone: a test counts its instructions */
    k.path = KVQ_ONLY_K, v.path = KVQ_ONLY_V;
    walk<NT, 4>(w, k, v, out);
#else
    if (k.chunk_tokens == 64 && v.chunk_tokens == 64)
        walk<NT, 4>(w, k, v, out);
    else if (k.chunk_tokens == 32 && v.chunk_tokens == 32)
        walk<NT, 2>(w, k, v, out);
    else
        walk<NT, 1>(w, k, v, out);
#endif
    __syncthreads();
    float *max_sum = floats + N_WARPS * N_COLS * LD;
    merge_warps<NT>(w, v, out, floats, max_sum);
    if (w.u.n_units == 1) {
        for (int i = threadIdx.x; i < (int)w.u.n_cols * HD; i += blockDim.x)
            write_output(a, w.u, w.head_group, i / HD, i % HD, floats[i / HD * LD + i % HD], max_sum[i / HD],
                         max_sum[N_COLS + i / HD]);
    } else {
        merge_units<NT>(a, w.u, unit, w.head_group, floats, max_sum,
                        reinterpret_cast<bool *>(max_sum + (2 + 2 * N_WARPS) * N_COLS));
    }
    __syncthreads();
}

template <int NT>
__global__ void __launch_bounds__(32 * N_WARPS, NT == 1 && HD <= 128 ? 4
                                                : HD * NT <= 256 ? 2
                                                                 : 1) attend_kernel(const __grid_constant__ attend_args a) {
    let_next_start();
    wait_for_previous();
    for (uint32_t unit = blockIdx.x; unit < *a.n_units; unit += gridDim.x)
        run_unit<NT>(a, unit, shared_memory());
}

/* Columns, their products with the key bias, then the rings, where the merge has its scratch as well. */
template <int NT> size_t shared_bytes(uint32_t ring_bytes, uint32_t n_pairs) {
    size_t merge = (N_WARPS * 8 * NT * LD + (2 + 2 * N_WARPS) * 8 * NT + 4) * sizeof(float),
           rings = N_WARPS * (size_t)ring_bytes;
    return columns_bytes<NT>() + bias_bytes<NT>(n_pairs) + (merge > rings ? merge : rings);
}

template <int NT> cudaError_t launch_for(const attend_args *args, uint32_t n_blocks, cudaStream_t stream) {
    size_t shared = shared_bytes<NT>(args->ring_bytes, args->bias.n_pairs);
    return launch(attend_kernel<NT>, dim3(n_blocks), 32 * N_WARPS, shared, stream, *args);
}

template <int NT> int blocks_per_sm(uint32_t ring_bytes, uint32_t n_pairs) {
    int n = 0;
    size_t shared = shared_bytes<NT>(ring_bytes, n_pairs);
    if (cudaFuncSetAttribute(attend_kernel<NT>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared) != cudaSuccess ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, attend_kernel<NT>, 32 * N_WARPS, shared) != cudaSuccess)
        return 0;
    return n;
}

} // namespace

#define NAME2(name, hd) name##_##hd
#define NAME1(name, hd) NAME2(name, hd)

/* n_tiles: column tiles of 8, 1 or 2. Returns 0 if the GPU cannot hold a block. */
extern "C" int NAME1(kvq_cuda_attend_blocks, KVQ_HEAD_DIM)(int n_tiles, uint32_t ring_bytes, uint32_t n_pairs) {
    return n_tiles == 1 ? blocks_per_sm<1>(ring_bytes, n_pairs) : blocks_per_sm<2>(ring_bytes, n_pairs);
}

extern "C" cudaError_t NAME1(kvq_cuda_attend_launch, KVQ_HEAD_DIM)(int n_tiles, const attend_args *args, uint32_t n_blocks,
                                                                   cudaStream_t stream) {
    return n_tiles == 1 ? launch_for<1>(args, n_blocks, stream) : launch_for<2>(args, n_blocks, stream);
}

extern "C" cudaError_t NAME1(kvq_cuda_attend_attributes, KVQ_HEAD_DIM)(cudaFuncAttributes *out) {
    return cudaFuncGetAttributes(out, attend_kernel<1>);
}
