/*
 * Checks and times the CUDA backend on a machine with a GPU; built as kvq_cuda_check beside the library.
 *
 *   kvq_cuda_check kv [HEAD_DIM [KV]]    encoded bytes against the codecs, attention against float64 over the decoded tiles
 *   kvq_cuda_check product [time]        products with weights of every kind against float64; their time
 *   kvq_cuda_check linear [TYPE [LAST]]  time of products of few rows over weights that no cache holds; LAST: of the last
 *                                        matrix of a product
 *   kvq_cuda_check attend [KV]           time per layer of decode attention, every KV type
 *   kvq_cuda_check prefill [KV [HEAD_DIM]]        the same of 16 to 2048 tokens at several depths
 *   kvq_cuda_check model FILE KV N_SEQ DEPTH...   tokens per second of decode steps at these depths
 *   kvq_cuda_check compare FILE KV                logits against the cpu without rounding of activations
 *
 * Exit status 0 if nothing failed; 77 if there is no GPU.
 */
#define _GNU_SOURCE
#include <math.h>
#include <string.h>
#include <time.h>

#include "base/half.h"
#include "check.h"

void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, pykvq_last_error());
    exit(1);
}

double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static uint64_t random_state = 88172645463325252u;

float uniform(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (float)(random_state >> 40) * 0x1p-24f;
}

float normal(void) {
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += uniform();
    return sum - 6;
}

/* ---- one sequence through the backend ---- */

typedef struct fixture {
    kvq_backend *be;
    kvq_kv_layer kv;
    uint32_t n_tiles, n_kv, n_head, n_q;
    kvq_page *pages;
    float *k, *v, *q, *o;      /* host */
    float *dk, *dv, *dq, *d_o; /* device */
    kvq_span spans[4];         /* of the queries; all read the same pages */
    uint32_t n_spans;
    int32_t positions[512];    /* (n_q) */
    float sinks[64], *d_sinks; /* (n_head) extra logits; d_sinks NULL: none */
} fixture;

static size_t round64(size_t n) {
    return (n + 63) / 64 * 64;
}

void *device(kvq_backend *be, size_t n_bytes) {
    void *memory;
    TRY(be->ops->alloc(be, n_bytes, "check", &memory));
    return memory;
}

static kvq_kv_layer make_layer(kvq_backend *be, const kvq_codec *k, const kvq_codec *v, uint32_t n_head_kv,
                               uint32_t head_dim, uint32_t n_raw, uint32_t n_coded) {
    kvq_kv_layer kv = {.n_head_kv = n_head_kv, .head_dim = head_dim, .k = k, .v = v};
    kv.k_tile_bytes = round64(k->tile_bytes(k, head_dim));
    kv.v_tile_bytes = round64(v->tile_bytes(v, head_dim));
    kv.raw = device(be, n_raw * kvq_raw_head_halfs(&kv) * n_head_kv * 2);
    kv.coded = device(be, n_coded * (kv.k_tile_bytes + kv.v_tile_bytes) * n_head_kv);
    return kv;
}

static void store(fixture *f, uint32_t first, uint32_t n) {
    int32_t *positions = malloc(n * sizeof *positions);
    for (uint32_t i = 0; i < n; i++)
        positions[i] = (int32_t)(first + i);
    kvq_span span = {.n_tokens = n, .pos = first, .pages = {f->pages}};
    kvq_batch batch = {.n_tokens = n, .n_spans = 1, .tokens = positions, .positions = positions, .spans = &span};
    size_t offset = (size_t)first * f->kv.n_head_kv * f->kv.head_dim;
    TRY(f->be->ops->step_begin(f->be, &batch));
    f->be->ops->store(f->be, &(kvq_heads){.n_head_kv = f->kv.n_head_kv,
                                          .head_dim = f->kv.head_dim,
                                          .k = f->dk + offset,
                                          .v = f->dv + offset,
                                          .kv = &f->kv});
    TRY(f->be->ops->step_end(f->be, true));
    free(positions);
}

static void encode(kvq_backend *be, const kvq_kv_layer *layers, uint32_t n_layers, const kvq_encode_job *jobs,
                   uint32_t n_jobs, uint32_t n_most) {
    kvq_page none[1] = {0};
    int32_t zero = 0;
    for (uint32_t first = 0; first < n_jobs; first += n_most) {
        kvq_span span = {.n_tokens = 1, .pages = {none}};
        kvq_batch batch = {.n_tokens = 1, .n_spans = 1, .tokens = &zero, .positions = &zero, .spans = &span};
        TRY(be->ops->step_begin(be, &batch));
        for (uint32_t i = 0; i < n_layers; i++)
            be->ops->encode(be, &layers[i], jobs + first, n_jobs - first < n_most ? n_jobs - first : n_most);
        TRY(be->ops->step_end(be, true));
    }
}

/* One span at the end, or, for n_q = RAGGED, spans of several lengths and depths. */
enum { RAGGED = 0 };

