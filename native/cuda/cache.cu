/* Keys and values: what a layer's cache needs on the device, writing and encoding its pages, attention. */
#include "backend.cuh"
#include "order.h"

namespace {

/* The key bias's one allocation, the same on the device; the pointers into it move along. */
struct layer_memory {
    void *memory;
    bias_tables bias;
};

template <typename T> const T *moved(const T *p, const kvq_key_bias *from, void *to) {
    return (const T *)((uint8_t *)to + ((const uint8_t *)p - (const uint8_t *)from));
}

bias_tables bias_of(const kvq_kv_layer *kv) {
    return kv->device != NULL ? ((const layer_memory *)kv->device)->bias : bias_tables{};
}

const float *rope_of(cuda_backend *c, const kvq_rope *rope) {
    for (uint32_t i = 0; i < c->n_ropes; i++)
        if (c->ropes[i].host == rope->inv_freq)
            return c->ropes[i].device;
    if (c->n_ropes == MAX_ROPES) {
        c->refusal = "RoPE: more than two kinds in one model";
        return NULL;
    }
    float *device = c->ropes[c->n_ropes].device;
    if (copy(device, rope->inv_freq, rope->n_rot / 2 * sizeof(float)) != PYKVQ_OK)
        note(c, cudaErrorInvalidValue);
    c->ropes[c->n_ropes++].host = rope->inv_freq;
    return device;
}

/* A page between its place and the staging buffer, where it is canonical. */
pykvq_status order_page(cuda_backend *c, const kvq_kv_layer *kv, kvq_page page, bool to_canonical) {
    if (kvq_layer_page_bytes(kv, page) > STAGING_BYTES)
        return fail(PYKVQ_E_UNSUPPORTED, "KV cache: a page of a layer has %zu bytes, the GPU moves pages of up to %d",
                    kvq_layer_page_bytes(kv, page), STAGING_BYTES);
    tile_side side;
    order_args a = {};
    a.page = (uint8_t *)kvq_page_of(kv, page);
    a.canonical = c->staging;
    a.n_head_kv = kv->n_head_kv;
    a.head_dim = kv->head_dim;
    a.to_canonical = to_canonical;
    if (page & KVQ_PAGE_CODED) {
        describe_codec(kv->k, kv->head_dim, &side, &a.k);
        describe_codec(kv->v, kv->head_dim, &side, &a.v);
        a.k_bytes = (uint32_t)kv->k_tile_bytes;
        a.v_bytes = (uint32_t)kv->v_tile_bytes;
        a.k_tile_bytes = (uint32_t)kv->k->tile_bytes(kv->k, kv->head_dim);
        a.v_tile_bytes = (uint32_t)kv->v->tile_bytes(kv->v, kv->head_dim);
    } else {
        a.k = {FAMILY_F16, 16, 1, true, false};
        a.v = {FAMILY_F16, 16, 1, false, false};
        a.k_bytes = a.v_bytes = a.k_tile_bytes = a.v_tile_bytes = KVQ_TILE * kv->head_dim * sizeof(__half);
    }
    cudaError_t error = launch_order(a, c->stream);
    if (error == cudaSuccess)
        error = cudaStreamSynchronize(c->stream);
    return error == cudaSuccess ? PYKVQ_OK : fail_cuda("KV cache", error);
}

variant new_variant(const cuda_backend *c, const plan_shape &shape) {
    uint8_t *device = c->units + c->n_variants * units_bytes(c), *host = c->host_units + c->n_variants * units_bytes(c);
    variant v = {};
    v.n_units = (uint32_t *)device;
    v.units = (attend_unit *)(device + UNITS_AT);
    v.host_n_units = (uint32_t *)host;
    v.host_units = (attend_unit *)(host + UNITS_AT);
    v.shape = shape;
    return v;
}

/* The variant of this shape, a new one when first met. */
variant *variant_of(cuda_backend *c, const plan_shape &shape) {
    uint32_t i = 0;
    while (i < c->n_variants && memcmp(&c->variants[i].shape, &shape, sizeof shape) != 0)
        i++;
    if (i == MAX_VARIANTS)
        return NULL;
    variant *v = &c->variants[i];
    if (i == c->n_variants) {
        *v = new_variant(c, shape);
        c->n_variants++;
    }
    bool first = !(c->variants_used >> i & 1);
    c->variants_used |= 1u << i;
    if (first && !c->captures)
        upload_units(c, v);
    return v;
}

} // namespace

