#define _GNU_SOURCE
#include "parallel.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "fpmode.h"
#include "qkernels.h"

/* Starting a region costs a few microseconds; a thread must have several times that to do. */
static const double MIN_WORK_PER_THREAD = 20e3;

static int num_threads;       /* 0: not yet read from the environment */
static int pool_was_lost;     /* in a forked child whose parent could not release its threads */
static int pool_was_released;

/* libgomp's threads do not survive a fork, and a child that waits for them waits for ever. */
static void before_fork(void) { pool_was_released = omp_pause_resource_all(omp_pause_soft) == 0; }
static void after_fork_in_child(void) { pool_was_lost = !pool_was_released; }

__attribute__((constructor)) static void register_fork_handlers(void)
{
    pthread_atfork(before_fork, NULL, after_fork_in_child);
}

static int default_num_threads(void)
{
    const char *names[] = {"QKERNELS_NUM_THREADS", "OMP_NUM_THREADS"};
    for (int i = 0; i < 2; i++) {
        const char *text = getenv(names[i]);
        if (text && atoi(text) > 0) return atoi(text);
    }
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) return CPU_COUNT(&cpus);
    return omp_get_num_procs();
}

void qk_set_num_threads(int n) { __atomic_store_n(&num_threads, n, __ATOMIC_RELAXED); }

int qk_get_num_threads(void)
{
    int n = __atomic_load_n(&num_threads, __ATOMIC_RELAXED);
    if (n == 0) qk_set_num_threads(n = default_num_threads());
    return n;
}

int qk_threads_for(size_t items, double work)
{
    if (work < 2 * MIN_WORK_PER_THREAD || pool_was_lost || omp_in_parallel()) return 1;
    size_t threads = (size_t)qk_get_num_threads();
    if (threads > items) threads = items;
    if (work / MIN_WORK_PER_THREAD < (double)threads) threads = (size_t)(work / MIN_WORK_PER_THREAD);
    return threads > 1 ? (int)threads : 1;
}

void qk_parallel_for(size_t items, double work, void (*body)(void *, size_t, size_t), void *context)
{
    int threads = qk_threads_for(items, work);
    if (threads == 1) {
        if (items) body(context, 0, items);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        (void)qk_enter_mode();   /* a thread keeps the mode of its birth, the calling one has the default mode by now */
        size_t count = (size_t)omp_get_num_threads(), me = (size_t)omp_get_thread_num();
        size_t begin = items * me / count, end = items * (me + 1) / count;
        if (begin < end) body(context, begin, end);
    }
}
