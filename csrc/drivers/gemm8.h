/* What becomes of the sums of a product of bytes: for gemm8.c, and for conv.c, which makes its own. */
#ifndef QK_GEMM8_H
#define QK_GEMM8_H

#include "drivers/drivers.h"
#include "drivers/scales.h"
#include "drivers/walk.h"

/* What a task knows of its block of rows. */
typedef struct qk_row_block {
    const char *a;
    int32_t zero[MAX_ROWS], term[MAX_ROWS];
    float scale[MAX_ROWS];
    double wide_scale[MAX_ROWS]; /* qk_row_scale */
    int any_wide;
    _Alignas(64) char rows[]; /* of a', unless they stay in place */
} row_block;

enum {
    UNFOLDED_BYTES = 512 * 1024, /* rows of a block, for each of which a panel of folded weights is unfolded */
    SMALL_COLUMNS = 2048         /* whose arrays stay on the stack */
};

typedef struct {
    walk walk;
    const qk_rows *source;
    const qk_gemm8_weights *b;
    const qk_epilogue *epilogue;
    qk_requant requant;         /* of epilogue, ReLU being a bound of the codes */
    int plain;                  /* of its tiles */
    const int32_t *init;        /* starting sums, n_pad of them */
    const int32_t *b_zero;      /* zero points of the stored codes, or NULL */
    int32_t a_shift;            /* a' = a + a_shift */
    qk_row_quantizer quantizer; /* of floats */
    int in_place;
    qk_column column;  /* of b', if that is its only one and serves many rows */
    size_t lda;        /* bytes of a row of a' */
    size_t spare_at;   /* where a row of codes lies in the memory of a task */
    size_t wide_at;    /* and a panel, if the tile wants it widened; else 0 */
    qk_window window;  /* of rows that stay lines of an image, with its padding around; no lines: they do not */
    size_t line_bytes; /* of such a line */
    /* Of folded weights (folded.c): where a panel of int8 is made in the memory of a task, or 0; else where the sums of
     * rows' codes are, so many of a row. */
    size_t unfold_at, sums_at, ld_sums;
} product;

int qk_take_rows(const void *product, void *memory, size_t first, size_t rows);

/* How sums become codes: ReLU is a bound of these. */
qk_requant qk_requant_of(const qk_epilogue *epilogue);
/* Whether tiles of n columns, no sum of which has a larger magnitude before its int_bias, are plain (kernels.h). */
int qk_is_plain(const qk_epilogue *epilogue, size_t n, int64_t largest);
/* What all tiles have in common, and what those of the panel from column `col` on have. Of the product they read
 * source, b, epilogue, requant, plain and b_zero. */
qk_tile qk_tile_of_product(const product *g);
void qk_move_to_panel(const product *g, size_t col, qk_tile *t);
/* Stores a tile to row `row` of the result. The block, of which it is row `row_in_block`, may be NULL if the product
 * has no b_zero and its rows share a zero point. */
void qk_store_tile(const product *g, const row_block *block, size_t row, size_t row_in_block, size_t rows, size_t col,
                   int32_t *acc, qk_tile *t);

/* Of folded weights: whether a product makes panels of int8; how its rows are divided; its layout, the rest of which is
 * known; such a panel. */
int qk_unfolds(const product *g);
void qk_share_folded(product *g, size_t row_bytes);
void qk_lay_out_folded(product *g);
const int8_t *qk_unfold(const product *g, void *memory, size_t panel);

#endif
