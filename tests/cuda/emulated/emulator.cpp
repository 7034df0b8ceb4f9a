/*
 * Fibers for the threads of a block, guarded memory, and graphs as lists of launches. The environment says what the GPU is
 * like and what happens to it:
 *
 *   EMULATED_FREE        bytes of memory (default 8 GiB)
 *   EMULATED_DRIVER      the driver's version, e.g. 12040 (default 13000); 0: none
 *   EMULATED_CAPABILITY  compute capability, e.g. 75 (default 90)
 *   EMULATED_BUSY        set: another process has it for itself
 *   EMULATED_LOST_AT     the graph launch, from 1, in which the GPU is lost; every later call fails too
 *   EMULATED_FULL        set: other processes hold all memory, not even a context fits
 *   EMULATED_TAKEN_AT    the allocation, from 1, before which another process takes what is free
 *   EMULATED_NO_ROOM_AT  the graph launch, from 1, that finds no memory
 */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <vector>

#include "cuda_fp16.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

size_t setting(const char *name, size_t otherwise) {
    const char *value = getenv(name);
    return value != NULL ? strtoull(value, NULL, 10) : otherwise;
}

enum { MAX_THREADS = 1024, STACK_BYTES = 256 << 10, SHARED_BYTES = 227 << 10, PAGE = 4096 };

enum wait { READY, AT_WARP, AT_BLOCK, AT_COPY, DONE };

struct copy {
    void *to;
    const void *from;
};

/* One that a barrier in shared memory counts. */
struct counted_copy {
    uint64_t *full;
    uint8_t *to;
    const uint8_t *from;
    uint32_t n;
};

struct fiber {
    jmp_buf at;
    wait state;
    bool started;
    std::vector<std::vector<copy>> groups; /* committed, oldest first; the last one is still open */
};

struct warp {
    uint32_t words[2][32][8]; /* of the exchange under way, and of the one before, which some lanes may still read */
    int turn, n_there;
};

fiber fibers[MAX_THREADS];
warp warps[MAX_THREADS / 32];
uint8_t *stacks, *shared;
jmp_buf scheduler;
int current, n_at_block, n_done;
std::vector<counted_copy> counted; /* not waited for yet */
std::function<void()> body;

[[noreturn]] void die(const char *what) {
    fprintf(stderr, "emulated GPU: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
            threadIdx.x);
    abort();
}

void wait_as(wait state) {
    fibers[current].state = state;
    if (_setjmp(fibers[current].at) == 0)
        _longjmp(scheduler, 1);
}

void run_body() {
    body();
    fiber *f = &fibers[current];
    for (const std::vector<copy> &group : f->groups)
        if (!group.empty())
            die("a thread ends with copies that it did not wait for");
    f->state = DONE;
    n_done++;
    _longjmp(scheduler, 1);
}

void resume(int i) {
    current = i;
    threadIdx = dim3((unsigned)i);
    if (_setjmp(scheduler) != 0)
        return;
    if (fibers[i].started)
        _longjmp(fibers[i].at, 1);
    fibers[i].started = true;
    static ucontext_t start, unused;
    getcontext(&start);
    start.uc_stack.ss_sp = stacks + (size_t)i * STACK_BYTES;
    start.uc_stack.ss_size = STACK_BYTES;
    makecontext(&start, run_body, 0);
    swapcontext(&unused, &start);
}

void run_block(int n_threads) {
    n_at_block = n_done = 0;
    for (int i = 0; i < n_threads; i++) {
        fibers[i].state = READY;
        fibers[i].started = false;
        fibers[i].groups.assign(1, {});
        warps[i / 32].n_there = 0;
    }
    counted.clear();
    memset(shared, 0xff, SHARED_BYTES); /* not-a-numbers: what is read must have been written */
    while (n_done < n_threads) {
        bool any = false;
        for (int i = 0; i < n_threads; i++) {
            if (fibers[i].state == AT_COPY) {
                resume(i); /* looks again */
                any |= fibers[i].state != AT_COPY;
            }
            while (fibers[i].state == READY) {
                any = true;
                resume(i);
            }
        }
        if (any)
            continue;
        die("threads wait for others that never come");
    }
    if (!counted.empty())
        die("a block ends with copies that it did not wait for");
}

void run_kernel(dim3 grid, unsigned n_threads) {
    gridDim = grid;
    blockDim = dim3(n_threads);
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
                run_block((int)n_threads);
}

bool prepare() {
    stacks = (uint8_t *)mmap(NULL, (size_t)MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    cudaMallocHost(&shared, SHARED_BYTES);
    return true;
}

const float *all_halfs() {
    static float values[65536];
    for (uint32_t i = 0; i < 65536; i++)
        values[i] = kvq_f16_to_f32((uint16_t)i);
    return values;
}

} // namespace

