/*
 * Speed of the CPU's decode attention, kernel by kernel: one query token over encoded tiles.
 *
 *   cc -O2 -D_GNU_SOURCE -Inative/include -Inative/src tools/attend_speed.c build/libkvq_core.a -lm -ldl -pthread -o
 * attend_speed
 *   ./attend_speed [-c] [-t THREADS] [-d HEAD_DIM] [-g QUERY_HEADS_PER_KV_HEAD] [-i ISA] TYPE...
 *
 * Per tile of one KV head: nanoseconds from memory (a cache larger than any L3) and from L2 (a page table that names the
 * same pages again and again), with -c instructions (counted by single steps), and from these the fractions of the memory
 * bandwidth (that of plain reads, measured first) and the instructions per cycle.
 */
#include "base/memory.h"
#include "base/threads.h"
#include "cpu/attend.h"
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

enum { N_HEAD_KV = 4, CACHE_BYTES = 256 << 20, LAYER_TILES = 128, NEAR_PAGES = 4 };

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
    for (int i = 0; i < 5; i++) {
        double start = now();
        uint64_t x = 0;
        for (int j = 0; j < 10000000; j++)
            __asm__ volatile("add $1, %0\nadd $1, %0\nadd $1, %0\nadd $1, %0" : "+r"(x));
        double seconds = now() - start;
        best = seconds < best ? seconds : best;
    }
    return 4e7 / best;
}

static void read_part(void *context, uint32_t thread, uint32_t n_threads) { /* one word of each line */
    const bench *b = context;
    size_t part = CACHE_BYTES / n_threads;
    const volatile uint8_t *at = b->cache + thread * part;
    for (size_t i = 0; i < part; i += 64)
        (void)at[i];
}

static double bandwidth(bench *b) {
    double best = 1e9;
    for (int i = 0; i < 6; i++) {
        double start = now();
        kvq_threads_run(b->threads, read_part, b);
        double seconds = now() - start;
        best = seconds < best ? seconds : best;
    }
    return CACHE_BYTES / best;
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
                codec->encode(codec, x, b->head_dim,
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
    double best = 1e9;
    uint32_t n_layers = b->n_pages / LAYER_TILES;
    for (uint32_t page = 0; page < b->n_pages; page++)
        b->pages[page] = page | KVQ_PAGE_CODED;
    for (int i = 0; i < 4; i++) {
        double start = now();
        for (uint32_t layer = 0; layer < n_layers; layer++)
            attend(b, b->pages + layer * LAYER_TILES, LAYER_TILES);
        double seconds = (now() - start) / (n_layers * LAYER_TILES * N_HEAD_KV);
        best = seconds < best ? seconds : best;
    }
    return best;
}

static double seconds_near(bench *b) {
    double best = 1e9;
    for (uint32_t page = 0; page < b->n_pages; page++)
        b->pages[page] = (page % NEAR_PAGES) | KVQ_PAGE_CODED;
    for (int i = 0; i < 20; i++) {
        double start = now();
        for (int j = 0; j < 10; j++)
            attend(b, b->pages, LAYER_TILES);
        double seconds = (now() - start) / (10 * LAYER_TILES * N_HEAD_KV);
        best = seconds < best ? seconds : best;
    }
    return best;
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

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    bench b = {.n_threads = 1, .head_dim = 64, .group = 3};
    bool counted = false;
    for (int option; (option = getopt(argc, argv, "ct:d:g:i:")) != -1;) {
        if (option == 'c')
            counted = true;
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
    double ghz = 1e-9 * cycles_per_second(), bytes_per_ns = 1e-9 * bandwidth(&b);
    printf("%.2f GHz, %u threads read %.1f GB/s; per tile of a head, head_dim %u, %u rows:\n", ghz, b.n_threads,
           bytes_per_ns, b.head_dim, b.group);
    printf("%-10s %7s %8s %8s %8s %10s %6s\n", "type", "bytes", "ns", "ns in L2", "instr", "bandwidth", "ipc");
    for (int i = optind; i < argc; i++) {
        if (!find_type(&b, argv[i])) {
            printf("%-10s cannot\n", argv[i]);
            continue;
        }
        fill(&b);
        double far = 1e9 * seconds_far(&b), near = 1e9 * seconds_near(&b), count = counted ? instructions(&b) : 0;
        size_t bytes = b.kv.k_tile_bytes + b.kv.v_tile_bytes;
        printf("%-10s %7zu %8.1f %8.1f %8.0f %9.0f%% %6.2f\n", argv[i], bytes, far, near, count,
               100 * (double)bytes / far / bytes_per_ns, count / (near * ghz * b.n_threads));
    }
    return 0;
}
