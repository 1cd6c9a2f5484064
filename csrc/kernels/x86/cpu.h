/* What this CPU has. Not within the target of the file that includes this, whose instructions it may lack. */
#ifndef QK_X86_CPU_H
#define QK_X86_CPU_H

#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* __builtin_cpu_supports knows f16c from clang 16 on only. */
static inline int qk_has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

static inline int qk_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && qk_has_f16c();
}

/* __builtin_cpu_supports knows AVX-VNNI from gcc 13 and clang 16 on only. */
static inline int qk_has_avxvnni(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

static inline int qk_has_avx512(void)
{
    return qk_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

/* Whether this process may use tiles, for which Linux wants to be asked: its signals then need more of a stack. */
static inline int qk_has_amx(void)
{
#ifdef __linux__
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 24 & 1 && d >> 25 & 1 &&
        syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#else
    return 0;
#endif
}

static inline int qk_has_vbmi(void) { return __builtin_cpu_supports("avx512vbmi"); }

#endif
