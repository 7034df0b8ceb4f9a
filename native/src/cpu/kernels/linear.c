/*
 * Prefill: two panels of weights, unpacked into tiles that stay in the L1 cache (with AVX-512 32 rows x 512 columns: 16 KiB
 * of codes, 2 to 8 KiB of scales and minima), are multiplied with all tokens, N_TOKENS at a time. 32 columns of 2 panels
 * and 6 tokens are 96 dot products, 12 conversions, 12 multiplications and 12 FMAs (24 with minima), and 64 loads.
 *
 * One Zen 5 core at 4.0 GHz starts 2 dot products or FMAs a clock: 510 GMAC/s of int8, and 380 with the float work above.
 * This loop reaches 368 (97%; scales for 16 columns: 310), whole matrices 290 to 310: the rest goes into unpacking for 256
 * tokens, rounding activations and writing results. Float weights: 126 of 128 in the loop, 110 whole.
 */
#include "cpu/kernels/linear.h"

/* Tokens whose sums for two panels fit into registers beside the operands. */
#if KVQ_ISA_avx2
enum { N_TOKENS = 3 };
#else
enum { N_TOKENS = 6 };
#endif

static void quantize(const float *x, uint32_t n_in, kvq_linear_group *groups) {
    for (uint32_t g = 0; g < n_in / KVQ_GROUP; g++, x += KVQ_GROUP) {
        vi32 max_bits = vi_set1(0); /* of |x|; as integers, so that NaN is the largest */
        for (int i = 0; i < KVQ_GROUP; i += VF)
            max_bits = vi_max(max_bits, vi_and(vi_from_bits(vf_load(x + i)), vi_set1(0x7fffffff)));
        float max = kvq_f32_from_bits((uint32_t)vi_reduce_max(max_bits));
        float inverse = max < 1e-30f ? 0 : 127.0f / max; /* so small is 0: 127 / max would overflow */
        kvq_linear_group *to = &groups[g];
        to->scale = max / 127.0f;
        for (int h = 0; h < 2; h++) {
            vi32 sum = vi_set1(0);
            for (int i = h * 16; i < (h + 1) * 16; i += VF) {
                vi32 code = vi_from_f32(vf_mul(vf_load(x + i), vf_set1(inverse)));
                vi_store_i8(to->code + i, code);
                sum = vi_add(sum, code);
            }
            to->minus_half_sum[h] = -vi_reduce_add(sum);
            to->half_sum[h] = to->scale * (float)-to->minus_half_sum[h];
        }
        to->minus_sum = to->minus_half_sum[0] + to->minus_half_sum[1];
        to->sum = to->scale * (float)-to->minus_sum;
    }
}

/* Both panels times n_tokens <= N_TOKENS tokens. */
VEC_INLINE void multiply_codes(kvq_linear_kind kind, int shift, const void *const tiles[2], uint32_t n_columns,
                               const uint8_t *x, size_t x_bytes, int n_tokens, float *acc) {
    vf32 sum[2 * N_TOKENS];
    UNROLL for (int t = 0; t < n_tokens; t++) UNROLL for (int p = 0; p < 2; p++)
        sum[p * n_tokens + t] = vf_load(acc + (2 * t + p) * VF);
    for (uint32_t k = 0; k < n_columns / KVQ_GROUP; k++) {
        const span *spans[2] = {(const span *)tiles[0] + k, (const span *)tiles[1] + k};
        const kvq_linear_group *groups[N_TOKENS];
        UNROLL for (int t = 0; t < n_tokens; t++) groups[t] = (const kvq_linear_group *)(x + t * x_bytes) + k;
        multiply_span(kind, shift, 2, n_tokens, spans, groups, sum);
    }
    UNROLL for (int t = 0; t < n_tokens; t++) UNROLL for (int p = 0; p < 2; p++)
        vf_store(acc + (2 * t + p) * VF, sum[p * n_tokens + t]);
}

VEC_INLINE void multiply_floats(kvq_linear_kind kind, int shift, const void *const tiles[2], uint32_t n_columns,
                                const uint8_t *x, size_t x_bytes, int n_tokens, float *acc) {
    const vf32 *const w[2] = {tiles[0], tiles[1]};
    for (uint32_t first = 0; first < 4; first++) { /* the order of additions that linear_float.c has */
        vf32 part[2 * N_TOKENS];
        UNROLL for (int i = 0; i < 2 * n_tokens; i++) part[i] = vf_zero();
        for (uint32_t k = first; k < n_columns; k += 4)
            UNROLL for (int t = 0; t < n_tokens; t++) {
                vf32 a = vf_set1(((const float *)(x + t * x_bytes))[k]);
                UNROLL for (int p = 0; p < 2; p++) part[p * n_tokens + t] = vf_fma(w[p][k], a, part[p * n_tokens + t]);
            }
        UNROLL for (int t = 0; t < n_tokens; t++) UNROLL for (int p = 0; p < 2; p++) {
            float *to = acc + (2 * t + p) * VF;
            vf_store(to, vf_add(vf_load(to), part[p * n_tokens + t]));
        }
    }
}

