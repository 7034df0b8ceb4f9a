#include "cpu/encode.h"
#include "cpu/isa.h"
#include "kv/tile.h"

/* kvq_codec.encode, of a tile as a page has it */
void kvq_encode_reference(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    float turned[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    if (codec->side == 'k')
        kvq_transpose(x, head_dim, KVQ_TILE, turned);
    codec->encode(codec, codec->side == 'k' ? turned : x, head_dim, tile);
}

const kvq_tile_encoder kvq_encoders_scalar[] = {{NULL, kvq_encode_reference}};

const kvq_tile_encoder *kvq_encoder_of(const kvq_codec *codec) {
    const kvq_tile_encoder *at = kvq_kernels_selected()->encoders;
    while (at->codec != NULL && at->codec != codec)
        at++;
    return at;
}

void kvq_encode_tokens(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    float turned[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    if (codec->side == 'k')
        kvq_transpose(x, KVQ_TILE, head_dim, turned);
    kvq_encoder_of(codec)->encode(codec, codec->side == 'k' ? turned : x, head_dim, tile);
}
