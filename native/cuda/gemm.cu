/*
 * Matrix products of many rows by cuBLASLt: halves in, sums in f32. The library is looked for when a backend is created and
 * stays loaded; without it everything goes through linear.cu.
 */
#include "gemm.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "cublaslt.h"

namespace {

enum { MAX_CHOICES = 64 };

/* What cuBLASLt proposed for products of one shape. */
struct choice {
    gemm_args shape; /* without pointers and scale */
    lt_layout w, x, y;
    lt_algo algo;
};

/* One of its versions with every function that is used, or NULL. */
bool load(const char *file, lt_library *lt) {
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return false;
    bool has_all = true;
#define FIND(name, parameters)                                                                                             \
    *(void **)&lt->name = dlsym(library, "cublasLt" #name);                                                                \
    has_all = has_all && lt->name != NULL;
    LT_FUNCTIONS(FIND)
#undef FIND
    return has_all;
}

const lt_library *find() {
    static lt_library lt;
    static const bool found = load("libcublasLt.so.13", &lt) || load("libcublasLt.so.12", &lt);
    return found ? &lt : NULL;
}

} // namespace

struct gemm {
    const lt_library *lt;
    lt_handle handle;
    lt_desc desc; /* w transposed, x as it is: both have their columns in n_in */
    lt_preference preference;
    void *workspace;
    choice choices[MAX_CHOICES];
    uint32_t n_choices, next; /* the oldest makes room */
};

bool gemm_found() {
    return find() != NULL;
}

pykvq_status gemm_create(gemm **out) {
    *out = NULL;
    if (!gemm_found())
        return PYKVQ_OK;
    gemm *g = (gemm *)calloc(1, sizeof *g);
    if (g == NULL)
        return fail(PYKVQ_E_MEMORY, "cuBLASLt: out of host memory");
    *out = g;
    g->lt = find();
    KVQ_TRY(take(GEMM_WORKSPACE_BYTES, "workspace of cuBLASLt", &g->workspace));
    const int32_t transpose = LT_TRANSPOSE;
    const uint64_t workspace_bytes = GEMM_WORKSPACE_BYTES;
    const uint32_t alignment = 16;
    int status = g->lt->Create(&g->handle);
    if (status == LT_SUCCESS)
        status = g->lt->MatmulDescCreate(&g->desc, LT_COMPUTE_32F, LT_F32);
    if (status == LT_SUCCESS)
        status = g->lt->MatmulDescSetAttribute(g->desc, LT_DESC_TRANSA, &transpose, sizeof transpose);
    if (status == LT_SUCCESS)
        status = g->lt->MatmulPreferenceCreate(&g->preference);
    if (status == LT_SUCCESS)
        status = g->lt->MatmulPreferenceSetAttribute(g->preference, LT_PREFER_WORKSPACE, &workspace_bytes,
                                                     sizeof workspace_bytes);
    for (int which : {LT_PREFER_ALIGN_C, LT_PREFER_ALIGN_D})
        if (status == LT_SUCCESS)
            status = g->lt->MatmulPreferenceSetAttribute(g->preference, which, &alignment, sizeof alignment);
    return status == LT_SUCCESS ? PYKVQ_OK
                                : fail(status == LT_NO_MEMORY ? PYKVQ_E_MEMORY : PYKVQ_E_DEVICE,
                                       "cuBLASLt: it does not start, status %d", status);
}

static void release(const lt_library *lt, choice *c) {
    for (lt_layout layout : {c->w, c->x, c->y})
        if (layout != NULL)
            lt->MatrixLayoutDestroy(layout);
    memset(c, 0, sizeof *c);
}

void gemm_destroy(gemm *g) {
    if (g == NULL)
        return;
    for (uint32_t i = 0; i < g->n_choices; i++)
        release(g->lt, &g->choices[i]);
    if (g->preference != NULL)
        g->lt->MatmulPreferenceDestroy(g->preference);
    if (g->desc != NULL)
        g->lt->MatmulDescDestroy(g->desc);
    if (g->handle != NULL)
        g->lt->Destroy(g->handle);
    cudaFree(g->workspace);
    free(g);
}

static bool same_shape(const gemm_args &a, const gemm_args &b) {
    return a.n_out == b.n_out && a.n_rows == b.n_rows && a.n_in == b.n_in && a.ld == b.ld && a.y_half == b.y_half &&
           a.add == b.add;
}

/* To cuBLASLt a row of ours is a column: y^T (n_out, n_rows) = w (n_in, n_out)^T x (n_in, n_rows). */
static bool choose(const gemm *g, const gemm_args &a, choice *c) {
    lt_result result = {};
    int n_found = 0;
    c->shape = a;
    bool found = g->lt->MatrixLayoutCreate(&c->w, LT_F16, a.n_in, a.n_out, a.n_in) == LT_SUCCESS &&
                 g->lt->MatrixLayoutCreate(&c->x, LT_F16, a.n_in, a.n_rows, a.n_in) == LT_SUCCESS &&
                 g->lt->MatrixLayoutCreate(&c->y, a.y_half ? LT_F16 : LT_F32, a.n_out, a.n_rows, a.ld) == LT_SUCCESS &&
                 g->lt->MatmulAlgoGetHeuristic(g->handle, g->desc, c->w, c->x, c->y, c->y, g->preference, 1, &result,
                                               &n_found) == LT_SUCCESS &&
                 n_found == 1 && result.status == LT_SUCCESS;
    c->algo = result.algo;
    return found;
}

static const choice *choice_of(gemm *g, const gemm_args &a) {
    for (uint32_t i = 0; i < g->n_choices; i++)
        if (same_shape(g->choices[i].shape, a))
            return &g->choices[i];
    choice fresh = {};
    if (!choose(g, a, &fresh)) {
        release(g->lt, &fresh);
        return NULL;
    }
    choice *c = &g->choices[g->next];
    release(g->lt, c);
    *c = fresh;
    g->next = (g->next + 1) % MAX_CHOICES;
    g->n_choices += g->n_choices < MAX_CHOICES;
    return c;
}

const char *gemm_multiply(gemm *g, const gemm_args &a, cudaStream_t stream) {
    const choice *c = choice_of(g, a);
    if (c == NULL)
        return "matrix product: cuBLASLt has no kernel for this shape";
    const float beta = a.add ? 1.0f : 0.0f;
    int status = g->lt->Matmul(g->handle, g->desc, &a.scale, a.w, c->w, a.x, c->x, &beta, a.y, c->y, a.y, c->y, &c->algo,
                               g->workspace, GEMM_WORKSPACE_BYTES, stream);
    return status == LT_SUCCESS ? NULL : "matrix product: cuBLASLt failed";
}
