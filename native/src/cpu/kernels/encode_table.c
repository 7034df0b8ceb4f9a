/* The codecs that this instruction set encodes itself. Adding one: its line here. */
#include "cpu/encode.h"
#include "cpu/isa.h"

void kvq_encode_reference(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile);

#define CODEC(id, family)                                                                                                  \
    extern const kvq_codec kvq_codec_##id;                                                                                 \
    void KVQ_NAME(kvq_encode_##family)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile);
#define ENCODER(id, family) {&kvq_codec_##id, KVQ_NAME(kvq_encode_##family)},

#define BOTH(X, id, family) X(id##_k, family) X(id##_v, family)
#define ALL(X)                                                                                                             \
    BOTH(X, f16, f16)                                                                                                      \
    BOTH(X, q8_0, blocks)                                                                                                  \
    BOTH(X, q4_0, blocks)                                                                                                  \
    BOTH(X, fp8, fp8)                                                                                                      \
    BOTH(X, nvfp4, nvfp4)                                                                                                  \
    BOTH(X, kivi4, kivi)                                                                                                   \
    BOTH(X, kivi2, kivi)                                                                                                   \
    BOTH(X, kivi2_g64, kivi)                                                                                               \
    BOTH(X, turbo4, turbo)                                                                                                 \
    BOTH(X, turbo3, turbo)                                                                                                 \
    BOTH(X, turbo2, turbo)                                                                                                 \
    BOTH(X, turbo3_5, turbo_split)                                                                                         \
    BOTH(X, turbo2_5, turbo_split)                                                                                         \
    BOTH(X, kvarn4, kvarn)                                                                                                 \
    BOTH(X, kvarn3, kvarn)                                                                                                 \
    BOTH(X, kvarn2, kvarn)                                                                                                 \
    X(tier3_k, tier)                                                                                                       \
    X(tier2_k, tier)

ALL(CODEC)
const kvq_tile_encoder KVQ_NAME(kvq_encoders)[] = {ALL(ENCODER){NULL, kvq_encode_reference}};