pykvq_status check_kv(const kvq_codec *k, const kvq_codec *v, uint32_t head_dim) {
    tile_side side;
    tile_format formats[2]; /* K, V */
    for (const kvq_codec *codec : {k, v})
        if (!describe_codec(codec, head_dim, &side, &formats[codec == v]))
            return fail(PYKVQ_E_UNSUPPORTED,
                        "KV type %s (%s): the GPU has no kernels for it with heads of %u elements; cpu has", codec->name,
                        codec->side == 'k' ? "keys" : "values", head_dim);
    cudaFuncAttributes attributes;
    if (attend_attributes(head_dim, &attributes) != cudaSuccess)
        return fail(PYKVQ_E_UNSUPPORTED, "attention: the GPU has no kernel for heads of %u elements", head_dim);
    int most = 0;
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    size_t needed = encode_shared_bytes(formats[0], formats[1], head_dim);
    if (needed > (size_t)most)
        return fail(PYKVQ_E_UNSUPPORTED,
                    "KV type %s: encoding heads of %u elements takes %zu bytes of shared memory, this GPU has %d; cpu can",
                    k->name, head_dim, needed, most);
    return PYKVQ_OK;
}

void op_kv_free(kvq_backend *, kvq_kv_layer *kv) {
    layer_memory *memory = (layer_memory *)kv->device;
    if (memory != NULL)
        cudaFree(memory->memory);
    free(memory);
    kv->device = NULL;
}

pykvq_status op_kv_load(kvq_backend *, kvq_kv_layer *kv) {
    const kvq_key_bias *b = kv->key_bias;
    layer_memory *memory = (layer_memory *)calloc(1, sizeof *memory);
    kv->device = memory;
    if (memory == NULL)
        return fail(PYKVQ_E_MEMORY, "key bias: out of host memory");
    KVQ_TRY(take(b->n_bytes, "key bias", &memory->memory));
    KVQ_TRY(copy(memory->memory, b, b->n_bytes));
    void *to = memory->memory;
    memory->bias = {b->n_pairs,           b->n_tiles,           moved(b->c, b, to),    moved(b->s, b, to),
                    moved(b->b_c, b, to), moved(b->b_s, b, to), moved(b->wave, b, to), moved(b->turn, b, to)};
    return PYKVQ_OK;
}

pykvq_status op_page_read(kvq_backend *be, const kvq_kv_layer *kv, kvq_page page, void *out) {
    cuda_backend *c = cuda_of(be);
    KVQ_TRY(order_page(c, kv, page, true));
    return copy(out, c->staging, kvq_layer_page_bytes(kv, page));
}

pykvq_status op_page_write(kvq_backend *be, const kvq_kv_layer *kv, kvq_page page, const void *from) {
    cuda_backend *c = cuda_of(be);
    if (kvq_layer_page_bytes(kv, page) <= STAGING_BYTES)
        KVQ_TRY(copy(c->staging, from, kvq_layer_page_bytes(kv, page)));
    return order_page(c, kv, page, false);
}

void op_store(kvq_backend *be, const kvq_heads *h) {
    cuda_backend *c = cuda_of(be);
    if (c->replay != NULL)
        return;
    flush_pending(c);
    store_args a = {};
    a.q = h->q;
    a.k = h->k;
    a.v = h->v;
    a.q_norm = vector_of(h->q_norm);
    a.k_norm = vector_of(h->k_norm);
    a.n_rot = h->rope != NULL ? h->rope->n_rot : 0;
    if (a.n_rot > 0) {
        a.inv_freq = rope_of(c, h->rope);
        a.magnitude = h->rope->magnitude;
        a.interleaved = h->rope->interleaved;
    }
    a.positions = c->device.positions;
    a.pages = c->device.pages[h->group];
    a.raw = (__half *)h->kv->raw;
    a.n_bad = c->device.n_bad;
    a.norm_eps = h->norm_eps;
    a.n_head = h->n_head;
    a.n_head_kv = h->n_head_kv;
    a.head_dim = h->head_dim;
    launch_store(a, c->batch->n_tokens, c->stream);
}

/* What attention of short and of long spans takes alike (attend_args, prefill_args); false if it cannot read the tiles. */
template <typename A> static bool fill_attention(const cuda_backend *c, const kvq_attention *t, A *a) {
    const kvq_kv_layer *kv = t->kv;
    tile_format format;
    if (!describe_codec(kv->k, kv->head_dim, &a->k, &format) || !describe_codec(kv->v, kv->head_dim, &a->v, &format))
        return false;
    a->bias = bias_of(kv);
    a->q = t->q;
    a->o = t->o;
    a->tables = c->device.tables[t->group];
    a->raw = (const uint8_t *)kv->raw;
    a->coded = kv->coded;
    a->k_tile_bytes = (uint32_t)kv->k_tile_bytes;
    a->v_tile_bytes = (uint32_t)kv->v_tile_bytes;
    a->n_head = t->n_head;
    a->n_head_kv = kv->n_head_kv;
    a->sink_logits = t->sink_logits;
    a->scale = t->scale;
    a->softcap = t->softcap;
    a->window = t->window;
    return true;
}

static const char NO_KERNEL[] = "attention: a KV type that the GPU has no kernel for";

