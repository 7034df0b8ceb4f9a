/* Weight types: how GGML block bytes become numbers. Pure functions, no threads, no policy. */
#ifndef KVQ_QUANT_QUANT_H
#define KVQ_QUANT_QUANT_H

#include "base/status.h"

typedef struct kvq_wtype {
    const char *name; /* "Q4_K" */
    uint32_t id;      /* GGML type id */
    uint32_t block_elements, block_bytes;
    /* src: n / block_elements blocks, dst: (n) float. Any bytes are valid. Equals gguf.quants.dequantize bit for bit. */
    void (*dequantize)(const void *src, float *dst, size_t n);
} kvq_wtype;

/* NULL if this build does not know the id. */
const kvq_wtype *kvq_wtype_find(uint32_t ggml_id);
uint32_t kvq_wtype_count(void);
const kvq_wtype *kvq_wtype_at(uint32_t i);
/* "Q4_K", also for ids of GGML that are known but not supported; if NULL, "type 123" is the caller's to write. */
const char *kvq_wtype_name(uint32_t ggml_id);
/* Block size of every type that a GGUF file may hold, also of those that only the container knows (I8, F64, Q8_K ...). */
bool kvq_wtype_layout(uint32_t ggml_id, uint32_t *block_elements, uint32_t *block_bytes);

#endif
