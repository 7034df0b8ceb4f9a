/* Sequences: a token list, how much of it is cached, and a page table per group. */
#include <string.h>

#include "base/memory.h"
#include "engine/engine.h"

static kvq_pool *pool_of(kvq_group *g, kvq_page page) {
    return page & KVQ_PAGE_CODED ? &g->coded_pool : &g->raw;
}

static void share_page(kvq_group *g, kvq_page page) {
    if (page != KVQ_PAGE_NONE)
        kvq_pool_share(pool_of(g, page), page & ~KVQ_PAGE_CODED);
}

static void release_page(kvq_group *g, kvq_page *page) {
    if (*page != KVQ_PAGE_NONE)
        kvq_pool_release(pool_of(g, *page), *page & ~KVQ_PAGE_CODED);
    *page = KVQ_PAGE_NONE;
}

/* ---- pages of a step ---- */

static pykvq_status pool_full(const pykvq_seq *seq, const char *what) {
    return kvq_fail(PYKVQ_E_FULL,
                    "page pool: no free %s page for token %u of a sequence; the engine was made for %u sequences", what,
                    seq->n_cached, seq->engine->layout.n_seq);
}

/* Another sequence reads this f16 page too: write to a copy. */
static pykvq_status unshare(pykvq_seq *seq, uint32_t group, kvq_page *page) {
    pykvq_engine *e = seq->engine;
    kvq_group *g = &e->groups[group];
    if (g->raw.n_refs[*page] == 1)
        return PYKVQ_OK;
    kvq_page copy = kvq_pool_take(&g->raw);
    if (copy == KVQ_PAGE_NONE)
        return pool_full(seq, "f16");
    for (uint32_t i = 0; i < e->forward.weights.n_layer; i++) {
        const kvq_kv_layer *kv = &e->forward.kv[i];
        size_t n_bytes = kvq_raw_head_halfs(kv) * kv->n_head_kv * sizeof(uint16_t);
        if (e->forward.weights.layers[i].windowed == group)
            KVQ_TRY(e->forward.be->ops->copy(e->forward.be, kvq_raw_k(kv, copy, 0), kvq_raw_k(kv, *page, 0), n_bytes));
    }
    kvq_pool_release(&g->raw, *page);
    *page = copy;
    return PYKVQ_OK;
}

static pykvq_status reserve_group(pykvq_seq *seq, uint32_t group, uint32_t n_new) {
    pykvq_engine *e = seq->engine;
    kvq_group *g = &e->groups[group];
    kvq_page *pages = seq->pages[group];
    uint32_t n_after = seq->n_cached + n_new;
    for (uint32_t tile = seq->n_cached / KVQ_TILE; tile < kvq_n_tiles(n_after); tile++) {
        if (pages[tile] != KVQ_PAGE_NONE)
            KVQ_TRY(unshare(seq, group, &pages[tile]));
        else if ((pages[tile] = kvq_pool_take(&g->raw)) == KVQ_PAGE_NONE)
            return pool_full(seq, "f16");
    }
    uint32_t tile = seq->n_settled[group], end = kvq_group_first_tail_tile(g, n_after);
    uint32_t first_seen = kvq_group_first_window_tile(g, n_after);
    for (tile = tile > first_seen ? tile : first_seen; g->coded && tile < end; tile++) {
        kvq_page coded = kvq_pool_take(&g->coded_pool);
        if (coded == KVQ_PAGE_NONE)
            return pool_full(seq, "encoded");
        e->leaving[group][e->n_leaving[group]++] = (kvq_leaving){seq, {pages[tile], coded | KVQ_PAGE_CODED, tile}};
    }
    return PYKVQ_OK;
}

pykvq_status kvq_seq_reserve(pykvq_seq *seq, uint32_t n_new) {
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++)
        if (seq->engine->groups[group].n_layer > 0)
            KVQ_TRY(reserve_group(seq, group, n_new));
    return PYKVQ_OK;
}

