/*
 * Float weights times float activations: F32, F16, BF16, each converted to float in registers. Columns 0, 1, 2, 3 (mod 4)
 * have sums of their own, which decode runs side by side and prefill one after the other, and every
 * KVQ_LINEAR_FLOAT_COLUMNS columns are summed apart: the order of additions is the same in both, and rounding errors stay
 * small.
 */
#include "cpu/kernels/linear.h"

/* n_columns of weights from the 16 bytes at w of each row */
VEC_INLINE void load_f32(const uint8_t *w, size_t row_bytes, vf32 *to) {
    vi32 c[4];
    vi_load_rows(w, row_bytes, c);
    UNROLL for (int i = 0; i < 4; i++) to[i] = vi_to_bits(c[i]);
}

VEC_INLINE void load_f16(const uint8_t *w, size_t row_bytes, vf32 *to) {
    vi32 c[4];
    vi_load_rows(w, row_bytes, c);
    UNROLL for (int i = 0; i < 4; i++) {
        to[2 * i] = vi_f16_to_f32(c[i]);
        to[2 * i + 1] = vi_f16_to_f32(vi_shr(c[i], 16));
    }
}

VEC_INLINE void load_bf16(const uint8_t *w, size_t row_bytes, vf32 *to) {
    vi32 c[4];
    vi_load_rows(w, row_bytes, c);
    UNROLL for (int i = 0; i < 4; i++) {
        to[2 * i] = vi_to_bits(vi_shl(c[i], 16));
        to[2 * i + 1] = vi_to_bits(vi_and(c[i], vi_set1((int32_t)0xffff0000)));
    }
}

#define FLOAT_TYPE(name, n_bytes, to_float)                                                                                \
    enum { N_##name = 16 / (n_bytes) };                                                                                    \
    static void rest_##name(const uint8_t *w, size_t row_bytes, uint32_t n, vf32 *to) {                                    \
        float column[VF];                                                                                                  \
        for (uint32_t k = 0; k < n; k++) {                                                                                 \
            for (int i = 0; i < VF; i++)                                                                                   \
                column[i] = to_float(w + (size_t)i * row_bytes + k * (n_bytes));                                           \
            to[k] = vf_load(column);                                                                                       \
        }                                                                                                                  \
    }                                                                                                                      \
    static void unpack_##name(const uint8_t *w, size_t row_bytes, uint32_t n_columns, const uint8_t *ahead, void *tile) {  \
        vf32 *to = tile;                                                                                                   \
        stream s = stream_from(ahead);                                                                                     \
        uint32_t k = 0;                                                                                                    \
        for (; k + N_##name <= n_columns; k += N_##name) {                                                                 \
            load_##name(w + (size_t)k * (n_bytes), row_bytes, to + k);                                                     \
            prefetch(&s, VF * 16);                                                                                         \
        }                                                                                                                  \
        rest_##name(w + (size_t)k * (n_bytes), row_bytes, n_columns - k, to + k);                                          \
    }                                                                                                                      \
    static void dot_##name(const uint8_t *w, size_t row_bytes, uint32_t n_in, const uint8_t *ahead, const void *x,         \
                           float *y) {                                                                                     \
        vf32 sum = vf_zero();                                                                                              \
        stream s = stream_from(ahead);                                                                                     \
        const float *a = x;                                                                                                \
        for (uint32_t k = 0; k < n_in;) {                                                                                  \
            uint32_t end = n_in - k < KVQ_LINEAR_FLOAT_COLUMNS ? n_in : k + KVQ_LINEAR_FLOAT_COLUMNS;                      \
            vf32 part[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()}, column[N_##name];                                 \
            for (; k + N_##name <= end; k += N_##name) {                                                                   \
                load_##name(w + (size_t)k * (n_bytes), row_bytes, column);                                                 \
                prefetch(&s, VF * 16);                                                                                     \
                UNROLL for (int i = 0; i < N_##name; i++) part[i % 4] = vf_fma(column[i], vf_set1(a[k + i]), part[i % 4]); \
            }                                                                                                              \
            rest_##name(w + (size_t)k * (n_bytes), row_bytes, end - k, column);                                            \
            for (uint32_t i = 0; k < end; i++, k++)                                                                        \
                part[i % 4] = vf_fma(column[i], vf_set1(a[k]), part[i % 4]);                                               \
            UNROLL for (int i = 0; i < 4; i++) sum = vf_add(sum, part[i]);                                                 \
        }                                                                                                                  \
        vf_store(y, sum);                                                                                                  \
    }                                                                                                                      \
    const kvq_linear_type KVQ_NAME(kvq_linear_##name) = {KVQ_LINEAR_FLOAT, 0, dot_##name, unpack_##name};

static float f32_at(const uint8_t *p) {
    float x;
    memcpy(&x, p, 4);
    return x;
}

static float f16_at(const uint8_t *p) {
    uint16_t x;
    memcpy(&x, p, 2);
    return kvq_f16_to_f32(x);
}

static float bf16_at(const uint8_t *p) {
    uint16_t x;
    memcpy(&x, p, 2);
    return kvq_bf16_to_f32(x);
}

FLOAT_TYPE(f32, 4, f32_at)
FLOAT_TYPE(f16, 2, f16_at)
FLOAT_TYPE(bf16, 2, bf16_at)
