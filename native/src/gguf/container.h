/* Inside gguf/ only: a file of the set, and the index of names. */
#ifndef KVQ_GGUF_CONTAINER_H
#define KVQ_GGUF_CONTAINER_H

#include "gguf/gguf.h"

/* ---- index.c: from names to entries. An entry starts with the name: const char *, then uint64_t length. ---- */

typedef struct kvq_index {
    const void *entries; /* pykvq_gguf_value or pykvq_gguf_tensor */
    size_t stride;       /* bytes of one entry */
    uint32_t *slots;     /* (n_slots) entry number + 1; 0: empty */
    uint64_t n_slots;    /* a power of two, over twice the entries */
} kvq_index;

pykvq_status kvq_index_create(kvq_index *index, const void *entries, size_t stride, uint64_t n_entries);
void kvq_index_destroy(kvq_index *index);
/* Adds entry i; fails if another one has its name. */
pykvq_status kvq_index_add(kvq_index *index, uint64_t i);
const void *kvq_index_find(const kvq_index *index, const char *name, uint64_t n_name); /* the entry, or NULL */

/* ---- file.c: the bytes of a file ---- */

typedef struct kvq_gguf_file {
    struct kvq_gguf_file *next; /* the next shard */
    char *path;
    size_t n_path_bytes; /* allocated */
    const uint8_t *bytes;
    uint64_t n_bytes;
    bool is_mapped;

    uint32_t version;
    pykvq_gguf_value *values; /* (n_values) */
    uint64_t n_values, n_tensors;
    kvq_index values_by_key;
    uint64_t tensors_at; /* where the tensor table starts */
    uint64_t alignment;  /* of tensor data */
} kvq_gguf_file;

struct pykvq_gguf {
    kvq_gguf_file *files;       /* the first, whose metadata counts; the others follow */
    pykvq_gguf_tensor *tensors; /* (n_tensors) of all files */
    uint64_t n_tensors;
    kvq_index tensors_by_name;
};

pykvq_status kvq_gguf_file_map(kvq_gguf_file *file, const char *path);
/* PYKVQ_OK if it starts as a GGUF file does; if not, a guess at what it is. */
pykvq_status kvq_gguf_file_check_magic(const kvq_gguf_file *file);

/* ---- parse.c: untrusted bytes to checked entries ---- */

/* Most metadata values, and most tensors, of a set: far above any model, so that an index fits 32 bits. */
enum { KVQ_GGUF_MAX_ENTRIES = 1 << 20 };

/* Header and metadata: fills everything from `version` on. */
pykvq_status kvq_gguf_parse_values(kvq_gguf_file *file);
/* The tensor table; tensors: (file->n_tensors) */
pykvq_status kvq_gguf_parse_tensors(const kvq_gguf_file *file, pykvq_gguf_tensor *tensors);

/* ---- get.c: typed reads, see gguf.h ---- */

extern const uint8_t kvq_gguf_type_bytes[13]; /* of one value; 0: strings and arrays */
pykvq_status kvq_gguf_file_u32(const kvq_gguf_file *file, const char *key, bool required, uint32_t *out);

/* A name from the file for a sentence: printable ASCII, cut to fit. */
typedef struct kvq_printable {
    char text[72];
} kvq_printable;
kvq_printable kvq_gguf_printable(const char *name, uint64_t n_name);

#endif
