/* The instruction sets, of which one is chosen once. */
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "runtime/dispatch.h"
#include "runtime/compiler.h"

/* Best first. */
static const qk_kernels *const tables[] = {
#if defined(__x86_64__)
#if QK_HAVE_AVXVNNI
    &qk_kernels_amx,
#endif
    &qk_kernels_avx512vnni,
#if QK_HAVE_AVXVNNI
    &qk_kernels_avxvnni,
#endif
    &qk_kernels_avx512,     &qk_kernels_avx2,
#elif defined(__aarch64__)
    &qk_kernels_neon_i8mm,
    &qk_kernels_neon_dotprod,
    &qk_kernels_neon,
#endif
    &qk_kernels_scalar,
};

const char *qk_built(size_t i) { return i < sizeof tables / sizeof *tables ? tables[i]->name : NULL; }

static const qk_kernels *active; /* any thread may be the first to choose: all choose the same */

const qk_kernels *qk_find(const char *name)
{
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if ((!name || strcmp(name, tables[i]->name) == 0) && tables[i]->available()) return tables[i];
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

size_t qk_run_peak(size_t rounds)
{
    const qk_kernels *k = qk_active();
    return k->peak ? k->peak(rounds) : 0;
}

const char *qk_name(const qk_kernels *k) { return k->name; }

const char *qk_get_isa(void) { return qk_name(qk_active()); }

qk_status qk_set_isa(const char *name)
{
    const qk_kernels *k = name ? qk_find(name) : NULL;
    if (!k) return QK_INVALID;
    qk_activate(k);
    return QK_OK;
}
