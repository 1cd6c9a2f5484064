/* Instruction sets that this machine may lack, on every machine: the files of csrc/kernels/x86/ compiled against SIMDe
 * (emulated/immintrin.h), whose portable C stands for each instruction, give the bits of the scalar kernels.
 * test_c_library.py compiles and runs this.
 *
 * Every function of the tables' own families is called at all lengths 0..130 (all rows and columns for tiles) on random
 * and extreme values, and outputs are followed by bytes that must not change.
 *
 * On 64-bit ARM the same is asked of the files of csrc/kernels/arm/, as the CPU runs them, or as qemu does. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"
#include "runtime/dispatch.h"

#ifdef __AVX512F__
#error "compile without AVX-512, so that SIMDe's portable code runs"
#endif

enum { LENGTHS = 131, ROWS = 3, MOST = ROWS * (LENGTHS + 5), MARGIN = 64 };
enum { TALL = 64, WIDE = 32, SIXTEEN = 16 /* rows and columns of the largest tile; columns of the scalar kernels' */ };

static const qk_kernels *simde, *const scalar = &qk_kernels_scalar;
static const char *what = "";
static size_t compared;

/* ---- random and extreme values ---- */

static uint64_t state = 88172645463325252u;

static uint32_t random32(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static float of_bits(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static void random_bytes(void *to, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)to)[i] = random32() % 3 ? (uint8_t)random32() : random32() % 2 ? 0xff : 0x80;
}

static void random_ints(int32_t *to, size_t n)
{
    static const int32_t extremes[] = {INT32_MIN, INT32_MAX, 0, -1, 1 << 24, (1 << 24) + 1};
    for (size_t i = 0; i < n; i++)
        to[i] = random32() % 4 == 0 ? extremes[random32() % 6] : (int32_t)random32() >> random32() % 32;
}

/* Halves of scale, where roundings differ, and their neighbours; and if `wild` any bits at all, and extremes. */
static void random_floats(float *to, size_t n, float scale, int wild)
{
    static const float extremes[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, FLT_MAX, -FLT_MAX, FLT_MIN, FLT_TRUE_MIN};
    for (size_t i = 0; i < n; i++) {
        const uint32_t kind = wild ? random32() % 8 : 2 + random32() % 6;
        float tie = ((float)((int32_t)random32() >> (14 + random32() % 16)) + 0.5f) * scale;
        to[i] = kind == 0 ? extremes[random32() % 9]
            : kind == 1   ? of_bits(random32())
            : kind == 2   ? nextafterf(tie, random32() % 2 ? 1e38f : -1e38f)
                          : tie;
    }
}

static float random_scale(void) { return of_bits((64 + random32() % 128) << 23 | random32() >> 9); }

/* ---- outputs: bytes, then bytes that stay as they are ---- */

static void clear(void *y, size_t bytes) { memset(y, 0xa5, bytes + MARGIN); }

static void check(const void *got, const void *want, size_t bytes, size_t n)
{
    for (size_t i = 0; i < bytes + MARGIN; i++)
        if (((const uint8_t *)got)[i] != ((const uint8_t *)want)[i]) {
            printf("%s: byte %zu of %zu differs at length %zu\n", what, i, bytes, n);
            exit(1);
        }
    compared += n;
}

/* ---- elementwise ---- */

typedef struct {
    float x[MOST], scale[LENGTHS], reciprocal[LENGTHS], multiplier[LENGTHS];
    int32_t codes[MOST], zero_point[LENGTHS], bias[LENGTHS], mantissa[LENGTHS], shift[LENGTHS];
    char got[4 * MOST + MARGIN], want[4 * MOST + MARGIN];
} arrays;

static void test_floats_to_codes(arrays *a, size_t n, int wild, int half_away, int32_t qmin, int32_t qmax)
{
    const float scale = random_scale();
    const int32_t zero_point = qmin + (int32_t)(random32() % (uint32_t)(qmax - qmin + 1));
    const qk_affine one = qk_affine_of(scale, zero_point, qmin, qmax, half_away ? QK_HALF_AWAY : QK_HALF_EVEN);
    const size_t stride = n + random32() % 6, size = ROWS * stride;
    random_floats(a->x, size, scale, wild);
    for (size_t i = 0; i < n; i++) {
        a->scale[i] = random32() % 2 ? scale : wild ? random_scale() : ldexpf(scale, (int)(random32() % 3) - 1);
        a->zero_point[i] = qmin + (int32_t)(random32() % (uint32_t)(qmax - qmin + 1));
    }
    const int multiply = qk_reciprocals(a->scale, n, a->reciprocal);
    for (int kind = 0; kind < 4; kind++) { /* one scale; columns; runs, also of half a group */
        const size_t run = kind == 0 ? n : kind == 1 ? 1 : kind == 2 ? 2 + random32() % 100 : 16u << random32() % 3;
        const qk_affines rows = {.scale = kind ? a->scale : &one.scale,
                                 .reciprocal = kind == 0 ? one.reciprocal ? &one.reciprocal : NULL
                                     : multiply          ? a->reciprocal
                                                         : NULL,
                                 .zero_point = kind ? a->zero_point : &one.zero_point,
                                 .qmin = qmin,
                                 .qmax = qmax,
                                 .half_away = half_away,
                                 .run = run,
                                 .rows = ROWS,
                                 .in_stride = stride,
                                 .out_stride = stride};
        for (int wide = qmax - qmin > 255; wide < 2; wide++) {
            const size_t bytes = size << wide;
            void *to[2] = {a->got, a->want};
            const qk_kernels *k[2] = {simde, scalar};
            what = wide ? "quantize_rows_f32_16" : "quantize_rows_f32_8";
            for (int i = 0; i < 2; i++) {
                clear(to[i], bytes);
                if (wide)
                    k[i]->elementwise->quantize_rows_f32_16(a->x, to[i], n, &rows);
                else
                    k[i]->elementwise->quantize_rows_f32_8(a->x, to[i], n, &rows);
            }
            check(a->got, a->want, bytes, n);
        }
        what = "fake_quantize_rows_f32";
        clear(a->got, 4 * size), clear(a->want, 4 * size);
        simde->elementwise->fake_quantize_rows_f32(a->x, (float *)a->got, n, &rows);
        scalar->elementwise->fake_quantize_rows_f32(a->x, (float *)a->want, n, &rows);
        check(a->got, a->want, 4 * size, n);
    }
    what = "quantize_f32_16";
    clear(a->got, 2 * n), clear(a->want, 2 * n);
    simde->elementwise->quantize_f32_16(a->x, (uint16_t *)a->got, n, &one);
    scalar->elementwise->quantize_f32_16(a->x, (uint16_t *)a->want, n, &one);
    check(a->got, a->want, 2 * n, n);
    if (qmax - qmin > 255) return;
    what = "quantize_f32_8";
    clear(a->got, n), clear(a->want, n);
    simde->elementwise->quantize_f32_8(a->x, (uint8_t *)a->got, n, &one);
    scalar->elementwise->quantize_f32_8(a->x, (uint8_t *)a->want, n, &one);
    check(a->got, a->want, n, n);
}

