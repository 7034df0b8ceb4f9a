/* KV codecs: how the keys, or the values, of one tile become bytes. Bytes <-> numbers; no threads, no policy. */
#ifndef KVQ_KV_CODEC_H
#define KVQ_KV_CODEC_H

#include "base/status.h"

enum {
    KVQ_TILE = 64,          /* tokens of one KV head, encoded together */
    KVQ_MAX_HEAD_DIM = 256, /* what a codec must be able to take: every multiple of 16 up to here */
};

/* The scalar reference of a codec. K and V codecs are separate values of this type. The tile bytes are canonical: the same
 * on every machine, and laid out as the CPU kernels read them (a GPU may permute them, with a bijection it tests). */
typedef struct kvq_codec kvq_codec;
struct kvq_codec {
    const char *name; /* of the KV type it belongs to: "kivi2" */
    char side;        /* 'k' or 'v' */
    uint32_t version; /* of the byte format; stored in saved sequences */
    bool rotated;     /* tiles hold the sign-Hadamard basis of kv/rotate.h; queries and outputs are rotated to match */
    uint32_t bits;    /* of a code: what the members of a family differ in */
    uint32_t group;   /* elements that share a scale, where the family has a choice */
    /* 0 if the codec cannot take head_dim */
    size_t (*tile_bytes)(const kvq_codec *codec, uint32_t head_dim);
    /* x: (KVQ_TILE, head_dim) in the original basis; tile: tile_bytes, 64-byte aligned. Total: an element that no half
     * float can hold (NaN, infinite, beyond 65504) is stored as 0; the return value counts them. */
    uint32_t (*encode)(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile);
    /* the inverse, as near as the codec can: x (KVQ_TILE, head_dim) in the original basis; finite for every encoded tile */
    void (*decode)(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, float *x);
    /* of a tile from outside: is what decode and kernels index with in range? NULL: any bytes are */
    bool (*valid)(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim);
};

static inline bool kvq_tile_valid(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim) {
    return codec->valid == NULL || codec->valid(codec, tile, head_dim);
}

/* A KV type: what --kv takes. */
typedef struct kvq_kv_type {
    const char *name, *summary;
    const kvq_codec *k, *v;
    uint32_t sink, tail; /* default tokens in f16; tail UINT32_MAX: tiles are never encoded */
    const char *instead; /* what small models should take instead; NULL: this one suits them (tools/bench/REPORT.md) */
} kvq_kv_type;

uint32_t kvq_kv_type_count(void);
const kvq_kv_type *kvq_kv_type_at(uint32_t i);
const kvq_kv_type *kvq_kv_type_find(const char *name); /* NULL if unknown */

#endif