/* Spans of a few tokens: units of 8 or 16 columns. */
static void attend_short(cuda_backend *c, const kvq_attention *t, uint32_t longest) {
    attend_args a = {};
    if (!fill_attention(c, t, &a)) {
        c->refusal = NO_KERNEL;
        return;
    }
    uint32_t head_dim = t->kv->head_dim;
    plan_shape shape = {};
    shape.group = t->group;
    shape.window = t->window;
    shape.n_head_kv = a.n_head_kv;
    shape.head_group = a.n_head / a.n_head_kv;
    shape.n_cols = longest * shape.head_group <= 8 ? 8 : 16;
    a.ring_bytes = attend_ring_bytes(head_dim, &a.k, &a.v);
    a.scratch_bytes = attend_scratch_bytes(head_dim, &a.k, &a.v);
    int per_sm = attend_blocks_per_sm(head_dim, shape.n_cols / 8, &a);
    if (per_sm == 0) {
        c->refusal = "attention: a head_dim that the GPU has no kernel for";
        return;
    }
    shape.n_blocks = per_sm * c->n_sms;
    variant *v = variant_of(c, shape);
    if (v == NULL) {
        c->refusal = "attention: more shapes of layers than the backend was made for";
        return;
    }
    a.units = v->units;
    a.n_units = v->n_units;
    a.partial = c->partial;
    a.partial_max = c->partial_max;
    a.arrived = c->arrived;
    note(c, attend_launch(head_dim, shape.n_cols / 8, &a, shape.n_blocks, c->stream));
}

static void attend_long(cuda_backend *c, const kvq_attention *t) {
    prefill_args a = {};
    if (!fill_attention(c, t, &a)) {
        c->refusal = NO_KERNEL;
        return;
    }
    a.k_rotated = a.k.rotated && a.bias.n_pairs == 0; /* a bias is given back in the keys' own basis */
    a.v_rotated = a.v.rotated;
    a.staged = c->staged;
    a.staged_bytes = prefill_staged_bytes(&c->limits);
    a.partial = c->prefill_partial;
    a.max_sum = c->prefill_max_sum;
    a.head_dim = t->kv->head_dim;
    note(c, launch_prefill(&a, c->batch, c->tables_at[t->group], t->group, c->n_sms, c->stream));
}

void op_attend(kvq_backend *be, const kvq_attention *t) {
    cuda_backend *c = cuda_of(be);
    if (c->replay != NULL)
        return;
    flush_pending(c);
    uint32_t longest_short = 0;
    bool any_long = false;
    for (uint32_t i = 0; i < c->batch->n_spans; i++) {
        const kvq_span *span = &c->batch->spans[i];
        any_long |= takes_prefill(span);
        if (!takes_prefill(span) && span->n_tokens > longest_short)
            longest_short = span->n_tokens;
    }
    if (longest_short > 0)
        attend_short(c, t, longest_short);
    if (any_long)
        attend_long(c, t);
}

void op_encode(kvq_backend *be, const kvq_kv_layer *kv, const kvq_encode_job *jobs, uint32_t n_jobs) {
    cuda_backend *c = cuda_of(be);
    static_assert(sizeof(encode_job) == sizeof(kvq_encode_job), "the same layout");
    uint32_t last = c->n_encodes > 0 ? c->encodes[c->n_encodes - 1].first : 0;
    bool same = c->n_encodes > 0 && c->encodes[c->n_encodes - 1].n == n_jobs &&
                memcmp(c->host.jobs + last, jobs, n_jobs * sizeof *jobs) == 0;
    if (!same && c->n_jobs + n_jobs > c->max_jobs) {
        c->refusal = "encoding: more tiles than the backend was made for";
        return;
    }
    if (c->n_encodes == c->max_encodes) {
        c->refusal = "encoding: more layers than the backend was made for";
        return;
    }
    if (!same) {
        last = c->n_jobs;
        memcpy(c->host.jobs + last, jobs, n_jobs * sizeof *jobs);
        c->n_jobs += n_jobs;
    }
    c->encodes[c->n_encodes].kv = kv;
    c->encodes[c->n_encodes].first = last;
    c->encodes[c->n_encodes++].n = n_jobs;
}

void run_encodes(cuda_backend *c) {
    for (uint32_t i = 0; i < c->n_encodes; i++) {
        const kvq_kv_layer *kv = c->encodes[i].kv;
        tile_side side;
        encode_args a = {};
        a.raw = (const __half *)kv->raw;
        a.coded = kv->coded;
        a.jobs = c->device.jobs + c->encodes[i].first;
        describe_codec(kv->k, kv->head_dim, &side, &a.k);
        describe_codec(kv->v, kv->head_dim, &side, &a.v);
        a.k_tile_bytes = (uint32_t)kv->k_tile_bytes;
        a.v_tile_bytes = (uint32_t)kv->v_tile_bytes;
        a.n_head_kv = kv->n_head_kv;
        a.head_dim = kv->head_dim;
        a.bias = bias_of(kv);
        note(c, launch_encode(a, c->encodes[i].n, c->stream));
    }
}
