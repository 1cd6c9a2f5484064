/* The reference: plain C that runs anywhere. Every other instruction set gives the same bits. */
#include "kernels/kernels.h"

#include "kernels/generic/elementwise.h"
#include "kernels/generic/stochastic.h"
#include "kernels/generic/fake_grad.h"
#include "kernels/generic/layers.h"
#include "kernels/generic/rotate.h"
#include "kernels/generic/integer_layers.h"
#include "kernels/generic/codebook.h"
#include "kernels/generic/rounding.h"
#include "kernels/generic/gguf.h"
#include "kernels/generic/gguf_search.h"
#include "kernels/generic/histogram.h"
#include "kernels/generic/gemm8.h"
#include "kernels/generic/gemm4.h"
#include "kernels/generic/folded.h"
#include "kernels/generic/low_bits.h"
#include "kernels/generic/gemm16.h"
#include "kernels/generic/conv.h"

#include "kernels/generic/kmeans.h"
#include "kernels/generic/pq.h"
#include "kernels/generic/kmeans1d.h"
#include "kernels/generic/least_squares.h"

static void gemm8_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
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

static void gemm8_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

/* Of 4 rows of a column. */
static int32_t sum_of_step(const int8_t *a, const uint8_t *b, int high, const int8_t *levels)
{
    int32_t sum = 0;
    for (int i = 0; i < QK_GEMM4_KR; i++) {
        const int code = high ? b[i] >> 4 : b[i] & 15;
        sum += a[i] * (levels ? levels[code] : code);
    }
    return sum;
}

/* Scale of column j of a record. */
static float scale_at(const uint8_t *scales, const qk_gemm4_panel *p, int j)
{
    float scale;
    if (p->byte_scales) return float_of(scales[j] << 20) * p->scale_unit;
    if (p->half_scales)
        f16_to_f32((const uint16_t *)scales + j, &scale, 1);
    else
        memcpy(&scale, scales + 4 * j, sizeof scale);
    return scale;
}

static void gemm4_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                       size_t ld_start, float *y)
{
    enum { NC = QK_GEMM4_NR, STEP = NC * QK_GEMM4_KR / 2 };
    for (int row = 0; row < rows; row++, a += lda, start += ld_start, y += NC)
        for (int j = 0; j < NC; j++) {
            const uint8_t *b = p->records;
            const int8_t *ar = a;
            y[j] = p->more ? y[j] : 0;
            for (size_t block = 0; block < p->blocks; block++) {
                const size_t steps = block + 1 < p->blocks ? p->steps : p->last_steps;
                const uint8_t *scales = b + steps * STEP, *zeros = scales + qk_scales_bytes(p);
                int32_t sum = p->levels ? 0 : start[block] * (p->own_zeros ? zeros[j] : 1);
                for (; b != scales; b += STEP, ar += QK_GEMM4_KR)
                    sum += sum_of_step(ar, b + 4 * (j % 16), j >= 16, p->levels);
                y[j] = __builtin_fmaf((float)sum, scale_at(scales, p, j), y[j]);
                b = zeros + (p->own_zeros ? NC : 0);
            }
        }
}

static void folded_tile(int rows, const qk_folded_panel *p, const uint8_t *a, size_t lda, const int32_t *sums,
                        size_t ld_sums, int32_t *c)
{
    (void)sums, (void)ld_sums; /* of tiles that multiply codes before they are scaled */
    for (int half = 0; half < QK_GEMM4_NR / NR; half++)
        for (int row = 0; row < rows; row++, c += NR)
            for (int j = 0; j < NR; j++) {
                const uint8_t *b = p->codes + 4 * j, *params = p->params + NR * half + j, *ar = a + (size_t)row * lda;
                for (size_t block = 0; block < p->blocks; block++, params += QK_GEMM4_NR) {
                    const int scale = qk_block_scale(*params), shift = qk_block_shift(*params);
                    for (size_t s = 0; s < steps_in(p, block); s++, b += QK_FOLDED_STEP)
                        for (int i = 0; i < QK_GEMM4_KR; i++) {
                            const int code = half ? ((b[i] >> 4) ^ 8) - 8 : (b[i] & 15) - 8;
                            c[j] += *ar++ * (scale * code + 3 * shift);
                        }
                }
            }
}

