/* Decode attention, results: of f16 tiles in the basis of encoded ones, of the warps of a block, of the units of an output.
 */
#ifndef KVQ_CUDA_ATTEND_MERGE_CUH
#define KVQ_CUDA_ATTEND_MERGE_CUH

#include "attend_unit.cuh"

namespace {

/* ---- from f16 tiles to encoded ones ---- */

/* O as the sums over encoded tiles have it: in their basis and unit. */
template <int NT> __device__ __forceinline__ void to_coded_basis(const tile_side &v, int lane, output_block<HD, NT> &out) {
    float unit = (v.rotated ? hadamard_factor<HD>() : 1.0f) / v.unit;
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float x[2 * N_J]; /* (j, half) */
#pragma unroll
            for (int i = 0; i < 2 * N_J; i++) {
                x[i] = out.o[i / 2][nt][c + i % 2 * 2];
                if (v.rotated && rotate_negative(8 * i + lane / 4))
                    x[i] = -x[i];
            }
            if (v.rotated)
                hadamard_rows(x, lane, HD & -HD);
#pragma unroll
            for (int i = 0; i < 2 * N_J; i++)
                out.o[i / 2][nt][c + i % 2 * 2] = x[i] * unit *
                                                  (float)(1 << (i % 2 * v.row_shift + i / 2 % 2 * v.block_shift));
        }
}

/* ---- merging ---- */

/* Results to be merged, in shared memory: of the warps of a block, then of units. */
struct merge_parts {
    float *o;         /* (part, column, LD) */
    float *max, *sum; /* (part, column) */
};

/* What is left of a warp's registers when its tiles are done. */
template <int NT>
__device__ __forceinline__ void put_part(const unit_state<NT> &w, const tile_side &v, const output_block<HD, NT> &out,
                                         const merge_parts &parts) {
    constexpr int N_COLS = 8 * NT;
    int group = v.path == PATH_AFFINE_2_G64 ? 64 : 32;
    float zero_factor = v.offset > 0 ? -(float)v.offset : 1.0f;
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            int col = 8 * nt + w.lane % 4 * 2 + c, row = w.warp * N_COLS + col;
            if (w.lane < 4) {
                parts.max[row] = out.limit[nt][c] < 0.0f ? NO_MAX : out.max[nt][c];
                parts.sum[row] = out.zero[nt][2 + c];
            }
            float *o = parts.o + row * LD + w.lane / 4;
#pragma unroll
            for (int j = 0; j < N_J; j++) {
                /* the zero of channel group g lies in row g: lane 4 g + lane % 4, the first half of rows */
                float zero = __shfl_sync(~0u, out.zero[nt][c], 16 * j / group % 8 * 4 + w.lane % 4) * zero_factor;
                float unit = v.unit / (float)(1 << (j % 2 * v.block_shift));
                o[16 * j] = out.o[j][nt][c] * unit + zero;
                o[16 * j + 8] = out.o[j][nt][c + 2] * (unit / (float)(1 << v.row_shift)) + zero;
            }
        }
}

/* The largest maximum of a column's parts, their sum against it, and each part's factor. */
__device__ __forceinline__ float2 merge_factors(const merge_parts &parts, int n_parts, int n_cols, int col,
                                                float (&factors)[N_WARPS]) {
    float max = NO_MAX, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N_WARPS; i++)
        max = fmaxf(max, i < n_parts ? parts.max[i * n_cols + col] : NO_MAX);
#pragma unroll
    for (int i = 0; i < N_WARPS; i++) {
        factors[i] = i < n_parts ? exp2_fast(parts.max[i * n_cols + col] - max) : 0.0f;
        sum += i < n_parts ? parts.sum[i * n_cols + col] * factors[i] : 0.0f;
    }
    return make_float2(max, sum);
}

/* The block's share of an output, for the block that merges its units. */
template <int NT>
__device__ __forceinline__ void publish(const attend_args &a, const attend_unit &u, uint32_t unit,
                                        const merge_parts &parts) {
    constexpr int N_COLS = 8 * NT;
    for (int i = threadIdx.x; i < (int)u.n_cols * (HD / 4); i += blockDim.x) {
        int col = i / (HD / 4), d = i % (HD / 4) * 4;
        float factors[N_WARPS];
        float2 max_sum = merge_factors(parts, N_WARPS, N_COLS, col, factors);
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int n = 0; n < N_WARPS; n++) {
            float4 part = *reinterpret_cast<const float4 *>(&parts.o[(n * N_COLS + col) * LD + d]);
            value.x += factors[n] * part.x;
            value.y += factors[n] * part.y;
            value.z += factors[n] * part.z;
            value.w += factors[n] * part.w;
        }
        __stcg(&reinterpret_cast<float4 *>(a.partial)[(size_t)unit * N_COLS * (HD / 4) + i], value);
        if (d == 0)
            __stcg(&reinterpret_cast<float2 *>(a.partial_max)[(size_t)unit * N_COLS + col], max_sum);
    }
}

