/*
 * Decode attention over codes that are looked up: the codebooks of turbo, e2m1 of nvfp4, e4m3 of fp8. Their values become
 * half floats in registers:
 *
 *   codebook, e2m1   two byte permutations (of the low and the high bytes of a table of eight halves) give four values, two
 *                    more put them into two fragment registers: 1.6 instructions per element at 3 bits, 2.1 at 4 (whose
 * sign is shifted in) and 1.9 for e2m1, whose low bytes are 0 2 bits           sign and magnitude: a shift, an AND and an
 * OR of a mantissa for two, see tile.h e4m3             an e4m3 is the half of 2^-8 times its value without 4 low bits and
 * an exponent bit: two shifts, two ANDs for two
 *
 * Scales: of a token (turbo) into S and P; of a token and 16 channels (nvfp4) into S, after each product, and P, before it;
 * of a tile into S and into the tile's share of O (nvfp4) or P (fp8, a power of two).
 */
#ifndef KVQ_CUDA_LEVELS_CUH
#define KVQ_CUDA_LEVELS_CUH

#include "attend.cuh"

enum level_codes { TURBO_2, TURBO_3, TURBO_4, E2M1, E4M3 };

template <int CODES> struct level_traits {
    static constexpr int BITS = CODES == TURBO_2 ? 2 : CODES == TURBO_3 ? 3 : CODES == E4M3 ? 8 : 4;
    static constexpr bool SIGNED = BITS == 4;                        /* magnitudes are looked up */
    static constexpr bool PER_TILE = CODES == E2M1 || CODES == E4M3; /* a float scale follows the tile's other scales */
};

/* Low and high bytes of eight halves, in registers. */
struct level_table {
    uint32_t low[2], high[2];
};

/* kv/turbo.c's centroids, the magnitudes of 4 bits; e2m1's magnitudes, whose low bytes are 0. */
template <int CODES> __device__ __forceinline__ level_table make_table() {
    level_table t = {};
    if constexpr (CODES == TURBO_3)
        t = {{0xd80c604eu, 0x4e600cd8u}, {0xb3babdc0u, 0x403d3a33u}};
    if constexpr (CODES == TURBO_4)
        t = {{0x8a41351cu, 0x77237906u}, {0x3b393630u, 0x41403e3du}};
    if constexpr (CODES == E2M1)
        t = {{0, 0}, {0x3e3c3800u, 0x46444240u}};
    if constexpr (CODES == TURBO_2)
        t.low[0] = per_lane(0x84008400u); /* sign and magnitude */
    for (int i = 0; i < 2 && CODES != TURBO_2 && CODES != E4M3; i++) {
        t.high[i] = per_lane(t.high[i]);
        t.low[i] = CODES == E2M1 ? 0 : per_lane(t.low[i]);
    }
    return t;
}

__device__ __forceinline__ uint32_t shifted(uint32_t x, int left) {
    return left >= 0 ? x << left : x >> -left;
}

/* a[r][b]: the fragment registers of token blocks b0 .. b0 + NB - 1, as half floats. */
template <int CODES, int NB>
__device__ __forceinline__ void level_halfs(const level_table &t, const uint32_t *w, int b0, uint32_t (&a)[4][NB]) {
    constexpr int BITS = level_traits<CODES>::BITS;
    constexpr uint32_t SIGNS = 0x80008000u, EVEN = 0x6240u, ODD = 0x7351u; /* blocks of a pair, from { low, high } bytes */
#pragma unroll
    for (int r = 0; r < 4; r++) {
        if constexpr (BITS == 8) {
            uint32_t x = NB == 1 ? w[r] >> 8 * (b0 & 1) : w[r];
            a[r][0] = (x << 8 & SIGNS) | (x << 7 & 0x3f803f80u);
            if constexpr (NB == 2)
                a[r][1] = (x & SIGNS) | (x >> 1 & 0x3f803f80u);
        } else if constexpr (BITS == 2) {
#pragma unroll
            for (int b = 0; b < NB; b++) {
                int left = 2 * (4 * (r % 2) + (NB == 1 ? b0 : b));
                uint32_t x = w[r / 2] << left | (left > 10 ? w[r / 2] >> (32 - left) : 0);
                a[r][b] = (x & t.low[0]) | LEVEL_MANTISSA * 0x00010001u;
            }
        } else {
            uint32_t selector, low = 0, high = 0;
            if constexpr (BITS == 3)
                selector = (w[r / 2] >> 2 * (r % 2) & 0x33333333u) | (shifted(w[2], 2 - r) & 0x44444444u);
            else
                selector = w[r] & 0x77777777u;
#pragma unroll
            for (int b = 0; b < NB; b++) {
                int block = NB == 1 ? b0 : b;
                if (NB == 1 || b % 2 == 0) {
                    low = CODES == E2M1 ? 0 : permute_bytes(t.low[0], t.low[1], selector >> 16 * (block / 2));
                    high = permute_bytes(t.high[0], t.high[1], selector >> 16 * (block / 2));
                }
                a[r][b] = permute_bytes(low, high, block % 2 ? ODD : EVEN);
                if constexpr (level_traits<CODES>::SIGNED)
                    a[r][b] |= w[r] << (12 - 4 * block) & SIGNS;
            }
        }
    }
}

/* What a code of the tensor cores is to be multiplied by. */
template <int CODES> __device__ constexpr float level_unit() {
    return CODES == TURBO_2 ? LEVEL_UNIT_2 : 1.0f;
}

/* Two e4m3 scales of four bytes as halves, times 2^-8: of bytes 0 and 2, or of 1 and 3. */
__device__ __forceinline__ uint32_t scale_pair(uint32_t bytes, int i) {
    return (i == 0 ? bytes << 7 : bytes >> 1) & 0x7f807f80u;
}