static void test_codes_to_floats(arrays *a, size_t n)
{
    static const qk_dtype from[] = {QK_I8, QK_U8, QK_I16, QK_U16, QK_I32, QK_I4, QK_U4, QK_I2, QK_U2};
    for (size_t i = 0; i < n; i++) a->zero_point[i] = (int32_t)random32() >> 16, a->scale[i] = random_scale();
    const size_t stride = n + random32() % 6, size = ROWS * stride;
    const size_t runs[] = {n, 1, 2 + random32() % 100, 32};
    random_ints(a->codes, size);
    what = "dequantize_rows_f32";
    for (int i = 0; i < 9; i++)
        for (int kind = 0; kind < 4; kind++) {
            const qk_affines rows = {.scale = a->scale,
                                     .zero_point = a->zero_point,
                                     .run = runs[kind],
                                     .rows = ROWS,
                                     .in_stride = stride,
                                     .out_stride = stride};
            clear(a->got, 4 * size), clear(a->want, 4 * size);
            simde->elementwise->dequantize_rows_f32(a->codes, from[i], (float *)a->got, n, &rows);
            scalar->elementwise->dequantize_rows_f32(a->codes, from[i], (float *)a->want, n, &rows);
            check(a->got, a->want, 4 * size, n);
        }
}

static void test_requantize(arrays *a, size_t n, qk_rounding rounding)
{
    random_ints(a->codes, n), random_ints(a->bias, n);
    for (size_t i = 0; i < n; i++) {
        const double multiplier = ldexp(0.5 + random32() / 8589934592.0, (int)(random32() % 44) - 40);
        a->multiplier[i] = (float)multiplier;
        qk_quantize_multiplier(multiplier, &a->mantissa[i], &a->shift[i]);
    }
    for (int bytes = 1; bytes <= 2; bytes++) {
        const qk_requant r = {
            rounding, a->multiplier, a->mantissa, a->shift, 3, bytes == 1 ? -128 : -32768, bytes == 1 ? 127 : 32767};
        what = "requantize_i32";
        clear(a->got, n * (size_t)bytes), clear(a->want, n * (size_t)bytes);
        simde->elementwise->requantize_i32(a->codes, a->bias, a->got, bytes, n, &r);
        scalar->elementwise->requantize_i32(a->codes, a->bias, a->want, bytes, n, &r);
        check(a->got, a->want, n * (size_t)bytes, n);
    }
}

static void test_conversions(arrays *a, size_t n)
{
    uint16_t half[LENGTHS];
    random_bytes(half, sizeof half);
    random_floats(a->x, n, 0x1p-14f, 1);
    void (*widen[2][2])(const uint16_t *, float *,
                        size_t) = {{simde->elementwise->f16_to_f32, scalar->elementwise->f16_to_f32},
                                   {simde->elementwise->bf16_to_f32, scalar->elementwise->bf16_to_f32}};
    void (*narrow[2][2])(const float *, uint16_t *,
                         size_t) = {{simde->elementwise->f32_to_f16, scalar->elementwise->f32_to_f16},
                                    {simde->elementwise->f32_to_bf16, scalar->elementwise->f32_to_bf16}};
    for (int i = 0; i < 2; i++) {
        what = i ? "bf16_to_f32" : "f16_to_f32";
        clear(a->got, 4 * n), clear(a->want, 4 * n);
        widen[i][0](half, (float *)a->got, n), widen[i][1](half, (float *)a->want, n);
        check(a->got, a->want, 4 * n, n);
        what = i ? "f32_to_bf16" : "f32_to_f16";
        clear(a->got, 2 * n), clear(a->want, 2 * n);
        narrow[i][0](a->x, (uint16_t *)a->got, n), narrow[i][1](a->x, (uint16_t *)a->want, n);
        check(a->got, a->want, 2 * n, n);
    }
    what = "minmax_f32";
    float *got = (float *)a->got, *want = (float *)a->want;
    clear(got, 8), clear(want, 8);
    simde->elementwise->minmax_f32(a->x, n, got, got + 1);
    scalar->elementwise->minmax_f32(a->x, n, want, want + 1);
    check(got, want, 8, n);
}

/* ---- products ---- */

static void test_pack_row(const qk_gemm8_kernels *g, size_t n, size_t n_pad)
{
    uint8_t a[LENGTHS], bytes[LENGTHS + 4];
    uint16_t got[LENGTHS + 4 + MARGIN], want[LENGTHS + 4 + MARGIN];
    const size_t size = (size_t)g->a_bytes * n_pad;
    random_bytes(a, n);
    for (int flip = 0; flip <= 0x80; flip += 0x80) {
        what = "gemm8_pack_row";
        clear(got, size), clear(want, size);
        g->gemm8_pack_row(a, n, n_pad, (uint8_t)flip, got);
        scalar->gemm8->gemm8_pack_row(a, n, n_pad, (uint8_t)flip, bytes);
        for (size_t i = 0; i < n_pad; i++)
            if (g->a_bytes == 2)
                want[i] = bytes[i];
            else
                ((uint8_t *)want)[i] = bytes[i];
        check(got, want, size, n);
        const int32_t sums[2] = {g->sum_codes(a, n, (uint8_t)flip), scalar->gemm8->sum_codes(a, n, (uint8_t)flip)};
        if (sums[0] != sums[1]) printf("sum_codes: %d and %d at length %zu\n", sums[0], sums[1], n), exit(1);
    }
}

/* The codes of a panel of g from one of the scalar kernels for each 16 columns. */
static void lay_out(const qk_gemm8_kernels *g, size_t k, const int8_t (*part)[4 * SIXTEEN * 300], int8_t *to)
{
    const size_t nr = (size_t)g->nr, kr = g->kr < 4 ? (size_t)g->kr : 4;
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < nr; j++)
            to[(i / kr * nr + j) * kr + i % kr] = part[j / SIXTEEN][(i / 4 * SIXTEEN + j % SIXTEEN) * 4 + i % 4];
}

/* The scalar kernels' tiles are 16 columns wide: one or two of them make one of g. */
static void test_gemm_tile(const qk_gemm8_kernels *g, int rows, size_t steps)
{
    enum { STEPS = 300 };
    static uint8_t a[TALL * (4 * STEPS + 4)];
    static uint16_t packed[TALL * (4 * STEPS + 4)];
    static int8_t panel[4 * WIDE * STEPS] __attribute__((aligned(64))), part[2][4 * SIXTEEN * STEPS];
    static int16_t widened[4 * WIDE * STEPS] __attribute__((aligned(64)));
    int32_t init[WIDE], got[TALL * 40 + MARGIN / 4], want[TALL * 40 + MARGIN / 4];
    const size_t k = 4 * steps, lda = k + random32() % 5, ldc = WIDE + random32() % 8, ld = lda * (size_t)g->a_bytes;
    const size_t own_steps = k / (size_t)g->kr;
    random_bytes(a, sizeof a), random_bytes(part, sizeof part), random_ints(init, WIDE);
    lay_out(g, k, part, panel);
    for (int i = 0; i < rows; i++) g->gemm8_pack_row(a + i * lda, k, k, 0, (char *)packed + i * ld);
    for (int wide = 0; wide < (g->gemm8_wide_tile ? 2 : 1); wide++) {
        what = wide ? "gemm8_wide_tile" : "gemm8_tile";
        clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
        if (wide) {
            g->gemm8_widen_panel(panel, own_steps, widened);
            g->gemm8_wide_tile(rows, own_steps, packed, ld, widened, init, got, ldc);
        } else {
            if (g->gemm8_begin) g->gemm8_begin((size_t)rows);
            g->gemm8_tile(rows, own_steps, packed, ld, panel, init, got, ldc);
            if (g->gemm8_end) g->gemm8_end((size_t)rows);
        }
        for (int h = 0; h < g->nr / SIXTEEN; h++)
            scalar->gemm8->gemm8_tile(rows, steps, a, lda, part[h], init + SIXTEEN * h, want + SIXTEEN * h, ldc);
        check(got, want, sizeof got - MARGIN, (size_t)(rows * g->nr));
    }
    const qk_ahead ahead = {panel, 64, (char *)got, ldc * sizeof *got};
    if (g->gemm8_window_tile) {
        what = "gemm8_window_tile";
        const qk_window halves = {2, own_steps / 2, 0}, whole = {1, own_steps, 0};
        clear(got, sizeof got - MARGIN);
        g->gemm8_window_tile(rows, own_steps % 2 ? &whole : &halves, packed, ld, panel, init, got, &ahead);
        for (int i = 0; i < rows; i++)
            check(got + i * g->nr, want + i * ldc, (size_t)g->nr * sizeof *got - MARGIN, (size_t)g->nr);
    }
    if (!g->gemm8_whole_tile || rows < g->ask_rows) return;
    what = "gemm8_whole_tile";
    clear(got, sizeof got - MARGIN);
    if (g->gemm8_begin) g->gemm8_begin((size_t)rows);
    g->gemm8_whole_tile(rows, own_steps, packed, ld, panel, init, got, ldc, &ahead);
    if (g->gemm8_end) g->gemm8_end((size_t)rows);
    check(got, want, sizeof got - MARGIN, (size_t)(rows * g->nr));
}