void kvq_seq_commit(pykvq_seq *seq, uint32_t n_new) {
    pykvq_engine *e = seq->engine;
    seq->n_cached += n_new;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        kvq_group *g = &e->groups[group];
        if (g->n_layer == 0)
            continue;
        for (uint32_t i = 0; i < e->n_leaving[group]; i++) {
            const kvq_leaving *leaving = &e->leaving[group][i];
            if (leaving->seq != seq)
                continue;
            release_page(g, &seq->pages[group][leaving->job.tile]);
            seq->pages[group][leaving->job.tile] = leaving->job.coded;
        }
        uint32_t settled = kvq_group_first_tail_tile(g, seq->n_cached);
        if (g->coded && seq->n_settled[group] < settled) /* after a rewind, tiles in the tail are encoded already */
            seq->n_settled[group] = settled;
        uint32_t first = kvq_group_first_window_tile(g, seq->n_cached);
        for (; seq->first_tile[group] < first; seq->first_tile[group]++)
            release_page(g, &seq->pages[group][seq->first_tile[group]]);
    }
}

void kvq_seq_abandon(pykvq_seq *seq) {
    pykvq_engine *e = seq->engine;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++)
        for (uint32_t tile = kvq_n_tiles(seq->n_cached); seq->pages[group] != NULL && tile < e->layout.n_tiles; tile++)
            release_page(&e->groups[group], &seq->pages[group][tile]);
}

/* Pages of one form that a group has free, or would have if this sequence gave up its own. */
static uint32_t n_available(const pykvq_seq *seq, uint32_t group, bool coded) {
    const kvq_group *g = &seq->engine->groups[group];
    const kvq_pool *pool = coded ? &g->coded_pool : &g->raw;
    uint32_t n = pool->n_free;
    for (uint32_t tile = 0; tile < seq->engine->layout.n_tiles; tile++) {
        kvq_page page = seq->pages[group][tile];
        if (page != KVQ_PAGE_NONE && ((page & KVQ_PAGE_CODED) != 0) == coded)
            n += pool->n_refs[page & ~KVQ_PAGE_CODED] == 1;
    }
    return n;
}

pykvq_status kvq_seq_replace_pages(pykvq_seq *seq, const uint32_t first_tile[KVQ_MAX_GROUPS], uint32_t n_tiles,
                                   const uint8_t *coded) {
    pykvq_engine *e = seq->engine;
    const uint8_t *next = coded;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        uint32_t n[2] = {0, 0};
        for (uint32_t tile = first_tile[group]; e->groups[group].n_layer > 0 && tile < n_tiles; tile++)
            n[*next++]++;
        if (n[0] > n_available(seq, group, false) || n[1] > n_available(seq, group, true))
            return pool_full(seq, n[0] > n_available(seq, group, false) ? "f16" : "encoded");
    }
    seq->n_cached = 0;
    kvq_seq_abandon(seq);
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        kvq_group *g = &e->groups[group];
        seq->first_tile[group] = first_tile[group];
        seq->n_settled[group] = g->sink_tiles > first_tile[group] ? g->sink_tiles : first_tile[group];
        for (uint32_t tile = first_tile[group]; g->n_layer > 0 && tile < n_tiles; tile++) {
            bool is_coded = *coded++;
            seq->pages[group][tile] = is_coded ? kvq_pool_take(&g->coded_pool) | KVQ_PAGE_CODED : kvq_pool_take(&g->raw);
            if (is_coded)
                seq->n_settled[group] = tile + 1;
        }
    }
    return PYKVQ_OK;
}

/* ---- making and freeing ---- */

void kvq_seq_free(pykvq_seq *seq) {
    const kvq_layout *layout = &seq->engine->layout;
    seq->n_cached = 0;
    kvq_seq_abandon(seq);
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++)
        kvq_free(seq->pages[group], layout->n_tiles * sizeof(kvq_page));
    kvq_free(seq->tokens, layout->n_ctx * sizeof(int32_t));
    kvq_free(seq, sizeof *seq);
}

static pykvq_status allocate_seq(pykvq_engine *e, pykvq_seq **out) {
    pykvq_seq *seq;
    if (e->n_open == e->layout.n_seq)
        return kvq_fail(PYKVQ_E_FULL, "engine: all %u sequences it was made for are open", e->layout.n_seq);
    KVQ_TRY(kvq_alloc_array((void **)&seq, 1, sizeof *seq, "sequence"));
    seq->engine = e;
    pykvq_status status = kvq_alloc_array((void **)&seq->tokens, e->layout.n_ctx, sizeof(int32_t), "sequence");
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS && status == PYKVQ_OK; group++) {
        status = kvq_alloc_array((void **)&seq->pages[group], e->layout.n_tiles, sizeof(kvq_page), "page table");
        for (uint32_t tile = 0; status == PYKVQ_OK && tile < e->layout.n_tiles; tile++)
            seq->pages[group][tile] = KVQ_PAGE_NONE;
        seq->n_settled[group] = e->groups[group].sink_tiles;
    }
    if (status != PYKVQ_OK) {
        kvq_seq_free(seq);
        return status;
    }
    e->seqs[e->n_open++] = seq;
    *out = seq;
    return PYKVQ_OK;
}

