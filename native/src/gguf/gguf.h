/* The GGUF container: a read-only map of one or more files, fully checked when it opens. The file is hostile. */
#ifndef KVQ_GGUF_GGUF_H
#define KVQ_GGUF_GGUF_H

#include "base/status.h"

/* pykvq_gguf itself, and the public functions on it, are implemented in gguf.c; below is what the layers above use. */

typedef struct kvq_str {
    const char *data; /* n bytes of valid UTF-8, not NUL-terminated */
    uint64_t n;
} kvq_str;

/* Same as pykvq_gguf_open for bytes in memory, which must outlive the result. For the fuzzer and tests. */
pykvq_status kvq_gguf_open_memory(const uint8_t *bytes, uint64_t n_bytes, pykvq_gguf **out);

bool kvq_gguf_find(const pykvq_gguf *gguf, const char *key, pykvq_gguf_value *out);
bool kvq_gguf_find_tensor(const pykvq_gguf *gguf, const char *name, pykvq_gguf_tensor *out);

/* Typed reads. Integers of any width and sign that fit are accepted. A missing key leaves *out alone and returns PYKVQ_OK
 * if `required` is false; a key of the wrong type or out of range is always PYKVQ_E_FORMAT with a sentence naming it, to
 * which the caller adds the file. */
pykvq_status kvq_gguf_u32(const pykvq_gguf *gguf, const char *key, bool required, uint32_t *out);
pykvq_status kvq_gguf_f32(const pykvq_gguf *gguf, const char *key, bool required, float *out);
pykvq_status kvq_gguf_bool(const pykvq_gguf *gguf, const char *key, bool required, bool *out);
pykvq_status kvq_gguf_str(const pykvq_gguf *gguf, const char *key, bool required, kvq_str *out);
/* A scalar, or an array of exactly n: out[0..n-1] either way (a scalar is repeated). */
pykvq_status kvq_gguf_u32_each(const pykvq_gguf *gguf, const char *key, bool required, uint32_t n, uint32_t *out);

#endif
