/* What this CPU has beside NEON, which each of 64 bits has. */
#ifndef QK_ARM_CPU_H
#define QK_ARM_CPU_H

#if defined(__linux__)
#include <sys/auxv.h>

enum { QK_HWCAP_ASIMDDP = 1 << 20, QK_HWCAP2_I8MM = 1 << 13 }; /* of the kernel's <asm/hwcap.h> */
static inline int qk_has_dotprod(void) { return (getauxval(AT_HWCAP) & QK_HWCAP_ASIMDDP) != 0; }
static inline int qk_has_i8mm(void) { return (getauxval(AT_HWCAP2) & QK_HWCAP2_I8MM) != 0; }

#elif defined(__APPLE__)
#include <stddef.h>
#include <sys/sysctl.h>

static inline int qk_has_feature(const char *name)
{
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value;
}

static inline int qk_has_dotprod(void) { return qk_has_feature("hw.optional.arm.FEAT_DotProd"); }
static inline int qk_has_i8mm(void) { return qk_has_feature("hw.optional.arm.FEAT_I8MM"); }

#else
static inline int qk_has_dotprod(void) { return 0; }
static inline int qk_has_i8mm(void) { return 0; }
#endif

#endif
