/* The CUDA backend's life, memory and weights, and the table of its operations. */
#include "backend.cuh"

namespace {

/* ---- memory ---- */

pykvq_status op_alloc(kvq_backend *be, size_t n_bytes, const char *what, void **out) {
    return take(n_bytes, what, out);
}

void op_free(kvq_backend *, void *memory, size_t) {
    cudaFree(memory);
}

pykvq_status op_copy(kvq_backend *, void *dst, const void *src, size_t n_bytes) {
    return copy(dst, src, n_bytes);
}

/* ---- weights ---- */

void op_weight_free(kvq_backend *, kvq_weight *w) {
    weight_memory *memory = (weight_memory *)w->device;
    if (memory != NULL && memory->is_own)
        cudaFree(memory->memory);
    free(memory);
    w->device = NULL;
}

pykvq_status op_weight_load(kvq_backend *be, kvq_weight *w) {
    cuda_backend *c = cuda_of(be);
    weight_memory *memory = (weight_memory *)calloc(1, sizeof *memory);
    w->device = memory;
    if (memory == NULL)
        return fail(PYKVQ_E_MEMORY, "weights: out of host memory");
    size_t n_bytes = weight_bytes(w);
    memory->is_own = n_bytes > c->limits.n_weight_bytes - c->n_weight_bytes;
    if (memory->is_own)
        KVQ_TRY(take(n_bytes, "weights", &memory->memory));
    else {
        memory->memory = c->weights + c->n_weight_bytes;
        c->n_weight_bytes += n_bytes;
    }
    return load_weight(w, c->staging, c->stream, memory);
}

/* ---- life ---- */

void op_destroy(kvq_backend *be) {
    cuda_backend *c = cuda_of(be);
    for (uint32_t i = 0; i < c->n_graphs; i++)
        cudaGraphExecDestroy(c->graphs[i].exec);
    cudaFree(c->units);
    cudaFreeHost(c->host_units);
    cudaFree(c->partial);
    cudaFree(c->partial_max);
    cudaFree(c->arrived);
    cudaFree(c->staged);
    cudaFree(c->prefill_partial);
    cudaFree(c->prefill_max_sum);
    cudaFreeHost(c->host.tokens);
    cudaFree(c->device.tokens);
    cudaFree(c->ropes[0].device);
    cudaFree(c->fragments);
    cudaFree(c->linear_scratch);
    cudaFree(c->staging);
    cudaFree(c->weights);
    gemm_destroy(c->gemm);
    cudaFree(c->halfs);
    cudaFree(c->gate_up[0]);
    cudaFree(c->gate_up[1]);
    if (c->stream != NULL)
        cudaStreamDestroy(c->stream);
    free(c->encodes);
    free(c);
}

const kvq_backend_ops ops = {
    .name = "cuda",
    .host_memory = false,
    .destroy = op_destroy,
    .alloc = op_alloc,
    .free = op_free,
    .copy = op_copy,
    .weight_load = op_weight_load,
    .weight_free = op_weight_free,
    .kv_load = op_kv_load,
    .kv_free = op_kv_free,
    .page_read = op_page_read,
    .page_write = op_page_write,
    .step_begin = op_step_begin,
    .step_end = op_step_end,
    .embed = op_embed,
    .norm = op_norm,
    .project = op_project,
    .gated = op_gated,
    .gather = op_gather,
    .softcap = op_softcap,
    .store = op_store,
    .attend = op_attend,
    .encode = op_encode,
};

/* ---- scratch ---- */

size_t partial_bytes(const cuda_backend *c) { /* units of 16 columns */
    return (size_t)c->max_units * 16 * c->limits.max_head_dim * sizeof(float);
}

size_t partial_max_bytes(const cuda_backend *c) {
    return (size_t)c->max_units * 16 * 2 * sizeof(float);
}

/* Carves the arrays of a step out of one block; returns its size. What has an entry per row comes first and is copied at
 * once. */
size_t lay_out(const cuda_backend *c, uint8_t *memory, step_arrays *a) {
    const kvq_backend_limits *l = &c->limits;
    size_t row = round_256(l->n_batch * sizeof(uint32_t)), at = 0;
    size_t table = round_256((size_t)l->n_seq * l->n_tiles * sizeof(uint32_t));
    a->tokens = (int32_t *)memory;
    at += row;
    a->positions = (uint32_t *)(memory + at);
    at += row;
    a->logit_rows = (uint32_t *)(memory + at);
    at += row;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++, at += row)
        a->pages[group] = (uint32_t *)(memory + at);
    a->rows_bytes = at;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++, at += table)
        a->tables[group] = (uint32_t *)(memory + at);
    a->n_bad = (unsigned long long *)(memory + at);
    at += 256;
    a->jobs = (encode_job *)(memory + at);
    return at + round_256(c->max_jobs * sizeof(encode_job));
}

