/*
 * Codecs are recognised by what their trait says of the tile: side, rotation, bits, group and size. A codec that looks the
 * same in all of them has the same bytes by construction; one that differs in any is refused.
 */
#include "codecs.h"

typedef struct known {
    bool rotated;
    uint32_t bits, group;
    uint32_t family, k_path, v_path, offset;
} known;

static const known table[] = {
    {false, 16, 1, FAMILY_F16, PATH_F16, PATH_F16, 0},
    {false, 4, 32, FAMILY_KIVI, PATH_CHANNEL_4, PATH_AFFINE_4, 0},
    {false, 2, 32, FAMILY_KIVI, PATH_CHANNEL_2, PATH_AFFINE_2, 0},
    {false, 2, 64, FAMILY_KIVI, PATH_CHANNEL_2_G64, PATH_AFFINE_2_G64, 0},
    {true, 8, 32, FAMILY_BLOCKS, PATH_TOKEN_8, PATH_TOKEN_8, 128},
    {true, 4, 32, FAMILY_BLOCKS, PATH_TOKEN_4, PATH_TOKEN_4, 8},
    {true, 4, 64, FAMILY_KVARN, PATH_NORMED_4, PATH_NORMED_4, 0},
    {true, 3, 64, FAMILY_KVARN, PATH_NORMED_3, PATH_NORMED_3, 0},
    {true, 2, 64, FAMILY_KVARN, PATH_NORMED_2, PATH_NORMED_2, 0},
    {true, 4, 0, FAMILY_TURBO, PATH_TURBO_4, PATH_TURBO_4, 0},
    {true, 3, 0, FAMILY_TURBO, PATH_TURBO_3, PATH_TURBO_3, 0},
    {true, 2, 0, FAMILY_TURBO, PATH_TURBO_2, PATH_TURBO_2, 0},
    {true, 4, 16, FAMILY_NVFP4, PATH_NVFP4, PATH_NVFP4, 0},
    {true, 8, 0, FAMILY_FP8, PATH_FP8, PATH_FP8, 0},
    {false, 3, 64, FAMILY_TIER, PATH_TIER_3, PATH_NONE, 0},
    {false, 2, 64, FAMILY_TIER, PATH_TIER_2, PATH_NONE, 0},
    {false, 3, 0, FAMILY_SPLIT, PATH_SPLIT_3, PATH_SPLIT_3, 0},
    {false, 2, 0, FAMILY_SPLIT, PATH_SPLIT_2, PATH_SPLIT_2, 0},
};

/* Levels are half floats. Codes are f16 subnormals, and those of 2 and 4 bits stay shifted up; see tile.h. */
static void describe_products(const known *k, tile_side *side) {
    if (k->family == FAMILY_TURBO && k->bits == 2)
        side->unit = LEVEL_UNIT_2;
    if (k->bits == 16 || has_levels(k->family) || k->family == FAMILY_FP8)
        return;
    side->unit = 0x1p24f;
    side->row_shift = k->bits == 4 ? 4 : k->bits == 2 ? 2 : 0;
    side->block_shift = k->bits == 2 ? 4 : 0;
}

bool describe_codec(const kvq_codec *codec, uint32_t head_dim, tile_side *side, tile_format *format) {
    bool is_k = codec->side == 'k';
    for (const known &k : table) {
        if (k.family == FAMILY_TIER && !is_k)
            continue;
        if (k.rotated != codec->rotated || k.bits != codec->bits || k.group != codec->group || codec->version != 1)
            continue;
        uint32_t group = k.group > 0 ? k.group : head_dim, meta_bytes = 2 * meta_halfs(k.family, is_k, group, head_dim);
        uint32_t codes_bytes = 4 * code_words(k.family, k.bits, head_dim);
        if (codec->tile_bytes(codec, head_dim) != codes_bytes + meta_bytes)
            continue;
        uint32_t chunk_tokens = k.bits == 16 ? 16 : k.bits == 8 ? 32 : 64;
        uint32_t chunk_bytes = codes_bytes / (TILE_TOKENS / chunk_tokens), whole = (meta_bytes + 15) / 16 * 16;
        *side = tile_side{
            is_k ? k.k_path : k.v_path, k.bits, k.offset, chunk_tokens, chunk_bytes, whole, k.rotated, 1.0f, 0, 0};
        describe_products(&k, side);
        *format = tile_format{k.family, k.bits, group, is_k, k.rotated};
        return true;
    }
    return false;
}