static void make_spans(fixture *f, uint32_t n_q) {
    const uint32_t ragged[4][2] = {{f->n_kv - 1, 1}, {70, 40}, {f->n_kv - 16, 16}, {f->n_kv - 150, 150}};
    f->n_spans = n_q == RAGGED ? 4 : 1;
    f->n_q = 0;
    for (uint32_t i = 0; i < f->n_spans; i++) {
        uint32_t pos = n_q == RAGGED ? ragged[i][0] : f->n_kv - n_q, n = n_q == RAGGED ? ragged[i][1] : n_q;
        f->spans[i] = (kvq_span){.first = f->n_q, .n_tokens = n, .pos = pos, .pages = {f->pages}};
        for (uint32_t t = 0; t < n; t++)
            f->positions[f->n_q++] = (int32_t)(pos + t);
    }
}

static void attend(fixture *f, uint32_t window, float softcap) {
    kvq_batch batch = {
        .n_tokens = f->n_q, .n_spans = f->n_spans, .tokens = f->positions, .positions = f->positions, .spans = f->spans};
    TRY(f->be->ops->step_begin(f->be, &batch));
    f->be->ops->attend(f->be, &(kvq_attention){.n_head = f->n_head,
                                               .q = f->dq,
                                               .o = f->d_o,
                                               .window = window,
                                               .softcap = softcap,
                                               .sink_logits = f->d_sinks,
                                               .scale = 1.0f / sqrtf((float)f->kv.head_dim),
                                               .kv = &f->kv});
    TRY(f->be->ops->step_end(f->be, true));
    TRY(f->be->ops->copy(f->be, f->o, f->d_o, (size_t)f->n_q * f->n_head * f->kv.head_dim * sizeof(float)));
}

/* ---- encoded bytes ---- */

/* Bytes of a tile that differ from the codec's own; decoded gets what the codec's own stand for. */
static uint32_t compare_tile(const kvq_codec *codec, uint32_t head_dim, const uint8_t *got, const float *x,
                             float *decoded) {
    size_t n_bytes = codec->tile_bytes(codec, head_dim);
    uint8_t *expected = aligned_alloc(64, round64(n_bytes));
    codec->encode(codec, x, head_dim, expected);
    codec->decode(codec, expected, head_dim, decoded);
    uint32_t n = 0;
    for (size_t i = 0; i < n_bytes; i++)
        n += expected[i] != got[i];
    free(expected);
    return n;
}

/* Bytes of a page that differ after it is read, written to another page and read again; canonical: what was read. */
static uint32_t move_page(kvq_backend *be, const kvq_kv_layer *kv, kvq_page page, kvq_page other, uint8_t *canonical) {
    size_t n_bytes = kvq_layer_page_bytes(kv, page);
    uint8_t *again = malloc(n_bytes);
    TRY(be->ops->page_read(be, kv, page, canonical));
    TRY(be->ops->page_write(be, kv, other, canonical));
    TRY(be->ops->page_read(be, kv, other, again));
    uint32_t n = 0;
    for (size_t i = 0; i < n_bytes; i++)
        n += canonical[i] != again[i];
    free(again);
    return n;
}

/* ---- attention against float64 ---- */

static double reference_error(const fixture *f, const float *k, const float *v, uint32_t window, float softcap) {
    uint32_t hd = f->kv.head_dim, n_kv_head = f->kv.n_head_kv, group = f->n_head / n_kv_head;
    double difference = 0, norm = 0, *s = malloc(f->n_kv * sizeof *s), *o = malloc(hd * sizeof *o);
    for (uint32_t i = 0; i < f->n_q; i++)
        for (uint32_t h = 0; h < f->n_head; h++) {
            uint32_t pos = (uint32_t)f->positions[i], first = window > 0 && pos + 1 > window ? pos + 1 - window : 0;
            double max = -INFINITY, sum = 0;
            for (uint32_t t = first; t <= pos; t++) {
                double dot = 0;
                for (uint32_t d = 0; d < hd; d++)
                    dot += (double)f->q[((size_t)i * f->n_head + h) * hd + d] *
                           k[((size_t)t * n_kv_head + h / group) * hd + d];
                s[t] = dot / sqrt(hd);
                s[t] = softcap > 0 ? softcap * tanh(s[t] / softcap) : s[t];
                max = fmax(max, s[t]);
            }
            if (f->d_sinks != NULL) {
                max = fmax(max, f->sinks[h]);
                sum = exp(f->sinks[h] - max);
            }
            memset(o, 0, hd * sizeof *o);
            for (uint32_t t = first; t <= pos; t++) {
                double p = exp(s[t] - max);
                sum += p;
                for (uint32_t d = 0; d < hd; d++)
                    o[d] += p * v[((size_t)t * n_kv_head + h / group) * hd + d];
            }
            for (uint32_t d = 0; d < hd; d++) {
                double got = f->o[((size_t)i * f->n_head + h) * hd + d], want = o[d] / sum;
                difference += (got - want) * (got - want);
                norm += want * want;
            }
        }
    free(s);
    free(o);
    return sqrt(difference / norm);
}

static uint32_t n_failed;

