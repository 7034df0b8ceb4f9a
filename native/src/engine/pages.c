#include "engine/pages.h"

#include "base/memory.h"

pykvq_status kvq_pool_create(uint32_t n_pages, kvq_pool *pool) {
    *pool = (kvq_pool){.n_pages = n_pages, .n_free = n_pages};
    KVQ_TRY(kvq_alloc_array((void **)&pool->free_pages, n_pages, sizeof(uint32_t), "page pool"));
    KVQ_TRY(kvq_alloc_array((void **)&pool->n_refs, n_pages, sizeof(uint32_t), "page pool"));
    for (uint32_t i = 0; i < n_pages; i++)
        pool->free_pages[i] = n_pages - 1 - i; /* the first pages are taken first */
    return PYKVQ_OK;
}

void kvq_pool_destroy(kvq_pool *pool) {
    kvq_free(pool->free_pages, pool->n_pages * sizeof(uint32_t));
    kvq_free(pool->n_refs, pool->n_pages * sizeof(uint32_t));
    *pool = (kvq_pool){0};
}

size_t kvq_pool_table_bytes(uint32_t n_pages) {
    return (size_t)n_pages * 2 * sizeof(uint32_t);
}

kvq_page kvq_pool_take(kvq_pool *pool) {
    if (pool->n_free == 0)
        return KVQ_PAGE_NONE;
    kvq_page page = pool->free_pages[--pool->n_free];
    pool->n_refs[page] = 1;
    return page;
}

void kvq_pool_share(kvq_pool *pool, kvq_page page) {
    pool->n_refs[page]++;
}

void kvq_pool_release(kvq_pool *pool, kvq_page page) {
    if (--pool->n_refs[page] == 0)
        pool->free_pages[pool->n_free++] = page;
}

static uint32_t least(uint64_t a, uint64_t b) {
    return (uint32_t)(a < b ? a : b);
}

uint32_t kvq_group_first_tail_tile(const kvq_group *g, uint32_t n_tokens) {
    uint32_t first = !g->coded || n_tokens < g->tail ? 0 : (n_tokens - g->tail) / KVQ_TILE;
    return first > g->sink_tiles ? first : g->sink_tiles;
}

uint32_t kvq_group_first_window_tile(const kvq_group *g, uint32_t n_tokens) {
    /* One tile more than attention needs, so that going back a few tokens (a rejected draft) is free. */
    uint32_t kept = g->window + KVQ_TILE;
    return g->window == 0 || n_tokens < kept ? 0 : (n_tokens - kept + 1) / KVQ_TILE;
}

uint32_t kvq_group_first_seen_tile(const kvq_group *g, uint32_t n_tokens) {
    return g->window == 0 || n_tokens < g->window ? 0 : (n_tokens - g->window) / KVQ_TILE;
}

void kvq_group_size_pools(kvq_group *g, uint32_t n_ctx, uint32_t n_seq, uint32_t n_batch) {
    uint64_t all = kvq_n_tiles(n_ctx);
    uint64_t step = kvq_n_tiles(n_batch) + (uint64_t)n_seq; /* new tiles of a step, a partial one for each sequence */
    /* What a window holds between steps: its tokens and one tile more, at any alignment. */
    uint64_t seen = g->window == 0 ? all : least(all, (uint64_t)kvq_n_tiles(g->window) + 3);
    uint64_t tail = least(seen, g->sink_tiles + (uint64_t)kvq_n_tiles(g->tail) + 1);
    uint64_t most = all * n_seq;
    g->n_raw_pages = least(most, (g->coded ? tail : seen) * n_seq + step);
    g->n_coded_pages = 0;
    if (g->coded && all > g->sink_tiles)
        g->n_coded_pages = least((all - g->sink_tiles) * n_seq, seen * n_seq + (g->window == 0 ? 0 : step));
}
