/* AVX-512 without VNNI (Skylake-X, Cascade Lake has more), and all of AVX-512 that needs no VNNI: avx512vnni.c borrows
 * it.
 *
 * vpmaddwd: 16 lanes x (2 by 2 int16) summed to int32, exact here (numerics 6), then vpaddd: 32 products for two
 * instructions. vpmaddubsw does twice that and saturates: it serves weights that let packing prove the sums
 * (maddubs.h).
 *
 * Tile: 12 rows x 32 columns, 24 accumulators; 2 registers hold b, 1 the broadcast of a, 1 the products: 28 of 32. b is
 * widened from int8 by vpmovsxbw as it is loaded, 2 of the 50 instructions of a step that need the two vector pipes.
 *
 *          b0 (16 columns)  b1 (16 columns)
 *     a0   c00              c01
 *     a1   c10              c11
 *     ..   ..               ..
 *     ab   cb0              cb1
 */
#if defined(__x86_64__)
#include "kernels/kernels.h"
#include "kernels/x86/cpu.h"
#include "kernels/x86/target.h"
#include "runtime/compiler.h"

static int available(void) { return qk_has_avx512(); }

QK_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", "prefer-vector-width=512")

#define MR 12
#define DEPTHWISE_CODES depthwise_codes
#define NR 32
#define KR 2
#define A_BYTES 2
#define GEMM8_BLOCK_BYTES (768 * 1024) /* of an L2 cache of 1 MB */
#define GEMM8_WIDE_TILE gemm8_wide_tile
#define GEMM8_WIDEN_PANEL gemm8_widen_panel
#define PQ_TURN pq_turn
#define PQ_SPLIT pq_split
#define PQ_PASS pq_pass
#define PQ_PASS_PACKED pq_pass_packed
#define PQ_PASSES_ROWS qk_has_vbmi
#define PQ_PASS_ROWS qk_pq_pass_rows_vbmi
#include "kernels/x86/avx512_elementwise.h"
#include "kernels/generic/elementwise.h"
#include "kernels/x86/stochastic.h"
#include "kernels/generic/stochastic.h"
#include "kernels/x86/fake_grad.h"
#include "kernels/generic/fake_grad.h"
#include "kernels/generic/layers.h"
#include "kernels/generic/rotate.h"

#define HAVE_TABLE_GROUPS
static size_t table_groups(const uint8_t *q, uint8_t *y, size_t n, const uint8_t *table, uint8_t mask, uint8_t shift);
static size_t weight_groups(const uint8_t *q, size_t n, const qk_softmax *p, uint8_t mask, uint8_t shift,
                            uint64_t *sum);
#include "kernels/x86/integer_layers.h"
#include "kernels/generic/integer_layers.h"

static size_t table_groups(const uint8_t *q, uint8_t *y, size_t n, const uint8_t *table, uint8_t mask, uint8_t shift)
{
    if (!qk_has_vbmi()) return shuffled_groups(q, y, n, table, mask, shift);
    qk_take_table_vbmi(q, y, n, table, mask, shift);
    return n;
}

static size_t weight_groups(const uint8_t *q, size_t n, const qk_softmax *p, uint8_t mask, uint8_t shift, uint64_t *sum)
{
    if (!qk_has_vbmi()) return 0;
    *sum = qk_sum_weights_vbmi(q, n, p->planes, mask, shift);
    return n;
}

#include "kernels/generic/codebook.h"
#include "kernels/generic/rounding.h"
#include "kernels/generic/gguf.h"
#include "kernels/generic/gguf_search.h"
#include "kernels/generic/histogram.h"

#include "kernels/generic/gemm8.h"
#include "kernels/generic/gemm4.h"
#include "kernels/generic/gemm16.h"
#include "kernels/generic/depthwise.h"

#include "kernels/x86/avx512_int16.h"

static void gemm8_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                       int32_t *c, size_t ldc)
{
    int16_tile(1, 1, rows, steps, a, lda / sizeof(int16_t), panel, init, c, ldc);
}

static void gemm8_wide_tile(int rows, size_t steps, const void *a, size_t lda, const int16_t *panel,
                            const int32_t *init, int32_t *c, size_t ldc)
{
    int16_tile(0, 1, rows, steps, a, lda / sizeof(int16_t), panel, init, c, ldc);
}