static void folded_sums(const uint8_t *a, size_t k, size_t block, int32_t *sums)
{
    (void)a, (void)k, (void)block, (void)sums;
}

static void blocks8_tile(int rows, const qk_gemm4_panel *p, const void *a, size_t lda, const int32_t *start,
                         size_t ld_start, float *y)
{
    enum { NC = QK_GEMM4_NR, STEP = NC * QK_GEMM4_KR };
    for (int row = 0; row < rows; row++, start += ld_start, y += NC)
        for (int j = 0; j < NC; j++) {
            const int8_t *b = (const int8_t *)p->records, *codes = (const int8_t *)a + (size_t)row * lda;
            y[j] = p->more ? y[j] : 0;
            for (size_t block = 0; block < p->blocks; block++) {
                const int8_t *scales = b + STEP * (block + 1 < p->blocks ? p->steps : p->last_steps);
                int64_t sum = 0;
                if (p->own_zeros)
                    sum =
                        scales[(p->half_scales ? 2 : 4) * NC + j] * ((start[block] >> 16) * 256 + (start[block] & 255));
                for (; b != scales; b += STEP, codes += QK_GEMM4_KR)
                    for (int i = 0; i < QK_GEMM4_KR; i++) sum += codes[i] * b[QK_GEMM4_KR * j + i];
                y[j] = __builtin_fmaf((float)(int32_t)sum, scale_at((const uint8_t *)scales, p, j), y[j]);
                b = scales + p->params_bytes;
            }
        }
}

static void column_levels_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                               size_t ld_start, float *y)
{
    enum { NC = QK_COLUMN_LEVELS_NR, STEP = NC * QK_COLUMN_LEVELS_KR / 2, HALF = QK_COLUMN_LEVELS_KR / 2 };
    const size_t group = p->blocks * STEP * (1 + p->last_steps);
    const float *scales = (const float *)(p->records + QK_GEMM4_NR / NC * group);
    (void)start, (void)ld_start; /* of tiles that add 128 to each level */
    for (int row = 0; row < rows; row++, a += lda, y += QK_GEMM4_NR)
        for (int j = 0; j < QK_GEMM4_NR; j++) {
            const int8_t *levels = (const int8_t *)p->records + (size_t)(j / NC) * group + j % NC * QK_LEVELS;
            const uint8_t *b = (const uint8_t *)levels + STEP;
            int32_t sum = 0;
            for (size_t s = 0; s < p->blocks * p->last_steps; s++, b += STEP)
                for (size_t i = 0; i < HALF; i++)
                    sum += a[s * QK_COLUMN_LEVELS_KR + i] * levels[b[i] & 15] +
                        a[s * QK_COLUMN_LEVELS_KR + HALF + i] * levels[b[i] >> 4];
            y[j] = p->blocks ? (float)sum * scales[j] : 0;
        }
}

static void gemmf16_tile(int rows, size_t k, const float *a, size_t lda, const uint16_t *panel, qk_dtype type, int more,
                         float *y)
{
    if (!more) memset(y, 0, (size_t)rows * QK_GEMMF16_NR * sizeof *y);
    for (size_t i = 0; i < k; i++) {
        float b[QK_GEMMF16_NR];
        if (type == QK_F32)
            memcpy(b, panel + 2 * i * QK_GEMMF16_NR, sizeof b);
        else
            (type == QK_F16 ? f16_to_f32 : bf16_to_f32)(panel + i * QK_GEMMF16_NR, b, QK_GEMMF16_NR);
        for (int row = 0; row < rows; row++)
            for (int j = 0; j < QK_GEMMF16_NR; j++) {
                const float weight = b[type == QK_BF16 ? j % 16 * 2 + j / 16 : j];
                y[row * QK_GEMMF16_NR + j] =
                    __builtin_fmaf(a[(size_t)row * lda + i], weight, y[row * QK_GEMMF16_NR + j]);
            }
    }
}

static void gemmf16_row(int panels, size_t k, const float *a, const uint16_t *panel, qk_dtype type, float *y)
{
    for (int i = 0; i < panels; i++)
        gemmf16_tile(1, k, a, 0, panel + (size_t)i * k * QK_GEMMF16_NR, type, 0, y + i * QK_GEMMF16_NR);
}

