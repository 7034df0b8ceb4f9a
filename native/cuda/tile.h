/*
 * How the GPU stores a tile: the canonical codes and scales of a codec, in the order in which tensor-core fragments are
 * read.
 *
 * Attention computes S^T = K Q^T and O^T = V^T P^T, so K and V^T are the A operand (16 x 16) of mma.m16n8k16:
 *
 *   K: rows are tokens, columns channels     V: rows are channels, columns tokens
 *
 * Element (row, col) of a fragment lies in lane row % 8 * 4 + col % 8 / 2, register row / 8 + 2 * (col / 8), half col % 2.
 * A tile has, for each block of 16 channels j, four such fragments, one for each block of 16 tokens. One 32-bit register
 * image of all four, per lane, is packed so that codes of both halves of a register lie 16 bits apart at the same offset:
 * one AND makes a pair of f16 subnormals of them.
 *
 *   bits  bytes of lane l in channel block j          where the code of (register r, token block b) lies
 *   1     4 at (32 j + l) * 4                         bit 4 r + b
 *   2     8 at (32 j + l) * 8                         word r / 2, bit 8 (r % 2) + 2 b
 *   3     12 at (32 j + l) * 12                       i = 4 r + b: word i / 5, bit 3 (i % 5); i = 15: bit 15 of words 0 - 2
 *   4     16 at (32 j + l) * 16                       word r, bit 4 b
 *   8     16 at ((b / 2) J + j) * 512 + 16 l          word r, bit 8 (b % 2)           (J = head_dim / 16)
 *   16    16 at (b J + j) * 512 + 16 l                word r
 *
 * Scales follow the codes (meta), in the order in which a lane multiplies them into Q, P or S; see meta_place.
 */
#ifndef KVQ_CUDA_TILE_H
#define KVQ_CUDA_TILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define KVQ_BOTH __host__ __device__ __forceinline__
#else
#define KVQ_BOTH static inline
#endif

enum { TILE_TOKENS = 64, TILE_BLOCKS = 4 };

/* Where a code's lowest bit lies. Only a 3-bit code of i = 15 is torn: its bits are bit 15 of three consecutive words. */
typedef struct code_place {
    uint32_t word, bit;
    bool torn;
} code_place;

KVQ_BOTH code_place place_code(bool is_k, uint32_t bits, uint32_t head_dim, uint32_t token, uint32_t channel) {
    uint32_t block = token / 16, j = channel / 16, n_j = head_dim / 16;
    uint32_t row = (is_k ? token : channel) % 16, col = (is_k ? channel : token) % 16;
    uint32_t lane = row % 8 * 4 + col % 8 / 2, reg = row / 8 + 2 * (col / 8), half = col % 2 * 16;
    code_place place = {0, 0, false};
    switch (bits) {
    case 1:
        place.word = 32 * j + lane;
        place.bit = half + 4 * reg + block;
        break;
    case 2:
        place.word = (32 * j + lane) * 2 + reg / 2;
        place.bit = half + 8 * (reg % 2) + 2 * block;
        break;
    case 3: {
        uint32_t i = 4 * reg + block;
        place.torn = i == 15;
        place.word = (32 * j + lane) * 3 + (place.torn ? 0 : i / 5);
        place.bit = half + (place.torn ? 15 : 3 * (i % 5));
        break;
    }
    case 4:
        place.word = (32 * j + lane) * 4 + reg;
        place.bit = half + 4 * block;
        break;
    case 8:
        place.word = (block / 2 * n_j + j) * 128 + 4 * lane + reg;
        place.bit = half + 8 * (block % 2);
        break;
    default: /* 16 */
        place.word = (block * n_j + j) * 128 + 4 * lane + reg;
        place.bit = half;
    }
    return place;
}

KVQ_BOTH void put_code(uint32_t *words, code_place place, uint32_t code) {
    if (!place.torn) {
        words[place.word] |= code << place.bit;
        return;
    }
    for (uint32_t i = 0; i < 3; i++)
        words[place.word + i] |= (code >> i & 1) << place.bit;
}

KVQ_BOTH uint32_t get_code(const uint32_t *words, code_place place, uint32_t bits) {
    if (!place.torn)
        return words[place.word] >> place.bit & ((1u << bits) - 1);
    uint32_t code = 0;
    for (uint32_t i = 0; i < 3; i++)
        code |= (words[place.word + i] >> place.bit & 1) << i;
    return code;
}

