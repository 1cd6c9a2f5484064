/* Sizes computed from shapes. What size_t does not hold is SIZE_MAX, which no allocation grants: a size that is too
 * large becomes a failure to allocate, never a small one. */
#ifndef QK_SIZES_H
#define QK_SIZES_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef _WIN32
#include <malloc.h>
#endif

static inline size_t qk_times(size_t a, size_t b)
{
    size_t product;
    return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
}

static inline size_t qk_plus(size_t a, size_t b)
{
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

/* a / b if b is 1 more often than not: a division takes as long as dozens of products. */
static inline size_t qk_over(size_t a, size_t b) { return b == 1 ? a : a / b; }

static inline size_t ceil_div(size_t n, size_t by) { return n / by + (n % by != 0); }
static inline size_t round_up(size_t n, size_t step) { return qk_times(ceil_div(n, step), step); }
static inline size_t min_size(size_t n, size_t limit) { return n < limit ? n : limit; }

/* Memory of whole cache lines, or NULL. It is for qk_release: Windows has no aligned memory that can be freed. */
static inline void *qk_obtain(size_t bytes)
{
    if (bytes > PTRDIFF_MAX - 64) return NULL;
#ifdef _WIN32
    return _aligned_malloc(bytes / 64 * 64 + 64, 64);
#else
    return aligned_alloc(64, bytes / 64 * 64 + 64);
#endif
}

static inline void qk_release(void *memory)
{
#ifdef _WIN32
    _aligned_free(memory);
#else
    free(memory);
#endif
}

/* The next piece of such memory, in whole cache lines. */
static inline void *qk_carve(char **at, size_t bytes)
{
    void *here = *at;
    *at += round_up(bytes, 64);
    return here;
}

#endif