static void gemm8_widen_panel(const int8_t *panel, size_t steps, int16_t *to)
{
    for (size_t i = 0; i < steps * NR * KR; i += NR) _mm512_storeu_si512(to + i, load_int16(panel, i, 1));
}

static void gemm8_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_int16(a, n, n_pad, flip, to);
}

static void gemm16_tile(int rows, size_t steps, const int16_t *a, size_t lda, const int16_t *panel, int32_t *c)
{
    int16_tile(0, 0, rows, steps, a, lda, panel, NULL, c, NR);
}
/* ---- k-means: what kmeans.h needs ---- */

typedef int32_t indices16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int64_t indices8 __attribute__((vector_size(64), aligned(8), may_alias));

static inline __m512 multiply_add_f32(__m512 x, __m512 sum) { return _mm512_fmadd_ps(x, x, sum); }
static inline __m512d smaller_f64(__m512d a, __m512d b) { return _mm512_min_pd(a, b); }
static inline __m512d multiply_add_f64(__m512d x, __m512d sum) { return _mm512_fmadd_pd(x, x, sum); }

#if QK_ASM
/* x - *c, by an operand that is broadcast from memory, which is free: gcc would broadcast to a register once for two
 * differences, which takes the slot of a multiply-add. */
static inline __m512 minus_f32(__m512 x, const float *c)
{
    __m512 y;
    __asm__("vsubps %2%{1to16%}, %1, %0" : "=v"(y) : "v"(x), "m"(*c));
    return y;
}

static inline __m512d minus_f64(__m512d x, const double *c)
{
    __m512d y;
    __asm__("vsubpd %2%{1to8%}, %1, %0" : "=v"(y) : "v"(x), "m"(*c));
    return y;
}
#else
static inline __m512 minus_f32(__m512 x, const float *c) { return _mm512_sub_ps(x, _mm512_set1_ps(*c)); }
static inline __m512d minus_f64(__m512d x, const double *c) { return _mm512_sub_pd(x, _mm512_set1_pd(*c)); }
#endif

static inline void fence_f32(__m512 *a, __m512 *b, __m512 *c, __m512 *d) { QK_KEEP4(*a, *b, *c, *d); }
static inline void fence_f64(__m512d *a, __m512d *b, __m512d *c, __m512d *d) { QK_KEEP4(*a, *b, *c, *d); }

/* Distances are positive, and so ordered as their bits are: integer minima run on all four pipes of Zen 4, float ones
 * on two. */
