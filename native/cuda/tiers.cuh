/*
 * Decode attention over tiles whose channels lie in an order of their own, in tiers of different widths (tile.h). A tier is
 * a K or V tile of its own after which the next one follows.
 *
 *   tiered keys    the query is gathered by the order, 4 halves per lane and 16 places, while scales are folded into it
 *   split tiles    the query is gathered, and each tier of it rotated on the tensor cores; what a tile adds to O is rotated
 *                  back and scattered before it is added
 *
 * So a split tile costs, beside its products, per column tile of 8: keys 6, values 12 instructions per channel.
 */
#ifndef KVQ_CUDA_TIERS_CUH
#define KVQ_CUDA_TIERS_CUH

#include "levels.cuh"

/* B fragment of block j of places of the columns of tile nt; order: their channels, as tile.h has them */
template <int HD, int NT>
__device__ __forceinline__ uint2 gather_query(const column_block<HD, NT> *cols, const uint8_t *order, int j, int nt,
                                              int lane) {
    const uint16_t *q = reinterpret_cast<const uint16_t *>(cols->q) + nt * 128 + lane / 4 * 16;
    uint32_t four = reinterpret_cast<const uint32_t *>(order)[j * 4 + lane % 4], x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t at = four >> 8 * i & 0xff;
        x[i] = q[at / 16 * (NT * 128) + at % 16];
    }
    return make_uint2(x[0] | x[1] << 16, x[2] | x[3] << 16);
}

/* ---- tiered keys ---- */

/* Codes of a block that several tiers share, as unpack() gives them, not shifted. codes: of the tile; j: the block */
template <int NB>
__device__ __forceinline__ void unpack_mixed(const uint8_t *codes, uint32_t bits, uint32_t head_dim, int j, int b0,
                                             int lane, uint32_t (&a)[4][NB]) {
#pragma unroll
    for (int high = 0; high < 2; high++) { /* places 0-7 and 8-15 */
        uint32_t place = 16 * j + 8 * high + lane % 4 / 2 * 4, width = tier_bits(FAMILY_TIER, bits, head_dim, place);
        const uint16_t *words = reinterpret_cast<const uint16_t *>(codes +
                                                                   4 * tier_word(FAMILY_TIER, bits, head_dim, place)) +
                                lane / 4 * 2 + lane % 2;
#pragma unroll
        for (int i = 0; i < 2 * NB; i++)
            a[2 * high + i / NB][i % NB] = 0;
#pragma unroll
        for (int bit = 0; bit < 4; bit++) {
            uint32_t x = bit < (int)width ? words[16 * bit] : 0, two = (x & 0xff) | (x & 0xff00) << 8;
#pragma unroll
            for (int i = 0; i < 2 * NB; i++)
                a[2 * high + i / NB][i % NB] |= (two >> (4 * (i / NB) + b0 + i % NB) & 0x00010001u) << bit;
        }
    }
}

/* Adds what blocks FIRST .. END - 1 of places give, with codes of WIDTH bits, 0: of several widths. BITS: of the type.
 * s without zeros, zero (all rows alike). */