/* A bias in three pairs of channels of each head, as large as Qwen2's. */
static void make_key_bias(kvq_backend *be, kvq_kv_layer *kv, uint32_t n_tiles) {
    float bias[2 * KVQ_MAX_HEAD_DIM] = {0}, inv_freq[KVQ_MAX_HEAD_DIM / 2];
    uint32_t hd = kv->head_dim;
    for (uint32_t i = 0; i < hd / 2; i++)
        inv_freq[i] = powf(1e6f, -2.0f * (float)i / (float)hd);
    for (uint32_t head = 0; head < 2; head++)
        for (uint32_t i = 0; i < 3 - head; i++) /* the second head has a pair less */
            bias[head * hd + (3 * i + 1) % hd] = 20.0f + (float)i, bias[head * hd + (3 * i + 1 + hd / 2) % hd] = -8.0f;
    kvq_key_bias *created;
    TRY(kvq_key_bias_create(bias, 2, hd, &(kvq_key_bias_rope){inv_freq, hd, false, 1.0f}, n_tiles, &created));
    kv->key_bias = created;
    TRY(be->ops->kv_load(be, kv));
}

/* x (64, head_dim) += the bias of a head in this tile */
static void add_key_bias(const kvq_key_bias *b, uint32_t head, uint32_t tile, uint32_t hd, float *x) {
    float *minus = calloc(KVQ_TILE * hd, sizeof *minus);
    kvq_key_bias_remove(b, head, tile, hd, minus);
    for (uint32_t i = 0; i < KVQ_TILE * hd; i++)
        x[i] -= minus[i];
    free(minus);
}

static void check_pair(kvq_backend *be, const kvq_codec *k, const kvq_codec *v, uint32_t hd, uint32_t group, uint32_t n_q,
                       uint32_t n_kv, uint32_t window, float softcap, bool biased) {
    uint32_t n_head_kv = 2, sink = 1, n_tiles = (n_kv + 63) / 64, n_coded = n_tiles > sink + 2 ? n_tiles - sink - 2 : 0;
    fixture f = {.be = be, .n_kv = n_kv, .n_head = n_head_kv * group, .n_tiles = n_tiles};
    f.kv = make_layer(be, k, v, n_head_kv, hd, n_tiles, n_coded + 1);
    f.pages = malloc(n_tiles * sizeof *f.pages);
    make_spans(&f, n_q);
    size_t n = (size_t)n_kv * n_head_kv * hd, n_query = (size_t)f.n_q * f.n_head * hd;
    f.k = malloc(n * 4), f.v = malloc(n * 4), f.q = malloc(n_query * 4), f.o = malloc(n_query * 4);
    f.dk = device(be, n * 4), f.dv = device(be, n * 4), f.dq = device(be, n_query * 4), f.d_o = device(be, n_query * 4);
    for (size_t i = 0; i < n; i++) {
        f.k[i] = normal() * (i % hd % 17 == 3 ? 6.0f : 1.0f) + (i % hd % 23 == 5 ? 4.0f : 0.0f);
        f.v[i] = normal() * (i % hd % 29 == 3 ? 4.0f : 0.5f);
    }
    for (size_t i = 0; i < n_query; i++)
        f.q[i] = normal() * (biased ? 0.3f : 1.0f);
    if (biased)
        make_key_bias(be, &f.kv, n_tiles);
    float *x = malloc(KVQ_TILE * hd * 4), *decoded = malloc(KVQ_TILE * hd * 4);
    for (uint32_t tile = 0; biased && tile < n_kv / KVQ_TILE; tile++)
        for (uint32_t h = 0; h < n_head_kv; h++) {
            memset(x, 0, KVQ_TILE * hd * 4);
            add_key_bias(f.kv.key_bias, h, tile, hd, x);
            for (uint32_t i = 0; i < KVQ_TILE * hd; i++)
                f.k[(((size_t)tile * KVQ_TILE + i / hd) * n_head_kv + h) * hd + i % hd] += x[i];
        }
    TRY(be->ops->copy(be, f.dk, f.k, n * 4));
    TRY(be->ops->copy(be, f.dv, f.v, n * 4));
    TRY(be->ops->copy(be, f.dq, f.q, n_query * 4));
    if (window > 0) { /* models with extra logits have windows */
        for (uint32_t h = 0; h < f.n_head; h++)
            f.sinks[h] = 2 * normal();
        f.d_sinks = device(be, f.n_head * 4);
        TRY(be->ops->copy(be, f.d_sinks, f.sinks, f.n_head * 4));
    }
    size_t raw_bytes = n_tiles * kvq_raw_head_halfs(&f.kv) * n_head_kv * 2;
    uint8_t *poison = malloc(raw_bytes);
    memset(poison, 0xff, raw_bytes);
    TRY(be->ops->copy(be, f.kv.raw, poison, raw_bytes));
    free(poison);
    for (uint32_t i = 0; i < n_tiles; i++)
        f.pages[i] = n_tiles - 1 - i;
    for (uint32_t first = 0; first < n_kv; first += 256)
        store(&f, first, n_kv - first < 256 ? n_kv - first : 256);
    kvq_encode_job *jobs = malloc((n_coded + 1) * sizeof *jobs);
    for (uint32_t i = 0; i < n_coded; i++)
        jobs[i] = (kvq_encode_job){.raw = f.pages[sink + i], .coded = i | KVQ_PAGE_CODED, .tile = sink + i};
    encode(be, &f.kv, 1, jobs, n_coded, 4);
    for (uint32_t i = 0; i < n_coded; i++)
        f.pages[sink + i] = jobs[i].coded;
    attend(&f, window, softcap);

    for (size_t i = 0; i < n; i++) {
        f.k[i] = kvq_f16_to_f32(kvq_f32_to_f16(f.k[i]));
        f.v[i] = kvq_f16_to_f32(kvq_f32_to_f16(f.v[i]));
    }
    uint32_t n_bad = 0;
    size_t page_bytes = (f.kv.k_tile_bytes + f.kv.v_tile_bytes) * n_head_kv;
    uint8_t *page = malloc(page_bytes);
    for (uint32_t i = 0; i < n_coded; i++) {
        n_bad += move_page(be, &f.kv, jobs[i].coded, n_coded | KVQ_PAGE_CODED, page);
        for (uint32_t h = 0; h < n_head_kv; h++)
            for (int side = 0; side < 2; side++) {
                float *from = side == 0 ? f.k : f.v;
                for (uint32_t t = 0; t < KVQ_TILE; t++)
                    memcpy(x + t * hd, from + (((size_t)(sink + i) * KVQ_TILE + t) * n_head_kv + h) * hd, hd * 4);
                const uint8_t *tile = page + h * (f.kv.k_tile_bytes + f.kv.v_tile_bytes) +
                                      (side == 0 ? 0 : f.kv.k_tile_bytes);
                bool has_bias = biased && side == 0;
                if (has_bias)
                    kvq_key_bias_remove(f.kv.key_bias, h, sink + i, hd, x);
                n_bad += compare_tile(side == 0 ? k : v, hd, tile, x, decoded);
                if (has_bias)
                    add_key_bias(f.kv.key_bias, h, sink + i, hd, decoded);
                for (uint32_t t = 0; t < KVQ_TILE; t++)
                    memcpy(from + (((size_t)(sink + i) * KVQ_TILE + t) * n_head_kv + h) * hd, decoded + t * hd, hd * 4);
            }
    }
    double error = reference_error(&f, f.k, f.v, window, softcap);
    bool good = n_bad == 0 && error < 4e-3;
    n_failed += !good;
    if (!good || getenv("VERBOSE"))
        printf("%s K %-10s V %-10s hd %3u g %2u q %3u kv %4u window %3u cap %2.0f%s: error %.2e, bytes that differ %u\n",
               good ? "ok  " : "FAIL", k->name, v->name, hd, group, f.n_q, n_kv, window, (double)softcap,
               biased ? " bias" : "", error, n_bad);
    if (biased) {
        be->ops->kv_free(be, &f.kv);
        kvq_key_bias_destroy((kvq_key_bias *)f.kv.key_bias);
    }
    be->ops->free(be, f.kv.raw, 0), be->ops->free(be, f.kv.coded, 0), be->ops->free(be, f.dk, 0),
        be->ops->free(be, f.dv, 0);
    be->ops->free(be, f.dq, 0), be->ops->free(be, f.d_o, 0), be->ops->free(be, f.d_sinks, 0);
    free(f.pages), free(f.k), free(f.v), free(f.q), free(f.o), free(jobs), free(page), free(x), free(decoded);
}

