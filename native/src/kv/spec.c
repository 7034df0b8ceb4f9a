#include "kv/spec.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { MAX_NAME = 31 };

/* Edit distance, for "did you mean". */
static uint32_t distance(const char *a, const char *b) {
    uint32_t row[MAX_NAME + 1];
    uint32_t n = (uint32_t)strlen(b);
    for (uint32_t j = 0; j <= n; j++)
        row[j] = j;
    for (uint32_t i = 0; a[i] != '\0'; i++) {
        uint32_t diagonal = row[0];
        row[0] = i + 1;
        for (uint32_t j = 0; j < n; j++) {
            uint32_t cost = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            if (cost > row[j] + 1)
                cost = row[j] + 1;
            if (cost > diagonal + 1)
                cost = diagonal + 1;
            row[j + 1] = cost;
        }
    }
    return row[n];
}

pykvq_status kvq_kv_type_get(const char *name, const kvq_kv_type **out) {
    *out = kvq_kv_type_find(name);
    if (*out != NULL)
        return PYKVQ_OK;
    if (strlen(name) > MAX_NAME)
        return kvq_fail(PYKVQ_E_ARGUMENT, "KV type '%.*s...': unknown", MAX_NAME, name);
    const char *nearest = kvq_kv_type_at(0)->name;
    for (uint32_t i = 1; i < kvq_kv_type_count(); i++)
        if (distance(name, kvq_kv_type_at(i)->name) < distance(name, nearest))
            nearest = kvq_kv_type_at(i)->name;
    return kvq_fail(PYKVQ_E_ARGUMENT, "KV type '%s': unknown, did you mean '%s'? (pykvq kv lists all)", name, nearest);
}

/* The sink and tail of a spec grow to the largest defaults of the types it uses. */
static void take_defaults(kvq_kv_spec *spec, const kvq_kv_type *type) {
    if (type->sink > spec->sink)
        spec->sink = type->sink;
    if (type->tail > spec->tail && type->tail != UINT32_MAX)
        spec->tail = type->tail;
}

/* "TYPE" or "K/V" */
static pykvq_status parse_pair(const char *text, const kvq_kv_type **k, const kvq_kv_type **v) {
    const char *slash = strchr(text, '/');
    if (slash == NULL) {
        KVQ_TRY(kvq_kv_type_get(text, k));
        *v = *k;
        return PYKVQ_OK;
    }
    char name[MAX_NAME + 1];
    size_t n = (size_t)(slash - text);
    if (n > MAX_NAME)
        return kvq_fail(PYKVQ_E_ARGUMENT, "KV type '%s': unknown", text);
    memcpy(name, text, n);
    name[n] = '\0';
    KVQ_TRY(kvq_kv_type_get(name, k));
    return kvq_kv_type_get(slash + 1, v);
}

/* A layer number at *text; negative counts from the end. */
static pykvq_status parse_layer(const char **text, uint32_t n_layer, uint32_t *layer) {
    char *end;
    long value = strtol(*text, &end, 10);
    if (end == *text)
        return kvq_fail(PYKVQ_E_ARGUMENT, "KV layers: expected a layer number at '%s'", *text);
    if (value < -(long)n_layer || value >= (long)n_layer)
        return kvq_fail(PYKVQ_E_ARGUMENT, "KV layers: layer %ld, but the model has layers 0 to %u (-1 is the last)", value,
                        n_layer - 1);
    *layer = (uint32_t)(value < 0 ? value + (long)n_layer : value);
    *text = end;
    return PYKVQ_OK;
}

/* Marks the layers of one "LAYERS:" part; *text ends after the colon. */
static pykvq_status parse_layer_set(const char **text, uint32_t n_layer, bool *chosen) {
    memset(chosen, 0, n_layer);
    for (;;) {
        uint32_t first, last;
        KVQ_TRY(parse_layer(text, n_layer, &first));
        last = first;
        if (**text == '-') {
            ++*text;
            KVQ_TRY(parse_layer(text, n_layer, &last));
        }
        if (last < first)
            return kvq_fail(PYKVQ_E_ARGUMENT, "KV layers: range %u-%u runs backwards", first, last);
        memset(chosen + first, 1, last - first + 1);
        char separator = **text;
        if (separator != ',' && separator != ':')
            return kvq_fail(PYKVQ_E_ARGUMENT, "KV layers: expected ',' or ':TYPE' at '%s'", *text);
        ++*text;
        if (separator == ':')
            return PYKVQ_OK;
    }
}