template <int HD, int NT, int NB, int BITS, int WIDTH, int FIRST, int END>
__device__ __forceinline__ void score_tier(const uint8_t *codes, const uint8_t *meta, int b0,
                                           const column_block<HD, NT> *cols, int lane, float (&s)[NB][NT][4],
                                           float (&zero)[NT][4]) {
    if constexpr (FIRST < END) {
        const uint8_t *first = codes + 4 * tier_word(FAMILY_TIER, BITS, HD, 16 * FIRST);
        const uint4 *scales = reinterpret_cast<const uint4 *>(meta) + lane % 4; /* (j, lane % 4): { z, s } of two pairs */
        const uint8_t *order = meta + 4 * HD + 2 * TILE_TOKENS;
        float c[NB][NT][4];
        clear<NB, NT>(c);
#pragma unroll 1
        for (int j = FIRST; j < END; j++) {
            uint32_t a[4][NB];
            if constexpr (WIDTH == 0) {
                unpack_mixed<NB>(codes, BITS, HD, j, b0, lane, a);
            } else {
                uint32_t w[words_per_lane<WIDTH>::N];
                load_words<WIDTH>(first, j - FIRST, lane, w);
                unpack<WIDTH, NB>(w, b0, a);
            }
            uint4 affine = scales[j * 4];
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                uint2 q = gather_query<HD, NT>(cols, order, j, nt, lane);
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
                    s[b][nt][i] += c[b][nt][i] * (SUBNORMAL / (float)(1 << k_shift<WIDTH, NB>(b, i / 2)));
    }
}

/* meta: { z, s } as meta_place has them, scale per token (block, row % 8, row / 8) half, channels (HD) bytes */
template <int HD, int NT, int NB, int BITS>
__device__ __forceinline__ void score_tiers(const uint8_t *codes, const uint8_t *meta, int b0,
                                            const column_block<HD, NT> *cols, int lane, const logit_line<NT> &line,
                                            float (&s)[NB][NT][4]) {
    constexpr int A = HD / 4, B = (BITS == 2 ? 2 : 3) * A; /* where the second and the third tier begin */
    constexpr int MIXED_A = A % 16 ? A / 16 + 1 : A / 16, MIXED_B = B % 16 && B / 16 != A / 16 ? B / 16 + 1 : B / 16;
    float zero[NT][4];
    clear<1, NT>(reinterpret_cast<float (&)[1][NT][4]>(zero));
    clear<NB, NT>(s);
    score_tier<HD, NT, NB, BITS, 4, 0, A / 16>(codes, meta, b0, cols, lane, s, zero);
    score_tier<HD, NT, NB, BITS, 0, A / 16, MIXED_A>(codes, meta, b0, cols, lane, s, zero);
    score_tier<HD, NT, NB, BITS, BITS, (A + 15) / 16, B / 16>(codes, meta, b0, cols, lane, s, zero);
    score_tier<HD, NT, NB, BITS, 0, B / 16, MIXED_B>(codes, meta, b0, cols, lane, s, zero);
    score_tier<HD, NT, NB, BITS, BITS - 1, (B + 15) / 16, HD / 16>(codes, meta, b0, cols, lane, s, zero);
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

/* ---- split tiles ---- */

template <int HD> struct split_scratch { /* of a warp */
    union {
        uint2 q[HD / 16][1][32]; /* B fragments of the gathered, rotated query */
        float2 o[HD][4];         /* what a tile adds to O: two columns of each lane % 4 */
    };
    uint8_t order[HD]; /* channels, as in tiered tiles; of values as they are, not in col_order */
};

template <int HD> struct split_tiers {
    static constexpr int N_WIDE = HD / 32 * 16, N_NARROW = HD - N_WIDE;
};

/* mask: a bit per channel, wide or not */
template <int HD, bool IS_K>
__device__ __forceinline__ void order_channels(const uint8_t *mask, int lane, split_scratch<HD> *scratch) {
    const uint32_t *words = reinterpret_cast<const uint32_t *>(mask);
    uint32_t n_wide = 0;
    __syncwarp(); /* the step before is done with the scratch */
#pragma unroll
    for (int i = 0; i < (HD + 31) / 32; i++) {
        uint32_t word = HD >= 32 * (i + 1) ? words[i] : words[i] & ((1u << HD % 32) - 1), channel = 32 * i + lane;
        uint32_t n_before = n_wide + __popc(word & ((1u << lane) - 1));
        uint32_t place = word >> lane & 1 ? n_before : split_tiers<HD>::N_WIDE + channel - n_before;
        if (channel < HD)
            scratch->order[col_order(place)] = (uint8_t)(IS_K ? col_order(channel) : channel);
        n_wide += __popc(word);
    }
    __syncwarp();
}

/* The query's places from block FIRST on, N of them, rotated: to the lane's part of scratch->q. */
template <int HD, int NT, int N, int FIRST>
__device__ __forceinline__ void rotate_query(const column_block<HD, NT> *cols, int nt, int lane,
                                             split_scratch<HD> *scratch) {
    constexpr int N_J = N / 16;
    uint32_t col = lane % 4 * 2, row = lane / 4; /* the Hadamard matrix of 16: fragments differ in sign */
    uint32_t h = 0x3c003c00u ^ (__popc(row & col) & 1) << 15 ^ (__popc(row & (col + 1)) & 1) << 31;
    float c[N_J][4];
    clear<N_J, 1>(reinterpret_cast<float (&)[N_J][1][4]>(c));
#pragma unroll
    for (int j = 0; j < N_J; j++) {
        uint2 q = gather_query<HD, NT>(cols, scratch->order, FIRST + j, nt, lane);
        uint32_t signs = rotate_signs(j / 2) >> 16 * (j % 2) >> col;
        q.x ^= (signs << 15 & 0x8000u) | (signs << 30 & 0x80000000u);
        q.y ^= (signs << 7 & 0x8000u) | (signs << 22 & 0x80000000u);
        mma(c[j], h, h, h, h ^ 0x80008000u, q.x, q.y);
    }
#pragma unroll
    for (int stride = 1; stride < (N & -N) / 16; stride *= 2)
#pragma unroll
        for (int i = 0; i < N_J * 4; i++)
            if (!(i / 4 & stride)) {
                float a = c[i / 4][i % 4], b = c[i / 4 + stride][i % 4];
                c[i / 4][i % 4] = a + b;
                c[i / 4 + stride][i % 4] = a - b;
            }
#pragma unroll
    for (int j = 0; j < N_J; j++)
        scratch->q[FIRST + j][0][lane] = make_uint2(transpose_8x8(pack_halfs(c[j][0], c[j][1])),
                                                    transpose_8x8(pack_halfs(c[j][2], c[j][3])));
}

/* meta: scales per token of the wide and of the narrow places, each as levels.cuh has them, then the mask. WIDE, NARROW:
 * enum level_codes */
template <int HD, int NT, int NB, int WIDE, int NARROW>
__device__ __forceinline__ void score_split(const uint8_t *codes, const uint8_t *meta, int b0,
                                            const column_block<HD, NT> *cols, int lane, const logit_line<NT> &line,
                                            split_scratch<HD> *scratch, float (&s)[NB][NT][4]) {
    constexpr int N_WIDE = split_tiers<HD>::N_WIDE, N_NARROW = split_tiers<HD>::N_NARROW;
    constexpr int WIDE_BYTES = N_WIDE * TILE_TOKENS / 8 * level_traits<WIDE>::BITS;
    order_channels<HD, true>(meta + 4 * TILE_TOKENS, lane, scratch);
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        rotate_query<HD, NT, N_WIDE, 0>(cols, nt, lane, scratch);
        rotate_query<HD, NT, N_NARROW, N_WIDE / 16>(cols, nt, lane, scratch);
        logit_line<1> wide, narrow;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            wide.scale[0][i] = line.scale[nt][i] * hadamard_factor<N_WIDE>();
            narrow.scale[0][i] = line.scale[nt][i] * hadamard_factor<N_NARROW>();
            wide.origin[0][i] = 0.0f, narrow.origin[0][i] = line.origin[nt][i];
        }
        float x[NB][1][4], y[NB][1][4];
        score_levels<N_WIDE, 1, NB, WIDE, 2>(codes, meta, b0, scratch->q, lane, wide, x);
        score_levels<N_NARROW, 1, NB, NARROW, 2>(codes + WIDE_BYTES, meta + 2 * TILE_TOKENS, b0, scratch->q + N_WIDE / 16,
                                                 lane, narrow, y);
#pragma unroll
        for (int i = 0; i < NB * 4; i++)
            s[i / 4][nt][i % 4] = x[i / 4][0][i % 4] + y[i / 4][0][i % 4];
    }
}