kvq_backend *open_backend(const kvq_backend_limits *limits) {
    kvq_device cuda;
    kvq_backend *be;
    if (kvq_device_find("cuda", &cuda) != PYKVQ_OK) {
        printf("skipped: %s\n", pykvq_last_error());
        exit(77);
    }
    TRY(kvq_backend_create(cuda, limits, &be));
    return be;
}

static kvq_backend *open_cache(uint32_t head_dim, uint32_t n_batch, uint32_t n_seq, uint32_t n_tiles, uint32_t max_n_head) {
    return open_backend(&(kvq_backend_limits){.n_threads = 1,
                                              .n_batch = n_batch,
                                              .n_seq = n_seq,
                                              .n_tiles = n_tiles,
                                              .max_n_in = 4096,
                                              .max_n_ff = 4096,
                                              .max_n_head = max_n_head,
                                              .max_head_dim = head_dim,
                                              .max_head_group = 16});
}

static bool supported(const kvq_kv_type *type, uint32_t head_dim) {
    return kvq_device_kv_check(KVQ_DEVICE_CUDA, type->k, type->v, head_dim) == PYKVQ_OK;
}

/* Spans of many tokens. */
static uint32_t check_prefill(kvq_backend *be, const kvq_codec *k, const kvq_codec *v, uint32_t hd, bool is_coded) {
    check_pair(be, k, v, hd, 4, 17, 64 * 9 + 3, 0, 0, false);
    check_pair(be, k, v, hd, 3, RAGGED, 64 * 8 + 35, 0, 0, false);
    check_pair(be, k, v, hd, 7, 90, 64 * 8 + 35, 150, 0, false);
    check_pair(be, k, v, hd, 1, 200, 200, 0, 30.0f, false);
    if (!is_coded)
        return 4;
    check_pair(be, k, v, hd, 2, 40, 64 * 9 + 3, 0, 0, true);
    return 5;
}

