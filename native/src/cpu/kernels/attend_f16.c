/*
 * Attention over f16 tiles.
 *
 * Stored: K (head_dim, 64) half, tokens fastest; V (64, head_dim) half, channels fastest. Lanes are tokens for K and
 * channels for V, so neither product needs a horizontal sum. A tile costs 256 head_dim bytes and, for every 6 rows,
 * 128 head_dim / lanes conversions; with up to 6 rows reading memory is the limit.
 * Measured on one Zen 5 core at depth 8192: 85% of its memory bandwidth with 1 query head per KV head, 62% with 3 and 4.
 */
#include "cpu/attend.h"
#include "cpu/isa.h"
#include "cpu/kernels/attend_product.h"

extern const kvq_codec kvq_codec_f16_k, kvq_codec_f16_v;

static void score(const void *tile, uint32_t head_dim, const void *prepared, uint32_t n_rows, float *logits) {
    product p = {.a = prepared,
                 .b = tile,
                 .c = logits,
                 .a_stride = head_dim,
                 .b_stride = KVQ_TILE,
                 .c_stride = KVQ_TILE,
                 .n_k = head_dim,
                 .ahead = 2 * KVQ_TILE * head_dim};
    product_all(&p, n_rows, KVQ_TILE, true);
}

static void mix(const void *tile, uint32_t head_dim, uint32_t n_tokens, const float *probs, uint32_t n_rows, float *o) {
    uint32_t stride = kvq_output_stride(head_dim), n_whole = head_dim / 16 * 16;
    product p = {.a = probs,
                 .b = tile,
                 .c = o,
                 .a_stride = KVQ_TILE,
                 .b_stride = head_dim,
                 .c_stride = stride,
                 .n_k = n_tokens,
                 .ahead = 2 * KVQ_TILE * head_dim,
                 .add = true};
    product_all(&p, n_rows, n_whole, true);
    const uint16_t *v = tile;
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t t = 0; t < n_tokens; t++)
            for (uint32_t c = n_whole; c < head_dim; c++) /* none but where head_dim is an odd multiple of 8 */
                o[r * stride + c] += probs[r * KVQ_TILE + t] * kvq_f16_to_f32(v[t * head_dim + c]);
}

static void expand_k(const void *tile, uint32_t head_dim, float *k) {
    for (uint32_t i = 0; i < head_dim * KVQ_TILE; i += VF)
        vf_store(k + i, vf_load_f16((const uint16_t *)tile + i));
}

static void expand_v(const void *tile, uint32_t head_dim, float *v) {
    uint32_t stride = kvq_output_stride(head_dim);
    const uint16_t *row = tile;
    for (uint32_t t = 0; t < KVQ_TILE; t++, row += head_dim, v += stride) {
        uint32_t c = 0;
        for (; c + VF <= head_dim; c += VF)
            vf_store(v + c, vf_load_f16(row + c));
        for (; c < head_dim; c++)
            v[c] = kvq_f16_to_f32(row[c]);
    }
}

const kvq_key_kernels KVQ_NAME(kvq_keys_f16) = {&kvq_codec_f16_k, NULL, score, expand_k};
const kvq_value_kernels KVQ_NAME(kvq_values_f16) = {&kvq_codec_f16_v, mix, expand_v};
