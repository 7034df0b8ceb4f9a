/*
 * Which backend. CUDA is a library of its own, loaded from beside this one when it is asked for, so that a machine without
 * it runs the same package.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "backend/cuda_library.h"

/* The path of a file beside the library that this code is in. */
static bool beside(const char *file, char *path, size_t n_path) {
    Dl_info info;
    if (dladdr((void *)kvq_device_find, &info) == 0 || info.dli_fname == NULL)
        return false;
    const char *slash = strrchr(info.dli_fname, '/');
    int n_folder = slash != NULL ? (int)(slash - info.dli_fname) + 1 : 0;
    return (size_t)snprintf(path, n_path, "%.*s%s", n_folder, info.dli_fname, file) < n_path;
}

static pykvq_status load_cuda(const kvq_cuda_library **out) {
    char path[PATH_MAX];
    if (!beside("libpykvq_cuda.so", path, sizeof path))
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': the folder of this library is not known");
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL); /* stays loaded: the same one each time */
    if (library == NULL)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': not in this build: %s", dlerror());
    kvq_cuda_open_function *open;
    *(void **)&open = dlsym(library, KVQ_CUDA_OPEN);
    kvq_cuda_host host = {KVQ_CUDA_ABI, sizeof(kvq_backend_limits), sizeof(kvq_backend_ops), kvq_fail};
    if (open == NULL || (*out = open(&host)) == NULL)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': %s was built for another version", path);
    return PYKVQ_OK;
}

static pykvq_status find_cuda(void) {
    const kvq_cuda_library *cuda;
    KVQ_TRY(load_cuda(&cuda));
    return cuda->check_device();
}

pykvq_status kvq_device_find(const char *name, kvq_device *out) {
    *out = KVQ_DEVICE_CPU;
    if (name == NULL || strcmp(name, "cpu") == 0)
        return PYKVQ_OK;
    bool is_auto = strcmp(name, "auto") == 0;
    if (!is_auto && strcmp(name, "cuda") != 0)
        return kvq_fail(PYKVQ_E_ARGUMENT, "device '%s': expected cpu, cuda or auto", name);
    pykvq_status status = find_cuda();
    if (status == PYKVQ_OK)
        *out = KVQ_DEVICE_CUDA;
    return is_auto && status == PYKVQ_E_UNSUPPORTED ? PYKVQ_OK : status;
}

pykvq_status kvq_backend_create(kvq_device device, const kvq_backend_limits *limits, kvq_backend **out) {
    if (device == KVQ_DEVICE_CPU)
        return kvq_cpu_backend_create(limits, out);
    const kvq_cuda_library *cuda;
    KVQ_TRY(load_cuda(&cuda));
    return cuda->create(limits, out);
}

size_t kvq_backend_scratch_bytes(kvq_device device, const kvq_backend_limits *limits) {
    const kvq_cuda_library *cuda;
    if (device == KVQ_DEVICE_CUDA && load_cuda(&cuda) == PYKVQ_OK)
        return cuda->scratch_bytes(limits);
    return kvq_cpu_backend_scratch_bytes(limits);
}

pykvq_status kvq_device_kv_check(kvq_device device, const kvq_codec *k, const kvq_codec *v, uint32_t head_dim) {
    if (device == KVQ_DEVICE_CPU)
        return kvq_cpu_kv_check(k, v);
    const kvq_cuda_library *cuda;
    KVQ_TRY(load_cuda(&cuda));
    return cuda->kv_check(k, v, head_dim);
}

size_t kvq_device_weight_bytes(kvq_device device, const kvq_weight *w) {
    const kvq_cuda_library *cuda;
    return device == KVQ_DEVICE_CUDA && load_cuda(&cuda) == PYKVQ_OK ? cuda->weight_bytes(w) : 0;
}

size_t kvq_device_taken_bytes(kvq_device device, size_t n_bytes) {
    const kvq_cuda_library *cuda;
    return device == KVQ_DEVICE_CUDA && load_cuda(&cuda) == PYKVQ_OK ? cuda->taken_bytes(n_bytes) : n_bytes;
}

pykvq_status kvq_device_memory(kvq_device device, size_t *n_free, size_t *n_total) {
    const kvq_cuda_library *cuda;
    if (device != KVQ_DEVICE_CUDA)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "device memory: only a GPU has its own");
    KVQ_TRY(load_cuda(&cuda));
    return cuda->memory(n_free, n_total);
}
