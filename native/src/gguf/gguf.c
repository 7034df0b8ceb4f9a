/* Opening and closing, sharded sets, and the public accessors. */
#include "gguf/container.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/memory.h"

static void close_file(kvq_gguf_file *file) {
    kvq_index_destroy(&file->values_by_key);
    kvq_free(file->values, file->n_values * sizeof *file->values);
    if (file->is_mapped)
        munmap((void *)file->bytes, file->n_bytes);
    kvq_free(file->path, file->n_path_bytes);
    kvq_free(file, sizeof *file);
}

/* A file without anything in it yet, for the sentences to come. */
static pykvq_status create_file(const char *path, kvq_gguf_file **out) {
    void *memory;
    KVQ_TRY(kvq_alloc_array(&memory, 1, sizeof(kvq_gguf_file), "gguf file"));
    *out = memory;
    (*out)->n_path_bytes = strlen(path) + 1;
    KVQ_TRY(kvq_alloc_array(&memory, (*out)->n_path_bytes, 1, "gguf path"));
    (*out)->path = strcpy(memory, path);
    return PYKVQ_OK;
}

static pykvq_status fail_in_file(pykvq_status status, const kvq_gguf_file *file) {
    return status == PYKVQ_OK ? status : kvq_fail_in(status, "%s", file->path);
}

/* Appends the file to the set, up to its metadata. */
static pykvq_status add_file(kvq_gguf_file **tail, const char *path) {
    KVQ_TRY(create_file(path, tail));
    pykvq_status status = kvq_gguf_file_map(*tail, path);
    if (status == PYKVQ_OK)
        status = kvq_gguf_parse_values(*tail);
    return fail_in_file(status, *tail);
}

typedef struct split {
    uint32_t no, count, n_tensors; /* this file, from 0; files; tensors of all */
} split;

/* A file that is not part of a set is number 0 of 1. */
static pykvq_status read_split(const kvq_gguf_file *file, split *s) {
    *s = (split){.count = 1};
    KVQ_TRY(kvq_gguf_file_u32(file, "split.count", false, &s->count));
    if (s->count <= 1) {
        s->count = 1;
        return PYKVQ_OK;
    }
    KVQ_TRY(kvq_gguf_file_u32(file, "split.no", true, &s->no));
    KVQ_TRY(kvq_gguf_file_u32(file, "split.tensors.count", true, &s->n_tensors));
    if (s->no >= s->count)
        return kvq_fail(PYKVQ_E_FORMAT, "split.no: expected less than split.count %" PRIu32 ", got %" PRIu32, s->count,
                        s->no);
    return PYKVQ_OK;
}

/* Writes the name of file `no` of the set that `path` is file s->no of; false if `path` does not end as it should. */
static bool name_sibling(const char *path, const split *s, uint32_t no, char *out, size_t n_out) {
    char end[48];
    size_t n_end = (size_t)snprintf(end, sizeof end, "-%05" PRIu32 "-of-%05" PRIu32 ".gguf", s->no + 1, s->count);
    size_t n_path = strlen(path);
    if (n_path < n_end || strcmp(path + n_path - n_end, end) != 0)
        return false;
    snprintf(out, n_out, "%.*s-%05" PRIu32 "-of-%05" PRIu32 ".gguf", (int)(n_path - n_end), path, no + 1, s->count);
    return true;
}

/* Fails unless the file is the first of its set, under the name that its siblings follow from. name: (n_name) scratch */
static pykvq_status check_first(const kvq_gguf_file *file, const split *s, char *name, size_t n_name) {
    uint32_t no = s->no + 1, count = s->count;
    if (!name_sibling(file->path, s, 0, name, n_name))
        return kvq_fail(PYKVQ_E_ARGUMENT,
                        "shard %" PRIu32 " of %" PRIu32 ": expected a name that ends in -%05" PRIu32 "-of-%05" PRIu32
                        ".gguf",
                        no, count, no, count);
    if (s->no != 0)
        return kvq_fail(PYKVQ_E_ARGUMENT, "shard %" PRIu32 " of %" PRIu32 ": expected the first one: open %s", no, count,
                        name);
    return PYKVQ_OK;
}

