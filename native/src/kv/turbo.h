/* TurboQuant's codebooks and the parts of its tiles, for its codecs and for the kernels that read them. */
#ifndef KVQ_KV_TURBO_H
#define KVQ_KV_TURBO_H

#include "kv/pack.h"

/* The 2^bits centroids for a normal distribution of variance 1, ascending; bits 2, 3 or 4. Code i is centroid i. */
const float *kvq_turbo_centroids(uint32_t bits);

/* turbo4, turbo3, turbo2: byte offset of the scales, 64 half floats; the codes lie at 0. */
static inline size_t kvq_turbo_scales(const kvq_codec *codec, uint32_t head_dim) {
    return kvq_codes_bytes(codec->bits, head_dim);
}

/* turbo3.5, turbo2.5 (codec->bits: 3, 2, of the narrow channels): the n wide channels come first, with one bit more. Both
 * sets are tiles of their own: codes packed as if head_dim were n, scales, and a Hadamard rotation of n channels. */
typedef struct kvq_turbo_set {
    uint32_t bits, n;
    size_t codes, scales; /* byte offsets */
} kvq_turbo_set;

static inline uint32_t kvq_turbo_n_wide(uint32_t head_dim) {
    return head_dim / 32 * 16; /* half of the channels, in sixteens */
}

static inline void kvq_turbo_sets(const kvq_codec *codec, uint32_t head_dim, kvq_turbo_set sets[2]) {
    uint32_t n_wide = kvq_turbo_n_wide(head_dim), n_narrow = head_dim - n_wide;
    size_t narrow = kvq_codes_bytes(codec->bits + 1, n_wide), scales = narrow + kvq_codes_bytes(codec->bits, n_narrow);
    sets[0] = (kvq_turbo_set){codec->bits + 1, n_wide, 0, scales};
    sets[1] = (kvq_turbo_set){codec->bits, n_narrow, narrow, scales + KVQ_TILE * 2};
}

/* Byte offset of the mask, head_dim bits: bit d % 8 of byte d / 8 is set if channel d is wide. */
static inline size_t kvq_turbo_mask(const kvq_codec *codec, uint32_t head_dim) {
    kvq_turbo_set sets[2];
    kvq_turbo_sets(codec, head_dim, sets);
    return sets[1].scales + KVQ_TILE * 2;
}

/* channels: (head_dim), the wide ones ascending, then the narrow ones ascending */
void kvq_turbo_channels(const uint8_t *mask, uint32_t head_dim, uint8_t *channels);

#endif
