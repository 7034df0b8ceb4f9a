#include "kv/pack.h"

#include <string.h>

/* bits in {1, 2, 4, 8}: writes bits `from` .. `from + bits - 1` of every code as one plane. */
static void pack_plane(char side, uint32_t bits, uint32_t from, uint32_t head_dim, const uint8_t *codes, uint8_t *plane) {
    uint32_t n_fields = 8 / bits, mask = (1u << bits) - 1;
    memset(plane, 0, kvq_codes_bytes(bits, head_dim));
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t d = 0; d < head_dim; d++) {
            uint32_t byte = kvq_dot_byte(side, t, d), vector = byte / 64;
            uint32_t code = codes[t * head_dim + d] >> from & mask;
            plane[vector / n_fields * 64 + byte % 64] |= (uint8_t)(code << (vector % n_fields) * bits);
        }
}

/* The inverse: adds the bits to codes. */
static void unpack_plane(char side, uint32_t bits, uint32_t from, uint32_t head_dim, const uint8_t *plane, uint8_t *codes) {
    uint32_t n_fields = 8 / bits, mask = (1u << bits) - 1;
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t d = 0; d < head_dim; d++) {
            uint32_t byte = kvq_dot_byte(side, t, d), vector = byte / 64;
            uint32_t code = plane[vector / n_fields * 64 + byte % 64] >> (vector % n_fields) * bits & mask;
            codes[t * head_dim + d] |= (uint8_t)(code << from);
        }
}

void kvq_pack(char side, uint32_t bits, uint32_t head_dim, const uint8_t *codes, uint8_t *bytes) {
    if (bits == 3) {
        pack_plane(side, 2, 0, head_dim, codes, bytes);
        pack_plane(side, 1, 2, head_dim, codes, bytes + kvq_codes_bytes(2, head_dim));
    } else {
        pack_plane(side, bits, 0, head_dim, codes, bytes);
    }
}

void kvq_unpack(char side, uint32_t bits, uint32_t head_dim, const uint8_t *bytes, uint8_t *codes) {
    memset(codes, 0, (size_t)KVQ_TILE * head_dim);
    if (bits == 3) {
        unpack_plane(side, 2, 0, head_dim, bytes, codes);
        unpack_plane(side, 1, 2, head_dim, bytes + kvq_codes_bytes(2, head_dim), codes);
    } else {
        unpack_plane(side, bits, 0, head_dim, bytes, codes);
    }
}