pykvq_status pykvq_seq_create(pykvq_engine *engine, pykvq_seq **out) {
    KVQ_TRY(kvq_engine_enter(engine));
    pykvq_status status = allocate_seq(engine, out);
    kvq_engine_leave(engine);
    return status;
}

pykvq_status pykvq_seq_destroy(pykvq_seq *seq) {
    if (seq == NULL)
        return PYKVQ_OK;
    pykvq_engine *e = seq->engine;
    KVQ_TRY(kvq_engine_enter(e));
    for (uint32_t i = 0; i < e->n_open; i++)
        if (e->seqs[i] == seq)
            e->seqs[i] = e->seqs[--e->n_open];
    kvq_seq_free(seq);
    kvq_engine_leave(e);
    return PYKVQ_OK;
}

static pykvq_status fork_seq(const pykvq_seq *seq, pykvq_seq **out) {
    pykvq_engine *e = seq->engine;
    pykvq_seq *twin;
    KVQ_TRY(allocate_seq(e, &twin));
    memcpy(twin->tokens, seq->tokens, seq->n_tokens * sizeof(int32_t));
    twin->n_tokens = seq->n_tokens;
    twin->n_cached = seq->n_cached;
    twin->keep_all_logits = seq->keep_all_logits;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        memcpy(twin->pages[group], seq->pages[group], e->layout.n_tiles * sizeof(kvq_page));
        twin->n_settled[group] = seq->n_settled[group];
        twin->first_tile[group] = seq->first_tile[group];
        for (uint32_t tile = 0; tile < e->layout.n_tiles; tile++)
            share_page(&e->groups[group], twin->pages[group][tile]);
    }
    *out = twin;
    return PYKVQ_OK;
}

pykvq_status pykvq_seq_fork(pykvq_seq *seq, pykvq_seq **out) {
    KVQ_TRY(kvq_engine_enter(seq->engine));
    pykvq_status status = fork_seq(seq, out);
    kvq_engine_leave(seq->engine);
    return status;
}

/* ---- the token list ---- */

/* How many of the first n cached tokens can stay when the rest goes: a cut encoded tile goes whole, and where a window's
 * beginning is gone everything does. */
static uint32_t keepable(const pykvq_seq *seq, uint32_t n) {
    const pykvq_engine *e = seq->engine;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS && n % KVQ_TILE != 0; group++) {
        kvq_page cut = seq->pages[group][n / KVQ_TILE];
        if (cut != KVQ_PAGE_NONE && cut & KVQ_PAGE_CODED)
            n -= n % KVQ_TILE;
    }
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        if (kvq_group_first_seen_tile(&e->groups[group], n + 1) < seq->first_tile[group])
            return 0;
    }
    return n;
}

static void rewind_cache(pykvq_seq *seq, uint32_t n) {
    if (n >= seq->n_cached)
        return;
    seq->n_cached = keepable(seq, n);
    kvq_seq_abandon(seq);
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++) {
        uint32_t whole = seq->n_cached / KVQ_TILE, sink = seq->engine->groups[group].sink_tiles;
        if (seq->n_settled[group] > whole)
            seq->n_settled[group] = whole > sink ? whole : sink;
        if (seq->first_tile[group] > whole)
            seq->first_tile[group] = 0;
    }
}

static pykvq_status check_tokens(const pykvq_seq *seq, const int32_t *tokens, uint32_t n_tokens, uint32_t n_before) {
    const pykvq_engine *e = seq->engine;
    if (n_tokens == 0)
        return kvq_fail(PYKVQ_E_ARGUMENT, "sequence: no tokens given, expected at least one");
    if (n_tokens > e->layout.n_ctx || n_before > e->layout.n_ctx - n_tokens)
        return kvq_fail(PYKVQ_E_FULL, "sequence: %u tokens, but the context holds %u", n_before + n_tokens,
                        e->layout.n_ctx);
    for (uint32_t i = 0; i < n_tokens; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= e->model->h.n_vocab)
            return kvq_fail(PYKVQ_E_ARGUMENT, "sequence: token %d at index %u, but the vocabulary has ids 0 to %u",
                            tokens[i], i, e->model->h.n_vocab - 1);
    return PYKVQ_OK;
}

