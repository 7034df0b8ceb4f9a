/*
 * A decode step (one token per sequence) is a graph, captured once per number of sequences and replayed: tokens, positions,
 * page tables and the units of attention are read from device memory, so nothing in it changes from step to step. Any other
 * step is launched as its operations come: the GPU is busy with one while the next is asked for.
 */
#include "backend.cuh"

namespace {

void upload(cuda_backend *c, void *device, const void *host, size_t n_bytes) {
    if (n_bytes > 0)
        note(c, cudaMemcpyAsync(device, host, n_bytes, cudaMemcpyHostToDevice, c->stream));
}

/* What the graph reads, into pinned memory. */
pykvq_status fill_arrays(cuda_backend *c, const kvq_batch *batch) {
    if (batch->n_spans > c->limits.n_seq)
        return fail(PYKVQ_E_ARGUMENT, "step: %u sequences, the backend was made for %u", batch->n_spans, c->limits.n_seq);
    memcpy(c->host.tokens, batch->tokens, batch->n_tokens * sizeof(int32_t));
    memcpy(c->host.positions, batch->positions, batch->n_tokens * sizeof(uint32_t));
    memcpy(c->host.logit_rows, batch->logit_rows, batch->n_logits * sizeof(uint32_t));
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < batch->n_spans; i++) {
            const kvq_span *span = &batch->spans[i];
            uint32_t n_tiles = (span->pos + span->n_tokens - 1) / KVQ_TILE + 1;
            c->tables_at[group][i] = n;
            if (span->pages[group] == NULL)
                continue;
            memcpy(c->host.tables[group] + n, span->pages[group], n_tiles * sizeof(uint32_t));
            for (uint32_t t = 0; t < span->n_tokens; t++)
                c->host.pages[group][span->first + t] = span->pages[group][(span->pos + t) / KVQ_TILE];
            n += n_tiles;
        }
        c->n_tables[group] = n;
    }
    return PYKVQ_OK;
}

void upload_arrays(cuda_backend *c) {
    upload(c, c->device.tokens, c->host.tokens, c->host.rows_bytes);
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++)
        upload(c, c->device.tables[group], c->host.tables[group], c->n_tables[group] * sizeof(uint32_t));
}

bool is_decode(const kvq_batch *batch) {
    return batch->n_tokens == batch->n_spans && batch->n_logits == batch->n_tokens && batch->n_tokens <= LINEAR_MAX_ROWS;
}

/* The step that was captured becomes one to replay. */
void keep_graph(cuda_backend *c, bool run) {
    cudaGraph_t graph = NULL;
    kept_graph kept = {NULL, c->batch->n_tokens, c->batch->n_logits, c->variants_used};
    note(c, cudaStreamEndCapture(c->stream, &graph));
    if (run && c->error == cudaSuccess && c->refusal == NULL)
        note(c, cudaGraphInstantiate(&kept.exec, graph, 0));
    if (kept.exec != NULL) {
        c->replay = &c->graphs[c->n_graphs++];
        *c->replay = kept;
    }
    if (graph != NULL)
        cudaGraphDestroy(graph);
}

void replay_graph(cuda_backend *c) {
    upload_arrays(c);
    for (uint32_t i = 0; i < c->n_variants; i++)
        if (c->replay->variants >> i & 1)
            upload_units(c, &c->variants[i]);
    if (c->error == cudaSuccess && c->refusal == NULL)
        note(c, cudaGraphLaunch(c->replay->exec, c->stream));
}

} // namespace

void upload_units(cuda_backend *c, variant *v) {
    *v->host_n_units = plan_units(&v->shape, c->batch, c->tables_at[v->shape.group], v->host_units, c->max_units);
    if (*v->host_n_units == 0)
        c->refusal = "attention: more units than the backend was made for";
    upload(c, v->n_units, v->host_n_units, UNITS_AT + *v->host_n_units * sizeof(attend_unit));
}

pykvq_status op_step_begin(kvq_backend *be, const kvq_batch *batch) {
    cuda_backend *c = cuda_of(be);
    KVQ_TRY(fill_arrays(c, batch));
    c->batch = batch;
    c->error = cudaSuccess;
    c->refusal = NULL;
    c->n_jobs = c->n_encodes = c->variants_used = 0;
    c->norm.y = c->gated.y = NULL;
    c->replay = NULL;
    for (uint32_t i = 0; is_decode(batch) && i < c->n_graphs; i++)
        if (c->graphs[i].n_tokens == batch->n_tokens && c->graphs[i].n_logits == batch->n_logits)
            c->replay = &c->graphs[i];
    cudaGetLastError(); /* of what was before; launches that fail are found at the end of the step */
    c->captures = is_decode(batch) && c->replay == NULL && c->n_graphs < MAX_GRAPHS;
    if (c->captures)
        note(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeRelaxed));
    else if (c->replay == NULL)
        upload_arrays(c);
    return PYKVQ_OK;
}

pykvq_status op_step_end(kvq_backend *be, bool run) {
    cuda_backend *c = cuda_of(be);
    if (c->replay == NULL)
        flush_pending(c);
    if (c->captures)
        keep_graph(c, run);
    if (run && c->error == cudaSuccess && c->replay != NULL)
        replay_graph(c);
    if (run && c->error == cudaSuccess && c->refusal == NULL) {
        upload(c, c->device.jobs, c->host.jobs, c->n_jobs * sizeof(encode_job));
        run_encodes(c);
        note(c, cudaMemcpyAsync(c->host.n_bad, c->device.n_bad, sizeof *c->host.n_bad, cudaMemcpyDeviceToHost, c->stream));
    }
    note(c, cudaGetLastError());
    note(c, cudaStreamSynchronize(c->stream));
    if (run && c->error == cudaSuccess)
        c->base.n_bad_elements = *c->host.n_bad;
    c->batch = NULL;
    if (c->error != cudaSuccess)
        return fail_cuda("GPU", c->error);
    return c->refusal == NULL ? PYKVQ_OK : fail(PYKVQ_E_UNSUPPORTED, "%s", c->refusal);
}
