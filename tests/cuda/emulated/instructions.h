/* native/cuda/instructions.cuh without a GPU; included in front of every source. */
#ifndef KVQ_CUDA_INSTRUCTIONS_CUH
#define KVQ_CUDA_INSTRUCTIONS_CUH

#include "cuda_fp16.h"

static inline float emulated_half(uint32_t pair, int i) {
    return emulated_halfs[pair >> 16 * i & 0xffff];
}

/* Element (row, col) of A is in lane row % 8 * 4 + col % 8 / 2, register row / 8 + 2 (col / 8); (row, col) of B in lane
 * col * 4 + row % 8 / 2, register row / 8. */
static inline void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    const uint32_t mine[6] = {a0, a1, a2, a3, b0, b1}, (*all)[8];
    emulated_exchange(mine, 6, all);
    int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + 8 * (i / 2), col = lane % 4 * 2 + i % 2;
        float sum = c[i];
        for (int k = 0; k < 16; k++)
            sum += emulated_half(all[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)], k % 2) *
                   emulated_half(all[col * 4 + k % 8 / 2][4 + k / 8], k % 2);
        c[i] = sum;
    }
}

static inline uint32_t transpose_8x8(uint32_t x) {
    const uint32_t (*all)[8];
    emulated_exchange(&x, 1, all);
    int row = threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
    uint32_t low = all[col * 4 + row / 2][0] >> 16 * (row % 2), high = all[(col + 1) * 4 + row / 2][0] >> 16 * (row % 2);
    return (low & 0xffff) | high << 16;
}

static inline float exp2_fast(float x) {
    return exp2f(x);
}

static inline uint32_t pack_halfs(float low, float high) {
    return __float2half_rn(low).bits | (uint32_t)__float2half_rn(high).bits << 16;
}

static inline uint32_t mul_halfs(uint32_t a, uint32_t b) {
    return pack_halfs(emulated_half(a, 0) * emulated_half(b, 0), emulated_half(a, 1) * emulated_half(b, 1));
}

static inline uint32_t fma_halfs(uint32_t a, uint32_t b, uint32_t c) { /* a * b is exact */
    return pack_halfs(emulated_half(a, 0) * emulated_half(b, 0) + emulated_half(c, 0),
                      emulated_half(a, 1) * emulated_half(b, 1) + emulated_half(c, 1));
}

static inline uint32_t clamp_halfs(uint32_t x, uint32_t largest) { /* fmin and fmax drop a not-a-number */
    float most = emulated_half(largest, 0);
    return pack_halfs(fmaxf(fminf(emulated_half(x, 0), most), -most), fmaxf(fminf(emulated_half(x, 1), most), -most));
}

static inline void load_matrices(const void *row, uint32_t (&r)[4]) {
    const uint32_t mine[2] = {(uint32_t)(uintptr_t)row, (uint32_t)((uintptr_t)row >> 32)}, (*all)[8];
    emulated_exchange(mine, 2, all);
    int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) {
        const uint32_t *from = all[8 * i + lane / 4];
        memcpy(&r[i], (const uint8_t *)((uintptr_t)from[1] << 32 | from[0]) + lane % 4 * 4, 4);
    }
}

static inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
    return __byte_perm(low, high, selector);
}

static inline int opaque(int x) {
    return x;
}

static inline uint32_t per_lane(uint32_t x) {
    return x;
}

template <typename T> static inline T uniform(T x) {
    return x;
}

static inline uint8_t *shared_memory() {
    return emulated_shared();
}

/* Copies happen when they are waited for. */
void init_copies(uint64_t *full);
void start_copies(uint64_t *full, int lane, uint8_t *to, const uint8_t *a, uint32_t n_a, const uint8_t *b, uint32_t n_b);
void wait_copies(uint64_t *full, uint32_t parity);

static inline void order_copies() {}

void copy16_async(void *shared, const void *global);
void commit_async();
void emulated_wait(int n_open);

template <int N> static inline void wait_async() {
    emulated_wait(N);
}

static inline void let_next_start() {}

static inline void wait_for_previous() {}

template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, unsigned n_threads, size_t shared, cudaStream_t, A... args) {
    emulated_launch([=] { kernel(static_cast<P>(args)...); }, grid, n_threads, shared);
    return cudaSuccess;
}

template <typename... P, typename... A>
cudaError_t launch_after(void (*kernel)(P...), dim3 grid, unsigned n_threads, size_t shared, cudaStream_t stream,
                         A... args) {
    return launch(kernel, grid, n_threads, shared, stream, args...);
}

#endif
