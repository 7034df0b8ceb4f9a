/* The public functions that are not implemented where their object lives: checks arguments, calls down, computes nothing.
 */
#include <string.h>

#include "backend/backend.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/encode.h"
#include "cpu/linear.h"
#include "cpu/quantize.h"
#include "kv/spec.h"
#include "model/model.h"

/* ---- library ---- */

int pykvq_abi(void) {
    return PYKVQ_ABI;
}

const char *pykvq_version(void) {
    return "0.1.0";
}

const char *pykvq_last_error(void) {
    return kvq_error();
}

uint32_t pykvq_cpu_cores(void) {
    return kvq_threads_available();
}

pykvq_status pykvq_device_check(const char *device) {
    kvq_device found;
    return kvq_device_find(device, &found);
}

pykvq_status pykvq_device_memory(const char *device, uint64_t *n_free, uint64_t *n_total) {
    kvq_device found;
    size_t free_bytes, total_bytes;
    KVQ_TRY(kvq_device_find(device, &found));
    KVQ_TRY(kvq_device_memory(found, &free_bytes, &total_bytes));
    *n_free = free_bytes;
    *n_total = total_bytes;
    return PYKVQ_OK;
}

void pykvq_fail_allocation(uint64_t n) {
    kvq_fail_allocation(n);
}

uint64_t pykvq_allocated_bytes(void) {
    return kvq_allocated_bytes();
}

/* ---- weight types ---- */

uint32_t pykvq_n_weight_types(void) {
    return kvq_wtype_count();
}

pykvq_status pykvq_weight_type_at(uint32_t i, pykvq_weight_type *out) {
    if (i >= kvq_wtype_count())
        return kvq_fail(PYKVQ_E_ARGUMENT, "weight type %u: there are %u", i, kvq_wtype_count());
    const kvq_wtype *type = kvq_wtype_at(i);
    *out = (pykvq_weight_type){type->name, type->id, type->block_elements, type->block_bytes};
    return PYKVQ_OK;
}

/* The type of n_elements elements in n_bytes bytes. */
static pykvq_status check_weights(uint32_t id, uint64_t n_elements, uint64_t n_bytes, const kvq_wtype **out) {
    const kvq_wtype *type = kvq_wtype_find(id);
    if (type == NULL)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "weight type %u: not supported", id);
    if (n_elements % type->block_elements != 0 || n_bytes != n_elements / type->block_elements * type->block_bytes)
        return kvq_fail(PYKVQ_E_ARGUMENT, "%s: %llu bytes for %llu elements, expected %u bytes for each %u", type->name,
                        (unsigned long long)n_bytes, (unsigned long long)n_elements, type->block_bytes,
                        type->block_elements);
    *out = type;
    return PYKVQ_OK;
}

pykvq_status pykvq_weight_dequantize(uint32_t id, const void *src, uint64_t n_src_bytes, float *dst, uint64_t n_elements) {
    const kvq_wtype *type;
    KVQ_TRY(check_weights(id, n_elements, n_src_bytes, &type));
    type->dequantize(src, dst, n_elements);
    return PYKVQ_OK;
}

pykvq_status pykvq_weight_matmul(uint32_t id, const void *w, uint64_t n_w_bytes, uint32_t n_out, uint32_t n_in,
                                 const float *x, uint32_t n_tokens, float *y, uint32_t n_threads) {
    const kvq_wtype *type;
    KVQ_TRY(check_weights(id, (uint64_t)n_out * n_in, n_w_bytes, &type));
    if (n_in % type->block_elements != 0)
        return kvq_fail(PYKVQ_E_ARGUMENT, "%s: rows of %u elements, expected a multiple of %u", type->name, n_in,
                        type->block_elements);
    kvq_threads *threads;
    void *scratch;
    KVQ_TRY(kvq_threads_create(n_threads ? n_threads : 1, &threads));
    size_t n_scratch = kvq_linear_scratch_bytes(kvq_threads_count(threads), n_tokens, n_in);
    pykvq_status status = kvq_alloc_array(&scratch, n_scratch, 1, "matmul scratch");
    if (status == PYKVQ_OK) {
        const kvq_weight weight = {.type = type, .n_in = n_in, .n_out = n_out, .data = w};
        kvq_linear_project(threads, scratch, x, n_tokens, 1, (const kvq_weight *[]){&weight}, (const float *[]){NULL},
                           false, (float *[]){y});
        kvq_free(scratch, n_scratch);
    }
    kvq_threads_destroy(threads);
    return status;
}

