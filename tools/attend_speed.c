/*
 * Speed of the CPU's kernels over encoded tiles: decode attention of one query token, and encoding.
 *
 *   attend_speed [-c] [-j] [-t THREADS] [-d HEAD_DIM] [-g QUERY_HEADS_PER_KV_HEAD] [-i ISA] TYPE...
 *
 * Per tile of one KV head: nanoseconds from memory (a cache larger than any L3) and from L2 (a page table that names the
 * same pages again and again), with -c instructions (counted by single steps), and from these the fractions of the memory
 * bandwidth (that of plain reads, measured first) and the instructions per cycle; then the nanoseconds in which one thread
 * encodes a K and a V tile. -j: as JSON lines. tools/kernel_speed.py builds and runs it, for tools/bench/cpu_kernels.jsonl.
 *
 * The cache is passed over in short pieces. Of these the quickest quarter counts, so that a busy machine shows the same
 * figures as an idle one.
 */
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/attend.h"
#include "cpu/encode.h"
#include "cpu/isa.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { N_HEAD_KV = 4, CACHE_BYTES = 256 << 20, READ_BYTES = 1 << 20, LAYER_TILES = 128, NEAR_PAGES = 4, N_PASSES = 4 };

typedef struct bench {
    uint32_t n_threads, head_dim, group, n_pages;
    kvq_backend_limits limits;
    kvq_threads *threads;
    void *scratch;
    uint8_t *cache;
    float *q, *o;
    kvq_kv_layer kv;
    kvq_page *pages; /* (n_pages) */
} bench;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cycles_per_second(void) { /* by a chain of additions, one a cycle */
    double best = 1e9;
    for (int i = 0; i < 500; i++) {
        double start = now();
        uint64_t x = 0;
        for (int j = 0; j < 100000; j++)
            __asm__ volatile("add $1, %0\nadd $1, %0\nadd $1, %0\nadd $1, %0" : "+r"(x));
        double seconds = now() - start;
        best = seconds < best ? seconds : best;
    }
    return 4e5 / best;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* What the quickest quarter of n pieces took at most; sorts them. */
static double quick(double *seconds, size_t n) {
    qsort(seconds, n, sizeof *seconds, compare);
    return seconds[n / 4];
}

static void read_part(void *context, uint32_t thread, uint32_t n_threads) { /* one word of each line */
    size_t part = READ_BYTES / n_threads;
    const volatile uint8_t *at = (const uint8_t *)context + thread * part;
    for (size_t i = 0; i < part; i += 64)
        (void)at[i];
}

static double bandwidth(bench *b) {
    static double seconds[N_PASSES * (CACHE_BYTES / READ_BYTES)];
    size_t n = 0;
    for (int pass = 0; pass < N_PASSES; pass++)
        for (size_t at = 0; at < CACHE_BYTES; at += READ_BYTES) {
            double start = now();
            kvq_threads_run(b->threads, read_part, b->cache + at);
            seconds[n++] = now() - start;
        }
    return READ_BYTES / quick(seconds, n);
}

static float noise(uint64_t *state) { /* roughly normal */
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) * 0x1p-24f;
    }
    return (sum - 2) * 1.7f;
}

/* Fills all pages with the tiles of a few. */
static void fill(bench *b) {
    size_t page_bytes = N_HEAD_KV * (b->kv.k_tile_bytes + b->kv.v_tile_bytes);
    uint64_t state = 1;
    float *x = malloc(KVQ_TILE * b->head_dim * sizeof *x);
    b->n_pages = (uint32_t)(CACHE_BYTES / page_bytes);
    for (uint32_t page = 0; page < b->n_pages; page++) {
        if (page >= NEAR_PAGES) {
            memcpy(b->cache + page * page_bytes, b->cache + page % NEAR_PAGES * page_bytes, page_bytes);
            continue;
        }
        for (uint32_t head = 0; head < N_HEAD_KV; head++)
            for (int side = 0; side < 2; side++) {
                const kvq_codec *codec = side ? b->kv.v : b->kv.k;
                for (uint32_t i = 0; i < KVQ_TILE * b->head_dim; i++)
                    x[i] = noise(&state);
                kvq_encode_tokens(codec, x, b->head_dim,
                                  side ? kvq_coded_v(&b->kv, page, head) : kvq_coded_k(&b->kv, page, head));
            }
    }
    free(x);
}

