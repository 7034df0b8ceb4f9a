/*
 * The forward pass of every architecture, in a straight line. Where they differ, a weight is absent (no bias, no norm) or a
 * number says so (scales, caps, windows); arch.c has the rows.
 */
#include "model/forward.h"

static const kvq_weight *present(const kvq_weight *w) {
    return w->data != NULL ? w : NULL;
}

static void attention(const kvq_forward *f, const kvq_batch *batch, uint32_t i) {
    const kvq_backend_ops *op = f->be->ops;
    const kvq_hparams *h = &f->model->h;
    const kvq_layer *l = &f->weights.layers[i];
    uint32_t n = batch->n_tokens, group = l->windowed;

    op->norm(f->be, f->x, &l->attn_norm, h->norm_eps, n, false, f->h);
    op->project(f->be, f->h, n, 3, (const kvq_weight *[]){&l->q, &l->k, &l->v},
                (const kvq_weight *[]){present(&l->q_bias), present(&l->k_bias), present(&l->v_bias)}, false,
                (float *[]){f->q, f->k, f->v});
    op->store(f->be, &(kvq_heads){
                         .n_head = h->n_head,
                         .n_head_kv = h->n_head_kv,
                         .head_dim = h->head_dim,
                         .q = f->q,
                         .k = f->k,
                         .v = f->v,
                         .q_norm = present(&l->q_norm),
                         .k_norm = present(&l->k_norm),
                         .norm_eps = h->norm_eps,
                         .rope = !l->roped     ? &f->rope_none
                                 : l->windowed ? &f->rope_local
                                               : &f->rope_global,
                         .kv = &f->kv[i],
                         .group = group,
                     });
    op->attend(f->be, &(kvq_attention){
                          .n_head = h->n_head,
                          .q = f->q,
                          .o = f->o,
                          .scale = h->attn_scale,
                          .softcap = h->attn_softcap,
                          .window = l->windowed ? h->n_window : 0,
                          .kv = &f->kv[i],
                          .group = group,
                      });
}

/* x += w . in, by way of the norm of architectures that have one there */
static void add_projected(const kvq_forward *f, uint32_t n, const float *in, const kvq_weight *w, const kvq_weight *bias,
                          const kvq_weight *post_norm) {
    const kvq_backend_ops *op = f->be->ops;
    bool direct = present(post_norm) == NULL;
    op->project(f->be, in, n, 1, &w, (const kvq_weight *[]){present(bias)}, direct, (float *[]){direct ? f->x : f->h});
    if (!direct)
        op->norm(f->be, f->h, post_norm, f->model->h.norm_eps, n, true, f->x);
}

static void feed_forward(const kvq_forward *f, uint32_t n, const kvq_layer *l) {
    const kvq_backend_ops *op = f->be->ops;
    op->norm(f->be, f->x, &l->ffn_norm, f->model->h.norm_eps, n, false, f->h);
    op->gated(f->be, f->h, n, &l->gate, &l->up, f->model->arch->activation, f->ff);
    add_projected(f, n, f->ff, &l->down, &(kvq_weight){0}, &l->post_ffn_norm);
}

pykvq_status kvq_forward_run(const kvq_forward *f, const kvq_batch *batch, const atomic_bool *cancel) {
    const kvq_backend_ops *op = f->be->ops;
    const kvq_hparams *h = &f->model->h;
    uint32_t n = batch->n_tokens;

    op->embed(f->be, &f->weights.embed, h->embed_scale, f->x);
    for (uint32_t i = 0; i < h->n_layer; i++) {
        const kvq_layer *l = &f->weights.layers[i];
        if (atomic_load_explicit(cancel, memory_order_relaxed))
            return kvq_fail(PYKVQ_E_CANCELLED, "step: cancelled");
        attention(f, batch, i);
        if (i + 1 == h->n_layer) { /* from here on only the rows whose logits are wanted matter */
            n = batch->n_logits;
            op->gather(f->be, f->x, h->n_embd, batch->logit_rows, n, f->x);
            op->gather(f->be, f->o, h->n_head * h->head_dim, batch->logit_rows, n, f->o);
        }
        if (n == 0)
            return PYKVQ_OK;
        add_projected(f, n, f->o, &l->o, &l->o_bias, &l->post_attn_norm);
        feed_forward(f, n, l);
    }
    op->norm(f->be, f->x, &f->weights.output_norm, h->norm_eps, n, false, f->h);
    op->project(f->be, f->h, n, 1, (const kvq_weight *[]){&f->weights.output}, (const kvq_weight *[]){NULL}, false,
                (float *[]){f->logits});
    if (h->logit_softcap > 0.0f)
        op->softcap(f->be, h->logit_softcap, (size_t)n * h->n_vocab, f->logits);
    return PYKVQ_OK;
}