static void sync(pykvq_seq *seq, const int32_t *tokens, uint32_t n_tokens) {
    uint32_t n_common = 0;
    while (n_common < seq->n_cached && n_common + 1 < n_tokens && tokens[n_common] == seq->tokens[n_common])
        n_common++;
    rewind_cache(seq, n_common);
    memmove(seq->tokens, tokens, n_tokens * sizeof(int32_t));
    seq->n_tokens = n_tokens;
}

pykvq_status pykvq_seq_sync(pykvq_seq *seq, const int32_t *tokens, uint32_t n_tokens, uint32_t *n_reused) {
    KVQ_TRY(kvq_engine_enter(seq->engine));
    pykvq_status status = check_tokens(seq, tokens, n_tokens, 0);
    if (status == PYKVQ_OK) {
        sync(seq, tokens, n_tokens);
        if (n_reused != NULL)
            *n_reused = seq->n_cached;
    }
    kvq_engine_leave(seq->engine);
    return status;
}

pykvq_status pykvq_seq_push(pykvq_seq *seq, const int32_t *tokens, uint32_t n_tokens) {
    KVQ_TRY(kvq_engine_enter(seq->engine));
    pykvq_status status = check_tokens(seq, tokens, n_tokens, seq->n_tokens);
    if (status == PYKVQ_OK) {
        memcpy(seq->tokens + seq->n_tokens, tokens, n_tokens * sizeof(int32_t));
        seq->n_tokens += n_tokens;
    }
    kvq_engine_leave(seq->engine);
    return status;
}

pykvq_status pykvq_seq_rewind(pykvq_seq *seq, uint32_t n_tokens) {
    KVQ_TRY(kvq_engine_enter(seq->engine));
    pykvq_status status = PYKVQ_OK;
    if (n_tokens > seq->n_tokens) {
        status = kvq_fail(PYKVQ_E_ARGUMENT, "sequence: cannot rewind to %u tokens, it has %u", n_tokens, seq->n_tokens);
    } else {
        rewind_cache(seq, n_tokens);
        seq->n_tokens = n_tokens;
    }
    kvq_engine_leave(seq->engine);
    return status;
}

/* ---- questions ---- */

uint32_t pykvq_seq_n_tokens(const pykvq_seq *seq) {
    return seq->n_tokens;
}

uint32_t pykvq_seq_n_pending(const pykvq_seq *seq) {
    return seq->n_tokens - seq->n_cached;
}

/* Whether n_new tokens may come in one step: none of them would see other tiles than the first does, or other forms of
 * them, and no tile is encoded that taking tokens back would cut. */
static bool is_one_view(const pykvq_seq *seq, uint32_t n_new) {
    uint32_t n = seq->n_cached;
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++) {
        const kvq_group *g = &seq->engine->groups[i];
        if (kvq_group_first_tail_tile(g, n + n_new) != kvq_group_first_tail_tile(g, n))
            return false;
        if (g->window > 0 && kvq_group_first_seen_tile(g, n + n_new) != kvq_group_first_seen_tile(g, n + 1))
            return false;
    }
    return n % KVQ_TILE + n_new <= KVQ_TILE;
}

uint32_t pykvq_seq_n_draft(const pykvq_seq *seq) {
    const kvq_layout *l = &seq->engine->layout;
    uint32_t n = l->n_ctx - seq->n_cached, most[] = {KVQ_DRAFT_TOKENS, l->n_batch, l->n_logits};
    for (int i = 0; i < 3; i++)
        n = n < most[i] ? n : most[i];
    while (n > 1 && !is_one_view(seq, n))
        n--;
    return n;
}

pykvq_status pykvq_seq_tokens(const pykvq_seq *seq, int32_t *tokens, uint32_t n_tokens) {
    if (n_tokens > seq->n_tokens)
        return kvq_fail(PYKVQ_E_ARGUMENT, "sequence: asked for %u tokens, it has %u", n_tokens, seq->n_tokens);
    memcpy(tokens, seq->tokens, n_tokens * sizeof(int32_t));
    return PYKVQ_OK;
}

