/* AVX-512 on every machine: csrc/kernels/x86/avx512vnni.c compiled against SIMDe (emulated/immintrin.h), whose portable
 * C stands for each instruction, gives the bits of the scalar kernels. test_simde.py compiles and runs this.
 *
 * Every function of the table is called at all lengths 0..130 (all rows and columns for tiles) on random and
 * extreme values, and outputs are followed by bytes that must not change. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "kernels/kernels.h"

#ifdef __AVX512F__
#error "compile without AVX-512, so that SIMDe's portable code runs"
#endif

enum { LENGTHS = 131, ROWS = 3, MOST = ROWS * (LENGTHS + 5), MARGIN = 64, MR = 12, NR = 32 };

static const qk_kernels *const simde = &qk_kernels_avx512vnni, *const scalar = &qk_kernels_scalar;
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
    const qk_affine_columns columns = {.scale = a->scale,
                                       .reciprocal = multiply ? a->reciprocal : NULL,
                                       .zero_point = a->zero_point,
                                       .qmin = qmin,
                                       .qmax = qmax,
                                       .half_away = half_away,
                                       .rows = ROWS,
                                       .stride = stride};
    for (int wide = qmax - qmin > 255; wide < 2; wide++)
        for (int by_column = 0; by_column < 2; by_column++) {
            const size_t bytes = size << wide;
            void *to[2] = {a->got, a->want};
            const qk_kernels *k[2] = {simde, scalar};
            what = wide     ? by_column ? "quantize_columns_f32_16" : "quantize_f32_16"
                : by_column ? "quantize_columns_f32_8"
                            : "quantize_f32_8";
            for (int i = 0; i < 2; i++) {
                clear(to[i], bytes);
                if (wide && by_column)
                    k[i]->elementwise->quantize_columns_f32_16(a->x, to[i], n, &columns);
                else if (wide)
                    k[i]->elementwise->quantize_f32_16(a->x, to[i], n, &one);
                else if (by_column)
                    k[i]->elementwise->quantize_columns_f32_8(a->x, to[i], n, &columns);
                else
                    k[i]->elementwise->quantize_f32_8(a->x, to[i], n, &one);
            }
            check(a->got, a->want, bytes, n);
        }
    what = "fake_quantize_f32";
    clear(a->got, 4 * n), clear(a->want, 4 * n);
    simde->elementwise->fake_quantize_f32(a->x, (float *)a->got, n, &one);
    scalar->elementwise->fake_quantize_f32(a->x, (float *)a->want, n, &one);
    check(a->got, a->want, 4 * n, n);
    what = "fake_quantize_columns_f32";
    clear(a->got, 4 * size), clear(a->want, 4 * size);
    simde->elementwise->fake_quantize_columns_f32(a->x, (float *)a->got, n, &columns);
    scalar->elementwise->fake_quantize_columns_f32(a->x, (float *)a->want, n, &columns);
    check(a->got, a->want, 4 * size, n);
}

static void test_codes_to_floats(arrays *a, size_t n)
{
    static const qk_dtype from[] = {QK_I8, QK_U8, QK_I16, QK_U16, QK_I32, QK_I4, QK_U4, QK_I2, QK_U2};
    for (size_t i = 0; i < n; i++) a->zero_point[i] = (int32_t)random32() >> 16, a->scale[i] = random_scale();
    const qk_affine one = {.scale = random_scale(), .zero_point = (int32_t)random32() >> 16};
    const size_t stride = n + random32() % 6, size = ROWS * stride;
    const qk_affine_columns columns = {.scale = a->scale, .zero_point = a->zero_point, .rows = ROWS, .stride = stride};
    random_ints(a->codes, size);
    for (int i = 0; i < 9; i++) {
        what = "dequantize_f32";
        clear(a->got, 4 * n), clear(a->want, 4 * n);
        simde->elementwise->dequantize_f32(a->codes, from[i], (float *)a->got, n, &one);
        scalar->elementwise->dequantize_f32(a->codes, from[i], (float *)a->want, n, &one);
        check(a->got, a->want, 4 * n, n);
        what = "dequantize_columns_f32";
        clear(a->got, 4 * size), clear(a->want, 4 * size);
        simde->elementwise->dequantize_columns_f32(a->codes, from[i], (float *)a->got, n, &columns);
        scalar->elementwise->dequantize_columns_f32(a->codes, from[i], (float *)a->want, n, &columns);
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

static void test_pack_row(size_t n)
{
    uint8_t a[LENGTHS], got[LENGTHS + 4 + MARGIN], want[LENGTHS + 4 + MARGIN];
    const size_t n_pad = (n + 3) / 4 * 4;
    random_bytes(a, n);
    for (int flip = 0; flip <= 0x80; flip += 0x80) {
        what = "gemm8_pack_row";
        clear(got, n_pad), clear(want, n_pad);
        simde->gemm8->gemm8_pack_row(a, n, n_pad, (uint8_t)flip, got);
        scalar->gemm8->gemm8_pack_row(a, n, n_pad, (uint8_t)flip, want);
        check(got, want, n_pad, n);
        const int32_t sums[2] = {simde->gemm8->sum_codes(a, n, (uint8_t)flip),
                                 scalar->gemm8->sum_codes(a, n, (uint8_t)flip)};
        if (sums[0] != sums[1]) printf("sum_codes: %d and %d at length %zu\n", sums[0], sums[1], n), exit(1);
    }
}

/* The scalar kernels' tiles are 16 columns wide: two of them make one of 32. */
static void test_gemm_tile(int rows, size_t steps)
{
    enum { STEPS = 300 };
    static uint8_t a[MR * (4 * STEPS + 4)];
    static int8_t panel[4 * NR * STEPS], half[2][4 * 16 * STEPS];
    int32_t init[NR], got[MR * 40 + MARGIN / 4], want[MR * 40 + MARGIN / 4];
    const size_t lda = 4 * steps + random32() % 5, ldc = NR + random32() % 8;
    random_bytes(a, sizeof a), random_bytes(panel, sizeof panel), random_ints(init, NR);
    for (size_t s = 0; s < steps; s++)
        for (int h = 0; h < 2; h++) memcpy(half[h] + 64 * s, panel + 128 * s + 64 * h, 64);
    what = "gemm8_tile";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    simde->gemm8->gemm8_tile(rows, steps, a, lda, panel, init, got, ldc);
    for (int h = 0; h < 2; h++)
        scalar->gemm8->gemm8_tile(rows, steps, a, lda, half[h], init + 16 * h, want + 16 * h, ldc);
    check(got, want, sizeof got - MARGIN, (size_t)rows * NR);
}

