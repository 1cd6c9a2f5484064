/* The reference: plain C that runs anywhere. Every other instruction set gives the same bits. */
#include "kernels.h"

#define MR 4
#define NR 16
#define KR 4
#define HAVE_FMA 0
#include "elementwise.inc.h"
#include "layers.inc.h"
#include "products.inc.h"

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

const qk_kernels qk_kernels_scalar = {
    .name = "scalar",
    .mr = MR, .nr = NR, .kr = KR, .a_bytes = 1,
    .gemm_tile = gemm_tile,
    .gemm_pack_row = gemm_pack_row,
    .gemm_pack_panel = gemm_pack_panel,
    .gemm_unpack_panel = gemm_unpack_panel,
    .gemm_panel_bytes = gemm_panel_bytes,
#include "kernels_table.inc.h"
};