/* What the driver takes when kernels run for the first time and steps become graphs: 6 MiB on an H200. */
enum { KERNEL_BYTES = 8 << 20 };

struct scratch_sizes {
    size_t arrays, fragments, ropes, halfs, gate_up;
};

size_t halfs_bytes(const cuda_backend *c, uint32_t n) { /* of n columns, for all rows */
    return (size_t)c->limits.n_batch * round_step(n) * sizeof(__half);
}

/* The widest square matrix as halves, within bounds; 128 rows of the widest at least. */
size_t staging_bytes(const cuda_backend *c) {
    size_t row = round_step(c->limits.max_n_in) * sizeof(__half), n = row * round_step(c->limits.max_n_in);
    n = n < STAGING_BYTES ? STAGING_BYTES : n > MAX_EXPANDED_BYTES ? MAX_EXPANDED_BYTES : n;
    return n < row * GEMM_TILE ? row * GEMM_TILE : n;
}

/* Fills in what follows from the limits, and the sizes. */
scratch_sizes size_scratch(cuda_backend *c) {
    const kvq_backend_limits *l = &c->limits;
    scratch_sizes s = {};
    c->max_jobs = KVQ_MAX_GROUPS * (l->n_batch / KVQ_TILE + 1 + l->n_seq);
    c->max_units = plan_max_units(l, MAX_BLOCKS);
    c->max_encodes = 1024;
    s.arrays = lay_out(c, NULL, &c->device);
    s.fragments = linear_fragments_bytes(l->max_n_in);
    s.ropes = MAX_ROPES * KVQ_MAX_HEAD_DIM * sizeof(float);
    c->staging_bytes = STAGING_BYTES;
    if (gemm_found()) {
        c->staging_bytes = staging_bytes(c);
        s.halfs = halfs_bytes(c, l->max_n_in);
        s.gate_up = halfs_bytes(c, l->max_n_ff);
        c->n_scratch_bytes = taken_bytes(s.halfs) + 2 * taken_bytes(s.gate_up) + taken_bytes(GEMM_WORKSPACE_BYTES);
    }
    const size_t others[] = {s.arrays,
                             s.fragments,
                             LINEAR_SCRATCH_BYTES,
                             s.ropes,
                             c->staging_bytes,
                             MAX_VARIANTS * units_bytes(c),
                             partial_bytes(c),
                             partial_max_bytes(c),
                             c->max_units * sizeof(uint32_t),
                             prefill_staged_bytes(l),
                             prefill_partial_bytes(l),
                             prefill_max_sum_bytes(l),
                             KERNEL_BYTES};
    for (size_t n_bytes : others)
        c->n_scratch_bytes += taken_bytes(n_bytes);
    return s;
}

pykvq_status prepare(cuda_backend *c) {
    scratch_sizes s = size_scratch(c);
    c->encodes = (decltype(c->encodes))calloc(c->max_encodes, sizeof *c->encodes);
    if (c->encodes == NULL)
        return fail(PYKVQ_E_MEMORY, "CUDA backend: out of host memory");
    void *memory;
    KVQ_TRY(take(s.arrays, "batch", &memory));
    lay_out(c, (uint8_t *)memory, &c->device);
    if (cudaMallocHost(&memory, s.arrays) != cudaSuccess)
        return fail(PYKVQ_E_MEMORY, "batch: no %zu bytes of pinned host memory", s.arrays);
    lay_out(c, (uint8_t *)memory, &c->host);
    KVQ_TRY(take(s.fragments, "activation fragments", (void **)&c->fragments));
    KVQ_TRY(take(LINEAR_SCRATCH_BYTES, "partial products", (void **)&c->linear_scratch));
    KVQ_TRY(take(c->limits.n_weight_bytes, "weights", (void **)&c->weights));
    KVQ_TRY(take(c->staging_bytes, "weight staging", (void **)&c->staging));
    KVQ_TRY(gemm_create(&c->gemm));
    KVQ_TRY(take(s.halfs, "activations of prefill", (void **)&c->halfs));
    for (__half *&half : c->gate_up)
        KVQ_TRY(take(s.gate_up, "activations of prefill", (void **)&half));
    KVQ_TRY(take(MAX_VARIANTS * units_bytes(c), "units of attention", (void **)&c->units));
    KVQ_TRY(take(partial_bytes(c), "partial attention", (void **)&c->partial));
    KVQ_TRY(take(partial_max_bytes(c), "partial attention", (void **)&c->partial_max));
    KVQ_TRY(take(c->max_units * sizeof(uint32_t), "partial attention", (void **)&c->arrived));
    KVQ_TRY(take(prefill_staged_bytes(&c->limits), "staged tiles", (void **)&c->staged));
    KVQ_TRY(take(prefill_partial_bytes(&c->limits), "partial attention", (void **)&c->prefill_partial));
    KVQ_TRY(take(prefill_max_sum_bytes(&c->limits), "partial attention", (void **)&c->prefill_max_sum));
    if (cudaMallocHost(&c->host_units, MAX_VARIANTS * units_bytes(c)) != cudaSuccess)
        return fail(PYKVQ_E_MEMORY, "units of attention: no %zu bytes of pinned host memory",
                    MAX_VARIANTS * units_bytes(c));
    KVQ_TRY(take(s.ropes, "RoPE frequencies", &memory));
    for (uint32_t i = 0; i < MAX_ROPES; i++)
        c->ropes[i].device = (float *)memory + i * KVQ_MAX_HEAD_DIM;
    cudaError_t error = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    return error == cudaSuccess ? PYKVQ_OK : fail_cuda("CUDA stream", error);
}

