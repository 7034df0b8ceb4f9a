/*
 * Saved sequences. All integers little-endian; nothing lies between the parts:
 *
 *   header    see struct header: the model, the settings, the counts
 *   layers    n_layer of { K codec name 16 bytes, version u32; V codec the same }
 *   tokens    n_tokens of i32
 *   tiles     for each group with layers: tiles first_tile .. of the cached tokens: 1 if encoded, else 0, u8 each
 *   pages     for each group, each of those tiles, each layer of the group: the page, n_head_kv heads, as in backend.h
 *   checksum  u64 over everything before it
 *
 * Loading checks everything before it changes anything.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/memory.h"
#include "engine/engine.h"

enum { SAVE_VERSION = 1, CODEC_NAME = 16 };

static const char magic[8] = "PYKVQSEQ";

typedef struct group_header {
    uint32_t n_layer, window, sink_tiles, tail, first_tile;
} group_header;

typedef struct header {
    char magic[8];
    uint32_t version, n_header_bytes;
    uint64_t fingerprint; /* of the model */
    uint64_t rope_hash;   /* of the frequencies in use: they can depend on the context */
    uint32_t n_layer, n_head_kv, head_dim, n_tokens, n_cached;
    uint32_t coded; /* a bit for each group */
    group_header groups[KVQ_MAX_GROUPS];
} header;

typedef struct codec_entry {
    char k[CODEC_NAME], v[CODEC_NAME];
    uint32_t k_version, v_version;
} codec_entry;

static header make_header(const pykvq_seq *seq) {
    const pykvq_engine *e = seq->engine;
    const kvq_hparams *h = &e->model->h;
    header head = {
        .version = SAVE_VERSION,
        .n_header_bytes = sizeof head,
        .fingerprint = e->model->fingerprint,
        .rope_hash = kvq_hash(KVQ_HASH_START, e->inv_freq, h->n_rot * sizeof(float)),
        .n_layer = h->n_layer,
        .n_head_kv = h->n_head_kv,
        .head_dim = h->head_dim,
        .n_tokens = seq->n_tokens,
        .n_cached = seq->n_cached,
    };
    memcpy(head.magic, magic, sizeof magic);
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++) {
        const kvq_group *g = &e->groups[i];
        head.coded |= (uint32_t)g->coded << i;
        head.groups[i] = (group_header){g->n_layer, g->window, g->sink_tiles, g->coded ? g->tail : 0, seq->first_tile[i]};
    }
    return head;
}

static codec_entry make_entry(const kvq_kv_layer *kv) {
    codec_entry entry = {.k_version = kv->k->version, .v_version = kv->v->version};
    snprintf(entry.k, sizeof entry.k, "%s", kv->k->name);
    snprintf(entry.v, sizeof entry.v, "%s", kv->v->name);
    return entry;
}

static size_t largest_page(const pykvq_engine *e) {
    size_t most = 0;
    for (uint32_t i = 0; i < e->model->h.n_layer; i++)
        for (int coded = 0; coded < 2; coded++) {
            size_t n_bytes = kvq_layer_page_bytes(&e->forward.kv[i], coded ? KVQ_PAGE_CODED : 0);
            most = n_bytes > most ? n_bytes : most;
        }
    return most;
}

/* Where a page of the file belongs. */
typedef struct place {
    uint32_t group, tile, layer;
    uint32_t i; /* of the tile, among those of all groups */
    const kvq_kv_layer *kv;
} place;

/* Visits the pages in the order of the file. */
static pykvq_status each_page(const pykvq_engine *e, const uint32_t first_tile[KVQ_MAX_GROUPS], uint32_t n_tiles,
                              pykvq_status (*visit)(void *context, const place *at), void *context) {
    place at = {0};
    for (at.group = 0; at.group < KVQ_MAX_GROUPS; at.group++)
        for (at.tile = first_tile[at.group]; e->groups[at.group].n_layer > 0 && at.tile < n_tiles; at.tile++, at.i++)
            for (at.layer = 0; at.layer < e->model->h.n_layer; at.layer++) {
                if (e->model->weights.layers[at.layer].windowed != at.group)
                    continue;
                at.kv = &e->forward.kv[at.layer];
                KVQ_TRY(visit(context, &at));
            }
    return PYKVQ_OK;
}

/* ---- writing ---- */

typedef struct writer {
    FILE *file;
    kvq_checksum checksum;
    bool failed;
} writer;

static void put(writer *w, const void *data, size_t n_bytes) {
    kvq_checksum_add(&w->checksum, data, n_bytes);
    w->failed |= fwrite(data, 1, n_bytes, w->file) != n_bytes;
}

typedef struct page_writer {
    writer *to;
    const pykvq_seq *seq;
    void *buffer;
} page_writer;

