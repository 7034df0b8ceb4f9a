/*
 * Decode attention: a warp's work on one step of NB blocks of 16 tokens.
 *
 * S^T = K Q^T and O^T = V^T P^T with K and V^T as the A operand of mma.m16n8k16 and up to 8 NT columns (query tokens x
 * query heads of a KV head) as N. Codes enter the tensor cores as they are: one AND makes two of them a pair of f16
 * subnormals. Every scale is folded into Q, P, S or the epilogue:
 *
 *   K by channel (kivi, kvarn)        S = sum_c (q s)_c code + q.z        Q is multiplied once per group of tokens; q.z is
 *                                                                         one more MMA chain
 *   K by token (q8_0, q4_0)           S = sum_g d_g (sum_c q_c code - offset sum_c q_c)     one FMA per S element and group
 *   V by token                        O = sum_t (p s)_t code + sum_t p_t z_t       P is multiplied once per group of
 * channels V by token and channel            the same, times a scale per channel and tile
 *
 * Logits are relative to the running maximum from the start (one FMA each), and the maximum moves only when a logit exceeds
 * it by HEADROOM: most steps need no reduction over lanes. Sums of P come from the tensor cores too: the MMA of the zero
 * points has eight rows to spare.
 */
#ifndef KVQ_CUDA_ATTEND_CUH
#define KVQ_CUDA_ATTEND_CUH

#include "device.cuh"
#include "format.h"
#include "tile.h"

constexpr uint32_t HALF_ONES = 0x3c003c00u; /* 1, 1 */
constexpr float SUBNORMAL = 1 << 24;        /* code / (code's bits as a half float) */

/* ---- codes to fragments ---- */

template <int BITS> struct words_per_lane {
    static constexpr int N = BITS >= 4 ? 4 : BITS;
};

/* The words of channel block j. Not for V of 2 bits. */
template <int BITS> __device__ __forceinline__ void load_words(const uint8_t *codes, int j, int lane, uint32_t *w) {
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

/* Bits by which codes stay shifted up in the fragments: K's by token block and half of the rows, V's by half of the rows
 * and channel block. */
template <int BITS, int NB> __device__ constexpr int k_shift(int b, int half) {
    return BITS == 2 && NB == 4 ? 2 * b : BITS == 4 ? 4 * half : 0;
}

template <int BITS> __device__ constexpr int v_shift(int j, int half) {
    return BITS == 2 ? 2 * half + 4 * (j % 2) : BITS == 4 ? 4 * half : 0;
}

/* a[r][b]: the fragment registers of token blocks b0 .. b0 + NB - 1. Not for V of 2 bits. */
template <int BITS, int NB> __device__ __forceinline__ void unpack(const uint32_t *w, int b0, uint32_t (&a)[4][NB]) {
    constexpr uint32_t MASK = ((1u << BITS) - 1) * 0x00010001u;
    if constexpr (BITS == 3) {
        uint32_t all[16];
#pragma unroll
        for (int i = 0; i < 15; i++)
            all[i] = w[i / 5] >> 3 * (i % 5) & MASK;
        all[15] = (w[0] >> 15 & 0x00010001u) | (w[1] >> 14 & 0x00020002u) | (w[2] >> 13 & 0x00040004u);
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int b = 0; b < NB; b++) {
                a[r][b] = all[4 * r + b];
                if (NB == 1)
                    a[r][b] = b0 == 0 ? all[4 * r] : b0 == 1 ? all[4 * r + 1] : b0 == 2 ? all[4 * r + 2] : all[4 * r + 3];
            }
    } else {
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int b = 0; b < NB; b++) {
                int block = NB == 1 ? b0 : b;
                if (BITS == 1)
                    a[r][b] = w[0] >> (4 * r + block) & MASK;
                else if (BITS == 2 && NB == 4)
                    a[r][b] = w[r / 2] >> 8 * (r % 2) & MASK << 2 * b;
                else if (BITS == 2)
                    a[r][b] = w[r / 2] >> (8 * (r % 2) + 2 * block) & MASK;
                else if (BITS == 4)
                    a[r][b] = (block < 2 ? w[r / 2 * 2] : w[r / 2 * 2 + 1]) >> 8 * (block % 2) & MASK << 4 * (r % 2);
                else if (BITS == 8)
                    a[r][b] = w[r] >> 8 * (block % 2) & MASK;
            }
    }
}

