/*
 * What is the GPU's own: tensor-core instructions, asynchronous copies, fast exponentials, launches that overlap. All else
 * is C++ that tests/cuda/emulated runs without a GPU, with its own version of this file.
 */
#ifndef KVQ_CUDA_INSTRUCTIONS_CUH
#define KVQ_CUDA_INSTRUCTIONS_CUH

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

/* c (16 x 8, f32) += a (16 x 16, f16) . b (16 x 8, f16) */
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Transposes an 8 x 8 matrix of halves held as two per lane. */
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t x) {
    uint32_t y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(y) : "r"(x));
    return y;
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t pack_halfs(float low, float high) {
    __half2 h = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&h);
}

__device__ __forceinline__ uint32_t mul_halfs(uint32_t a, uint32_t b) {
    __half2 h = __hmul2(*reinterpret_cast<__half2 *>(&a), *reinterpret_cast<__half2 *>(&b));
    return *reinterpret_cast<uint32_t *>(&h);
}

/* a * b + c, rounded once */
__device__ __forceinline__ uint32_t fma_halfs(uint32_t a, uint32_t b, uint32_t c) {
    __half2 h = __hfma2(*reinterpret_cast<__half2 *>(&a), *reinterpret_cast<__half2 *>(&b),
                        *reinterpret_cast<__half2 *>(&c));
    return *reinterpret_cast<uint32_t *>(&h);
}

/* Each half at most `largest` in magnitude; a not-a-number becomes -largest. */
__device__ __forceinline__ uint32_t clamp_halfs(uint32_t x, uint32_t largest) {
    __half2 h = __hmax2(__hmin2(*reinterpret_cast<__half2 *>(&x), *reinterpret_cast<__half2 *>(&largest)),
                        __hneg2(*reinterpret_cast<__half2 *>(&largest)));
    return *reinterpret_cast<uint32_t *>(&h);
}

/* Four 8 x 8 matrices of halves from shared memory; lane 8 i + row gives the address of row `row` of matrix i. Lane l gets
 * word l % 4 of row l / 4 of each. */
__device__ __forceinline__ void load_matrices(const void *row, uint32_t (&r)[4]) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* Byte i is byte (nibble i of the selector) of { low, high }; what is above its low 16 bits does not matter. */
__device__ __forceinline__ uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t y;
    asm("prmt.b32 %0,%1,%2,%3;" : "=r"(y) : "r"(low), "r"(high), "r"(selector));
    return y;
}

/* x, of which the compiler knows nothing: what follows from it is computed where it is used, not kept in registers. */
__device__ __forceinline__ int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

/* x, but for the compiler something else in each lane: a constant that instructions without uniform operands use often
 * stays in a register instead of being moved there each time. */
__device__ __forceinline__ uint32_t per_lane(uint32_t x) {
    uint32_t lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return x + (lane >> 5);
}

/* x, which is the same in all lanes: the compiler keeps what follows from it once per warp. */
template <typename T> __device__ __forceinline__ T uniform(T x) {
    return __shfl_sync(~0u, x, 0);
}

/* The shared memory that a launch asks for. */
__device__ __forceinline__ uint8_t *shared_memory() {
    extern __shared__ __align__(128) uint8_t memory[];
    return memory;
}

/*
 * Copies of a warp from global to shared memory, counted by a barrier in shared memory: the copy engine's from compute
 * capability 9.0 on, else 16 bytes a lane. Phases of a barrier complete in turn, the first has parity 0.
 */
__device__ __forceinline__ uint32_t shared_address(const void *shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ __forceinline__ void init_copies(uint64_t *full) { /* by one lane */
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(full)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    asm volatile("mbarrier.init.shared.b64 [%0], 32;" ::"r"(shared_address(full)) : "memory");
#endif
}

/* What threads wrote to shared memory comes before copies that a lane starts after a barrier. */
__device__ __forceinline__ void order_copies() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* Two runs of bytes, their lengths multiples of 16, the second may be 0: one phase. By all lanes. */
__device__ __forceinline__ void start_copies(uint64_t *full, int lane, uint8_t *to, const uint8_t *a, uint32_t n_a,
                                             const uint8_t *b, uint32_t n_b) {
#if __CUDA_ARCH__ >= 900
    if (lane != 0)
        return;
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(full)), "r"(n_a + n_b)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
        "l"(a), "r"(n_a), "r"(shared_address(full))
        : "memory");
    if (n_b > 0)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                         shared_address(to) + n_a),
                     "l"(b), "r"(n_b), "r"(shared_address(full))
                     : "memory");
#else
    for (uint32_t i = lane * 16; i < n_a + n_b; i += 512)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to) + i),
                     "l"(i < n_a ? a + i : b + (i - n_a))
                     : "memory");
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(full)) : "memory");
#endif
}

__device__ __forceinline__ void wait_copies(uint64_t *full, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
#if __CUDA_ARCH__ >= 900
                 "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
#else
                 "mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
#endif
                 "@!done bra again;\n"
                 "}\n" ::"r"(shared_address(full)),
                 "r"(parity)
                 : "memory");
}

/* 16 bytes from global to shared memory, past L1. */
__device__ __forceinline__ void copy16_async(void *shared, const void *global) {
    uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

__device__ __forceinline__ void commit_async() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> __device__ __forceinline__ void wait_async() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/*
 * Kernels of a step overlap: each lets the next one start at once, and before it touches what an earlier one wrote it waits
 * for the previous one to be complete. Every kernel waits, so completion is in order.
 */
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

inline bool kernels_may_overlap() { /* from compute capability 9.0 on */
    static int major = 0;
    if (major == 0)
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    return major >= 9;
}

template <typename... P, typename... A>
inline cudaError_t launch_with(unsigned n_attributes, void (*kernel)(P...), dim3 grid, unsigned n_threads, size_t shared,
                               cudaStream_t stream, A... args) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(n_threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = n_attributes;
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

/* A launch that may start before the previous kernel of the stream is complete; see above. */
template <typename... P, typename... A>
inline cudaError_t launch(void (*kernel)(P...), dim3 grid, unsigned n_threads, size_t shared, cudaStream_t stream,
                          A... args) {
    return launch_with(kernels_may_overlap() ? 1 : 0, kernel, grid, n_threads, shared, stream, args...);
}

/* One that starts when the previous kernel is complete: for kernels that do not wait themselves. */
template <typename... P, typename... A>
inline cudaError_t launch_after(void (*kernel)(P...), dim3 grid, unsigned n_threads, size_t shared, cudaStream_t stream,
                                A... args) {
    return launch_with(0, kernel, grid, n_threads, shared, stream, args...);
}

#endif