/* What packs 16 columns of s, from 16 h on, as the scalar kernels do. Returns their bound. */
static int64_t pack_part(const qk_panel_source *s, size_t h, size_t cols, int8_t *to, int32_t *colsum)
{
    qk_panel_source part = *s;
    part.b += (ptrdiff_t)(SIXTEEN * h) * s->col_stride, part.zero += SIXTEEN * h;
    const size_t here = cols <= SIXTEEN * h ? 0 : cols - SIXTEEN * h < SIXTEEN ? cols - SIXTEEN * h : SIXTEEN;
    return scalar->gemm8->gemm8_pack_panel(&part, here, to, colsum + SIXTEEN * h);
}

static void test_pack_panel(const qk_gemm8_kernels *g, size_t k, size_t cols)
{
    static uint8_t b[LENGTHS * WIDE];
    static int8_t got[(LENGTHS + 63) * WIDE + MARGIN], part[2][4 * SIXTEEN * 300], want[sizeof got];
    const size_t kr = (size_t)g->kr, nr = (size_t)g->nr, k_pad = (k + kr - 1) / kr * kr;
    int32_t zero[WIDE];
    memset(part, 0, sizeof part);
    random_bytes(b, sizeof b);
    for (int j = 0; j < WIDE; j++) zero[j] = (int32_t)random32() >> 24;
    for (int by_row = 0; by_row < 2; by_row++) {
        const qk_panel_source s = {b, by_row ? (ptrdiff_t)cols : 1, by_row ? 1 : (ptrdiff_t)k,
                                   k, random32() % 2 ? 0x80 : 0,    zero};
        int32_t colsum[2][WIDE + MARGIN / 4];
        what = "gemm8_pack_panel";
        clear(got, k_pad * nr), clear(want, k_pad * nr), clear(colsum[0], 4 * nr), clear(colsum[1], 4 * nr);
        const int64_t bound = g->gemm8_pack_panel(&s, cols, got, colsum[0]);
        int64_t largest = 0;
        for (size_t h = 0; h < nr / SIXTEEN; h++) {
            const int64_t size = pack_part(&s, h, cols, part[h], colsum[1]);
            if (size > largest) largest = size;
        }
        lay_out(g, k_pad, part, want);
        check(got, want, k_pad * nr, k * cols);
        check(colsum[0], colsum[1], 4 * cols, cols);
        if (bound != largest)
            printf("gemm8_pack_panel: bounds %lld and %lld\n", (long long)bound, (long long)largest), exit(1);
    }
}

/* Panels of small weights, and those of ARM, have a layout of their own: what they multiply to, and what they unpack
 * to. Magnitudes of all sizes, so that steps of each kind occur. */
static void test_small(const qk_gemm8_kernels *g, int rows, size_t k, size_t cols, int most)
{
    enum { K = 1100 };
    static uint8_t a[TALL * K], b[K * WIDE + MARGIN], unpacked[K * WIDE + MARGIN];
    static int8_t panel[8 * K * WIDE] __attribute__((aligned(64))), part[2][4 * SIXTEEN * 300];
    static int32_t got[TALL * WIDE + MARGIN / 4], want[TALL * WIDE + MARGIN / 4];
    int32_t zero[WIDE] = {0}, init[WIDE], colsum[2][WIDE + MARGIN / 4];
    const size_t nr = (size_t)g->nr, kr = (size_t)g->kr, steps = (k + kr - 1) / kr, k_pad = kr * steps;
    int64_t bound = 0;
    random_bytes(a, sizeof a), random_ints(init, WIDE);
    for (size_t i = 0; i < k * cols; i++) b[i] = (uint8_t)((int)(random32() % (unsigned)(2 * most + 1)) - most);
    const qk_panel_source s = {b, (ptrdiff_t)cols, 1, k, 0, zero};
    if (g->gemm8_panel_bytes(steps) > sizeof panel) puts("panels of small weights are larger than this test"), exit(1);
    what = "gemm8_tile of small weights";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN), clear(colsum[0], 4 * nr),
        clear(colsum[1], 4 * nr);
    const int64_t own_bound = g->gemm8_pack_panel(&s, cols, panel, colsum[0]);
    g->gemm8_tile(rows, steps, a, k_pad, panel, init, got, nr);
    for (size_t h = 0; h < nr / SIXTEEN; h++) {
        const int64_t size = pack_part(&s, h, cols, part[h], colsum[1]);
        bound = size > bound ? size : bound;
        scalar->gemm8->gemm8_tile(rows, (k + 3) / 4, a, k_pad, part[h], init + SIXTEEN * h, want + SIXTEEN * h, nr);
    }
    check(got, want, sizeof got - MARGIN, (size_t)rows * nr);
    check(colsum[0], colsum[1], 4 * cols, cols);
    if (own_bound != bound) puts("gemm8_pack_panel of small weights: another bound"), exit(1);
    what = "gemm8_unpack_panel of small weights";
    memset(unpacked, 0xa5, sizeof unpacked);
    for (size_t first = 0; first < k; first += QK_UNPACK_ROWS)
        g->gemm8_unpack_panel(panel, k, first, cols, 0, unpacked, cols);
    memset(b + k * cols, 0xa5, MARGIN);
    check(unpacked, b, k * cols, k * cols);
}

static int8_t random_level(void) { return (int8_t)((int)(random32() % 255) - 127); }

/* start of levels (numerics 12): -128 times the sum of each block. */
static void start_levels(int rows, size_t blocks, size_t block, size_t last, const int8_t *a, size_t lda,
                         int32_t *start, size_t ld_start)
{
    for (int row = 0; row < rows; row++)
        for (size_t i = 0; i < blocks; i++) {
            int32_t sum = 0;
            for (size_t j = 0; j < (i + 1 < blocks ? block : last); j++) sum += a[(size_t)row * lda + i * block + j];
            start[(size_t)row * ld_start + i] = -128 * sum;
        }
}