/* V of 2 bits: channel blocks j and j + 1, or the last one alone. */
template <int NB, int N>
__device__ __forceinline__ void unpack_pair(const uint8_t *codes, int j, int b0, int lane, uint32_t (&a)[N][4][NB]) {
    constexpr uint32_t MASK = 0x00030003u;
    uint32_t w[4];
    if constexpr (N == 2 && NB == 4) {
        uint4 x = reinterpret_cast<const uint4 *>(codes)[16 * j + lane];
        w[0] = x.x, w[1] = x.y, w[2] = x.z, w[3] = x.w;
    } else if constexpr (N == 2) {
        w[0] = reinterpret_cast<const uint32_t *>(codes)[(16 * j + lane) * 4 + b0];
    } else {
        uint2 x = reinterpret_cast<const uint2 *>(codes)[32 * j + lane];
        w[0] = x.x, w[1] = x.y;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int b = 0; b < NB; b++) {
                int block = NB == 1 ? b0 : b;
                if constexpr (N == 2)
                    a[i][r][b] = w[b] >> 8 * (r / 2) & MASK << (4 * i + 2 * (r % 2));
                else
                    a[i][r][b] = (block < 2 ? w[0] : w[1]) >> (8 * (r / 2) + 4 * (block % 2)) & MASK << 2 * (r % 2);
            }
}

/* ---- keys ---- */

template <int HD, int NT> struct column_block { /* of one unit and one kind of tiles, in shared memory */
    static constexpr int N_J = HD / 16, N_COLS = 8 * NT;
    uint2 q[N_J][NT][32];                /* B fragments of Q, normed to |q| <= 1 per column */
    float q_sum[(HD + 31) / 32][N_COLS]; /* sums over 32 channels, of the rounded q */
    float scale[N_COLS];                 /* of q.k to base-2 logits, undoing the norm */
};

template <int NT> struct logit_line { /* logit = dot * scale - origin, of columns 2 (lane % 4) + { 0, 1 } */
    float scale[NT][2], origin[NT][2];
};

template <int NB, int NT> __device__ __forceinline__ void clear(float (&s)[NB][NT][4]) {
#pragma unroll
    for (int i = 0; i < NB * NT * 4; i++)
        s[i / (NT * 4)][i / 4 % NT][i % 4] = 0.0f;
}

template <int HD, int NT, int NB>
__device__ __forceinline__ void score_f16(const uint8_t *codes, const column_block<HD, NT> *cols, int lane,
                                          const logit_line<NT> &line, float (&s)[NB][NT][4]) {
    clear<NB, NT>(s);
#pragma unroll
    for (int j = 0; j < HD / 16; j++) {
        uint4 a = reinterpret_cast<const uint4 *>(codes)[32 * j + lane];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            uint2 q = cols->q[j][nt][lane];
            mma(s[0][nt], a.x, a.y, a.z, a.w, q.x, q.y);
        }
    }
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            s[0][nt][i] = s[0][nt][i] * line.scale[nt][i & 1] - line.origin[nt][i & 1];
}

/* s (a sum over channels of (q scale) code, codes shifted up) and zero (two groups' q.z) to logits; token: a scale per
 * token (block, row % 8, row / 8) or NULL. */
template <int NT, int NB, int BITS>
__device__ __forceinline__ void channel_logits(const __half2 *token, int b0, bool two_groups, const float (&zero)[NT][4],
                                               const logit_line<NT> &line, float (&s)[NB][NT][4]) {
#pragma unroll
    for (int b = 0; b < NB; b++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float factor = SUBNORMAL / (float)(1 << k_shift<BITS, NB>(b, half));
            float2 scales = token != NULL ? __half22float2(token[(b0 + b) * 8]) : make_float2(1.0f, 1.0f);
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    float &x = s[b][nt][c + 2 * half], z = zero[nt][c + (two_groups && b >= 2 ? 2 : 0)];
                    float scale = line.scale[nt][c] * (half == 0 ? scales.x : scales.y);
                    x = token != NULL ? (x * factor + z) * scale - line.origin[nt][c]
                                      : x * (factor * scale) + (z * scale - line.origin[nt][c]);
                }
        }
}

/* Scale and zero per channel over 64 / GROUPS tokens; meta: see meta_place, then token scales if TOKEN. UNROLL: channel
 * blocks of a turn of the loop. */
