/*
 * Decode attention: a warp's walk over tiles.
 *
 * S^T = K Q^T and O^T = V^T P^T with K and V^T as the A operand of mma.m16n8k16 and up to 8 NT columns (query tokens x
 * query heads of a KV head) as N. Codes enter the tensor cores as they are: one AND makes two of them a pair of f16
 * subnormals. Every scale is folded into Q, P, S or the epilogue:
 *
 *   K by channel (kivi, kvarn)  S = sum_c (q s)_c code + q.z     Q is multiplied once per group of tokens; q.z is one more
 * MMA chain K by token (q8_0, q4_0)     S = sum_g d_g (sum_c q_c code - offset sum_c q_c)      one FMA per S element and
 * group V by token                  O = sum_t (p s)_t code + sum_t p_t z_t                 P is multiplied once per group
 * of channels V by token and channel      the same, times a scale per channel and tile
 *
 * Cost per element at 2 bits, head_dim 128, NT 1: K 1.1 instructions, V 1.2, softmax 0.2; the ALU takes about 0.75 of them.
 */
#ifndef KVQ_CUDA_ATTEND_CUH
#define KVQ_CUDA_ATTEND_CUH

#include "device.cuh"
#include "format.h"
#include "tile.h"

/* ---- codes to fragments ---- */

template <int BITS> struct words_per_lane {
    static constexpr int N = BITS >= 4 ? 4 : BITS;
};

/* The words of channel block j (of N_J), for token block b0 where blocks are stored apart. */
template <int BITS>
__device__ __forceinline__ void load_words(const uint8_t *codes, int j, int n_j, int b0, int lane, uint32_t *w) {
    if constexpr (BITS == 1) {
        w[0] = reinterpret_cast<const uint32_t *>(codes)[32 * j + lane];
    } else if constexpr (BITS == 2) {
        uint2 x = reinterpret_cast<const uint2 *>(codes)[32 * j + lane];
        w[0] = x.x, w[1] = x.y;
    } else if constexpr (BITS == 3) {
        const uint32_t *x = reinterpret_cast<const uint32_t *>(codes) + (32 * j + lane) * 3;
        w[0] = x[0], w[1] = x[1], w[2] = x[2];
    } else {
        uint4 x = reinterpret_cast<const uint4 *>(codes)[32 * j + lane];
        w[0] = x.x, w[1] = x.y, w[2] = x.z, w[3] = x.w;
    }
}

/* Bits by which the f16 subnormals of K's codes in token block b are shifted up. */
template <int BITS> __device__ constexpr int k_shift(int b) {
    return BITS == 2 ? 2 * b : BITS == 4 ? 4 * (b & 1) : 0;
}

/* The same for V's codes: one shift for all blocks, since P would have to undo it. */
template <int BITS> __device__ constexpr int v_shift() {
    return BITS == 2 ? 6 : BITS == 4 ? 4 : 0;
}

__device__ __forceinline__ uint32_t shifted(uint32_t x, int left) {
    return left >= 0 ? x << left : x >> -left;
}

/* a[r][b]: the fragment registers of token blocks b0 .. b0 + NB - 1. */
template <int BITS, int NB, bool UNIFORM>
__device__ __forceinline__ void unpack(const uint32_t *w, int b0, uint32_t (&a)[4][NB]) {
    if constexpr (BITS == 16) {
#pragma unroll
        for (int r = 0; r < 4; r++)
            a[r][0] = w[r];
    } else if constexpr (BITS == 1) {
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int b = 0; b < NB; b++)
                a[r][b] = w[0] >> (4 * r + (NB < 4 ? b0 : b)) & 0x00010001u;
    } else if constexpr (BITS == 3) {
        constexpr uint32_t ONE = 0x00010001u;
        uint32_t all[16];
#pragma unroll
        for (int i = 0; i < 15; i++)
            all[i] = w[i / 5] >> 3 * (i % 5) & 7 * ONE;
        all[15] = (w[0] >> 15 & ONE) | (w[1] >> 14 & 2 * ONE) | (w[2] >> 13 & 4 * ONE);
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int b = 0; b < NB; b++) {
                a[r][b] = all[4 * r + b];
                if (NB < 4)
                    a[r][b] = b0 == 0 ? all[4 * r] : b0 == 1 ? all[4 * r + 1] : b0 == 2 ? all[4 * r + 2] : all[4 * r + 3];
            }
    } else {
        constexpr uint32_t MASK = ((1u << BITS) - 1) * 0x00010001u;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            uint32_t x = w[BITS == 2 ? r / 2 : r];
            if (NB < 4)
                x >>= BITS == 8 && NB == 2 ? 0 : BITS * (BITS == 8 ? b0 & 1 : b0);
#pragma unroll
            for (int b = 0; b < NB; b++) {
                int at = BITS == 2 ? 8 * (r % 2) + 2 * b : BITS * b;
                int to = UNIFORM ? v_shift<BITS>() : k_shift<BITS>(b);
                a[r][b] = shifted(x, to - at) & MASK << to;
            }
        }
    }
}