/* Panels of 4-bit weights are the same for all. Scales are random normal numbers, in both formats. */
static void test_gemm4(int rows, size_t blocks, size_t steps, size_t last_steps, int half_scales, int own_zeros,
                       int looked_up)
{
    enum { BLOCKS = 5, STEPS = 9, RECORD = 64 * STEPS + 32 * 5 };
    static uint8_t records[BLOCKS * RECORD];
    static int8_t a[8 * (4 * BLOCKS * STEPS + 4)];
    int8_t levels[16];
    static float got[8 * WIDE + MARGIN / 4], want[8 * WIDE + MARGIN / 4];
    int32_t start[8 * (BLOCKS + 3)];
    const size_t lda = 4 * blocks * steps + random32() % 5, ld_start = blocks + random32() % 4;
    random_bytes(records, sizeof records), random_bytes(a, sizeof a);
    for (size_t i = 0; i < sizeof start / 4; i++) start[i] = (int32_t)random32() >> 16;
    uint8_t *scales = records;
    for (size_t block = 0; block < blocks; block++) {
        scales += 64 * (block + 1 < blocks ? steps : last_steps);
        for (int j = 0; j < WIDE; j++) {
            const float scale = of_bits((96 + random32() % 64) << 23 | random32() >> 9);
            const uint16_t half = (uint16_t)(random32() % 0x7c00);
            if (half_scales)
                memcpy(scales + 2 * j, &half, 2);
            else
                memcpy(scales + 4 * j, &scale, 4);
        }
        scales += WIDE * (half_scales ? 2 : 4);
        if (own_zeros)
            for (int j = 0; j < WIDE; j++) *scales++ = random32() % 16;
    }
    for (int i = 0; i < 16; i++) levels[i] = random_level();
    if (looked_up) start_levels(rows, blocks, 4 * steps, 4 * last_steps, a, lda, start, ld_start);
    const qk_gemm4_panel p = {.records = records,
                              .blocks = blocks,
                              .steps = steps,
                              .last_steps = last_steps,
                              .half_scales = half_scales,
                              .own_zeros = own_zeros,
                              .more = (int)(random32() % 2),
                              .levels = looked_up ? levels : NULL,
                              .params_bytes = WIDE * (size_t)((half_scales ? 2 : 4) + (own_zeros ? 1 : 0))};
    what = "gemm4_tile";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    simde->gemm4->gemm4_tile(rows, &p, a, lda, start, ld_start, got);
    scalar->gemm4->gemm4_tile(rows, &p, a, lda, start, ld_start, want);
    check(got, want, sizeof got - MARGIN, (size_t)rows * WIDE);
}

/* Blocks of 8-bit weights. The scalar tile reads codes of a as they are; sums of columns are those of the codes. */
static void test_bytes(int rows, size_t blocks, size_t steps, size_t last_steps, int half_scales, int own_zeros,
                       int long_sums)
{
    enum { BLOCKS = 6, STEPS = 40, STEP = 4 * WIDE, RECORD = STEP * STEPS + WIDE * 9 };
    static uint8_t records[BLOCKS * RECORD];
    static int8_t a[TALL * (4 * BLOCKS * STEPS + 4)], flipped[sizeof a];
    static float got[TALL * WIDE + MARGIN / 4], want[TALL * WIDE + MARGIN / 4];
    int32_t start[TALL * (BLOCKS + 3)];
    const size_t lda = 4 * blocks * steps + random32() % 5, ld_start = blocks + random32() % 4;
    const size_t params_bytes = WIDE * (size_t)((half_scales ? 2 : 4) + (own_zeros ? 1 : 0) + (long_sums ? 4 : 2));
    random_bytes(records, sizeof records), random_bytes(a, sizeof a);
    for (size_t i = 0; i < sizeof a; i++) a[i] = a[i] < -127 ? -127 : a[i]; /* symmetric codes */
    for (size_t i = 0; i < sizeof a; i++) flipped[i] = (int8_t)(a[i] ^ simde->blocks8->flip);
    for (size_t i = 0; i < sizeof start / 4; i++)
        start[i] = (int32_t)((random32() % 256 - 128) << 16 | random32() % 256);
    const uint8_t *codes = records;
    for (size_t block = 0; block < blocks; block++) {
        uint8_t *scales = records + (codes - records) + STEP * (block + 1 < blocks ? steps : last_steps);
        uint8_t *sums = scales + params_bytes - WIDE * (long_sums ? 4 : 2);
        for (int j = 0; j < WIDE; j++) {
            const float scale = of_bits((96 + random32() % 64) << 23 | random32() >> 9);
            const uint16_t half = (uint16_t)(random32() % 0x7c00);
            int32_t sum = 0;
            if (half_scales)
                memcpy(scales + 2 * j, &half, 2);
            else
                memcpy(scales + 4 * j, &scale, 4);
            for (const uint8_t *step = codes; step != scales; step += STEP)
                for (int i = 0; i < 4; i++) sum -= (int8_t)step[4 * j + i];
            memcpy(sums + (long_sums ? 4 : 2) * j, &sum, long_sums ? 4 : 2); /* little-endian */
        }
        codes = scales + params_bytes;
    }
    const qk_gemm4_panel p = {.records = records,
                              .blocks = blocks,
                              .steps = steps,
                              .last_steps = last_steps,
                              .half_scales = half_scales,
                              .own_zeros = own_zeros,
                              .more = (int)(random32() % 2),
                              .long_sums = long_sums,
                              .params_bytes = params_bytes};
    what = "blocks8_tile";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    if (simde->blocks8->blocks8_begin) simde->blocks8->blocks8_begin((size_t)rows, &p);
    simde->blocks8->blocks8_tile(rows, &p, flipped, lda, start, ld_start, got);
    if (simde->blocks8->blocks8_end) simde->blocks8->blocks8_end((size_t)rows);
    scalar->blocks8->blocks8_tile(rows, &p, a, lda, start, ld_start, want);
    check(got, want, sizeof got - MARGIN, (size_t)rows * WIDE);
}

/* 32 columns with levels of their own, 16 at a time. */
static void test_column_levels(int rows, size_t steps)
{
    enum { STEPS = 9, GROUP = 256 * (1 + STEPS) };
    static uint8_t records[2 * GROUP + 4 * WIDE];
    static int8_t a[8 * (32 * STEPS + 4)];
    static float got[8 * WIDE + MARGIN / 4], want[8 * WIDE + MARGIN / 4];
    int32_t start[8 * 3];
    const size_t lda = 32 * steps + random32() % 5, ld_start = 1 + random32() % 2;
    random_bytes(records, sizeof records), random_bytes(a, sizeof a);
    for (int i = 0; i < 2 * 256; i++) records[i / 256 * 256 * (1 + steps) + i % 256] = (uint8_t)random_level();
    for (int j = 0; j < WIDE; j++) {
        const float scale = of_bits((96 + random32() % 64) << 23 | random32() >> 9);
        memcpy(records + 2 * 256 * (1 + steps) + 4 * j, &scale, 4);
    }
    start_levels(rows, 1, 0, 32 * steps, a, lda, start, ld_start);
    const qk_gemm4_panel p = {records, steps > 0, steps, steps, 0, 0, NULL};
    what = "column_levels_tile";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    simde->gemm4->column_levels_tile(rows, &p, a, lda, start, ld_start, got);
    scalar->gemm4->column_levels_tile(rows, &p, a, lda, start, ld_start, want);
    check(got, want, sizeof got - MARGIN, (size_t)rows * WIDE);
}

