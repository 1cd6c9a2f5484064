/* Threads: one loop over independent items. */
#ifndef QK_PARALLEL_H
#define QK_PARALLEL_H

#include <stddef.h>

/* Calls body(context, begin, end) on ranges that cover 0 .. items. `work` is the time that all of it takes on one
 * thread, in nanoseconds, roughly: small work stays on the calling thread. */
void qk_parallel_for(size_t items, double work, void (*body)(void *context, size_t begin, size_t end), void *context);
/* The number of threads that qk_parallel_for would use at most. */
int qk_threads_for(size_t items, double work);

#endif
