/* What the drivers of arrays of elements share. */
#ifndef QK_ELEMENTWISE_H
#define QK_ELEMENTWISE_H

#include "drivers/drivers.h"

enum { PIECE = 32768 }; /* elements of a long run that a thread takes at a time */

static inline size_t size_of(qk_dtype t)
{
    static const uint8_t sizes[] = {4, 8, 2, 2, 1, 1, 2, 2, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    return sizes[t];
}

/* The codes of a type; int32, and codes that are floats, have those that zero points can have. */
static inline int32_t least_code(qk_dtype t)
{
    static const int32_t least[QK_F4_E2M1 + 1] = {0, 0, 0, 0, -128, 0, -32768, 0, -32768, -8, 0, -2, 0};
    return least[t];
}

static inline int32_t most_code(qk_dtype t)
{
    static const int32_t most[QK_F4_E2M1 + 1] = {0, 0, 0, 0, 127, 255, 32767, 65535, 65535, 7, 15, 1, 3};
    return most[t];
}

/* Whatever number the enumerator is. */
static inline int is_float(qk_dtype t) { return (unsigned)t <= QK_BF16; }
static inline int is_code(qk_dtype t) { return (unsigned)t >= QK_I8 && (unsigned)t <= QK_U2 && t != QK_I32; }
static inline int is_small_float(qk_dtype t) { return (unsigned)t >= QK_F8_E4M3 && (unsigned)t <= QK_F4_E2M1; }

/* Clears what lies above the code in a byte. */
static inline void keep_bits(void *q, qk_dtype to, size_t n)
{
    if (to < QK_I4 || to > QK_U2) return;
    const uint8_t mask = to <= QK_U4 ? 15 : 3;
    uint8_t *bytes = q;
    for (size_t i = 0; i < n; i++) bytes[i] &= mask;
}

/* How many of n elements lie before a cache line begins: a vector that straddles two costs twice. */
static inline size_t before_line(const void *p, size_t size, size_t n)
{
    return n < 1024 ? 0 : (-(uintptr_t)p & 63) / size;
}

/* Bytes that an operation reads and writes, above which its results are stored past the caches, which would hardly keep
 * them for who reads them: so lines need not be read before they are written. */
enum { BEYOND_CACHES = 3 << 23 };

/* After results were so stored, and before another thread is told of them. */
static inline void qk_settle_stores(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* qk_quantize where the mode is the default one already. */
int qk_quantize_inside(const void *x, qk_dtype from, void *q, qk_dtype to, const qk_params *p, qk_rounding rounding);

#endif
