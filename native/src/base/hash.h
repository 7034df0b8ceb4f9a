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

/* A checksum of bulk data, 64 bits at a time, however it is cut into pieces. Any flipped bit changes it. */
typedef struct kvq_checksum {
    uint64_t hash, word;
    uint32_t n; /* bytes in word */
} kvq_checksum;

static inline void kvq_checksum_word(kvq_checksum *c, uint64_t word) {
    c->hash = (c->hash ^ word) * 0x100000001b3u;
    c->hash ^= c->hash >> 32;
}

static inline void kvq_checksum_add(kvq_checksum *c, const void *data, size_t n_bytes) {
    const uint8_t *bytes = data, *end = bytes + n_bytes;
    while (bytes < end) {
        if (c->n == 0 && end - bytes >= 8) {
            uint64_t word;
            memcpy(&word, bytes, 8);
            kvq_checksum_word(c, word);
            bytes += 8;
            continue;
        }
        c->word |= (uint64_t)*bytes++ << 8 * c->n++;
        if (c->n == 8) {
            kvq_checksum_word(c, c->word);
            c->word = c->n = 0;
        }
    }
}

static inline uint64_t kvq_checksum_end(const kvq_checksum *c) {
    kvq_checksum last = *c;
    kvq_checksum_word(&last, c->word);
    return last.hash;
}

#endif