/* ---- keys ---- */

template <int HD, int NT> struct column_block { /* of one unit, in shared memory */
    static constexpr int N_J = HD / 16, N_COLS = 8 * NT;
    uint2 q[N_J][NT][32];                /* B fragments of Q, normed to |q| <= 1 per column */
    float q_sum[(HD + 15) / 16][N_COLS]; /* sums over groups of channels, of the rounded q */
    float scale[N_COLS];                 /* of q.k to base-2 logits, undoing the norm */
};

template <int HD, int NT, int NB>
__device__ __forceinline__ void score_f16(const uint8_t *codes, const column_block<HD, NT> *cols, int lane,
                                          float (&s)[NB][NT][4]) {
    constexpr int N_J = HD / 16;
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[0][nt][i] = 0.0f;
#pragma unroll
    for (int j = 0; j < N_J; j++) {
        uint4 a = reinterpret_cast<const uint4 *>(codes)[32 * j + lane];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            uint2 q = cols->q[j][nt][lane];
            mma(s[0][nt], a.x, a.y, a.z, a.w, q.x, q.y);
        }
    }
}

/* Scale and zero per channel over 64 / GROUPS tokens; meta: (GROUPS) of { s (HD), z (HD) }, then token scales if TOKEN. */
template <int HD, int NT, int NB, int BITS, int GROUPS, bool TOKEN>
__device__ __forceinline__ void score_channel(const uint8_t *codes, const uint8_t *meta, int b0,
                                              const column_block<HD, NT> *cols, int lane, float (&s)[NB][NT][4]) {
    constexpr int N_J = HD / 16, W = words_per_lane<BITS>::N;
    const uint2 *scales = reinterpret_cast<const uint2 *>(meta) + lane % 4; /* (group, { s, z }, j, lane % 4) */
    const int g0 = NB < 4 && GROUPS == 2 ? b0 / 2 : 0;
    constexpr int NG = NB < 4 ? 1 : GROUPS; /* groups that this call meets */
    float zero[NT][4];
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            zero[nt][i] = 0.0f;
#pragma unroll
    for (int b = 0; b < NB; b++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[b][nt][i] = 0.0f;
#pragma unroll 2 /* not further: the loop must fit the instruction cache beside the other warps' places in it */
    for (int j = 0; j < N_J; j++) {
        uint32_t w[W], a[4][NB];
        load_words<BITS>(codes, j, N_J, b0, lane, w);
        unpack<BITS, NB, false>(w, b0, a);
        uint2 q[NG][NT];
        /* rows 0-7 of A: zeros of the first group, rows 8-15: of the second */
        uint2 low = scales[((g0 * 2 + 1) * N_J + j) * 4], high = NG == 2 ? scales[(3 * N_J + j) * 4] : low;
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            uint2 plain = cols->q[j][nt][lane];
            mma(zero[nt], low.x, high.x, low.y, high.y, plain.x, plain.y);
#pragma unroll
            for (int g = 0; g < NG; g++) {
                uint2 scale = scales[((g0 + g) * 2 * N_J + j) * 4];
                q[g][nt].x = mul_halfs(plain.x, scale.x);
                q[g][nt].y = mul_halfs(plain.y, scale.y);
            }
        }
#pragma unroll
        for (int b = 0; b < NB; b++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                uint2 x = q[NG == 2 ? b / 2 : 0][nt];
                mma(s[b][nt], a[0][b], a[1][b], a[2][b], a[3][b], x.x, x.y);
            }
    }
    const __half2 *token = reinterpret_cast<const __half2 *>(meta + GROUPS * 4 * HD) +
                           lane / 4; /* (block, row % 8, row / 8) */
#pragma unroll
    for (int b = 0; b < NB; b++) {
        float factor = (float)(1 << 24) / (float)(1 << k_shift<BITS>(b));
        float2 scale = TOKEN ? __half22float2(token[(b0 + b) * 8]) : make_float2(1.0f, 1.0f);
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float dot = s[b][nt][i] * factor + zero[nt][(i & 1) + (NG == 2 && b >= 2 ? 2 : 0)];
                s[b][nt][i] = TOKEN ? dot * (i < 2 ? scale.x : scale.y) : dot;
            }
    }
}

