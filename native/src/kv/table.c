/* The KV types. Adding one: its files, its declaration and its line here. */
#include "kv/codec.h"

#include <string.h>

extern const kvq_codec kvq_codec_f16_k, kvq_codec_f16_v;

static const kvq_kv_type types[] = {
    {"f16", "exact; the reference", &kvq_codec_f16_k, &kvq_codec_f16_v, 0, UINT32_MAX},
};

uint32_t kvq_kv_type_count(void) {
    return sizeof types / sizeof types[0];
}

const kvq_kv_type *kvq_kv_type_at(uint32_t i) {
    return i < kvq_kv_type_count() ? &types[i] : NULL;
}

const kvq_kv_type *kvq_kv_type_find(const char *name) {
    for (uint32_t i = 0; i < kvq_kv_type_count(); i++)
        if (strcmp(types[i].name, name) == 0)
            return &types[i];
    return NULL;
}
