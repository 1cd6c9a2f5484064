/* Intrinsics of x86-64, and what compilers want said around them. The header <immintrin.h> may set these macros itself:
 * the tests put one first on the path that emulates the instructions. */
#ifndef QK_X86_TARGET_H
#define QK_X86_TARGET_H

#include <immintrin.h>
#include <stdint.h>

#include "kernels/target_pragma.h"

/* Whether single instructions may be written as asm where compilers choose worse ones than the intrinsic says. */
#ifndef QK_ASM
#define QK_ASM 1
#endif

/* Asks for the lines of the result of a tile, rows of `width` sums, while the sums are made: to store to lines that are
 * elsewhere takes long. `rows` is a constant where this is inlined. */
static inline __attribute__((always_inline)) void ask_for_rows(const int rows, const int32_t *c, size_t ldc, int width)
{
    for (int row = 0; row < rows; row++, c += ldc) __builtin_prefetch(c, 1), __builtin_prefetch(c + width - 1, 1);
}

/* What was stored before is in memory: gcc 12 does not know that loads of tiles read it. */
#define QK_WRITTEN __asm__ volatile("" ::: "memory")

/* Registers that hold v here, or a to d at once, or a size n: what is computed before and after stays there. */
#if QK_ASM
#define QK_KEEP_SIZE(n) __asm__("" : "+r"(n))
#define QK_KEEP(v) __asm__("" : "+v"(v))
#define QK_KEEP4(a, b, c, d) __asm__("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d))
#else
#define QK_KEEP_SIZE(n) ((void)(n))
#define QK_KEEP(v) ((void)(v))
#define QK_KEEP4(a, b, c, d) ((void)(a), (void)(b), (void)(c), (void)(d))
#endif

#endif
