/*
 * A step as a graph: its operations are captured, then launched as one. The graph of a decode step (one token per sequence)
 * is kept and replayed: tokens, positions, page tables and the units of attention are read from device memory, so nothing
 * in it changes from step to step.
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

void upload_arrays(cuda_backend *c, uint32_t variants) {
    const kvq_batch *batch = c->batch;
    upload(c, c->device.tokens, c->host.tokens, batch->n_tokens * sizeof(int32_t));
    upload(c, c->device.positions, c->host.positions, batch->n_tokens * sizeof(uint32_t));
    upload(c, c->device.logit_rows, c->host.logit_rows, batch->n_logits * sizeof(uint32_t));
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        if (c->n_tables[group] == 0)
            continue;
        upload(c, c->device.pages[group], c->host.pages[group], batch->n_tokens * sizeof(uint32_t));
        upload(c, c->device.tables[group], c->host.tables[group], c->n_tables[group] * sizeof(uint32_t));
    }
    for (uint32_t i = 0; i < c->n_variants; i++) {
        variant *v = &c->variants[i];
        if (!(variants >> i & 1))
            continue;
        *v->host_n_units = plan_units(&v->shape, batch, c->tables_at[v->shape.group], v->host_units, c->max_units);
        if (*v->host_n_units == 0)
            c->refusal = "attention: more units than the backend was made for";
        upload(c, v->n_units, v->host_n_units, sizeof(uint32_t));
        upload(c, v->units, v->host_units, *v->host_n_units * sizeof(attend_unit));
    }
    upload(c, c->device.jobs, c->host.jobs, c->n_jobs * sizeof(encode_job));
}

bool is_decode(const kvq_batch *batch) {
    return batch->n_tokens == batch->n_spans && batch->n_logits == batch->n_tokens && batch->n_tokens <= LINEAR_MAX_ROWS;
}

/* Ends the capture; launches what was captured or kept. */
void run_graph(cuda_backend *c, bool run) {
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = c->replay != NULL ? c->replay->exec : NULL;
    uint32_t variants = c->replay != NULL ? c->replay->variants : c->variants_used;
    if (c->replay == NULL) {
        flush_norm(c);
        note(c, cudaStreamEndCapture(c->stream, &graph));
        if (c->error == cudaSuccess && run)
            note(c, cudaGraphInstantiate(&exec, graph, 0));
    }
    if (run && c->error == cudaSuccess)
        upload_arrays(c, variants);
    if (run && c->error == cudaSuccess && c->refusal == NULL) {
        note(c, cudaGraphLaunch(exec, c->stream));
        run_encodes(c);
        note(c, cudaMemcpyAsync(c->host.n_bad, c->device.n_bad, sizeof *c->host.n_bad, cudaMemcpyDeviceToHost, c->stream));
    }
    note(c, cudaStreamSynchronize(c->stream));
    if (run && c->error == cudaSuccess)
        c->base.n_bad_elements = *c->host.n_bad;
    if (c->replay == NULL && exec != NULL) {
        bool keep = is_decode(c->batch) && c->error == cudaSuccess && c->refusal == NULL && c->n_graphs < MAX_GRAPHS;
        if (keep)
            c->graphs[c->n_graphs++] = kept_graph{exec, c->batch->n_tokens, c->batch->n_logits, variants};
        else
            cudaGraphExecDestroy(exec);
    }
    if (graph != NULL)
        cudaGraphDestroy(graph);
}

} // namespace

pykvq_status op_step_begin(kvq_backend *be, const kvq_batch *batch) {
    cuda_backend *c = cuda_of(be);
    KVQ_TRY(fill_arrays(c, batch));
    c->batch = batch;
    c->error = cudaSuccess;
    c->refusal = NULL;
    c->n_jobs = c->n_encodes = c->variants_used = 0;
    c->norm.y = NULL;
    c->replay = NULL;
    for (uint32_t i = 0; is_decode(batch) && i < c->n_graphs; i++)
        if (c->graphs[i].n_tokens == batch->n_tokens && c->graphs[i].n_logits == batch->n_logits)
            c->replay = &c->graphs[i];
    if (c->replay == NULL)
        note(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeRelaxed));
    return PYKVQ_OK;
}

pykvq_status op_step_end(kvq_backend *be, bool run) {
    cuda_backend *c = cuda_of(be);
    run_graph(c, run);
    c->batch = NULL;
    if (c->error != cudaSuccess)
        return fail(PYKVQ_E_DEVICE, "GPU: %s", cudaGetErrorString(c->error));
    return c->refusal == NULL ? PYKVQ_OK : fail(PYKVQ_E_UNSUPPORTED, "%s", c->refusal);
}