static void attend(bench *b, const kvq_page *pages, uint32_t n_tiles) {
    kvq_span span = {.n_tokens = 1, .pos = n_tiles * KVQ_TILE - 1, .pages = {pages}};
    kvq_batch batch = {.n_tokens = 1, .n_spans = 1, .spans = &span};
    kvq_attention a = {.n_head = N_HEAD_KV * b->group, .q = b->q, .o = b->o, .scale = 0.1f, .kv = &b->kv};
    kvq_attend(b->threads, b->scratch, &b->limits, &batch, &a);
}

/* Seconds per tile of one head */
static double seconds_far(bench *b) {
    static double seconds[N_PASSES * CACHE_BYTES / (LAYER_TILES * 64)];
    uint32_t n_layers = b->n_pages / LAYER_TILES;
    size_t n = 0;
    for (uint32_t page = 0; page < b->n_pages; page++)
        b->pages[page] = page | KVQ_PAGE_CODED;
    for (int pass = 0; pass < N_PASSES; pass++)
        for (uint32_t layer = 0; layer < n_layers; layer++) {
            double start = now();
            attend(b, b->pages + layer * LAYER_TILES, LAYER_TILES);
            seconds[n++] = (now() - start) / (LAYER_TILES * N_HEAD_KV);
        }
    return quick(seconds, n);
}

static double seconds_near(bench *b) {
    double seconds[400];
    for (uint32_t page = 0; page < b->n_pages; page++)
        b->pages[page] = (page % NEAR_PAGES) | KVQ_PAGE_CODED;
    for (int i = 0; i < 400; i++) {
        double start = now();
        attend(b, b->pages, LAYER_TILES);
        seconds[i] = (now() - start) / (LAYER_TILES * N_HEAD_KV);
    }
    return quick(seconds, 400);
}

static double seconds_to_encode(const bench *b, const kvq_codec *codec) {
    double seconds[400];
    uint64_t state = 1;
    float *x = malloc(KVQ_TILE * b->head_dim * sizeof *x);
    uint8_t *tile = aligned_alloc(64, b->kv.k_tile_bytes + b->kv.v_tile_bytes);
    for (uint32_t i = 0; i < KVQ_TILE * b->head_dim; i++)
        x[i] = noise(&state);
    for (int i = 0; i < 400; i++) {
        double start = now();
        kvq_encoder_of(codec)->encode(codec, x, b->head_dim, tile);
        seconds[i] = now() - start;
    }
    free(x);
    free(tile);
    return quick(seconds, 400);
}

/* Single steps of a child over this many tiles, one thread */
static uint64_t steps(bench *b, uint32_t n_tiles) {
    pid_t child = fork();
    if (child == 0) {
        bench own = *b;
        kvq_threads_create(1, &own.threads);
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        attend(&own, b->pages, n_tiles);
        raise(SIGSTOP);
        attend(&own, b->pages, n_tiles);
        raise(SIGUSR1);
        _exit(0);
    }
    int status;
    uint64_t n = 0;
    waitpid(child, &status, 0);
    for (;; n++) {
        ptrace(PTRACE_SINGLESTEP, child, 0, 0);
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status) || WSTOPSIG(status) == SIGUSR1)
            break;
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return n;
}

static double instructions(bench *b) {
    return (double)(steps(b, 12) - steps(b, 4)) / (8 * N_HEAD_KV);
}

static bool find_type(bench *b, const char *name) {
    const kvq_kv_type *type = kvq_kv_type_find(name);
    if (type == NULL)
        return false;
    b->kv = (kvq_kv_layer){.n_head_kv = N_HEAD_KV, .head_dim = b->head_dim, .k = type->k, .v = type->v};
    b->kv.k_tile_bytes = (type->k->tile_bytes(type->k, b->head_dim) + 63) / 64 * 64;
    b->kv.v_tile_bytes = (type->v->tile_bytes(type->v, b->head_dim) + 63) / 64 * 64;
    b->kv.coded = b->cache;
    return b->kv.k_tile_bytes > 0;
}

/* What is measured of a type: bytes, seconds and instructions per tile of a head. */
typedef struct measured {
    double ghz, bytes_per_ns; /* of the machine */
    size_t bytes;             /* K and V */
    double far, near, instructions, encode_k, encode_v;
} measured;

