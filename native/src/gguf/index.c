/* Open addressing with linear probing. */
#include "gguf/container.h"

#include <string.h>

#include "base/memory.h"

static kvq_str name_of(const kvq_index *index, uint64_t i) {
    const char *entry = (const char *)index->entries + i * index->stride;
    kvq_str name;
    memcpy(&name.data, entry, sizeof name.data);
    memcpy(&name.n, entry + sizeof name.data, sizeof name.n);
    return name;
}

/* FNV-1a, started from an address: a file cannot be made whose names all collide. */
static uint64_t hash(const kvq_index *index, const char *name, uint64_t n) {
    uint64_t h = (uint64_t)(uintptr_t)index->slots * 0x9e3779b97f4a7c15;
    for (uint64_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)name[i]) * 0x100000001b3;
    return h ^ h >> 32;
}

/* The slot that holds the name, or the empty one where it belongs. */
static uint32_t *slot_of(const kvq_index *index, const char *name, uint64_t n) {
    for (uint64_t i = hash(index, name, n);; i++) {
        uint32_t *slot = &index->slots[i & (index->n_slots - 1)];
        if (*slot == 0)
            return slot;
        kvq_str other = name_of(index, *slot - 1);
        if (other.n == n && memcmp(other.data, name, n) == 0)
            return slot;
    }
}

pykvq_status kvq_index_create(kvq_index *index, const void *entries, size_t stride, uint64_t n_entries) {
    uint64_t n_slots = 4;
    while (n_slots < 2 * n_entries)
        n_slots *= 2;
    void *slots;
    KVQ_TRY(kvq_alloc_array(&slots, n_slots, sizeof *index->slots, "index of names"));
    *index = (kvq_index){.entries = entries, .stride = stride, .slots = slots, .n_slots = n_slots};
    return PYKVQ_OK;
}

void kvq_index_destroy(kvq_index *index) {
    kvq_free(index->slots, index->n_slots * sizeof *index->slots);
}

pykvq_status kvq_index_add(kvq_index *index, uint64_t i) {
    kvq_str name = name_of(index, i);
    uint32_t *slot = slot_of(index, name.data, name.n);
    if (*slot != 0)
        return kvq_fail(PYKVQ_E_FORMAT, "%s: expected a name of its own, got that of number %u again",
                        kvq_gguf_printable(name.data, name.n).text, *slot - 1);
    *slot = (uint32_t)i + 1;
    return PYKVQ_OK;
}

const void *kvq_index_find(const kvq_index *index, const char *name, uint64_t n_name) {
    uint32_t slot = *slot_of(index, name, n_name);
    return slot == 0 ? NULL : (const char *)index->entries + (slot - 1) * index->stride;
}
