/* What this core can do at most: multiply-accumulates from registers alone, and streams with no arithmetic.
 *
 * Each function carries its own target, so the file compiles without -march, and the caller asks `has_*` first.
 * Accumulators have names and pass through an empty asm at every step: the compiler can neither merge steps, nor
 * hoist a product out of the loop, nor keep them in memory. Twelve chains cover latency 5 at 2 instructions a cycle. */
#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

/* ---- peaks: `steps` rounds of 12 multiply-accumulates of a register ---- */

#if defined(__aarch64__)
#define REGISTER "w"
#else
#define REGISTER "x"
#endif

/* Define `peak_<name>`. `a` passes through the asm too: else one product of a and b would serve all accumulators. */
#define PEAK(name, TARGET, vector, step)                                                                               \
    TARGET INLINE vector name(vector c, vector *a, vector b)                                                           \
    {                                                                                                                  \
        __asm__("" : "+" REGISTER(*a));                                                                                \
        c = step;                                                                                                      \
        __asm__("" : "+" REGISTER(c));                                                                                 \
        return c;                                                                                                      \
    }                                                                                                                  \
    TARGET void peak_##name(size_t steps, vector *sink)                                                                \
    {                                                                                                                  \
        vector a, b, c0 = {0}, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0, c8 = c0, c9 = c0;        \
        vector c10 = c0, c11 = c0;                                                                                     \
        __builtin_memset(&a, 0x3c, sizeof a); /* bytes of 60, floats of 0.01 */                                        \
        b = a;                                                                                                         \
        __asm__("" : "+" REGISTER(b));                                                                                 \
        for (size_t i = 0; i < steps; i++) {                                                                           \
            c0 = name(c0, &a, b), c1 = name(c1, &a, b), c2 = name(c2, &a, b), c3 = name(c3, &a, b);                    \
            c4 = name(c4, &a, b), c5 = name(c5, &a, b), c6 = name(c6, &a, b), c7 = name(c7, &a, b);                    \
            c8 = name(c8, &a, b), c9 = name(c9, &a, b), c10 = name(c10, &a, b), c11 = name(c11, &a, b);                \
        }                                                                                                              \
        *sink = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9 + c10 + c11;                                           \
    }

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

int has_avx512vnni(void) { return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"); }
int has_avxvnni(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}
int has_avx512(void) { return __builtin_cpu_supports("avx512bw"); }
int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

#if defined(__linux__) && (defined(__clang__) || __GNUC__ >= 11)
#include <sys/syscall.h>
#include <unistd.h>

int has_amx(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 24 & 1 && d >> 25 & 1 &&
        syscall(SYS_arch_prctl, 0x1023, 18) == 0; /* ARCH_REQ_XCOMP_PERM, tiles */
}

/* `steps` rounds of four products of tiles: 16 x 64 by 64 x 16. */
__attribute__((target("amx-tile,amx-int8"))) void peak_tdpbusd(size_t steps, void *sink)
{
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    (void)sink;
    _tile_loadconfig(&shape);
    for (size_t i = 0; i < steps; i++) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_release();
}
#else
int has_amx(void) { return 0; }
#endif

#define AVX512VNNI __attribute__((target("avx512vl,avx512vnni")))
#define AVXVNNI __attribute__((target("avxvnni")))
#define AVX512 __attribute__((target("avx512bw")))
#define AVX2 __attribute__((target("avx2,fma")))

PEAK(vpdpbusd, AVX512VNNI, __m512i, _mm512_dpbusd_epi32(c, *a, b))
PEAK(vpdpwssd, AVX512VNNI, __m512i, _mm512_dpwssd_epi32(c, *a, b))
PEAK(vpdpbusd_256, AVXVNNI, __m256i, _mm256_dpbusd_avx_epi32(c, *a, b))
PEAK(vpmaddwd_512, AVX512, __m512i, _mm512_add_epi32(c, _mm512_madd_epi16(*a, b)))
PEAK(vpmaddwd, AVX2, __m256i, _mm256_add_epi32(c, _mm256_madd_epi16(*a, b)))
/* Two steps of small weights, added before they are widened; two orders of operands, or one product would do. */
PEAK(vpmaddubsw_512, AVX512, __m512i,
     _mm512_add_epi32(c,
                      _mm512_madd_epi16(_mm512_add_epi16(_mm512_maddubs_epi16(*a, b), _mm512_maddubs_epi16(b, *a)), b)))
PEAK(vpmaddubsw, AVX2, __m256i,
     _mm256_add_epi32(c,
                      _mm256_madd_epi16(_mm256_add_epi16(_mm256_maddubs_epi16(*a, b), _mm256_maddubs_epi16(b, *a)), b)))
PEAK(fma_512, AVX512, __m512, _mm512_fmadd_ps(*a, b, c))
PEAK(fma_256, AVX2, __m256, _mm256_fmadd_ps(*a, b, c))

#else
int has_avx512vnni(void) { return 0; }
int has_avxvnni(void) { return 0; }
int has_avx512(void) { return 0; }
int has_avx2(void) { return 0; }
int has_amx(void) { return 0; }
#endif

#if defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>

int has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; }
int has_i8mm(void) { return getauxval(AT_HWCAP2) >> 13 & 1; }
#elif defined(__APPLE__)
#include <sys/sysctl.h>