/* Of a cache so much larger than the scratch for staged tiles that it takes several rounds. */
static uint32_t check_rounds(const kvq_codec *k, const kvq_codec *v, uint32_t hd) {
    kvq_backend *be = open_cache(hd, 512, 8, 2, 8); /* room for 12 tiles of two KV heads */
    check_pair(be, k, v, hd, 4, 17, 64 * 13 + 5, 0, 0, false);
    check_pair(be, k, v, hd, 4, 300, 64 * 11, 0, 0, false);
    check_pair(be, k, v, hd, 2, RAGGED, 64 * 13 + 5, 0, 0, false);
    be->ops->destroy(be);
    return 3;
}

/* All head_dims where it is 0; all pairs where type is NULL, else keys and values of that type. */
static int check_kv(uint32_t only_head_dim, const char *type) {
    static const uint32_t head_dims[] = {16, 32, 64, 80, 96, 112, 128, 256}, lengths[] = {1, 63, 64, 65, 256, 331};
    uint32_t n_checks = 0;
    for (size_t h = 0; h < sizeof head_dims / sizeof head_dims[0]; h++) {
        if (only_head_dim != 0 && only_head_dim != head_dims[h])
            continue;
        for (uint32_t i = 0; i < kvq_kv_type_count(); i++) {
            if (type != NULL && strcmp(type, kvq_kv_type_at(i)->name) != 0)
                continue;
            kvq_backend *be = open_cache(head_dims[h], 256, 4, 64, 64);
            for (uint32_t j = 0; j < kvq_kv_type_count(); j++) {
                const kvq_kv_type *a = kvq_kv_type_at(i), *b = kvq_kv_type_at(j);
                if (!supported(a, head_dims[h]) || !supported(b, head_dims[h]) || (type != NULL && i != j))
                    continue;
                uint32_t turn = i * 7 + j * 3 + (uint32_t)h;
                check_pair(be, a->k, b->v, head_dims[h], 1 + turn % 8, 1, 64 * 7 + 17 + turn, 0, 0, false);
                n_checks++;
                if (i != j)
                    continue;
                for (size_t n = 0; n < sizeof lengths / sizeof lengths[0]; n++, n_checks++)
                    check_pair(be, a->k, b->v, head_dims[h], 4, 1, lengths[n], 0, 0, false);
                check_pair(be, a->k, b->v, head_dims[h], 16, 1, 64 * 9, 0, 0, false);
                check_pair(be, a->k, b->v, head_dims[h], 4, 16, 64 * 9 + 3, 0, 0, false);
                check_pair(be, a->k, b->v, head_dims[h], 7, 5, 64 * 9 + 3, 150, 0, false);
                check_pair(be, a->k, b->v, head_dims[h], 3, 1, 64 * 9 + 3, 0, 30.0f, false);
                n_checks += 4 + check_prefill(be, a->k, b->v, head_dims[h], a->tail != UINT32_MAX);
                if (i % 5 == h % 5)
                    n_checks += check_rounds(a->k, b->v, head_dims[h]);
                if (a->tail == UINT32_MAX) /* never encoded */
                    continue;
                check_pair(be, a->k, b->v, head_dims[h], 7, 1, 64 * 9 + 3, 0, 0, true);
                check_pair(be, a->k, b->v, head_dims[h], 2, 6, 64 * 9 + 3, 0, 0, true);
                check_pair(be, kvq_kv_type_at(0)->k, b->v, head_dims[h], 6, 1, 64 * 9 + 3, 0, 0, true);
                n_checks += 3;
            }
            be->ops->destroy(be);
        }
    }
    printf("%u checks, %u failed\n", n_checks, n_failed);
    return n_failed > 0;
}

/* ---- time of attention ---- */

/* Pages with random content: f16 normals; encoded pages made of them. */
static void fill_layers(kvq_backend *be, kvq_kv_layer *layers, uint32_t n_layers, uint32_t n_raw, uint32_t n_coded,
                        uint32_t n_most) {
    size_t n = kvq_raw_head_halfs(&layers[0]) * layers[0].n_head_kv;
    uint32_t n_random = n_raw < 8 ? n_raw : 8;
    uint16_t *halfs = malloc(n_random * n * 2);
    for (size_t i = 0; i < n_random * n; i++)
        halfs[i] = kvq_f32_to_f16(normal());
    for (uint32_t i = 0; i < n_layers; i++) {
        TRY(be->ops->copy(be, layers[i].raw, halfs, n_random * n * 2));
        for (uint32_t page = n_random; page < n_raw; page++)
            TRY(be->ops->copy(be, layers[i].raw + page * n, layers[i].raw + page % n_random * n, n * 2));
    }
    free(halfs);
    kvq_encode_job *jobs = malloc((n_coded + 1) * sizeof *jobs);
    for (uint32_t i = 0; i < n_coded; i++)
        jobs[i] = (kvq_encode_job){.raw = i % n_random, .coded = i | KVQ_PAGE_CODED, .tile = i};
    encode(be, layers, n_layers, jobs, n_coded, n_most);
    free(jobs);
}

typedef struct timing {
    double us_per_layer, terabytes_per_second, teraflops;
} timing;