static pykvq_status put_page(void *context, const place *at) {
    const page_writer *w = context;
    kvq_backend *be = w->seq->engine->forward.be;
    kvq_page page = w->seq->pages[at->group][at->tile];
    KVQ_TRY(be->ops->page_read(be, at->kv, page, w->buffer));
    put(w->to, w->buffer, kvq_layer_page_bytes(at->kv, page));
    return PYKVQ_OK;
}

static pykvq_status put_all(writer *w, const pykvq_seq *seq, void *buffer) {
    const pykvq_engine *e = seq->engine;
    header head = make_header(seq);
    put(w, &head, sizeof head);
    for (uint32_t i = 0; i < e->model->h.n_layer; i++) {
        codec_entry entry = make_entry(&e->forward.kv[i]);
        put(w, &entry, sizeof entry);
    }
    put(w, seq->tokens, seq->n_tokens * sizeof(int32_t));
    size_t n_forms = 0;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++)
        for (uint32_t tile = seq->first_tile[group]; e->groups[group].n_layer > 0 && tile < kvq_n_tiles(seq->n_cached);
             tile++, n_forms++)
            ((uint8_t *)buffer)[n_forms] = (seq->pages[group][tile] & KVQ_PAGE_CODED) != 0;
    put(w, buffer, n_forms);
    KVQ_TRY(each_page(e, seq->first_tile, kvq_n_tiles(seq->n_cached), put_page, &(page_writer){w, seq, buffer}));
    uint64_t checksum = kvq_checksum_end(&w->checksum);
    put(w, &checksum, sizeof checksum);
    return PYKVQ_OK;
}

static pykvq_status write_file(const pykvq_seq *seq, const char *path, const char *temporary, void *buffer) {
    writer w = {.file = fopen(temporary, "wb"), .checksum.hash = KVQ_HASH_START};
    if (w.file == NULL)
        return kvq_fail(PYKVQ_E_FILE, "%s: cannot be written: %s", path, strerror(errno));
    pykvq_status status = put_all(&w, seq, buffer);
    errno = 0;
    w.failed |= fflush(w.file) != 0 || fsync(fileno(w.file)) != 0;
    int error = errno ? errno : ENOSPC;
    w.failed |= fclose(w.file) != 0;
    if (status == PYKVQ_OK && w.failed)
        status = kvq_fail(PYKVQ_E_FILE, "%s: cannot be written: %s", path, strerror(error));
    if (status == PYKVQ_OK && rename(temporary, path) != 0)
        status = kvq_fail(PYKVQ_E_FILE, "%s: cannot be replaced: %s", path, strerror(errno));
    if (status != PYKVQ_OK)
        unlink(temporary);
    return status;
}

pykvq_status pykvq_seq_save(pykvq_seq *seq, const char *path) {
    pykvq_engine *e = seq->engine;
    KVQ_TRY(kvq_engine_enter(e));
    size_t n_buffer = largest_page(e) + KVQ_MAX_GROUPS * e->layout.n_tiles, n_name = strlen(path) + 32;
    void *buffer, *temporary = NULL;
    pykvq_status status = kvq_alloc_array(&buffer, n_buffer, 1, "save buffer");
    if (status == PYKVQ_OK)
        status = kvq_alloc_array(&temporary, n_name, 1, "file name");
    if (status == PYKVQ_OK) {
        snprintf(temporary, n_name, "%s.%ld.part", path, (long)getpid());
        status = write_file(seq, path, temporary, buffer);
    }
    kvq_free(temporary, n_name);
    kvq_free(buffer, n_buffer);
    kvq_engine_leave(e);
    return status;
}

/* ---- reading ---- */

typedef struct saved {
    const uint8_t *bytes; /* the mapped file */
    size_t n_bytes;
    header head;
    uint32_t n_tiles, first_tile[KVQ_MAX_GROUPS];
    const uint8_t *layers, *tokens, *tiles, *pages; /* in it */
} saved;

#define MISMATCH(...) kvq_fail(PYKVQ_E_ARGUMENT, __VA_ARGS__)

