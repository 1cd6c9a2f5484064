/* What an instruction set provides: one struct of functions and tile sizes. */
#ifndef QK_KERNELS_H
#define QK_KERNELS_H

#include "kernels/kmeans1d.h"
#include "drivers/drivers.h"
#include "runtime/sizes.h"

/* One scale and zero point, with what quantization derives from them (numerics 3). */
typedef struct {
    float scale, reciprocal; /* reciprocal 0: divide */
    float x_lo, x_hi;        /* bounds of x before the product with the reciprocal */
    float v_lo, v_hi;        /* bounds of the quotient: qmin - zero_point, qmax - zero_point */
    int32_t zero_point, qmin, qmax;
    int half_away;
} qk_affine;

/* Parameters of consecutive elements that all differ, shared by rows that lie `stride` elements apart. */
typedef struct {
    const float *scale, *reciprocal; /* reciprocal NULL: divide */
    const int32_t *zero_point;
    int32_t qmin, qmax;
    int half_away;
    size_t rows, stride;
} qk_affine_columns;

/* A tile of int32 sums on its way out. Pointers are those of the tile's first row and column. */
typedef struct {
    int rows, cols;                            /* valid ones; column arrays hold nr entries all the same */
    const int32_t *row_zero, *colsum;          /* subtract row_zero[m] * colsum[n]; row_zero NULL: nothing */
    const int32_t *row_term, *col_zero;        /* subtract row_term[m] * col_zero[n]; NULL: nothing */
    const float *row_scale, *col_scale, *bias; /* row_scale NULL: 1 */
    const float *residual; /* added to the scaled sums; rows residual_stride bytes apart; NULL: nothing */
    size_t residual_stride;
    qk_activation activation;
    int bounded; /* whether the float result is clamped to lo .. hi */
    float lo, hi;
    const qk_requant *requant; /* its column pointers are not moved: use the three below */
    const float *multiplier;
    const int32_t *mantissa, *shift;
    qk_affine out; /* of codes, after an activation on real values */
    void *dst;
    size_t row_stride;
} qk_tile;

extern const float qk_no_bias[]; /* zeros for the columns of a tile */

/* Points a tile to its part of the residual. */
static inline void qk_tile_residual(qk_tile *t, const qk_epilogue *epilogue, size_t row, size_t col)
{
    t->residual = (const float *)((const char *)epilogue->residual + row * epilogue->residual_stride) + col;
    t->residual_stride = epilogue->residual_stride;
}

/* Tiles of floats on their way to `epilogue`, from column `col` of the result on: without rows, which qk_set_rows gives
 * them. */
static inline qk_tile qk_float_tile(const qk_epilogue *epilogue, size_t col, size_t cols)
{
    return (qk_tile){
        .cols = (int)cols,
        .bias = epilogue->float_bias ? epilogue->float_bias + col : qk_no_bias,
        .residual_stride = epilogue->residual_stride,
        .activation = epilogue->activation,
        .bounded = epilogue->bounded,
        .lo = epilogue->lo,
        .hi = epilogue->hi,
        .row_stride = epilogue->row_stride,
    };
}

/* Such a tile from row `row` of the result on. */
static inline void qk_set_rows(qk_tile *t, const qk_epilogue *epilogue, size_t row, size_t rows, size_t col,
                               const float *row_scale)
{
    t->rows = (int)rows, t->row_scale = row_scale;
    t->dst = (char *)epilogue->out + row * epilogue->row_stride + col * sizeof(float);
    if (epilogue->residual) qk_tile_residual(t, epilogue, row, col);
}

/* The columns of b that become a panel. */
typedef struct {
    const uint8_t *b;
    ptrdiff_t row_stride, col_stride; /* in bytes */
    size_t k;
    uint8_t flip;        /* code ^ flip is stored */
    const int32_t *zero; /* zero points of the stored codes; NULL: neither sums nor bound are wanted */
} qk_panel_source;

/* A panel of 4-bit weights, or of blocks of 8-bit ones: see qk_gemm4_weights. */
enum { QK_SHORT_BLOCK = 255 }; /* 128 * 255 < 2^15 */
enum { QK_GEMM4_NR = 32, QK_GEMM4_KR = 4, QK_COLUMN_LEVELS_NR = 16, QK_COLUMN_LEVELS_KR = 32, QK_LEVELS = 16 };
typedef struct {
    const uint8_t *records;
    size_t blocks, steps, last_steps; /* steps of a block, and of the last */
    int half_scales, own_zeros;
    const int8_t *levels; /* what codes stand for; NULL: for themselves */
    int long_sums;        /* of 8 bits: sums of columns are int32 */
    size_t params_bytes;  /* what follows the codes of a block */
} qk_gemm4_panel;

