/*
 * kivi4, kivi2, kivi2_g64: asymmetric uniform codes, keys per channel and values per token.
 * KIVI (Liu et al., ICML 2024, arXiv 2402.02750). Not rotated: the outliers of keys are channels, and a channel has its own
 * scale.
 *
 *   K: x[t][d] ~ scale[t / group][d] * code + zero[t / group][d]      group tokens of one channel
 *   V: x[t][d] ~ scale[d / group][t] * code + zero[d / group][t]      group channels of one token
 *
 *   tile    codes                 64 * head_dim codes, kv/pack.h
 *           scale  half[G][N]     K: G = 64 / group,              N = head_dim
 *           zero   half[G][N]     V: G = head_dim / group, up,    N = 64     (head_dim 80: groups of 32, 32, 16)
 *
 * Bits per element with groups of 32: bits + 1 (kivi4 5.0, kivi2 3.0), with groups of 64: bits + 0.5.
 * Attention folds a channel's scale into the query and a token's scale into the probabilities; zeros cost one dot product
 * with the query per group of tokens (K), one with the probabilities per group of channels (V).
 *
 * What differs from the paper: scale and zero are refitted (kv/affine.h), keys to keep the norm, values unbiased. The paper
 * quantizes values one token at a time; here both sides are encoded by the tile. The residual is the cache's tail.
 */
#include "kv/kivi.h"
#include "kv/affine.h"
#include "kv/tile.h"

static size_t tile_bytes(const kvq_codec *codec, uint32_t head_dim) {
    if (!kvq_takes_head_dim(head_dim))
        return 0;
    return kvq_kivi_zeros(codec, head_dim) +
           (size_t)kvq_kivi_n_groups(codec, head_dim) * kvq_kivi_n_cols(codec, head_dim) * 2;
}

/* rows of group g among n_rows */
static uint32_t group_rows(const kvq_codec *codec, uint32_t g, uint32_t n_rows) {
    uint32_t left = n_rows - g * codec->group;
    return left < codec->group ? left : codec->group;
}

static uint32_t encode(const kvq_codec *codec, const float *x, uint32_t head_dim, uint8_t *tile) {
    float y[KVQ_TILE * KVQ_MAX_HEAD_DIM], turned[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM], turned_codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint16_t *scale = (uint16_t *)(tile + kvq_kivi_scales(codec, head_dim));
    uint16_t *zero = (uint16_t *)(tile + kvq_kivi_zeros(codec, head_dim));
    bool is_k = codec->side == 'k';
    uint32_t n_cols = kvq_kivi_n_cols(codec, head_dim), n_rows = is_k ? KVQ_TILE : head_dim;

    uint32_t n_bad = kvq_tile_load(x, head_dim, false, y);
    if (!is_k)
        kvq_transpose(y, KVQ_TILE, head_dim, turned);
    const float *rows = is_k ? y : turned; /* (n_rows, n_cols): a group is some rows of one column */
    uint8_t *row_codes = is_k ? codes : turned_codes;
    for (uint32_t g = 0; g < kvq_kivi_n_groups(codec, head_dim); g++) {
        uint32_t first = g * codec->group * n_cols;
        kvq_affine_encode(rows + first, group_rows(codec, g, n_rows), n_cols, codec->bits,
                          is_k ? KVQ_FIT_NORM : KVQ_FIT_UNBIASED, scale + g * n_cols, zero + g * n_cols, row_codes + first);
    }
    if (!is_k)
        kvq_transpose_codes(turned_codes, head_dim, KVQ_TILE, codes);
    kvq_pack(codec->side, codec->bits, head_dim, codes, tile);
    return n_bad;
}

static void decode(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, float *x) {
    const uint16_t *scale = (const uint16_t *)(tile + kvq_kivi_scales(codec, head_dim));
    const uint16_t *zero = (const uint16_t *)(tile + kvq_kivi_zeros(codec, head_dim));
    uint8_t codes[KVQ_TILE * KVQ_MAX_HEAD_DIM];
    uint32_t n_cols = kvq_kivi_n_cols(codec, head_dim);
    kvq_unpack(codec->side, codec->bits, head_dim, tile, codes);
    for (uint32_t t = 0; t < KVQ_TILE; t++)
        for (uint32_t d = 0; d < head_dim; d++) {
            uint32_t i = codec->side == 'k' ? t / codec->group * n_cols + d : d / codec->group * n_cols + t;
            x[t * head_dim + d] = kvq_f16_to_f32(scale[i]) * (float)codes[t * head_dim + d] + kvq_f16_to_f32(zero[i]);
        }
}

#define KIVI(id, name, bits, group)                                                                                        \
    const kvq_codec kvq_codec_##id##_k = {name, 'k', 1, false, bits, group, tile_bytes, encode, decode, NULL};             \
    const kvq_codec kvq_codec_##id##_v = {name, 'v', 1, false, bits, group, tile_bytes, encode, decode, NULL}

KIVI(kivi4, "kivi4", 4, 32);
KIVI(kivi2, "kivi2", 2, 32);
KIVI(kivi2_g64, "kivi2_g64", 2, 64);
