/* Weight loading: the file's blocks go to the GPU as they are and are put into fragment order there. */
#include "device.cuh"
#include "kernels.h"

namespace {

/* Codes (unsigned) and scales of the file's blocks; formats: ggml's. */
__device__ __forceinline__ uint32_t code_of(uint32_t kind, const uint8_t *row, uint32_t col) {
    switch (kind) {
    case W_Q8: /* { half d; int8 q[32] } */
        return (uint8_t)(row[col / 32 * 34 + 2 + col % 32] + 128);
    case W_Q4S: { /* { half d; 16 bytes: low nibbles, then high ones } */
        uint8_t byte = row[col / 32 * 18 + 2 + col % 16];
        return col % 32 < 16 ? byte & 0xf : byte >> 4;
    }
    case W_Q4M: { /* { half d, m; 16 bytes } */
        uint8_t byte = row[col / 32 * 20 + 4 + col % 16];
        return col % 32 < 16 ? byte & 0xf : byte >> 4;
    }
    case W_Q4K: { /* { half d, dmin; scales[12]; qs[128] } */
        uint8_t byte = row[col / 256 * 144 + 16 + col % 256 / 64 * 32 + col % 32];
        return col % 64 < 32 ? byte & 0xf : byte >> 4;
    }
    case W_Q5K: { /* { half d, dmin; scales[12]; qh[32]; qs[128] } */
        const uint8_t *block = row + col / 256 * 176;
        uint8_t byte = block[48 + col % 256 / 64 * 32 + col % 32];
        return (col % 64 < 32 ? byte & 0xf : byte >> 4) | (block[16 + col % 32] >> (col % 256 / 32) & 1) << 4;
    }
    case W_Q6K: { /* { ql[128]; qh[64]; int8 scales[16]; half d } */
        const uint8_t *block = row + col / 256 * 210;
        uint32_t c = col % 128, half = col % 256 / 128;
        uint8_t low = block[64 * half + c % 64], high = block[128 + 32 * half + c % 32];
        return (c < 64 ? low & 0xf : low >> 4) | (high >> (2 * (c / 32)) & 3) << 4;
    }
    default: /* halves */
        return row[2 * col] | row[2 * col + 1] << 8;
    }
}

__device__ __forceinline__ uint32_t half_at(const uint8_t *p) {
    return p[0] | p[1] << 8;
}

/* Scale and min of 32-column group s of a K block, 6 bits each. */
__device__ __forceinline__ uint32_t k_scales(const uint8_t *q, uint32_t s) {
    uint32_t sc = s < 4 ? q[s] & 63 : (q[s + 4] & 0xf) | q[s - 4] >> 6 << 4;
    uint32_t m = s < 4 ? q[s + 4] & 63 : q[s + 4] >> 4 | q[s] >> 6 << 4;
    return sc | m << 8;
}

/* n_in may end in the middle of a step: what lies beyond has scale 0 */
__device__ uint32_t scale_word(uint32_t kind, const uint8_t *row, uint32_t n_in, uint32_t step, uint32_t word) {
    bool whole = (2 * step + 1) * 32 < n_in;
    switch (kind) {
    case W_Q8:
        return half_at(row + (2 * step) * 34) | (whole ? half_at(row + (2 * step + 1) * 34) << 16 : 0);
    case W_Q4S:
        return half_at(row + (2 * step) * 18) | (whole ? half_at(row + (2 * step + 1) * 18) << 16 : 0);
    case W_Q4M: {
        const uint8_t *block = row + (2 * step + word) * 20;
        return whole || word == 0 ? half_at(block) | half_at(block + 2) << 16 : 0;
    }
    case W_Q4K:
    case W_Q5K: {
        const uint8_t *scales = row + step / 4 * (kind == W_Q4K ? 144 : 176) + 4;
        return k_scales(scales, step % 4 * 2) | k_scales(scales, step % 4 * 2 + 1) << 16;
    }
    default: { /* Q6K */
        const uint8_t *s = row + step / 4 * 210 + 192 + step % 4 * 4;
        return s[0] | s[1] << 8 | s[2] << 16 | (uint32_t)s[3] << 24;
    }
    }
}

/* One thread per (row block, step, lane). source: rows first_row .. of the file */
__global__ void arrange_kernel(matrix m, const uint8_t *source, size_t row_bytes, uint32_t first_block, uint32_t n_blocks) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t lane = i % 32, step = i / 32 % m.n_steps, block = i / 32 / m.n_steps;
    if (block >= n_blocks)
        return;
    size_t at = (size_t)(first_block + block) * m.n_steps + step;
    uint32_t *codes = (uint32_t *)m.codes + at * (step_code_bytes(m.kind) / 4);
    uint32_t *high = (uint32_t *)(m.high + at * step_high_bytes(m.kind));
    uint32_t bit_words[2] = {0, 0};
    for (uint32_t reg = 0; reg < 4; reg++) {
        uint32_t words[4] = {0, 0, 0, 0};
        for (uint32_t b = 0; b < 4; b++)
            for (uint32_t half = 0; half < 2; half++) {
                uint32_t row = block * ROWS + lane / 4 + 8 * (reg % 2);
                uint32_t col = step * STEP + 16 * b + lane % 4 * 2 + 8 * (reg / 2) + half;
                bool inside = first_block * ROWS + row < m.n_out && col < m.n_in;
                uint32_t code = inside ? code_of(m.kind, source + row * row_bytes, col) : 0;
                if (m.kind == W_F16)
                    words[b] |= code << 16 * half;
                else if (m.kind == W_Q8)
                    words[b / 2] |= code << (16 * half + 8 * (b % 2));
                else
                    words[0] |= (code & 0xf) << (16 * half + nibble_at(b));
                if (m.kind == W_Q5K)
                    bit_words[0] |= (code >> 4) << (16 * half + 4 * reg + b);
                if (m.kind == W_Q6K)
                    bit_words[reg / 2] |= (code >> 4) << (16 * half + 8 * (reg % 2) + 2 * b);
            }
        for (uint32_t w = 0; w < step_code_bytes(m.kind) / 512; w++)
            codes[w * 128 + lane * 4 + reg] = words[w];
    }
    for (uint32_t w = 0; w < step_high_bytes(m.kind) / 128; w++)
        high[lane * (step_high_bytes(m.kind) / 128) + w] = bit_words[w];
    uint32_t n_words = step_scale_words(m.kind), row = block * ROWS + lane;
    if (lane >= ROWS || n_words == 0)
        return;
    bool inside = first_block * ROWS + row < m.n_out;
    for (uint32_t w = 0; w < n_words; w++)
        ((uint32_t *)m.scales)[scale_at(m.n_steps, n_words, first_block + block, step, lane) + w] =
            inside ? scale_word(m.kind, source + row * row_bytes, m.n_in, step, w) : 0;
    if (has_super(m.kind) && step % 4 == 0) {
        uint32_t block_bytes = m.kind == W_Q4K ? 144 : m.kind == W_Q5K ? 176 : 210;
        const uint8_t *from = source + row * row_bytes + (size_t)step / 4 * block_bytes + (m.kind == W_Q6K ? 208 : 0);
        uint32_t d = inside ? half_at(from) : 0, dmin = inside && m.kind != W_Q6K ? half_at(from + 2) : 0;
        ((uint32_t *)m.super)[((size_t)(first_block + block) * n_quads(m.n_steps) + step / QUAD) * ROWS + lane] = d |
                                                                                                                  dmin
                                                                                                                      << 16;
    }
}