static pykvq_status parse_layers(const char *text, kvq_kv_spec *spec, bool *chosen) {
    while (*text != '\0') {
        KVQ_TRY(parse_layer_set(&text, spec->n_layer, chosen));
        char pair[2 * MAX_NAME + 2];
        size_t n = strcspn(text, ",");
        if (n >= sizeof pair)
            return kvq_fail(PYKVQ_E_ARGUMENT, "KV layers: '%s' is no KV type", text);
        memcpy(pair, text, n);
        pair[n] = '\0';
        const kvq_kv_type *k, *v;
        KVQ_TRY(parse_pair(pair, &k, &v));
        take_defaults(spec, k);
        take_defaults(spec, v);
        for (uint32_t i = 0; i < spec->n_layer; i++)
            if (chosen[i]) {
                spec->k[i] = k->k;
                spec->v[i] = v->v;
            }
        text += n;
        text += *text == ',';
    }
    return PYKVQ_OK;
}

static pykvq_status parse(const char *kv, const char *kv_k, const char *kv_v, const char *kv_layers, int32_t sink,
                          int32_t tail, kvq_kv_spec *spec, bool *chosen) {
    const kvq_kv_type *k, *v;
    KVQ_TRY(parse_pair(kv ? kv : "f16", &k, &v));
    if (kv_k != NULL)
        KVQ_TRY(kvq_kv_type_get(kv_k, &k));
    if (kv_v != NULL)
        KVQ_TRY(kvq_kv_type_get(kv_v, &v));
    take_defaults(spec, k);
    take_defaults(spec, v);
    for (uint32_t i = 0; i < spec->n_layer; i++) {
        spec->k[i] = k->k;
        spec->v[i] = v->v;
    }
    if (kv_layers != NULL)
        KVQ_TRY(parse_layers(kv_layers, spec, chosen));
    if (sink % KVQ_TILE != 0 && sink >= 0)
        return kvq_fail(PYKVQ_E_ARGUMENT, "KV sink %d: must be a multiple of the tile of %d tokens", sink, KVQ_TILE);
    if (sink >= 0)
        spec->sink = (uint32_t)sink;
    if (tail >= 0)
        spec->tail = (uint32_t)tail;
    return PYKVQ_OK;
}

pykvq_status kvq_kv_spec_parse(const char *kv, const char *kv_k, const char *kv_v, const char *kv_layers, int32_t sink,
                               int32_t tail, uint32_t n_layer, kvq_kv_spec *out) {
    kvq_kv_spec spec = {.n_layer = n_layer};
    void *chosen = NULL;
    pykvq_status status = kvq_alloc_array((void **)&spec.k, n_layer, sizeof spec.k[0], "KV types");
    if (status == PYKVQ_OK)
        status = kvq_alloc_array((void **)&spec.v, n_layer, sizeof spec.v[0], "KV types");
    if (status == PYKVQ_OK)
        status = kvq_alloc_array(&chosen, n_layer, sizeof(bool), "KV layers");
    if (status == PYKVQ_OK)
        status = parse(kv, kv_k, kv_v, kv_layers, sink, tail, &spec, chosen);
    kvq_free(chosen, n_layer * sizeof(bool));
    if (status != PYKVQ_OK)
        kvq_kv_spec_free(&spec);
    else
        *out = spec;
    return status;
}

void kvq_kv_spec_free(kvq_kv_spec *spec) {
    kvq_free(spec->k, spec->n_layer * sizeof spec->k[0]);
    kvq_free(spec->v, spec->n_layer * sizeof spec->v[0]);
    *spec = (kvq_kv_spec){0};
}
