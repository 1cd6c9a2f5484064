/* A register of the CPU's vectors, and operations on it by names that all have: for loops that serve several
 * instruction sets. */
#ifndef QK_REGISTERS_H
#define QK_REGISTERS_H

#if defined(__aarch64__)
#include "kernels/arm/registers.h"
#else
#include "kernels/x86/elementwise.h"
#endif

#endif
