/* The floating-point mode of a thread: rounding direction, flush-to-zero, denormals-are-zero, traps. Results promise
 * the default mode (numerics 20), whatever the caller has set: functions of qkernels.h and drivers.h begin with
 * QK_DEFAULT_MODE. */
#ifndef QK_FPMODE_H
#define QK_FPMODE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

enum { QK_MXCSR = 0x1F80, QK_MXCSR_FLAGS = 0x3F /* what has happened, not what is wanted */, QK_X87_WORD = 0x37F };

/* MXCSR is that of all arithmetic but long double's, which arguments may be. */
typedef struct {
    uint32_t mxcsr;
    uint16_t x87_word;
} qk_mode;

/* Sets the default mode in this thread; returns what it was. Writing a control register is slow, reading it is not. */
static inline qk_mode qk_enter_mode(void)
{
    qk_mode was;
    was.mxcsr = _mm_getcsr();
    if (__builtin_expect((was.mxcsr & ~(uint32_t)QK_MXCSR_FLAGS) != QK_MXCSR, 0)) _mm_setcsr(QK_MXCSR);
    __asm__ volatile("fnstcw %0" : "=m"(was.x87_word));
    if (__builtin_expect(was.x87_word != QK_X87_WORD, 0)) {
        const uint16_t word = QK_X87_WORD;
        __asm__ volatile("fldcw %0" : : "m"(word));
    }
    __asm__ volatile("" : : : "memory"); /* what is read from here on was not read before */
    return was;
}

/* The flags of the x87 are cleared where its word differs: one that our own work has raised would trap. */
static inline void qk_leave_mode(qk_mode was)
{
    __asm__ volatile("" : : : "memory");
    if (__builtin_expect((was.mxcsr & ~(uint32_t)QK_MXCSR_FLAGS) != QK_MXCSR, 0)) _mm_setcsr(was.mxcsr);
    if (__builtin_expect(was.x87_word != QK_X87_WORD, 0)) __asm__ volatile("fnclex\n\tfldcw %0" : : "m"(was.x87_word));
}

/* Whether a result of this thread was less than the smallest normal number, and inexact, since that was forgotten. */
static inline int qk_underflown(void)
{
    __asm__ volatile("" : : : "memory"); /* what is stored before was computed before */
    return (_mm_getcsr() & _MM_EXCEPT_UNDERFLOW) != 0;
}

static inline void qk_forget_underflow(void)
{
    if (qk_underflown()) _mm_setcsr(_mm_getcsr() & ~(uint32_t)_MM_EXCEPT_UNDERFLOW);
    __asm__ volatile("" : : : "memory");
}

#elif defined(__aarch64__)

typedef struct {
    uint64_t fpcr;
} qk_mode;

static inline qk_mode qk_enter_mode(void)
{
    qk_mode was;
    __asm__ volatile("mrs %0, fpcr" : "=r"(was.fpcr));
    if (was.fpcr != 0) __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    __asm__ volatile("" : : : "memory");
    return was;
}

static inline void qk_leave_mode(qk_mode was)
{
    __asm__ volatile("" : : : "memory");
    if (was.fpcr != 0) __asm__ volatile("msr fpcr, %0" : : "r"(was.fpcr));
}

#else
#error "what is the floating-point control register of this machine?"
#endif

/* The default mode from here to the end of the block, whichever way it is left. */
static inline void qk_end_scope(qk_mode *of_caller) { qk_leave_mode(*of_caller); }
#define QK_SCOPE __attribute__((cleanup(qk_end_scope), unused)) qk_mode
#define QK_DEFAULT_MODE QK_SCOPE of_caller = qk_enter_mode()

#endif
