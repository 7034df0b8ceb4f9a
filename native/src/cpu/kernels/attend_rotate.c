/*
 * The rotation of kv/rotate.h for queries and outputs, several channels at a time: the same matrix, its additions in
 * another order. Butterflies within a vector are a swap of lanes and a multiply-add with signs, those across vectors an
 * addition and a subtraction; a row of 64 channels takes about 60 instructions with AVX-512.
 */
#include "cpu/attend.h"
#include "cpu/isa.h"
#include "cpu/vec.h"
#include "kv/rotate.h"

/* factor (n): the sign of each channel over the root of the block's size */
static void channel_factors(uint32_t n, float *factor) {
    static const uint32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vi32 size = vi_from_bits(vf_set1(1.0f / sqrtf((float)kvq_rotate_block(n))));
    for (uint32_t d = 0; d < n; d += VF) { /* kvq_rotate_negative */
        vi32 hash = vi_mul(vi_add(vi_load(lanes), vi_set1((int32_t)d + 1)), vi_set1((int32_t)0x9E3779B1u));
        hash = vi_mul(vi_xor(hash, vi_shr(hash, 15)), vi_set1((int32_t)0x85EBCA77u));
        vi32 sign = vi_and(vi_xor(hash, vi_shr(hash, 13)), vi_set1(INT32_MIN));
        vf_store(factor + d, vi_to_bits(vi_or(size, sign)));
    }
}

/* Hadamard matrices, without their factor, of the blocks within a vector */
VEC_INLINE vf32 hadamard_lanes(vf32 y) {
    static const float signs[4][16] = {/* -1 where bit i of the lane's number is set */
                                       {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
                                       {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
                                       {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
                                       {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1}};
#pragma GCC unroll 4
    for (uint32_t i = 0; 1u << i < VF; i++)
        y = vf_fma(y, vf_load(signs[i]), vf_swap(y, 1 << i));
    return y;
}

/* and of those across vectors; x: (n) */
VEC_INLINE void hadamard_vectors(float *x, uint32_t n, uint32_t block) {
    for (uint32_t half = VF; half < block; half *= 2)
        for (uint32_t start = 0; start < n; start += 2 * half)
            for (uint32_t d = start; d < start + half; d += VF) {
                vf32 a = vf_load(x + d), b = vf_load(x + d + half);
                vf_store(x + d, vf_add(a, b));
                vf_store(x + d + half, vf_sub(a, b));
            }
}

void KVQ_NAME(kvq_attend_rotate)(float *x, uint32_t n_rows, uint32_t n) {
    _Alignas(64) float factor[KVQ_MAX_HEAD_DIM];
    uint32_t block = kvq_rotate_block(n);
    channel_factors(n, factor);
    for (uint32_t r = 0; r < n_rows; r++, x += n) {
        for (uint32_t d = 0; d < n; d += VF)
            vf_store(x + d, hadamard_lanes(vf_mul(vf_load(x + d), vf_load(factor + d))));
        hadamard_vectors(x, n, block);
    }
}

void KVQ_NAME(kvq_attend_rotate_back)(float *x, uint32_t n_rows, uint32_t n) {
    _Alignas(64) float factor[KVQ_MAX_HEAD_DIM];
    uint32_t block = kvq_rotate_block(n);
    channel_factors(n, factor);
    for (uint32_t r = 0; r < n_rows; r++, x += n) {
        hadamard_vectors(x, n, block);
        for (uint32_t d = 0; d < n; d += VF)
            vf_store(x + d, vf_mul(hadamard_lanes(vf_load(x + d)), vf_load(factor + d)));
    }
}
