/* Host memory: zeroed, 64-byte aligned, counted, and able to fail on demand so that tests can walk every failure path. */
#ifndef KVQ_BASE_MEMORY_H
#define KVQ_BASE_MEMORY_H

#include "base/status.h"

/* n_bytes zeroed bytes, 64-byte aligned; NULL if there are none. Large blocks are backed by huge pages where possible. */
void *kvq_alloc(size_t n_bytes);
void kvq_free(void *memory, size_t n_bytes); /* n_bytes as asked for; NULL is fine */
/* n x size into *out, with overflow check and a sentence that names `what`. */
pykvq_status kvq_alloc_array(void **out, size_t n, size_t size, const char *what);
size_t kvq_allocated_bytes(void); /* living bytes of kvq_alloc */
/* Tests: the n-th allocation from now (0: the next) fails, once. SIZE_MAX: never. */
void kvq_fail_allocation(size_t n);

#endif