static pykvq_status check_header(const saved *s, const pykvq_seq *seq) {
    const header *head = &s->head;
    header own = make_header(seq);
    if (memcmp(head->magic, magic, sizeof magic) != 0)
        return kvq_fail(PYKVQ_E_FORMAT, "not a saved sequence");
    if (head->version != SAVE_VERSION || head->n_header_bytes != sizeof *head)
        return kvq_fail(PYKVQ_E_UNSUPPORTED, "format version %u, this library reads %u", head->version,
                        (uint32_t)SAVE_VERSION);
    if (head->fingerprint != own.fingerprint || head->n_layer != own.n_layer || head->n_head_kv != own.n_head_kv ||
        head->head_dim != own.head_dim)
        return MISMATCH("saved with another model (fingerprint %016llx, this one is %016llx)",
                        (unsigned long long)head->fingerprint, (unsigned long long)own.fingerprint);
    if (head->rope_hash != own.rope_hash)
        return MISMATCH("saved with other RoPE frequencies; this model scales them by the context the engine is made for");
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++) {
        const group_header *a = &head->groups[i], *b = &own.groups[i];
        if (head->coded != own.coded || a->sink_tiles != b->sink_tiles || a->tail != b->tail)
            return MISMATCH("saved with sink %u and tail %u, this engine has sink %u and tail %u", a->sink_tiles * KVQ_TILE,
                            a->tail, b->sink_tiles * KVQ_TILE, b->tail);
        if (a->n_layer != b->n_layer || a->window != b->window)
            return MISMATCH("saved with other sliding windows");
    }
    if (head->n_tokens > seq->engine->layout.n_ctx)
        return kvq_fail(PYKVQ_E_FULL, "holds %u tokens, this engine's context %u", head->n_tokens,
                        seq->engine->layout.n_ctx);
    if (head->n_cached > head->n_tokens)
        return kvq_fail(PYKVQ_E_FORMAT, "has more cached tokens than tokens");
    for (uint32_t i = 0; i < KVQ_MAX_GROUPS; i++)
        if (head->groups[i].first_tile > kvq_group_first_seen_tile(&seq->engine->groups[i], head->n_cached + 1))
            return kvq_fail(PYKVQ_E_FORMAT, "lacks tiles that its next token sees");
    return PYKVQ_OK;
}

static pykvq_status check_codecs(const saved *s, const pykvq_engine *e) {
    for (uint32_t i = 0; i < e->model->h.n_layer; i++) {
        codec_entry there, own = make_entry(&e->forward.kv[i]);
        memcpy(&there, s->layers + i * sizeof there, sizeof there);
        there.k[CODEC_NAME - 1] = there.v[CODEC_NAME - 1] = '\0';
        if (strcmp(there.k, own.k) != 0 || strcmp(there.v, own.v) != 0)
            return MISMATCH("layer %u was saved as %s keys and %s values, this engine has %s and %s", i, there.k, there.v,
                            own.k, own.v);
        if (there.k_version != own.k_version || there.v_version != own.v_version)
            return MISMATCH("layer %u was saved in another version of %s", i, own.k);
    }
    return PYKVQ_OK;
}

/* Cuts the file into its parts and checks that they fill it exactly. */
static pykvq_status locate(saved *s, const pykvq_engine *e) {
    size_t at = sizeof s->head + s->head.n_layer * sizeof(codec_entry);
    s->tokens = s->bytes + at;
    at += s->head.n_tokens * sizeof(int32_t);
    s->tiles = s->bytes + at;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++)
        if (s->head.groups[group].n_layer > 0)
            at += s->n_tiles - s->first_tile[group];
    s->pages = s->bytes + at;
    const uint8_t *tile_form = s->tiles;
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS && at < s->n_bytes; group++) {
        const kvq_group *g = &e->groups[group];
        for (uint32_t tile = s->first_tile[group]; g->n_layer > 0 && tile < s->n_tiles; tile++) {
            bool may_be_coded = g->coded && tile >= g->sink_tiles && (tile + 1) * KVQ_TILE <= s->head.n_cached;
            bool must_be_coded = may_be_coded && tile < kvq_group_first_tail_tile(g, s->head.n_cached);
            if (*tile_form > may_be_coded || *tile_form < must_be_coded)
                return kvq_fail(PYKVQ_E_FORMAT, "tile %u is%s encoded", tile, *tile_form ? "" : " not");
            at += *tile_form++ ? g->coded_page_bytes : g->raw_page_bytes;
        }
    }
    if (at + sizeof(uint64_t) != s->n_bytes)
        return kvq_fail(PYKVQ_E_FORMAT, "has %zu bytes, its header says %zu", s->n_bytes, at + sizeof(uint64_t));
    return PYKVQ_OK;
}

static pykvq_status check_tokens(const saved *s, uint32_t n_vocab) {
    for (uint32_t i = 0; i < s->head.n_tokens; i++) {
        int32_t token;
        memcpy(&token, s->tokens + i * sizeof token, sizeof token);
        if (token < 0 || (uint32_t)token >= n_vocab)
            return kvq_fail(PYKVQ_E_FORMAT, "token %u is %d, the vocabulary has ids 0 to %u", i, token, n_vocab - 1);
    }
    return PYKVQ_OK;
}

typedef struct page_reader {
    const saved *from;
    pykvq_seq *seq;
    const uint8_t *next;
} page_reader;

/* The bytes of the next page. */
static const uint8_t *take_page(page_reader *r, const place *at) {
    const uint8_t *page = r->next;
    r->next += kvq_layer_page_bytes(at->kv, r->from->tiles[at->i] ? KVQ_PAGE_CODED : 0);
    return page;
}