/* n_q tokens on top of n_kv - n_q cached ones, in each of n_seq sequences. */
static timing time_attend(const kvq_kv_type *type, uint32_t head_dim, uint32_t n_kv, uint32_t n_q, uint32_t n_seq,
                          uint32_t group, uint32_t n_layers) {
    enum { MAX_LAYERS = 32, HEADS = 8 };
    uint32_t n_tiles = (n_kv + 63) / 64, n_raw_seq = 1 + (n_q + 63) / 64;
    if (type->tail == UINT32_MAX || n_raw_seq > n_tiles)
        n_raw_seq = n_tiles;
    uint32_t n_coded_seq = n_tiles - n_raw_seq, n_rows = n_seq * n_q;
    kvq_backend *be = open_cache(head_dim, 2048, n_seq, n_tiles, 64);
    size_t layer_bytes = 0;
    kvq_kv_layer layers[MAX_LAYERS];
    uint32_t n_distinct = 0;
    for (; n_distinct < n_layers && (n_distinct < 2 || n_distinct * layer_bytes < (size_t)6 << 30); n_distinct++) {
        layers[n_distinct] = make_layer(be, type->k, type->v, HEADS, head_dim, n_raw_seq * n_seq, n_coded_seq * n_seq + 1);
        layer_bytes = ((size_t)n_raw_seq * 4 * head_dim * KVQ_TILE +
                       n_coded_seq * (layers[0].k_tile_bytes + layers[0].v_tile_bytes)) *
                      HEADS * n_seq;
    }
    fill_layers(be, layers, n_distinct, n_raw_seq * n_seq, n_coded_seq * n_seq, 64);
    kvq_span *spans = calloc(n_seq, sizeof *spans);
    int32_t *positions = calloc(n_rows, sizeof *positions);
    uint32_t *rows = calloc(n_rows, sizeof *rows);
    for (uint32_t s = 0; s < n_seq; s++) {
        kvq_page *pages = malloc(n_tiles * sizeof *pages);
        uint32_t raw = s * n_raw_seq, coded = s * n_coded_seq;
        for (uint32_t i = 0; i < n_tiles; i++)
            pages[i] = i == 0 || i > n_coded_seq ? raw++ : coded++ | KVQ_PAGE_CODED;
        spans[s] = (kvq_span){.first = s * n_q, .n_tokens = n_q, .pos = n_kv - n_q, .pages = {pages}};
    }
    for (uint32_t i = 0; i < n_rows; i++) {
        positions[i] = (int32_t)(n_kv - n_q + i % n_q);
        rows[i] = i;
    }
    kvq_batch batch = {.n_tokens = n_rows,
                       .n_spans = n_seq,
                       .n_logits = n_rows,
                       .tokens = positions,
                       .positions = positions,
                       .spans = spans,
                       .logit_rows = rows};
    size_t n_query = (size_t)n_rows * HEADS * group * head_dim;
    float *q = malloc(n_query * 4), *dq = device(be, n_query * 4), *d_o = device(be, n_query * 4);
    for (size_t i = 0; i < n_query; i++)
        q[i] = normal();
    TRY(be->ops->copy(be, dq, q, n_query * 4));
    float scale = 1.0f / sqrtf((float)head_dim);
    double best = 1e9;
    for (int turn = 0; turn < (n_q > 16 ? 5 : 12); turn++) {
        double start = seconds();
        TRY(be->ops->step_begin(be, &batch));
        for (uint32_t i = 0; i < n_layers; i++)
            be->ops->attend(be,
                            &(kvq_attention){
                                .n_head = HEADS * group, .q = dq, .o = d_o, .scale = scale, .kv = &layers[i % n_distinct]});
        TRY(be->ops->step_end(be, true));
        double elapsed = seconds() - start;
        best = turn > 1 && elapsed < best ? elapsed : best;
    }
    double seen = n_rows * (n_kv - n_q + 0.5 * (n_q + 1)); /* pairs of query and key */
    for (uint32_t i = 0; i < n_distinct; i++)
        be->ops->free(be, layers[i].raw, 0), be->ops->free(be, layers[i].coded, 0);
    be->ops->free(be, dq, 0), be->ops->free(be, d_o, 0);
    be->ops->destroy(be);
    return (timing){best / n_layers * 1e6, (double)layer_bytes * n_layers / best * 1e-12,
                    seen * 4 * head_dim * HEADS * group * n_layers / best * 1e-12};
}

static bool runs_type(const kvq_kv_type *type, uint32_t head_dim, const char *only) {
    return supported(type, head_dim) && (only == NULL || strcmp(only, type->name) == 0);
}

