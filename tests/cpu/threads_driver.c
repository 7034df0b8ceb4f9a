/* Drives a team of threads through jobs, barriers, shared items and sleep; prints "ok". Usage: threads_driver N_THREADS */
#include "base/memory.h"
#include "base/threads.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { N_ITEMS = 100, N_RUNS = 300 };

typedef struct work {
    kvq_threads *team;
    uint64_t *n_calls;       /* (n_threads) */
    uint32_t taken[N_ITEMS]; /* how often each item was drawn */
} work;

static void fail(const char *text) {
    printf("%s\n", text);
    exit(1);
}

static void job(void *context, uint32_t i, uint32_t n) {
    work *w = context;
    w->n_calls[i]++;
    kvq_threads_barrier(w->team);
    for (uint32_t j = 0; j < n; j++) /* everybody has counted, nobody is in the next job */
        if (w->n_calls[j] != w->n_calls[0])
            fail("the barrier let a thread pass early");
    kvq_threads_barrier(w->team);
    for (uint32_t item; (item = kvq_threads_next(w->team)) < N_ITEMS;)
        w->taken[item]++;
}

int main(int argc, char **argv) {
    uint32_t n = argc > 1 ? (uint32_t)atoi(argv[1]) : 1;
    work w = {.n_calls = calloc(n, sizeof(uint64_t))};
    if (kvq_threads_create(n, &w.team) != PYKVQ_OK)
        fail(kvq_error());
    for (uint32_t run = 0; run < N_RUNS; run++) {
        kvq_threads_run(w.team, job, &w);
        if (run % 50 == 0) /* long enough for the workers to fall asleep */
            nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    for (uint32_t i = 0; i < N_ITEMS; i++)
        if (w.taken[i] != N_RUNS)
            fail("an item was not drawn once in each run");
    for (uint32_t i = 0; i < n; i++)
        if (w.n_calls[i] != N_RUNS)
            fail("a thread missed a run");
    kvq_threads_destroy(w.team);
    free(w.n_calls);
    if (kvq_allocated_bytes() != 0)
        fail("memory leaked");
    printf("ok\n");
    return 0;
}