/*
 * Codes that index a table of half floats (codebooks, small floats) lie so that a byte permutation can look them up: four
 * codes of a register make the low 16 bits of its selector, a nibble each: (block 0, half 0), (block 1, half 0), (block 0,
 * half 1), (block 1, half 1); blocks 2 and 3 make the high 16 bits. With n = 16 (block / 2) + 4 (block % 2 + 2 half):
 *
 *   bits  bytes of a lane    low bits                                        top bit
 *   2     8                  word r / 2, bits n + 2 (r % 2) ..               part of them
 *   3     12                 the same                                        word 2, bit n + r
 *   4     16                 word r, bits n ..                               word r, bit 3 + 4 block + 16 half
 *
 * The top bit of 4 is a sign: the other three are looked up, it is shifted to where a half float has its own.
 */
typedef struct level_place {
    uint32_t word, bit, n_low, top_word, top_bit;
} level_place;

KVQ_BOTH level_place place_level(bool is_k, uint32_t bits, uint32_t head_dim, uint32_t token, uint32_t channel) {
    code_place at = place_code(is_k, 16, head_dim, token, channel); /* gives the lane, the register and the half */
    uint32_t block = token / 16, reg = at.word % 4, half = at.bit / 16, lane = at.word / 4 % 32;
    uint32_t first = (channel / 16 * 32 + lane) * bits, n = 16 * (block / 2) + 4 * (block % 2 + 2 * half);
    level_place place = {first + (bits == 4 ? reg : reg / 2), bits == 4 ? n : n + 2 * (reg % 2), 2, 0, 0};
    if (bits == 3)
        place.top_word = first + 2, place.top_bit = n + reg;
    if (bits == 4)
        place.n_low = 3, place.top_word = first + reg, place.top_bit = 3 + 4 * block + 16 * half;
    return place;
}

KVQ_BOTH void put_level(uint32_t *words, level_place place, uint32_t code) {
    words[place.word] |= (code & ((1u << place.n_low) - 1)) << place.bit;
    words[place.top_word] |= (code >> place.n_low) << place.top_bit;
}

KVQ_BOTH uint32_t get_level(const uint32_t *words, level_place place, uint32_t bits) {
    uint32_t code = words[place.word] >> place.bit & ((1u << place.n_low) - 1);
    return bits > place.n_low ? code | (words[place.top_word] >> place.top_bit & 1) << place.n_low : code;
}

/* A code of turbo4, an ascending index of 16 centroids, as sign and magnitude. */
KVQ_BOTH uint32_t sign_magnitude(uint32_t code) {
    return code < 8 ? 15 ^ code : code ^ 8;
}

KVQ_BOTH uint32_t from_sign_magnitude(uint32_t code) {
    return code < 8 ? code ^ 8 : 15 ^ code;
}

/*
 * A tiered tile (keys): channels in an order of their own, cut into tiers of different widths; each block of 16 places is a
 * block j of a tile of its width, one after the other. head_dim is a multiple of 64, so that no block is in two tiers.
 */
KVQ_BOTH uint32_t tier_bits(uint32_t bits, uint32_t head_dim, uint32_t place) { /* of a place; bits 2 or 3: of the codec */
    uint32_t quarter = place / (head_dim / 4);
    return bits == 2 ? (quarter == 0 ? 4 : quarter == 1 ? 2 : 1) : quarter == 0 ? 4 : quarter < 3 ? 3 : 2;
}

KVQ_BOTH code_place place_tiered(uint32_t bits, uint32_t head_dim, uint32_t token, uint32_t place) {
    code_place at = place_code(true, tier_bits(bits, head_dim, place), 16, token, place % 16);
    for (uint32_t first = 0; first < place / 16 * 16; first += 16)
        at.word += 32 * tier_bits(bits, head_dim, first);
    return at;
}

/* The half of an f16 fragment tile (K or V of an f16 page) that holds an element. */
KVQ_BOTH uint32_t place_half(bool is_k, uint32_t head_dim, uint32_t token, uint32_t channel) {
    code_place place = place_code(is_k, 16, head_dim, token, channel);
    return place.word * 2 + place.bit / 16;
}

/* ---- scales ---- */

enum codec_family {
    FAMILY_F16,
    FAMILY_KIVI,
    FAMILY_BLOCKS,
    FAMILY_KVARN,
    FAMILY_TURBO, /* levels of a codebook, a scale per token */
    FAMILY_NVFP4, /* e2m1 levels, an e4m3 scale per token and 16 channels, a float per tile */
    FAMILY_FP8,   /* e4m3, a float per tile */
    FAMILY_TIER,  /* K: place_tiered; a scale and a zero per place, a factor per token, the channel of each place */
};