/* Four codes of word r of a lane: bytes { b, b + 1 } of column c, then of c + 1, for the fragments b = 2 i and b + 1. */
template <int KIND> __device__ __forceinline__ uint32_t four_codes(const uint4 (&codes)[2], uint2 high, int r, int i) {
    constexpr uint32_t ONES = 0x00010001u;
    const uint32_t *words = reinterpret_cast<const uint32_t *>(codes);
    if constexpr (KIND == W_Q8)
        return words[4 * i + r];
    uint32_t four = words[r] >> 4 * i & 0x0f0f0f0fu;
    if constexpr (KIND == W_Q5K) {
        uint32_t bits = high.x >> (4 * r + 2 * i);
        four |= (bits & ONES) << 4 | (bits >> 1 & ONES) << 12;
    }
    if constexpr (KIND == W_Q6K) {
        uint32_t bits = (r < 2 ? high.x : high.y) >> (8 * (r % 2) + 4 * i);
        four |= (bits & 3 * ONES) << 4 | (bits >> 2 & 3 * ONES) << 12;
    }
    return four;
}

/* Factor and addend of fragment b of a step, from the row's scale words and { d, dmin }. */
template <int KIND> __device__ __forceinline__ float2 scale_of(const uint32_t *words, float2 d, int b) {
    if constexpr (KIND == W_Q4M) {
        return __half22float2(*reinterpret_cast<const __half2 *>(&words[b / 2]));
    } else if constexpr (KIND == W_Q6K) {
        float factor = d.x * (int8_t)(words[0] >> 8 * b & 0xff);
        return make_float2(factor, -32.0f * factor);
    } else if constexpr (KIND == W_Q4K || KIND == W_Q5K) {
        uint32_t scale = words[0] >> 16 * (b / 2);
        return make_float2(d.x * (scale & 0xff), -d.y * (scale >> 8 & 0xff));
    } else {
        float factor = __half2float(__ushort_as_half((uint16_t)(words[0] >> 16 * (b / 2))));
        return make_float2(factor, (KIND == W_Q8 ? -128.0f : -8.0f) * factor);
    }
}