/* ---- what the core calls ---- */

pykvq_status check_device() {
    int driver = 0, runtime = 0, n = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        return fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': no NVIDIA driver on this machine");
    cudaError_t error = cudaGetDeviceCount(&n);
    if (error == cudaErrorInsufficientDriver)
        return fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': the driver is for CUDA %d.%d, expected %d.%d or later",
                    driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (error != cudaSuccess || n == 0)
        return fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': no GPU: %s",
                    error != cudaSuccess ? cudaGetErrorString(error) : "none found");
    cudaDeviceProp p;
    cudaFuncAttributes attributes;
    error = cudaGetDeviceProperties(&p, 0);
    bool old = error == cudaSuccess && p.major < 8;
    if (error == cudaSuccess && !old)
        error = attend_attributes(128, &attributes);
    if (old || error == cudaErrorNoKernelImageForDevice)
        return fail(PYKVQ_E_UNSUPPORTED,
                    "device 'cuda': %s has compute capability %d.%d, which this build has no kernels for", p.name, p.major,
                    p.minor);
    if (error == cudaErrorDevicesUnavailable)
        return fail(PYKVQ_E_UNSUPPORTED,
                    "device 'cuda': the GPU is busy or unavailable: another process has it for itself");
    if (error == cudaErrorMemoryAllocation)
        return fail(PYKVQ_E_MEMORY, "device 'cuda': other processes hold its memory, there is no room to start");
    if (error != cudaSuccess)
        return fail(PYKVQ_E_DEVICE, "device 'cuda': %s; to use the GPU again, start a new process",
                    cudaGetErrorString(error));
    return PYKVQ_OK;
}

size_t scratch_bytes(const kvq_backend_limits *limits) {
    cuda_backend *c = (cuda_backend *)calloc(1, sizeof *c);
    if (c == NULL)
        return 0;
    c->limits = *limits;
    size_scratch(c);
    size_t n_bytes = c->n_scratch_bytes;
    free(c);
    return n_bytes;
}

pykvq_status create(const kvq_backend_limits *limits, kvq_backend **out) {
    *out = NULL;
    KVQ_TRY(check_device());
    if (limits->n_seq > MAX_SPANS)
        return fail(PYKVQ_E_UNSUPPORTED, "device 'cuda': %u sequences, the most is %d", limits->n_seq, MAX_SPANS);
    cuda_backend *c = (cuda_backend *)calloc(1, sizeof *c);
    if (c == NULL)
        return fail(PYKVQ_E_MEMORY, "CUDA backend: out of host memory");
    c->base.ops = &ops;
    c->limits = *limits;
    cudaDeviceGetAttribute(&c->n_sms, cudaDevAttrMultiProcessorCount, 0);
    pykvq_status status = prepare(c);
    if (status != PYKVQ_OK) {
        op_destroy(&c->base);
        return status;
    }
    *out = &c->base;
    return PYKVQ_OK;
}

pykvq_status memory(size_t *n_free, size_t *n_total) {
    cudaError_t error = cudaMemGetInfo(n_free, n_total);
    return error == cudaSuccess ? PYKVQ_OK : fail_cuda("device 'cuda'", error);
}

const kvq_cuda_library library = {check_device, create, scratch_bytes, check_kv, weight_bytes, taken_bytes, memory};

} // namespace

extern "C" __attribute__((visibility("default"))) const kvq_cuda_library *kvq_cuda_open(const kvq_cuda_host *host) {
    if (host->abi != KVQ_CUDA_ABI || host->limits_bytes != sizeof(kvq_backend_limits) ||
        host->ops_bytes != sizeof(kvq_backend_ops))
        return NULL;
    fail = host->fail;
    return &library;
}
