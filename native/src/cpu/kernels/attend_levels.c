/*
 * Attention over q8_0, q4_0, nvfp4 and turbo tiles: codes that stand for levels, with a scale per token and block of
 * channels.
 *
 *   K: q.k = sum over blocks of scale[block][token] * sum (q level)        V: p.v = sum (p scale[block]) level
 *
 *            level                                                  block
 *   q8_0     code - 128                                             32 channels
 *   q4_0     code - 8                                               32 channels
 *   nvfp4    2 e2m1[code], an integer                               16 channels
 *   turbo    centroid[code] as an integer of 7 bits, by table       all
 *
 * Queries become bytes once for all tiles. Levels are biased to be unsigned; bias * sum(q) comes off before a sum starts.
 * Tokens are the lanes of K, channels those of V. Times: attend_codes.h.
 *
 * The integers of turbo differ from the centroids by up to 0.015 (4 bits), 0.01 (3 bits), 0.0003 (2 bits): the squared
 * error of the codec grows by 0.55%, 0.06% and 0.0001%.
 */
#include "cpu/kernels/attend_levels.h"
#include "kv/blocks.h"
#include "kv/nvfp4.h"
#include "kv/turbo.h"

/* ---- the codecs ---- */

VEC_INLINE scaled_codes blocks_tile(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, const uint32_t bits) {
    return (scaled_codes){
        .codes = {tile, bits, head_dim, NULL},
        .bias = bits == 8 ? 128 : 8,
        .block = KVQ_BLOCK,
        .scale = tile + kvq_blocks_scales(codec, head_dim),
        .unit = 1.0f,
    };
}

VEC_INLINE scaled_codes nvfp4_tile(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, const uint32_t bits) {
    static const uint8_t levels[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    float tile_scale;
    memcpy(&tile_scale, tile + kvq_nvfp4_tile_scale(head_dim), sizeof tile_scale);
    return (scaled_codes){
        .codes = {tile, bits, head_dim, levels},
        .bias = 12,
        .block = KVQ_NVFP4_GROUP,
        .e4m3 = true,
        .scale = tile + kvq_nvfp4_scales(head_dim),
        .unit = 0.5f * tile_scale,
    };
}

VEC_INLINE scaled_codes turbo_tile(const kvq_codec *codec, const uint8_t *tile, uint32_t head_dim, const uint32_t bits) {
    return turbo_codes(tile, tile + kvq_turbo_scales(codec, head_dim), head_dim, bits);
}

/* The functions of kvq_key_kernels and kvq_value_kernels for the codec `id`, whose tiles get_tile knows. */
#define LEVELS(id, get_tile, bits, bias, block)                                                                            \
    extern const kvq_codec kvq_codec_##id##_k, kvq_codec_##id##_v;                                                         \
    static void prepare_##id(const float *q, uint32_t n_rows, uint32_t head_dim, void *prepared) {                         \
        prepare_queries(q, n_rows, head_dim, bits, bias, block, prepared);                                                 \
    }                                                                                                                      \
    static void score_##id(const void *tile, uint32_t head_dim, const void *prepared, uint32_t n_rows, float *logits) {    \
        scaled_codes k = get_tile(&kvq_codec_##id##_k, tile, head_dim, bits);                                              \
        score_scaled(&k, prepared, n_rows, false, logits);                                                                 \
    }                                                                                                                      \
    static void expand_k_##id(const void *tile, uint32_t head_dim, float *out) {                                           \
        scaled_codes k = get_tile(&kvq_codec_##id##_k, tile, head_dim, bits);                                              \
        expand_scaled_keys(&k, false, out);                                                                                \
    }                                                                                                                      \
    static void mix_##id(const void *tile, uint32_t head_dim, uint32_t n_tokens, const float *p, uint32_t n_rows,          \
                         float *o) {                                                                                       \
        scaled_codes v = get_tile(&kvq_codec_##id##_v, tile, head_dim, bits);                                              \
        mix_scaled(&v, p, n_rows, o);                                                                                      \
    }                                                                                                                      \
    static void expand_v_##id(const void *tile, uint32_t head_dim, float *out) {                                           \
        scaled_codes v = get_tile(&kvq_codec_##id##_v, tile, head_dim, bits);                                              \
        expand_scaled_values(&v, out);                                                                                     \
    }                                                                                                                      \
    const kvq_key_kernels KVQ_NAME(kvq_keys_##id) = {&kvq_codec_##id##_k, prepare_##id, score_##id, expand_k_##id};        \
    const kvq_value_kernels KVQ_NAME(kvq_values_##id) = {&kvq_codec_##id##_v, mix_##id, expand_v_##id}

LEVELS(q8_0, blocks_tile, 8, 128, KVQ_BLOCK);
LEVELS(q4_0, blocks_tile, 4, 8, KVQ_BLOCK);
LEVELS(nvfp4, nvfp4_tile, 4, 12, KVQ_NVFP4_GROUP);
LEVELS(turbo4, turbo_tile, 4, turbo_bias(4), KVQ_MAX_HEAD_DIM);
LEVELS(turbo3, turbo_tile, 3, turbo_bias(3), KVQ_MAX_HEAD_DIM);
LEVELS(turbo2, turbo_tile, 2, turbo_bias(2), KVQ_MAX_HEAD_DIM);
