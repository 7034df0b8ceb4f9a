/*
 * The part of CUDA that native/cuda uses, on the CPU, so that its kernels and its backend can be tested without a GPU.
 *
 * A kernel runs block after block; each thread is a fiber that runs until it must wait for its warp or its block. Memory
 * operations are done at once, so races between blocks and missing fences are not found; wrong indices, missing barriers
 * within a block, copies that nobody waited for and reads beyond an allocation (a guard page follows each) are.
 */
#ifndef EMULATED_CUDA_RUNTIME_H
#define EMULATED_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>

#define __host__
#define __device__
#define __global__
#define __constant__    static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n)  __attribute__((aligned(n)))
#define __shared__    static /* blocks run one after the other */
#define __CUDA_ARCH__ 900

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

static inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}
static inline float2 make_float2(float x, float y) {
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
static inline int min(int a, int b) {
    return a < b ? a : b;
}
static inline int max(int a, int b) {
    return a > b ? a : b;
}

/* ---- threads ---- */

extern dim3 threadIdx, blockIdx, blockDim, gridDim; /* of the fiber that runs */

uint8_t *emulated_shared();
void emulated_exchange(const uint32_t *mine, int n, const uint32_t (*&all)[8]); /* n <= 8 words of each lane, to all */
void __syncthreads();
void emulated_launch(std::function<void()> kernel, dim3 grid, unsigned n_threads, size_t shared);

static inline void __syncwarp() {
    const uint32_t (*all)[8];
    emulated_exchange(nullptr, 0, all);
}
template <typename T> static inline T __shfl_sync(unsigned, T x, int lane) {
    static_assert(sizeof(T) == 4, "a word");
    const uint32_t (*all)[8];
    uint32_t word;
    memcpy(&word, &x, 4);
    emulated_exchange(&word, 1, all);
    memcpy(&x, &all[lane & 31][0], 4);
    return x;
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T x, int with) {
    return __shfl_sync(mask, x, (int)((threadIdx.x % 32) ^ (unsigned)with));
}
static inline int __any_sync(unsigned, int x) {
    const uint32_t (*all)[8];
    uint32_t word = x != 0, any = 0;
    emulated_exchange(&word, 1, all);
    for (int lane = 0; lane < 32; lane++)
        any |= all[lane][0];
    return (int)any;
}
static inline void __threadfence() {}

/* ---- arithmetic ---- */

static inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
template <typename T> static inline T __ldg(const T *p) {
    return *p;
}
template <typename T> static inline T __ldcs(const T *p) {
    return *p;
}
template <typename T> static inline T __ldcg(const T *p) {
    return *p;
}
template <typename T> static inline void __stcg(T *p, T x) {
    *p = x;
}
template <typename T, typename U> static inline T atomicAdd(T *p, U x) {
    T old = *p;
    *p = (T)(old + (T)x);
    return old;
}
static inline uint32_t atomicOr(uint32_t *p, uint32_t x) {
    uint32_t old = *p;
    *p = old | x;
    return old;
}
static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fdiv_rn(float a, float b) {
    return a / b;
}
static inline float __fdividef(float a, float b) {
    return a / b;
}
static inline float __fsqrt_rn(float a) {
    return sqrtf(a);
}
#define __expf expf /* glibc has a function of that name */
static inline float rsqrtf(float a) {
    return 1.0f / sqrtf(a);
}
static inline float __uint_as_float(uint32_t x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
static inline uint32_t __float_as_uint(float x) {
    uint32_t y;
    memcpy(&y, &x, 4);
    return y;
}
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
    uint64_t both = (uint64_t)y << 32 | x;
    uint32_t out = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = selector >> 4 * i & 15, byte = (uint32_t)(both >> 8 * (s & 7)) & 0xff;
        out |= (s & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return out;
}

/* ---- the runtime ---- */

enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidValue,
    cudaErrorMemoryAllocation,
    cudaErrorInsufficientDriver = 35,
    cudaErrorDevicesUnavailable = 46,
    cudaErrorNoDevice = 100,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorLaunchFailure = 719,
    cudaErrorUnknown = 999,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDefault };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaStreamNonBlocking, cudaStreamCaptureModeRelaxed };
typedef struct emulated_stream *cudaStream_t;
typedef struct emulated_graph *cudaGraph_t;
typedef struct emulated_graph *cudaGraphExec_t;
struct cudaFuncAttributes {
    int binaryVersion, maxThreadsPerBlock;
};
struct cudaDeviceProp {
    char name[256];
    int major, minor;
};

cudaError_t cudaMalloc(void **out, size_t n_bytes);
template <typename T> cudaError_t cudaMalloc(T **out, size_t n_bytes) {
    return cudaMalloc((void **)out, n_bytes);
}
cudaError_t cudaFree(void *memory);
cudaError_t cudaMallocHost(void **out, size_t n_bytes);
template <typename T> cudaError_t cudaMallocHost(T **out, size_t n_bytes) {
    return cudaMallocHost((void **)out, n_bytes);
}
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaMemset(void *memory, int value, size_t n_bytes);
cudaError_t cudaMemcpy(void *to, const void *from, size_t n_bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *memory, int value, size_t n_bytes, cudaStream_t stream);
cudaError_t cudaMemGetInfo(size_t *n_free, size_t *n_total);
cudaError_t cudaGetLastError();
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
#define cudaStreamLegacy ((cudaStream_t)0)
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);
/* Now, or when the graph that is captured runs; seen by the stand-in for cuBLASLt, which is another library. */
__attribute__((visibility("default"))) cudaError_t emulated_do(std::function<void()> work);
template <typename F> cudaError_t cudaFuncSetAttribute(F, int, int) {
    return cudaSuccess;
}
cudaError_t emulated_attributes(cudaFuncAttributes *out);
template <typename F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, F) {
    return emulated_attributes(out);
}
template <typename F> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *out, F, int, size_t) {
    *out = 2;
    return cudaSuccess;
}

#endif