template <int HD, int NT, int NB, int BITS, int GROUPS, bool TOKEN, int UNROLL>
__device__ __forceinline__ void score_channel(const uint8_t *codes, const uint8_t *meta, int b0,
                                              const column_block<HD, NT> *cols, int lane, const logit_line<NT> &line,
                                              float (&s)[NB][NT][4]) {
    constexpr int N_J = HD / 16, W = words_per_lane<BITS>::N;
    const uint4 *scales = reinterpret_cast<const uint4 *>(meta) + lane % 4 * GROUPS;
    constexpr int NG = NB < 4 ? 1 : GROUPS; /* groups that this call meets */
    float zero[NT][4];
    clear<1, NT>(reinterpret_cast<float (&)[1][NT][4]>(zero));
    clear<NB, NT>(s);
#pragma unroll(UNROLL)
    for (int j = 0; j < N_J; j++) {
        uint32_t w[W], a[4][NB];
        load_words<BITS>(codes, j, lane, w);
        unpack<BITS, NB>(w, b0, a);
        uint4 z = scales[j * 4 * GROUPS + GROUPS - 1]; /* as a fragment of A: rows 0-7 group 0, rows 8-15 group 1 */
        uint2 scale[NG];
        if constexpr (GROUPS == 1) {
            scale[0] = make_uint2(z.y, z.w);
        } else {
            uint4 both = scales[j * 8];
            if constexpr (NG == 2) {
                scale[0] = make_uint2(both.x, both.y), scale[1] = make_uint2(both.z, both.w);
            } else {
                scale[0] = b0 < 2 ? make_uint2(both.x, both.y) : make_uint2(both.z, both.w);
                z.x = b0 < 2 ? z.x : z.y, z.z = b0 < 2 ? z.z : z.w;
            }
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            uint2 q = cols->q[j][nt][lane];
            mma(zero[nt], z.x, z.y, z.z, z.w, q.x, q.y);
#pragma unroll
            for (int g = 0; g < NG; g++) {
                uint32_t low = mul_halfs(q.x, scale[g].x), high = mul_halfs(q.y, scale[g].y);
#pragma unroll
                for (int b = g * NB / NG; b < (g + 1) * NB / NG; b++)
                    mma(s[b][nt], a[0][b], a[1][b], a[2][b], a[3][b], low, high);
            }
        }
    }
    const __half2 *token = reinterpret_cast<const __half2 *>(meta + GROUPS * 4 * HD) + lane / 4;
    channel_logits<NT, NB, BITS>(TOKEN ? token : NULL, b0, NG == 2, zero, line, s);
}

/* Scale per token over G channels; meta: (block, row % 8, group, row / 8) half. Codes count from OFFSET. */
template <int HD, int NT, int NB, int BITS, int G, int OFFSET, int UNROLL>
__device__ __forceinline__ void score_token(const uint8_t *codes, const uint8_t *meta, int b0,
                                            const column_block<HD, NT> *cols, int lane, const logit_line<NT> &line,
                                            float (&s)[NB][NT][4]) {
    constexpr int N_J = HD / 16, W = words_per_lane<BITS>::N, NG = (HD + G - 1) / G, J_PER_G = G / 16;
    const __half2 *scales = reinterpret_cast<const __half2 *>(meta) + lane / 4 * NG;
    clear<NB, NT>(s);
#pragma unroll(UNROLL)
    for (int g = 0; g < NG; g++) {
        float c[NB][NT][4];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            float2 sum = *reinterpret_cast<const float2 *>(&cols->q_sum[g][8 * nt + lane % 4 * 2]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float x = (i & 1 ? sum.y : sum.x) * (-OFFSET * (float)(1 << k_shift<BITS, NB>(0, i / 2)) / SUBNORMAL);
#pragma unroll
                for (int b = 0; b < NB; b++)
                    c[b][nt][i] = x;
            }
        }
#pragma unroll
        for (int j = g * J_PER_G; j < (g + 1) * J_PER_G; j++) {
            if (j >= N_J)
                break;
            uint32_t w[W], a[4][NB];
            load_words<BITS>(codes, j, lane, w);
            unpack<BITS, NB>(w, b0, a);
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
            float2 d = __half22float2(scales[(b0 + b) * 8 * NG + g]);
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    s[b][nt][i] += c[b][nt][i] * (i < 2 ? d.x : d.y);
        }
    }