/* What a lane loads of a step. */
struct step_codes {
    uint4 codes[4];
    uint2 high;
};

template <int KIND> __device__ __forceinline__ void load_step(const matrix &m, size_t at, int lane, step_codes &s) {
    constexpr int N = KIND == W_F16 ? 4 : KIND == W_Q8 ? 2 : 1;
#pragma unroll
    for (int i = 0; i < N; i++)
        s.codes[i] = __ldcs(m.codes + (at * N + i) * 32 + lane);
    if constexpr (KIND == W_Q5K)
        s.high.x = __ldcs(reinterpret_cast<const uint32_t *>(m.high) + at * 32 + lane);
    if constexpr (KIND == W_Q6K)
        s.high = __ldcs(reinterpret_cast<const uint2 *>(m.high) + at * 32 + lane);
}

/* The lane's eight halves of row lane / 4 (+ 8 if low is 1) in half i of a step, in the order of expanded_place. */
template <int KIND>
__device__ __forceinline__ uint4 eight_halfs(const step_codes &s, int low, int i, const uint32_t *scales, float2 d) {
    uint32_t out[4];
#pragma unroll
    for (int b = 0; b < 2; b++) {
        float2 scale;
        if constexpr (KIND != W_F16)
            scale = scale_of<KIND>(scales, d, 2 * i + b);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = low + 2 * h;
            if constexpr (KIND == W_F16) {
                out[2 * b + h] = reinterpret_cast<const uint32_t *>(&s.codes[2 * i + b])[r];
            } else {
                uint32_t four = four_codes<KIND>(reinterpret_cast<const uint4(&)[2]>(s.codes), s.high, r, i);
                out[2 * b + h] = pack_halfs(fmaf(byte_of(four, b), scale.x, scale.y),
                                            fmaf(byte_of(four, 2 + b), scale.x, scale.y));
            }
        }
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

/*
 * out (n_blocks 16, n_steps 64) = rows of the matrix from row block first_block on, as halves; the columns of a step in the
 * order of expanded_place, so that a lane writes what it holds. One warp for four steps of 16 rows. It must read the codes
 * and write 2 bytes per weight.
 */
template <int KIND>
__global__ void __launch_bounds__(256) expand_kernel(matrix m, uint32_t first_block, uint32_t n_blocks, __half *out) {
    let_next_start();
    uint32_t warp = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32, n = n_quads(m.n_steps);
    uint32_t block = warp / n, quad = warp % n;
    if (block >= n_blocks) {
        wait_for_previous();
        return;
    }
    step_codes steps[QUAD];
    constexpr int WORDS = KIND == W_Q4M ? 2 : 1;
    uint4 scales[2][WORDS];
    float2 d[2];
    size_t row = ((size_t)(first_block + block) * n + quad) * ROWS + lane / 4;
#pragma unroll
    for (int s = 0; s < QUAD; s++)
        if (quad * QUAD + s < m.n_steps)
            load_step<KIND>(m, (size_t)(first_block + block) * m.n_steps + quad * QUAD + s, lane, steps[s]);
#pragma unroll
    for (int low = 0; low < 2; low++) {
        if constexpr (KIND != W_F16)
#pragma unroll
            for (int w = 0; w < WORDS; w++)
                scales[low][w] = __ldg(reinterpret_cast<const uint4 *>(m.scales) + (row + 8 * low) * WORDS + w);
        if constexpr (KIND >= W_Q4K)
            d[low] = __half22float2(m.super[row + 8 * low]);
    }
    wait_for_previous();
#pragma unroll
    for (int s = 0; s < QUAD; s++) {
        if (quad * QUAD + s >= m.n_steps)
            break;
#pragma unroll
        for (int low = 0; low < 2; low++) {
            __half *to = out + ((size_t)block * ROWS + lane / 4 + 8 * low) * m.n_steps * STEP + (quad * QUAD + s) * STEP;
            const uint32_t *words = reinterpret_cast<const uint32_t *>(scales[low]) + s * WORDS;
#pragma unroll
            for (int i = 0; i < 2; i++)
                reinterpret_cast<uint4 *>(to)[4 * i + lane % 4] = eight_halfs<KIND>(steps[s], low, i, words, d[low]);
        }
    }
}

/* x (n_tokens, n_in) = scale * rows of the table */
__global__ void embed_kernel(matrix m, const int32_t *tokens, float scale, float *x) {
    let_next_start();
    wait_for_previous();
    uint32_t col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col < m.n_in)
        x[(size_t)blockIdx.y * m.n_in + col] = scale * weight_at(m, (uint32_t)tokens[blockIdx.y], col);
}

} // namespace