static void test_pack_panel(size_t k, size_t cols)
{
    static uint8_t b[LENGTHS * NR];
    static int8_t got[(LENGTHS + 3) * NR + MARGIN], half[(LENGTHS + 3) * 16 + MARGIN], want[sizeof got];
    const size_t k_pad = (k + 3) / 4 * 4;
    int32_t zero[NR];
    random_bytes(b, sizeof b);
    for (int j = 0; j < NR; j++) zero[j] = (int32_t)random32() >> 24;
    for (int by_row = 0; by_row < 2; by_row++) {
        qk_panel_source s = {b, by_row ? (ptrdiff_t)cols : 1, by_row ? 1 : (ptrdiff_t)k,
                             k, random32() % 2 ? 0x80 : 0,    zero};
        int32_t colsum[2][NR + MARGIN / 4];
        what = "gemm8_pack_panel";
        clear(got, k_pad * NR), clear(want, k_pad * NR), clear(colsum[0], 4 * NR), clear(colsum[1], 4 * NR);
        const int64_t bound = simde->gemm8->gemm8_pack_panel(&s, cols, got, colsum[0]);
        int64_t largest = 0;
        for (size_t h = 0; h < 2; h++) {
            qk_panel_source part = s;
            part.b += (ptrdiff_t)(16 * h) * s.col_stride, part.zero += 16 * h;
            const size_t here = cols <= 16 * h ? 0 : cols - 16 * h < 16 ? cols - 16 * h : 16;
            const int64_t size = scalar->gemm8->gemm8_pack_panel(&part, here, half, colsum[1] + 16 * h);
            if (size > largest) largest = size;
            for (size_t step = 0; step < k_pad / 4; step++) memcpy(want + 128 * step + 64 * h, half + 64 * step, 64);
        }
        check(got, want, k_pad * NR, k * cols);
        check(colsum[0], colsum[1], 4 * cols, cols);
        if (bound != largest)
            printf("gemm8_pack_panel: bounds %lld and %lld\n", (long long)bound, (long long)largest), exit(1);
    }
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
    static float got[8 * NR + MARGIN / 4], want[8 * NR + MARGIN / 4];
    int32_t start[8 * (BLOCKS + 3)];
    const size_t lda = 4 * blocks * steps + random32() % 5, ld_start = blocks + random32() % 4;
    random_bytes(records, sizeof records), random_bytes(a, sizeof a);
    for (size_t i = 0; i < sizeof start / 4; i++) start[i] = (int32_t)random32() >> 16;
    uint8_t *scales = records;
    for (size_t block = 0; block < blocks; block++) {
        scales += 64 * (block + 1 < blocks ? steps : last_steps);
        for (int j = 0; j < NR; j++) {
            const float scale = of_bits((96 + random32() % 64) << 23 | random32() >> 9);
            const uint16_t half = (uint16_t)(random32() % 0x7c00);
            if (half_scales)
                memcpy(scales + 2 * j, &half, 2);
            else
                memcpy(scales + 4 * j, &scale, 4);
        }
        scales += NR * (half_scales ? 2 : 4);
        if (own_zeros)
            for (int j = 0; j < NR; j++) *scales++ = random32() % 16;
    }
    for (int i = 0; i < 16; i++) levels[i] = random_level();
    if (looked_up) start_levels(rows, blocks, 4 * steps, 4 * last_steps, a, lda, start, ld_start);
    const qk_gemm4_panel p = {records, blocks, steps, last_steps, half_scales, own_zeros, looked_up ? levels : NULL};
    what = "gemm4_tile";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    simde->gemm4->gemm4_tile(rows, &p, a, lda, start, ld_start, got);
    scalar->gemm4->gemm4_tile(rows, &p, a, lda, start, ld_start, want);
    check(got, want, sizeof got - MARGIN, (size_t)rows * NR);
}