static void print_row(const bench *b, const char *type, const measured *m, bool as_json) {
    if (as_json)
        printf(
            "{\"task\": \"kernels\", \"kv\": \"%s\", \"isa\": \"%s\", \"n_threads\": %u, \"head_dim\": %u, \"n_rows\": %u, "
            "\"ghz\": %.2f, \"bytes_per_ns\": %.1f, \"tile_bytes\": %zu, \"ns_memory\": %.1f, \"ns_l2\": %.1f, "
            "\"instructions\": %.0f, \"ns_encode_k\": %.0f, \"ns_encode_v\": %.0f}\n",
            type, pykvq_cpu_isa(), b->n_threads, b->head_dim, b->group, m->ghz, m->bytes_per_ns, m->bytes, 1e9 * m->far,
            1e9 * m->near, m->instructions, 1e9 * m->encode_k, 1e9 * m->encode_v);
    else
        printf("%-10s %7zu %8.1f %8.1f %8.0f %9.0f%% %6.2f %8.0f %8.0f\n", type, m->bytes, 1e9 * m->far, 1e9 * m->near,
               m->instructions, 100 * (double)m->bytes / (1e9 * m->far) / m->bytes_per_ns,
               m->instructions / (1e9 * m->near * m->ghz * b->n_threads), 1e9 * m->encode_k, 1e9 * m->encode_v);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    bench b = {.n_threads = 1, .head_dim = 64, .group = 3};
    bool counted = false, as_json = false;
    for (int option; (option = getopt(argc, argv, "cjt:d:g:i:")) != -1;) {
        if (option == 'c')
            counted = true;
        else if (option == 'j')
            as_json = true;
        else if (option == 't')
            b.n_threads = (uint32_t)atoi(optarg);
        else if (option == 'd')
            b.head_dim = (uint32_t)atoi(optarg);
        else if (option == 'g')
            b.group = (uint32_t)atoi(optarg);
        else if (option != 'i' || pykvq_cpu_select(optarg) != PYKVQ_OK)
            return 2;
    }
    b.limits = (kvq_backend_limits){.n_threads = b.n_threads,
                                    .n_batch = 1,
                                    .max_n_head = N_HEAD_KV * b.group,
                                    .max_head_dim = b.head_dim,
                                    .max_head_group = b.group};
    kvq_threads_create(b.n_threads, &b.threads);
    b.scratch = aligned_alloc(1 << 12, (kvq_attend_scratch_bytes(&b.limits) + 4095) / 4096 * 4096);
    b.cache = aligned_alloc(2 << 20, CACHE_BYTES);
    madvise(b.cache, CACHE_BYTES, MADV_HUGEPAGE);
    memset(b.cache, 1, CACHE_BYTES);
    b.q = malloc(N_HEAD_KV * b.group * b.head_dim * sizeof(float));
    b.o = malloc(N_HEAD_KV * b.group * b.head_dim * sizeof(float));
    b.pages = malloc(CACHE_BYTES / 64 * sizeof *b.pages);
    uint64_t state = 7;
    for (uint32_t i = 0; i < N_HEAD_KV * b.group * b.head_dim; i++)
        b.q[i] = noise(&state);
    measured m = {.ghz = 1e-9 * cycles_per_second(), .bytes_per_ns = 1e-9 * bandwidth(&b)};
    if (!as_json) {
        printf("%.2f GHz, %u threads read %.1f GB/s; per tile of a head, head_dim %u, %u rows:\n", m.ghz, b.n_threads,
               m.bytes_per_ns, b.head_dim, b.group);
        printf("%-10s %7s %8s %8s %8s %10s %6s %8s %8s\n", "type", "bytes", "ns", "ns in L2", "instr", "bandwidth", "ipc",
               "encode K", "encode V");
    }
    for (int i = optind; i < argc; i++) {
        if (!find_type(&b, argv[i])) {
            printf("%-10s cannot\n", argv[i]);
            continue;
        }
        fill(&b);
        m.bytes = b.kv.k_tile_bytes + b.kv.v_tile_bytes;
        m.far = seconds_far(&b);
        m.near = seconds_near(&b);
        m.instructions = counted ? instructions(&b) : 0;
        m.encode_k = seconds_to_encode(&b, b.kv.k);
        m.encode_v = seconds_to_encode(&b, b.kv.v);
        print_row(&b, argv[i], &m, as_json);
    }
    return 0;
}