/* Scale per token over G channels; meta: (block, row % 8, row / 8, group) half. Codes count from OFFSET. */
template <int HD, int NT, int NB, int BITS, int G, int OFFSET>
__device__ __forceinline__ void score_token(const uint8_t *codes, const uint8_t *meta, int b0,
                                            const column_block<HD, NT> *cols, int lane, float (&s)[NB][NT][4]) {
    constexpr int N_J = HD / 16, W = words_per_lane<BITS>::N, NG = (HD + G - 1) / G, J_PER_G = G / 16;
    const __half *scales = reinterpret_cast<const __half *>(meta) + lane / 4 * 2 * NG;
#pragma unroll
    for (int b = 0; b < NB; b++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[b][nt][i] = 0.0f;
#pragma unroll 1
    for (int g = 0; g < NG; g++) {
        float c[NB][NT][4];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            float2 sum = *reinterpret_cast<const float2 *>(&cols->q_sum[g][8 * nt + lane % 4 * 2]);
#pragma unroll
            for (int b = 0; b < NB; b++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    c[b][nt][i] = (i & 1 ? sum.y : sum.x) * (-OFFSET * (float)(1 << k_shift<BITS>(b)) / (1 << 24));
        }
#pragma unroll
        for (int j = g * J_PER_G; j < (g + 1) * J_PER_G && j < N_J; j++) {
            uint32_t w[W], a[4][NB];
            load_words<BITS>(codes, j, N_J, b0, lane, w);
            unpack<BITS, NB, false>(w, b0, a);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                uint2 q = cols->q[j][nt][lane];
#pragma unroll
                for (int b = 0; b < NB; b++)
                    mma(c[b][nt], a[0][b], a[1][b], a[2][b], a[3][b], q.x, q.y);
            }
        }
#pragma unroll
        for (int b = 0; b < NB; b++) {
            float factor = (float)(1 << 24) / (float)(1 << k_shift<BITS>(b));
            float low = __half2float(scales[(b0 + b) * 16 * NG + g]) * factor;
            float high = __half2float(scales[((b0 + b) * 16 + 1) * NG + g]) * factor;
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    s[b][nt][i] += c[b][nt][i] * (i < 2 ? low : high);
        }
    }
}

/* ---- values ---- */

template <int HD, int NT> struct output_block { /* of one warp, in registers */
    float o[HD / 16][NT][4];
    float zero[NT][4];            /* row g: what the zero points of channel group g add */
    float max[NT][2], sum[NT][2]; /* of columns 2 (lane % 4) + { 0, 1 }; base 2 */
};

/* keep: AND masks for tokens col, col + 1 and col + 8, col + 9 of the block: memory beyond the last token was never written
 */
template <int HD, int NT, int NB>
__device__ __forceinline__ void mix_f16(const uint8_t *codes, const uint32_t (&p)[NB][NT][2], uint2 keep, int lane,
                                        output_block<HD, NT> &out) {
#pragma unroll
    for (int j = 0; j < HD / 16; j++) {
        uint4 a = reinterpret_cast<const uint4 *>(codes)[32 * j + lane];
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
            mma(out.o[j][nt], a.x & keep.x, a.y & keep.x, a.z & keep.y, a.w & keep.y, p[0][nt][0], p[0][nt][1]);
    }
}

/*
 * Scale per token over G channels; meta: s (block, group, lane % 4, col / 8, col % 2) half, then z alike if ZERO, then a
 * scale per channel (channel block, row % 8, row / 8) if CHANNEL. Without ZERO out.zero sums p s, to be multiplied by
 * -offset.
 */
