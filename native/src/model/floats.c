/* Float weights of a model, for its exact engines: one copy, however many engines there are. */
#include <pthread.h>
#include <string.h>

#include "base/memory.h"
#include "model/model.h"

struct kvq_float_weights {
    pthread_mutex_t lock; /* of what follows */
    uint32_t n_users;
    kvq_weights weights;
    float *values; /* what was quantized, one weight after the other; their sizes keep each on a cache line of its own */
};

pykvq_status kvq_float_weights_create(kvq_float_weights **out) {
    KVQ_TRY(kvq_alloc_array((void **)out, 1, sizeof **out, "model"));
    pthread_mutex_init(&(*out)->lock, NULL);
    return PYKVQ_OK;
}

void kvq_float_weights_destroy(kvq_float_weights *floats) {
    if (floats == NULL)
        return;
    pthread_mutex_destroy(&floats->lock);
    kvq_free(floats, sizeof *floats);
}

static pykvq_status add_bytes(void *n_bytes, kvq_weight *w) {
    if (w->type->block_elements > 1)
        *(size_t *)n_bytes += (size_t)w->n_in * w->n_out * sizeof(float);
    return PYKVQ_OK;
}

size_t kvq_model_float_bytes(const pykvq_model *m) {
    kvq_weights weights = m->weights;
    size_t n_bytes = 0;
    kvq_weights_each(&weights, add_bytes, &n_bytes);
    return n_bytes;
}

static pykvq_status expand(void *next, kvq_weight *w) {
    float **values = next;
    size_t n = (size_t)w->n_in * w->n_out;
    if (w->type->block_elements == 1)
        return PYKVQ_OK;
    w->type->dequantize(w->data, *values, n);
    w->type = kvq_wtype_find(0); /* F32 */
    w->data = (const uint8_t *)*values;
    *values += n;
    return PYKVQ_OK;
}

static void release(const pykvq_model *m) {
    kvq_float_weights *f = m->floats;
    kvq_free(f->values, kvq_model_float_bytes(m));
    kvq_free(f->weights.layers, f->weights.n_layer * sizeof(kvq_layer));
    f->values = NULL;
    f->weights.layers = NULL;
}

static pykvq_status make(const pykvq_model *m) {
    kvq_float_weights *f = m->floats;
    f->weights = m->weights;
    KVQ_TRY(kvq_alloc_array((void **)&f->weights.layers, m->h.n_layer, sizeof(kvq_layer), "weight table"));
    memcpy(f->weights.layers, m->weights.layers, m->h.n_layer * sizeof(kvq_layer));
    pykvq_status status = kvq_alloc_array((void **)&f->values, kvq_model_float_bytes(m), 1, "weights as float32");
    if (status != PYKVQ_OK) {
        release(m);
        return status;
    }
    float *next = f->values;
    return kvq_weights_each(&f->weights, expand, &next);
}

pykvq_status kvq_model_take_floats(const pykvq_model *m, const kvq_weights **out) {
    kvq_float_weights *f = m->floats;
    pthread_mutex_lock(&f->lock);
    pykvq_status status = f->n_users == 0 ? make(m) : PYKVQ_OK;
    if (status == PYKVQ_OK) {
        f->n_users++;
        *out = &f->weights;
    }
    pthread_mutex_unlock(&f->lock);
    return status;
}

void kvq_model_release_floats(const pykvq_model *m) {
    kvq_float_weights *f = m->floats;
    pthread_mutex_lock(&f->lock);
    if (--f->n_users == 0)
        release(m);
    pthread_mutex_unlock(&f->lock);
}
