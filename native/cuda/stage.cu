/*
 * Staging for prefill attention: tiles of any kind, encoded or f16, as half floats in the order of prefill.h. One block per
 * tile, KV head and side, one warp per 16 channels: the words of a lane become the same lane's words of 16 matrices.
 *
 * Where keys or values change their basis (f16 tiles beside rotated ones, rotated keys that get their bias back) and where
 * channels are in an order of the tile's own, a tile goes through shared memory as floats.
 */
#include "key_bias.cuh"
#include "prefill.h"
#include "tiers.cuh"

namespace {

typedef uint32_t fragments[4][4]; /* (register, token block) of a lane: 16 channels x 64 tokens */

struct tile_source {
    const uint8_t *codes; /* of the side */
    uint32_t head, tile;
    int n_tokens; /* from there on nothing was ever written */
    bool coded;
};

struct lane_place { /* a warp's 16 channels, its lane */
    int j, n_j, lane;
};

__device__ __forceinline__ uint32_t both(float x) {
    return pack_halfs(x, x);
}

#define EACH_REGISTER(r, b) _Pragma("unroll") for (int r = 0; r < 4; r++) _Pragma("unroll") for (int b = 0; b < 4; b++)

/* ---- codes ---- */

/* V of 2 bits lies in pairs of channel blocks. */
__device__ __forceinline__ void load_pair(const uint8_t *codes, lane_place at, fragments &a) {
    if (at.j % 2 == 0 && at.j + 1 == at.n_j) {
        unpack_pair<4, 1>(codes, at.j, 0, at.lane, reinterpret_cast<uint32_t (&)[1][4][4]>(a));
        return;
    }
    uint32_t two[2][4][4];
    unpack_pair<4, 2>(codes, at.j / 2 * 2, 0, at.lane, two);
    EACH_REGISTER(r, b)
    a[r][b] = at.j % 2 == 0 ? two[0][r][b] : two[1][r][b];
}

/* Codes minus offset, as half floats: with 0x6400 they are 1024 more. */
template <bool IS_K, int BITS>
__device__ __forceinline__ void load_integers(const uint8_t *codes, lane_place at, float offset, fragments &a) {
    if constexpr (BITS == 8) {
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
            uint32_t w[4];
            load_words<8>(codes + pair * at.n_j * 512, at.j, at.lane, w);
#pragma unroll
            for (int i = 0; i < 8; i++)
                a[i / 2][2 * pair + i % 2] = w[i / 2] >> 8 * (i % 2) & 0x00ff00ffu;
        }
    } else if constexpr (BITS == 2 && !IS_K) {
        load_pair(codes, at, a);
    } else {
        uint32_t w[words_per_lane<BITS>::N];
        load_words<BITS>(codes, at.j, at.lane, w);
        unpack<BITS, 4>(w, 0, a);
    }
    EACH_REGISTER(r, b) {
        float unit = 1.0f / (float)(1 << (IS_K ? k_shift<BITS, 4>(b, r % 2) : v_shift<BITS>(at.j, r % 2)));
        a[r][b] = fma_halfs(a[r][b] | 0x64006400u, both(unit), both(-1024.0f * unit - offset));
    }
}

template <int CODES> __device__ __forceinline__ void load_levels(const uint8_t *codes, lane_place at, fragments &a) {
    constexpr int BITS = level_traits<CODES>::BITS;
    const level_table table = make_table<CODES>();
    if constexpr (BITS == 8) {
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
            uint32_t w[4], two[4][2];
            load_words<8>(codes + pair * at.n_j * 512, at.j, at.lane, w);
            level_halfs<CODES, 2>(table, w, 0, two);
#pragma unroll
            for (int i = 0; i < 8; i++)
                a[i / 2][2 * pair + i % 2] = two[i / 2][i % 2];
        }
    } else {
        uint32_t w[words_per_lane<BITS>::N];
        load_words<BITS>(codes, at.j, at.lane, w);
        level_halfs<CODES, 4>(table, w, 0, a);
    }
    if constexpr (CODES == TURBO_2) {
        EACH_REGISTER(r, b)
        a[r][b] = mul_halfs(a[r][b], both(LEVEL_UNIT_2));
    }
}

