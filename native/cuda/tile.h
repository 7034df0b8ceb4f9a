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
 *   2, K  8 at (32 j + l) * 8                         word r / 2, bit 8 (r % 2) + 2 b
 *   2, V  16 at (32 (j / 2) + l) * 16                 word b, bit 8 (r / 2) + 4 (j % 2) + 2 (r % 2)
 *   3     12 at (32 j + l) * 12                       i = 4 r + b: word i / 5, bit 3 (i % 5); i = 15: bit 15 of words 0 - 2
 *   4     16 at (32 j + l) * 16                       word 2 (r / 2) + b / 2, bit 8 (b % 2) + 4 (r % 2)
 *   8     16 at ((b / 2) J + j) * 512 + 16 l          word r, bit 8 (b % 2)           (J = head_dim / 16)
 *   16    16 at (b J + j) * 512 + 16 l                word r
 *
 * With one shift per word an AND leaves codes at bit 0, 2, 4 or 6 of a half: times a power of two, which may depend on the
 * row and on V's channel block, where scaling S or O undoes it, but not on what is summed over. The last block j of V at 2
 * bits, if their number is odd, has 8 bytes per lane: word b / 2, bit 8 (r / 2) + 4 (b % 2) + 2 (r % 2).
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

/* Where a code's lowest bit lies. step: 0, or how many words further each next bit does; of 3-bit codes with i = 15, and of
 * tiers that share a block. */
typedef struct code_place {
    uint32_t word, bit, step;
} code_place;