/* Panels of finite float16 or bfloat16 weights are the same for all; float rows of a are random numbers of few sizes.
 */
static void test_half(int rows, size_t k, qk_dtype type)
{
    enum { K = 70, PANELS = QK_GEMMF16_ROW_PANELS };
    static uint16_t panels[PANELS * K * WIDE];
    static float a[TALL * (K + 4)], got[TALL * WIDE + MARGIN / 4], want[TALL * WIDE + MARGIN / 4];
    const size_t lda = k + random32() % 5;
    const int more = (int)(random32() % 2);
    for (size_t i = 0; i < sizeof panels / 2; i++)
        panels[i] = (uint16_t)(random32() % 0x8000 % (type == QK_F16 ? 0x7c00 : 0x5000) | random32() << 15);
    for (size_t i = 0; i < sizeof a / 4; i++)
        a[i] = of_bits((120 + random32() % 16) << 23 | random32() >> 9 | random32() << 31);
    what = "gemmf16_tile";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    simde->gemmf16->gemmf16_tile(rows, k, a, lda, panels, type, more, got);
    scalar->gemmf16->gemmf16_tile(rows, k, a, lda, panels, type, more, want);
    check(got, want, sizeof got - MARGIN, (size_t)rows * WIDE);
    for (int n = 1; n <= PANELS; n++) {
        what = "gemmf16_row";
        clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
        simde->gemmf16->gemmf16_row(n, k, a, panels, type, got);
        scalar->gemmf16->gemmf16_row(n, k, a, panels, type, want);
        check(got, want, sizeof got - MARGIN, (size_t)n * WIDE);
    }
}

/* Magnitudes of which no sum leaves int32. As in test_gemm_tile, panels of the scalar kernels make one. */
static void test_words(int rows, size_t steps)
{
    enum { STEPS = 20 };
    static int16_t a[TALL * (2 * STEPS + 4)], panel[2 * WIDE * STEPS], half[2][2 * 16 * STEPS];
    int32_t got[TALL * WIDE + MARGIN / 4], part[TALL * 16], want[TALL * WIDE + MARGIN / 4];
    int64_t sum[2][TALL * (WIDE + 8) + MARGIN / 8];
    const int nr = simde->gemm16->nr, halves = nr / SIXTEEN;
    const size_t lda = 2 * steps + random32() % 5, ld = WIDE + random32() % 8;
    random_bytes(a, sizeof a), random_bytes(panel, sizeof panel);
    for (size_t i = 0; i < sizeof a / 2; i++) a[i] /= 32;
    for (size_t s = 0; s < steps; s++)
        for (int h = 0; h < halves; h++) memcpy(half[h] + 32 * s, panel + 2 * (size_t)nr * s + 32 * h, 64);
    what = "gemm16_tile";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    simde->gemm16->gemm16_tile(rows, steps, a, lda, panel, got);
    for (int h = 0; h < halves; h++) {
        scalar->gemm16->gemm16_tile(rows, steps, a, lda, half[h], part);
        for (int row = 0; row < rows; row++) memcpy(want + row * nr + 16 * h, part + row * 16, 64);
    }
    check(got, want, sizeof got - MARGIN, (size_t)(rows * nr));
    what = "gemm16_add";
    clear(sum[0], sizeof sum[0] - MARGIN), clear(sum[1], sizeof sum[1] - MARGIN);
    for (int more = 0; more < 3; more++) {
        simde->gemm16->gemm16_add(rows, got, more / 2 * 8, more > 0, sum[0], ld);
        for (int h = 0; h < halves; h++) {
            for (int row = 0; row < rows; row++) memcpy(part + row * 16, got + row * nr + 16 * h, 64);
            scalar->gemm16->gemm16_add(rows, part, more / 2 * 8, more > 0, sum[1] + 16 * h, ld);
        }
        check(sum[0], sum[1], sizeof sum[0] - MARGIN, (size_t)(rows * nr));
    }
}

static void test_epilogue(int rows, int cols, int output, qk_activation activation, qk_rounding rounding, int scales,
                          int zeros)
{
    int32_t acc[TALL * WIDE], half[TALL * 16], row_zero[TALL], row_term[TALL], colsum[WIDE], col_zero[WIDE],
        mantissa[WIDE], shift[WIDE];
    float row_scale[TALL], col_scale[WIDE], bias[WIDE], multiplier[WIDE];
    static float residual[TALL * 40];
    static char got[TALL * 4 * 40 + MARGIN], want[TALL * 4 * 40 + MARGIN];
    const size_t size = output == 2 ? 1 : 4, row_stride = 40 * size;
    const int nr = simde->gemm8->nr;
    random_ints(acc, TALL * WIDE), random_ints(row_zero, TALL), random_ints(row_term, TALL), random_ints(colsum, WIDE),
        random_ints(col_zero, WIDE);
    for (int i = 0; i < TALL; i++) row_scale[i] = ldexpf(1.0f + (float)(random32() >> 9) * 0x1p-23f, -10);
    for (int j = 0; j < WIDE; j++) {
        const double m = ldexp(0.5 + random32() / 8589934592.0, (int)(random32() % 30) - 28);
        multiplier[j] = (float)m, col_scale[j] = (float)(m * 0x1p-6), bias[j] = (float)((int32_t)random32() >> 24) / 2;
        qk_quantize_multiplier(m, &mantissa[j], &shift[j]);
    }
    for (int i = 0; i < TALL * 40; i++) residual[i] = (float)((int32_t)random32() >> 20) / 64;
    const qk_requant requant = {.rounding = rounding, .zero_point = 7, .qmin = -128, .qmax = 127};
    qk_tile t = {.rows = rows,
                 .cols = cols,
                 .row_zero = zeros & 1 ? row_zero : NULL,
                 .colsum = colsum,
                 .row_term = zeros & 2 ? row_term : NULL,
                 .col_zero = col_zero,
                 .row_scale = scales ? row_scale : NULL,
                 .col_scale = col_scale,
                 .bias = bias,
                 .residual = cols & 1 ? residual : NULL,
                 .residual_stride = 160,
                 .activation = activation,
                 .bounded = cols & 2,
                 .lo = -3,
                 .hi = 17,
                 .requant = &requant,
                 .multiplier = multiplier,
                 .mantissa = mantissa,
                 .shift = shift,
                 .out = qk_affine_of(0.02f, 7, -128, 127, rounding),
                 .dst = got,
                 .row_stride = row_stride};
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    const int step = scalar->gemm8->mr; /* rows; before simde, which corrects acc in place */
    for (int row = 0; row < rows; row += step)
        for (int h = 0; h < nr / 16 && cols > 16 * h; h++) {
            qk_tile part = t;
            part.rows = rows - row < step ? rows - row : step;
            part.cols = cols - 16 * h < 16 ? cols - 16 * h : 16;
            part.colsum += 16 * h, part.col_zero += 16 * h, part.col_scale += 16 * h, part.bias += 16 * h;
            part.multiplier += 16 * h, part.mantissa += 16 * h, part.shift += 16 * h;
            if (part.row_zero) part.row_zero += row;
            if (part.row_term) part.row_term += row;
            if (part.row_scale) part.row_scale += row;
            if (part.residual) part.residual += 40 * row + 16 * h;
            part.dst = want + (size_t)row * row_stride + (size_t)(16 * h) * size;
            for (int i = 0; i < part.rows; i++) memcpy(half + 16 * i, acc + nr * (row + i) + 16 * h, 64);
            (output == 0       ? scalar->gemm8->tile_to_int32
                 : output == 1 ? scalar->gemm8->tile_to_float
                               : scalar->gemm8->tile_to_codes)(half, &part);
        }
    what = output == 0 ? "tile_to_int32" : output == 1 ? "tile_to_float" : "tile_to_codes";
    (output == 0       ? simde->gemm8->tile_to_int32
         : output == 1 ? simde->gemm8->tile_to_float
                       : simde->gemm8->tile_to_codes)(acc, &t);
    check(got, want, sizeof got - MARGIN, (size_t)(rows * cols));
}