const float *emulated_halfs = all_halfs();

uint8_t *emulated_shared() {
    return shared;
}

void emulated_exchange(const uint32_t *mine, int n, const uint32_t (*&all)[8]) {
    warp *w = &warps[current / 32];
    int turn = w->turn;
    if (n > 0)
        memcpy(w->words[turn][current % 32], mine, (size_t)n * 4);
    all = w->words[turn];
    if (++w->n_there < 32) {
        wait_as(AT_WARP);
        return;
    }
    w->n_there = 0;
    w->turn = 1 - turn;
    for (int i = current / 32 * 32; i < current / 32 * 32 + 32; i++)
        if (fibers[i].state == AT_WARP)
            fibers[i].state = READY;
}

void __syncthreads() {
    if (++n_at_block < (int)blockDim.x - n_done) {
        wait_as(AT_BLOCK);
        return;
    }
    n_at_block = 0;
    for (unsigned i = 0; i < blockDim.x; i++)
        if (fibers[i].state == AT_BLOCK)
            fibers[i].state = READY;
}

void copy16_async(void *to, const void *from) {
    if ((uintptr_t)to % 16 != 0 || (uintptr_t)from % 16 != 0)
        die("a copy of 16 bytes that are not aligned");
    if ((uint8_t *)to < shared || (uint8_t *)to + 16 > shared + SHARED_BYTES)
        die("a copy beyond shared memory");
    memset(to, 0xff, 16);
    fibers[current].groups.back().push_back({to, from});
}

void commit_async() {
    fibers[current].groups.push_back({});
}

void emulated_wait(int n_open) {
    std::vector<std::vector<copy>> &groups = fibers[current].groups;
    while ((int)groups.size() - 1 > n_open) {
        for (const copy &c : groups.front())
            memcpy(c.to, c.from, 16);
        groups.erase(groups.begin());
    }
}

/* The barrier is the number of phases that completed. */
void init_copies(uint64_t *full) {
    *full = 0;
}

void start_copies(uint64_t *full, int lane, uint8_t *to, const uint8_t *a, uint32_t n_a, const uint8_t *b, uint32_t n_b) {
    if (lane != 0)
        return;
    if (((uintptr_t)to | (uintptr_t)a | (uintptr_t)b | n_a | n_b) % 16 != 0)
        die("a copy that is not aligned to 16 bytes");
    if (to < shared || to + n_a + n_b > shared + SHARED_BYTES)
        die("a copy beyond shared memory");
    for (const counted_copy &c : counted)
        if (c.full == full)
            die("copies are started before the last ones of their barrier were waited for");
    memset(to, 0xff, n_a + n_b);
    counted.push_back({full, to, a, n_a});
    counted.push_back({full, to + n_a, b, n_b});
}

void wait_copies(uint64_t *full, uint32_t parity) {
    auto is_started = [&] {
        for (const counted_copy &c : counted)
            if (c.full == full)
                return true;
        return false;
    };
    while (*full % 2 == parity && !is_started())
        wait_as(AT_COPY);
    if (*full % 2 != parity)
        return;
    for (size_t i = 0; i < counted.size();)
        if (counted[i].full == full) {
            memcpy(counted[i].to, counted[i].from, counted[i].n);
            counted.erase(counted.begin() + (ptrdiff_t)i);
        } else {
            i++;
        }
    ++*full;
}

/* ---- memory ---- */

static size_t n_allocated, n_taken; /* by this process, by another */
static bool is_lost;

/* What every call may give. */
static cudaError_t state() {
    return is_lost ? cudaErrorLaunchFailure : setting("EMULATED_BUSY", 0) ? cudaErrorDevicesUnavailable : cudaSuccess;
}

static size_t n_bytes_free() {
    size_t n_total = setting("EMULATED_FREE", (size_t)8 << 30);
    return n_allocated + n_taken < n_total ? n_total - n_allocated - n_taken : 0;
}

static size_t *size_of(void *memory) { /* pages, bytes */
    return (size_t *)((uintptr_t)memory / PAGE * PAGE - PAGE);
}

/* The bytes end at a page that cannot be touched, but for rounding up to 64. The page in front holds the size. */
static cudaError_t allocate(void **out, size_t n_bytes) {
    size_t rounded = (n_bytes + 63) / 64 * 64, n_pages = (rounded + PAGE - 1) / PAGE + 2;
    if (state() != cudaSuccess)
        return state();
    uint8_t *memory = (uint8_t *)mmap(NULL, n_pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + (n_pages - 1) * PAGE, PAGE, PROT_NONE) != 0)
        return cudaErrorMemoryAllocation;
    ((size_t *)memory)[0] = n_pages;
    ((size_t *)memory)[1] = n_bytes;
    *out = memory + (n_pages - 1) * PAGE - rounded;
    memset(*out, 0xff, n_bytes);
    return cudaSuccess;
}