KVQ_BOTH code_place place_code(bool is_k, uint32_t bits, uint32_t head_dim, uint32_t token, uint32_t channel) {
    uint32_t block = token / 16, j = channel / 16, n_j = head_dim / 16;
    uint32_t row = (is_k ? token : channel) % 16, col = (is_k ? channel : token) % 16;
    uint32_t lane = row % 8 * 4 + col % 8 / 2, reg = row / 8 + 2 * (col / 8), half = col % 2 * 16;
    code_place place = {0, 0, 0};
    switch (bits) {
    case 1:
        place.word = 32 * j + lane;
        place.bit = half + 4 * reg + block;
        break;
    case 2:
        if (is_k) {
            place.word = (32 * j + lane) * 2 + reg / 2;
            place.bit = half + 8 * (reg % 2) + 2 * block;
        } else if (j + 1 == n_j && n_j % 2 == 1) {
            place.word = (32 * j + lane) * 2 + block / 2;
            place.bit = half + 8 * (reg / 2) + 4 * (block % 2) + 2 * (reg % 2);
        } else {
            place.word = (32 * (j / 2) + lane) * 4 + block;
            place.bit = half + 8 * (reg / 2) + 4 * (j % 2) + 2 * (reg % 2);
        }
        break;
    case 3: {
        uint32_t i = 4 * reg + block;
        place.step = i == 15;
        place.word = (32 * j + lane) * 3 + (i == 15 ? 0 : i / 5);
        place.bit = half + (i == 15 ? 15 : 3 * (i % 5));
        break;
    }
    case 4:
        place.word = (32 * j + lane) * 4 + reg / 2 * 2 + block / 2;
        place.bit = half + 8 * (block % 2) + 4 * (reg % 2);
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
    if (place.step == 0) {
        words[place.word] |= code << place.bit;
        return;
    }
    for (uint32_t i = 0; i < 4; i++)
        if (code >> i & 1)
            words[place.word + i * place.step] |= 1u << place.bit;
}

KVQ_BOTH uint32_t get_code(const uint32_t *words, code_place place, uint32_t bits) {
    if (place.step == 0)
        return words[place.word] >> place.bit & ((1u << bits) - 1);
    uint32_t code = 0;
    for (uint32_t i = 0; i < bits; i++)
        code |= (words[place.word + i * place.step] >> place.bit & 1) << i;
    return code;
}

/*
 * Codes of 3 and 4 bits that index a table of half floats (codebooks, small floats) lie so that a byte permutation can look
 * them up: four codes of a register make the low 16 bits of its selector, a nibble each: (block 0, half 0), (block 1, half
 * 0), (block 0, half 1), (block 1, half 1); blocks 2 and 3 make the high 16 bits. With n = 16 (block / 2) + 4 (block % 2 +
 * 2 half):
 *
 *   bits  bytes of a lane    low bits                                        top bit
 *   3     12                 word r / 2, bits n + 2 (r % 2) ..               word 2, bit n + r
 *   4     16                 word r, bits n ..                               word r, bit 3 + 4 block + 16 half
 *
 * The top bit of 4 is a sign: the other three are looked up, it is shifted to where a half float has its own.
 *
 * Codes of 2 bits are signs and magnitudes. Word r / 2 turned left by 2 i, i = 4 (r % 2) + block, has them where a half
 * float has its sign and the lowest bit of its exponent: they select one of the two subnormal and normal halves of a
 * mantissa m, 2^-24 times m and 1024 + m. m = 438 makes that 1 to 3.338; the centroids' ratio is 3.336.
 */
enum { LEVEL_MANTISSA = 438 };
#define LEVEL_UNIT_2                                                                                                       \
    (1.033216e-3f * 0x1p24f) /* of these halves, to be the centroids 0.45278 and 1.510418: within 0.05%                    \
                              */

typedef struct level_place {
    uint32_t word, bit, n_low, top_word, top_bit;
} level_place;

KVQ_BOTH level_place place_level(bool is_k, uint32_t bits, uint32_t head_dim, uint32_t token, uint32_t channel) {
    code_place at = place_code(is_k, 16, head_dim, token, channel); /* gives the lane, the register and the half */
    uint32_t block = token / 16, reg = at.word % 4, half = at.bit / 16, lane = at.word / 4 % 32;
    uint32_t first = (channel / 16 * 32 + lane) * bits, n = 16 * (block / 2) + 4 * (block % 2 + 2 * half);
    if (bits == 2) {
        uint32_t word = first + reg / 2, bit = (32 + 10 + 16 * half - 2 * (4 * (reg % 2) + block)) % 32;
        level_place place = {word, bit, 1, word, (bit + 5) % 32};
        return place;
    }
    if (bits == 3) {
        level_place place = {first + reg / 2, n + 2 * (reg % 2), 2, first + 2, n + reg};
        return place;
    }
    level_place place = {first + reg, n, 3, first + reg, 3 + 4 * block + 16 * half};
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

/* A code of turbo4 or turbo2, an ascending index of 2^bits centroids, as sign and magnitude. */
KVQ_BOTH uint32_t sign_magnitude(uint32_t bits, uint32_t code) {
    uint32_t sign = 1u << (bits - 1);
    return code < sign ? (2 * sign - 1) ^ code : code ^ sign;
}

KVQ_BOTH uint32_t from_sign_magnitude(uint32_t bits, uint32_t code) {
    uint32_t sign = 1u << (bits - 1);
    return code < sign ? code ^ sign : (2 * sign - 1) ^ code;
}

/* ---- tiles of several widths ---- */

enum codec_family {
    FAMILY_F16,
    FAMILY_KIVI,
    FAMILY_BLOCKS,
    FAMILY_KVARN,
    FAMILY_TURBO, /* levels of a codebook, a scale per token */
    FAMILY_NVFP4, /* e2m1 levels, an e4m3 scale per token and 16 channels, a float per tile */
    FAMILY_FP8,   /* e4m3, a float per tile */
    FAMILY_TIER,  /* K: tiers; a scale and a zero per place, a factor per token, the channel of each place */
    FAMILY_SPLIT, /* tiers of levels, rotated each, with a scale per token each; a bit per channel */
};

/* Codes that index a table: place_level, not place_code. */
KVQ_BOTH bool has_levels(uint32_t family) {
    return family == FAMILY_TURBO || family == FAMILY_NVFP4 || family == FAMILY_SPLIT;
}

/* Of these, codes of 2 and 4 bits are signs and magnitudes on the GPU. */
KVQ_BOTH bool has_signs(uint32_t family, uint32_t bits) {
    return (family == FAMILY_TURBO || family == FAMILY_SPLIT) && bits != 3;
}

/*
 * A tile whose channels lie in an order of its own, cut into tiers of different widths. Each block of 16 places is a block
 * j of a tile of its width, one after the other. Tiers of keys are quarters of the channels: where head_dim is not a
 * multiple of 64, a block may be in several. Such a block has four places after the other, these bit by bit:
 *
 *   place p, token t, bit i     8 words of each bit; 16 bits for a lane's pair of places: half t % 8 * 2 + p % 4 / 2 of
 *                               these, bit 8 (p % 2) + 4 (t % 16 / 8) + t / 16
 */
enum { N_TIERS = 3 };

typedef struct tier {
    uint32_t bits, first, end; /* places */
} tier;

/* bits: of the codec. Tier i; what has fewer of them ends with empty ones. */
KVQ_BOTH tier tier_of(uint32_t family, uint32_t bits, uint32_t head_dim, uint32_t i) {
    uint32_t quarter = head_dim / 4, n_wide = head_dim / 32 * 16;
    tier t = {bits, i == 0 ? 0 : head_dim, head_dim};
    if (family == FAMILY_TIER) {
        t.bits = i == 0 ? 4 : bits + 1 - i;
        t.first = i == 0 ? 0 : i == 1 ? quarter : (bits == 2 ? 2 : 3) * quarter;
        t.end = i == 0 ? quarter : i == 1 ? (bits == 2 ? 2 : 3) * quarter : head_dim;
    } else if (family == FAMILY_SPLIT) {
        t.bits = i == 0 ? bits + 1 : bits;
        t.first = i == 0 ? 0 : i == 1 ? n_wide : head_dim;
        t.end = i == 0 ? n_wide : head_dim;
    }
    return t;
}

KVQ_BOTH uint32_t tier_bits(uint32_t family, uint32_t bits, uint32_t head_dim, uint32_t place) {
    tier first = tier_of(family, bits, head_dim, 0), second = tier_of(family, bits, head_dim, 1);
    return place < first.end ? first.bits : place < second.end ? second.bits : tier_of(family, bits, head_dim, 2).bits;
}

/* Words of the codes of the places before this one, a multiple of 4. */
KVQ_BOTH uint32_t tier_word(uint32_t family, uint32_t bits, uint32_t head_dim, uint32_t place) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < N_TIERS; i++) {
        tier t = tier_of(family, bits, head_dim, i);
        n += 2 * t.bits * ((place < t.end ? place : t.end) - (place < t.first ? place : t.first));
    }
    return n;
}