static int has(const char *name)
{
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname(name, &found, &size, NULL, 0) == 0 && found;
}
int has_dotprod(void) { return has("hw.optional.arm.FEAT_DotProd"); }
int has_i8mm(void) { return has("hw.optional.arm.FEAT_I8MM"); }
#else
int has_dotprod(void) { return 0; }
int has_i8mm(void) { return 0; }
#endif
int has_neon(void) { return 1; }

#define NEON
#define DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#define I8MM __attribute__((target("arch=armv8.2-a+i8mm")))
PEAK(umull, NEON, uint32x4_t,
     vpadalq_u16(c, vmull_u8(vreinterpret_u8_u32(vget_low_u32(*a)), vreinterpret_u8_u32(vget_low_u32(b)))))
PEAK(udot, DOTPROD, uint32x4_t, vdotq_u32(c, vreinterpretq_u8_u32(*a), vreinterpretq_u8_u32(b)))
PEAK(usmmla, I8MM, int32x4_t, vusmmlaq_s32(c, vreinterpretq_u8_s32(*a), vreinterpretq_s8_s32(b)))
PEAK(smlal, NEON, int32x4_t,
     vmlal_s16(c, vreinterpret_s16_s32(vget_low_s32(*a)), vreinterpret_s16_s32(vget_low_s32(b))))
PEAK(fmla, NEON, float32x4_t, vfmaq_f32(c, *a, b))
#else
int has_neon(void) { return 0; }
int has_dotprod(void) { return 0; }
int has_i8mm(void) { return 0; }
#endif

/* ---- streams: cache lines, by two 256-bit registers each; 512-bit ones are no faster beyond the L1 cache ---- */

typedef int64_t half __attribute__((vector_size(32), aligned(32), may_alias));

/* Eight lines a group; four chains, since one would wait for its own latency. */
INLINE void read_lines(const half *from, half *sink, size_t groups)
{
    half a = {0}, b = a, c = a, d = a;
    for (size_t i = 0; i < groups; i++, from += 16) {
        a |= from[0], b |= from[1], c |= from[2], d |= from[3];
        a |= from[4], b |= from[5], c |= from[6], d |= from[7];
        a |= from[8], b |= from[9], c |= from[10], d |= from[11];
        a |= from[12], b |= from[13], c |= from[14], d |= from[15];
    }
    *sink = a | b | c | d;
}

/* `reads` and `writes` are constants where this is inlined. The barrier keeps the loop from becoming a memcpy. */
INLINE void move_lines(const half *from, half *to, size_t groups, const int reads, const int writes)
{
    for (size_t i = 0; i < groups; i++, from += 2 * reads, to += 2 * writes) {
        half a = from[0], b = from[1];
        for (int j = 1; j < reads; j++) a |= from[2 * j], b |= from[2 * j + 1];
        for (int j = 0; j < writes; j++) to[2 * j] = a, to[2 * j + 1] = b;
        __asm__ volatile("" ::: "memory");
    }
}

/* The traffic of an operation without its arithmetic: 8:0, 4:1, 1:1 or 1:4 lines read and written a group. */
INLINE void stream(int reads, int writes, const half *from, half *to, size_t groups)
{
    if (writes == 0)
        read_lines(from, to, groups);
    else if (reads > writes)
        move_lines(from, to, groups, 4, 1);
    else if (reads == writes)
        move_lines(from, to, groups, 1, 1);
    else
        move_lines(from, to, groups, 1, 4);
}

void stream_baseline(int reads, int writes, const half *from, half *to, size_t groups)
{
    stream(reads, writes, from, to, groups);
}

#if defined(__x86_64__)
AVX2 void stream_avx2(int reads, int writes, const half *from, half *to, size_t groups)
{
    stream(reads, writes, from, to, groups);
}
#endif
