/*
 * The sign-Hadamard rotation: y = H (s * x) / sqrt(n), with s = +-1 fixed per channel and H the Hadamard matrix of order n.
 *
 * It spreads outlier channels over all channels of a head, so that one scale fits them. It is orthonormal: rotating queries
 * as keys were rotated leaves every logit as it was, and what comes out of mixing rotated values is rotated back once.
 *
 * n is the largest power of two that divides head_dim (64 -> 64, 80 -> 16, 96 -> 32, 128 -> 128, 256 -> 256): a head is
 * head_dim / n such blocks, each with its own signs. Signs: channel i has the top bit of a hash of i (kvq_rotate_negative).
 *
 * Every implementation makes the same float32 steps in the same order, so that encoded bytes agree: x times the sign, the
 * butterflies (a + b, a - b) with strides 1, 2, 4 ... n/2, then times the float32 nearest to 1/sqrt(n). The inverse: the
 * same butterflies, the same factor, then the sign.
 */
#ifndef KVQ_KV_ROTATE_H
#define KVQ_KV_ROTATE_H

#include <stdbool.h>
#include <stdint.h>

/* Does the rotation flip the sign of this channel? */
static inline bool kvq_rotate_negative(uint32_t channel) {
    uint32_t hash = (channel + 1) * 0x9E3779B1u;
    hash = (hash ^ hash >> 15) * 0x85EBCA77u;
    return (hash ^ hash >> 13) >> 31;
}

uint32_t kvq_rotate_block(uint32_t head_dim);                  /* n above */
void kvq_rotate(float *x, uint32_t n_rows, uint32_t head_dim); /* x: (n_rows, head_dim), in place */
void kvq_rotate_back(float *x, uint32_t n_rows, uint32_t head_dim);

#endif