KVQ_BOTH uint32_t code_words(uint32_t family, uint32_t bits, uint32_t head_dim) { /* of a tile */
    return tier_word(family, bits, head_dim, head_dim);
}

/* Whether places of the block of 16 are in several tiers. */
KVQ_BOTH bool is_mixed(uint32_t family, uint32_t bits, uint32_t head_dim, uint32_t place) {
    uint32_t first = place / 16 * 16;
    return tier_bits(family, bits, head_dim, first) != tier_bits(family, bits, head_dim, first + 15);
}

KVQ_BOTH code_place place_tiered(uint32_t bits, uint32_t head_dim, uint32_t token, uint32_t place) { /* FAMILY_TIER */
    if (is_mixed(FAMILY_TIER, bits, head_dim, place)) {
        uint32_t half = token % 8 * 2 + place % 4 / 2, bit = 8 * (place % 2) + 4 * (token % 16 / 8) + token / 16;
        uint32_t word = tier_word(FAMILY_TIER, bits, head_dim, place / 4 * 4);
        code_place at = {word + half / 2, half % 2 * 16 + bit, 8};
        return at;
    }
    code_place at = place_code(true, tier_bits(FAMILY_TIER, bits, head_dim, place), 16, token, place % 16);
    at.word += tier_word(FAMILY_TIER, bits, head_dim, place / 16 * 16);
    return at;
}

KVQ_BOTH level_place place_split(bool is_k, uint32_t bits, uint32_t head_dim, uint32_t token, uint32_t place) {
    level_place at = place_level(is_k, tier_bits(FAMILY_SPLIT, bits, head_dim, place), 16, token, place % 16);
    uint32_t first = tier_word(FAMILY_SPLIT, bits, head_dim, place / 16 * 16);
    at.word += first;
    at.top_word += first;
    return at;
}