/* ---- scales ---- */

/* Row of register r: 8 (r % 2) + lane / 4. pair: factors of the two rows of a token block */
__device__ __forceinline__ void multiply_rows(fragments &a, int b, uint32_t pair) {
    uint32_t low = permute_bytes(pair, pair, 0x1010), high = permute_bytes(pair, pair, 0x3232);
#pragma unroll
    for (int r = 0; r < 4; r++)
        a[r][b] = mul_halfs(a[r][b], r % 2 ? high : low);
}

__device__ __forceinline__ void multiply_cols(fragments &a, int b, uint2 scale) {
#pragma unroll
    for (int r = 0; r < 4; r++)
        a[r][b] = mul_halfs(a[r][b], r < 2 ? scale.x : scale.y);
}

__device__ __forceinline__ void multiply_add_cols(fragments &a, int b, uint2 scale, uint2 zero) {
#pragma unroll
    for (int r = 0; r < 4; r++)
        a[r][b] = fma_halfs(a[r][b], r < 2 ? scale.x : scale.y, r < 2 ? zero.x : zero.y);
}

__device__ __forceinline__ void multiply_all(fragments &a, float factor) {
    EACH_REGISTER(r, b) {
        float2 x = halfs_of(a[r][b]);
        a[r][b] = pack_halfs(x.x * factor, x.y * factor);
    }
}

/* ---- keys: rows are tokens, columns channels; the layouts of meta are attend.cuh's and levels.cuh's ---- */

template <int BITS, int GROUPS>
__device__ __forceinline__ void k_by_channel(const uint8_t *codes, const uint8_t *meta, lane_place at, fragments &a) {
    load_integers<true, BITS>(codes, at, 0.0f, a);
    const uint4 *affine = reinterpret_cast<const uint4 *>(meta) + (at.j * 4 + at.lane % 4) * GROUPS;
    uint4 zero = affine[GROUPS - 1], scale = affine[0];
#pragma unroll
    for (int b = 0; b < 4; b++)
        if (GROUPS == 1)
            multiply_add_cols(a, b, make_uint2(zero.y, zero.w), make_uint2(zero.x, zero.z));
        else if (b < 2)
            multiply_add_cols(a, b, make_uint2(scale.x, scale.y), make_uint2(zero.x, zero.z));
        else
            multiply_add_cols(a, b, make_uint2(scale.z, scale.w), make_uint2(zero.y, zero.w));
}

template <int BITS>
__device__ __forceinline__ void k_normed(const uint8_t *codes, const uint8_t *meta, lane_place at, fragments &a) {
    k_by_channel<BITS, 1>(codes, meta, at, a);
    const uint32_t *token = reinterpret_cast<const uint32_t *>(meta + 64 * at.n_j) + at.lane / 4;
#pragma unroll
    for (int b = 0; b < 4; b++)
        multiply_rows(a, b, token[b * 8]);
}

template <int BITS, int OFFSET>
__device__ __forceinline__ void k_by_token(const uint8_t *codes, const uint8_t *meta, lane_place at, fragments &a) {
    load_integers<true, BITS>(codes, at, OFFSET, a);
    int n_groups = (at.n_j + 1) / 2;
    const uint32_t *scales = reinterpret_cast<const uint32_t *>(meta) + at.lane / 4 * n_groups + at.j / 2;
#pragma unroll
    for (int b = 0; b < 4; b++)
        multiply_rows(a, b, scales[b * 8 * n_groups]);
}

