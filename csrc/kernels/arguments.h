/* What drivers hand on to kernels as they were given it. */
#ifndef QK_ARGUMENTS_H
#define QK_ARGUMENTS_H

#include "include/qkernels.h"

typedef struct qk_kernels qk_kernels;             /* one instruction set; see kernels.h */
typedef struct qk_gemm8_kernels qk_gemm8_kernels; /* its products of bytes */

/* ---- products ---- */

/* What becomes of a sum. Column arrays have n_pad entries. */
typedef struct {
    enum { QK_TO_INT32, QK_TO_FLOAT, QK_TO_CODES } type;
    void *out;
    size_t row_stride;             /* in bytes */
    const int32_t *b_zero;         /* zero points of b as given, or NULL for 0 */
    const int32_t *int_bias;       /* added to the sum, or NULL */
    const float *col_scale;        /* float: scale of b; codes: scale of a times scale of b */
    float least_scale, most_scale; /* floats: of the n columns' scales */
    const float *float_bias;       /* added after scaling; NULL: nothing */
    const float *residual;         /* floats: added before the activation, rows as those of out; or NULL */
    size_t residual_stride;        /* in bytes */
    qk_activation activation;
    int bounded; /* floats: whether the result is clamped to lo .. hi */
    float lo, hi;
    qk_requant requant; /* codes; multiplier, mantissa and shift per column */
    float out_scale;    /* codes, with an activation that needs real values */
    /* Codes of columns whose factors leave float32 (numerics 21): what multiplies the sum and what is added to it, in
     * double; scale 0 where float32 serves. NULL: it serves everywhere. */
    const double *wide_scale, *wide_bias;
    /* What products of codes make of all that, if it was made before (qk_prepare), else NULL: what sums start from, and
     * whether tiles are plain (kernels.h). */
    const int32_t *starts;
    int plain;
} qk_epilogue;

/* ---- convolution ---- */

/* Images (count, height, width, channels), C-contiguous, and the windows that a kernel sees of them (numerics 22). */
typedef struct {
    const uint8_t *codes;
    size_t count, height, width, channels;
    size_t kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x;
    size_t top, left; /* padding */
    size_t out_height, out_width;
    uint8_t pad; /* the code that stands outside */
} qk_image;

/* The rows of the implicit matrix: what a window holds of `depth` channels from `channel` on. */
typedef struct {
    const qk_image *image;
    size_t channel, depth;
} qk_patches;

/* The taps of a depthwise kernel, a step each: where its codes lie from those of the first pixel on, bytes; how far the
 * pixels of a row are apart; and whether weights are pairs of int16 rather than four of int8. */
typedef struct {
    size_t count, pixel;
    const size_t *offset;
    int wide;
} qk_steps;

/* Four rows of pixels, `channels` of which are seen: where each begins, and its pixels are apart. A register has one of
 * each, or has parts of 16 bytes or more, each with rows of its own. */
enum { QK_MOST_PARTS = 4 };
typedef struct {
    int parts;
    size_t channels;
    const uint8_t *from[4][QK_MOST_PARTS];
    size_t stride[4][QK_MOST_PARTS];
} qk_seen_rows;

/* Columns of these that are in the image, between some that are padding. */
typedef struct {
    size_t before, inside;
    uint8_t flip, pad;
} qk_columns;

/* What becomes of the sums of such registers where tiles are plain (kernels.h). Channels are in the order of their
 * neighbours; `to` is NULL for a part that is not wanted. */
typedef struct {
    const int32_t *init;
    const float *multiplier;
    const qk_requant *requant;
    int parts;
    size_t channels, row_stride;
    uint8_t *to[QK_MOST_PARTS];
} qk_coded_line;

/* Windows of a pool that are neighbours, each `step` bytes from the one before, and the same pixels of which are in the
 * image: where those of the first begin. Averages: what is taken from a sum of codes ^ flip, and multiplies it. */
typedef struct {
    const uint8_t *const *from;
    size_t count, channels, windows, step;
    uint8_t flip;
    uint8_t *to;
    int32_t zeros;
    float multiplier;
    const qk_requant *requant;
} qk_windows;

/* ---- codebooks ---- */

/* At most 2^depth levels, 4 <= depth <= 8. The rank of a value is the number of thresholds below it. Arrays have
 * 2^depth entries: levels that codes stand for, thresholds as a binary tree (from 1 on; node i has the children 2 i and
 * 2 i + 1; infinite ones pad it), and the code of each rank. */
typedef struct {
    int depth;
    int in_order; /* the code of a rank is the rank */
    const float *level, *node;
    const uint8_t *order;
    /* 2 (last + 1) buckets of values, those of negative values after the others: the rank below the bucket, and 32 bits
     * whose sum with a value carries where it is above the threshold. second: the same, without a rank, where buckets
     * have two thresholds, else NULL. bucket is NULL where they would have more. */
    const uint64_t *bucket, *second;
    int32_t least, last;
    int shift;
} qk_levels;