static inline __m512 smaller_f32(__m512 a, __m512 b)
{
    return _mm512_castsi512_ps(_mm512_min_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

static inline __m512 larger_f32(__m512 a, __m512 b)
{
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

static inline void keep_two_f32(__m512 distance, int32_t index, __m512 *first, __m512 *second, indices16 *nearest)
{
    const __mmask16 nearer = _mm512_cmp_ps_mask(distance, *first, _CMP_LT_OQ);
    *second = smaller_f32(*second, larger_f32(distance, *first));
    *first = smaller_f32(*first, distance);
    *nearest = (indices16)_mm512_mask_set1_epi32((__m512i)*nearest, nearer, index);
}

static inline void keep_two_f64(__m512d distance, int32_t index, __m512d *first, __m512d *second, indices8 *nearest)
{
    const __mmask8 nearer = _mm512_cmp_pd_mask(distance, *first, _CMP_LT_OQ);
    *second = _mm512_min_pd(*second, _mm512_max_pd(distance, *first));
    *first = _mm512_min_pd(*first, distance);
    *nearest = (indices8)_mm512_mask_set1_epi64((__m512i)*nearest, nearer, index);
}

/* Lists centroids whose distance is within the limit, from *j on, for whole registers. Returns how many. */
static inline size_t within_registers_f32(const float *distance, size_t k, float limit, int32_t *list, size_t *j)
{
    __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t listed = 0;
    for (; *j + 16 <= k; *j += 16) {
        const __mmask16 near = _mm512_cmp_ps_mask(_mm512_loadu_ps(distance + *j), _mm512_set1_ps(limit), _CMP_LE_OQ);
        _mm512_storeu_si512(list + listed, _mm512_maskz_compress_epi32(near, index));
        listed += (size_t)__builtin_popcount(near);
        index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
    }
    return listed;
}

static inline size_t within_registers_f64(const double *distance, size_t k, double limit, int32_t *list, size_t *j)
{
    __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    size_t listed = 0;
    for (; *j + 8 <= k; *j += 8) {
        const __mmask8 near = _mm512_cmp_pd_mask(_mm512_loadu_pd(distance + *j), _mm512_set1_pd(limit), _CMP_LE_OQ);
        _mm256_storeu_si256((__m256i *)(list + listed), _mm256_maskz_compress_epi32(near, index));
        listed += (size_t)__builtin_popcount(near);
        index = _mm256_add_epi32(index, _mm256_set1_epi32(8));
    }
    return listed;
}

#define HAVE_LANES
#include "kernels/generic/kmeans.h"
#include "kernels/generic/pq.h"
#include "kernels/x86/pq_filter.h"
#include "kernels/generic/kmeans1d.h"
#include "kernels/generic/least_squares.h"

/* ---- float16 and bfloat16 weights (numerics 16) ---- */

/* Tile: 12 rows x 32 columns, as for bytes; a step is a row of 64 bytes of the panel. Widening it takes two
 * instructions on other pipes than its 24 multiply-adds. */

/* 16 columns each. */
typedef struct {
    __m512 left, right;
} two_floats;

/* A row of a panel. `type` is a constant where this is inlined. */
static QK_INLINE two_floats row_of_floats(const uint16_t *p, const qk_dtype type)
{
    if (type == QK_F32) return (two_floats){_mm512_loadu_ps(p), _mm512_loadu_ps(p + 32)};
    if (type == QK_F16)
        return (two_floats){_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)),
                            _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p + 16)))};
    const __m512i two = _mm512_loadu_si512(p);
    return (two_floats){_mm512_castsi512_ps(_mm512_slli_epi32(two, 16)),
                        _mm512_castsi512_ps(_mm512_and_si512(two, _mm512_set1_epi32((int32_t)0xffff0000)))};
}

