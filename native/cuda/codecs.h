/* Which codecs the kernels read and write. */
#ifndef KVQ_CUDA_CODECS_H
#define KVQ_CUDA_CODECS_H

extern "C" {
#include "kv/codec.h"
}
#include "encode.h"
#include "format.h"

/* How a codec's tiles are read and made; false if the GPU has no kernels for it. */
bool describe_codec(const kvq_codec *codec, uint32_t head_dim, tile_side *side, tile_format *format);

#endif