template <int CODES>
__device__ __forceinline__ void k_levels(const uint8_t *codes, const uint8_t *meta, lane_place at, fragments &a) {
    load_levels<CODES>(codes, at, a);
    if constexpr (CODES == E2M1) {
        uint2 scales = reinterpret_cast<const uint2 *>(meta)[at.j * 8 + at.lane / 4];
#pragma unroll
        for (int b = 0; b < 4; b++)
            multiply_rows(a, b, scale_pair(b < 2 ? scales.x : scales.y, b % 2));
    } else if constexpr (CODES != E4M3) {
        const uint32_t *token = reinterpret_cast<const uint32_t *>(meta) + at.lane / 4;
#pragma unroll
        for (int b = 0; b < 4; b++)
            multiply_rows(a, b, token[b * 8]);
    }
    if constexpr (level_traits<CODES>::PER_TILE)
        multiply_all(a, *reinterpret_cast<const float *>(meta + (CODES == E2M1 ? 64 * at.n_j : 0)) * 256.0f);
}

__device__ void decode_keys(uint32_t path, const uint8_t *codes, const uint8_t *meta, lane_place at, fragments &a) {
    switch (path) {
    case PATH_CHANNEL_2:
        return k_by_channel<2, 2>(codes, meta, at, a);
    case PATH_CHANNEL_4:
        return k_by_channel<4, 2>(codes, meta, at, a);
    case PATH_CHANNEL_2_G64:
        return k_by_channel<2, 1>(codes, meta, at, a);
    case PATH_NORMED_2:
        return k_normed<2>(codes, meta, at, a);
    case PATH_NORMED_3:
        return k_normed<3>(codes, meta, at, a);
    case PATH_NORMED_4:
        return k_normed<4>(codes, meta, at, a);
    case PATH_TOKEN_4:
        return k_by_token<4, 8>(codes, meta, at, a);
    case PATH_TOKEN_8:
        return k_by_token<8, 128>(codes, meta, at, a);
    case PATH_TURBO_2:
        return k_levels<TURBO_2>(codes, meta, at, a);
    case PATH_TURBO_3:
        return k_levels<TURBO_3>(codes, meta, at, a);
    case PATH_TURBO_4:
        return k_levels<TURBO_4>(codes, meta, at, a);
    case PATH_NVFP4:
        return k_levels<E2M1>(codes, meta, at, a);
    case PATH_FP8:
        return k_levels<E4M3>(codes, meta, at, a);
    }
}

/* ---- values: rows are channels, columns tokens ---- */

template <int BITS, int G, bool CHANNEL>
__device__ __forceinline__ void v_affine(const uint8_t *codes, const uint8_t *meta, lane_place at, fragments &a) {
    load_integers<false, BITS>(codes, at, 0.0f, a);
    int n_groups = (at.n_j * 16 + G - 1) / G, g = at.j * 16 / G;
    const uint2 *scales = reinterpret_cast<const uint2 *>(meta) + g * 16 + at.lane % 4 * 4, *zeros = scales + 16 * n_groups;
#pragma unroll
    for (int b = 0; b < 4; b++) {
        multiply_add_cols(a, b, scales[b], zeros[b]);
        if constexpr (CHANNEL)
            multiply_rows(a, b, reinterpret_cast<const uint32_t *>(meta + 256)[at.j * 8 + at.lane / 4]);
    }
}

template <int BITS, int OFFSET>
__device__ __forceinline__ void v_by_token(const uint8_t *codes, const uint8_t *meta, lane_place at, fragments &a) {
    load_integers<false, BITS>(codes, at, OFFSET, a);
#pragma unroll
    for (int b = 0; b < 4; b++)
        multiply_cols(a, b, reinterpret_cast<const uint2 *>(meta)[at.j / 2 * 16 + at.lane % 4 * 4 + b]);
}

template <int CODES>
__device__ __forceinline__ void v_levels(const uint8_t *codes, const uint8_t *meta, lane_place at, fragments &a) {
    load_levels<CODES>(codes, at, a);
#pragma unroll
    for (int b = 0; b < 4; b++) {
        if constexpr (CODES == E2M1) {
            uint32_t scale = reinterpret_cast<const uint32_t *>(meta)[(at.j * 4 + at.lane % 4) * 4 + b];
            multiply_cols(a, b, make_uint2(scale_pair(scale, 0), scale_pair(scale, 1)));
        } else if constexpr (CODES != E4M3) {
            multiply_cols(a, b, reinterpret_cast<const uint2 *>(meta)[at.lane % 4 * 4 + b]);
        }
    }
    if constexpr (level_traits<CODES>::PER_TILE)
        multiply_all(a, *reinterpret_cast<const float *>(meta + (CODES == E2M1 ? 64 * at.n_j : 0)) * 256.0f);
}

