/* What C lacks and compilers have: attributes of functions. */
#ifndef QK_COMPILER_H
#define QK_COMPILER_H

/* Inlined even where the compiler finds it too large: an argument that is constant there makes a loop of its own. */
#define QK_INLINE inline __attribute__((always_inline))
/* A function whose large frame or constants would else weigh upon the one that seldom calls it. */
#define QK_NOINLINE __attribute__((noinline))

/* Before a loop whose iterations do not depend on each other, though pointers may be equal. */
#if defined(__clang__)
#define QK_NO_DEPENDENCE _Pragma("clang loop vectorize(assume_safety)")
#else
#define QK_NO_DEPENDENCE _Pragma("GCC ivdep")
#endif

/* Intel's Macs align vectors on the stack to 16 bytes where a function may not use AVX; what takes their addresses is
 * inlined. */
#if defined(__APPLE__) && defined(__x86_64__) && defined(__clang__)
#pragma clang diagnostic ignored "-Walign-mismatch"
#endif

/* Whether the compiler knows AVX-VNNI and AMX: gcc 11 and clang 12 do. */
#if defined(__clang__) && __clang_major__ >= 12 || !defined(__clang__) && __GNUC__ >= 11
#define QK_HAVE_AVXVNNI 1
#else
#define QK_HAVE_AVXVNNI 0
#endif

/* Calls f(rows, ...) for rows up to 3, 4, 6, 8 or 12 (or bits up to 8), with a constant for them: f is inlined for
 * each.
 */
#define ROWS_3(rows, f, ...) ROWS_CASES(rows, 3, ROWS_1_2, f, __VA_ARGS__)
#define ROWS_4(rows, f, ...) ROWS_CASES(rows, 4, ROWS_1_3, f, __VA_ARGS__)
#define ROWS_6(rows, f, ...) ROWS_CASES(rows, 6, ROWS_1_5, f, __VA_ARGS__)
#define ROWS_8(rows, f, ...) ROWS_CASES(rows, 8, ROWS_1_7, f, __VA_ARGS__)
#define ROWS_12(rows, f, ...) ROWS_CASES(rows, 12, ROWS_1_11, f, __VA_ARGS__)
#define ROWS_CASES(rows, most, fewer, f, ...)                                                                          \
    switch (rows) {                                                                                                    \
        fewer(f, __VA_ARGS__) default : f(most, __VA_ARGS__);                                                          \
    }
#define ROWS_CASE(n, f, ...)                                                                                           \
    case n: f(n, __VA_ARGS__); break;
#define ROWS_1_2(f, ...) ROWS_CASE(1, f, __VA_ARGS__) ROWS_CASE(2, f, __VA_ARGS__)
#define ROWS_1_3(f, ...) ROWS_1_2(f, __VA_ARGS__) ROWS_CASE(3, f, __VA_ARGS__)
#define ROWS_1_5(f, ...) ROWS_1_3(f, __VA_ARGS__) ROWS_CASE(4, f, __VA_ARGS__) ROWS_CASE(5, f, __VA_ARGS__)
#define ROWS_1_7(f, ...) ROWS_1_5(f, __VA_ARGS__) ROWS_CASE(6, f, __VA_ARGS__) ROWS_CASE(7, f, __VA_ARGS__)
#define ROWS_1_9(f, ...) ROWS_1_7(f, __VA_ARGS__) ROWS_CASE(8, f, __VA_ARGS__) ROWS_CASE(9, f, __VA_ARGS__)
#define ROWS_1_11(f, ...) ROWS_1_9(f, __VA_ARGS__) ROWS_CASE(10, f, __VA_ARGS__) ROWS_CASE(11, f, __VA_ARGS__)

#endif
