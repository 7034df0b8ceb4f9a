/* FNV-1a, 64 bit: fingerprints and name tables; not for security. */
#ifndef KVQ_BASE_HASH_H
#define KVQ_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define KVQ_HASH_START 0xcbf29ce484222325u

static inline uint64_t kvq_hash(uint64_t hash, const void *data, size_t n_bytes) {
    const uint8_t *bytes = data;
    for (size_t i = 0; i < n_bytes; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

#endif
