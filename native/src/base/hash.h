/* FNV-1a, 64 bit: fingerprints and name tables; not for security. */
#ifndef KVQ_BASE_HASH_H
#define KVQ_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define KVQ_HASH_START 0xcbf29ce484222325u

static inline uint64_t kvq_hash(uint64_t hash, const void *data, size_t n_bytes) {
    const uint8_t *bytes = data;
    for (size_t i = 0; i < n_bytes; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

/* The same over whole 64-bit words, then the rest byte by byte: a checksum of bulk data. Any flipped bit changes it. */
static inline uint64_t kvq_checksum(uint64_t hash, const void *data, size_t n_bytes) {
    const uint8_t *bytes = data;
    for (; n_bytes >= 8; bytes += 8, n_bytes -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * 0x100000001b3u;
        hash ^= hash >> 32;
    }
    return kvq_hash(hash, bytes, n_bytes);
}

#endif
