/*
 * Decode attention: one launch for sinks, encoded body and tail of all sequences. A block takes a unit (tiles of one KV
 * head); its warps take tiles in turn, each through its own ring of asynchronous copies in shared memory; they are merged,
 * and the last block of an output merges the units.
 *
 * The kernel is specialised for the pairs of paths that the KV types have (KP, VP), so that their loops are straight-line
 * code that fits the instruction cache; any other pair goes through one kernel that decides at run time (PATH_NONE).
 *
 * Compiled once per head_dim (KVQ_HEAD_DIM), so that the compilations run side by side.
 */
#include "attend_merge.cuh"
#include "attend_unit.cuh"
#include "levels.cuh"
#include "tiers.cuh"

#define EACH_K_PATH(X)                                                                                                     \
    X(F16)                                                                                                                 \
    X(CHANNEL_2)                                                                                                           \
    X(CHANNEL_4)                                                                                                           \
    X(CHANNEL_2_G64)                                                                                                       \
    X(NORMED_2)                                                                                                            \
    X(NORMED_3)                                                                                                            \
    X(NORMED_4)                                                                                                            \
    X(TOKEN_4) X(TOKEN_8) X(TURBO_2) X(TURBO_3) X(TURBO_4) X(NVFP4) X(FP8) X(TIER_2) X(TIER_3) X(SPLIT_2) X(SPLIT_3)
#define EACH_V_PATH(X)                                                                                                     \
    X(F16)                                                                                                                 \
    X(AFFINE_2)                                                                                                            \
    X(AFFINE_4)                                                                                                            \
    X(AFFINE_2_G64)                                                                                                        \
    X(NORMED_2)                                                                                                            \
    X(NORMED_3) X(NORMED_4) X(TOKEN_4) X(TOKEN_8) X(TURBO_2) X(TURBO_3) X(TURBO_4) X(NVFP4) X(FP8) X(SPLIT_2) X(SPLIT_3)
#define EACH_PAIR(X) /* of the KV types */                                                                                 \
    X(F16, F16)                                                                                                            \
    X(CHANNEL_2, AFFINE_2)                                                                                                 \
    X(CHANNEL_4, AFFINE_4)                                                                                                 \
    X(CHANNEL_2_G64, AFFINE_2_G64)                                                                                         \
    X(NORMED_2, NORMED_2)                                                                                                  \
    X(NORMED_3, NORMED_3)                                                                                                  \
    X(NORMED_4, NORMED_4)                                                                                                  \
    X(TOKEN_4, TOKEN_4)                                                                                                    \
    X(TOKEN_8, TOKEN_8)                                                                                                    \
    X(TURBO_2, TURBO_2)                                                                                                    \
    X(TURBO_3, TURBO_3)                                                                                                    \
    X(TURBO_4, TURBO_4)                                                                                                    \
    X(NVFP4, NVFP4) X(FP8, FP8) X(TIER_2, NORMED_2) X(TIER_3, NORMED_3) X(SPLIT_2, SPLIT_2) X(SPLIT_3, SPLIT_3)