/* All tokens, as many at a time as possible; the compiler makes a loop nest for each constant number. */
#define AT_A_TIME(n, body, kind)                                                                                           \
    for (; n_tokens >= (n); n_tokens -= (n), x += (n) * x_bytes, acc += (n) * 2 * VF)                                      \
        body(kind, shift, tiles, n_columns, x, x_bytes, n, acc);
#define MULTIPLY(name, body, kind)                                                                                         \
    static void name(int shift, const void *const tiles[2], uint32_t n_columns, const uint8_t *x, size_t x_bytes,          \
                     uint32_t n_tokens, float *acc) {                                                                      \
        AT_A_TIME(N_TOKENS, body, kind)                                                                                    \
        AT_A_TIME(2, body, kind)                                                                                           \
        AT_A_TIME(1, body, kind)                                                                                           \
    }

MULTIPLY(multiply_float, multiply_floats, KVQ_LINEAR_FLOAT)
MULTIPLY(multiply_offset32, multiply_codes, KVQ_LINEAR_OFFSET32)
MULTIPLY(multiply_offset16, multiply_codes, KVQ_LINEAR_OFFSET16)
MULTIPLY(multiply_wide32, multiply_codes, KVQ_LINEAR_WIDE32)
MULTIPLY(multiply_min32, multiply_codes, KVQ_LINEAR_MIN32)
MULTIPLY(multiply_min16, multiply_codes, KVQ_LINEAR_MIN16)

static void multiply(const kvq_linear_type *type, const void *const tiles[2], uint32_t n_columns, const void *x,
                     size_t x_bytes, uint32_t n_tokens, float *acc) {
    static void (*const of_kind[])(int, const void *const[2], uint32_t, const uint8_t *, size_t, uint32_t, float *) = {
        [KVQ_LINEAR_FLOAT] = multiply_float,       [KVQ_LINEAR_OFFSET32] = multiply_offset32,
        [KVQ_LINEAR_OFFSET16] = multiply_offset16, [KVQ_LINEAR_WIDE32] = multiply_wide32,
        [KVQ_LINEAR_MIN32] = multiply_min32,       [KVQ_LINEAR_MIN16] = multiply_min16,
    };
    of_kind[type->kind](type->shift, tiles, n_columns, x, x_bytes, n_tokens, acc);
}

static void store(const float *acc, size_t acc_stride, uint32_t n_tokens, uint32_t skip, const float *bias, bool add,
                  float *y, size_t n_y) {
    for (uint32_t t = 0; t < n_tokens; t++, acc += acc_stride, y += n_y) {
        vf32 a = vf_load(acc);
        if (bias)
            a = vf_add(a, vf_load(bias));
        if (skip == 0) {
            vf_store(y, add ? vf_add(vf_load(y), a) : a);
            continue;
        }
        float lanes[VF];
        vf_store(lanes, a);
        for (uint32_t i = skip; i < VF; i++)
            y[i] = add ? y[i] + lanes[i] : lanes[i];
    }
}

/* clang-format off */
#define TYPES(X) \
    X(0, f32) X(1, f16) X(30, bf16) \
    X(2, q4_0) X(3, q4_1) X(6, q5_0) X(7, q5_1) X(8, q8_0) X(20, iq4_nl) X(39, mxfp4) X(40, nvfp4) \
    X(10, q2_k) X(11, q3_k) X(12, q4_k) X(13, q5_k) X(14, q6_k) X(23, iq4_xs) X(34, tq1_0) X(35, tq2_0) \
    X(16, iq2_xxs) X(17, iq2_xs) X(22, iq2_s) X(18, iq3_xxs) X(21, iq3_s) X(19, iq1_s) X(29, iq1_m)
/* clang-format on */
#define DECLARE(id, name) extern const kvq_linear_type KVQ_NAME(kvq_linear_##name);
#define ENTRY(id, name)   [id] = &KVQ_NAME(kvq_linear_##name),

TYPES(DECLARE)

const kvq_linear_kernels KVQ_NAME(kvq_linear) = {
    .n_lanes = VF,
    .types = {TYPES(ENTRY)},
    .quantize = quantize,
    .multiply = multiply,
    .store = store,
};
