/* The codes of a tile, one byte each, into the words of tile.h and out of them; by all threads of a block. */
#ifndef KVQ_CUDA_PACK_CUH
#define KVQ_CUDA_PACK_CUH

#include "encode.h"

/* codes: (64, head_dim) by token and channel, of a tiered tile by token and place; words: zero, in shared memory */
__device__ inline void pack_codes(const tile_format &f, int head_dim, const uint8_t *codes, uint32_t *words) {
    for (int i = threadIdx.x; i < TILE_TOKENS * head_dim; i += blockDim.x) {
        uint32_t code = codes[i], token = i / head_dim, channel = i % head_dim;
        if (has_levels(f.family)) {
            level_place place = place_level(f.is_k, f.bits, head_dim, token, channel);
            code = f.family == FAMILY_TURBO && f.bits != 3 ? sign_magnitude(f.bits, code) : code;
            atomicOr(&words[place.word], (code & ((1u << place.n_low) - 1)) << place.bit);
            if (f.bits > place.n_low)
                atomicOr(&words[place.top_word], (code >> place.n_low) << place.top_bit);
            continue;
        }
        code_place place = f.family == FAMILY_TIER ? place_tiered(f.bits, head_dim, token, channel)
                                                   : place_code(f.is_k, f.bits, head_dim, token, channel);
        if (!place.torn)
            atomicOr(&words[place.word], code << place.bit);
        else
            for (int bit = 0; bit < 3; bit++)
                atomicOr(&words[place.word + bit], (code >> bit & 1) << place.bit);
    }
}

__device__ inline void unpack_codes(const tile_format &f, int head_dim, const uint32_t *words, uint8_t *codes) {
    for (int i = threadIdx.x; i < TILE_TOKENS * head_dim; i += blockDim.x) {
        uint32_t code, token = i / head_dim, channel = i % head_dim;
        if (has_levels(f.family)) {
            code = get_level(words, place_level(f.is_k, f.bits, head_dim, token, channel), f.bits);
            code = f.family == FAMILY_TURBO && f.bits != 3 ? from_sign_magnitude(f.bits, code) : code;
        } else if (f.family == FAMILY_TIER) {
            code = get_code(words, place_tiered(f.bits, head_dim, token, channel), tier_bits(f.bits, head_dim, channel));
        } else {
            code = get_code(words, place_code(f.is_k, f.bits, head_dim, token, channel), f.bits);
        }
        codes[i] = (uint8_t)code;
    }
}

#endif
