/* What to say when an engine does not fit into the memory of its GPU: the plan, and the contexts that would fit. */
#include <stdio.h>
#include <string.h>

#include "engine/layout.h"

enum { MAX_SMALLER = 3 };

static uint64_t total_bytes(const pykvq_model *m, const pykvq_engine_params *p) { /* UINT64_MAX: not possible at all */
    kvq_layout layout;
    pykvq_plan plan;
    if (kvq_layout_compute(m, p, &layout) != PYKVQ_OK)
        return UINT64_MAX;
    kvq_layout_plan(m, &layout, &plan);
    kvq_kv_spec_free(&layout.spec);
    return plan.n_total_bytes;
}

/* The most tokens, p.n_ctx or less in whole tiles, for which such an engine takes at most n_bytes; 0: not one tile. */
static uint32_t longest_context(const pykvq_model *m, pykvq_engine_params p, uint64_t n_bytes) {
    uint32_t fits = 0, beyond = p.n_ctx / KVQ_TILE + 1; /* tiles */
    if (total_bytes(m, &p) <= n_bytes)
        return p.n_ctx;
    while (beyond - fits > 1) {
        uint32_t middle = fits + (beyond - fits) / 2;
        p.n_ctx = middle * KVQ_TILE;
        *(total_bytes(m, &p) <= n_bytes ? &fits : &beyond) = middle;
    }
    return fits * KVQ_TILE;
}

static size_t tile_bytes(const pykvq_model *m, const kvq_codec *k, const kvq_codec *v) {
    return kvq_tile_stride(k, m->h.head_dim) + kvq_tile_stride(v, m->h.head_dim);
}

/* The largest type of fewer than n_bytes for the tiles of a head that the device can read, or NULL. */
static const kvq_kv_type *next_smaller(const pykvq_model *m, kvq_device device, size_t n_bytes) {
    const kvq_kv_type *found = NULL;
    for (uint32_t i = 0; i < kvq_kv_type_count(); i++) {
        const kvq_kv_type *type = kvq_kv_type_at(i);
        size_t n = tile_bytes(m, type->k, type->v);
        if (n > 0 && n < n_bytes && (found == NULL || n > tile_bytes(m, found->k, found->v)) &&
            kvq_device_kv_check(device, type->k, type->v, m->h.head_dim) == PYKVQ_OK)
            found = type;
    }
    return found;
}

/* ", 12288 tokens of q8_0": of the types below the layout's own that make the context longer by a quarter or more */
static void list_smaller(const pykvq_model *m, const kvq_layout *l, pykvq_engine_params p, uint64_t n_free, uint32_t n_ctx,
                         char *text, size_t n_text) {
    size_t n_bytes = tile_bytes(m, l->spec.k[m->h.n_layer - 1], l->spec.v[m->h.n_layer - 1]);
    p.kv_k = p.kv_v = p.kv_layers = NULL;
    p.kv_sink = p.kv_tail = -1;
    for (uint32_t n = 0; n < MAX_SMALLER;) {
        const kvq_kv_type *type = next_smaller(m, l->device, n_bytes);
        if (type == NULL)
            return;
        n_bytes = tile_bytes(m, type->k, type->v);
        p.kv = type->name;
        uint32_t longer = longest_context(m, p, n_free);
        if (longer < n_ctx + n_ctx / 4 || longer == 0)
            continue;
        size_t used = strlen(text);
        snprintf(text + used, n_text - used, "; with %s %u", type->name, longer);
        n_ctx = longer;
        n++;
    }
}

static pykvq_status too_large(const pykvq_model *m, const pykvq_engine_params *given, const kvq_layout *l,
                              const pykvq_plan *plan, size_t n_free, size_t n_total) {
    pykvq_engine_params p = {.size = sizeof p, .kv_sink = -1, .kv_tail = -1};
    if (given != NULL)
        p = *given;
    p.n_ctx = l->n_ctx;
    uint32_t n_ctx = longest_context(m, p, n_free);
    char smaller[256] = "";
    list_smaller(m, l, p, n_free, n_ctx, smaller, sizeof smaller);
    char fits[96] = "no context fits";
    if (n_ctx > 0)
        snprintf(fits, sizeof fits, "the longest context that fits has %u tokens", n_ctx);
    const double mib = 1.0 / 0x1p20;
    return kvq_fail(
        PYKVQ_E_MEMORY,
        "engine: needs %.0f MiB of GPU memory (weights %.0f, KV cache of %u x %u tokens %.0f, scratch %.0f), %.0f "
        "of %.0f MiB are free; %s%s",
        (double)plan->n_total_bytes * mib, (double)plan->n_weight_bytes * mib, l->n_seq, l->n_ctx,
        (double)plan->n_kv_bytes * mib, (double)plan->n_scratch_bytes * mib, (double)n_free * mib, (double)n_total * mib,
        fits, smaller);
}

pykvq_status kvq_fit_check(const pykvq_model *m, const pykvq_engine_params *params, const kvq_layout *layout) {
    size_t n_free = 0, n_total = 0;
    pykvq_plan plan;
    if (layout->device == KVQ_DEVICE_CPU)
        return PYKVQ_OK;
    KVQ_TRY(kvq_device_memory(layout->device, &n_free, &n_total));
    kvq_layout_plan(m, layout, &plan);
    return plan.n_total_bytes <= n_free ? PYKVQ_OK : too_large(m, params, layout, &plan, n_free, n_total);
}