/* Blocks of 8-bit weights. The scalar tile reads codes of a as they are; sums of columns are those of the codes. */
static void test_bytes(int rows, size_t blocks, size_t steps, size_t last_steps, int half_scales, int own_zeros,
                       int long_sums)
{
    enum { BLOCKS = 4, STEPS = 9, STEP = 4 * NR, RECORD = STEP * STEPS + NR * 9 };
    static uint8_t records[BLOCKS * RECORD];
    static int8_t a[MR * (4 * BLOCKS * STEPS + 4)], flipped[sizeof a];
    static float got[MR * NR + MARGIN / 4], want[MR * NR + MARGIN / 4];
    int32_t start[MR * (BLOCKS + 3)];
    const size_t lda = 4 * blocks * steps + random32() % 5, ld_start = blocks + random32() % 4;
    const size_t params_bytes = NR * (size_t)((half_scales ? 2 : 4) + (own_zeros ? 1 : 0) + (long_sums ? 4 : 2));
    random_bytes(records, sizeof records), random_bytes(a, sizeof a);
    for (size_t i = 0; i < sizeof a; i++) flipped[i] = (int8_t)(a[i] ^ simde->gemm4->blocks8_flip);
    for (size_t i = 0; i < sizeof start / 4; i++)
        start[i] = (int32_t)((random32() % 256 - 128) << 16 | random32() % 256);
    const uint8_t *codes = records;
    for (size_t block = 0; block < blocks; block++) {
        uint8_t *scales = records + (codes - records) + STEP * (block + 1 < blocks ? steps : last_steps);
        uint8_t *sums = scales + params_bytes - NR * (long_sums ? 4 : 2);
        for (int j = 0; j < NR; j++) {
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
                              .long_sums = long_sums,
                              .params_bytes = params_bytes};
    what = "blocks8_tile";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    simde->gemm4->blocks8_tile(rows, &p, flipped, lda, start, ld_start, got);
    scalar->gemm4->blocks8_tile(rows, &p, a, lda, start, ld_start, want);
    check(got, want, sizeof got - MARGIN, (size_t)rows * NR);
}

/* 32 columns with levels of their own, 16 at a time. */
static void test_column_levels(int rows, size_t steps)
{
    enum { STEPS = 9, GROUP = 256 * (1 + STEPS) };
    static uint8_t records[2 * GROUP + 4 * NR];
    static int8_t a[8 * (32 * STEPS + 4)];
    static float got[8 * NR + MARGIN / 4], want[8 * NR + MARGIN / 4];
    int32_t start[8 * 3];
    const size_t lda = 32 * steps + random32() % 5, ld_start = 1 + random32() % 2;
    random_bytes(records, sizeof records), random_bytes(a, sizeof a);
    for (int i = 0; i < 2 * 256; i++) records[i / 256 * 256 * (1 + steps) + i % 256] = (uint8_t)random_level();
    for (int j = 0; j < NR; j++) {
        const float scale = of_bits((96 + random32() % 64) << 23 | random32() >> 9);
        memcpy(records + 2 * 256 * (1 + steps) + 4 * j, &scale, 4);
    }
    start_levels(rows, 1, 0, 32 * steps, a, lda, start, ld_start);
    const qk_gemm4_panel p = {records, steps > 0, steps, steps, 0, 0, NULL};
    what = "column_levels_tile";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    simde->gemm4->column_levels_tile(rows, &p, a, lda, start, ld_start, got);
    scalar->gemm4->column_levels_tile(rows, &p, a, lda, start, ld_start, want);
    check(got, want, sizeof got - MARGIN, (size_t)rows * NR);
}

/* Panels of finite float16 or bfloat16 weights are the same for all; float rows of a are random numbers of few sizes.
 */
static void test_half(int rows, size_t k, qk_dtype type)
{
    enum { K = 70, PANELS = QK_GEMMF16_ROW_PANELS };
    static uint16_t panels[PANELS * K * NR];
    static float a[MR * (K + 4)], got[MR * NR + MARGIN / 4], want[MR * NR + MARGIN / 4];
    const size_t lda = k + random32() % 5;
    for (size_t i = 0; i < sizeof panels / 2; i++)
        panels[i] = (uint16_t)(random32() % 0x8000 % (type == QK_F16 ? 0x7c00 : 0x5000) | random32() << 15);
    for (size_t i = 0; i < sizeof a / 4; i++)
        a[i] = of_bits((120 + random32() % 16) << 23 | random32() >> 9 | random32() << 31);
    what = "gemmf16_tile";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    simde->gemmf16->gemmf16_tile(rows, k, a, lda, panels, type, got);
    scalar->gemmf16->gemmf16_tile(rows, k, a, lda, panels, type, want);
    check(got, want, sizeof got - MARGIN, (size_t)rows * NR);
    for (int n = 1; n <= PANELS; n++) {
        what = "gemmf16_row";
        clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
        simde->gemmf16->gemmf16_row(n, k, a, panels, type, got);
        scalar->gemmf16->gemmf16_row(n, k, a, panels, type, want);
        check(got, want, sizeof got - MARGIN, (size_t)n * NR);
    }
}

/* Magnitudes of which no sum leaves int32. As in test_gemm_tile, two panels of the scalar kernels make one. */
static void test_words(int rows, size_t steps)
{
    enum { STEPS = 20 };
    static int16_t a[MR * (2 * STEPS + 4)], panel[2 * NR * STEPS], half[2][2 * 16 * STEPS];
    int32_t got[MR * NR + MARGIN / 4], part[MR * 16], want[MR * NR + MARGIN / 4];
    int64_t sum[2][MR * (NR + 8) + MARGIN / 8];
    const size_t lda = 2 * steps + random32() % 5, ld = NR + random32() % 8;
    random_bytes(a, sizeof a), random_bytes(panel, sizeof panel);
    for (size_t i = 0; i < sizeof a / 2; i++) a[i] /= 32;
    for (size_t s = 0; s < steps; s++)
        for (int h = 0; h < 2; h++) memcpy(half[h] + 32 * s, panel + 64 * s + 32 * h, 64);
    what = "gemm16_tile";
    clear(got, sizeof got - MARGIN), clear(want, sizeof want - MARGIN);
    simde->gemm16->gemm16_tile(rows, steps, a, lda, panel, got);
    for (int h = 0; h < 2; h++) {
        scalar->gemm16->gemm16_tile(rows, steps, a, lda, half[h], part);
        for (int row = 0; row < rows; row++) memcpy(want + row * NR + 16 * h, part + row * 16, 64);
    }
    check(got, want, sizeof got - MARGIN, (size_t)rows * NR);
    what = "gemm16_add";
    clear(sum[0], sizeof sum[0] - MARGIN), clear(sum[1], sizeof sum[1] - MARGIN);
    for (int more = 0; more < 3; more++) {
        simde->gemm16->gemm16_add(rows, got, more / 2 * 8, more > 0, sum[0], ld);
        for (int h = 0; h < 2; h++) {
            for (int row = 0; row < rows; row++) memcpy(part + row * 16, got + row * NR + 16 * h, 64);
            scalar->gemm16->gemm16_add(rows, part, more / 2 * 8, more > 0, sum[1] + 16 * h, ld);
        }
        check(sum[0], sum[1], sizeof sum[0] - MARGIN, (size_t)rows * NR);
    }
}

static void test_epilogue(int rows, int cols, int output, qk_activation activation, qk_rounding rounding, int scales,
                          int zeros)
{
    int32_t acc[MR * NR], half[MR * 16], row_zero[MR], row_term[MR], colsum[NR], col_zero[NR], mantissa[NR], shift[NR];
    float row_scale[MR], col_scale[NR], bias[NR], multiplier[NR];
    static float residual[MR * 40];
    static char got[MR * 4 * 40 + MARGIN], want[MR * 4 * 40 + MARGIN];
    const size_t size = output == 2 ? 1 : 4, row_stride = 40 * size;
    random_ints(acc, MR * NR), random_ints(row_zero, MR), random_ints(row_term, MR), random_ints(colsum, NR),
        random_ints(col_zero, NR);
    for (int i = 0; i < MR; i++) row_scale[i] = ldexpf(1.0f + (float)(random32() >> 9) * 0x1p-23f, -10);
    for (int j = 0; j < NR; j++) {
        const double m = ldexp(0.5 + random32() / 8589934592.0, (int)(random32() % 30) - 28);
        multiplier[j] = (float)m, col_scale[j] = (float)(m * 0x1p-6), bias[j] = (float)((int32_t)random32() >> 24) / 2;
        qk_quantize_multiplier(m, &mantissa[j], &shift[j]);
    }
    for (int i = 0; i < MR * 40; i++) residual[i] = (float)((int32_t)random32() >> 20) / 64;
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
        for (int h = 0; h < 2 && cols > 16 * h; h++) {
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
            for (int i = 0; i < part.rows; i++) memcpy(half + 16 * i, acc + NR * (row + i) + 16 * h, 64);
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

int main(void)
{
    static arrays a;
    if (simde->gemm8->mr != MR || simde->gemm8->nr != NR || scalar->gemm8->nr != 16)
        return puts("the tiles have another size than this test"), 1;
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
            for (size_t block = 16; block <= 64; block += 16)
                test_codebook(&a, n, 0, block), test_codebook(&a, 3 * n, 1, block);
            test_pack_row(n);
        }
    for (size_t k = 0; k < LENGTHS; k++)
        for (size_t cols = 1; cols <= NR; cols++) test_pack_panel(k, cols);
    for (int rows = 1; rows <= simde->gemm4->mr; rows++)
        for (size_t blocks = 0; blocks <= 5; blocks++)
            for (int i = 0; i < 6; i++)
                for (size_t steps = 1; steps <= 9; steps++)
                    test_gemm4(rows, blocks, steps, 1 + random32() % steps, i & 1, i >> 1 & 1, i >> 2);
    for (int rows = 1; rows <= simde->gemm4->blocks8_mr; rows++)
        for (size_t blocks = 0; blocks <= 4; blocks++)
            for (size_t steps = 1; steps <= 9; steps += 4)
                for (int i = 0; i < 8; i++)
                    test_bytes(rows, blocks, steps, 1 + random32() % steps, i & 1, i >> 1 & 1, i >> 2);
    for (int rows = 1; rows <= simde->gemm4->mr; rows++)
        for (size_t steps = 0; steps <= 9; steps++) test_column_levels(rows, steps);
    for (int rows = 1; rows <= MR; rows++) {
        for (size_t k = 0; k <= 70; k++) test_half(rows, k, QK_F16), test_half(rows, k, QK_BF16);
        for (size_t steps = 0; steps <= 20; steps++) test_words(rows, steps);
        for (size_t steps = 0; steps <= 40; steps++) test_gemm_tile(rows, steps);
        test_gemm_tile(rows, 300);
        for (int cols = 1; cols <= NR; cols++)
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
    for (size_t d = 1; d <= WIDTH; d++)
        for (size_t k = 1; k <= CLUSTERS; k += 1 + random32() % 3)
            for (int i = 0; i < 4; i++) test_kmeans(k + random32() % (POINTS - CLUSTERS), d, k, i & 1, i >> 1);
    printf("%zu values of %s by SIMDe are those of %s\n", compared, simde->name, scalar->name);
    return 0;
}