__device__ void decode_values(uint32_t path, const uint8_t *codes, const uint8_t *meta, lane_place at, fragments &a) {
    switch (path) {
    case PATH_AFFINE_2:
        return v_affine<2, 32, false>(codes, meta, at, a);
    case PATH_AFFINE_4:
        return v_affine<4, 32, false>(codes, meta, at, a);
    case PATH_AFFINE_2_G64:
        return v_affine<2, 64, false>(codes, meta, at, a);
    case PATH_NORMED_2:
        return v_affine<2, 256, true>(codes, meta, at, a);
    case PATH_NORMED_3:
        return v_affine<3, 256, true>(codes, meta, at, a);
    case PATH_NORMED_4:
        return v_affine<4, 256, true>(codes, meta, at, a);
    case PATH_TOKEN_4:
        return v_by_token<4, 8>(codes, meta, at, a);
    case PATH_TOKEN_8:
        return v_by_token<8, 128>(codes, meta, at, a);
    case PATH_TURBO_2:
        return v_levels<TURBO_2>(codes, meta, at, a);
    case PATH_TURBO_3:
        return v_levels<TURBO_3>(codes, meta, at, a);
    case PATH_TURBO_4:
        return v_levels<TURBO_4>(codes, meta, at, a);
    case PATH_NVFP4:
        return v_levels<E2M1>(codes, meta, at, a);
    case PATH_FP8:
        return v_levels<E4M3>(codes, meta, at, a);
    }
}

/* ---- f16 tiles ---- */

template <bool IS_K> __device__ void load_f16(const tile_source &source, lane_place at, fragments &a) {
#pragma unroll
    for (int b = 0; b < 4; b++) {
        uint4 x = reinterpret_cast<const uint4 *>(source.codes)[(b * at.n_j + at.j) * 32 + at.lane];
        a[0][b] = x.x, a[1][b] = x.y, a[2][b] = x.z, a[3][b] = x.w;
    }
    if (source.n_tokens >= TILE_TOKENS)
        return;
    EACH_REGISTER(r, b) {
        if (IS_K) {
            a[r][b] = 16 * b + 8 * (r % 2) + at.lane / 4 < source.n_tokens ? a[r][b] : 0;
        } else {
            int token = 16 * b + 8 * (r / 2) + at.lane % 4 * 2;
            a[r][b] &= (token < source.n_tokens ? 0xffffu : 0) | (token + 1 < source.n_tokens ? 0xffff0000u : 0);
        }
    }
}

/* ---- through shared memory: x (64, ld) ---- */

/* A block of places of tiered keys, with codes of WIDTH bits, 0: of several widths; see tiers.cuh. */
template <int WIDTH>
__device__ void decode_tier(const uint8_t *codes, const uint8_t *meta, uint32_t bits, lane_place at, float *x, int ld) {
    fragments a;
    uint32_t head_dim = 16 * at.n_j;
    if constexpr (WIDTH == 0) {
        unpack_mixed<4>(codes, bits, head_dim, at.j, 0, at.lane, a);
        EACH_REGISTER(r, b)
        a[r][b] = fma_halfs(a[r][b] | 0x64006400u, both(1.0f), both(-1024.0f));
    } else {
        load_integers<true, WIDTH>(codes + 4 * tier_word(FAMILY_TIER, bits, head_dim, 16 * at.j), {0, 0, at.lane}, 0.0f, a);
    }
    uint4 affine = reinterpret_cast<const uint4 *>(meta)[at.j * 4 + at.lane % 4]; /* { zero, scale } of two pairs */
    uint32_t order = reinterpret_cast<const uint32_t *>(meta + 64 * at.n_j + 2 * TILE_TOKENS)[at.j * 4 + at.lane % 4];
    const uint32_t *token = reinterpret_cast<const uint32_t *>(meta + 64 * at.n_j) + at.lane / 4;
#pragma unroll
    for (int b = 0; b < 4; b++) {
        multiply_add_cols(a, b, make_uint2(affine.y, affine.w), make_uint2(affine.x, affine.z));
        multiply_rows(a, b, token[b * 8]);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float2 two = halfs_of(a[r][b]);
            float *row = x + (16 * b + 8 * (r % 2) + at.lane / 4) * ld;
            row[from_col_order(order >> 8 * (r / 2 * 2) & 0xff)] = two.x;
            row[from_col_order(order >> 8 * (r / 2 * 2 + 1) & 0xff)] = two.y;
        }
    }
}