enum { QK_CODEBOOK_COLUMNS = 256 };

/* Points of k-means that are seen at a time, and bins by which they are sorted; what a thread needs for a chunk. */
enum { QK_UNPACK_ROWS = 1024 };
enum {
    QK_KMEANS_TILE = 32,
    QK_KMEANS_BINS = 16,
    QK_KMEANS_LOOK = 1 << 21 /* products between two looks for signals */
};
typedef struct {
    int (*stopped)(void);   /* whether the rest need not be computed */
    void *tile;             /* d * QK_KMEANS_TILE */
    void *reach;            /* k */
    int32_t *list, *sorted; /* one a point of the chunk */
    uint32_t *key;
    int32_t *ends;       /* QK_KMEANS_BINS * k + 1 */
    int32_t *all, *near; /* centroids, k + 16; `all` of them, filled up with k */
} qk_kmeans_scratch;

/* The nearest of k centroids by squared distances that do not underflow (numerics 14; of two as near the lower index).
 * `found` is the lowest of those whose distance the kernels took for the smallest. */
int32_t qk_nearest_f32(const float *x, const float *centroids, size_t k, size_t d, int32_t found);
int32_t qk_nearest_f64(const double *x, const double *centroids, size_t k, size_t d, int32_t found);

/* A panel of weights that are floats (numerics 16): rows of k, each of 32 columns in order; but in those of bfloat16
 * columns j and j + 16 are neighbours, so that a shift and a mask widen a register of both. */
enum { QK_GEMMF16_NR = 32, QK_GEMMF16_ROW_PANELS = 4 };

/* The value of code i. `from` is a constant where this is inlined into a loop. */
static inline int32_t qk_code_at(const void *q, qk_dtype from, size_t i)
{
    switch (from) {
    case QK_I8: return ((const int8_t *)q)[i];
    case QK_U8: return ((const uint8_t *)q)[i];
    case QK_I16: return ((const int16_t *)q)[i];
    case QK_U16: return ((const uint16_t *)q)[i];
    case QK_I4: return ((((const uint8_t *)q)[i] & 15) ^ 8) - 8;
    case QK_U4: return ((const uint8_t *)q)[i] & 15;
    case QK_I2: return ((((const uint8_t *)q)[i] & 3) ^ 2) - 2;
    case QK_U2: return ((const uint8_t *)q)[i] & 3;
    default: return ((const int32_t *)q)[i];
    }
}

enum { QK_ROUNDED_LANES = 8 }; /* of rounded_sums */

struct qk_kernels {
    const char *name;

    /* Products. a' is uint8, widened to a_bytes; b' is int8 in panels of nr columns x kr codes of k. */
    int mr, nr, kr, a_bytes;
    const qk_kernels *small; /* the same with products that are faster on small weights (numerics 6), or NULL */
    /* c (rows x nr, ldc) = init (nr) + a' (rows x steps * kr, lda bytes) * panel; rows <= mr. Small panels have steps.
     */
    void (*gemm8_tile)(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                       int32_t *c, size_t ldc);
    /* The same of a panel widened to int16, for tables whose tile is faster on these; else NULL. */
    void (*gemm8_wide_tile)(int rows, size_t steps, const void *a, size_t lda, const int16_t *panel,
                            const int32_t *init, int32_t *c, size_t ldc);
    void (*gemm8_widen_panel)(const int8_t *panel, size_t steps, int16_t *to);
    /* A panel of b' from `cols` columns, the sums of its columns, and max over columns of sum |b' - zero|: see
     * qk_panel_source. */
    int64_t (*gemm8_pack_panel)(const qk_panel_source *s, size_t cols, int8_t *panel, int32_t *colsum);
    size_t (*gemm8_panel_bytes)(size_t steps); /* at least nr * kr for each */
    /* The codes of a panel, ^ flip, as rows that lie row_stride apart. */
    /* Rows of the panel, QK_UNPACK_ROWS from `first` on, to their places in the matrix at `to`. */
    void (*gemm8_unpack_panel)(const int8_t *panel, size_t k, size_t first, size_t cols, uint8_t flip, uint8_t *to,
                               size_t row_stride);
    /* a codes -> a' (a ^ flip), and zeros up to n_pad; and the sum of a ^ flip. */
    void (*gemm8_pack_row)(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to);
    int32_t (*sum_codes)(const uint8_t *a, size_t n, uint8_t flip);
    void (*tile_to_int32)(int32_t *acc, const qk_tile *t);
    void (*tile_to_float)(int32_t *acc, const qk_tile *t);
    void (*tile_to_codes)(int32_t *acc, const qk_tile *t);
    void (*activate)(float *y, size_t n, qk_activation activation); /* n is a multiple of 32 */

