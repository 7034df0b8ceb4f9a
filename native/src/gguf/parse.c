/* The bytes of a GGUF file: nothing is used before it is checked.
 *
 *     header    "GGUF", u32 version, u64 n_tensors, u64 n_values
 *     values    n_values x: string key, u32 type, value (an array: u32 element type, u64 n, elements)
 *     tensors   n_tensors x: string name, u32 n_dims, u64 ne[n_dims], u32 type, u64 offset
 *     padding   to a multiple of general.alignment
 *     data      of the tensors in the order of the table, each padded likewise; offsets count from here
 *
 * A string is u64 length, then UTF-8. Everything is little-endian, as is every machine this runs on. */
#include "gguf/container.h"

#include <inttypes.h>
#include <string.h>

#include "base/memory.h"
#include "quant/quant.h"

typedef struct reader {
    const uint8_t *bytes;
    uint64_t n_bytes, at; /* at <= n_bytes */
} reader;

/* The next n bytes, or NULL with a sentence. */
static const uint8_t *take(reader *r, uint64_t n, const char *what) {
    const uint8_t *bytes = r->bytes + r->at;
    if (n > r->n_bytes - r->at) {
        kvq_fail(PYKVQ_E_FORMAT, "%s: expected %" PRIu64 " bytes at offset %" PRIu64 ", got %" PRIu64 " to the end", what,
                 n, r->at, r->n_bytes - r->at);
        return NULL;
    }
    r->at += n;
    return bytes;
}

static pykvq_status take_into(reader *r, void *out, size_t n, const char *what) {
    const uint8_t *bytes = take(r, n, what);
    if (bytes == NULL)
        return PYKVQ_E_FORMAT;
    memcpy(out, bytes, n);
    return PYKVQ_OK;
}

static pykvq_status take_u32(reader *r, const char *what, uint32_t *out) {
    return take_into(r, out, sizeof *out, what);
}

static pykvq_status take_u64(reader *r, const char *what, uint64_t *out) {
    return take_into(r, out, sizeof *out, what);
}

/* Bytes of the UTF-8 sequence at s, of which n are there; 0 if it is not one (Unicode 15, table 3-7). */
static uint64_t utf8_sequence(const uint8_t *s, uint64_t n) {
    uint8_t first = s[0], low = 0x80, high = 0xbf; /* bounds of the second byte */
    uint64_t length;
    if (first < 0x80)
        return 1;
    if (first >= 0xc2 && first <= 0xdf) {
        length = 2;
    } else if (first >= 0xe0 && first <= 0xef) {
        length = 3;
        low = first == 0xe0 ? 0xa0 : 0x80;  /* no overlong forms */
        high = first == 0xed ? 0x9f : 0xbf; /* no surrogates */
    } else if (first >= 0xf0 && first <= 0xf4) {
        length = 4;
        low = first == 0xf0 ? 0x90 : 0x80;
        high = first == 0xf4 ? 0x8f : 0xbf; /* up to U+10FFFF */
    } else {
        return 0;
    }
    if (n < length || s[1] < low || s[1] > high)
        return 0;
    for (uint64_t i = 2; i < length; i++)
        if (s[i] < 0x80 || s[i] > 0xbf)
            return 0;
    return length;
}

static pykvq_status take_string(reader *r, const char *what, const char **data, uint64_t *n) {
    KVQ_TRY(take_u64(r, what, n));
    const uint8_t *s = take(r, *n, what);
    if (s == NULL)
        return PYKVQ_E_FORMAT;
    for (uint64_t i = 0; i < *n;) {
        uint64_t length = utf8_sequence(s + i, *n - i);
        if (length == 0)
            return kvq_fail(PYKVQ_E_FORMAT, "%s: expected UTF-8, got byte 0x%02x at offset %" PRIu64, what, s[i],
                            (uint64_t)(s + i - r->bytes));
        i += length;
    }
    *data = (const char *)s;
    return PYKVQ_OK;
}

/* A key or a tensor name; the specification ends keys at 65535 bytes. */
static pykvq_status take_name(reader *r, const char *what, const char **data, uint64_t *n) {
    KVQ_TRY(take_string(r, what, data, n));
    if (*n == 0 || *n > UINT16_MAX)
        return kvq_fail(PYKVQ_E_FORMAT, "%s: expected 1 to %d bytes, got %" PRIu64, what, UINT16_MAX, *n);
    return PYKVQ_OK;
}

static pykvq_status take_elements(reader *r, pykvq_gguf_value *v) {
    if (v->type == PYKVQ_GGUF_STRING) {
        for (uint64_t i = 0; i < v->n; i++) {
            const char *data;
            uint64_t n;
            pykvq_status status = take_string(r, "string", &data, &n);
            if (status != PYKVQ_OK)
                return kvq_fail_in(status, "element %" PRIu64 " of %" PRIu64, i, v->n);
        }
        return PYKVQ_OK;
    }
    uint64_t n_bytes;
    if (__builtin_mul_overflow(v->n, kvq_gguf_type_bytes[v->type], &n_bytes))
        n_bytes = UINT64_MAX; /* more than any file has */
    const uint8_t *data = take(r, n_bytes, "elements");
    if (data == NULL)
        return PYKVQ_E_FORMAT;
    for (uint64_t i = 0; v->type == PYKVQ_GGUF_BOOL && i < v->n; i++)
        if (data[i] > 1)
            return kvq_fail(PYKVQ_E_FORMAT, "element %" PRIu64 " of %" PRIu64 ": expected 0 or 1, got %u", i, v->n,
                            data[i]);
    return PYKVQ_OK;
}