/* Gathers the units of an output into parts; returns how many. */
template <int NT>
__device__ __forceinline__ int gather(const attend_args &a, const attend_unit &u, const merge_parts &parts) {
    constexpr int N_COLS = 8 * NT, BATCH = 12;
    const float4 *all = reinterpret_cast<const float4 *>(a.partial) + (size_t)u.first_unit * N_COLS * (HD / 4);
    const float2 *all_max = reinterpret_cast<const float2 *>(a.partial_max) + (size_t)u.first_unit * N_COLS;
    int n_vectors = u.n_cols * (HD / 4), n_parts = (int)blockDim.x / n_vectors;
    n_parts = n_parts < 1 ? 1 : n_parts > N_WARPS ? N_WARPS : n_parts;
    for (int i = threadIdx.x; i < n_vectors * n_parts; i += blockDim.x) {
        int vector = i % n_vectors, part = i / n_vectors, col = vector / (HD / 4), d = vector % (HD / 4) * 4;
        float max = NO_MAX, sum = 0.0f;
        float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (int first = part; first < (int)u.n_units; first += BATCH * n_parts) {
            float2 max_sum[BATCH]; /* all loads in flight at once */
            float4 x[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                int n = first + i * n_parts < (int)u.n_units ? first + i * n_parts : part;
                max_sum[i] = __ldcg(&all_max[(size_t)n * N_COLS + col]);
                x[i] = __ldcg(&all[(size_t)n * N_COLS * (HD / 4) + vector]);
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                if (first + i * n_parts >= (int)u.n_units)
                    break;
                float top = fmaxf(max, max_sum[i].x), old = exp2_fast(max - top), factor = exp2_fast(max_sum[i].x - top);
                value.x = value.x * old + factor * x[i].x;
                value.y = value.y * old + factor * x[i].y;
                value.z = value.z * old + factor * x[i].z;
                value.w = value.w * old + factor * x[i].w;
                sum = sum * old + factor * max_sum[i].y;
                max = top;
            }
        }
        *reinterpret_cast<float4 *>(&parts.o[(part * N_COLS + col) * LD + d]) = value;
        if (d == 0) {
            parts.max[part * N_COLS + col] = max;
            parts.sum[part * N_COLS + col] = sum;
        }
    }
    return n_parts;
}

/* Merges the parts, turns back what is rotated, divides. A warp per column. */
template <int NT>
__device__ __forceinline__ void write_output(const unit_state<NT> &w, const merge_parts &parts, int n_parts) {
    const attend_args &a = *w.a;
    for (int col = w.warp; col < (int)w.u.n_cols; col += N_WARPS) {
        float factors[N_WARPS], x[PER_LANE];
        float2 max_sum = merge_factors(parts, n_parts, 8 * NT, col, factors);
#pragma unroll
        for (int n = 0; n < PER_LANE; n++) {
            x[n] = 0.0f;
#pragma unroll
            for (int i = 0; i < N_WARPS; i++)
                if (i < n_parts && w.lane + 32 * n < HD)
                    x[n] += factors[i] * parts.o[(i * 8 * NT + col) * LD + w.lane + 32 * n];
        }
        int c = w.u.first_col + col, head = w.u.head * w.head_group + c % w.head_group;
        float sum = max_sum.y, factor = add_sink(a.sink_logits, head, max_sum.x, &sum);
        if (a.v.rotated) {
            hadamard_lanes(x, w.lane, HD & -HD);
            factor *= hadamard_factor<HD>();
        }
        float *o = a.o + ((size_t)(w.u.row + c / w.head_group) * a.n_head + head) * HD;
#pragma unroll
        for (int n = 0; n < PER_LANE; n++) {
            int d = w.lane + 32 * n;
            float value = x[n] * factor / sum;
            if (d < HD)
                o[d] = a.v.rotated && rotate_negative(d) ? -value : value;
        }
    }
}

} // namespace

#endif
