/* The floating-point mode of a thread: rounding direction, flush-to-zero, denormals-are-zero, traps. Results promise the default
 * mode (numerics 20), whatever the caller has set: who enters the library puts it back when it leaves. */
#ifndef QK_FPMODE_H
#define QK_FPMODE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

enum { QK_DEFAULT_MODE = 0x1F80, QK_MODE_FLAGS = 0x3F /* what has happened, not what is wanted */ };
typedef uint32_t qk_mode;

/* Sets the default mode in this thread; returns what it was. Writing the register is slow, reading it is not. */
static inline qk_mode qk_enter_mode(void)
{
    const uint32_t was = _mm_getcsr();
    if ((was & ~QK_MODE_FLAGS) != QK_DEFAULT_MODE) _mm_setcsr(QK_DEFAULT_MODE);
    return was;
}

static inline void qk_leave_mode(qk_mode was)
{
    if ((was & ~QK_MODE_FLAGS) != QK_DEFAULT_MODE) _mm_setcsr(was);
}

#elif defined(__aarch64__)

typedef uint64_t qk_mode;

static inline qk_mode qk_enter_mode(void)
{
    uint64_t was;
    const uint64_t wanted = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(was));
    if (was != wanted) __asm__ volatile("msr fpcr, %0" : : "r"(wanted));
    return was;
}

static inline void qk_leave_mode(qk_mode was)
{
    if (was != 0) __asm__ volatile("msr fpcr, %0" : : "r"(was));
}

#else
#error "what is the floating-point control register of this machine?"
#endif

#endif