void launch_arrange(const matrix &m, const uint8_t *source, size_t row_bytes, uint32_t first_block, uint32_t n_blocks,
                    cudaStream_t stream) {
    size_t n = (size_t)n_blocks * m.n_steps * 32;
    launch_after(arrange_kernel, dim3((unsigned)((n + 255) / 256)), 256, 0, stream, m, source, row_bytes, first_block,
                 n_blocks);
}

void launch_expand(const matrix &m, uint32_t first_block, uint32_t n_blocks, __half *out, cudaStream_t stream) {
    dim3 grid((unsigned)(((size_t)n_blocks * n_quads(m.n_steps) + 7) / 8));
    switch (m.kind) {
#define CASE(kind)                                                                                                         \
    case kind:                                                                                                             \
        launch(expand_kernel<kind>, grid, 256, 0, stream, m, first_block, n_blocks, out);                                  \
        break
        CASE(W_F16);
        CASE(W_Q8);
        CASE(W_Q4S);
        CASE(W_Q4M);
        CASE(W_Q4K);
        CASE(W_Q5K);
        CASE(W_Q6K);
#undef CASE
    }
}

void launch_embed(const matrix &m, const int32_t *tokens, uint32_t n_tokens, float scale, float *x, cudaStream_t stream) {
    launch(embed_kernel, dim3((m.n_in + 255) / 256, n_tokens), 256, 0, stream, m, tokens, scale, x);
}
