/* The reference: plain C that runs anywhere. Every other instruction set gives the same bits. */
#include "kernels.h"

#define MR 4
#define NR 16
#define KR 4
#define HAVE_FMA 0
#include "elementwise.inc.h"
#include "layers.inc.h"
#include "codebook.inc.h"
#include "gguf.inc.h"
#include "products.inc.h"
#include "blocked.inc.h"
#include "words.inc.h"

/* ---- k-means: what kmeans.inc.h needs, four points or two at a time ---- */

#define VECTOR 16
typedef float lanes4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t indices4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef double lanes2 __attribute__((vector_size(16), aligned(8), may_alias));
typedef int64_t indices2 __attribute__((vector_size(16), aligned(8), may_alias));

static inline lanes4 multiply_add_f32(lanes4 x, lanes4 sum)
{
    for (int i = 0; i < 4; i++) sum[i] = __builtin_fmaf(x[i], x[i], sum[i]);
    return sum;
}

static inline lanes2 multiply_add_f64(lanes2 x, lanes2 sum)
{
    for (int i = 0; i < 2; i++) sum[i] = __builtin_fma(x[i], x[i], sum[i]);
    return sum;
}

static inline lanes2 smaller_f64(lanes2 a, lanes2 b)
{
    return (lanes2){a[0] < b[0] ? a[0] : b[0], a[1] < b[1] ? a[1] : b[1]};
}
static inline lanes4 minus_f32(lanes4 x, const float *c) { return x - *c; }
static inline lanes2 minus_f64(lanes2 x, const double *c) { return x - *c; }
static inline void fence_f32(lanes4 *a, lanes4 *b, lanes4 *c, lanes4 *d) { (void)a, (void)b, (void)c, (void)d; }
static inline void fence_f64(lanes2 *a, lanes2 *b, lanes2 *c, lanes2 *d) { (void)a, (void)b, (void)c, (void)d; }

static inline void keep_two_f32(lanes4 distance, int32_t index, lanes4 *first, lanes4 *second, indices4 *nearest)
{
    for (int i = 0; i < 4; i++)
        if (distance[i] < (*first)[i])
            (*second)[i] = (*first)[i], (*first)[i] = distance[i], (*nearest)[i] = index;
        else if (distance[i] < (*second)[i])
            (*second)[i] = distance[i];
}

static inline void keep_two_f64(lanes2 distance, int32_t index, lanes2 *first, lanes2 *second, indices2 *nearest)
{
    for (int i = 0; i < 2; i++)
        if (distance[i] < (*first)[i])
            (*second)[i] = (*first)[i], (*first)[i] = distance[i], (*nearest)[i] = index;
        else if (distance[i] < (*second)[i])
            (*second)[i] = distance[i];
}

/* Lists centroids whose distance is within the limit, from *j on, for whole registers: none here. Returns how many. */
static inline size_t within_registers_f32(const float *distance, size_t k, float limit, int32_t *list, size_t *j)
{
    (void)distance, (void)k, (void)limit, (void)list, (void)j;
    return 0;
}

/* Lists centroids whose distance is within the limit, from *j on, for whole registers: none here. Returns how many. */
static inline size_t within_registers_f64(const double *distance, size_t k, double limit, int32_t *list, size_t *j)
{
    (void)distance, (void)k, (void)limit, (void)list, (void)j;
    return 0;
}

#include "kmeans_types.inc.h"
#include "vectors.inc.h"
#include "least_squares.inc.h"
#include "line_types.inc.h"

static void gemm_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                      int32_t *c, size_t ldc)
{
    for (int row = 0; row < rows; row++) {
        const uint8_t *ar = (const uint8_t *)a + (size_t)row * lda;
        for (int j = 0; j < NR; j++) {
            uint32_t sum = (uint32_t)init[j];
            for (size_t s = 0; s < steps; s++)
                for (int i = 0; i < KR; i++) sum += (uint32_t)(ar[s * KR + i] * panel[(s * NR + j) * KR + i]);
            c[(size_t)row * ldc + j] = (int32_t)sum;
        }
    }
}

static void gemm_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

/* Of 4 rows of a column. */
static int32_t sum_of_step(const int8_t *a, const uint8_t *b, int high, const int8_t *levels)
{
    int32_t sum = 0;
    for (int i = 0; i < QK_BLOCKED_KR; i++) {
        const int code = high ? b[i] >> 4 : b[i] & 15;
        sum += a[i] * (levels ? levels[code] : code);
    }
    return sum;
}

/* Scale of column j of a record. */
static float scale_at(const uint8_t *scales, int half, int j)
{
    float scale;
    if (half)
        f16_to_f32((const uint16_t *)scales + j, &scale, 1);
    else
        memcpy(&scale, scales + 4 * j, sizeof scale);
    return scale;
}

