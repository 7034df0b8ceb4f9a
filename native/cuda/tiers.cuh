/*
 * Scores against tiered keys: three K tiles of different widths one after the other, their channels in an order of the
 * tile's own. The query is gathered by that order, 4 halves per lane and 16 places, while scales are folded into it.
 */
#ifndef KVQ_CUDA_TIERS_CUH
#define KVQ_CUDA_TIERS_CUH

#include "attend.cuh"

/* B fragment of 16 places of the columns of tile nt; order: their channels, as tile.h has them */
template <int HD, int NT>
__device__ __forceinline__ uint2 gather_query(const column_block<HD, NT> *cols, uint32_t order, int nt, int lane) {
    const uint16_t *q = reinterpret_cast<const uint16_t *>(cols->q) + nt * 128 + lane / 4 * 16;
    uint32_t x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t at = order >> 8 * i & 0xff;
        x[i] = q[at / 16 * (NT * 128) + at % 16];
    }
    return make_uint2(x[0] | x[1] << 16, x[2] | x[3] << 16);
}

/* Adds what places 16 FIRST .. 16 END - 1 give, with codes of BITS bits: s without zeros, zero (all rows alike). */
template <int HD, int NT, int NB, int BITS, int FIRST, int END>
__device__ __forceinline__ void score_tier(const uint8_t *codes, const uint8_t *meta, int b0,
                                           const column_block<HD, NT> *cols, int lane, float (&s)[NB][NT][4],
                                           float (&zero)[NT][4]) {
    constexpr int W = words_per_lane<BITS>::N;
    const uint4 *scales = reinterpret_cast<const uint4 *>(meta) + lane % 4; /* (j, lane % 4): { z, s } of two pairs */
    const uint32_t *orders = reinterpret_cast<const uint32_t *>(meta + 4 * HD + 2 * TILE_TOKENS) + lane % 4;
    float c[NB][NT][4];
    clear<NB, NT>(c);
#pragma unroll 1
    for (int j = FIRST; j < END; j++) {
        uint32_t w[W], a[4][NB], order = orders[j * 4];
        load_words<BITS>(codes, j - FIRST, lane, w);
        unpack<BITS, NB>(w, b0, a);
        uint4 affine = scales[j * 4];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            uint2 q = gather_query<HD, NT>(cols, order, nt, lane);
            mma(zero[nt], affine.x, affine.y, affine.z, affine.w, q.x, q.y); /* of use: rows 0-7 */
            q.x = mul_halfs(q.x, affine.y);
            q.y = mul_halfs(q.y, affine.w);
#pragma unroll
            for (int b = 0; b < NB; b++)
                mma(c[b][nt], a[0][b], a[1][b], a[2][b], a[3][b], q.x, q.y);
        }
    }
#pragma unroll
    for (int b = 0; b < NB; b++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[b][nt][i] += c[b][nt][i] * (SUBNORMAL / (float)(1 << k_shift<BITS, NB>(b, i / 2)));
}

/* meta: { z, s } as meta_place has them, scale per token (block, row % 8, row / 8) half, channels (HD) bytes */
template <int HD, int NT, int NB, int BITS>
__device__ __forceinline__ void score_tiers(const uint8_t *codes, const uint8_t *meta, int b0,
                                            const column_block<HD, NT> *cols, int lane, const logit_line<NT> &line,
                                            float (&s)[NB][NT][4]) {
    constexpr int QUARTER = HD / 64, BYTES = 128; /* bytes of a block of 16 places, per bit */
    float zero[NT][4];
    clear<1, NT>(reinterpret_cast<float (&)[1][NT][4]>(zero));
    clear<NB, NT>(s);
    const uint8_t *second = codes + QUARTER * 4 * BYTES;
    score_tier<HD, NT, NB, 4, 0, QUARTER>(codes, meta, b0, cols, lane, s, zero);
    if constexpr (BITS == 2) {
        score_tier<HD, NT, NB, 2, QUARTER, 2 * QUARTER>(second, meta, b0, cols, lane, s, zero);
        score_tier<HD, NT, NB, 1, 2 * QUARTER, 4 * QUARTER>(second + QUARTER * 2 * BYTES, meta, b0, cols, lane, s, zero);
    } else {
        score_tier<HD, NT, NB, 3, QUARTER, 3 * QUARTER>(second, meta, b0, cols, lane, s, zero);
        score_tier<HD, NT, NB, 2, 3 * QUARTER, 4 * QUARTER>(second + 2 * QUARTER * 3 * BYTES, meta, b0, cols, lane, s,
                                                            zero);
    }
    const __half2 *token = reinterpret_cast<const __half2 *>(meta + 4 * HD) + lane / 4;
#pragma unroll
    for (int b = 0; b < NB; b++) {
        float2 scale = __half22float2(token[(b0 + b) * 8]);
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[b][nt][i] = (s[b][nt][i] + zero[nt][i & 1]) * ((i < 2 ? scale.x : scale.y) * line.scale[nt][i & 1]) -
                              line.origin[nt][i & 1];
    }
}

#endif
