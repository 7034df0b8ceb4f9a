/*
 * Weight matrices on the GPU: 16 rows x 64 columns (a step) in the order of the A fragments of four mma.m16n8k16, so that
 * one 16-byte load per lane is codes for four of them.
 *
 *   kind   codes per step (16 rows)                               scales per step, row     bytes per weight
 *   F16    4 x 512 B: fragment after fragment                     -                        2
 *   Q8     2 x 512 B: word r, bit 8 (b % 2), block b / 2          { d, d } half            1.0625
 *   Q4S    512 B: word r, bit 8 (b % 2) + 4 (b / 2)               { d, d } half            0.5625    (code - 8) d
 *   Q4M    512 B                                                  { d, m, d, m } half      0.625     code d + m
 *   Q4K    512 B                                                  { sc, m, sc, m } bytes   0.578     code d sc - dmin m
 *   Q5K    512 B, 128 B of fifth bits: bit 4 r + b                the same                 0.703
 *   Q6K    512 B, 256 B of high bits: word r / 2, bit 8 (r % 2) + 2 b   4 sc bytes         0.820     (code - 32) d sc
 *
 * Scales lie row by row for four steps (a quad), K kinds have { d, dmin } half once per quad and row. r: fragment register,
 * b: fragment of the step; the codes of a register's two halves lie 16 bits apart. Rows and columns beyond the matrix hold
 * zeros.
 */
#ifndef KVQ_CUDA_WEIGHTS_CUH
#define KVQ_CUDA_WEIGHTS_CUH

#include <cuda_fp16.h>
#include <stdint.h>

enum weight_kind { W_F16, W_Q8, W_Q4S, W_Q4M, W_Q4K, W_Q5K, W_Q6K };

enum { STEP = 64, QUAD = 4 /* steps */, ROWS = 16 };

typedef struct matrix {
    uint32_t kind, n_in, n_out, n_steps; /* n_steps of 64 columns */
    const uint4 *codes;                  /* (row block, step, code_bytes / 16) */
    const uint8_t *high;                 /* (row block, step, 128 or 256 bytes) */
    const uint32_t *scales;              /* (row block, quad, 16 rows, 4 steps, scale_words) */
    const __half2 *super;                /* (row block, quad, 16 rows) */
} matrix;

__host__ __device__ constexpr uint32_t step_code_bytes(uint32_t kind) {
    return kind == W_F16 ? 2048 : kind == W_Q8 ? 1024 : 512;
}

__host__ __device__ constexpr uint32_t step_high_bytes(uint32_t kind) {
    return kind == W_Q5K ? 128 : kind == W_Q6K ? 256 : 0;
}

__host__ __device__ constexpr uint32_t step_scale_words(uint32_t kind) {
    return kind == W_F16 ? 0 : kind == W_Q4M ? 2 : 1;
}

__host__ __device__ constexpr bool has_super(uint32_t kind) {
    return kind >= W_Q4K;
}

__host__ __device__ constexpr uint32_t quad_bytes(uint32_t kind) { /* of 16 rows */
    return QUAD * (step_code_bytes(kind) + step_high_bytes(kind)) +
           ROWS * (QUAD * step_scale_words(kind) + has_super(kind)) * (uint32_t)sizeof(uint32_t);
}

__host__ __device__ __forceinline__ uint32_t n_quads(uint32_t n_steps) {
    return (n_steps + QUAD - 1) / QUAD;
}

__host__ __device__ __forceinline__ uint32_t round_step(uint32_t n) { /* up to whole steps */
    return (n + STEP - 1) / STEP * STEP;
}

/* Where a 4-bit code of fragment b lies: both fragments of a group of 32 columns at the same place of their halves. */
__host__ __device__ __forceinline__ uint32_t nibble_at(uint32_t b) {
    return 8 * (b % 2) + 4 * (b / 2);
}

__host__ __device__ __forceinline__ size_t scale_at(uint32_t n_steps, uint32_t words, uint32_t rb, uint32_t step,
                                                    uint32_t row) {
    return ((((size_t)rb * n_quads(n_steps) + step / QUAD) * ROWS + row) * QUAD + step % QUAD) * words;
}

/* Where column c of a step lies in expanded rows: halves { 32 (b / 2) + 8 (lane % 4) .. + 7 } are what one lane holds of
 * the fragments b and b + 1. A product does not mind, as long as its other side has the same order. */
__host__ __device__ __forceinline__ uint32_t expanded_place(uint32_t c) {
    return c / 32 * 32 + c % 8 / 2 * 8 + c % 32 / 8 * 2 + c % 2;
}

/* One element; for embeddings. */
__device__ __forceinline__ float weight_at(const matrix &m, uint32_t row, uint32_t col) {
    uint32_t rb = row / ROWS, r16 = row % ROWS, step = col / STEP, c = col % STEP, b = c / 16, c16 = c % 16;
    uint32_t lane = r16 % 8 * 4 + c16 % 8 / 2, reg = r16 / 8 + 2 * (c16 / 8), half = c16 % 2;
    size_t at = (size_t)rb * m.n_steps + step;
    const uint32_t *codes = reinterpret_cast<const uint32_t *>(m.codes) + at * (step_code_bytes(m.kind) / 4);
    if (m.kind == W_F16) {
        uint32_t word = codes[b * 128 + lane * 4 + reg];
        return __half2float(__ushort_as_half((uint16_t)(word >> 16 * half)));
    }
    const uint32_t *scale = m.scales + scale_at(m.n_steps, step_scale_words(m.kind), rb, step, r16);
    if (m.kind == W_Q8) {
        int code = (int)(codes[b / 2 * 128 + lane * 4 + reg] >> (16 * half + 8 * (b % 2)) & 0xff) - 128;
        return code * __half2float(__ushort_as_half((uint16_t)(scale[0] >> 16 * (c / 32))));
    }
    int code = (int)(codes[lane * 4 + reg] >> (16 * half + nibble_at(b)) & 0xf);
    if (m.kind == W_Q4S)
        return (code - 8) * __half2float(__ushort_as_half((uint16_t)(scale[0] >> 16 * (c / 32))));
    if (m.kind == W_Q4M) {
        float2 dm = __half22float2(*reinterpret_cast<const __half2 *>(&scale[c / 32]));
        return code * dm.x + dm.y;
    }
    float2 d = __half22float2(m.super[((size_t)rb * n_quads(m.n_steps) + step / QUAD) * ROWS + r16]);
    if (m.kind == W_Q6K) {
        const uint32_t *high = reinterpret_cast<const uint32_t *>(m.high + at * 256);
        code |= (high[lane * 2 + reg / 2] >> (16 * half + 8 * (reg % 2) + 2 * b) & 3) << 4;
        return (code - 32) * (d.x * (int8_t)(scale[0] >> 8 * b & 0xff));
    }
    if (m.kind == W_Q5K) {
        const uint32_t *high = reinterpret_cast<const uint32_t *>(m.high + at * 128);
        code |= (high[lane] >> (16 * half + 4 * reg + b) & 1) << 4;
    }
    uint32_t sm = scale[0] >> 16 * (c / 32);
    return code * (d.x * (sm & 0xff)) - d.y * (sm >> 8 & 0xff);
}

#endif