/* ---- k-means ---- */

enum { POINTS = 130, WIDTH = 20, CLUSTERS = 40 };
typedef struct {
    int32_t labels[POINTS];
    double upper[POINTS], lower[POINTS], distance[CLUSTERS * CLUSTERS], half[CLUSTERS], inertia[1];
    double sums[CLUSTERS * (WIDTH + 1)] __attribute__((aligned(64)));
    char margin[MARGIN];
} clusters;

static void store_real(void *to, size_t i, double v, int wide)
{
    if (wide)
        ((double *)to)[i] = v;
    else
        ((float *)to)[i] = (float)v;
}

/* Two steps: all centroids are candidates, then those that bounds and distances leave. Coordinates of few bits, so that
 * ties occur. */
static void test_kmeans(size_t n, size_t d, size_t k, int wide, int weighted)
{
    static double x[POINTS * WIDTH], centroids[(CLUSTERS + 1) * WIDTH], weight[POINTS], moved[CLUSTERS];
    static clusters got, want;
    clusters *to[2] = {&got, &want};
    const qk_kernels *of[2] = {simde, scalar}, *before = qk_active();
    const int bits = 3 + (int)(random32() % 20);
    for (size_t i = 0; i < n * d; i++) store_real(x, i, (double)(random32() >> (32 - bits)), wide);
    for (size_t i = 0; i < k * d; i++) store_real(centroids, i, (double)(random32() >> (32 - bits)), wide);
    for (size_t i = k * d; i < (k + 1) * d; i++) store_real(centroids, i, INFINITY, wide);
    for (size_t i = 0; i < n; i++) weight[i] = random32() * 0x1p-32;
    memset(moved, 0, sizeof moved);
    for (int i = 0; i < 2; i++) {
        memset(to[i], 0, sizeof *to[i]);
        for (size_t j = 0; j < n; j++) store_real(to[i]->upper, j, INFINITY, wide);
    }
    for (int step = 0; step < 2; step++) {
        for (int i = 0; i < 2; i++) {
            clusters *c = to[i];
            qk_kmeans_counts counts = {0};
            const qk_kmeans p = {.type = wide ? QK_F64 : QK_F32,
                                 .n = n,
                                 .d = d,
                                 .k = k,
                                 .stride = d + 1,
                                 .chunk = n,
                                 .x = x,
                                 .weight = weighted ? weight : NULL,
                                 .centroids = centroids,
                                 .distance = step ? c->distance : NULL,
                                 .half = c->half,
                                 .moved = moved,
                                 .passed = moved,
                                 .labels = c->labels,
                                 .upper = c->upper,
                                 .lower = c->lower,
                                 .sums = c->sums};
            qk_activate(of[i]);
            if (step) qk_kmeans_distances(&p);
            qk_kmeans_assign(&p, 0, 1, &counts);
            qk_kmeans_errors(&p, NULL, c->inertia);
        }
        what = wide ? "kmeans_chunk_f64" : "kmeans_chunk_f32";
        check(&got, &want, sizeof got - MARGIN, n);
        for (size_t i = 0; i < k * d; i += 3)
            store_real(centroids, i, (wide ? centroids[i] : ((float *)centroids)[i]) + 0.25, wide);
        for (size_t i = 0; i < k; i++) store_real(moved, i, 2, wide);
    }
    qk_activate(before);
}

/* ---- search ---- */

/* Enough vectors for the filter, which scalar.c does without. */
static void test_search(size_t m, size_t k, int is_packed)
{
    enum { N = 16700, QUERIES = 3, NEAREST = 4, MOST_GROUPS = 40 };
    static float levels[MOST_GROUPS * 16], queries[QUERIES * MOST_GROUPS];
    static uint8_t codes[N * MOST_GROUPS], packed[(N / QK_PQ_TILE + 1) * QK_PQ_TILE * MOST_GROUPS / 2];
    static struct {
        float distances[QUERIES * NEAREST];
        int64_t indices[QUERIES * NEAREST];
        char margin[MARGIN];
    } got, want;
    const qk_kernels *before = qk_active();
    const qk_pq_book book = {.m = m, .k = k, .d = 1, .levels = levels, .columns = levels};
    const qk_pq_codes stored = {.codes = is_packed ? packed : codes, .n = N, .packed = is_packed};
    for (size_t i = 0; i < m * k; i++) levels[i] = (float)(random32() >> 20);
    for (size_t i = 0; i < QUERIES * m; i++) queries[i] = (float)(random32() >> 20);
    for (size_t i = 0; i < N * m; i++) codes[i] = (uint8_t)(random32() % k);
    if (is_packed && qk_pq_pack(codes, N, m, packed)) exit(1);
    memset(&got, 0, sizeof got), memset(&want, 0, sizeof want);
    qk_activate(simde);
    if (qk_pq_search(queries, QUERIES, &stored, &book, NEAREST, got.distances, got.indices) != 1) exit(1);
    qk_activate(scalar);
    if (qk_pq_search(queries, QUERIES, &stored, &book, NEAREST, want.distances, want.indices) != 1) exit(1);
    what = "search";
    check(&got, &want, sizeof got - MARGIN, N);
    qk_activate(before);
}

/* ---- codebooks ---- */

static int ascending(const void *a, const void *b)
{
    return (*(const float *)a > *(const float *)b) - (*(const float *)a < *(const float *)b);
}

static void test_codebook(arrays *a, size_t n, int wild, size_t block)
{
    float level[16], sorted[16], node[16] = {0}, scales[2][LENGTHS + 16];
    uint8_t order[16];
    random_floats(level, 16, 0.25f, 0);
    random_floats(sorted, 15, 0.25f, 0);
    qsort(sorted, 15, sizeof *sorted, ascending);
    for (int depth = 0; depth < 4; depth++)
        for (int i = 0; i < 1 << depth; i++) node[(1 << depth) + i] = sorted[(2 * i + 1) * (8 >> depth) - 1];
    for (int i = 0; i < 16; i++) order[i] = (uint8_t)(i * 5 % 16);
    const qk_levels t = {.depth = 4, .level = level, .node = node, .order = order};
    random_floats(a->x, n, 0.25f, wild);
    for (int scaled = 0; scaled < 2; scaled++) {
        float *got_scales = scaled ? scales[0] : NULL, *want_scales = scaled ? scales[1] : NULL;
        clear(a->got, n), clear(a->want, n), memset(scales, 0, sizeof scales);
        what = "encode_f32";
        const int32_t most = simde->codebooks->encode_f32(a->x, (uint8_t *)a->got, n, block, got_scales, &t);
        if (most != scalar->codebooks->encode_f32(a->x, (uint8_t *)a->want, n, block, want_scales, &t))
            puts("encode_f32: another maximum"), exit(1);
        check(a->got, a->want, n, n);
        if (memcmp(scales[0], scales[1], sizeof *scales)) puts("encode_f32: other scales"), exit(1);
        uint8_t *codes = (uint8_t *)a->codes;
        memcpy(codes, a->want, n);
        clear(a->got, 4 * n), clear(a->want, 4 * n);
        what = "decode_f32";
        simde->codebooks->decode_f32(codes, (float *)a->got, n, block, got_scales, &t);
        scalar->codebooks->decode_f32(codes, (float *)a->want, n, block, want_scales, &t);
        check(a->got, a->want, 4 * n, n);
    }
}