#pragma unroll
    for (int b = 0; b < NB; b++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float factor = SUBNORMAL / (float)(1 << k_shift<BITS, NB>(0, i / 2));
                s[b][nt][i] = s[b][nt][i] * (factor * line.scale[nt][i & 1]) - line.origin[nt][i & 1];
            }
}

/* ---- values ---- */

template <int HD, int NT> struct output_block { /* of one warp, in registers */
    float o[HD / 16][NT][4];
    /* rows 0-7, of which row g has what the zero points of channel group g add; rows 8-15: the sum of probabilities */
    float zero[NT][4];
    float max[NT][2];   /* of columns 2 (lane % 4) + { 0, 1 }; base 2; 0 before the first token */
    float limit[NT][2]; /* how far above max logits may be: none before the first token, then HEADROOM */
};

template <int HD, int NT, int NB>
__device__ __forceinline__ void mix_f16(const uint8_t *codes, const uint32_t (&p)[NB][NT][2], int lane,
                                        output_block<HD, NT> &out) {
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
        mma(out.zero[nt], 0, HALF_ONES, 0, HALF_ONES, p[0][nt][0], p[0][nt][1]);
#pragma unroll
    for (int j = 0; j < HD / 16; j++) {
        uint4 a = reinterpret_cast<const uint4 *>(codes)[32 * j + lane];
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
            mma(out.o[j][nt], a.x, a.y, a.z, a.w, p[0][nt][0], p[0][nt][1]);
    }
}

/* Four halves of a lane for each token block; (lane % 4, token block, 4) */
template <int NB> __device__ __forceinline__ void load_token_scales(const uint8_t *scales, int l, int b0, uint2 *to) {
    if constexpr (NB == 4) {
        uint4 low = reinterpret_cast<const uint4 *>(scales)[l * 2],
              high = reinterpret_cast<const uint4 *>(scales)[l * 2 + 1];
        to[0] = make_uint2(low.x, low.y), to[1] = make_uint2(low.z, low.w);
        to[2] = make_uint2(high.x, high.y), to[3] = make_uint2(high.z, high.w);
    } else {
#pragma unroll
        for (int b = 0; b < NB; b++)
            to[b] = reinterpret_cast<const uint2 *>(scales)[l * 4 + b0 + b];
    }
}

/*
 * Scale per token over G channels; meta: s (group, lane % 4, block, 4) half, then z alike if ZERO, then a scale per channel
 * (channel block, row % 8, row / 8) if CHANNEL. Without ZERO out.zero sums p s, to be multiplied by -offset.
 */