static pykvq_status check_convert(const pykvq_weight_convert_params *p, kvq_rows *out) {
    if (p->size != sizeof *p)
        return kvq_fail(PYKVQ_E_ARGUMENT, "weight conversion: parameters of %llu bytes, expected %zu",
                        (unsigned long long)p->size, sizeof *p);
    if (p->n_per_row == 0 || p->n_rows > UINT64_MAX / p->n_per_row)
        return kvq_fail(PYKVQ_E_ARGUMENT, "weight conversion: %llu rows of %u elements", (unsigned long long)p->n_rows,
                        p->n_per_row);
    *out = (kvq_rows){
        .src = p->src, .dst = p->dst, .n_rows = p->n_rows, .n_per_row = p->n_per_row, .importance = p->importance};
    KVQ_TRY(check_weights(p->src_type, p->n_rows * p->n_per_row, p->n_src_bytes, &out->src_type));
    KVQ_TRY(check_weights(p->dst_type, p->n_rows * p->n_per_row, p->n_dst_bytes, &out->dst_type));
    if (!kvq_rows_possible(out->dst_type))
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "%s: this build cannot quantize to it", out->dst_type->name);
    if (p->n_per_row % out->src_type->block_elements != 0 || p->n_per_row % out->dst_type->block_elements != 0)
        return kvq_fail(PYKVQ_E_ARGUMENT, "%s to %s: rows of %u elements, expected multiples of %u and %u",
                        out->src_type->name, out->dst_type->name, p->n_per_row, out->src_type->block_elements,
                        out->dst_type->block_elements);
    return PYKVQ_OK;
}

pykvq_status pykvq_weight_convert(const pykvq_weight_convert_params *params, pykvq_weight_loss *loss) {
    kvq_rows rows;
    kvq_threads *threads;
    KVQ_TRY(check_convert(params, &rows));
    KVQ_TRY(kvq_threads_create(params->n_threads ? params->n_threads : kvq_threads_available(), &threads));
    pykvq_status status = kvq_rows_convert(threads, &rows, loss);
    kvq_threads_destroy(threads);
    return status;
}

/* ---- models ---- */

pykvq_status pykvq_model_open(const char *path, pykvq_model **out) {
    pykvq_gguf *gguf;
    KVQ_TRY(pykvq_gguf_open(path, &gguf));
    pykvq_status status = kvq_model_open(gguf, out);
    return status == PYKVQ_OK ? status : kvq_fail_in(status, "%s", path);
}

void pykvq_model_get_info(const pykvq_model *m, pykvq_model_info *out) {
    const kvq_hparams *h = &m->h;
    *out = (pykvq_model_info){
        .arch = m->arch->name,
        .name = m->name,
        .n_layer = h->n_layer,
        .n_embd = h->n_embd,
        .n_head = h->n_head,
        .n_head_kv = h->n_head_kv,
        .head_dim = h->head_dim,
        .n_ff = h->n_ff,
        .n_vocab = h->n_vocab,
        .n_ctx_train = h->n_ctx_train,
        .n_window = h->n_window,
        .n_layer_window = kvq_model_n_window_layers(m),
        .n_params = m->n_params,
        .n_file_bytes = pykvq_gguf_n_bytes(m->gguf),
        .fingerprint = m->fingerprint,
    };
}

const pykvq_gguf *pykvq_model_gguf(const pykvq_model *m) {
    return m->gguf;
}

/* ---- KV types ---- */

uint32_t pykvq_n_kv_types(void) {
    return kvq_kv_type_count();
}

pykvq_status pykvq_kv_type_at(uint32_t i, pykvq_kv_type *out) {
    if (i >= kvq_kv_type_count())
        return kvq_fail(PYKVQ_E_ARGUMENT, "KV type %u: there are %u", i, kvq_kv_type_count());
    const kvq_kv_type *type = kvq_kv_type_at(i);
    *out = (pykvq_kv_type){type->name, type->summary, type->sink, type->tail, type->instead};
    return PYKVQ_OK;
}

static pykvq_status find_codec(const char *name, char side, uint32_t head_dim, const kvq_codec **out) {
    const kvq_kv_type *type;
    KVQ_TRY(kvq_kv_type_get(name, &type));
    if (side != 'k' && side != 'v')
        return kvq_fail(PYKVQ_E_ARGUMENT, "KV side '%c': expected 'k' or 'v'", side);
    const kvq_codec *codec = side == 'k' ? type->k : type->v;
    if (codec->tile_bytes(codec, head_dim) == 0)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "KV type %s: cannot take heads of %u elements", name, head_dim);
    *out = codec;
    return PYKVQ_OK;
}

pykvq_status pykvq_kv_tile_bytes(const char *type, char side, uint32_t head_dim, uint64_t *n_bytes) {
    const kvq_codec *codec;
    KVQ_TRY(find_codec(type, side, head_dim, &codec));
    *n_bytes = codec->tile_bytes(codec, head_dim);
    return PYKVQ_OK;
}

pykvq_status pykvq_kv_encode(const char *type, char side, uint32_t head_dim, const float *x, uint8_t *tile) {
    const kvq_codec *codec;
    KVQ_TRY(find_codec(type, side, head_dim, &codec));
    kvq_encode_tokens(codec, x, head_dim, tile);
    return PYKVQ_OK;
}

pykvq_status pykvq_kv_decode(const char *type, char side, uint32_t head_dim, const uint8_t *tile, float *x) {
    const kvq_codec *codec;
    KVQ_TRY(find_codec(type, side, head_dim, &codec));
    if (!kvq_tile_valid(codec, tile, head_dim))
        return kvq_fail(PYKVQ_E_FORMAT, "KV tile of %s: not one that can have been encoded", type);
    codec->decode(codec, tile, head_dim, x);
    return PYKVQ_OK;
}