static void test_histogram(arrays *a, size_t n)
{
    random_floats(a->x, n, 0.5f, 1);
    for (size_t i = 0; i < n; i++)
        if (random32() % 2) a->x[i] = random32() % 2 ? 0.0f : -0.0f;
    what = "survey_f32";
    qk_survey got = {0}, want = {0};
    simde->histogram->survey_f32(a->x, n, &got), scalar->histogram->survey_f32(a->x, n, &want);
    clear(a->got, sizeof got), clear(a->want, sizeof got);
    memcpy(a->got, &got, sizeof got), memcpy(a->want, &want, sizeof got);
    check(a->got, a->want, sizeof got, n);
    what = "nonzero_f32";
    clear(a->got, 4 * n), clear(a->want, 4 * n);
    const size_t some = simde->histogram->nonzero_f32(a->x, n, (float *)a->got);
    if (some != scalar->histogram->nonzero_f32(a->x, n, (float *)a->want)) exit(1);
    memset(a->got + 4 * some, 0, 4 * (n - some)), memset(a->want + 4 * some, 0, 4 * (n - some));
    check(a->got, a->want, 4 * n, n);
}

static void test_loops(void)
{
    static arrays a;
    for (int round = 0; round < 4; round++)
        for (size_t n = 0; n < LENGTHS; n++) {
            for (int i = 0; i < 4; i++) {
                test_floats_to_codes(&a, n, i & 1, i >> 1, -128, 127);
                test_floats_to_codes(&a, n, i & 1, i >> 1, 0, 255);
                test_floats_to_codes(&a, n, i & 1, i >> 1, 0, 65535);
                test_floats_to_codes(&a, n, i & 1, i >> 1, -2, 1);
            }
            test_codes_to_floats(&a, n);
            for (int rounding = QK_HALF_EVEN; rounding <= QK_TFLITE; rounding++)
                test_requantize(&a, n, (qk_rounding)rounding);
            test_conversions(&a, n);
            test_histogram(&a, n);
            for (size_t block = 16; block <= 64; block += 16)
                test_codebook(&a, n, 0, block), test_codebook(&a, 3 * n, 1, block);
        }
    for (size_t d = 1; d <= WIDTH; d++)
        for (size_t k = 1; k <= CLUSTERS; k += 1 + random32() % 3)
            for (int i = 0; i < 4; i++) test_kmeans(k + random32() % (POINTS - CLUSTERS), d, k, i & 1, i >> 1);
    for (size_t m = 2; m <= 40; m += 2) test_search(m, 16 - m / 4, 0), test_search(m, 16 - m / 4, 1);
    for (int rows = 1; rows <= simde->gemmf16->mr; rows++)
        for (size_t k = 0; k <= 70; k++) test_half(rows, k, QK_F16), test_half(rows, k, QK_BF16);
}

static void test_epilogues(const qk_gemm8_kernels *g)
{
    for (int rows = 1; rows <= g->mr; rows++) {
        if (g->mr > 12 && rows != 1 && rows != 13 && rows != 36 && rows != g->mr) continue; /* parts of 12 rows */
        for (int cols = 1; cols <= g->nr; cols++)
            for (int zeros = 0; zeros < 4; zeros++) {
                test_epilogue(rows, cols, 0, QK_IDENTITY, QK_HALF_EVEN, 0, zeros);
                for (int activation = QK_IDENTITY; activation <= QK_SILU; activation++) {
                    test_epilogue(rows, cols, 1, (qk_activation)activation, QK_HALF_EVEN, 0, zeros);
                    test_epilogue(rows, cols, 1, (qk_activation)activation, QK_HALF_EVEN, 1, zeros);
                    for (int rounding = QK_HALF_EVEN; rounding <= QK_TFLITE; rounding++)
                        test_epilogue(rows, cols, 2, (qk_activation)activation, (qk_rounding)rounding, 0, zeros);
                }
            }
    }
}

static void test_gemm8_small(const qk_gemm8_kernels *g)
{
    for (int rows = 1; rows <= g->mr; rows++)
        for (int most = 1; most <= 127; most += 7)
            for (size_t k = 1; k <= 71; k += 7) test_small(g, rows, k, 1 + random32() % (unsigned)g->nr, most);
    for (int most = 3; most <= 127; most += 31) test_small(g, g->mr, 1100, (size_t)g->nr, most);
}

static void test_gemm4s(void)
{
    for (int rows = 1; rows <= simde->gemm4->mr; rows++)
        for (size_t blocks = 0; blocks <= 5; blocks++)
            for (int i = 0; i < 6; i++)
                for (size_t steps = 1; steps <= 9; steps++)
                    test_gemm4(rows, blocks, steps, 1 + random32() % steps, i & 1, i >> 1 & 1, i >> 2);
    for (int rows = 1; rows <= simde->gemm4->mr; rows++)
        for (size_t steps = 0; steps <= 9; steps++) test_column_levels(rows, steps);
}

static void test_blocks(void)
{
    static const size_t steps[] = {1, 5, 9, 16, 23, 40};
    for (int rows = 1; rows <= simde->blocks8->mr; rows++)
        for (size_t blocks = 0; blocks <= 6; blocks += 1 + blocks / 3)
            for (int i = 0; i < 8; i++)
                for (int j = 0; j < (rows > 17 ? 1 : 6); j++) {
                    const size_t n = steps[rows > 17 ? random32() % 6 : j];
                    test_bytes(rows, blocks, n, 1 + random32() % n, i & 1, i >> 1 & 1, i >> 2);
                }
}

/* ---- weights of few bits as drivers multiply them: few rows and many, blocks that fill steps of tiles or do not ----
 */

enum { M = 100, K = 700, N = 70 };

/* Codes of a matrix, its scales, zero points and levels; and rows of floats. */
typedef struct {
    uint8_t codes[K * N], block_scale[K * N];
    int8_t block_shift[K * N];
    int32_t zero_point[K * N];
    float scale[K * N], levels[N * QK_LEVELS], x[M * K], y[M * N + MARGIN / 4], want[M * N + MARGIN / 4];
} weights;

static void multiply_by(const qk_kernels *table, const qk_matrix *matrix, const float *x, size_t rows, float *y)
{
    qk_weights *w = NULL;
    qk_activate(table);
    if (qk_weights_new(matrix, &w) || qk_linear(w, x, rows, NULL, y)) printf("%s is refused\n", what), exit(1);
    qk_weights_free(w);
}

static void test_weights(weights *w, size_t rows, qk_matrix m)
{
    m.b = w->codes;
    clear(w->y, rows * m.n * sizeof *w->y), clear(w->want, rows * m.n * sizeof *w->y);
    multiply_by(simde, &m, w->x, rows, w->y), multiply_by(scalar, &m, w->x, rows, w->want);
    check(w->y, w->want, rows * m.n * sizeof *w->y, rows * m.n);
}

