#include "kv/key_bias.h"

#include <math.h>

#include "base/memory.h"

static uint32_t channel_c(const kvq_key_bias_rope *rope, uint32_t pair) {
    return rope->interleaved ? 2 * pair : pair;
}

static uint32_t channel_s(const kvq_key_bias_rope *rope, uint32_t pair) {
    return rope->interleaved ? 2 * pair + 1 : pair + rope->n_rot / 2;
}

static bool stands_out(const float *bias, const kvq_key_bias_rope *rope, uint32_t pair) { /* bias: (head_dim) */
    return hypotf(bias[channel_c(rope, pair)], bias[channel_s(rope, pair)]) >= KVQ_KEY_BIAS_LEAST;
}

uint32_t kvq_key_bias_n_pairs(const float *bias, uint32_t n_head_kv, uint32_t head_dim, const kvq_key_bias_rope *rope) {
    uint32_t most = 0;
    for (uint32_t head = 0; head < n_head_kv; head++) {
        uint32_t n = 0;
        for (uint32_t pair = 0; pair < rope->n_rot / 2; pair++)
            n += stands_out(bias + (size_t)head * head_dim, rope, pair);
        most = n > most ? n : most;
    }
    return most;
}

size_t kvq_key_bias_bytes(uint32_t n_pairs, uint32_t n_head_kv, uint32_t n_tiles) {
    size_t per_pair = 2 * sizeof(uint16_t) + 2 * sizeof(float) + 2 * ((size_t)KVQ_TILE + n_tiles) * sizeof(float);
    return sizeof(kvq_key_bias) + 64 + n_head_kv * n_pairs * per_pair;
}

/* The waves and turns of one pair, angles reduced in double. */
static void fill_pair(kvq_key_bias *b, uint32_t head, uint32_t i, double frequency) {
    float *cos_wave = b->wave + ((size_t)head * 2 * b->n_pairs + i) * KVQ_TILE,
          *sin_wave = cos_wave + b->n_pairs * KVQ_TILE;
    for (uint32_t t = 0; t < KVQ_TILE; t++) {
        cos_wave[t] = (float)cos(frequency * t);
        sin_wave[t] = (float)sin(frequency * t);
    }
    float *turn = b->turn + (size_t)head * b->n_tiles * 2 * b->n_pairs + i;
    for (uint32_t tile = 0; tile < b->n_tiles; tile++, turn += 2 * b->n_pairs) {
        turn[0] = (float)cos(frequency * tile * KVQ_TILE);
        turn[b->n_pairs] = (float)sin(frequency * tile * KVQ_TILE);
    }
}

static void fill_head(kvq_key_bias *b, uint32_t head, const float *bias, const kvq_key_bias_rope *rope) {
    uint32_t i = 0;
    for (uint32_t pair = 0; pair < rope->n_rot / 2; pair++) {
        if (!stands_out(bias, rope, pair))
            continue;
        uint32_t at = head * b->n_pairs + i;
        b->c[at] = (uint16_t)channel_c(rope, pair);
        b->s[at] = (uint16_t)channel_s(rope, pair);
        b->b_c[at] = bias[b->c[at]] * rope->magnitude;
        b->b_s[at] = bias[b->s[at]] * rope->magnitude;
        fill_pair(b, head, i++, rope->inv_freq[pair]);
    }
}

pykvq_status kvq_key_bias_create(const float *bias, uint32_t n_head_kv, uint32_t head_dim, const kvq_key_bias_rope *rope,
                                 uint32_t n_tiles, kvq_key_bias **out) {
    uint32_t n_pairs = kvq_key_bias_n_pairs(bias, n_head_kv, head_dim, rope);
    size_t n_bytes = kvq_key_bias_bytes(n_pairs, n_head_kv, n_tiles), n = (size_t)n_head_kv * n_pairs;
    kvq_key_bias *b;
    KVQ_TRY(kvq_alloc_array((void **)&b, n_bytes, 1, "key bias"));
    *b = (kvq_key_bias){.n_head_kv = n_head_kv, .n_tiles = n_tiles, .n_pairs = n_pairs, .n_bytes = n_bytes};
    b->wave = (float *)(((uintptr_t)(b + 1) + 63) / 64 * 64);
    b->turn = b->wave + n * 2 * KVQ_TILE;
    b->b_c = b->turn + n * 2 * n_tiles;
    b->b_s = b->b_c + n;
    b->c = (uint16_t *)(b->b_s + n);
    b->s = b->c + n;
    for (uint32_t head = 0; head < n_head_kv; head++)
        fill_head(b, head, bias + (size_t)head * head_dim, rope);
    *out = b;
    return PYKVQ_OK;
}

void kvq_key_bias_destroy(kvq_key_bias *b) {
    if (b != NULL)
        kvq_free(b, b->n_bytes);
}

static const float *turn_of(const kvq_key_bias *b, uint32_t head, uint32_t tile) { /* { cos, sin } (n_pairs) */
    return b->turn + ((size_t)head * b->n_tiles + tile) * 2 * b->n_pairs;
}

/* Element (t, d) of the keys is k[t * token_stride + d * channel_stride]. */
static inline void remove_bias(const kvq_key_bias *b, uint32_t head, uint32_t tile, uint32_t token_stride,
                               uint32_t channel_stride, float *k) {
    const float *cos_start = turn_of(b, head, tile), *sin_start = cos_start + b->n_pairs;
    const float *cos_wave = kvq_key_bias_wave(b, head), *sin_wave = cos_wave + b->n_pairs * KVQ_TILE;
    for (uint32_t i = 0; i < b->n_pairs; i++) {
        uint32_t at = head * b->n_pairs + i;
        float b_c = b->b_c[at], b_s = b->b_s[at];
        for (uint32_t t = 0; t < KVQ_TILE; t++) {
            float cos_t = cos_wave[i * KVQ_TILE + t], sin_t = sin_wave[i * KVQ_TILE + t];
            float cos_j = cos_start[i] * cos_t - sin_start[i] * sin_t, sin_j = sin_start[i] * cos_t + cos_start[i] * sin_t;
            k[t * token_stride + b->c[at] * channel_stride] -= b_c * cos_j - b_s * sin_j;
            k[t * token_stride + b->s[at] * channel_stride] -= b_c * sin_j + b_s * cos_j;
        }
    }
}

void kvq_key_bias_remove(const kvq_key_bias *b, uint32_t head, uint32_t tile, uint32_t head_dim, float *k) {
    remove_bias(b, head, tile, head_dim, 1, k);
}

void kvq_key_bias_remove_rows(const kvq_key_bias *b, uint32_t head, uint32_t tile, float *k) {
    remove_bias(b, head, tile, 1, KVQ_TILE, k);
}

void kvq_key_bias_query(const kvq_key_bias *b, uint32_t head, uint32_t tile, const float *q, float *ab) {
    const float *cos_start = turn_of(b, head, tile), *sin_start = cos_start + b->n_pairs;
    for (uint32_t i = 0; i < b->n_pairs; i++) {
        uint32_t at = head * b->n_pairs + i;
        float q_c = q[b->c[at]], q_s = q[b->s[at]];
        float C = q_c * b->b_c[at] + q_s * b->b_s[at], S = q_s * b->b_c[at] - q_c * b->b_s[at];
        ab[i] = C * cos_start[i] + S * sin_start[i];
        ab[b->n_pairs + i] = S * cos_start[i] - C * sin_start[i];
    }
}