    /* Products with 4-bit weights (numerics 12). y (rows x 32) = sum over blocks of scale * (a * panel, of the zero
     * points freed by `start`, as gemm4.h has it); rows of a are lda bytes apart, those of start ld_start
     * entries. */
    int gemm4_mr;
    void (*gemm4_tile)(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                       size_t ld_start, float *y);
    /* The same where each column has levels of its own. */
    void (*column_levels_tile)(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                               size_t ld_start, float *y);
    void (*gemm4_pack_step)(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols,
                            uint8_t flip, uint8_t *to);
    /* The same of blocks of 8-bit weights; rows <= blocks8_mr, lda is in bytes. The tile reads codes ^ blocks8_flip,
     * or, if there is blocks8_prepare_row, what this makes of n codes, a multiple of 4, in blocks of `block`: 2 bytes
     * a code and 8 a block. start: the negative sum of a's
     * codes in a block, 256 h + l, as h << 16 | l with 0 <= l < 256; of own_zeros only. */
    int blocks8_mr, blocks8_flip;
    void (*blocks8_tile)(int rows, const qk_gemm4_panel *p, const void *a, size_t lda, const int32_t *start,
                         size_t ld_start, float *y);
    void (*blocks8_prepare_row)(const int8_t *a, size_t n, size_t block, void *to);
    void (*blocks8_pack_step)(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols,
                              uint8_t flip, uint8_t *to, int32_t *sum);
    void (*gemm4_starts)(const int8_t *a, size_t k, size_t block, int32_t factor, int32_t *start);
    void (*finish_floats)(float *y, const qk_tile *t);

    /* Products with float16 and bfloat16 weights (numerics 16). y (rows x 32) = a (rows x k, lda floats) * panel; rows
     * <= gemmf16_mr. gemmf16_row: one row and adjacent panels, at most QK_GEMMF16_ROW_PANELS. */
    int gemmf16_mr;
    void (*gemmf16_tile)(int rows, size_t k, const float *a, size_t lda, const uint16_t *panel, qk_dtype type,
                         float *y);
    void (*gemmf16_row)(int panels, size_t k, const float *a, const uint16_t *panel, qk_dtype type, float *y);

    /* Products of int16 (numerics 17). c (rows x nr) = a (rows x 2 steps, lda codes) * panel, steps of 2 codes of k;
     * rows <= mr. No sum leaves int32. */
    void (*gemm16_tile)(int rows, size_t steps, const int16_t *a, size_t lda, const int16_t *panel, int32_t *c);
    /* sum (rows x nr, ld) = c (rows x nr), or where there is `more`, sum += c * 2^shift; shift is 0 or 8. */
    void (*gemm16_add)(int rows, const int32_t *c, int shift, int more, int64_t *sum, size_t ld);

    /* Elementwise. Codes are stored by their low 8 or 16 bits. */
    void (*quantize_f32_8)(const float *x, uint8_t *q, size_t n, const qk_affine *p);
    void (*quantize_f32_16)(const float *x, uint16_t *q, size_t n, const qk_affine *p);
    void (*quantize_columns_f32_8)(const float *x, uint8_t *q, size_t n, const qk_affine_columns *p);
    void (*quantize_columns_f32_16)(const float *x, uint16_t *q, size_t n, const qk_affine_columns *p);
    void (*dequantize_f32)(const void *q, qk_dtype from, float *y, size_t n, const qk_affine *p);
    void (*dequantize_columns_f32)(const void *q, qk_dtype from, float *y, size_t n, const qk_affine_columns *p);
    void (*fake_quantize_f32)(const float *x, float *y, size_t n, const qk_affine *p);
    void (*fake_quantize_columns_f32)(const float *x, float *y, size_t n, const qk_affine_columns *p);
    void (*requantize_i32)(const int32_t *acc, const int32_t *bias, void *q, int bytes, size_t n, const qk_requant *r);
    /* Bounds of x and 0, lo being -0.0 at most; NaN or infinite where any value is. */
    void (*minmax_f32)(const float *x, size_t n, float *lo, float *hi);
    void (*f16_to_f32)(const uint16_t *x, float *y, size_t n);
    void (*f32_to_f16)(const float *x, uint16_t *y, size_t n);
    void (*bf16_to_f32)(const uint16_t *x, float *y, size_t n);
    void (*f32_to_bf16)(const float *x, uint16_t *y, size_t n);

