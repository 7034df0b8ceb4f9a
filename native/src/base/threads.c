/*
 * A team of threads for fork and join. A job is announced by a new value of `generation` and is over when `n_running` is 0;
 * the barrier counts arrivals and then moves `phase` on. Whoever waits for a word to change spins for a short while, then
 * sleeps on it with a futex. A team with more threads than cores never spins.
 */
#define _GNU_SOURCE
#include "base/threads.h"
#include "base/memory.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 1024, SPIN_NS = 40000 };

typedef struct waitable { /* a word that threads wait on; each has a cache line of its own */
    alignas(64) atomic_uint word;
    atomic_uint n_sleeping;
} waitable;

typedef struct worker {
    kvq_threads *team;
    uint32_t i;
    pthread_t thread;
} worker;

struct kvq_threads {
    uint32_t n;       /* with the caller of run */
    uint32_t n_bytes; /* of this allocation */
    bool spin;
    kvq_job *job; /* NULL in a new generation: workers exit */
    void *context;
    waitable generation, n_running, phase;
    alignas(64) atomic_uint n_arrived;
    alignas(64) atomic_uint next;
    worker workers[]; /* (n - 1) */
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Returns once w->word is not `old`. */
static void wait_change(waitable *w, uint32_t old, bool spin) {
    for (int64_t start = 0; spin;) {
        for (int i = 0; i < 32; i++, pause_cpu())
            if (atomic_load_explicit(&w->word, memory_order_acquire) != old)
                return;
        int64_t now = now_ns();
        start = start ? start : now;
        spin = now - start < SPIN_NS;
    }
    while (atomic_load(&w->word) == old) {
        atomic_fetch_add(&w->n_sleeping, 1); /* before the kernel looks at the word again: no wake-up is missed */
        syscall(SYS_futex, &w->word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
        atomic_fetch_sub(&w->n_sleeping, 1);
    }
}

static void wake_all(waitable *w) { /* after the word has changed */
    if (atomic_load(&w->n_sleeping) > 0)
        syscall(SYS_futex, &w->word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void *work(void *argument) {
    worker *self = argument;
    kvq_threads *team = self->team;
    for (uint32_t generation = 0;; generation++) {
        wait_change(&team->generation, generation, team->spin);
        if (team->job == NULL)
            return NULL;
        team->job(team->context, self->i, team->n);
        if (atomic_fetch_sub(&team->n_running.word, 1) == 1)
            wake_all(&team->n_running);
    }
}

static void announce(kvq_threads *team, kvq_job *job, void *context) {
    team->job = job;
    team->context = context;
    atomic_fetch_add(&team->generation.word, 1);
    wake_all(&team->generation);
}

pykvq_status kvq_threads_create(uint32_t n_threads, kvq_threads **out) {
    *out = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return kvq_fail(PYKVQ_E_ARGUMENT, "threads: %u asked for, expected 1 to %d", n_threads, MAX_THREADS);
    size_t n_bytes = sizeof(kvq_threads) + (n_threads - 1) * sizeof(worker);
    kvq_threads *team = kvq_alloc(n_bytes);
    if (team == NULL)
        return kvq_fail(PYKVQ_E_MEMORY, "threads: no memory for a team of %u", n_threads);
    team->n_bytes = (uint32_t)n_bytes;
    team->spin = n_threads <= kvq_threads_available();

    sigset_t all, old; /* workers leave every signal to the threads of the program */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = 0;
    for (team->n = 1; team->n < n_threads; team->n++) {
        worker *w = &team->workers[team->n - 1];
        w->team = team;
        w->i = team->n;
        if ((error = pthread_create(&w->thread, NULL, work, w)) != 0)
            break;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error != 0) {
        uint32_t n = team->n;
        kvq_threads_destroy(team);
        return kvq_fail(PYKVQ_E_MEMORY, "threads: the system gave %u of %u (%s)", n, n_threads, strerror(error));
    }
    *out = team;
    return PYKVQ_OK;
}

void kvq_threads_destroy(kvq_threads *team) {
    if (team == NULL)
        return;
    announce(team, NULL, NULL);
    for (uint32_t i = 1; i < team->n; i++)
        pthread_join(team->workers[i - 1].thread, NULL);
    kvq_free(team, team->n_bytes);
}

uint32_t kvq_threads_count(const kvq_threads *team) {
    return team->n;
}

void kvq_threads_run(kvq_threads *team, kvq_job *job, void *context) {
    atomic_store_explicit(&team->next, 0, memory_order_relaxed);
    if (team->n == 1) {
        job(context, 0, 1);
        return;
    }
    atomic_store_explicit(&team->n_running.word, team->n - 1, memory_order_relaxed);
    announce(team, job, context);
    job(context, 0, team->n);
    for (uint32_t left; (left = atomic_load(&team->n_running.word)) != 0;)
        wait_change(&team->n_running, left, team->spin);
}

uint32_t kvq_threads_next(kvq_threads *team) {
    return atomic_fetch_add_explicit(&team->next, 1, memory_order_relaxed);
}

void kvq_threads_barrier(kvq_threads *team) {
    if (team->n == 1)
        return;
    uint32_t phase = atomic_load(&team->phase.word);
    if (atomic_fetch_add(&team->n_arrived, 1) + 1 < team->n) {
        wait_change(&team->phase, phase, team->spin);
        return;
    }
    atomic_store(&team->n_arrived, 0); /* the last one: everybody else waits for the phase */
    atomic_fetch_add(&team->phase.word, 1);
    wake_all(&team->phase);
}

/* The cores that a cgroup's quota is worth, rounded up; UINT32_MAX without one. */
static uint32_t quota_cores(void) {
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (file == NULL)
        return UINT32_MAX;
    uint64_t quota, period; /* "max 100000" does not scan: no quota */
    bool limited = fscanf(file, "%lu %lu", &quota, &period) == 2 && quota > 0 && period > 0;
    fclose(file);
    return limited ? (uint32_t)((quota + period - 1) / period) : UINT32_MAX;
}

uint32_t kvq_threads_available(void) {
    enum { MAX_CORES = 1 << 16 }; /* cpu_set_t alone ends at 1024 */
    unsigned long set[MAX_CORES / (8 * sizeof(unsigned long))] = {0};
    uint32_t n = 1;
    if (sched_getaffinity(0, sizeof set, (cpu_set_t *)set) == 0)
        n = (uint32_t)CPU_COUNT_S(sizeof set, (cpu_set_t *)set);
    uint32_t quota = quota_cores();
    return quota < n ? quota : n;
}
