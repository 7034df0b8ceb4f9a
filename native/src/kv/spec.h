/* What --kv, --kv-k, --kv-v, --kv-layers, --kv-sink and --kv-tail mean, parsed here and nowhere else. */
#ifndef KVQ_KV_SPEC_H
#define KVQ_KV_SPEC_H

#include "kv/codec.h"

typedef struct kvq_kv_spec {
    uint32_t n_layer;
    const kvq_codec **k, **v; /* (n_layer) each */
    uint32_t sink, tail;      /* tokens in f16: first, newest; sink is a multiple of KVQ_TILE */
} kvq_kv_spec;

/*
 * kv: a type name, NULL for "f16". kv_k, kv_v: a type for that side only, or NULL.
 * kv_layers: "LAYERS:TYPE" items between commas, or NULL. LAYERS is one or more of N, N-M, -N (from the end) between
 * commas, TYPE a name or K/V ("q8_0/kivi2"): "0-1,-1:q8_0,4:f16". Later items win. sink, tail: tokens, or -1 for the
 * largest default of the types in use.
 */
pykvq_status kvq_kv_spec_parse(const char *kv, const char *kv_k, const char *kv_v, const char *kv_layers, int32_t sink,
                               int32_t tail, uint32_t n_layer, kvq_kv_spec *out);
void kvq_kv_spec_free(kvq_kv_spec *spec);

/* The type of that name, or PYKVQ_E_ARGUMENT with the nearest name. */
pykvq_status kvq_kv_type_get(const char *name, const kvq_kv_type **out);

#endif