__device__ void decode_tiers(uint32_t bits, const uint8_t *codes, const uint8_t *meta, lane_place at, float *x, int ld) {
    uint32_t place = 16 * at.j, head_dim = 16 * at.n_j;
    switch (is_mixed(FAMILY_TIER, bits, head_dim, place) ? 0 : tier_bits(FAMILY_TIER, bits, head_dim, place)) {
    case 0:
        return decode_tier<0>(codes, meta, bits, at, x, ld);
    case 1:
        return decode_tier<1>(codes, meta, bits, at, x, ld);
    case 2:
        return decode_tier<2>(codes, meta, bits, at, x, ld);
    case 3:
        return decode_tier<3>(codes, meta, bits, at, x, ld);
    case 4:
        return decode_tier<4>(codes, meta, bits, at, x, ld);
    }
}

template <bool IS_K> __device__ void scatter(const fragments &a, lane_place at, float *x, int ld) {
    EACH_REGISTER(r, b) {
        int row = 8 * (r % 2) + at.lane / 4, col = 8 * (r / 2) + at.lane % 4 * 2;
        float *to = IS_K ? x + (16 * b + row) * ld + 16 * at.j + col : x + (16 * b + col) * ld + 16 * at.j + row;
        float2 two = halfs_of(a[r][b]);
        to[0] = two.x;
        to[IS_K ? 1 : ld] = two.y;
    }
}

/* A split tile, its tiers rotated, its channels in the tile's order. */
template <bool IS_K>
__device__ void decode_split(uint32_t bits, const uint8_t *codes, const uint8_t *meta, lane_place at, float *x, int ld) {
    fragments a;
    uint32_t head_dim = 16 * at.n_j;
    tier narrow = tier_of(FAMILY_SPLIT, bits, head_dim, 1);
    bool is_wide = 16 * at.j < narrow.first;
    lane_place in_tier = {is_wide ? at.j : at.j - (int)narrow.first / 16, at.n_j, at.lane};
    if (!is_wide) {
        codes += 4 * tier_word(FAMILY_SPLIT, bits, head_dim, narrow.first);
        meta += 2 * TILE_TOKENS;
    }
    uint32_t path = PATH_TURBO_2 + bits - 2 + is_wide;
    if (IS_K)
        decode_keys(path, codes, meta, in_tier, a);
    else
        decode_values(path, codes, meta, in_tier, a);
    scatter<IS_K>(a, at, x, ld);
}

/* Its rows turned back, its channels where they belong; order: (head_dim) bytes of shared memory */
__device__ void restore_split(const uint8_t *mask, uint32_t head_dim, float *x, int ld, uint8_t *order) {
    const uint32_t n_wide = tier_of(FAMILY_SPLIT, 0, head_dim, 0).end, lane = threadIdx.x % 32;
    const uint32_t *words = reinterpret_cast<const uint32_t *>(mask);
    for (uint32_t d = threadIdx.x; d < head_dim; d += blockDim.x) {
        uint32_t word = words[d / 32], n_before = __popc(word & ((1u << d % 32) - 1));
        for (uint32_t i = 0; i < d / 32; i++)
            n_before += __popc(words[i]);
        order[word >> d % 32 & 1 ? n_before : n_wide + d - n_before] = (uint8_t)d;
    }
    __syncthreads();
    for (int t = threadIdx.x / 32; t < TILE_TOKENS; t += blockDim.x / 32) {
        float y[2][4], *row = x + t * ld;
#pragma unroll
        for (int set = 0; set < 2; set++) {
            uint32_t first = set == 0 ? 0 : n_wide, n = set == 0 ? n_wide : head_dim - n_wide;
#pragma unroll
            for (int i = 0; i < 4; i++)
                y[set][i] = lane + 32 * i < n ? row[first + lane + 32 * i] : 0.0f;
            hadamard_lanes(y[set], lane, n & -n);
        }
        __syncwarp(); /* all of the row is read */
#pragma unroll
        for (int set = 0; set < 2; set++) {
            uint32_t first = set == 0 ? 0 : n_wide, n = set == 0 ? n_wide : head_dim - n_wide;
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (lane + 32 * i < n)
                    row[order[first + lane + 32 * i]] = y[set][i] * (rotate_negative(lane + 32 * i) ? -hadamard_factor(n)
                                                                                                    : hadamard_factor(n));
        }
    }
}