/* The sums of a tier over the tokens of a step, rotated back, to the channels that its places have. */
template <int HD, int NB, int N, int FIRST, int CODES>
__device__ __forceinline__ void mix_tier(const uint8_t *codes, const uint8_t *meta, int b0, const uint32_t (&p)[NB][1][2],
                                         int lane, split_scratch<HD> *scratch, output_block<N, 1> &sums) {
    clear<N / 16, 1>(sums.o);
    mix_levels<N, 1, NB, CODES>(codes, meta, b0, p, lane, sums);
    float x[2][N / 8];
#pragma unroll
    for (int c = 0; c < 2; c++) {
#pragma unroll
        for (int i = 0; i < N / 8; i++)
            x[c][i] = sums.o[i / 2][0][c + i % 2 * 2];
        hadamard_rows(x[c], lane, N & -N);
    }
#pragma unroll
    for (int i = 0; i < N / 8; i++) {
        uint32_t sign = rotate_signs(i / 4) << (31 - 8 * (i % 4) - lane / 4) & 0x80000000u;
        float factor = __uint_as_float(__float_as_uint(level_unit<CODES>() * hadamard_factor<N>()) ^ sign);
        int channel = scratch->order[FIRST + col_order(8 * i + lane / 4)];
        scratch->o[channel][lane % 4] = make_float2(x[0][i] * factor, x[1][i] * factor);
    }
}

template <int HD, int NT, int NB, int WIDE, int NARROW>
__device__ __forceinline__ void mix_split(const uint8_t *codes, const uint8_t *meta, int b0, const uint32_t (&p)[NB][NT][2],
                                          int lane, split_scratch<HD> *scratch, output_block<HD, NT> &out) {
    constexpr int N_WIDE = split_tiers<HD>::N_WIDE, N_NARROW = split_tiers<HD>::N_NARROW;
    constexpr int WIDE_BYTES = N_WIDE * TILE_TOKENS / 8 * level_traits<WIDE>::BITS;
    order_channels<HD, false>(meta + 4 * TILE_TOKENS, lane, scratch);
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        uint32_t columns[NB][1][2];
#pragma unroll
        for (int i = 0; i < NB * 2; i++)
            columns[i / 2][0][i % 2] = p[i / 2][nt][i % 2];
        output_block<N_WIDE, 1> wide;
        output_block<N_NARROW, 1> narrow;
#pragma unroll
        for (int i = 0; i < 4; i++)
            wide.zero[0][i] = 0.0f, narrow.zero[0][i] = out.zero[nt][i]; /* one of them sums probabilities */
        mix_tier<HD, NB, N_WIDE, 0, WIDE>(codes, meta, b0, columns, lane, scratch, wide);
        mix_tier<HD, NB, N_NARROW, N_WIDE, NARROW>(codes + WIDE_BYTES, meta + 2 * TILE_TOKENS, b0, columns, lane, scratch,
                                                   narrow);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; i++)
            out.zero[nt][i] = narrow.zero[0][i];
#pragma unroll
        for (int i = 0; i < HD / 8; i++) {
            float2 two = scratch->o[8 * i + lane / 4][lane % 4];
            out.o[i / 2][nt][i % 2 * 2] += two.x;
            out.o[i / 2][nt][i % 2 * 2 + 1] += two.y;
        }
        __syncwarp();
    }
}

#endif
