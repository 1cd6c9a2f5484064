/* The reference: plain C that runs anywhere. Every other instruction set gives the same bits. */
#include "kernels.h"

#define MR 4
#define NR 16
#define KR 4
#define HAVE_FMA 0
#include "elementwise.inc.h"
#include "layers.inc.h"
#include "products.inc.h"
#include "blocked.inc.h"
#include "words.inc.h"

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

static void blocked_tile(int rows, const qk_blocked_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                         size_t ld_start, float *y)
{
    for (int row = 0; row < rows; row++, a += lda, start += ld_start, y += QK_BLOCKED_NR)
        for (int j = 0; j < QK_BLOCKED_NR; j++) {
            const uint8_t *b = p->records + 4 * j;
            const int8_t *ar = a;
            y[j] = 0;
            for (size_t block = 0; block < p->blocks; block++) {
                const size_t steps = block + 1 < p->blocks ? p->steps : p->last_steps;
                const uint8_t *scales = b - 4 * j + steps * 4 * QK_BLOCKED_NR;
                const uint8_t *zeros = scales + (p->half_scales ? 2 : 4) * QK_BLOCKED_NR;
                int32_t sum = start[block] * (p->own_zeros ? zeros[j] : 1);
                for (size_t s = 0; s < steps; s++, b += 4 * QK_BLOCKED_NR, ar += QK_BLOCKED_KR)
                    for (int i = 0; i < 4; i++) sum += ar[i] * (b[i] & 15) + ar[i + 4] * (b[i] >> 4);
                float scale;
                if (p->half_scales)
                    f16_to_f32((const uint16_t *)scales + j, &scale, 1);
                else
                    memcpy(&scale, scales + 4 * j, sizeof scale);
                y[j] = __builtin_fmaf((float)sum, scale, y[j]);
                b = zeros + (p->own_zeros ? QK_BLOCKED_NR : 0) + 4 * j;
            }
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
    .mr = MR, .nr = NR, .kr = KR, .a_bytes = 1,
    .blocked_mr = 4, .half_mr = 4,
    .gemm_tile = gemm_tile,
    .gemm_pack_row = gemm_pack_row,
    .gemm_pack_panel = gemm_pack_panel,
    .gemm_unpack_panel = gemm_unpack_panel,
    .gemm_panel_bytes = gemm_panel_bytes,
#include "kernels_table.inc.h"
};