__device__ __forceinline__ float2 halfs_of(uint32_t pair) {
    return __half22float2(*reinterpret_cast<__half2 *>(&pair));
}

/* The float of an nvfp4 or fp8 tile, times what e4m3 as halves are short of. */
template <int HD, int CODES> __device__ __forceinline__ float tile_scale(const uint8_t *meta) {
    return *reinterpret_cast<const float *>(meta + (CODES == E2M1 ? 4 * HD : 0)) * 256.0f;
}

/* columns: B fragments of Q; meta: turbo (block, row % 8, row / 8) half; nvfp4: see nvfp4_scale_place, then a float; fp8: a
 * float */
template <int HD, int NT, int NB, int CODES, int UNROLL>
__device__ __forceinline__ void score_levels(const uint8_t *codes, const uint8_t *meta, int b0,
                                             const uint2 (*columns)[NT][32], int lane, const logit_line<NT> &line,
                                             float (&s)[NB][NT][4]) {
    constexpr int N_J = HD / 16, BITS = level_traits<CODES>::BITS, W = words_per_lane<BITS>::N;
    const level_table table = make_table<CODES>();
    clear<NB, NT>(s);
#pragma unroll(UNROLL)
    for (int j = 0; j < N_J; j++) {
        uint32_t w[W], a[4][NB];
        load_words<BITS>(codes, j, lane, w);
        level_halfs<CODES, NB>(table, w, b0, a);
        [[maybe_unused]] uint2 scales;
        if constexpr (CODES == E2M1)
            scales = reinterpret_cast<const uint2 *>(meta)[j * 8 + lane / 4];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            uint2 q = columns[j][nt][lane];
#pragma unroll
            for (int b = 0; b < NB; b++) {
                if constexpr (CODES == E2M1) {
                    int block = b0 + b;
                    float2 scale = halfs_of(scale_pair(block < 2 ? scales.x : scales.y, block % 2));
                    float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                    mma(c, a[0][b], a[1][b], a[2][b], a[3][b], q.x, q.y);
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        s[b][nt][i] += c[i] * (i < 2 ? scale.x : scale.y);
                } else {
                    mma(s[b][nt], a[0][b], a[1][b], a[2][b], a[3][b], q.x, q.y);
                }
            }
        }
    }
    const __half2 *token = reinterpret_cast<const __half2 *>(meta) + lane / 4;
#pragma unroll
    for (int b = 0; b < NB; b++) {
        float2 scale;
        if constexpr (level_traits<CODES>::PER_TILE)
            scale.x = scale.y = tile_scale<HD, CODES>(meta);
        else
            scale = __half22float2(token[(b0 + b) * 8]);
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[b][nt][i] = s[b][nt][i] * ((i < 2 ? scale.x : scale.y) * (line.scale[nt][i & 1] * level_unit<CODES>())) -
                              line.origin[nt][i & 1];
    }
}

/* meta: turbo (lane % 4, block, col / 8, col % 2) half; nvfp4 and fp8 as above */
template <int HD, int NT, int NB, int CODES>
__device__ __forceinline__ void mix_levels(const uint8_t *codes, const uint8_t *meta, int b0,
                                           const uint32_t (&p)[NB][NT][2], int lane, output_block<HD, NT> &out) {
    constexpr int N_J = HD / 16, BITS = level_traits<CODES>::BITS, W = words_per_lane<BITS>::N;
    const level_table table = make_table<CODES>();
    uint2 scale[NB];
    uint32_t ps[NB][NT][2];
    if constexpr (!level_traits<CODES>::PER_TILE)
        load_token_scales<NB>(meta, lane % 4, b0, scale);
#pragma unroll
    for (int b = 0; b < NB; b++) {
        if constexpr (CODES == E4M3) /* a power of two */
            scale[b].x = scale[b].y = pack_halfs(tile_scale<HD, CODES>(meta), tile_scale<HD, CODES>(meta));
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            mma(out.zero[nt], 0, HALF_ONES, 0, HALF_ONES, p[b][nt][0], p[b][nt][1]);
            ps[b][nt][0] = CODES == E2M1 ? p[b][nt][0] : mul_halfs(p[b][nt][0], scale[b].x);
            ps[b][nt][1] = CODES == E2M1 ? p[b][nt][1] : mul_halfs(p[b][nt][1], scale[b].y);
        }
    }
#pragma unroll
    for (int j = 0; j < N_J; j++) {
        uint32_t w[W], a[4][NB];
        load_words<BITS>(codes, j, lane, w);
        level_halfs<CODES, NB>(table, w, b0, a);
        float c[NT][4];
#pragma unroll
        for (int i = 0; i < NT * 4; i++)
            c[i / 4][i % 4] = 0.0f;
#pragma unroll
        for (int b = 0; b < NB; b++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                uint32_t low = ps[b][nt][0], high = ps[b][nt][1];
                if constexpr (CODES == E2M1) {
                    uint32_t scale = reinterpret_cast<const uint32_t *>(meta)[(j * 4 + lane % 4) * 4 + b0 + b];
                    low = mul_halfs(low, scale_pair(scale, 0));
                    high = mul_halfs(high, scale_pair(scale, 1));
                }
                mma(CODES == E2M1 ? c[nt] : out.o[j][nt], a[0][b], a[1][b], a[2][b], a[3][b], low, high);
            }
        if constexpr (CODES == E2M1)
#pragma unroll
            for (int i = 0; i < NT * 4; i++)
                out.o[j][i / 4][i % 4] += c[i / 4][i % 4] * tile_scale<HD, CODES>(meta);
    }
}

#endif
