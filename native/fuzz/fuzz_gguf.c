/* libFuzzer target: any bytes are a GGUF file. What opens is then read from end to end, as the layers above do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "gguf/gguf.h"
#include "quant/quant.h"

enum { MAX_BLOCK = 256, MAX_EACH = 64 };

static void check(bool holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "does not hold: %s\n", what);
        abort();
    }
}

static volatile uint64_t sum; /* keeps the reads */

static void read_bytes(const void *data, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        sum += ((const uint8_t *)data)[i];
}

static void read_strings(const pykvq_gguf_value *v) {
    uint64_t *offsets = malloc(v->n * sizeof *offsets), *lengths = malloc(v->n * sizeof *lengths);
    check(pykvq_gguf_strings(v, offsets, lengths) == PYKVQ_OK, "strings can be listed");
    uint64_t end = 0;
    for (uint64_t i = 0; i < v->n; i++) {
        check(offsets[i] == end + 8, "strings follow each other");
        end = offsets[i] + lengths[i];
        read_bytes(v->data + offsets[i], lengths[i]);
    }
    check(end == v->n_data_bytes, "strings fill the value");
    free(offsets);
    free(lengths);
}

/* The name as a C string for the find functions; NULL if it holds a NUL. */
static char *c_string(const char *name, uint64_t n) {
    if (memchr(name, 0, n) != NULL)
        return NULL;
    char *s = malloc(n + 1);
    memcpy(s, name, n);
    s[n] = 0;
    return s;
}

static void read_value(const pykvq_gguf *gguf, uint64_t i) {
    pykvq_gguf_value v, found;
    check(pykvq_gguf_value_at(gguf, i, &v) == PYKVQ_OK, "every value can be read");
    read_bytes(v.data, v.n_data_bytes);
    if (v.type == PYKVQ_GGUF_STRING)
        read_strings(&v);
    char *key = c_string(v.key, v.n_key);
    if (key == NULL)
        return;
    check(kvq_gguf_find(gguf, key, &found) && found.key == v.key, "a key finds its value");
    uint32_t each[MAX_EACH];
    kvq_str s;
    float x;
    bool b;
    (void)kvq_gguf_u32(gguf, key, true, each);
    (void)kvq_gguf_u32_each(gguf, key, true, v.n < MAX_EACH ? (uint32_t)v.n : MAX_EACH, each);
    (void)kvq_gguf_f32(gguf, key, true, &x);
    (void)kvq_gguf_bool(gguf, key, true, &b);
    if (kvq_gguf_str(gguf, key, true, &s) == PYKVQ_OK)
        read_bytes(s.data, s.n);
    free(key);
}

static void read_tensor(const pykvq_gguf *gguf, uint64_t i) {
    pykvq_gguf_tensor t, found;
    check(pykvq_gguf_tensor_at(gguf, i, &t) == PYKVQ_OK, "every tensor can be read");
    read_bytes(t.data, t.n_bytes);
    const kvq_wtype *type = kvq_wtype_find(t.type);
    if (type != NULL) {
        float x[MAX_BLOCK];
        check(t.n_bytes >= type->block_bytes && type->block_elements <= MAX_BLOCK, "a tensor has a block");
        type->dequantize(t.data, x, type->block_elements);
        read_bytes(x, sizeof *x * type->block_elements);
    }
    char *name = c_string(t.name, t.n_name);
    if (name == NULL)
        return;
    check(kvq_gguf_find_tensor(gguf, name, &found) && found.name == t.name, "a name finds its tensor");
    free(name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    pykvq_gguf *gguf = NULL;
    size_t n_allocated = kvq_allocated_bytes();
    if (kvq_gguf_open_memory(data, n, &gguf) == PYKVQ_OK) {
        for (uint64_t i = 0; i < pykvq_gguf_n_values(gguf); i++)
            read_value(gguf, i);
        for (uint64_t i = 0; i < pykvq_gguf_n_tensors(gguf); i++)
            read_tensor(gguf, i);
        check(kvq_allocated_bytes() - n_allocated < 65536 + 64 * n, "memory is bounded by the file");
        pykvq_gguf_close(gguf);
    } else {
        check(gguf == NULL && kvq_error()[0] != 0, "a file that does not open has a sentence");
    }
    check(kvq_allocated_bytes() == n_allocated, "all memory is given back");
    return 0;
}
