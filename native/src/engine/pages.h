/* Page pools: fixed sets of numbered pages, reference counted, so that sequences can share a prefix. */
#ifndef KVQ_ENGINE_PAGES_H
#define KVQ_ENGINE_PAGES_H

#include "backend/backend.h"

/* Tiles that so many tokens lie in. */
static inline uint32_t kvq_n_tiles(uint32_t n_tokens) {
    return n_tokens / KVQ_TILE + (n_tokens % KVQ_TILE != 0);
}

typedef struct kvq_pool {
    uint32_t n_pages, n_free;
    uint32_t *free_pages; /* (n_pages) a stack of n_free */
    uint32_t *n_refs;     /* (n_pages) */
} kvq_pool;

pykvq_status kvq_pool_create(uint32_t n_pages, kvq_pool *pool);
void kvq_pool_destroy(kvq_pool *pool);
size_t kvq_pool_table_bytes(uint32_t n_pages); /* host memory that create takes */
kvq_page kvq_pool_take(kvq_pool *pool);        /* KVQ_PAGE_NONE if none is free */
void kvq_pool_share(kvq_pool *pool, kvq_page page);
void kvq_pool_release(kvq_pool *pool, kvq_page page);

/*
 * A group: the layers with the same view of the past, whose page tables are therefore the same. Its tiles are f16 pages
 * while they are in the sink or the tail, and encoded pages between them.
 */
typedef struct kvq_group {
    uint32_t n_layer;
    uint32_t window;                         /* 0: everything stays */
    bool coded;                              /* false: all layers are f16 and nothing is ever encoded */
    uint32_t sink_tiles;                     /* first tiles that stay f16 */
    uint32_t tail;                           /* newest tokens that stay f16 */
    size_t raw_page_bytes, coded_page_bytes; /* over all layers of the group */
    uint32_t n_raw_pages, n_coded_pages;     /* of the pools */
    kvq_pool raw, coded_pool;
} kvq_group;

/* Tiles below this one will leave the tail, or the window, once a sequence holds n_tokens. */
uint32_t kvq_group_first_tail_tile(const kvq_group *g, uint32_t n_tokens);
uint32_t kvq_group_first_window_tile(const kvq_group *g, uint32_t n_tokens);
uint32_t kvq_group_first_seen_tile(const kvq_group *g, uint32_t n_tokens); /* by the last of n_tokens */
/* Pool sizes that n_seq sequences of n_ctx tokens never exhaust when steps bring at most n_batch tokens. */
void kvq_group_size_pools(kvq_group *g, uint32_t n_ctx, uint32_t n_seq, uint32_t n_batch);

#endif
