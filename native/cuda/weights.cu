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

/* out (n_rows, n_in) = rows of the matrix from first_row on */
__global__ void expand_kernel(matrix m, uint32_t first_row, uint32_t n_rows, __half *out) {
    uint32_t col = (blockIdx.x * blockDim.x + threadIdx.x) * 2, row = blockIdx.y;
    if (col >= m.n_in || row >= n_rows)
        return;
    float x = weight_at(m, first_row + row, col), y = col + 1 < m.n_in ? weight_at(m, first_row + row, col + 1) : 0.0f;
    if (col + 1 < m.n_in && m.n_in % 2 == 0)
        *reinterpret_cast<__half2 *>(out + (size_t)row * m.n_in + col) = __floats2half2_rn(x, y);
    else {
        out[(size_t)row * m.n_in + col] = __float2half_rn(x);
        if (col + 1 < m.n_in)
            out[(size_t)row * m.n_in + col + 1] = __float2half_rn(y);
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

void launch_expand(const matrix &m, uint32_t first_row, uint32_t n_rows, __half *out, cudaStream_t stream) {
    launch_after(expand_kernel, dim3((m.n_in + 511) / 512, n_rows), 256, 0, stream, m, first_row, n_rows, out);
}

void launch_embed(const matrix &m, const int32_t *tokens, uint32_t n_tokens, float scale, float *x, cudaStream_t stream) {
    launch(embed_kernel, dim3((m.n_in + 255) / 256, n_tokens), 256, 0, stream, m, tokens, scale, x);
}