enum { INT4, FOLDED, LEVELS, INT2, INT8, KINDS };

/* Codes below `most`, and all that may belong to them. */
static void random_weights(weights *w, uint32_t most)
{
    for (size_t j = 0; j < K * N; j++) {
        w->codes[j] = (uint8_t)(random32() % most), w->zero_point[j] = (int32_t)(random32() % most);
        w->scale[j] = of_bits((96 + random32() % 32) << 23 | random32() >> 9);
        w->block_scale[j] = 1 + random32() % 14, w->block_shift[j] = (int8_t)(random32() % 8 - 4);
    }
}

static void test_all_weights(void)
{
    static weights w;
    static const size_t blocks[] = {4, 20, 32, 48, 64, 128, 300, K};
    static const qk_dtype types[] = {QK_U4, QK_U4, QK_U8, QK_U2, QK_U8};
    static char *const names[] = {"uint4", "uint4 with integer scales", "a codebook", "uint2", "8 bits"};
    random_floats(w.x, M * K, 0.25f, 0), random_floats(w.levels, N * QK_LEVELS, 1, 0);
    for (int i = 0; i < 6 * KINDS * 8; i++) {
        const int kind = i / 8 % KINDS, turn = i / 8 / KINDS;
        const size_t rows = 1 + random32() % (turn % 3 ? M : 20), levels = QK_LEVELS >> turn % 3;
        qk_matrix m = {.k = 1 + random32() % K, .n = 1 + random32() % N, .kind = QK_PER_BLOCK, .block = blocks[i % 8]};
        random_weights(&w, kind == LEVELS ? (uint32_t)levels : kind == INT2 ? 4 : kind == INT8 ? 256 : 16);
        m.type = kind == INT8 && turn % 2 == 0 ? QK_I8 : types[kind], m.scale = w.scale, what = names[kind];
        if (kind == FOLDED)
            m.block_scale = w.block_scale, m.block_shift = w.block_shift;
        else if (kind == LEVELS)
            m.levels = w.levels, m.level_count = levels;
        else if (turn % 2)
            m.zero_point = w.zero_point;
        if (kind == LEVELS && turn / 3) m.kind = QK_PER_AXIS, m.scale = NULL;
        test_weights(&w, rows, m);
    }
}

/* So many blocks that signals are looked for between tiles. */
static void test_long_weights(void)
{
    enum { LONG = 140 * 1000, COLS = 3, BLOCK = 28, TILE = 17 };
    static uint8_t codes[LONG * COLS];
    static float scale[LONG / BLOCK * COLS], x[TILE * LONG], got[TILE * COLS + MARGIN / 4], want[sizeof got / 4];
    random_bytes(codes, sizeof codes), random_floats(x, TILE * LONG, 0.25f, 0);
    for (size_t i = 0; i < sizeof scale / 4; i++) scale[i] = of_bits((96 + random32() % 32) << 23 | random32() >> 9);
    const qk_matrix m = {
        .b = codes, .type = QK_I8, .k = LONG, .n = COLS, .kind = QK_PER_BLOCK, .block = BLOCK, .scale = scale};
    what = "8 bits in many blocks";
    clear(got, sizeof got - MARGIN), clear(want, sizeof got - MARGIN);
    multiply_by(simde, &m, x, TILE, got), multiply_by(scalar, &m, x, TILE, want);
    check(got, want, sizeof got - MARGIN, TILE * COLS);
}

static void begin_table(const qk_kernels *table)
{
    simde = table, compared = 0;
    if (table->gemm8->mr > TALL || table->gemm8->nr > WIDE || scalar->gemm8->nr != SIXTEEN || table->gemm4->mr > 8)
        puts("the tiles have another size than this test"), exit(1);
}

static void end_table(void) { printf("%zu values of %s are those of %s\n", compared, simde->name, scalar->name); }

static void test_all_words(void)
{
    for (int rows = 1; rows <= simde->gemm16->mr; rows++)
        for (size_t steps = 0; steps <= 20; steps++) test_words(rows, steps);
}

#if defined(__aarch64__)
/* Which of them run is what the CPU has. */
static void test_table(const qk_kernels *table)
{
    if (!table->available()) return;
    begin_table(table);
    for (size_t n = 0; n < LENGTHS; n++)
        test_pack_row(table->gemm8, n, n), test_pack_row(table->gemm8, n, (n + 7) / 8 * 8);
    for (size_t k = 1; k < LENGTHS; k++)
        for (int rows = 1; rows <= table->gemm8->mr; rows++)
            test_small(table->gemm8, rows, k, 1 + k % (size_t)table->gemm8->nr, 128);
    test_gemm8_small(table->gemm8);
    test_epilogues(table->gemm8);
    if (table != &qk_kernels_neon_i8mm) test_gemm4s(), test_blocks(); /* which borrows them, as both others loops */
    test_all_weights(), test_long_weights();
    if (table == &qk_kernels_neon) test_all_words(), test_loops();
    end_table();
}

static const qk_kernels *const tables[] = {&qk_kernels_neon, &qk_kernels_neon_dotprod, &qk_kernels_neon_i8mm};
#else
static void test_gemm8(const qk_gemm8_kernels *g)
{
    for (size_t n = 0; n < LENGTHS; n++) test_pack_row(g, n, n), test_pack_row(g, n, (n + 3) / 4 * 4);
    for (size_t k = 0; k < LENGTHS; k++)
        for (size_t cols = 1; cols <= (size_t)g->nr; cols++) test_pack_panel(g, k, cols);
    const size_t fours = g->kr > 4 ? (size_t)g->kr / 4 : 1;
    for (int rows = 1; rows <= g->mr; rows++) {
        for (size_t steps = 0; steps <= (fours > 1 ? 10 : 40); steps++) test_gemm_tile(g, rows, steps * fours);
        test_gemm_tile(g, rows, 300 / fours * fours);
    }
}

/* What a table has of its own; AVX2's families, which others borrow, are compiled for AVX2 itself. */
static void test_table(const qk_kernels *table)
{
    begin_table(table);
    test_gemm8(table->gemm8);
    test_epilogues(table->gemm8);
    if (table->gemm8_small) test_gemm8_small(table->gemm8_small);
    const int borrows = table == &qk_kernels_amx;
    if (table->gemm4 != &qk_gemm4_avx2 && !borrows) test_gemm4s();
    if (table->blocks8 != &qk_blocks8_avx2) test_blocks();
    test_all_weights(), test_long_weights();
    if (table->gemm16 != &qk_gemm16_avx2 && !borrows) test_all_words();
    if (table == &qk_kernels_avx512) test_loops();
    end_table();
}

static const qk_kernels *const tables[] = {
#if QK_HAVE_AVXVNNI
    &qk_kernels_avxvnni,
#endif
    &qk_kernels_avx512,
    &qk_kernels_avx512vnni,
#if QK_HAVE_AVXVNNI
    &qk_kernels_amx,
#endif
};
#endif

/* Of all tables, or of those that are named. */
int main(int count, char **names)
{
    qk_set_num_threads(1); /* of emulated tiles frames are larger than the stacks of the pool */
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        int wanted = count == 1;
        for (int j = 1; j < count; j++) wanted |= strcmp(names[j], tables[i]->name) == 0;
        if (wanted) test_table(tables[i]);
    }
    return 0;
}