static pykvq_status add_sibling(kvq_gguf_file **tail, const char *path, const split *first, uint32_t no) {
    KVQ_TRY(add_file(tail, path));
    split s;
    pykvq_status status = read_split(*tail, &s);
    if (status == PYKVQ_OK && (s.no != no || s.count != first->count || s.n_tensors != first->n_tensors))
        status = kvq_fail(PYKVQ_E_FORMAT,
                          "expected shard %" PRIu32 " of %" PRIu32 " with %" PRIu32 " tensors in all, got %" PRIu32
                          " of %" PRIu32 " with %" PRIu32,
                          no + 1, first->count, first->n_tensors, s.no + 1, s.count, s.n_tensors);
    return fail_in_file(status, *tail);
}

static pykvq_status add_siblings(kvq_gguf_file *first, const split *s) {
    size_t n_name = first->n_path_bytes + 16; /* numbers of more than five digits */
    void *name;
    KVQ_TRY(kvq_alloc_array(&name, n_name, 1, "name of a shard"));
    pykvq_status status = check_first(first, s, name, n_name);
    kvq_gguf_file **tail = &first->next;
    for (uint32_t no = 1; no < s->count && status == PYKVQ_OK; no++) {
        name_sibling(first->path, s, no, name, n_name);
        status = add_sibling(tail, name, s, no);
        if (status == PYKVQ_OK)
            tail = &(*tail)->next;
        else
            kvq_fail_in(status, "shard %" PRIu32 " of %" PRIu32, no + 1, s->count);
    }
    kvq_free(name, n_name);
    return fail_in_file(status, first);
}

/* The tensors of all files. */
static pykvq_status add_tensors(pykvq_gguf *gguf) {
    uint64_t n = 0;
    for (const kvq_gguf_file *file = gguf->files; file != NULL; file = file->next) {
        n += file->n_tensors;
        if (n > KVQ_GGUF_MAX_ENTRIES)
            return fail_in_file(
                kvq_fail(PYKVQ_E_FORMAT, "expected at most %d tensors in all, got %" PRIu64, KVQ_GGUF_MAX_ENTRIES, n),
                file);
    }
    void *tensors;
    KVQ_TRY(kvq_alloc_array(&tensors, n, sizeof *gguf->tensors, "tensor table"));
    gguf->tensors = tensors;
    gguf->n_tensors = n;
    KVQ_TRY(kvq_index_create(&gguf->tensors_by_name, tensors, sizeof *gguf->tensors, n));
    uint64_t first = 0;
    for (const kvq_gguf_file *file = gguf->files; file != NULL; first += file->n_tensors, file = file->next) {
        KVQ_TRY(fail_in_file(kvq_gguf_parse_tensors(file, gguf->tensors + first), file));
        for (uint64_t i = first; i < first + file->n_tensors; i++) {
            pykvq_status status = kvq_index_add(&gguf->tensors_by_name, i);
            if (status != PYKVQ_OK)
                return fail_in_file(kvq_fail_in(status, "tensor %" PRIu64, i), file);
        }
    }
    return PYKVQ_OK;
}

static pykvq_status open_set(pykvq_gguf *gguf, const char *path) {
    split s;
    KVQ_TRY(add_file(&gguf->files, path));
    KVQ_TRY(fail_in_file(read_split(gguf->files, &s), gguf->files));
    if (s.count > 1)
        KVQ_TRY(add_siblings(gguf->files, &s));
    KVQ_TRY(add_tensors(gguf));
    if (s.count > 1 && gguf->n_tensors != s.n_tensors)
        return fail_in_file(kvq_fail(PYKVQ_E_FORMAT,
                                     "split.tensors.count: expected %" PRIu64 ", the tensors of all shards, got %" PRIu32,
                                     gguf->n_tensors, s.n_tensors),
                            gguf->files);
    return PYKVQ_OK;
}

static pykvq_status open_bytes(pykvq_gguf *gguf, const uint8_t *bytes, uint64_t n_bytes) {
    split s;
    KVQ_TRY(create_file("memory", &gguf->files));
    gguf->files->bytes = bytes;
    gguf->files->n_bytes = n_bytes;
    KVQ_TRY(fail_in_file(kvq_gguf_parse_values(gguf->files), gguf->files));
    KVQ_TRY(fail_in_file(read_split(gguf->files, &s), gguf->files));
    if (s.count > 1)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "memory: expected a whole model, got shard %" PRIu32 " of %" PRIu32, s.no + 1,
                        s.count);
    return add_tensors(gguf);
}