static QK_INLINE void gemmf16_rows(const int rows, const qk_dtype type, size_t k, const float *a, size_t lda,
                                   const uint16_t *panel, int more, float *y)
{
    const float *a3 = a + 3 * lda, *a6 = a + 6 * lda, *a9 = a + 9 * lda;
    const __m512 zero = _mm512_setzero_ps();
    __m512 c00 = zero, c01 = zero, c10 = zero, c11 = zero, c20 = zero, c21 = zero, c30 = zero, c31 = zero;
    __m512 c40 = zero, c41 = zero, c50 = zero, c51 = zero, c60 = zero, c61 = zero, c70 = zero, c71 = zero;
    __m512 c80 = zero, c81 = zero, c90 = zero, c91 = zero, ca0 = zero, ca1 = zero, cb0 = zero, cb1 = zero;
    const size_t step = type == QK_F32 ? 2 * QK_GEMMF16_NR : QK_GEMMF16_NR;
    if (more) {
        c00 = _mm512_loadu_ps(y), c01 = _mm512_loadu_ps(y + 16);
        if (rows > 1) c10 = _mm512_loadu_ps(y + 32), c11 = _mm512_loadu_ps(y + 48);
        if (rows > 2) c20 = _mm512_loadu_ps(y + 64), c21 = _mm512_loadu_ps(y + 80);
        if (rows > 3) c30 = _mm512_loadu_ps(y + 96), c31 = _mm512_loadu_ps(y + 112);
        if (rows > 4) c40 = _mm512_loadu_ps(y + 128), c41 = _mm512_loadu_ps(y + 144);
        if (rows > 5) c50 = _mm512_loadu_ps(y + 160), c51 = _mm512_loadu_ps(y + 176);
        if (rows > 6) c60 = _mm512_loadu_ps(y + 192), c61 = _mm512_loadu_ps(y + 208);
        if (rows > 7) c70 = _mm512_loadu_ps(y + 224), c71 = _mm512_loadu_ps(y + 240);
        if (rows > 8) c80 = _mm512_loadu_ps(y + 256), c81 = _mm512_loadu_ps(y + 272);
        if (rows > 9) c90 = _mm512_loadu_ps(y + 288), c91 = _mm512_loadu_ps(y + 304);
        if (rows > 10) ca0 = _mm512_loadu_ps(y + 320), ca1 = _mm512_loadu_ps(y + 336);
        if (rows > 11) cb0 = _mm512_loadu_ps(y + 352), cb1 = _mm512_loadu_ps(y + 368);
    }
    for (size_t i = 0; i < k; i++, a++, a3++, a6++, a9++, panel += step) {
        _mm_prefetch((const char *)(panel + 64 * QK_GEMMF16_NR),
                     _MM_HINT_T0); /* few rows use weights as fast as they arrive */
        const two_floats b = row_of_floats(panel, type);
        __m512 v = _mm512_set1_ps(a[0]);
        c00 = _mm512_fmadd_ps(v, b.left, c00), c01 = _mm512_fmadd_ps(v, b.right, c01);
        if (rows > 1)
            v = _mm512_set1_ps(a[lda]), c10 = _mm512_fmadd_ps(v, b.left, c10), c11 = _mm512_fmadd_ps(v, b.right, c11);
        if (rows > 2)
            v = _mm512_set1_ps(a[2 * lda]), c20 = _mm512_fmadd_ps(v, b.left, c20),
            c21 = _mm512_fmadd_ps(v, b.right, c21);
        if (rows > 3)
            v = _mm512_set1_ps(a3[0]), c30 = _mm512_fmadd_ps(v, b.left, c30), c31 = _mm512_fmadd_ps(v, b.right, c31);
        if (rows > 4)
            v = _mm512_set1_ps(a3[lda]), c40 = _mm512_fmadd_ps(v, b.left, c40), c41 = _mm512_fmadd_ps(v, b.right, c41);
        if (rows > 5)
            v = _mm512_set1_ps(a3[2 * lda]), c50 = _mm512_fmadd_ps(v, b.left, c50),
            c51 = _mm512_fmadd_ps(v, b.right, c51);
        if (rows > 6)
            v = _mm512_set1_ps(a6[0]), c60 = _mm512_fmadd_ps(v, b.left, c60), c61 = _mm512_fmadd_ps(v, b.right, c61);
        if (rows > 7)
            v = _mm512_set1_ps(a6[lda]), c70 = _mm512_fmadd_ps(v, b.left, c70), c71 = _mm512_fmadd_ps(v, b.right, c71);
        if (rows > 8)
            v = _mm512_set1_ps(a6[2 * lda]), c80 = _mm512_fmadd_ps(v, b.left, c80),
            c81 = _mm512_fmadd_ps(v, b.right, c81);
        if (rows > 9)
            v = _mm512_set1_ps(a9[0]), c90 = _mm512_fmadd_ps(v, b.left, c90), c91 = _mm512_fmadd_ps(v, b.right, c91);
        if (rows > 10)
            v = _mm512_set1_ps(a9[lda]), ca0 = _mm512_fmadd_ps(v, b.left, ca0), ca1 = _mm512_fmadd_ps(v, b.right, ca1);
        if (rows > 11)
            v = _mm512_set1_ps(a9[2 * lda]), cb0 = _mm512_fmadd_ps(v, b.left, cb0),
            cb1 = _mm512_fmadd_ps(v, b.right, cb1);
    }
    _mm512_storeu_ps(y, c00), _mm512_storeu_ps(y + 16, c01);
    if (rows > 1) y += 32, _mm512_storeu_ps(y, c10), _mm512_storeu_ps(y + 16, c11);
    if (rows > 2) y += 32, _mm512_storeu_ps(y, c20), _mm512_storeu_ps(y + 16, c21);
    if (rows > 3) y += 32, _mm512_storeu_ps(y, c30), _mm512_storeu_ps(y + 16, c31);
    if (rows > 4) y += 32, _mm512_storeu_ps(y, c40), _mm512_storeu_ps(y + 16, c41);
    if (rows > 5) y += 32, _mm512_storeu_ps(y, c50), _mm512_storeu_ps(y + 16, c51);
    if (rows > 6) y += 32, _mm512_storeu_ps(y, c60), _mm512_storeu_ps(y + 16, c61);
    if (rows > 7) y += 32, _mm512_storeu_ps(y, c70), _mm512_storeu_ps(y + 16, c71);
    if (rows > 8) y += 32, _mm512_storeu_ps(y, c80), _mm512_storeu_ps(y + 16, c81);
    if (rows > 9) y += 32, _mm512_storeu_ps(y, c90), _mm512_storeu_ps(y + 16, c91);
    if (rows > 10) y += 32, _mm512_storeu_ps(y, ca0), _mm512_storeu_ps(y + 16, ca1);
    if (rows > 11) y += 32, _mm512_storeu_ps(y, cb0), _mm512_storeu_ps(y + 16, cb1);
}

