/*
 * Where the codes of a tile lie. One order for every codec, so that a kernel has one unpack per code width and side.
 *
 * A code is an unsigned number of 1, 2, 3, 4 or 8 bits for each (token, channel). Kernels multiply 64-byte DOT VECTORS: 16
 * lanes of 4 bytes, whose 4 products a byte dot product (vpdpbusd, sdot) adds into the lane's 32-bit sum.
 *
 *   K: q.k sums over channels, so tokens are the lanes:    vector (channel / 4) * 4 + token / 16,  lane token % 16,    byte
 * channel % 4 V: p.v sums over tokens, so channels are the lanes:    vector (channel / 16) * 16 + token / 4, lane channel %
 * 16,  byte token % 4
 *
 * A tile has head_dim dot vectors. Codes of 8 bits are those vectors, one after the other. Codes of b = 1, 2 or 4 bits put
 * 8/b consecutive vectors into one 64-byte word:
 *
 *   byte i of word w, bits f*b .. f*b + b-1:  byte i of vector w * 8/b + f
 *
 * so one load gives 8/b vectors by shift and mask; the same holds for 32-byte and 16-byte pieces of a word. So
 *
 *   K 4-bit: one word = 4 channels of 32 tokens    V 4-bit: one word = 16 channels of 8 tokens
 *   K 2-bit: one word = 4 channels of 64 tokens    V 2-bit: one word = 16 channels of 16 tokens
 *   K 1-bit: one word = 8 channels of 64 tokens    V 1-bit: one word = 16 channels of 32 tokens
 *
 * Codes of 3 bits are a 2-bit plane (the low two bits) followed by a 1-bit plane (the high bit).
 */
#ifndef KVQ_KV_PACK_H
#define KVQ_KV_PACK_H

#include "kv/codec.h"

/* Bytes of the codes of a tile: (KVQ_TILE, head_dim) codes of `bits` bits. */
static inline size_t kvq_codes_bytes(uint32_t bits, uint32_t head_dim) {
    return (size_t)KVQ_TILE * head_dim * bits / 8;
}

/* The byte, counted through all dot vectors of the tile, that a (token, channel) has. */
static inline uint32_t kvq_dot_byte(char side, uint32_t token, uint32_t channel) {
    if (side == 'k')
        return ((channel / 4 * 4 + token / 16) * 16 + token % 16) * 4 + channel % 4;
    return ((channel / 16 * 16 + token / 4) * 16 + channel % 16) * 4 + token % 4;
}

/* codes: (KVQ_TILE, head_dim), one per byte; bytes: kvq_codes_bytes(bits, head_dim); head_dim: a multiple of 16 */
void kvq_pack(char side, uint32_t bits, uint32_t head_dim, const uint8_t *codes, uint8_t *bytes);
void kvq_unpack(char side, uint32_t bits, uint32_t head_dim, const uint8_t *bytes, uint8_t *codes);

#endif