namespace {

enum { K_SIDE, V_SIDE };

/* A warp's stages of { K, V } in shared memory; the copies into a side of a stage have a barrier. */
struct copy_ring {
    uint8_t *stages;
    uint64_t *full;  /* ({ K, V }, 2 stages) */
    uint32_t parity; /* of the phase that is waited for next, a bit for each barrier */
};

/* ---- logits ---- */

/* Key bias and cap, for logits that are not yet relative to the maximum. pos: of the first token of the step */
template <int NT, int NB, bool CODED>
__device__ __forceinline__ void bias_and_cap(const unit_state<NT> &w, int pos, const output_block<HD, NT> &out,
                                             float (&s)[NB][NT][4]) {
    const attend_args &a = *w.a;
    if (CODED && a.bias.n_pairs > 0)
        add_bias<NT, NB>(w, pos, s);
    if (a.softcap > 0.0f)
#pragma unroll
        for (int i = 0; i < NB * NT * 4; i++)
            s[i / (NT * 4)][i / 4 % NT][i % 4] = capped(s[i / (NT * 4)][i / 4 % NT][i % 4], a.softcap * LOG2E);
#pragma unroll
    for (int i = 0; i < NB * NT * 4; i++)
        s[i / (NT * 4)][i / 4 % NT][i % 4] -= out.max[i / 4 % NT][i & 1];
}

/* Whether every column sees all of n tokens. */
template <int NT> __device__ __forceinline__ bool all_seen(const unit_state<NT> &w, int pos, int n) {
    int first = w.u.pos + w.u.first_col / w.head_group, last = w.u.pos + (w.u.first_col + w.u.n_cols - 1) / w.head_group;
    return pos + n - 1 <= first && (w.a->window == 0 || pos > last - (int)w.a->window);
}

template <int NT, int NB> __device__ __forceinline__ void mask(const unit_state<NT> &w, int pos, float (&s)[NB][NT][4]) {
    int window = w.a->window;
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
                    bool seen = token <= query && (window == 0 || token > query - window);
                    s[b][nt][c + 2 * half] = seen ? s[b][nt][c + 2 * half] : -INFINITY;
                }
        }
}

/* ---- one step of a warp: NB blocks of 16 tokens ---- */

/* Whether steps of NB blocks can read tiles of this path: f16 by 16 tokens, 8 bits by up to 32, all others also by 64. */
__device__ constexpr bool takes(int path, int nb) {
    return path == PATH_F16 ? nb == 1 : path == PATH_TOKEN_8 || path == PATH_FP8 ? nb <= 2 : nb != 2;
}

template <int PATH, int NT, int NB, int UNROLL>
__device__ __forceinline__ void score_path(const unit_state<NT> &w, const uint8_t *codes, const uint8_t *meta, int b0,
                                           int lane, const logit_line<NT> &line, float (&s)[NB][NT][4]) {
    const column_block<HD, NT> *cols = w.cols;
    if constexpr (PATH == PATH_F16)
        score_f16<HD, NT, NB>(codes, cols, lane, line, s);
    else if constexpr (PATH == PATH_CHANNEL_2)
        score_channel<HD, NT, NB, 2, 2, false, UNROLL>(codes, meta, b0, cols, lane, line, s);
    else if constexpr (PATH == PATH_CHANNEL_4)
        score_channel<HD, NT, NB, 4, 2, false, UNROLL>(codes, meta, b0, cols, lane, line, s);
    else if constexpr (PATH == PATH_CHANNEL_2_G64)
        score_channel<HD, NT, NB, 2, 1, false, UNROLL>(codes, meta, b0, cols, lane, line, s);
    else if constexpr (PATH == PATH_NORMED_2)
        score_channel<HD, NT, NB, 2, 1, true, UNROLL>(codes, meta, b0, cols, lane, line, s);
    else if constexpr (PATH == PATH_NORMED_3)
        score_channel<HD, NT, NB, 3, 1, true, UNROLL>(codes, meta, b0, cols, lane, line, s);
    else if constexpr (PATH == PATH_NORMED_4)
        score_channel<HD, NT, NB, 4, 1, true, UNROLL>(codes, meta, b0, cols, lane, line, s);
    else if constexpr (PATH == PATH_TOKEN_4)
        score_token<HD, NT, NB, 4, 32, 8, UNROLL>(codes, meta, b0, cols, lane, line, s);
    else if constexpr (PATH == PATH_TOKEN_8)
        score_token<HD, NT, NB, 8, 32, 128, UNROLL>(codes, meta, b0, cols, lane, line, s);
    else if constexpr (PATH == PATH_TURBO_2)
        score_levels<HD, NT, NB, TURBO_2, UNROLL>(codes, meta, b0, cols->q, lane, line, s);
    else if constexpr (PATH == PATH_TURBO_3)
        score_levels<HD, NT, NB, TURBO_3, UNROLL>(codes, meta, b0, cols->q, lane, line, s);
    else if constexpr (PATH == PATH_TURBO_4)
        score_levels<HD, NT, NB, TURBO_4, UNROLL>(codes, meta, b0, cols->q, lane, line, s);
    else if constexpr (PATH == PATH_NVFP4)
        score_levels<HD, NT, NB, E2M1, UNROLL>(codes, meta, b0, cols->q, lane, line, s);
    else if constexpr (PATH == PATH_FP8)
        score_levels<HD, NT, NB, E4M3, UNROLL>(codes, meta, b0, cols->q, lane, line, s);
    else if constexpr (PATH == PATH_TIER_2)
        score_tiers<HD, NT, NB, 2>(codes, meta, b0, cols, lane, line, s);
    else if constexpr (PATH == PATH_TIER_3)
        score_tiers<HD, NT, NB, 3>(codes, meta, b0, cols, lane, line, s);
    else if constexpr (PATH == PATH_SPLIT_2 && HD >= 32)
        score_split<HD, NT, NB, TURBO_3, TURBO_2>(codes, meta, b0, cols, opaque(lane), line, w.scratch, s);
    else if constexpr (PATH == PATH_SPLIT_3 && HD >= 32)
        score_split<HD, NT, NB, TURBO_4, TURBO_3>(codes, meta, b0, cols, opaque(lane), line, w.scratch, s);
}