static QK_INLINE void gemmf16_tile_of(const qk_dtype type, int rows, size_t k, const float *a, size_t lda,
                                      const uint16_t *panel, int more, float *y)
{
    ROWS_12(rows, gemmf16_rows, type, k, a, lda, panel, more, y);
}

static void gemmf16_tile(int rows, size_t k, const float *a, size_t lda, const uint16_t *panel, qk_dtype type, int more,
                         float *y)
{
    if (type == QK_F32)
        gemmf16_tile_of(QK_F32, rows, k, a, lda, panel, more, y);
    else if (type == QK_F16)
        gemmf16_tile_of(QK_F16, rows, k, a, lda, panel, more, y);
    else
        gemmf16_tile_of(QK_BF16, rows, k, a, lda, panel, more, y);
}

/* One row takes panels side by side: the two chains of one panel would wait for their own multiply-adds. */
static QK_INLINE void bfloat_panels(const int panels, size_t k, const float *a, const uint16_t *panel, float *y)
{
    const size_t size = k * QK_GEMMF16_NR;
    const uint16_t *panel3 = panel + 3 * size;
    const __m512 zero = _mm512_setzero_ps();
    __m512 c00 = zero, c01 = zero, c10 = zero, c11 = zero, c20 = zero, c21 = zero, c30 = zero, c31 = zero;
    for (size_t i = 0; i < k; i++, panel += QK_GEMMF16_NR, panel3 += QK_GEMMF16_NR) {
        const __m512 v = _mm512_set1_ps(a[i]);
        two_floats b = row_of_floats(panel, QK_BF16);
        c00 = _mm512_fmadd_ps(v, b.left, c00), c01 = _mm512_fmadd_ps(v, b.right, c01);
        if (panels > 1)
            b = row_of_floats(panel + size, QK_BF16), c10 = _mm512_fmadd_ps(v, b.left, c10),
            c11 = _mm512_fmadd_ps(v, b.right, c11);
        if (panels > 2)
            b = row_of_floats(panel + 2 * size, QK_BF16), c20 = _mm512_fmadd_ps(v, b.left, c20),
            c21 = _mm512_fmadd_ps(v, b.right, c21);
        if (panels > 3)
            b = row_of_floats(panel3, QK_BF16), c30 = _mm512_fmadd_ps(v, b.left, c30),
            c31 = _mm512_fmadd_ps(v, b.right, c31);
    }
    _mm512_storeu_ps(y, c00), _mm512_storeu_ps(y + 16, c01);
    if (panels > 1) _mm512_storeu_ps(y + 32, c10), _mm512_storeu_ps(y + 48, c11);
    if (panels > 2) _mm512_storeu_ps(y + 64, c20), _mm512_storeu_ps(y + 80, c21);
    if (panels > 3) _mm512_storeu_ps(y + 96, c30), _mm512_storeu_ps(y + 112, c31);
}

static QK_INLINE __m256 multiply_add8(__m256 c, __m256 v, const uint16_t *p)
{
    return _mm256_fmadd_ps(v, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), c);
}

