/*
 * Encoding tiles on the CPU: the bytes that a codec's reference gives (kvq_codec.encode), several columns at a time.
 *
 * The references compute in float32 and add in a fixed order down a column: the tokens of a channel, or the channels of a
 * token. With whole columns in lanes a kernel makes the same roundings in the same order, so its bytes are the same with
 * every instruction set. "scalar" is the references themselves.
 */
#ifndef KVQ_CPU_ENCODE_H
#define KVQ_CPU_ENCODE_H

#include "kv/codec.h"

typedef struct kvq_tile_encoder {
    const kvq_codec *codec; /* NULL: any; ends a list */
    /* x: the tile in the original basis, as an f16 page has it: K (head_dim, 64), V (64, head_dim); tile: 64-byte aligned
     */
    void (*encode)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile);
} kvq_tile_encoder;

/* The encoder of the instruction set in use: the reference where that has no own. */
const kvq_tile_encoder *kvq_encoder_of(const kvq_codec *codec);
/* The same for x (64, head_dim) on either side */
void kvq_encode_tokens(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile);

#endif
