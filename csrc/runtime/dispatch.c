/* CPU features -> one table of kernels, chosen once. */
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

/* Best first. */
static const qk_kernels *const tables[] = {
#if defined(__x86_64__)
    &qk_kernels_avx512vnni,
    &qk_kernels_avx2,
#endif
    &qk_kernels_scalar,
};

#if defined(__x86_64__)
/* __builtin_cpu_supports knows f16c from clang 16 on only. */
static int has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

static int cpu_has(const qk_kernels *k)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (k == &qk_kernels_avx512vnni)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512vnni") && has_f16c();
    if (k == &qk_kernels_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#endif
    return k == &qk_kernels_scalar;
}

const char *qk_built(size_t i) { return i < sizeof tables / sizeof *tables ? tables[i]->name : NULL; }

static const qk_kernels *active; /* any thread may be the first to choose: all choose the same */

const qk_kernels *qk_find(const char *name)
{
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (cpu_has(tables[i]) && (!name || strcmp(name, tables[i]->name) == 0)) return tables[i];
    return NULL;
}

const qk_kernels *qk_active(void)
{
    const qk_kernels *k = __atomic_load_n(&active, __ATOMIC_RELAXED);
    if (!k) {
        const char *name = getenv("QKERNELS_ISA");
        k = qk_find(name && *name ? name : NULL);
        if (!k) k = qk_find(NULL);
        qk_activate(k);
    }
    return k;
}

void qk_activate(const qk_kernels *k) { __atomic_store_n(&active, k, __ATOMIC_RELAXED); }

const char *qk_name(const qk_kernels *k) { return k->name; }

const char *qk_get_isa(void) { return qk_name(qk_active()); }

qk_status qk_set_isa(const char *name)
{
    const qk_kernels *k = name ? qk_find(name) : NULL;
    if (!k) return QK_INVALID;
    qk_activate(k);
    return QK_OK;
}