template <int HD, int NT, int NB, int BITS, int G, bool ZERO, bool CHANNEL>
__device__ __forceinline__ void mix_token(const uint8_t *codes, const uint8_t *meta, int b0, const uint32_t (&p)[NB][NT][2],
                                          int lane, output_block<HD, NT> &out) {
    constexpr int N_J = HD / 16, W = words_per_lane<BITS>::N, NG = (HD + G - 1) / G, J_PER_G = G / 16;
    const uint8_t *zeros = ZERO ? meta + NG * 128 : meta;
    float tile_zero[NT][4]; /* CHANNEL: rows 8-15 go on with the sum of probabilities */
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            tile_zero[nt][i] = i < 2 ? 0.0f : out.zero[nt][i];
    uint2 z[NB];
    int row = CHANNEL ? 0 : lane / 4;
    load_token_scales<NB>(zeros + (row < NG ? row : 0) * 128, lane % 4, b0, z);
#pragma unroll
    for (int b = 0; b < NB; b++) {
        uint32_t low = row < NG ? z[b].x : 0, high = row < NG ? z[b].y : 0;
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
            mma(CHANNEL ? tile_zero[nt] : out.zero[nt], low, HALF_ONES, high, HALF_ONES, p[b][nt][0], p[b][nt][1]);
    }
    if constexpr (CHANNEL)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
            out.zero[nt][2] = tile_zero[nt][2], out.zero[nt][3] = tile_zero[nt][3];
    const __half2 *channel = reinterpret_cast<const __half2 *>(meta + 2 * NG * 128) + lane / 4;
#pragma unroll
    for (int g = 0; g < NG; g++) {
        uint2 scale[NB];
        uint32_t ps[NB][NT][2];
        load_token_scales<NB>(meta + g * 128, lane % 4, b0, scale);
#pragma unroll
        for (int b = 0; b < NB; b++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                ps[b][nt][0] = mul_halfs(p[b][nt][0], scale[b].x);
                ps[b][nt][1] = mul_halfs(p[b][nt][1], scale[b].y);
            }
        constexpr int PAIR = 2; /* channel blocks whose products are in flight together */
#pragma unroll
        for (int j0 = g * J_PER_G; j0 < (g + 1) * J_PER_G && j0 < N_J; j0 += PAIR) {
            uint32_t a[PAIR][4][NB];
            if constexpr (BITS == 2) {
                if (j0 + 1 < N_J)
                    unpack_pair<NB, 2>(codes, j0, b0, lane, a);
                else
                    unpack_pair<NB, 1>(codes, j0, b0, lane, reinterpret_cast<uint32_t (&)[1][4][NB]>(a));
            } else {
#pragma unroll
                for (int i = 0; i < PAIR && j0 + i < N_J; i++) {
                    uint32_t w[W];
                    load_words<BITS>(codes, j0 + i, lane, w);
                    unpack<BITS, NB>(w, b0, a[i]);
                }
            }
            float c[PAIR][NT][4];
            if constexpr (CHANNEL)
#pragma unroll
                for (int e = 0; e < PAIR * NT * 4; e++)
                    c[e / (NT * 4)][e / 4 % NT][e % 4] = tile_zero[e / 4 % NT][e % 2] *
                                                         ((float)(1 << v_shift<BITS>(e / (NT * 4), e % 4 / 2)) / SUBNORMAL);
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
                    float2 scale_c = __half22float2(channel[(j0 + i) * 8]);
#pragma unroll
                    for (int e = 0; e < NT * 4; e++)
                        out.o[j0 + i][e / 4][e % 4] += c[i][e / 4][e % 4] * (e % 4 < 2 ? scale_c.x : scale_c.y);
                }
        }
    }
}

/* ---- softmax ---- */

constexpr float HEADROOM = 2.0f; /* probabilities stay below 2^2: no half float overflows by a scale of up to 16000 */

/* Moves the maximum of the columns that a logit is too far above; s stays relative to it. */
template <int HD, int NT, int NB>
__device__ __forceinline__ void raise_max(float (&s)[NB][NT][4], output_block<HD, NT> &out) {
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float x = -INFINITY;
#pragma unroll
            for (int b = 0; b < NB; b++)
                x = fmaxf(x, fmaxf(s[b][nt][c], s[b][nt][c + 2]));
#pragma unroll
            for (int k = 4; k < 32; k *= 2)
                x = fmaxf(x, __shfl_xor_sync(~0u, x, k));
            bool moves = x > out.limit[nt][c];
            float delta = moves ? x : 0.0f, factor = out.limit[nt][c] < 0.0f ? 1.0f : exp2_fast(-delta);
            out.limit[nt][c] = moves ? HEADROOM : out.limit[nt][c];
            out.max[nt][c] += delta;
#pragma unroll
            for (int b = 0; b < NB; b++)
                s[b][nt][c] -= delta, s[b][nt][c + 2] -= delta;
            out.zero[nt][c] *= factor;
            out.zero[nt][c + 2] *= factor;
#pragma unroll
            for (int j = 0; j < HD / 16; j++) {
                out.o[j][nt][c] *= factor;
                out.o[j][nt][c + 2] *= factor;
            }
        }
}

/* s: logits in base 2 relative to out.max, already masked; p: B fragments of the probabilities. */
template <int HD, int NT, int NB>
__device__ __forceinline__ void softmax(float (&s)[NB][NT][4], output_block<HD, NT> &out, uint32_t (&p)[NB][NT][2]) {
    bool above = false;
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float x = fmaxf(s[0][nt][c], s[0][nt][c + 2]);
#pragma unroll
            for (int b = 1; b < NB; b++)
                x = fmaxf(x, fmaxf(s[b][nt][c], s[b][nt][c + 2]));
            above |= x > out.limit[nt][c];
        }
    if (__any_sync(~0u, above)) /* rare but at the start */
        raise_max<HD, NT, NB>(s, out);
#pragma unroll
    for (int b = 0; b < NB; b++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                p[b][nt][half] = transpose_8x8(
                    pack_halfs(exp2_fast(s[b][nt][2 * half]), exp2_fast(s[b][nt][2 * half + 1])));
}

#endif