template <int HD, int NT, int NB, int BITS, int G, bool ZERO, bool CHANNEL>
__device__ __forceinline__ void mix_token(const uint8_t *codes, const uint8_t *meta, int b0, const uint32_t (&p)[NB][NT][2],
                                          int lane, output_block<HD, NT> &out) {
    constexpr int N_J = HD / 16, W = words_per_lane<BITS>::N, NG = (HD + G - 1) / G, J_PER_G = G / 16;
    const uint2 *scales = reinterpret_cast<const uint2 *>(meta) + lane % 4; /* (block, group, lane % 4) */
    const uint2 *zeros = ZERO ? scales + 4 * NG * 4 : scales;
    const __half2 *channel = reinterpret_cast<const __half2 *>(meta + 4 * NG * 64) + lane / 4;
    float tile_zero[NT][4];
    if constexpr (CHANNEL)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                tile_zero[nt][i] = 0.0f;
#pragma unroll
    for (int b = 0; b < NB; b++) {
        int row = CHANNEL ? 0 : lane / 4;
        uint2 z = row < NG ? zeros[((b0 + b) * NG + row) * 4] : make_uint2(0, 0);
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
            if constexpr (CHANNEL)
                mma(tile_zero[nt], z.x, z.x, z.y, z.y, p[b][nt][0], p[b][nt][1]);
            else
                mma(out.zero[nt], z.x, 0, z.y, 0, p[b][nt][0], p[b][nt][1]);
    }
#pragma unroll
    for (int g = 0; g < NG; g++) {
        uint32_t ps[NB][NT][2];
#pragma unroll
        for (int b = 0; b < NB; b++) {
            uint2 scale = scales[((b0 + b) * NG + g) * 4];
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                ps[b][nt][0] = mul_halfs(p[b][nt][0], scale.x);
                ps[b][nt][1] = mul_halfs(p[b][nt][1], scale.y);
            }
        }
        constexpr float FACTOR = (float)(1 << 24) / (float)(1 << v_shift<BITS>());
        constexpr int PAIR = J_PER_G % 2 == 0 ? 2 : 1; /* channel blocks whose products are in flight together */
#pragma unroll
        for (int j0 = g * J_PER_G; j0 < (g + 1) * J_PER_G && j0 < N_J; j0 += PAIR) {
            uint32_t w[PAIR][W], a[PAIR][4][NB];
#pragma unroll
            for (int i = 0; i < PAIR && j0 + i < N_J; i++) {
                load_words<BITS>(codes, j0 + i, N_J, b0, lane, w[i]);
                unpack<BITS, NB, true>(w[i], b0, a[i]);
            }
            float c[PAIR][NT][4];
            if constexpr (CHANNEL)
#pragma unroll
                for (int i = 0; i < PAIR * NT * 4; i++)
                    c[i / (NT * 4)][i / 4 % NT][i % 4] = tile_zero[i / 4 % NT][i % 4] / FACTOR;
#pragma unroll
            for (int b = 0; b < NB; b++)
#pragma unroll
                for (int nt = 0; nt < NT; nt++)
#pragma unroll
                    for (int i = 0; i < PAIR && j0 + i < N_J; i++)
                        mma(CHANNEL ? c[i][nt] : out.o[j0 + i][nt], a[i][0][b], a[i][1][b], a[i][2][b], a[i][3][b],
                            ps[b][nt][0], ps[b][nt][1]);
            if constexpr (CHANNEL)
#pragma unroll
                for (int i = 0; i < PAIR && j0 + i < N_J; i++) {
                    float2 scale = __half22float2(channel[(j0 + i) * 8]);
#pragma unroll
                    for (int e = 0; e < NT * 4; e++)
                        out.o[j0 + i][e / 4][e % 4] += c[i][e / 4][e % 4] * (e % 4 < 2 ? scale.x : scale.y);
                }
        }
    }
}

/* ---- softmax ---- */

/* s: logits in base 2, already masked; p: B fragments of the probabilities against the running maximum. */
template <int HD, int NT, int NB>
__device__ __forceinline__ void softmax(float (&s)[NB][NT][4], output_block<HD, NT> &out, uint32_t (&p)[NB][NT][2]) {
    float max[NT][2];
    bool grew = false;
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float x = out.max[nt][c];
#pragma unroll
            for (int b = 0; b < NB; b++)
                x = fmaxf(x, fmaxf(s[b][nt][c], s[b][nt][c + 2]));
#pragma unroll
            for (int k = 4; k < 32; k *= 2)
                x = fmaxf(x, __shfl_xor_sync(~0u, x, k));
            grew |= x > out.max[nt][c];
            max[nt][c] = x;
        }
    if (__any_sync(~0u, grew)) { /* rare once a sequence is long */
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float factor = exp2_fast(out.max[nt][c] - max[nt][c]);
                out.max[nt][c] = max[nt][c];
                out.sum[nt][c] *= factor;
                out.zero[nt][c] *= factor;
                out.zero[nt][c + 2] *= factor;
#pragma unroll
                for (int j = 0; j < HD / 16; j++) {
                    out.o[j][nt][c] *= factor;
                    out.o[j][nt][c + 2] *= factor;
                }
            }
    }
#pragma unroll
    for (int b = 0; b < NB; b++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            float e[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                e[i] = exp2_fast(s[b][nt][i] - out.max[nt][i & 1]);
            out.sum[nt][0] += e[0] + e[2];
            out.sum[nt][1] += e[1] + e[3];
            p[b][nt][0] = transpose_8x8(pack_halfs(e[0], e[1]));
            p[b][nt][1] = transpose_8x8(pack_halfs(e[2], e[3]));
        }
}

#endif
