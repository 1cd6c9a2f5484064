/* What C lacks and compilers have: attributes of functions. */
#ifndef QK_COMPILER_H
#define QK_COMPILER_H

/* Inlined even where the compiler finds it too large: an argument that is constant there makes a loop of its own. */
#define QK_INLINE inline __attribute__((always_inline))
/* A function whose large frame or constants would else weigh upon the one that seldom calls it. */
#define QK_NOINLINE __attribute__((noinline))

/* Whether the compiler knows AVX-VNNI: gcc 11 and clang 12 do. */
#if defined(__clang__) && __clang_major__ >= 12 || !defined(__clang__) && __GNUC__ >= 11
#define QK_HAVE_AVXVNNI 1
#else
#define QK_HAVE_AVXVNNI 0
#endif

#endif
