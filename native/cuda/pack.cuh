/* The codes of a tile, one byte each, into the words of tile.h and out of them; by all threads of a block. */
#ifndef KVQ_CUDA_PACK_CUH
#define KVQ_CUDA_PACK_CUH

#include "encode.h"

__device__ inline code_place code_place_of(const tile_format &f, int head_dim, uint32_t token, uint32_t channel) {
    return f.family == FAMILY_TIER ? place_tiered(f.bits, head_dim, token, channel)
                                   : place_code(f.is_k, f.bits, head_dim, token, channel);
}

__device__ inline level_place level_place_of(const tile_format &f, int head_dim, uint32_t token, uint32_t channel) {
    return f.family == FAMILY_SPLIT ? place_split(f.is_k, f.bits, head_dim, token, channel)
                                    : place_level(f.is_k, f.bits, head_dim, token, channel);
}

/* codes: (64, head_dim) by token and channel, of tiles with tiers by token and place; words: zero, in shared memory */
__device__ inline void pack_codes(const tile_format &f, int head_dim, const uint8_t *codes, uint32_t *words) {
    for (int i = threadIdx.x; i < TILE_TOKENS * head_dim; i += blockDim.x) {
        uint32_t code = codes[i], token = i / head_dim, channel = i % head_dim;
        uint32_t bits = tier_bits(f.family, f.bits, head_dim, channel);
        if (has_levels(f.family)) {
            level_place place = level_place_of(f, head_dim, token, channel);
            code = has_signs(f.family, bits) ? sign_magnitude(bits, code) : code;
            atomicOr(&words[place.word], (code & ((1u << place.n_low) - 1)) << place.bit);
            if (bits > place.n_low)
                atomicOr(&words[place.top_word], (code >> place.n_low) << place.top_bit);
            continue;
        }
        code_place place = code_place_of(f, head_dim, token, channel);
        if (place.step == 0)
            atomicOr(&words[place.word], code << place.bit);
        else
            for (uint32_t bit = 0; bit < bits; bit++)
                atomicOr(&words[place.word + bit * place.step], (code >> bit & 1) << place.bit);
    }
}

__device__ inline void unpack_codes(const tile_format &f, int head_dim, const uint32_t *words, uint8_t *codes) {
    for (int i = threadIdx.x; i < TILE_TOKENS * head_dim; i += blockDim.x) {
        uint32_t code, token = i / head_dim, channel = i % head_dim;
        uint32_t bits = tier_bits(f.family, f.bits, head_dim, channel);
        if (has_levels(f.family)) {
            code = get_level(words, level_place_of(f, head_dim, token, channel), bits);
            code = has_signs(f.family, bits) ? from_sign_magnitude(bits, code) : code;
        } else {
            code = get_code(words, code_place_of(f, head_dim, token, channel), bits);
        }
        codes[i] = (uint8_t)code;
    }
}

#endif
