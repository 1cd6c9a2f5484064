/* NEON with dot products (Cortex-A55, A75, A76 and Neoverse N1 and later, Apple's from A12 on).
 *
 * udot: 4 lanes x (4 by 4 unsigned bytes) added to uint32, which wraps as int32 does (numerics 6). One operand may be a
 * lane of 4 bytes, so that nothing is broadcast. Cortex-A76 and Neoverse N1 issue two a cycle, V1 and Apple's four. It
 * has no operands of mixed signs: panels hold b' + 128, and sums begin with -128 times that of a row of a' (numerics
 * 6).
 *
 * Tile: 6 rows x 16 columns, 24 accumulators; 4 registers hold b, the others what comes of a. One step takes 4 codes of
 * k: 4 loads of b, 6 of a, 24 udot.
 *
 *          b0 (4 columns)   b1      b2      b3
 *     a0   c00              c01     c02     c03
 *     ..   ..               ..      ..      ..
 *     a5   c50              c51     c52     c53
 */
#if defined(__aarch64__)
#include "kernels/arm/cpu.h"
#include "kernels/arm/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

static int available(void) { return qk_has_dotprod(); }

QK_TARGET_BEGIN("arch=armv8.2-a+dotprod")

#define WITH_DOTPROD 1
#define MR 6
#define NR 16
#define KR 4
#define PANEL_FLIP (-128)
#define FOLDED_MR 3
#define UNFOLD_ROWS 4
#define UNFOLD_PANEL unfold_panel
#define DEPTHWISE_TAPS 4
#define DEPTHWISE_CODES depthwise_codes
#define HAVE_LOW_TO_BYTES
#define GEMM4_MR 6
#include "kernels/arm/row_shifts.h"
#include "kernels/generic/gemm8.h"
#include "kernels/generic/gemm4.h"
#include "kernels/generic/low_bits.h"

/* Panels may come from the L3 cache or from memory. */
enum { AHEAD = 64 * NR * KR };

static QK_INLINE row_sums add_products(row_sums c, const row_codes b, const void *a)
{
    const uint8x8_t v = load4(a);
    return (row_sums){vdotq_lane_u32(c.c0, b.b0, v, 0), vdotq_lane_u32(c.c1, b.b1, v, 0),
                      vdotq_lane_u32(c.c2, b.b2, v, 0), vdotq_lane_u32(c.c3, b.b3, v, 0)};
}

/* `rows` is a constant where this is inlined: the accumulators of absent rows vanish. */
static QK_INLINE void tile(const int rows, size_t steps, const uint8_t *a, size_t lda, const int8_t *panel,
                           const int32_t *init, const uint32_t *shift, int32_t *c, size_t ldc)
{
    const uint8_t *a1 = a + lda, *a2 = a1 + lda, *a3 = a2 + lda, *a4 = a3 + lda, *a5 = a4 + lda;
    const row_sums start = load_sums(init);
    row_sums c0 = minus(start, shift[0]), c1, c2, c3, c4, c5;
    if (rows > 1) c1 = minus(start, shift[1]);
    if (rows > 2) c2 = minus(start, shift[2]);
    if (rows > 3) c3 = minus(start, shift[3]);
    if (rows > 4) c4 = minus(start, shift[4]);
    if (rows > 5) c5 = minus(start, shift[5]);
    for (size_t k = 0; k < steps * KR; k += KR, panel += NR * KR) {
        const row_codes b = load_codes(panel);
        if (rows > 3) __builtin_prefetch(panel + AHEAD);
        c0 = add_products(c0, b, a + k);
        if (rows > 1) c1 = add_products(c1, b, a1 + k);
        if (rows > 2) c2 = add_products(c2, b, a2 + k);
        if (rows > 3) c3 = add_products(c3, b, a3 + k);
        if (rows > 4) c4 = add_products(c4, b, a4 + k);
        if (rows > 5) c5 = add_products(c5, b, a5 + k);
    }
    store_sums(c, c0);
    if (rows > 1) store_sums(c + ldc, c1);
    if (rows > 2) store_sums(c + 2 * ldc, c2);
    if (rows > 3) store_sums(c + 3 * ldc, c3);
    if (rows > 4) store_sums(c + 4 * ldc, c4);
    if (rows > 5) store_sums(c + 5 * ldc, c5);
}

static void gemm8_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                       int32_t *c, size_t ldc)
{
    uint32_t shift[MR];
    shifts_of(rows, steps * KR, a, lda, shift);
    ROWS_6(rows, tile, steps, a, lda, panel, init, shift, c, ldc);
}

static void gemm8_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

#include "kernels/arm/gemm4.h"
#include "kernels/arm/low_bits.h"
#include "kernels/arm/folded.h"
#include "kernels/generic/depthwise.h"

#include "kernels/generic/table.h"
static const qk_gemm8_kernels gemm8 = {
#include "kernels/families/gemm8.def"
};
static const qk_folded_kernels folded = {
#include "kernels/families/folded.def"
};
static const qk_conv_kernels conv = {
#include "kernels/families/conv.def"
};
const qk_gemm4_kernels qk_gemm4_neon_dotprod = {
#include "kernels/families/gemm4.def"
};
const qk_blocks8_kernels qk_blocks8_neon_dotprod = {
#include "kernels/families/blocks8.def"
};

#define PEAK_VECTOR uint32x4_t
#define PEAK_PRODUCTS 16
static QK_INLINE uint32x4_t peak_step(uint32x4_t sums, uint32x4_t a, uint32x4_t b)
{
    return vdotq_u32(sums, vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b));
}
#include "kernels/generic/peak.h"

const qk_kernels qk_kernels_neon_dotprod = {
    .name = "neon_dotprod",
    .available = available,
    .peak = peak,
    .gemm8 = &gemm8,
    .gemm4 = &qk_gemm4_neon_dotprod,
    .blocks8 = &qk_blocks8_neon_dotprod,
    .folded = &folded,
    .gemm8_folded = &gemm8,
    .gemm16 = &qk_gemm16_neon,
    .gemmf16 = &qk_gemmf16_neon,
    .elementwise = &qk_elementwise_neon,
    .codebooks = &qk_codebooks_neon,
    .layers = &qk_layers_neon,
    .kmeans = &qk_kmeans_neon,
    .pq = &qk_pq_neon,
    .histogram = &qk_histogram_neon,
    .conv = &conv,
};

QK_TARGET_END
#endif
