/*
 * A model's key bias (Qwen2), taken out of keys before they are encoded and put back, exactly, into the logits.
 *
 * Such a bias is far larger than what varies between keys, and RoPE turns it with the position, so that it would eat the
 * range of every scale. It is known from the weights: keys are encoded as k_j - R_j b, R_j the rotation of position j, and
 * attention adds q . R_j b to their logits. For the pair of channels (c, s) of RoPE with frequency f, j = start + t,
 *
 *   q . R_j b = A cos(f t) + B sin(f t)      A = C cos(f start) + S sin(f start)     C = q_c b_c + q_s b_s
 *                                            B = S cos(f start) - C sin(f start)     S = q_s b_c - q_c b_s
 *
 * so for a tile the waves cos(f t), sin(f t) are constants, and no memory is read but them. That holds for any set of
 * pairs: only those whose bias stands out are taken out (KVQ_KEY_BIAS_LEAST), a handful in most heads.
 */
#ifndef KVQ_KV_KEY_BIAS_H
#define KVQ_KV_KEY_BIAS_H

#include "kv/codec.h"

/* A pair's bias below this stays in the keys. Keys have elements of the order of 1, or softmax would not be soft. */
#define KVQ_KEY_BIAS_LEAST 2.0f

typedef struct kvq_key_bias {
    uint32_t n_head_kv, n_tiles;
    uint32_t n_pairs; /* of the head that has most; the others are filled up with pairs that have no bias */
    size_t n_bytes;   /* of this one allocation */
    uint16_t *c, *s;  /* (n_head_kv, n_pairs) channels of each pair */
    float *b_c, *b_s; /* (n_head_kv, n_pairs) its bias */
    float *wave;      /* (n_head_kv, { cos, sin } (n_pairs), 64) of f t */
    float *turn;      /* (n_head_kv, n_tiles, { cos, sin } (n_pairs)) of f start */
} kvq_key_bias;

typedef struct kvq_key_bias_rope { /* the layer's RoPE, in plain numbers */
    const float *inv_freq;         /* (n_rot / 2) */
    uint32_t n_rot;
    bool interleaved;
    float magnitude;
} kvq_key_bias_rope;

/* Pairs that stand out in the worst head of bias (n_head_kv, head_dim); 0: none does, and nothing need be taken out. */
uint32_t kvq_key_bias_n_pairs(const float *bias, uint32_t n_head_kv, uint32_t head_dim, const kvq_key_bias_rope *rope);
size_t kvq_key_bias_bytes(uint32_t n_pairs, uint32_t n_head_kv, uint32_t n_tiles);
pykvq_status kvq_key_bias_create(const float *bias, uint32_t n_head_kv, uint32_t head_dim, const kvq_key_bias_rope *rope,
                                 uint32_t n_tiles, kvq_key_bias **out);
void kvq_key_bias_destroy(kvq_key_bias *key_bias);

/* k (64, head_dim), the keys of a head in this tile, minus the bias */
void kvq_key_bias_remove(const kvq_key_bias *key_bias, uint32_t head, uint32_t tile, uint32_t head_dim, float *k);
/* The same for k (head_dim, 64), as an f16 page has it */
void kvq_key_bias_remove_rows(const kvq_key_bias *key_bias, uint32_t head, uint32_t tile, float *k);
/* ab (2 n_pairs): A and B above, of one query q (head_dim); the logits get ab . wave */
void kvq_key_bias_query(const kvq_key_bias *key_bias, uint32_t head, uint32_t tile, const float *q, float *ab);

static inline const float *kvq_key_bias_wave(const kvq_key_bias *b, uint32_t head) { /* (2 n_pairs, 64) */
    return b->wave + (size_t)head * 2 * b->n_pairs * KVQ_TILE;
}

#endif