static pykvq_status take_typed(reader *r, pykvq_gguf_value *v) {
    KVQ_TRY(take_u32(r, "type", &v->type));
    v->is_array = v->type == PYKVQ_GGUF_ARRAY;
    v->n = 1;
    if (v->is_array) {
        KVQ_TRY(take_u32(r, "element type", &v->type));
        KVQ_TRY(take_u64(r, "number of elements", &v->n));
        if (v->type == PYKVQ_GGUF_ARRAY)
            return kvq_fail(PYKVQ_E_UNSUPPORTED, "expected an array of plain values, got one of arrays");
    }
    if (v->type > PYKVQ_GGUF_F64)
        return kvq_fail(PYKVQ_E_FORMAT, "expected a value type from 0 to %d, got %" PRIu32, PYKVQ_GGUF_F64, v->type);
    uint64_t start = r->at;
    v->data = r->bytes + start;
    KVQ_TRY(take_elements(r, v));
    v->n_data_bytes = r->at - start;
    return PYKVQ_OK;
}

static pykvq_status take_value(reader *r, pykvq_gguf_value *v) {
    KVQ_TRY(take_name(r, "key", &v->key, &v->n_key));
    pykvq_status status = take_typed(r, v);
    return status == PYKVQ_OK ? status : kvq_fail_in(status, "%s", kvq_gguf_printable(v->key, v->n_key).text);
}

/* A count from the header, of entries that take at least n_least bytes each. */
static pykvq_status take_count(reader *r, const char *what, uint64_t n_least, uint64_t *out) {
    KVQ_TRY(take_u64(r, what, out));
    uint64_t n_most = r->n_bytes / n_least < KVQ_GGUF_MAX_ENTRIES ? r->n_bytes / n_least : KVQ_GGUF_MAX_ENTRIES;
    if (*out > n_most)
        return kvq_fail(PYKVQ_E_FORMAT, "%s: expected at most %" PRIu64 " in a file of %" PRIu64 " bytes, got %" PRIu64,
                        what, n_most, r->n_bytes, *out);
    return PYKVQ_OK;
}

static pykvq_status take_header(reader *r, kvq_gguf_file *file) {
    enum { VALUE_LEAST = 8 + 1 + 4 + 1, TENSOR_LEAST = 8 + 1 + 4 + 8 + 4 + 8 };
    KVQ_TRY(kvq_gguf_file_check_magic(file));
    r->at = 4;
    KVQ_TRY(take_u32(r, "version", &file->version));
    if (file->version != 0 && (file->version & 0xffff) == 0)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "expected a little-endian GGUF file, got a big-endian one");
    if (file->version != 2 && file->version != 3)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "expected GGUF version 2 or 3, got %" PRIu32, file->version);
    KVQ_TRY(take_count(r, "number of tensors", TENSOR_LEAST, &file->n_tensors));
    return take_count(r, "number of metadata values", VALUE_LEAST, &file->n_values);
}

pykvq_status kvq_gguf_parse_values(kvq_gguf_file *file) {
    reader r = {file->bytes, file->n_bytes, 0};
    KVQ_TRY(take_header(&r, file));
    void *values;
    KVQ_TRY(kvq_alloc_array(&values, file->n_values, sizeof *file->values, "metadata"));
    file->values = values;
    KVQ_TRY(kvq_index_create(&file->values_by_key, values, sizeof *file->values, file->n_values));
    for (uint64_t i = 0; i < file->n_values; i++) {
        pykvq_status status = take_value(&r, &file->values[i]);
        if (status == PYKVQ_OK)
            status = kvq_index_add(&file->values_by_key, i);
        if (status != PYKVQ_OK)
            return kvq_fail_in(status, "metadata %" PRIu64, i);
    }
    uint32_t alignment = 32;
    KVQ_TRY(kvq_gguf_file_u32(file, "general.alignment", false, &alignment));
    if (alignment == 0 || (alignment & (alignment - 1)) != 0)
        return kvq_fail(PYKVQ_E_FORMAT, "general.alignment: expected a power of two, got %" PRIu32, alignment);
    file->alignment = alignment;
    file->tensors_at = r.at;
    return PYKVQ_OK;
}