static int time_all(int argc, char **argv) {
    static const struct {
        uint32_t n_kv, n_seq, group;
    } shapes[] = {{131072, 1, 4}, {32768, 1, 4}, {8192, 32, 4}, {131072, 1, 8}, {131072, 8, 4}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (uint32_t i = 0; i < kvq_kv_type_count(); i++) {
            const kvq_kv_type *type = kvq_kv_type_at(i);
            if (!runs_type(type, 128, argc > 2 ? argv[2] : NULL))
                continue;
            timing t = time_attend(type, 128, shapes[s].n_kv, 1, shapes[s].n_seq, shapes[s].group, 32);
            printf("{\"kv\": \"%s\", \"n_kv\": %u, \"n_seq\": %u, \"group\": %u, \"us_per_layer\": %.1f, "
                   "\"terabytes_per_second\": %.2f}\n",
                   type->name, shapes[s].n_kv, shapes[s].n_seq, shapes[s].group, t.us_per_layer, t.terabytes_per_second);
            fflush(stdout);
        }
    return 0;
}

static int time_prefill(int argc, char **argv) {
    static const uint32_t depths[] = {0, 8192, 32768, 131072}, lengths[] = {16, 64, 512, 2048};
    uint32_t head_dim = argc > 3 ? (uint32_t)atoi(argv[3]) : 128;
    for (uint32_t i = 0; i < kvq_kv_type_count(); i++) {
        const kvq_kv_type *type = kvq_kv_type_at(i);
        for (int n = 0; runs_type(type, head_dim, argc > 2 ? argv[2] : NULL) && n < 16; n++) {
            uint32_t depth = depths[n / 4], n_q = lengths[n % 4];
            timing t = time_attend(type, head_dim, depth + n_q, n_q, 1, 4, 8);
            printf("{\"kv\": \"%s\", \"head_dim\": %u, \"depth\": %u, \"n_tokens\": %u, \"us_per_layer\": %.1f, "
                   "\"teraflops\": %.1f}\n",
                   type->name, head_dim, depth, n_q, t.us_per_layer, t.teraflops);
            fflush(stdout);
        }
    }
    return 0;
}

/* ---- time of a model's decode steps ---- */

/* A sequence of n cached tokens whose pages hold random content. */
static void pretend_cached(pykvq_engine *e, pykvq_seq *seq, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        seq->tokens[i] = 1 + (int32_t)(i % 100);
    seq->n_tokens = n;
    while (seq->n_cached < n) {
        uint32_t step = n - seq->n_cached < e->layout.n_batch ? n - seq->n_cached : e->layout.n_batch;
        memset(e->n_leaving, 0, sizeof e->n_leaving);
        TRY(kvq_seq_reserve(seq, step));
        kvq_seq_commit(seq, step);
    }
}

/* Tokens per second of a prompt of n tokens on top of depth; the first of three turns warms up. */
static double time_prompt(pykvq_engine *e, uint32_t depth, uint32_t n) {
    int32_t *prompt = malloc(n * sizeof *prompt);
    for (uint32_t t = 0; t < n; t++)
        prompt[t] = 1 + (int32_t)(t % 200);
    double best = 1e9;
    for (int turn = 0; turn < 3; turn++) {
        pykvq_seq *seq;
        TRY(pykvq_seq_create(e, &seq));
        pretend_cached(e, seq, depth);
        TRY(pykvq_seq_push(seq, prompt, n));
        double start = seconds();
        while (pykvq_seq_n_pending(seq) > 0)
            TRY(pykvq_engine_step(e, &seq, 1));
        double elapsed = seconds() - start;
        best = turn > 0 && elapsed < best ? elapsed : best;
        TRY(pykvq_seq_destroy(seq));
    }
    free(prompt);
    return n / best;
}

static int time_model(int argc, char **argv) {
    pykvq_model *model;
    TRY(pykvq_model_open(argv[2], &model));
    uint32_t n_seq = (uint32_t)atoi(argv[4]), deepest = 0;
    for (int i = 5; i < argc; i++)
        deepest = (uint32_t)atoi(argv[i]) > deepest ? (uint32_t)atoi(argv[i]) : deepest;
    pykvq_engine_params params = {.size = sizeof params,
                                  .device = "cuda",
                                  .n_ctx = deepest + (n_seq == 1 ? 8192 + 128 : 640),
                                  .n_seq = n_seq,
                                  .kv = argv[3],
                                  .kv_sink = -1,
                                  .kv_tail = -1};
    pykvq_engine *e;
    double start = seconds();
    TRY(pykvq_engine_create(model, &params, &e));
    printf("%s: engine in %.1f s\n", argv[3], seconds() - start);
    kvq_kv_layer *layers = e->forward.kv;
    fill_layers(e->forward.be, layers, model->h.n_layer, e->groups[0].n_raw_pages, e->groups[0].n_coded_pages, 8);
    for (int i = 5; i < argc; i++) {
        uint32_t depth = (uint32_t)atoi(argv[i]), n_steps = 40;
        pykvq_seq *seqs[64];
        static const uint32_t prompts[] = {512, 2048, 8192};
        for (int p = 0; p < (n_seq > 1 ? 0 : depth > 8192 ? 2 : 3); p++) {
            printf("{\"kv\": \"%s\", \"depth\": %u, \"prefill_%u_tokens_per_second\": %.1f}\n", argv[3], depth, prompts[p],
                   time_prompt(e, depth, prompts[p]));
            fflush(stdout);
        }
        for (uint32_t s = 0; s < n_seq; s++) {
            TRY(pykvq_seq_create(e, &seqs[s]));
            pretend_cached(e, seqs[s], depth);
        }
        double best = 1e9;
        for (uint32_t step = 0; step < n_steps; step++) {
            int32_t token = 5;
            for (uint32_t s = 0; s < n_seq; s++)
                TRY(pykvq_seq_push(seqs[s], &token, 1));
            start = seconds();
            TRY(pykvq_engine_step(e, seqs, n_seq));
            double elapsed = seconds() - start;
            best = step > 3 && elapsed < best ? elapsed : best;
        }
        printf("{\"kv\": \"%s\", \"n_seq\": %u, \"depth\": %u, \"decode_tokens_per_second\": %.1f, \"ms\": %.3f}\n",
               argv[3], n_seq, depth, n_seq / best, best * 1e3);
        fflush(stdout);
        for (uint32_t s = 0; s < n_seq; s++)
            TRY(pykvq_seq_destroy(seqs[s]));
    }
    pykvq_engine_destroy(e);
    pykvq_model_close(model);
    return 0;
}

/* Logits of the cpu without rounding of activations and of cuda, fed the same tokens. */
static int compare_model(int argc, char **argv) {
    pykvq_model *model;
    TRY(pykvq_model_open(argv[2], &model));
    const char *devices[2] = {"cpu", "cuda"};
    uint32_t n_prompt = 300, n_decode = 40, n_vocab = model->h.n_vocab;
    float *logits[2];
    for (int d = 0; d < 2; d++) {
        pykvq_engine_params params = {.size = sizeof params,
                                      .device = devices[d],
                                      .exact = d == 0,
                                      .n_ctx = 512,
                                      .kv = argv[3],
                                      .kv_sink = -1,
                                      .kv_tail = -1,
                                      .n_batch = 128,
                                      .n_logits = 128};
        pykvq_engine *e;
        pykvq_seq *seq;
        TRY(pykvq_engine_create(model, &params, &e));
        TRY(pykvq_seq_create(e, &seq));
        logits[d] = malloc((size_t)(n_decode + 1) * n_vocab * sizeof(float));
        for (uint32_t i = 0; i < n_prompt + n_decode; i++) {
            int32_t token = (int32_t)((i * 7919 + i / 3) % (n_vocab < 1000 ? n_vocab : 1000));
            TRY(pykvq_seq_push(seq, &token, 1));
            if (i + 1 < n_prompt)
                continue;
            while (pykvq_seq_n_pending(seq) > 0)
                TRY(pykvq_engine_step(e, &seq, 1));
            TRY(pykvq_seq_logits(seq, 0, 1, logits[d] + (size_t)(i + 1 - n_prompt) * n_vocab));
        }
        pykvq_engine_destroy(e);
    }
    double worst = 0, kl = 0;
    uint32_t same = 0;
    for (uint32_t i = 0; i <= n_decode; i++) {
        const float *a = logits[0] + (size_t)i * n_vocab, *b = logits[1] + (size_t)i * n_vocab;
        double difference = 0, norm = 0, sum_a = 0, sum_b = 0, top_a = -1e30, top_b = -1e30;
        uint32_t best_a = 0, best_b = 0;
        for (uint32_t t = 0; t < n_vocab; t++) {
            difference += (double)(a[t] - b[t]) * (a[t] - b[t]);
            norm += (double)a[t] * a[t];
            best_a = a[t] > a[best_a] ? t : best_a;
            best_b = b[t] > b[best_b] ? t : best_b;
        }
        top_a = a[best_a], top_b = b[best_b];
        for (uint32_t t = 0; t < n_vocab; t++)
            sum_a += exp(a[t] - top_a), sum_b += exp(b[t] - top_b);
        for (uint32_t t = 0; t < n_vocab; t++) {
            double la = a[t] - top_a - log(sum_a), lb = b[t] - top_b - log(sum_b);
            kl += exp(la) * (la - lb) / (n_decode + 1);
        }
        worst = fmax(worst, sqrt(difference / norm));
        if (!(difference < INFINITY))
            worst = INFINITY;
        same += best_a == best_b;
    }
    bool good = worst < 0.1 && kl < 0.01;
    printf("%s %s: logits cpu to cuda differ by at most %.2e of their norm, mean KL %.2e, same top %u of %u\n",
           good ? "ok  " : "FAIL", argv[3], worst, kl, same, n_decode + 1);
    return !good;
}

int main(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "kv") == 0)
        return check_kv(argc > 2 ? (uint32_t)atoi(argv[2]) : 0, argc > 3 ? argv[3] : NULL);
    if (argc >= 2 && strcmp(argv[1], "product") == 0)
        return argc > 2 ? time_products() : check_products();
    if (argc >= 2 && strcmp(argv[1], "linear") == 0)
        return time_few_rows(argc > 2 ? argv[2] : NULL, argc > 3 ? argv[3] : NULL);
    if (argc >= 2 && strcmp(argv[1], "attend") == 0)
        return time_all(argc, argv);
    if (argc >= 2 && strcmp(argv[1], "prefill") == 0)
        return time_prefill(argc, argv);
    if (argc > 5 && strcmp(argv[1], "model") == 0)
        return time_model(argc, argv);
    if (argc == 4 && strcmp(argv[1], "compare") == 0)
        return compare_model(argc, argv);
    fprintf(stderr, "usage: kvq_cuda_check kv [HEAD_DIM [KV]] | product [time] | linear [TYPE [LAST]] | attend [KV] | "
                    "prefill [KV [HEAD_DIM]] | model FILE KV N_SEQ DEPTH... | compare FILE KV\n");
    return 2;
}
