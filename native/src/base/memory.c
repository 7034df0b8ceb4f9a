#define _GNU_SOURCE
#include "base/memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64, HUGE_PAGE = 2 << 20 };

static atomic_size_t n_living;
static atomic_size_t n_until_failure = SIZE_MAX;

static bool must_fail(void) {
    size_t left = atomic_load(&n_until_failure);
    while (left != SIZE_MAX) {
        size_t next = left == 0 ? SIZE_MAX : left - 1;
        if (atomic_compare_exchange_weak(&n_until_failure, &left, next))
            return left == 0;
    }
    return false;
}

void *kvq_alloc(size_t n_bytes) {
    if (must_fail() || n_bytes > SIZE_MAX - HUGE_PAGE)
        return NULL;
    size_t rounded = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    void *memory;
    if (n_bytes >= HUGE_PAGE) { /* fresh from the kernel: already zero, taken page by page as it is touched */
        memory = mmap(NULL, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return NULL;
        madvise(memory, rounded, MADV_HUGEPAGE);
    } else {
        if (posix_memalign(&memory, ALIGNMENT, rounded ? rounded : ALIGNMENT) != 0)
            return NULL;
        memset(memory, 0, rounded);
    }
    atomic_fetch_add(&n_living, n_bytes);
    return memory;
}

void kvq_free(void *memory, size_t n_bytes) {
    if (memory == NULL)
        return;
    atomic_fetch_sub(&n_living, n_bytes);
    if (n_bytes >= HUGE_PAGE)
        munmap(memory, (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    else
        free(memory);
}

pykvq_status kvq_alloc_array(void **out, size_t n, size_t size, const char *what) {
    *out = NULL;
    size_t n_bytes;
    if (__builtin_mul_overflow(n, size, &n_bytes) || (*out = kvq_alloc(n_bytes)) == NULL)
        return kvq_fail(PYKVQ_E_MEMORY, "%s: no memory for %zu x %zu bytes", what, n, size);
    return PYKVQ_OK;
}

size_t kvq_allocated_bytes(void) {
    return atomic_load(&n_living);
}

void kvq_fail_allocation(size_t n) {
    atomic_store(&n_until_failure, n);
}