static pykvq_status finish_open(pykvq_gguf *gguf, pykvq_status status, pykvq_gguf **out) {
    if (status != PYKVQ_OK)
        pykvq_gguf_close(gguf);
    else
        *out = gguf;
    return status;
}

pykvq_status pykvq_gguf_open(const char *path, pykvq_gguf **out) {
    if (path == NULL || out == NULL)
        return kvq_fail(PYKVQ_E_ARGUMENT, "pykvq_gguf_open: expected a path and a place for the result, got NULL");
    void *gguf;
    KVQ_TRY(kvq_alloc_array(&gguf, 1, sizeof(pykvq_gguf), "gguf"));
    return finish_open(gguf, open_set(gguf, path), out);
}

pykvq_status kvq_gguf_open_memory(const uint8_t *bytes, uint64_t n_bytes, pykvq_gguf **out) {
    void *gguf;
    KVQ_TRY(kvq_alloc_array(&gguf, 1, sizeof(pykvq_gguf), "gguf"));
    return finish_open(gguf, open_bytes(gguf, bytes, n_bytes), out);
}

void pykvq_gguf_close(pykvq_gguf *gguf) {
    if (gguf == NULL)
        return;
    for (kvq_gguf_file *file = gguf->files, *next; file != NULL; file = next) {
        next = file->next;
        close_file(file);
    }
    kvq_index_destroy(&gguf->tensors_by_name);
    kvq_free(gguf->tensors, gguf->n_tensors * sizeof *gguf->tensors);
    kvq_free(gguf, sizeof *gguf);
}

uint64_t pykvq_gguf_n_values(const pykvq_gguf *gguf) {
    return gguf->files->n_values;
}

uint64_t pykvq_gguf_n_tensors(const pykvq_gguf *gguf) {
    return gguf->n_tensors;
}

uint64_t pykvq_gguf_n_bytes(const pykvq_gguf *gguf) {
    uint64_t n_bytes = 0;
    for (const kvq_gguf_file *file = gguf->files; file != NULL; file = file->next)
        n_bytes += file->n_bytes;
    return n_bytes;
}

uint32_t pykvq_gguf_version(const pykvq_gguf *gguf) {
    return gguf->files->version;
}

pykvq_status pykvq_gguf_value_at(const pykvq_gguf *gguf, uint64_t i, pykvq_gguf_value *out) {
    if (i >= gguf->files->n_values)
        return kvq_fail(PYKVQ_E_ARGUMENT, "metadata %" PRIu64 ": expected less than %" PRIu64, i, gguf->files->n_values);
    *out = gguf->files->values[i];
    return PYKVQ_OK;
}

pykvq_status pykvq_gguf_tensor_at(const pykvq_gguf *gguf, uint64_t i, pykvq_gguf_tensor *out) {
    if (i >= gguf->n_tensors)
        return kvq_fail(PYKVQ_E_ARGUMENT, "tensor %" PRIu64 ": expected less than %" PRIu64, i, gguf->n_tensors);
    *out = gguf->tensors[i];
    return PYKVQ_OK;
}

pykvq_status pykvq_gguf_strings(const pykvq_gguf_value *value, uint64_t *offsets, uint64_t *lengths) {
    if (value->type != PYKVQ_GGUF_STRING)
        return kvq_fail(PYKVQ_E_ARGUMENT, "%s: expected a value of strings, got type %" PRIu32,
                        kvq_gguf_printable(value->key, value->n_key).text, value->type);
    uint64_t at = 0;
    for (uint64_t i = 0; i < value->n; i++) { /* opening checked that all of this fits */
        memcpy(&lengths[i], value->data + at, sizeof lengths[i]);
        offsets[i] = at + sizeof lengths[i];
        at = offsets[i] + lengths[i];
    }
    return PYKVQ_OK;
}

bool kvq_gguf_find(const pykvq_gguf *gguf, const char *key, pykvq_gguf_value *out) {
    const pykvq_gguf_value *value = kvq_index_find(&gguf->files->values_by_key, key, strlen(key));
    if (value != NULL)
        *out = *value;
    return value != NULL;
}

bool kvq_gguf_find_tensor(const pykvq_gguf *gguf, const char *name, pykvq_gguf_tensor *out) {
    const pykvq_gguf_tensor *tensor = kvq_index_find(&gguf->tensors_by_name, name, strlen(name));
    if (tensor != NULL)
        *out = *tensor;
    return tensor != NULL;
}
