/* What host and device agree on: how a layer's tiles are read, and the units of work of an attention launch. */
#ifndef KVQ_CUDA_FORMAT_H
#define KVQ_CUDA_FORMAT_H

#include <stdint.h>

#define EACH_HEAD_DIM(X) X(16) X(32) X(64) X(80) X(96) X(112) X(128) X(256) /* as in CMakeLists.txt */

/* How a tile is read; one value for each shape of codes and scales, whatever codec makes them. */
enum tile_path {
    PATH_F16,
    PATH_CHANNEL_2, /* K: scale and zero per channel over 32 tokens */
    PATH_CHANNEL_4,
    PATH_CHANNEL_2_G64, /* over 64 tokens */
    PATH_NORMED_2,      /* K: scale and zero per channel over 64 tokens, scale per token; V: the other way round */
    PATH_NORMED_3,
    PATH_NORMED_4,
    PATH_TOKEN_4,  /* scale per token over 32 channels, codes around 8 */
    PATH_TOKEN_8,  /* around 128 */
    PATH_AFFINE_2, /* V: scale and zero per token over 32 channels */
    PATH_AFFINE_4,
    PATH_AFFINE_2_G64, /* over 64 channels */
    PATH_TURBO_2,      /* levels of a codebook, scale per token */
    PATH_TURBO_3,
    PATH_TURBO_4,
    PATH_NVFP4,   /* e2m1 levels, scale per token and 16 channels, and per tile */
    PATH_FP8,     /* e4m3, scale per tile */
    PATH_TIER_2,  /* K: places of 4, 2 and 1 bits; scale and zero per place, scale per token */
    PATH_TIER_3,  /* 4, 3 and 2 bits */
    PATH_SPLIT_2, /* levels of 3 and of 2 bits for two sets of channels, of the tile's own, each rotated, scale per token */
    PATH_SPLIT_3, /* 4 and 3 bits */
    PATH_NONE
};

typedef struct tile_side { /* of K or V of a layer */
    uint32_t path, bits;
    uint32_t offset;       /* what codes count from, where tiles hold no zero points */
    uint32_t chunk_tokens; /* tokens whose codes are contiguous: 16, 32 or 64 */
    uint32_t chunk_bytes;
    uint32_t meta_bytes; /* scales, after 64 / chunk_tokens chunks */
    uint32_t rotated;
    /* V: what a sum of probabilities times codes, as the tensor cores see them, is to be multiplied by, divided by
     * 2^row_shift in rows 8-15 of a block of 16 channels and by 2^block_shift in every other block. */
    float unit;
    uint32_t row_shift, block_shift;
} tile_side;

typedef struct tile_run {
    uint32_t first, n;
} tile_run;

/* Tiles of one KV head, up to two runs of f16 tiles and one of encoded ones, against up to 8 NT columns (query token, query
 * head). */
typedef struct attend_unit {
    uint32_t table; /* where the span's page table starts, in entries */
    tile_run raw[2], coded;
    uint32_t head;
    uint32_t row, first_col, n_cols; /* first row of the span; columns of this unit, of n_tokens x head_group */
    uint32_t pos, end;               /* position of the span's first token; positions from end on hold nothing yet */
    uint32_t output;                 /* units with the same output are merged */
    uint32_t first_unit, n_units;    /* of this output */
} attend_unit;

/* kv/key_bias.h's tables in device memory; n_pairs 0: nothing is taken out of the keys. */
typedef struct bias_tables {
    uint32_t n_pairs, n_tiles;
    const uint16_t *c, *s;    /* (n_head_kv, n_pairs) */
    const float *b_c, *b_s;   /* (n_head_kv, n_pairs) */
    const float *wave, *turn; /* (n_head_kv, { cos, sin } (n_pairs), 64), (n_head_kv, n_tiles, { cos, sin } (n_pairs)) */
} bias_tables;

typedef struct attend_args {
    const float *q; /* (n_tokens, n_head, head_dim) */
    float *o;       /* (n_tokens, n_head, head_dim) */
    const attend_unit *units;
    const uint32_t *n_units;
    const uint32_t *tables;
    const uint8_t *raw, *coded;          /* the layer's pools */
    float *partial;                      /* (unit, column, head_dim) */
    float *partial_max;                  /* (unit, column, { max, sum }) */
    uint32_t *arrived;                   /* (output) zero between launches */
    const float *sink_logits;            /* (n_head) or NULL */
    tile_side k, v;                      /* of encoded tiles */
    uint32_t k_tile_bytes, v_tile_bytes; /* rounded up, as they lie in a page */
    uint32_t n_head, n_head_kv;
    float scale, softcap;
    uint32_t window;
    uint32_t ring_bytes;    /* of shared memory per warp */
    uint32_t scratch_bytes; /* and beside the ring, for paths that change the basis of a tile */
    bias_tables bias;
} attend_args;

#endif