/* The rotation of kv/rotate.h or its inverse, of rows of x in place: a warp has a row, a lane every 32nd element. */
__device__ void rotate(float *x, int ld, int head_dim, bool back) {
    int lane = threadIdx.x % 32;
    for (int t = threadIdx.x / 32; t < TILE_TOKENS; t += blockDim.x / 32) {
        float y[8], *row = x + t * ld + lane;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int d = lane + 32 * i;
            y[i] = d >= head_dim ? 0.0f : !back && rotate_negative(d) ? -row[32 * i] : row[32 * i];
        }
        hadamard_lanes(y, lane, head_dim & -head_dim);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int d = lane + 32 * i;
            if (d < head_dim)
                row[32 * i] = y[i] * (back && rotate_negative(d) ? -hadamard_factor(head_dim) : hadamard_factor(head_dim));
        }
    }
    __syncthreads();
}

/* ---- what attention reads ---- */

/* What no half float can hold becomes the largest, so that it cannot make a not-a-number of a sum. */
__device__ __forceinline__ uint32_t bounded(uint32_t pair) {
    return clamp_halfs(pair, both(65504.0f));
}

template <bool IS_K> __device__ void store_fragments(const fragments &a, lane_place at, uint32_t *out) {
    EACH_REGISTER(r, b) {
        int row = r % 2, col = r / 2;
        int matrix = IS_K ? (2 * at.j + col) * 8 + 2 * b + row : (2 * b + col) * 2 * at.n_j + 2 * at.j + row;
        out[matrix * 32 + at.lane] = bounded(a[r][b]);
    }
}

template <bool IS_K> __device__ void store_tile(const float *x, int ld, int head_dim, uint32_t *out) {
    for (int i = threadIdx.x; i < head_dim * TILE_TOKENS / 2; i += blockDim.x) {
        int matrix = i / 32, row = i % 32 / 4, col = i % 4 * 2, n = IS_K ? 8 : head_dim / 8;
        int first = matrix / n * 8, second = matrix % n * 8; /* K: channel, token; V: token, channel */
        const float *from = x + (IS_K ? (second + row) * ld + first + col : (first + col) * ld + second + row);
        out[i] = bounded(pack_halfs(from[0], from[IS_K ? 1 : ld]));
    }
}

/* ---- a tile ---- */

__device__ bool find_source(const prefill_args &a, uint32_t slot, uint32_t head, bool is_k, tile_source *source) {
    for (uint32_t i = 0; i < a.n_spans; i++) {
        const prefill_span &s = a.spans[i];
        uint32_t first = round_start(s, a.nth_round, a.n_rounds), end = round_start(s, a.nth_round + 1, a.n_rounds);
        if (slot < s.slot || slot - s.slot >= end - first)
            continue;
        uint32_t tile = first + slot - s.slot, page = a.tables[s.table + tile];
        source->coded = page & KVQ_PAGE_CODED;
        uint32_t k_bytes = source->coded ? a.k_tile_bytes : TILE_TOKENS * a.head_dim * 2,
                 v_bytes = source->coded ? a.v_tile_bytes : k_bytes;
        source->codes = (source->coded ? a.coded : a.raw) +
                        ((size_t)(page & ~KVQ_PAGE_CODED) * a.n_head_kv + head) * (k_bytes + v_bytes) +
                        (is_k ? 0 : k_bytes);
        source->head = head;
        source->tile = tile;
        source->n_tokens = (int)(s.pos + s.n_tokens - tile * TILE_TOKENS);
        return true;
    }
    return false;
}

