/* The floating-point mode of the calling thread, for test_fpmode.py: without the flags of what has happened. */
#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

/* MXCSR in the low half, the control word of the x87 in the high one. */
uint64_t get_mode(void)
{
    uint16_t word;
    __asm__ volatile("fnstcw %0" : "=m"(word));
    return (_mm_getcsr() & ~0x3Fu) | (uint64_t)word << 32;
}

void set_mode(uint64_t mode)
{
    const uint16_t word = (uint16_t)(mode >> 32);
    __asm__ volatile("fnclex\n\tfldcw %0" : : "m"(word));
    _mm_setcsr((uint32_t)mode);
}
#else
uint64_t get_mode(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}

void set_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#endif
