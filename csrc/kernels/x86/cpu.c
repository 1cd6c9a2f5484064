/* What this CPU has. */
#if defined(__x86_64__)
#include "kernels/x86/cpu.h"

#include <cpuid.h>
#include <string.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

int qk_cpu;

typedef struct {
    unsigned a, b, c, d;
} answer;

static answer ask(unsigned leaf, unsigned part)
{
    answer r = {0, 0, 0, 0};
    __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
    return r;
}

/* Registers that the system saves: bits of XCR0. macOS saves those of AVX-512 from their first use on, and so has not
 * set their bits yet. */
static unsigned saved_registers(void)
{
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
#ifdef __APPLE__
    low |= 0xE0;
#endif
    return low;
}

static int all_of(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

void qk_ask_cpu(void)
{
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29 }; /* of leaf 1, c */
    enum { AVX2 = 1 << 5, F = 1 << 16, DQ = 1 << 17, BW = 1 << 30 };          /* of leaf 7, b */
    enum { VBMI = 1 << 1, VNNI = 1 << 11, TILE = 1 << 24, INT8 = 1 << 25 };   /* c, c, d and d */
    enum { AVXVNNI = 1 << 4 };                                                /* of its part 1, a */
    enum { OF_AVX = 6, OF_AVX512 = 0xE6 };
    const unsigned VL = 1u << 31;
    const answer vendor = ask(0, 0), first = ask(1, 0), seventh = ask(7, 0);
    const unsigned saved = all_of(first.c, OSXSAVE) ? saved_registers() : 0;
    int found = QK_CPU_ASKED;
    if (memcmp(&vendor.b, "Auth", 4) == 0 && memcmp(&vendor.d, "enti", 4) == 0) found |= QK_CPU_AMD;
    if (all_of(saved, OF_AVX) && all_of(first.c, FMA | AVX | F16C) && all_of(seventh.b, AVX2)) {
        found |= QK_CPU_AVX2;
        if (seventh.a >= 1 && all_of(ask(7, 1).a, AVXVNNI)) found |= QK_CPU_AVXVNNI;
        if (all_of(seventh.d, TILE | INT8)) found |= QK_CPU_AMX;
    }
    if (all_of(saved, OF_AVX512) && all_of(seventh.b, F | DQ | BW | VL)) {
        found |= QK_CPU_AVX512;
        if (all_of(seventh.c, VNNI)) found |= QK_CPU_AVX512VNNI;
        if (all_of(seventh.c, VBMI)) found |= QK_CPU_VBMI;
    }
    __atomic_store_n(&qk_cpu, found, __ATOMIC_RELAXED);
}

/* Signals of a process that has tiles need more of a stack. */
int qk_has_amx(void)
{
#ifdef __linux__
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return qk_cpu_has(QK_CPU_AMX) && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
    return 0;
#endif
}
#endif