/* Levels of product quantization (numerics 19). */
enum { QK_MAX_LEVELS = 256 };
typedef struct {
    size_t m, k, d;       /* groups of d neighbours; k levels, at most QK_MAX_LEVELS */
    int shared;           /* whether all groups have one table of levels; else m of them */
    const float *levels;  /* (m, k, d) */
    const float *columns; /* (m, d, k) */
    const float *scaled;  /* (m, k + 1, d): levels in the scale of what is encoded, the last one infinite */
} qk_pq_book;

/* n vectors of codes: (n, m), one a byte, or of 4 bits and packed, (tiles of n, pairs of m, QK_PQ_TILE): two groups'
 * codes a byte, the first in the lower half, with zeros where there are no more vectors or groups. */
enum { QK_PQ_TILE = 128 };
typedef struct {
    const uint8_t *codes;
    size_t n;
    int packed;
} qk_pq_codes;

/* ---- layers on codes (numerics 23) ---- */

/* Where a result of codes ends: rounded, plus zero_point, within qmin .. qmax; it is signed if qmin < 0. */
typedef struct {
    int32_t zero_point, qmin, qmax;
} qk_code_range;

/* rne(fma(a, a_factor, fma(b, b_factor, offset))) of codes, whose offset has the zero point of the result; or, of
 * products, rne((a - a_zero) (b - b_zero) factor + zero_point). */
typedef struct {
    int product, is_signed; /* the operands */
    float a_factor, b_factor, offset;
    float a_zero, b_zero, factor;
    qk_code_range to;
} qk_pair;

/* weight: of the 256 differences of a code from the row's largest; planes: their bytes, the lowest of all first; real:
 * the same as floats. */
typedef struct {
    const uint32_t *weight;
    const uint8_t *planes;
    const float *real;
    double unit;  /* scale of the result */
    uint8_t flip; /* code ^ flip is unsigned */
    qk_code_range to;
} qk_softmax;

/* fma((q * times - less) * inverse, factor, offset), the latter two of each column. */
typedef struct {
    const float *factor, *offset;
    float times, less, inverse;
    int is_signed;
    qk_code_range to;
} qk_code_norm;

/* ---- k-means ---- */

/* Points, centroids and what is known of them (numerics 14). Reals are float32 or float64, as `type` says. */
typedef struct {
    qk_dtype type;
    size_t n, d, k;
    size_t stride;         /* of a row of sums: d + 1 or more */
    size_t chunk;          /* points of a chunk */
    const void *x;         /* (n, d) */
    const double *weight;  /* (n,), or NULL: 1 each */
    const void *centroids; /* (k + 1, d), the last one infinite */
    void *distance;        /* (k, k): of centroids from one another; NULL: not used */
    void *half;            /* (k,): half of the distance to the nearest other centroid, or 0 */
    const void *moved;     /* (k,): distance from the last position */
    const void *passed;    /* (k,): the largest distance that another one moved */
    int32_t *labels;       /* (n,) */
    void *upper, *lower;   /* (n,): bounds of the distance to the nearest and to the second nearest centroid */
    double *sums;          /* (chunks, k, stride): of weight * x, d of them, and of the weights; aligned to 64 */
} qk_kmeans;

typedef struct {
    size_t changed;  /* labels */
    size_t by_label; /* chunks in which distances between centroids saved work */
} qk_kmeans_counts;

/* Rounding with feedback (numerics 30): k rows of n columns, a multiple of 32, and the grid that they are rounded to.
 */
typedef struct {
    size_t k, n;
    const float *w;    /* (k, n) */
    const float *feed; /* (k, ld): entry j of row i times the error of row j is added to row i; 0 within blocks of 12 */
    const float *near; /* (k, 12): the same for the rows of i's own block that precede it; NULL: by `sums` instead */
    size_t ld;
    int both;             /* whether later rows, whose errors are those of an earlier pass, count */
    const uint8_t *mask;  /* (k, n): 1 where the value 0 takes a weight's place, or NULL: nowhere */
    const int32_t *group; /* (k): the row of scale and zero point */
    const float *scale;   /* NULL: values stay as they are, without codes */
    const int32_t *zero;  /* NULL: levels */
    int32_t qmin, qmax;
    size_t levels; /* (levels, n) ascending, and the largest float below each but the first: (levels - 1, n) */
    const float *level, *threshold;
    const float *weight; /* (k): what the distance from a row's values to their codes counts in loss, squared; if later
                          * rows count, what its square counts */
    int16_t *codes;      /* (k, n); with levels, their ranks */
    float *errors;       /* (n / 32, k, 32): w less what its code stands for */
    double *loss;        /* (n): to which these are added, less those of the earlier pass */
    float *sums; /* (n / 32, k, 32), or NULL: distances times weights; without `near`, of each row what the errors
                  * of all others add up to by `feed`, here symmetric and not over the weight */
} qk_feedback;

/* How scales of microscaling come from the largest magnitudes of blocks (numerics 2): powers of two, or if `times` is
 * not 0 float8_e4m3fn numbers times that. */
typedef struct {
    float largest, times; /* code that the magnitude is divided by, or 1 */
    int32_t exponent, up; /* of the codes' largest power of two, as bits; what is added to the bits first */
} qk_micro;

#endif