/* Codes that index a table: place_level, not place_code. */
KVQ_BOTH bool has_levels(uint32_t family) {
    return family == FAMILY_TURBO || family == FAMILY_NVFP4;
}

/* Rows of a fragment as a lane multiplies them into S or O: (row % 8, row / 8) of each 16. */
KVQ_BOTH uint32_t row_order(uint32_t i) {
    return i / 16 * 16 + i % 8 * 2 + i % 16 / 8;
}

/* What is summed over, as a lane multiplies it into Q or P: (lane % 4, i / 8, i % 2) of each 16. */
KVQ_BOTH uint32_t col_order(uint32_t i) {
    return i / 16 * 16 + i % 8 / 2 * 4 + i % 16 / 8 * 2 + i % 2;
}

KVQ_BOTH uint32_t from_col_order(uint32_t i) { /* its inverse */
    return i / 16 * 16 + i % 4 / 2 * 8 + i % 16 / 4 * 2 + i % 2;
}

KVQ_BOTH uint32_t n_groups_of(uint32_t n, uint32_t group) {
    return (n + group - 1) / group;
}

/* Half floats that follow the codes of a tile; of nvfp4 and of tiered tiles, all bytes that do. */
KVQ_BOTH uint32_t meta_halfs(uint32_t family, bool is_k, uint32_t group, uint32_t head_dim) {
    uint32_t n = n_groups_of(is_k && family == FAMILY_KIVI ? TILE_TOKENS : head_dim, group);
    switch (family) {
    case FAMILY_KIVI:
        return n * 2 * (is_k ? head_dim : TILE_TOKENS);
    case FAMILY_BLOCKS:
    case FAMILY_TURBO:
        return n * TILE_TOKENS;
    case FAMILY_NVFP4:
        return (head_dim / 16 * TILE_TOKENS + 4) / 2;
    case FAMILY_FP8:
        return 2;
    case FAMILY_TIER:
        return 2 * head_dim + TILE_TOKENS + head_dim / 2;
    case FAMILY_KVARN:
        return is_k ? 2 * head_dim + TILE_TOKENS : 2 * TILE_TOKENS + head_dim;
    default:
        return 0;
    }
}

/* Where byte i of nvfp4's scales lies, canonically (head_dim / 16, 64): as a lane turns pairs of them into halves. The
 * tile's scale follows. K: (channel block, row % 8, token block / 2, { block, row / 8 }); V: (channel block, col % 8 / 2,
 * token block, { col % 2, col / 8 }). Of four bytes the first and third make one pair, the second and fourth another. */
KVQ_BOTH uint32_t nvfp4_scale_place(bool is_k, uint32_t i) {
    uint32_t j = i / TILE_TOKENS, t = i % TILE_TOKENS, block = t / 16, at = t % 16;
    if (is_k)
        return (j * 8 + at % 8) * 8 + block / 2 * 4 + block % 2 + 2 * (at / 8);
    return (j * 4 + at % 8 / 2) * 16 + block * 4 + at / 8 + 2 * (at % 2);
}

/* Where half i after the codes of the canonical tile lies on the GPU. Not for nvfp4. Behind the halves of a tiered tile
 * place i has byte col_order(i), which is col_order of its channel. */
KVQ_BOTH uint32_t meta_place(uint32_t family, bool is_k, uint32_t group, uint32_t head_dim, uint32_t i) {
    uint32_t n_cols = is_k ? head_dim : TILE_TOKENS; /* scales of a row */
    if (family == FAMILY_KIVI && is_k) { /* { scale, zero } (group, channel) -> (group, { scale, zero }, channel) */
        uint32_t n = n_groups_of(TILE_TOKENS, group), is_zero = i / (n * n_cols), g = i / n_cols % n;
        return (g * 2 + is_zero) * n_cols + col_order(i % n_cols);
    }
    if (family == FAMILY_KVARN || family == FAMILY_TIER) { /* scale, zero, factor */
        return i < 2 * n_cols ? i / n_cols * n_cols + col_order(i % n_cols) : 2 * n_cols + row_order(i - 2 * n_cols);
    }
    if (family == FAMILY_FP8)
        return i;
    uint32_t n = n_groups_of(head_dim, group), t = i % TILE_TOKENS, g = i / TILE_TOKENS % n, is_zero = i / TILE_TOKENS / n;
    if (is_k) /* (group, token) -> (token, group) */
        return row_order(t) * n + g;
    return is_zero * n * TILE_TOKENS + (t / 16 * n + g) * 16 +
           col_order(t % 16); /* -> (block of 16 tokens, group, token) */
}

#endif