/* The same of float16: conversions of 256 bits, two of which are faster than one of 512. */
static QK_INLINE void gemmf16_panels(const int panels, size_t k, const float *a, const uint16_t *panel, float *y)
{
    const size_t size = k * QK_GEMMF16_NR;
    const __m256 zero = _mm256_setzero_ps();
    __m256 c00 = zero, c01 = zero, c02 = zero, c03 = zero, c10 = zero, c11 = zero, c12 = zero, c13 = zero;
    for (size_t i = 0; i < k; i++, panel += QK_GEMMF16_NR) {
        const __m256 v = _mm256_set1_ps(a[i]);
        c00 = multiply_add8(c00, v, panel), c01 = multiply_add8(c01, v, panel + 8);
        c02 = multiply_add8(c02, v, panel + 16), c03 = multiply_add8(c03, v, panel + 24);
        if (panels == 1) continue;
        c10 = multiply_add8(c10, v, panel + size), c11 = multiply_add8(c11, v, panel + size + 8);
        c12 = multiply_add8(c12, v, panel + size + 16), c13 = multiply_add8(c13, v, panel + size + 24);
    }
    _mm256_storeu_ps(y, c00), _mm256_storeu_ps(y + 8, c01), _mm256_storeu_ps(y + 16, c02),
        _mm256_storeu_ps(y + 24, c03);
    if (panels == 1) return;
    y += 32;
    _mm256_storeu_ps(y, c10), _mm256_storeu_ps(y + 8, c11), _mm256_storeu_ps(y + 16, c12),
        _mm256_storeu_ps(y + 24, c13);
}

static void gemmf16_row(int panels, size_t k, const float *a, const uint16_t *panel, qk_dtype type, float *y)
{
    const uint16_t *p = panel;
    for (; type == QK_F16 && panels > 1; panels -= 2, p += 2 * k * QK_GEMMF16_NR, y += 2 * QK_GEMMF16_NR)
        gemmf16_panels(2, k, a, p, y);
    if (type == QK_F16) {
        if (panels) gemmf16_panels(1, k, a, p, y);
        return;
    }
    ROWS_4(panels, bfloat_panels, k, a, p, y);
}

#include "kernels/generic/table.h"
static const qk_gemm8_kernels gemm8 = {
#include "kernels/families/gemm8.def"
};
static const qk_gemm16_kernels gemm16 = {
#include "kernels/families/gemm16.def"
};
const qk_gemmf16_kernels qk_gemmf16_avx512 = {
#include "kernels/families/gemmf16.def"
};
const qk_elementwise_kernels qk_elementwise_avx512 = {
#include "kernels/families/elementwise.def"
};
const qk_codebooks_kernels qk_codebooks_avx512 = {
#include "kernels/families/codebooks.def"
};
const qk_layers_kernels qk_layers_avx512 = {
#include "kernels/families/layers.def"
};
const qk_kmeans_kernels qk_kmeans_avx512 = {
#include "kernels/families/kmeans.def"
};
const qk_pq_kernels qk_pq_avx512 = {
#include "kernels/families/pq.def"
};
const qk_histogram_kernels qk_histogram_avx512 = {
#include "kernels/families/histogram.def"
};
const qk_conv_kernels qk_conv_avx512 = {
#include "kernels/families/conv.def"
};

#include "kernels/x86/maddubs.h"

#define PEAK_IN_TWO 1
#define PEAK_VECTOR __m512i
#define PEAK_PRODUCTS 32
static QK_INLINE __m512i peak_step(__m512i sums, __m512i a, __m512i b)
{
    return _mm512_add_epi32(sums, _mm512_madd_epi16(a, b));
}
#include "kernels/generic/peak.h"

const qk_kernels qk_kernels_avx512 = {
    .name = "avx512",
    .available = available,
    .peak = peak,
    .gemm8 = &gemm8,
    .gemm8_small = &gemm8_small,
    .gemm4 = &qk_gemm4_avx2,
    .blocks8 = &qk_blocks8_avx2,
    .folded = &qk_folded_avx2,
    .gemm8_folded = &qk_gemm8_small_avx2,
    .gemm16 = &gemm16,
    .gemmf16 = &qk_gemmf16_avx512,
    .elementwise = &qk_elementwise_avx512,
    .codebooks = &qk_codebooks_avx512,
    .layers = &qk_layers_avx512,
    .kmeans = &qk_kmeans_avx512,
    .pq = &qk_pq_avx512,
    .histogram = &qk_histogram_avx512,
    .conv = &qk_conv_avx512,
};

QK_TARGET_END
#endif
