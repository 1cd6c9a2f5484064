/* Which instruction set is in use. */
#ifndef QK_DISPATCH_H
#define QK_DISPATCH_H

#include <stddef.h>

struct qk_kernels; /* one instruction set: see kernels.h */

/* Chosen on first use: what QKERNELS_ISA names if the CPU has it, else the best. */
const struct qk_kernels *qk_active(void);
const struct qk_kernels *qk_find(const char *name); /* NULL if it is not built or the CPU lacks it */
const char *qk_name(const struct qk_kernels *k);
const char *qk_built(size_t i); /* names of all that are built, best first, then NULL */
/* Multiplies as much as it can, from registers alone, so many times; returns the products, 0 if it cannot. */
size_t qk_run_peak(size_t rounds);
void qk_activate(const struct qk_kernels *k); /* for tests: what later calls use */

#endif