__host__ __device__ inline bool is_tiered(const tile_side &side) {
    return side.path == PATH_TIER_2 || side.path == PATH_TIER_3;
}

__host__ __device__ inline bool is_split(const tile_side &side) {
    return side.path == PATH_SPLIT_2 || side.path == PATH_SPLIT_3;
}

template <bool IS_K> __device__ void stage_tile(const prefill_args &a, const tile_source &source, uint32_t *out, float *x) {
    const tile_side &side = IS_K ? a.k : a.v;
    const bool rotated = IS_K ? a.k_rotated : a.v_rotated;
    const bool biased = IS_K && a.bias.n_pairs > 0;
    const int ld = a.head_dim + 1;
    lane_place at = {(int)threadIdx.x / 32, (int)a.head_dim / 16, (int)threadIdx.x % 32};
    const uint8_t *meta = source.codes + TILE_TOKENS / side.chunk_tokens * side.chunk_bytes;
    if (source.coded && is_tiered(side)) {
        decode_tiers(side.bits, source.codes, meta, at, x, ld);
    } else if (source.coded && is_split(side)) {
        decode_split<IS_K>(side.bits, source.codes, meta, at, x, ld);
        __syncthreads();
        restore_split(meta + 4 * TILE_TOKENS, a.head_dim, x, ld, reinterpret_cast<uint8_t *>(x + TILE_TOKENS * ld));
    } else {
        fragments f;
        if (!source.coded || side.path == PATH_F16)
            load_f16<IS_K>(source, at, f);
        else if (IS_K)
            decode_keys(side.path, source.codes, meta, at, f);
        else
            decode_values(side.path, source.codes, meta, at, f);
        if (source.coded ? !biased : !rotated)
            return store_fragments<IS_K>(f, at, out);
        scatter<IS_K>(f, at, x, ld);
    }
    __syncthreads();
    if (source.coded && biased) {
        if (side.rotated)
            rotate(x, ld, a.head_dim, true);
        add_key_bias<1>(a.bias, source.head, source.tile, x, ld);
    }
    if (!source.coded && rotated)
        rotate(x, ld, a.head_dim, false);
    store_tile<IS_K>(x, ld, a.head_dim, out);
}

__global__ void __launch_bounds__(512) stage_kernel(const __grid_constant__ prefill_args a) {
    let_next_start();
    wait_for_previous();
    uint32_t slot = blockIdx.x, head = blockIdx.y, n_words = a.head_dim * TILE_TOKENS / 2;
    bool is_k = blockIdx.z == 0;
    tile_source source;
    if (!find_source(a, slot, head, is_k, &source))
        return;
    uint32_t *out = reinterpret_cast<uint32_t *>(a.staged) + ((size_t)(slot * a.n_head_kv + head) * 2 + !is_k) * n_words;
    float *x = reinterpret_cast<float *>(shared_memory());
    if (is_k)
        stage_tile<true>(a, source, out, x);
    else
        stage_tile<false>(a, source, out, x);
}

} // namespace

cudaError_t launch_stage(const prefill_args &a, uint32_t n_slots, cudaStream_t stream) {
    bool has_order = is_tiered(a.k) || is_split(a.k) || is_split(a.v);
    bool direct = !a.k_rotated && !a.v_rotated && a.bias.n_pairs == 0 && !has_order;
    size_t shared = direct ? 0 : TILE_TOKENS * (a.head_dim + 1) * sizeof(float) + a.head_dim;
    cudaError_t error = cudaFuncSetAttribute(stage_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error != cudaSuccess)
        return error;
    return launch(stage_kernel, dim3(n_slots, a.n_head_kv, 2), 2 * a.head_dim, shared, stream, a);
}
