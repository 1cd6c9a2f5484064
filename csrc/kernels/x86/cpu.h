/* What this CPU has, and the system saves: asked of `cpuid` once, since a virtual machine takes a microsecond for each
 * answer, and by ourselves, since compilers know some features late and the run-time library of zig knows none. Not
 * within the target of the file that includes this, whose instructions the CPU may lack. */
#ifndef QK_X86_CPU_H
#define QK_X86_CPU_H

enum {
    QK_CPU_ASKED = 1, /* the others are 0 before */
    QK_CPU_AVX2 = 2,  /* with FMA and F16C */
    QK_CPU_AVX512 = 4,
    QK_CPU_AVX512VNNI = 8,
    QK_CPU_VBMI = 16,
    QK_CPU_AVXVNNI = 32,
    QK_CPU_AMX = 64,
    QK_CPU_AMD = 128
};
extern int qk_cpu; /* written by qk_ask_cpu, which any thread may be the first to call: all find the same */
void qk_ask_cpu(void);

static inline int qk_cpu_has(int what)
{
    if (!__atomic_load_n(&qk_cpu, __ATOMIC_RELAXED)) qk_ask_cpu();
    return (__atomic_load_n(&qk_cpu, __ATOMIC_RELAXED) & what) == what;
}

static inline int qk_has_avx2(void) { return qk_cpu_has(QK_CPU_AVX2); }
static inline int qk_has_avxvnni(void) { return qk_cpu_has(QK_CPU_AVX2 | QK_CPU_AVXVNNI); }
static inline int qk_has_avx512(void) { return qk_cpu_has(QK_CPU_AVX2 | QK_CPU_AVX512); }
static inline int qk_has_avx512vnni(void) { return qk_has_avx512() && qk_cpu_has(QK_CPU_AVX512VNNI); }
static inline int qk_has_vbmi(void) { return qk_cpu_has(QK_CPU_VBMI); }
static inline int qk_is_amd(void) { return qk_cpu_has(QK_CPU_AMD); }
/* Whether it has tiles, and this process may use them, for which Linux wants to be asked each time. */
int qk_has_amx(void);

#endif