/* The half of an f16 fragment tile (K or V of an f16 page) that holds an element. */
KVQ_BOTH uint32_t place_half(bool is_k, uint32_t head_dim, uint32_t token, uint32_t channel) {
    code_place place = place_code(is_k, 16, head_dim, token, channel);
    return place.word * 2 + place.bit / 16;
}

/* ---- scales ---- */

/* Channels of a K tile, or tokens of a V tile, in the order in which a lane multiplies their scales into Q or P: (block of
 * 16, lane % 4, i / 8, i % 2), four of a lane together. */
KVQ_BOTH uint32_t col_order(uint32_t i) {
    return i / 16 * 16 + i % 8 / 2 * 4 + i % 16 / 8 * 2 + i % 2;
}

KVQ_BOTH uint32_t from_col_order(uint32_t i) { /* its inverse */
    return i / 16 * 16 + i % 4 / 2 * 8 + i % 16 / 4 * 2 + i % 2;
}

/* Tokens of a V tile so that a lane's scales of all blocks lie together: (lane % 4, block, i / 8, i % 2). */
KVQ_BOTH uint32_t token_order(uint32_t t) {
    return t % 8 / 2 * 16 + t / 16 * 4 + t % 16 / 8 * 2 + t % 2;
}

KVQ_BOTH uint32_t n_groups_of(uint32_t n, uint32_t group) {
    return (n + group - 1) / group;
}

/* Half floats that follow the codes of a tile; of nvfp4 and of tiles with tiers, all bytes that do. */
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
    case FAMILY_SPLIT:
        return 2 * TILE_TOKENS + head_dim / 16;
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

/*
 * Where half i after the codes of the canonical tile lies on the GPU. Not for nvfp4. Behind the halves of tiered keys place
 * i has byte col_order(i), which is col_order of its channel; behind the scales of FAMILY_SPLIT's two tiers a tile has its
 * mask as it is.
 *
 *   scale, zero of K's channels     (channel block, lane % 4, 4 or 8 pairs of halves): so that a lane's zeros lie as a
 *                                   fragment that has group 0 in rows 0-7 and group 1 in rows 8-15, with one group
 *                                   { zero, scale } (2 pairs), with two groups scale (2 groups, 2 pairs), zero (2 pairs,
 *                                   2 groups)
 *   scale of K's tokens             (token block, row % 8, group, row / 8)
 *   scale, zero of V's tokens       ({ scale, zero }, group, lane % 4, token block, 4)
 *   scale of V's channels           (channel block, row % 8, row / 8)
 */
KVQ_BOTH uint32_t meta_place(uint32_t family, bool is_k, uint32_t group, uint32_t head_dim, uint32_t i) {
    uint32_t n_cols = is_k ? head_dim : TILE_TOKENS;                             /* scales of a group */
    uint32_t first = family == FAMILY_SPLIT ? i / TILE_TOKENS * TILE_TOKENS : 0; /* of a tier */
    if (family == FAMILY_FP8 || first == 2 * TILE_TOKENS)
        return i;
    i -= first;
    bool one_group = family == FAMILY_KVARN || family == FAMILY_TIER;
    if (one_group && i >= 2 * n_cols) { /* the factor of a row */
        uint32_t row = i - 2 * n_cols;
        return 2 * n_cols + row / 16 * 16 + row % 8 * 2 + row % 16 / 8;
    }
    uint32_t n = one_group ? 1 : n_groups_of(is_k && family == FAMILY_KIVI ? TILE_TOKENS : head_dim, group);
    uint32_t at = i % n_cols, g = i / n_cols % n, is_zero = i / n_cols / n;
    if (is_k && (one_group || family == FAMILY_KIVI)) {
        uint32_t col = col_order(at), pair = col % 4 / 2;
        uint32_t slot = n == 1 ? pair * 2 + !is_zero : is_zero ? 4 + pair * 2 + g : g * 2 + pair;
        return (col / 4 * 4 * n + slot) * 2 + col % 2;
    }
    if (is_k) {
        at = i % TILE_TOKENS, g = i / TILE_TOKENS;
        return first + ((at / 16 * 8 + at % 8) * n + g) * 2 + at % 16 / 8;
    }
    return first + (is_zero * n + g) * TILE_TOKENS + token_order(at);
}

#endif
