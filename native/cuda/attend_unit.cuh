/* Decode attention, a unit: what its warps share, its queries, and what they add for the key bias of encoded tiles. */
#ifndef KVQ_CUDA_ATTEND_UNIT_CUH
#define KVQ_CUDA_ATTEND_UNIT_CUH

#include "attend.h"
#include "tiers.cuh"

namespace {

constexpr int HD = KVQ_HEAD_DIM, N_J = HD / 16, N_WARPS = attend_warps(HD), LD = HD + 4 /* free of bank conflicts */;
constexpr int PER_LANE = (HD + 31) / 32; /* elements of a column: lane + 32 n */

template <int NT> struct unit_state {
    const attend_args *a;
    attend_unit u;
    const column_block<HD, NT> *cols; /* for the tiles under way: as they are, or rotated */
    float *bias;                      /* (n_pairs, { C, S }, columns) of kv/key_bias.h, as base-2 logits */
    split_scratch<HD> *scratch;       /* the warp's, if a side needs it */
    int warp, lane, head_group;
};

/* ---- columns ---- */

/* A column's query as B fragments: rotated if wanted, normed by its largest element. */
template <int NT>
__device__ __forceinline__ void put_column(float (&x)[PER_LANE], bool rotate, bool with_sums, float scale, int col,
                                           int lane, column_block<HD, NT> *cols) {
    if (rotate) {
#pragma unroll
        for (int n = 0; n < PER_LANE; n++)
            x[n] = rotate_negative(lane + 32 * n) ? -x[n] : x[n];
        hadamard_lanes(x, lane, HD & -HD);
    }
    float max = 0.0f;
#pragma unroll
    for (int n = 0; n < PER_LANE; n++)
        max = fmaxf(max, fabsf(x[n]));
#pragma unroll
    for (int k = 16; k > 0; k /= 2)
        max = fmaxf(max, __shfl_xor_sync(~0u, max, k));
    float norm = max > 0.0f ? max : 1.0f;
    if (lane == 0)
        cols->scale[col] = norm * (rotate ? hadamard_factor<HD>() : 1.0f) * scale * LOG2E;
    __half *q = reinterpret_cast<__half *>(cols->q);
#pragma unroll
    for (int n = 0; n < PER_LANE; n++) {
        int d = lane + 32 * n, at = d % 16;
        __half rounded = __float2half_rn(x[n] / norm);
        if (d < HD)
            q[((d / 16 * NT + col / 8) * 32 + col % 8 * 4 + at % 8 / 2) * 4 + at / 8 * 2 + at % 2] = rounded;
        if (with_sums) {
            float sum = __half2float(rounded);
#pragma unroll
            for (int k = 16; k > 0; k /= 2)
                sum += __shfl_xor_sync(~0u, sum, k);
            if (lane == 0)
                cols->q_sum[n][col] = sum;
        }
    }
}

/* Queries of the unit, for f16 tiles in cols[0] and for encoded ones in cols[1], as far as it has such tiles. */
template <int NT>
__device__ __forceinline__ void prepare_columns(const unit_state<NT> &w, bool has_raw, column_block<HD, NT> *cols) {
    const attend_args &a = *w.a;
    constexpr int PER_WARP = 8 * NT / N_WARPS;
    float values[PER_WARP][PER_LANE]; /* all loads in flight at once */
#pragma unroll
    for (int i = 0; i < PER_WARP; i++) {
        int col = w.warp + N_WARPS * i, c = w.u.first_col + col, token = c / w.head_group, head = c - token * w.head_group;
        const float *q = a.q + ((size_t)(w.u.row + token) * a.n_head + w.u.head * w.head_group + head) * HD;
#pragma unroll
        for (int n = 0; n < PER_LANE; n++)
            values[i][n] = col < (int)w.u.n_cols && w.lane + 32 * n < HD ? q[w.lane + 32 * n] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < PER_WARP; i++) {
        int col = w.warp + N_WARPS * i;
        if (has_raw)
            put_column<NT>(values[i], false, false, a.scale, col, w.lane, &cols[0]);
        if (w.u.coded.n > 0)
            put_column<NT>(values[i], a.k.rotated, a.k.offset > 0, a.scale, col, w.lane, &cols[1]);
    }
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

} // namespace

#endif