template <int PATH, int NT, int NB>
__device__ __forceinline__ void mix_path(const unit_state<NT> &w, const uint8_t *codes, const uint8_t *meta, int b0,
                                         const uint32_t (&p)[NB][NT][2], int lane, output_block<HD, NT> &out) {
    if constexpr (PATH == PATH_F16)
        mix_f16<HD, NT, NB>(codes, p, lane, out);
    else if constexpr (PATH == PATH_AFFINE_2)
        mix_token<HD, NT, NB, 2, 32, true, false>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_AFFINE_4)
        mix_token<HD, NT, NB, 4, 32, true, false>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_AFFINE_2_G64)
        mix_token<HD, NT, NB, 2, 64, true, false>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_NORMED_2)
        mix_token<HD, NT, NB, 2, 256, true, true>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_NORMED_3)
        mix_token<HD, NT, NB, 3, 256, true, true>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_NORMED_4)
        mix_token<HD, NT, NB, 4, 256, true, true>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_TOKEN_4)
        mix_token<HD, NT, NB, 4, 32, false, false>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_TOKEN_8)
        mix_token<HD, NT, NB, 8, 32, false, false>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_TURBO_2)
        mix_levels<HD, NT, NB, TURBO_2>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_TURBO_3)
        mix_levels<HD, NT, NB, TURBO_3>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_TURBO_4)
        mix_levels<HD, NT, NB, TURBO_4>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_NVFP4)
        mix_levels<HD, NT, NB, E2M1>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_FP8)
        mix_levels<HD, NT, NB, E4M3>(codes, meta, b0, p, lane, out);
    else if constexpr (PATH == PATH_SPLIT_2 && HD >= 32)
        mix_split<HD, NT, NB, TURBO_3, TURBO_2>(codes, meta, b0, p, opaque(lane), w.scratch, out);
    else if constexpr (PATH == PATH_SPLIT_3 && HD >= 32)
        mix_split<HD, NT, NB, TURBO_4, TURBO_3>(codes, meta, b0, p, opaque(lane), w.scratch, out);
}