static cudaError_t release(void *memory) {
    if (memory == NULL)
        return cudaSuccess;
    size_t *size = size_of(memory);
    munmap(size, size[0] * PAGE);
    return state();
}

/* What an allocation takes of the memory, as on an H200. */
static size_t taken(size_t n_bytes) {
    const size_t block = 2 << 20;
    return n_bytes > block / 2 ? (n_bytes + block - 1) / block * block : n_bytes;
}

cudaError_t cudaMalloc(void **out, size_t n_bytes) {
    static size_t n_calls;
    if (++n_calls == setting("EMULATED_TAKEN_AT", 0))
        n_taken = n_bytes_free();
    if (taken(n_bytes) > n_bytes_free())
        return cudaErrorMemoryAllocation;
    cudaError_t error = allocate(out, n_bytes);
    n_allocated += error == cudaSuccess ? taken(n_bytes) : 0;
    return error;
}

cudaError_t cudaFree(void *memory) {
    n_allocated -= memory != NULL ? taken(size_of(memory)[1]) : 0;
    return release(memory);
}

cudaError_t cudaMallocHost(void **out, size_t n_bytes) {
    return allocate(out, n_bytes);
}

cudaError_t cudaFreeHost(void *memory) {
    return release(memory);
}

cudaError_t cudaMemset(void *memory, int value, size_t n_bytes) {
    memset(memory, value, n_bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n_bytes, cudaMemcpyKind) {
    if (state() == cudaSuccess)
        memmove(to, from, n_bytes);
    return state();
}

cudaError_t cudaMemGetInfo(size_t *n_free, size_t *n_total) {
    *n_free = n_bytes_free();
    *n_total = setting("EMULATED_FREE", (size_t)8 << 30);
    return state();
}

/* ---- streams and graphs ---- */

struct emulated_graph {
    std::vector<std::function<void()>> launches;
};

static emulated_graph *capturing;

cudaError_t emulated_do(std::function<void()> work) {
    if (capturing != NULL)
        capturing->launches.push_back(std::move(work));
    else
        work();
    return cudaSuccess;
}

void emulated_launch(std::function<void()> kernel, dim3 grid, unsigned n_threads, size_t n_shared) {
    static bool ready = prepare();
    (void)ready;
    if (n_shared > SHARED_BYTES || n_threads > MAX_THREADS || n_threads % 32 != 0)
        die("a launch that no GPU would take");
    emulated_do([=] {
        body = kernel;
        run_kernel(grid, n_threads);
    });
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_bytes, cudaMemcpyKind, cudaStream_t) {
    return emulated_do([=] { memmove(to, from, n_bytes); });
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t n_bytes, cudaStream_t) {
    return emulated_do([=] { memset(memory, value, n_bytes); });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, int) {
    capturing = new emulated_graph;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *out) {
    *out = capturing;
    capturing = NULL;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
    *out = new emulated_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
    static size_t n_launches;
    is_lost |= ++n_launches == setting("EMULATED_LOST_AT", 0);
    if (is_lost)
        return state();
    if (n_launches == setting("EMULATED_NO_ROOM_AT", 0))
        return cudaErrorMemoryAllocation;
    for (const std::function<void()> &work : graph->launches)
        work();
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) {
    *out = (cudaStream_t)&capturing;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t) {
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return state();
}

/* ---- the device ---- */

cudaError_t cudaGetLastError() {
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorLaunchFailure        ? "unspecified launch failure"
           : error == cudaErrorDevicesUnavailable ? "CUDA-capable device(s) is/are busy or unavailable"
                                                  : "emulated";
}

cudaError_t emulated_attributes(cudaFuncAttributes *out) {
    *out = {90, 1024};
    return setting("EMULATED_FULL", 0)               ? cudaErrorMemoryAllocation
           : state() != cudaSuccess                  ? state()
           : setting("EMULATED_CAPABILITY", 90) < 80 ? cudaErrorNoKernelImageForDevice
                                                     : cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n) {
    *n = 1;
    return setting("EMULATED_DRIVER", 13000) < 13000 ? cudaErrorInsufficientDriver : cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = (int)setting("EMULATED_DRIVER", 13000);
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrMultiProcessorCount      ? 3
             : attribute == cudaDevAttrComputeCapabilityMajor ? 9
                                                              : SHARED_BYTES;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
    snprintf(properties->name, sizeof properties->name, "emulated GPU");
    properties->major = (int)setting("EMULATED_CAPABILITY", 90) / 10;
    properties->minor = (int)setting("EMULATED_CAPABILITY", 90) % 10;
    return cudaSuccess;
}