static void blocked_tile(int rows, const qk_blocked_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                         size_t ld_start, float *y)
{
    enum { NC = QK_BLOCKED_NR, STEP = NC * QK_BLOCKED_KR / 2 };
    for (int row = 0; row < rows; row++, a += lda, start += ld_start, y += NC)
        for (int j = 0; j < NC; j++) {
            const uint8_t *b = p->records;
            const int8_t *ar = a;
            y[j] = 0;
            for (size_t block = 0; block < p->blocks; block++) {
                const size_t steps = block + 1 < p->blocks ? p->steps : p->last_steps;
                const uint8_t *scales = b + steps * STEP, *zeros = scales + (p->half_scales ? 2 : 4) * NC;
                int32_t sum = p->levels ? 0 : start[block] * (p->own_zeros ? zeros[j] : 1);
                for (; b != scales; b += STEP, ar += QK_BLOCKED_KR)
                    sum += sum_of_step(ar, b + 4 * (j % 16), j >= 16, p->levels);
                y[j] = __builtin_fmaf((float)sum, scale_at(scales, p->half_scales, j), y[j]);
                b = zeros + (p->own_zeros ? NC : 0);
            }
        }
}

static void bytes_tile(int rows, const qk_blocked_panel *p, const void *a, size_t lda, const int32_t *start,
                       size_t ld_start, float *y)
{
    enum { NC = QK_BLOCKED_NR, STEP = NC * QK_BLOCKED_KR };
    for (int row = 0; row < rows; row++, start += ld_start, y += NC)
        for (int j = 0; j < NC; j++) {
            const int8_t *b = (const int8_t *)p->records, *codes = (const int8_t *)a + (size_t)row * lda;
            y[j] = 0;
            for (size_t block = 0; block < p->blocks; block++) {
                const int8_t *scales = b + STEP * (block + 1 < p->blocks ? p->steps : p->last_steps);
                int64_t sum = 0;
                if (p->own_zeros)
                    sum =
                        scales[(p->half_scales ? 2 : 4) * NC + j] * ((start[block] >> 16) * 256 + (start[block] & 255));
                for (; b != scales; b += STEP, codes += QK_BLOCKED_KR)
                    for (int i = 0; i < QK_BLOCKED_KR; i++) sum += codes[i] * b[QK_BLOCKED_KR * j + i];
                y[j] = __builtin_fmaf((float)(int32_t)sum, scale_at((const uint8_t *)scales, p->half_scales, j), y[j]);
                b = scales + p->params_bytes;
            }
        }
}

static void own_levels_tile(int rows, const qk_blocked_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                            size_t ld_start, float *y)
{
    enum { NC = QK_OWN_NR, STEP = NC * QK_OWN_KR / 2, HALF = QK_OWN_KR / 2 };
    const size_t group = p->blocks * STEP * (1 + p->last_steps);
    const float *scales = (const float *)(p->records + QK_BLOCKED_NR / NC * group);
    (void)start, (void)ld_start; /* of tiles that add 128 to each level */
    for (int row = 0; row < rows; row++, a += lda, y += QK_BLOCKED_NR)
        for (int j = 0; j < QK_BLOCKED_NR; j++) {
            const int8_t *levels = (const int8_t *)p->records + (size_t)(j / NC) * group + j % NC * QK_LEVELS;
            const uint8_t *b = (const uint8_t *)levels + STEP;
            int32_t sum = 0;
            for (size_t s = 0; s < p->blocks * p->last_steps; s++, b += STEP)
                for (size_t i = 0; i < HALF; i++)
                    sum += a[s * QK_OWN_KR + i] * levels[b[i] & 15] + a[s * QK_OWN_KR + HALF + i] * levels[b[i] >> 4];
            y[j] = p->blocks ? (float)sum * scales[j] : 0;
        }
}

static void half_tile(int rows, size_t k, const float *a, size_t lda, const uint16_t *panel, qk_dtype type, float *y)
{
    memset(y, 0, (size_t)rows * QK_HALF_NR * sizeof *y);
    for (size_t i = 0; i < k; i++) {
        float b[QK_HALF_NR];
        (type == QK_F16 ? f16_to_f32 : bf16_to_f32)(panel + i * QK_HALF_NR, b, QK_HALF_NR);
        for (int row = 0; row < rows; row++)
            for (int j = 0; j < QK_HALF_NR; j++) {
                const float weight = b[type == QK_BF16 ? j % 16 * 2 + j / 16 : j];
                y[row * QK_HALF_NR + j] = __builtin_fmaf(a[(size_t)row * lda + i], weight, y[row * QK_HALF_NR + j]);
            }
    }
}

static void half_row(int panels, size_t k, const float *a, const uint16_t *panel, qk_dtype type, float *y)
{
    for (int i = 0; i < panels; i++)
        half_tile(1, k, a, 0, panel + (size_t)i * k * QK_HALF_NR, type, y + i * QK_HALF_NR);
}

static void words_tile(int rows, size_t steps, const int16_t *a, size_t lda, const int16_t *panel, int32_t *c)
{
    for (int row = 0; row < rows; row++, a += lda)
        for (int j = 0; j < NR; j++, c++) {
            *c = 0;
            for (size_t i = 0; i < 2 * steps; i++) *c += a[i] * panel[(i / 2 * NR + (size_t)j) * 2 + i % 2];
        }
}

const qk_kernels qk_kernels_scalar = {
    .name = "scalar",
    .mr = MR,
    .nr = NR,
    .kr = KR,
    .a_bytes = 1,
    .blocked_mr = 4,
    .bytes_mr = 4,
    .half_mr = 4,
    .gemm_tile = gemm_tile,
    .gemm_pack_row = gemm_pack_row,
    .gemm_pack_panel = gemm_pack_panel,
    .gemm_unpack_panel = gemm_unpack_panel,
    .gemm_panel_bytes = gemm_panel_bytes,
#include "kernels_table.inc.h"
};