    /* Codebooks (numerics 15): blocks that are neighbours, or of `rows` rows, a scale for each of at most
     * QK_CODEBOOK_COLUMNS columns. Without scale values are coded as they are. Encoding returns the bits of the largest
     * magnitude, as absmax_f32. */
    int32_t (*encode_f32)(const float *x, uint8_t *q, size_t n, size_t block, float *scale, const qk_levels *t);
    int32_t (*encode_columns_f32)(const float *x, uint8_t *q, size_t stride, size_t rows, size_t cols, float *scale,
                                  const qk_levels *t);
    uint8_t (*largest_code)(const uint8_t *q, size_t n);
    void (*decode_f32)(const uint8_t *q, float *y, size_t n, size_t block, const float *scale, const qk_levels *t);
    void (*decode_channels_f32)(const uint8_t *q, float *y, size_t n,
                                const qk_levels *t); /* of n channels, one code each */
    void (*decode_columns_f32)(const uint8_t *q, float *y, size_t stride, size_t rows, size_t cols, const float *scale,
                               const qk_levels *t);

    /* Blocks of GGUF. Writing returns the bits of the largest magnitude. */
    int32_t (*to_q8_0)(const float *x, uint8_t *to, size_t blocks);
    int32_t (*to_q4_0)(const float *x, uint8_t *to, size_t blocks);
    void (*from_q8_0)(const uint8_t *from, float *y, size_t blocks);
    void (*from_q4_0)(const uint8_t *from, float *y, size_t blocks);

    /* Layers (numerics 10, 11). y may be x or residual; residual may be NULL. */
    int (*layer_norm_f32)(const float *x, const float *residual, size_t n, const float *weight, const float *bias,
                          float eps, float *y);
    int32_t (*absmax_f32)(const float *x, size_t stride, size_t rows, size_t cols);
    void (*symmetric_codes_f32)(const float *x, size_t stride, size_t rows, size_t cols, float inverse, uint8_t flip,
                                uint8_t *q, size_t ldq);
    int32_t (*attention_weights)(const int32_t *score, size_t n, float factor, uint8_t *w);

    /* k-means (numerics 14): labels, bounds and sums of a chunk; its inertia; distances of some centroids from all;
     * what seeds would leave of the sum of squares. */
    void (*kmeans_chunk_f32)(const qk_kmeans *p, size_t chunk, const qk_kmeans_scratch *s, qk_kmeans_counts *counts);
    void (*kmeans_chunk_f64)(const qk_kmeans *p, size_t chunk, const qk_kmeans_scratch *s, qk_kmeans_counts *counts);
    double (*kmeans_errors_f32)(const qk_kmeans *p, size_t chunk, double *errors);
    double (*kmeans_errors_f64)(const qk_kmeans *p, size_t chunk, double *errors);
    void (*kmeans_distances_f32)(const qk_kmeans *p, size_t first, size_t last, float *columns);
    void (*kmeans_distances_f64)(const qk_kmeans *p, size_t first, size_t last, double *columns);
    void (*kmeans_potential_f32)(const qk_kmeans *p, size_t chunk, const float *seeds, size_t count, int update,
                                 float *nearest, float *tile, double *lanes, double *potential);
    void (*kmeans_potential_f64)(const qk_kmeans *p, size_t chunk, const double *seeds, size_t count, int update,
                                 double *nearest, double *tile, double *lanes, double *potential);

    qk_line_search *line_search; /* Clustering on a line (numerics 13), of doubles. */

    /* Scales of least squares (numerics 18): sum w r^2, sum w c r and sum w c^2 of n magnitudes y, a multiple of
     * QK_ROUNDED_LANES, with the codes c = min(y / scale, limit), rounded, and r = y - scale * c. */
    void (*rounded_sums)(const double *y, const double *w, const double *limit, size_t n, double scale, double *sums);

    /* Codebooks of vectors (numerics 19): codes of points; squared distances of a query, and their sums for vectors of
     * codes; the same of pq_lanes queries, one a lane. */
    void (*pq_encode)(const qk_pq_book *b, const float *x, const float *given, size_t points, const int32_t *all,
                      float *tile, uint8_t *codes);
    void (*pq_distance_table)(const qk_pq_book *b, const float *query, float *table);
    void (*pq_table_sums)(const float *table, size_t m, size_t k, const uint8_t *codes, size_t n, float *sum);
    int pq_lanes;
    void (*pq_distance_lanes)(const qk_pq_book *b, const float *queries, size_t count, float *turned, float *table);
    void (*pq_lane_sums)(const float *table, size_t m, size_t k, const uint8_t *codes, size_t n, float *sum,
                         int32_t *least);
};

extern const qk_kernels qk_kernels_scalar;
extern const qk_kernels qk_kernels_avx2;
extern const qk_kernels qk_kernels_avx512vnni;

qk_affine qk_affine_of(float scale, int32_t zero_point, int32_t qmin, int32_t qmax, qk_rounding rounding);
/* qk_choose where the mode is the default one already. */
void qk_choose_inside(float lo, float hi, int32_t qmin, int32_t qmax, int symmetric, float *scale, int32_t *zero_point);

#endif