/* The size of a tensor, from its shape and type. */
static pykvq_status size_tensor(pykvq_gguf_tensor *t) {
    uint64_t n_elements = 1;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        if (t->ne[i] == 0)
            return kvq_fail(PYKVQ_E_FORMAT, "dimension %" PRIu32 ": expected at least 1 element, got 0", i);
        if (__builtin_mul_overflow(n_elements, t->ne[i], &n_elements))
            return kvq_fail(PYKVQ_E_FORMAT,
                            "expected fewer than 2^64 elements, got %" PRIu64 " x %" PRIu64 " x %" PRIu64 " x %" PRIu64,
                            t->ne[0], t->ne[1], t->ne[2], t->ne[3]);
    }
    uint32_t block_elements, block_bytes;
    if (!kvq_wtype_layout(t->type, &block_elements, &block_bytes)) {
        const char *name = kvq_wtype_name(t->type);
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "expected a tensor type this build knows, got %" PRIu32 "%s%s%s", t->type,
                        name ? " (" : "", name ? name : "", name ? ")" : "");
    }
    if (t->ne[0] % block_elements != 0)
        return kvq_fail(PYKVQ_E_FORMAT, "%s: expected rows of a multiple of %" PRIu32 " elements, got %" PRIu64,
                        kvq_wtype_name(t->type), block_elements, t->ne[0]);
    if (__builtin_mul_overflow(n_elements / block_elements, block_bytes, &t->n_bytes))
        return kvq_fail(PYKVQ_E_FORMAT, "%s: expected fewer than 2^64 bytes, got %" PRIu64 " elements",
                        kvq_wtype_name(t->type), n_elements);
    return PYKVQ_OK;
}

/* The rest of an entry. *offset: where the tensor must start; on return, where the next one must. */
static pykvq_status take_tensor_info(reader *r, uint64_t alignment, pykvq_gguf_tensor *t, uint64_t *offset) {
    KVQ_TRY(take_u32(r, "number of dimensions", &t->n_dims));
    if (t->n_dims < 1 || t->n_dims > 4)
        return kvq_fail(PYKVQ_E_FORMAT, "expected 1 to 4 dimensions, got %" PRIu32, t->n_dims);
    for (uint32_t i = 0; i < 4; i++) {
        t->ne[i] = 1;
        if (i < t->n_dims)
            KVQ_TRY(take_u64(r, "dimensions", &t->ne[i]));
    }
    uint64_t start;
    KVQ_TRY(take_u32(r, "type", &t->type));
    KVQ_TRY(take_u64(r, "offset", &start));
    KVQ_TRY(size_tensor(t));
    if (start % alignment != 0)
        return kvq_fail(PYKVQ_E_FORMAT, "expected an offset that is a multiple of %" PRIu64 ", got %" PRIu64, alignment,
                        start);
    if (start != *offset) /* no gaps, no overlaps: what every writer makes, and a check on the shapes */
        return kvq_fail(PYKVQ_E_FORMAT, "expected offset %" PRIu64 ", where the tensor before it ends, got %" PRIu64,
                        *offset, start);
    uint64_t end;
    if (__builtin_add_overflow(start, t->n_bytes, &end) || end > UINT64_MAX - alignment)
        return kvq_fail(PYKVQ_E_FORMAT,
                        "expected fewer than 2^64 bytes up to its end, got %" PRIu64 " from offset %" PRIu64, t->n_bytes,
                        start);
    *offset = (end + alignment - 1) / alignment * alignment;
    return PYKVQ_OK;
}

static pykvq_status take_tensor(reader *r, uint64_t alignment, pykvq_gguf_tensor *t, uint64_t *offset) {
    KVQ_TRY(take_name(r, "name", &t->name, &t->n_name));
    pykvq_status status = take_tensor_info(r, alignment, t, offset);
    return status == PYKVQ_OK ? status : kvq_fail_in(status, "%s", kvq_gguf_printable(t->name, t->n_name).text);
}

pykvq_status kvq_gguf_parse_tensors(const kvq_gguf_file *file, pykvq_gguf_tensor *tensors) {
    reader r = {file->bytes, file->n_bytes, file->tensors_at};
    uint64_t offset = 0;
    for (uint64_t i = 0; i < file->n_tensors; i++) {
        pykvq_status status = take_tensor(&r, file->alignment, &tensors[i], &offset);
        if (status != PYKVQ_OK)
            return kvq_fail_in(status, "tensor %" PRIu64, i);
    }
    /* Now that the end of the table is known, the data can be found. */
    uint64_t at = r.at;
    for (uint64_t i = 0; i < file->n_tensors; i++) {
        pykvq_gguf_tensor *t = &tensors[i];
        at = (at + file->alignment - 1) / file->alignment * file->alignment;
        if (at > file->n_bytes || t->n_bytes > file->n_bytes - at)
            return kvq_fail(PYKVQ_E_FORMAT,
                            "tensor %" PRIu64 ": %s: expected %" PRIu64 " bytes at offset %" PRIu64
                            ", got a file of %" PRIu64 ": is it complete?",
                            i, kvq_gguf_printable(t->name, t->n_name).text, t->n_bytes, at, file->n_bytes);
        t->data = file->bytes + at;
        at += t->n_bytes;
    }
    return PYKVQ_OK;
}
