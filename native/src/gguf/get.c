/* Typed reads of metadata. Sentences start with the key; the caller knows the file. */
#include "gguf/container.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

const uint8_t kvq_gguf_type_bytes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static const char *const type_names[13] = {"uint8", "int8",   "uint16", "int16",  "uint32", "int32",  "float32",
                                           "bool",  "string", "array",  "uint64", "int64",  "float64"};

kvq_printable kvq_gguf_printable(const char *name, uint64_t n_name) {
    kvq_printable p = {0};
    size_t n = n_name < sizeof p.text ? (size_t)n_name : sizeof p.text - 1;
    for (size_t i = 0; i < n; i++)
        p.text[i] = name[i] >= 0x20 && name[i] < 0x7f ? name[i] : '?';
    if (n < n_name)
        memcpy(p.text + n - 3, "...", 3);
    return p;
}

static const pykvq_gguf_value *find(const kvq_gguf_file *file, const char *key) {
    return kvq_index_find(&file->values_by_key, key, strlen(key));
}

static pykvq_status fail_missing(const char *key, bool required) {
    return required ? kvq_fail(PYKVQ_E_FORMAT, "%s: expected it in the metadata, got none", key) : PYKVQ_OK;
}

static pykvq_status fail_type(const char *key, const char *expected, const pykvq_gguf_value *v) {
    const char *type = type_names[v->type];
    if (v->is_array)
        return kvq_fail(PYKVQ_E_FORMAT, "%s: expected %s, got an array of %" PRIu64 " %s", key, expected, v->n, type);
    return kvq_fail(PYKVQ_E_FORMAT, "%s: expected %s, got a %s", key, expected, type);
}

static bool is_integer(const pykvq_gguf_value *v) {
    return v->type <= PYKVQ_GGUF_I32 || v->type == PYKVQ_GGUF_U64 || v->type == PYKVQ_GGUF_I64;
}

/* Element i of an integer value. */
static pykvq_status element_u32(const char *key, const pykvq_gguf_value *v, uint64_t i, uint32_t *out) {
    size_t size = kvq_gguf_type_bytes[v->type];
    bool is_signed = v->type == PYKVQ_GGUF_I8 || v->type == PYKVQ_GGUF_I16 || v->type == PYKVQ_GGUF_I32 ||
                     v->type == PYKVQ_GGUF_I64;
    const uint8_t *data = v->data + i * size;
    uint64_t x = is_signed && data[size - 1] >= 0x80 ? UINT64_MAX : 0; /* sign extension */
    memcpy(&x, data, size);
    if (is_signed && (int64_t)x < 0)
        return kvq_fail(PYKVQ_E_FORMAT, "%s: expected 0 to %" PRIu32 ", got %" PRId64, key, UINT32_MAX, (int64_t)x);
    if (x > UINT32_MAX)
        return kvq_fail(PYKVQ_E_FORMAT, "%s: expected 0 to %" PRIu32 ", got %" PRIu64, key, UINT32_MAX, x);
    *out = (uint32_t)x;
    return PYKVQ_OK;
}

pykvq_status kvq_gguf_file_u32(const kvq_gguf_file *file, const char *key, bool required, uint32_t *out) {
    const pykvq_gguf_value *v = find(file, key);
    if (v == NULL)
        return fail_missing(key, required);
    if (v->is_array || !is_integer(v))
        return fail_type(key, "an integer", v);
    return element_u32(key, v, 0, out);
}

pykvq_status kvq_gguf_u32(const pykvq_gguf *gguf, const char *key, bool required, uint32_t *out) {
    return kvq_gguf_file_u32(gguf->files, key, required, out);
}

pykvq_status kvq_gguf_u32_each(const pykvq_gguf *gguf, const char *key, bool required, uint32_t n, uint32_t *out) {
    const pykvq_gguf_value *v = find(gguf->files, key);
    if (v == NULL)
        return fail_missing(key, required);
    char expected[64];
    snprintf(expected, sizeof expected, "an integer or an array of %" PRIu32 " of them", n);
    if (!is_integer(v) || (v->is_array && v->n != n))
        return fail_type(key, expected, v);
    for (uint32_t i = 0; i < n; i++) /* first all checks: a failing call changes nothing */
        KVQ_TRY(element_u32(key, v, v->is_array ? i : 0, &(uint32_t){0}));
    for (uint32_t i = 0; i < n; i++)
        KVQ_TRY(element_u32(key, v, v->is_array ? i : 0, &out[i]));
    return PYKVQ_OK;
}

pykvq_status kvq_gguf_f32(const pykvq_gguf *gguf, const char *key, bool required, float *out) {
    const pykvq_gguf_value *v = find(gguf->files, key);
    if (v == NULL)
        return fail_missing(key, required);
    if (v->is_array || (v->type != PYKVQ_GGUF_F32 && v->type != PYKVQ_GGUF_F64))
        return fail_type(key, "a float", v);
    float x;
    double wide;
    if (v->type == PYKVQ_GGUF_F32) {
        memcpy(&x, v->data, sizeof x);
    } else {
        memcpy(&wide, v->data, sizeof wide);
        x = (float)wide;
    }
    if (!isfinite(x))
        return kvq_fail(PYKVQ_E_FORMAT, "%s: expected a finite 32-bit float, got one that is not", key);
    *out = x;
    return PYKVQ_OK;
}

pykvq_status kvq_gguf_bool(const pykvq_gguf *gguf, const char *key, bool required, bool *out) {
    const pykvq_gguf_value *v = find(gguf->files, key);
    if (v == NULL)
        return fail_missing(key, required);
    if (v->is_array || v->type != PYKVQ_GGUF_BOOL)
        return fail_type(key, "a bool", v);
    *out = v->data[0] == 1;
    return PYKVQ_OK;
}

pykvq_status kvq_gguf_str(const pykvq_gguf *gguf, const char *key, bool required, kvq_str *out) {
    const pykvq_gguf_value *v = find(gguf->files, key);
    if (v == NULL)
        return fail_missing(key, required);
    if (v->is_array || v->type != PYKVQ_GGUF_STRING)
        return fail_type(key, "a string", v);
    out->data = (const char *)v->data + 8; /* after the length */
    out->n = v->n_data_bytes - 8;
    return PYKVQ_OK;
}