static pykvq_status check_page(void *context, const place *at) {
    page_reader *r = context;
    const kvq_kv_layer *kv = at->kv;
    const uint8_t *tile = take_page(r, at);
    for (uint32_t head = 0; r->from->tiles[at->i] && head < kv->n_head_kv; head++) {
        if (!kvq_tile_valid(kv->k, tile, kv->head_dim) || !kvq_tile_valid(kv->v, tile + kv->k_tile_bytes, kv->head_dim))
            return kvq_fail(PYKVQ_E_FORMAT, "tile %u of layer %u is not one that can have been encoded", at->tile,
                            at->layer);
        tile += kv->k_tile_bytes + kv->v_tile_bytes;
    }
    return PYKVQ_OK;
}

static pykvq_status check(saved *s, pykvq_seq *seq) {
    const pykvq_engine *e = seq->engine;
    if (s->n_bytes < sizeof s->head + sizeof(uint64_t))
        return kvq_fail(PYKVQ_E_FORMAT, "too short for a saved sequence");
    memcpy(&s->head, s->bytes, sizeof s->head);
    KVQ_TRY(check_header(s, seq));
    s->n_tiles = kvq_n_tiles(s->head.n_cached);
    for (uint32_t group = 0; group < KVQ_MAX_GROUPS; group++)
        s->first_tile[group] = s->head.groups[group].first_tile;
    if (s->n_bytes < sizeof s->head + s->head.n_layer * sizeof(codec_entry) + s->head.n_tokens * sizeof(int32_t) +
                         2 * (size_t)s->n_tiles)
        return kvq_fail(PYKVQ_E_FORMAT, "is cut short");
    s->layers = s->bytes + sizeof s->head;
    KVQ_TRY(check_codecs(s, e));
    KVQ_TRY(locate(s, e));
    uint64_t stored;
    kvq_checksum own = {.hash = KVQ_HASH_START};
    memcpy(&stored, s->bytes + s->n_bytes - sizeof stored, sizeof stored);
    kvq_checksum_add(&own, s->bytes, s->n_bytes - sizeof stored);
    if (kvq_checksum_end(&own) != stored)
        return kvq_fail(PYKVQ_E_FORMAT, "is damaged: its checksum does not match");
    KVQ_TRY(check_tokens(s, e->model->h.n_vocab));
    return each_page(e, s->first_tile, s->n_tiles, check_page, &(page_reader){s, seq, s->pages});
}

static pykvq_status restore_page(void *context, const place *at) {
    page_reader *r = context;
    kvq_backend *be = r->seq->engine->forward.be;
    return be->ops->page_write(be, at->kv, r->seq->pages[at->group][at->tile], take_page(r, at));
}

/* Everything is checked: replaces what the sequence holds. Fails only before anything changes, if the pools are too full.
 */
static pykvq_status restore(pykvq_seq *seq, const saved *s) {
    KVQ_TRY(kvq_seq_replace_pages(seq, s->first_tile, s->n_tiles, s->tiles));
    KVQ_TRY(each_page(seq->engine, s->first_tile, s->n_tiles, restore_page, &(page_reader){s, seq, s->pages}));
    memcpy(seq->tokens, s->tokens, s->head.n_tokens * sizeof(int32_t));
    seq->n_tokens = s->head.n_tokens;
    seq->n_cached = s->head.n_cached;
    seq->logits_step = 0;
    return PYKVQ_OK;
}

static pykvq_status map_file(const char *path, saved *s) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return kvq_fail(PYKVQ_E_FILE, "cannot be opened: %s", strerror(errno));
    pykvq_status status = PYKVQ_OK;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size == 0) {
        status = kvq_fail(PYKVQ_E_FILE, "is empty or not a file");
    } else {
        void *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes == MAP_FAILED)
            status = kvq_fail(PYKVQ_E_FILE, "cannot be mapped: %s", strerror(errno));
        s->bytes = bytes;
        s->n_bytes = (size_t)info.st_size;
    }
    close(fd);
    return status;
}

static pykvq_status load(pykvq_seq *seq, const char *path) {
    saved s = {0};
    pykvq_status status = map_file(path, &s);
    if (status != PYKVQ_OK)
        return kvq_fail_in(status, "%s", path);
    status = check(&s, seq);
    if (status == PYKVQ_OK)
        status = restore(seq, &s);
    munmap((void *)s.bytes, s.n_bytes);
    return status == PYKVQ_OK ? status : kvq_fail_in(status, "%s", path);
}

pykvq_status pykvq_seq_load(pykvq_seq *seq, const char *path) {
    KVQ_TRY(kvq_engine_enter(seq->engine));
    pykvq_status status = load(seq, path);
    kvq_engine_leave(seq->engine);
    return status;
}