/* The path KP, or, if that is PATH_NONE, the one given. */
template <int KP, int NT, int NB>
__device__ __forceinline__ void score(const unit_state<NT> &w, uint32_t path, const uint8_t *codes, const uint8_t *meta,
                                      int b0, const logit_line<NT> &line, float (&s)[NB][NT][4]) {
    if constexpr (KP != PATH_NONE) {
        score_path<KP, NT, NB, N_J>(w, codes, meta, b0, w.lane, line, s);
        return;
    }
    switch (path) {
#define CASE(name)                                                                                                         \
    case PATH_##name:                                                                                                      \
        if constexpr (takes(PATH_##name, NB))                                                                              \
            score_path<PATH_##name, NT, NB, 2>(w, codes, meta, b0, opaque(w.lane), line, s);                               \
        break;
        EACH_K_PATH(CASE)
#undef CASE
    }
}

template <int VP, int NT, int NB>
__device__ __forceinline__ void mix(const unit_state<NT> &w, uint32_t path, const uint8_t *codes, const uint8_t *meta,
                                    int b0, const uint32_t (&p)[NB][NT][2], output_block<HD, NT> &out) {
    if constexpr (VP != PATH_NONE) {
        mix_path<VP, NT, NB>(w, codes, meta, b0, p, w.lane, out);
        return;
    }
    switch (path) {
#define CASE(name)                                                                                                         \
    case PATH_##name:                                                                                                      \
        if constexpr (takes(PATH_##name, NB))                                                                              \
            mix_path<PATH_##name, NT, NB>(w, codes, meta, b0, p, opaque(w.lane), out);                                     \
        break;
        EACH_V_PATH(CASE)
#undef CASE
    }
}

/* ---- a warp's walk over its tiles ---- */

/* Steps of 16 NB tokens: this warp takes every N_WARPS'th of the unit's. */
struct tile_walk {
    tile_side k, v;
    tile_run first, second; /* tiles */
    const uint8_t *head;    /* of its first page */
    const uint32_t *table;
    size_t page_bytes;
    int k_tile_bytes, k_stage_bytes, stage_bytes;
    int steps_per_tile, n_steps, n_stages;
    uint32_t page; /* of the step that is fetched next */
};

__device__ __forceinline__ int step_tile(const tile_walk &t, int step, int warp) {
    int i = (step * N_WARPS + warp) / t.steps_per_tile;
    return i < (int)t.first.n ? t.first.first + i : t.second.first + i - t.first.n;
}

/* The first of the step's blocks of 16 tokens in its tile. */
__device__ __forceinline__ int step_block(const tile_walk &t, int step, int warp) {
    return (step * N_WARPS + warp) % t.steps_per_tile * (TILE_BLOCKS / t.steps_per_tile);
}

__device__ __forceinline__ uint32_t step_page(const tile_walk &t, int step, int warp) {
    return step < t.n_steps ? uniform(__ldg(t.table + step_tile(t, step, warp))) & 0x7fffffffu : 0;
}

/* Starts the copies of a side of t.page's tile, as far as the step needs it. */
__device__ __forceinline__ void fetch(const tile_walk &t, int side, int step, int stage, const copy_ring &ring, int warp,
                                      int lane) {
    const tile_side &s = side == K_SIDE ? t.k : t.v;
    const uint8_t *tile = t.head + t.page * t.page_bytes + (side == K_SIDE ? 0 : t.k_tile_bytes);
    uint8_t *to = ring.stages + stage * t.stage_bytes + (side == K_SIDE ? 0 : t.k_stage_bytes);
    uint64_t *full = &ring.full[2 * side + stage];
    if (s.chunk_tokens == TILE_TOKENS) {
        start_copies(full, lane, to, tile, s.chunk_bytes + s.meta_bytes, tile, 0);
    } else {
        uint32_t chunk = step_block(t, step, warp) * 16 / s.chunk_tokens;
        start_copies(full, lane, to, tile + chunk * s.chunk_bytes, s.chunk_bytes,
                     tile + TILE_TOKENS / s.chunk_tokens * s.chunk_bytes, s.meta_bytes);
    }
}

template <int NT, bool CODED>
__device__ __forceinline__ tile_walk start_walk(const unit_state<NT> &w, const tile_side &k, const tile_side &v, int nb,
                                                const copy_ring &ring) {
    const attend_args &a = *w.a;
    tile_walk t;
    t.k = k, t.v = v;
    t.first = CODED ? w.u.coded : w.u.raw[0];
    t.first = {uniform(t.first.first), uniform(t.first.n)};
    t.second = CODED ? tile_run{0, 0} : tile_run{uniform(w.u.raw[1].first), uniform(w.u.raw[1].n)};
    t.k_tile_bytes = CODED ? a.k_tile_bytes : TILE_TOKENS * HD * 2;
    uint32_t head_bytes = t.k_tile_bytes + (CODED ? a.v_tile_bytes : TILE_TOKENS * HD * 2);
    t.head = (CODED ? a.coded : a.raw) + (size_t)uniform(w.u.head) * head_bytes;
    t.page_bytes = (size_t)a.n_head_kv * head_bytes;
    t.table = a.tables + uniform(w.u.table);
    t.k_stage_bytes = k.chunk_bytes + k.meta_bytes;
    t.stage_bytes = t.k_stage_bytes + v.chunk_bytes + v.meta_bytes;
    t.steps_per_tile = TILE_BLOCKS / nb;
    t.n_steps = ((int)(t.first.n + t.second.n) * t.steps_per_tile - w.warp + N_WARPS - 1) / N_WARPS;
    t.n_stages = 2 * t.stage_bytes <= (int)a.ring_bytes ? 2 : 1; /* else other warps compute while this one loads */
    t.page = step_page(t, 0, w.warp);
#pragma unroll
    for (int step = 0; step < 2; step++) {
        if (step < t.n_stages && step < t.n_steps) {
            fetch(t, K_SIDE, step, step, ring, w.warp, w.lane);
            fetch(t, V_SIDE, step, step, ring, w.warp, w.lane);
            t.page = step_page(t, step + 1, w.warp);
        }
    }
    return t;
}

/* Values of positions that hold nothing yet become 0 in the stage. What a lane writes only it reads. */
__device__ __forceinline__ void clear_unwritten(uint8_t *codes, int n_left, int lane) {
    int token = lane % 4 * 2;
    uint32_t low = (token < n_left ? 0xffffu : 0) | (token + 1 < n_left ? 0xffff0000u : 0),
             high = (token + 8 < n_left ? 0xffffu : 0) | (token + 9 < n_left ? 0xffff0000u : 0);
    for (int j = 0; j < N_J; j++) {
        uint4 *x = &reinterpret_cast<uint4 *>(codes)[32 * j + lane];
        *x = make_uint4(x->x & low, x->y & low, x->z & high, x->w & high);
    }
}

template <int NT, int NB, bool CODED, int KP, int VP>
__device__ __forceinline__ void run_walk(const unit_state<NT> &w, tile_walk &t, copy_ring &ring,
                                         output_block<HD, NT> &out) {
    const attend_args &a = *w.a;
    const bool late = (CODED && a.bias.n_pairs > 0) || a.softcap > 0.0f; /* logits change before they meet the maximum */
    const bool some_masked = !CODED || !all_seen(w, w.u.coded.first * TILE_TOKENS, w.u.coded.n * TILE_TOKENS);
    logit_line<NT> line;
#pragma unroll
    for (int i = 0; i < 2 * NT; i++)
        line.scale[i / 2][i % 2] = w.cols->scale[8 * (i / 2) + w.lane % 4 * 2 + i % 2];
    int stage = 0;
#pragma unroll 1
    for (int step = 0; step < t.n_steps; step++) {
        uint8_t *k = ring.stages + stage * t.stage_bytes, *v = k + t.k_stage_bytes;
        int b0 = NB == TILE_BLOCKS ? 0 : step_block(t, step, w.warp), next = step + t.n_stages;
        float s[NB][NT][4];
        uint32_t p[NB][NT][2];
#pragma unroll
        for (int i = 0; i < 2 * NT; i++)
            line.origin[i / 2][i % 2] = late ? 0.0f : out.max[i / 2][i % 2];
        wait_copies(&ring.full[stage], ring.parity >> stage & 1);
        score<KP, NT, NB>(w, t.k.path, k, k + t.k.chunk_bytes, b0, line, s);
        __syncwarp(); /* all lanes have read K */
        if (next < t.n_steps)
            fetch(t, K_SIDE, next, stage, ring, w.warp, w.lane);
        if (late || some_masked) {
            int pos = (step_tile(t, step, w.warp) * TILE_BLOCKS + b0) * 16;
            if (late)
                bias_and_cap<NT, NB, CODED>(w, pos, out, s);
            if (!all_seen(w, pos, 16 * NB))
                mask<NT, NB>(w, pos, s);
        }
        softmax<HD, NT, NB>(s, out, p);
        wait_copies(&ring.full[2 + stage], ring.parity >> (2 + stage) & 1);
        if (!CODED) {
            int n_left = (int)w.u.end - (step_tile(t, step, w.warp) * TILE_BLOCKS + b0) * 16;
            if (n_left < 16)
                clear_unwritten(v, n_left, w.lane);
        }
        mix<VP, NT, NB>(w, t.v.path, v, v + t.v.chunk_bytes, b0, p, out);
        __syncwarp(); /* all lanes have read V */
        if (next < t.n_steps) {
            if (!CODED)
                order_copies();
            fetch(t, V_SIDE, next, stage, ring, w.warp, w.lane);
            t.page = step_page(t, next + 1, w.warp);
        }
        ring.parity ^= 5u << stage;
        stage ^= t.n_stages - 1;
    }
}

/* ---- a unit ---- */

template <int NT> struct shared_block {
    uint64_t full[N_WARPS][4];
    column_block<HD, NT> cols[2]; /* for f16 and for encoded tiles */
    bool is_last;
};

template <int NT> __host__ __device__ constexpr size_t head_bytes() {
    return (sizeof(shared_block<NT>) + 127) / 128 * 128;
}

template <int NT> __host__ __device__ inline size_t bias_bytes(uint32_t n_pairs) {
    return ((size_t)n_pairs * 2 * 8 * NT * sizeof(float) + 127) / 128 * 128;
}

/* Bits of a path's codes, of those that specialised kernels read; of tiers, of the type they are named for, so that
 * code_words gives how many they are. */
__device__ constexpr uint32_t path_bits(int path) {
    switch (path) {
    case PATH_F16:
        return 16;
    case PATH_TOKEN_8:
    case PATH_FP8:
        return 8;
    case PATH_CHANNEL_2:
    case PATH_CHANNEL_2_G64:
    case PATH_AFFINE_2:
    case PATH_AFFINE_2_G64:
    case PATH_NORMED_2:
    case PATH_TURBO_2:
    case PATH_TIER_2:
    case PATH_SPLIT_2:
        return 2;
    case PATH_NORMED_3:
    case PATH_TURBO_3:
    case PATH_TIER_3:
    case PATH_SPLIT_3:
        return 3;
    default:
        return 4;
    }
}

/* The side, with what its path implies known to the compiler. */
template <int PATH> __device__ __forceinline__ tile_side known_side(tile_side side) {
    if (PATH != PATH_NONE) {
        side.path = PATH;
        side.chunk_tokens = path_bits(PATH) == 16 ? 16 : path_bits(PATH) == 8 ? 32 : 64;
        uint32_t family = PATH == PATH_SPLIT_2 || PATH == PATH_SPLIT_3 ? FAMILY_SPLIT : FAMILY_F16; /* or any other */
        side.chunk_bytes = side.chunk_tokens * code_words(family, path_bits(PATH), HD) / (TILE_TOKENS / 4);
    }
    return side;
}

template <int NT> __device__ __forceinline__ void clear_output(output_block<HD, NT> &out) {
    clear<N_J, NT>(out.o);
    clear<1, NT>(reinterpret_cast<float (&)[1][NT][4]>(out.zero));
#pragma unroll
    for (int i = 0; i < 2 * NT; i++) {
        out.max[i / 2][i % 2] = 0.0f;
        out.limit[i / 2][i % 2] = -INFINITY;
    }
}

/* The encoded tiles of a unit, that start_walk was called for. */
template <int NT, int KP, int VP>
__device__ __forceinline__ void run_coded(const unit_state<NT> &w, tile_walk &t, int nb, copy_ring &ring,
                                          output_block<HD, NT> &out) {
    if constexpr (KP != PATH_NONE) {
        constexpr int NB = takes(KP, 4) && takes(VP, 4) ? 4 : takes(KP, 2) && takes(VP, 2) ? 2 : 1;
        run_walk<NT, NB, true, KP, VP>(w, t, ring, out);
    } else if (nb == 4) {
        run_walk<NT, 4, true, KP, VP>(w, t, ring, out);
    } else if (nb == 2) {
        run_walk<NT, 2, true, KP, VP>(w, t, ring, out);
    } else {
        run_walk<NT, 1, true, KP, VP>(w, t, ring, out);
    }
}

template <int NT, int KP, int VP>
__device__ __forceinline__ void run_unit(const attend_args &a, uint32_t unit, uint8_t *memory, copy_ring &ring,
                                         bool is_first) {
    shared_block<NT> *block = reinterpret_cast<shared_block<NT> *>(memory);
    const tile_side raw = {PATH_F16, 16, 0, 16, HD * 32, 0, 0, 1.0f, 0, 0};
    const tile_side k = known_side<KP>(a.k), v = known_side<VP>(a.v);
    const int nb = k.chunk_tokens == 64 && v.chunk_tokens == 64 ? 4 : k.chunk_tokens == 32 && v.chunk_tokens == 32 ? 2 : 1;
    unit_state<NT> w;
    w.a = &a;
    w.u = a.units[unit];
    w.warp = uniform((int)threadIdx.x / 32);
    w.lane = threadIdx.x % 32;
    w.head_group = a.n_head / a.n_head_kv;
    w.bias = reinterpret_cast<float *>(memory + head_bytes<NT>());
    w.scratch = reinterpret_cast<split_scratch<HD> *>(memory + head_bytes<NT>() + bias_bytes<NT>(a.bias.n_pairs) +
                                                      N_WARPS * a.ring_bytes + w.warp * a.scratch_bytes);
    bool has_raw = w.u.raw[0].n > 0, has_coded = w.u.coded.n > 0;
    tile_walk t;
    if (!has_raw && has_coded) /* encoded tiles are from steps before: no need to wait for the kernels of this one */
        t = start_walk<NT, true>(w, k, v, nb, ring);
    if (is_first)
        wait_for_previous();
    prepare_columns<NT>(w, has_raw, block->cols);
    if (a.bias.n_pairs > 0 && has_coded)
        prepare_bias<NT>(w);
    __syncthreads();

    output_block<HD, NT> out;
    clear_output<NT>(out);
    if (has_raw) {
        w.cols = &block->cols[0];
        t = start_walk<NT, false>(w, raw, raw, 1, ring);
        run_walk<NT, 1, false, PATH_F16, PATH_F16>(w, t, ring, out);
        if (KP != PATH_F16)
            to_coded_basis<NT>(v, w.lane, out);
        order_copies();
        __syncwarp();
        if (has_coded)
            t = start_walk<NT, true>(w, k, v, nb, ring);
    }
    if (has_coded) {
        w.cols = &block->cols[1];
        run_coded<NT, KP, VP>(w, t, nb, ring, out);
    }
    __syncthreads(); /* the rings are free: the parts lie there */
    float *floats = reinterpret_cast<float *>(memory + head_bytes<NT>() + bias_bytes<NT>(a.bias.n_pairs));
    constexpr int N_ROWS = N_WARPS * 8 * NT;
    merge_parts parts = {floats + 2 * N_ROWS, floats, floats + N_ROWS};
    put_part<NT>(w, v, out, parts);
    __syncthreads();
    int n_parts = N_WARPS;
    if (w.u.n_units > 1) {
        publish<NT>(a, w.u, unit, parts);
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0)
            block->is_last = atomicAdd(&a.arrived[w.u.output], 1) == w.u.n_units - 1;
        __syncthreads();
        if (!block->is_last)
            return;
        __threadfence();
        if (threadIdx.x == 0)
            a.arrived[w.u.output] = 0;
        n_parts = gather<NT>(a, w.u, parts);
        __syncthreads();
    }
    write_output<NT>(w, parts, n_parts);
}

template <int NT, int KP, int VP>
__global__ void __launch_bounds__(32 * N_WARPS, HD *NT <= 128 || HD * NT == 256 && N_WARPS == 4 ? 2 : 1)
    attend_kernel(const __grid_constant__ attend_args a) {
    let_next_start();
    uint8_t *memory = shared_memory();
    int warp = uniform((int)threadIdx.x / 32);
    copy_ring ring = {memory + head_bytes<NT>() + bias_bytes<NT>(a.bias.n_pairs) + warp * a.ring_bytes,
                      reinterpret_cast<shared_block<NT> *>(memory)->full[warp], 0};
    if (threadIdx.x % 32 == 0)
        for (int i = 0; i < 4; i++)
            init_copies(&ring.full[i]);
    __syncwarp();
    if (blockIdx.x >= *a.n_units)
        wait_for_previous();
    for (uint32_t unit = blockIdx.x; unit < *a.n_units; unit += gridDim.x) {
        run_unit<NT, KP, VP>(a, unit, memory, ring, unit == blockIdx.x);
        order_copies();
        __syncthreads(); /* the next unit overwrites columns and rings */
    }
}

/* ---- launches ---- */

typedef void (*kernel)(attend_args);

kernel kernel_for(int n_tiles, uint32_t k_path, uint32_t v_path) {
    if (n_tiles == 2)
        return attend_kernel<2, PATH_NONE, PATH_NONE>;
#if KVQ_HEAD_DIM == 64 || KVQ_HEAD_DIM == 128 /* of most models */
#define PAIR(k, v)                                                                                                         \
    if (k_path == PATH_##k && v_path == PATH_##v)                                                                          \
        return attend_kernel<1, PATH_##k, PATH_##v>;
    EACH_PAIR(PAIR)
#endif
    return attend_kernel<1, PATH_NONE, PATH_NONE>;
}

/* Barriers and columns, their products with the key bias, then the rings, where the merge has its parts as well. */
size_t shared_bytes(int n_tiles, const attend_args *a) {
    size_t parts = (size_t)N_WARPS * 8 * n_tiles * (LD + 2) * sizeof(float);
    size_t rings = N_WARPS * ((size_t)a->ring_bytes + a->scratch_bytes);
    uint32_t n_pairs = a->bias.n_pairs;
    return (n_tiles == 1 ? head_bytes<1>() + bias_bytes<1>(n_pairs) : head_bytes<2>() + bias_bytes<2>(n_pairs)) +
           (parts > rings ? parts : rings);
}

} // namespace

#define NAME2(name, hd) name##_##hd
#define NAME1(name, hd) NAME2(name, hd)

/* n_tiles: column tiles of 8, 1 or 2. Returns 0 if the GPU cannot hold a block. */
extern "C" int NAME1(kvq_cuda_attend_blocks, KVQ_HEAD_DIM)(int n_tiles, const attend_args *args) {
    int n = 0;
    size_t shared = shared_bytes(n_tiles, args);
    kernel f = kernel_for(n_tiles, args->k.path, args->v.path);
    if (cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared) != cudaSuccess ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, f, 32 * N_WARPS, shared) != cudaSuccess)
        return 0;
    return n;
}

extern "C" cudaError_t NAME1(kvq_cuda_attend_launch, KVQ_HEAD_DIM)(int n_tiles, const attend_args *args, uint32_t n_blocks,
                                                                   cudaStream_t stream) {
    size_t shared = shared_bytes(n_tiles, args);
    return launch(kernel_for(n_tiles, args->k.path, args->v.path), dim3(n_blocks), 32 * N_WARPS, shared, stream, *args);
}

extern "C" cudaError_t NAME1(kvq_cuda_attend_attributes, KVQ_HEAD_DIM)(cudaFuncAttributes *out) {
    return cudaFuncGetAttributes(out, attend_kernel<1, PATH_NONE, PATH_NONE>);
}
