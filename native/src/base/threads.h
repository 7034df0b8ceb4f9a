/* A team of worker threads that runs one function at a time on all of them. */
#ifndef KVQ_BASE_THREADS_H
#define KVQ_BASE_THREADS_H

#include "base/status.h"

typedef struct kvq_threads kvq_threads;

/* job(context, i, n) for i in 0..n-1, the caller being thread 0; returns when all have returned. */
typedef void kvq_job(void *context, uint32_t i, uint32_t n);

pykvq_status kvq_threads_create(uint32_t n_threads, kvq_threads **out);
void kvq_threads_destroy(kvq_threads *threads);
uint32_t kvq_threads_count(const kvq_threads *threads);
/* Workers spin for a short while after a job (a step runs hundreds), then sleep. */
void kvq_threads_run(kvq_threads *threads, kvq_job *job, void *context);
/* Inside a job: the next of n_items shared work items, counted from 0; >= n_items when none is left. Reset by each run. */
uint32_t kvq_threads_next(kvq_threads *threads);
/* Inside a job: waits until every thread of the job has arrived. */
void kvq_threads_barrier(kvq_threads *threads);
/* Cores this process may run on. */
uint32_t kvq_threads_available(void);

#endif