uint64_t pykvq_seq_kv_bytes(const pykvq_seq *seq) {
    uint64_t n_bytes = 0;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++)
        for (uint32_t tile = 0; tile < kvq_n_tiles(seq->n_cached); tile++)
            if (seq->pages[group][tile] != KVQ_PAGE_NONE)
                n_bytes += kvq_page_bytes(&seq->engine->groups[group], seq->pages[group][tile]);
    return n_bytes;
}

pykvq_status pykvq_seq_kv_layer(const pykvq_seq *seq, uint32_t layer, pykvq_kv_layer *out) {
    const pykvq_engine *e = seq->engine;
    if (layer >= e->forward.weights.n_layer)
        return kvq_fail(PYKVQ_E_ARGUMENT, "layer %u: the model has %u", layer, e->forward.weights.n_layer);
    const kvq_kv_layer *kv = &e->forward.kv[layer];
    uint32_t group = e->forward.weights.layers[layer].windowed, n_coded = 0, n_raw = 0;
    uint64_t raw_bytes = kvq_raw_head_halfs(kv) * kv->n_head_kv * sizeof(uint16_t);
    for (uint32_t tile = seq->first_tile[group]; tile < kvq_n_tiles(seq->n_cached); tile++)
        seq->pages[group][tile] & KVQ_PAGE_CODED ? n_coded++ : n_raw++;
    *out = (pykvq_kv_layer){
        .type_k = e->layout.spec.k[layer]->name,
        .type_v = e->layout.spec.v[layer]->name,
        .n_window = e->groups[group].window,
        .n_held = seq->n_cached - seq->first_tile[group] * KVQ_TILE,
        .n_encoded = n_coded * KVQ_TILE,
        .n_bytes = n_raw * raw_bytes + (uint64_t)n_coded * kv->n_head_kv * (kv->k_tile_bytes + kv->v_tile_bytes),
        .n_f16_bytes = (n_raw + n_coded) * raw_bytes,
    };
    return PYKVQ_OK;
}

pykvq_status pykvq_seq_keep_logits(pykvq_seq *seq, bool all) {
    KVQ_TRY(kvq_engine_enter(seq->engine));
    seq->keep_all_logits = all;
    kvq_engine_leave(seq->engine);
    return PYKVQ_OK;
}

uint32_t pykvq_seq_n_logits(const pykvq_seq *seq) {
    return seq->logits_step == seq->engine->step ? seq->n_logits_rows : 0;
}

static pykvq_status logits_at(const pykvq_seq *seq, uint32_t first, uint32_t n_rows, const float **out) {
    uint32_t n = pykvq_seq_n_logits(seq);
    if (n_rows > n || first > n - n_rows)
        return kvq_fail(PYKVQ_E_ARGUMENT, "sequence: logit rows %u to %u asked for, the last step kept %u", first,
                        first + n_rows, n);
    *out = seq->engine->forward.logits + (size_t)(seq->first_logits_row + first) * seq->engine->model->h.n_vocab;
    return PYKVQ_OK;
}

pykvq_status pykvq_seq_logits(const pykvq_seq *seq, uint32_t first, uint32_t n_rows, float *out) {
    pykvq_engine *e = seq->engine;
    KVQ_TRY(kvq_engine_enter(e));
    const float *logits;
    pykvq_status status = logits_at(seq, first, n_rows, &logits);
    if (status == PYKVQ_OK)
        status = e->forward.be->ops->copy(e->forward.be, out, logits, (size_t)n_rows * e->model->h.n_vocab * sizeof(float));
    kvq_engine_leave(e);
    return status;
}

pykvq_status pykvq_seq_sample(pykvq_seq *seq, int32_t row, pykvq_sampler *sampler, int32_t *token) {
    pykvq_engine *e = seq->engine;
    KVQ_TRY(kvq_engine_enter(e));
    const float *logits;
    uint32_t n_rows = pykvq_seq_n_logits(seq);
    uint32_t from_row = row >= 0 ? (uint32_t)row : n_rows > 0 ? n_rows - 1 : 0;
    pykvq_status status = logits_at(seq, from_row, 1, &logits);
    if (status == PYKVQ_OK && e->host_logits != NULL) {
        status = e->forward.be->ops->copy(e->forward.be, e->host_logits, logits, e->model->h.n_vocab * sizeof(float));
        logits = e->host_logits;
    }
    if (status == PYKVQ_OK)
        status = pykvq_sampler_sample(sampler, logits, e->model->h.n_vocab, seq->tokens, seq->first_logits_token + from_row,
                                      token);
    kvq_engine_leave(e);
    return status;
}