static void gemm16_tile(int rows, size_t steps, const int16_t *a, size_t lda, const int16_t *panel, int32_t *c)
{
    for (int row = 0; row < rows; row++, a += lda)
        for (int j = 0; j < NR; j++, c++) {
            *c = 0;
            for (size_t i = 0; i < 2 * steps; i++) *c += a[i] * panel[(i / 2 * NR + (size_t)j) * 2 + i % 2];
        }
}

/* ---- depthwise (numerics 22) ---- */

static void interleave_taps(const qk_seen_rows *rows, size_t columns, uint8_t flip, char *to, size_t ld)
{
    for (size_t i = 0; i < columns; i++, to += ld)
        for (size_t j = 0; j < 4 * rows->channels; j++)
            to[j] = (char)(rows->from[j % 4][0][i * rows->stride[j % 4][0] + j / 4] ^ flip);
}

static int32_t sum_of_taps(const char *a, const char *weights, int wide)
{
    int32_t sum = 0;
    for (int i = 0; i < 4; i++)
        if (!wide)
            sum += (uint8_t)a[i] * (signed char)weights[i];
        else if (i % 2 == 0)
            sum += (uint8_t)a[i] * (int16_t)((uint8_t)weights[i] | (uint8_t)weights[i + 1] << 8);
    return sum;
}

static void depthwise_tile(int rows, const qk_steps *steps, const char *a, const char *weights, const int32_t *init,
                           int32_t *c)
{
    for (int row = 0; row < rows; row++, a += steps->pixel)
        for (size_t j = 0; j < VECTOR; j++) {
            uint32_t sum = (uint32_t)init[j];
            for (size_t s = 0; s < steps->count; s++)
                sum += (uint32_t)sum_of_taps(a + steps->offset[s] + 4 * j, weights + (s * VECTOR + j) * 4, steps->wide);
            c[(size_t)row * NR + j] = (int32_t)sum;
        }
}

/* ---- pools (numerics 22) ---- */

static void max_windows(const qk_windows *of)
{
    for (size_t i = 0; i < of->windows * of->channels; i++) {
        const size_t at = i / of->channels * of->step + i % of->channels;
        uint8_t most = 0;
        for (size_t tap = 0; tap < of->count; tap++) {
            const uint8_t code = of->from[tap][at] ^ of->flip;
            most = most > code ? most : code;
        }
        of->to[i] = most ^ of->flip;
    }
}

static void average_windows(const qk_windows *of)
{
    const int32_t zero_point = of->requant->zero_point;
    const float lo = (float)(of->requant->qmin - zero_point), hi = (float)(of->requant->qmax - zero_point);
    for (size_t i = 0; i < of->windows * of->channels; i++) {
        const size_t at = i / of->channels * of->step + i % of->channels;
        int32_t sum = -of->zeros;
        for (size_t tap = 0; tap < of->count; tap++) sum += of->from[tap][at] ^ of->flip;
        of->to[i] = (uint8_t)scale_to_code((float)sum * of->multiplier, lo, hi, zero_point, 0);
    }
}

static int available(void) { return 1; }

#include "kernels/generic/table.h"
#define FAMILY(name) const qk_##name##_kernels qk_##name##_scalar =
#include "kernels/generic/families.def"

const qk_kernels qk_kernels_scalar = {
    .name = "scalar",
    .available = available,
    .gemm8 = &qk_gemm8_scalar,
    .gemm4 = &qk_gemm4_scalar,
    .blocks8 = &qk_blocks8_scalar,
    .folded = &qk_folded_scalar,
    .gemm8_folded = &qk_gemm8_scalar,
    .gemm16 = &qk_gemm16_scalar,
    .gemmf16 = &qk_gemmf16_scalar,
    .elementwise = &qk_elementwise_scalar,
    .codebooks = &qk_codebooks_scalar,
    .layers = &qk_layers_scalar,
    .kmeans = &qk_kmeans_scalar,
    .pq = &qk_pq_scalar,
    .histogram = &qk_histogram_scalar,
    .conv = &qk_conv_scalar,
};
