/* Threads: one loop over independent items, which signals can interrupt. */
#ifndef QK_PARALLEL_H
#define QK_PARALLEL_H

#include <stddef.h>
#include <stdint.h>

#include "include/qkernels.h"

/* Calls body(context, begin, end) on ranges that cover 0 .. items, each once, in any order, on this thread and others.
 * `work` is the time that all of it takes on one thread, in nanoseconds, roughly: small work is one range, on this
 * thread; ranges of long work take some 10 ms each. Returns 0, or QK_INTERRUPTED, and then some ranges may be missing.
 * A loop within a body is not divided further. */
int qk_parallel_for(size_t items, double work, void (*body)(void *context, size_t begin, size_t end), void *context);
/* The number of threads that qk_parallel_for would use at most. */
int qk_threads_for(size_t items, double work);
/* Whether the call that this thread works for has been interrupted: for bodies to ask, every millisecond or so, within
 * an item that can be long; they return then. Costs a load where no loop of the process is long, else a few
 * nanoseconds. A call that is not qk_stoppable when a body begins will not be stopped in it. */
extern int qk_long_loops; /* of the process, in work now */
int qk_call_is_stopped(void);
static inline int qk_stoppable(void) { return __atomic_load_n(&qk_long_loops, __ATOMIC_RELAXED) != 0; }
static inline int qk_stopped(void) { return qk_stoppable() && qk_call_is_stopped(); }
/* The same in a loop over rows, of which thousands take no time; it may count in steps of a power of two. */
static inline int qk_stopped_at(size_t row) { return row % 4096 == 0 && qk_stopped(); }

/* *most = max(*most, value), from several threads. */
static inline void qk_keep_most(int32_t *most, int32_t value)
{
    int32_t seen = __atomic_load_n(most, __ATOMIC_RELAXED);
    while (value > seen && !__atomic_compare_exchange_n(most, &seen, value, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

#endif
