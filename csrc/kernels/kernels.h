/* What an instruction set provides: one struct of functions and tile sizes. */
#ifndef QK_KERNELS_H
#define QK_KERNELS_H

#include "kernels/gguf.h"
#include "kernels/kmeans1d.h"
#include "kernels/arguments.h"
#include "runtime/sizes.h"

enum { MAX_NR = 64, MAX_MR = 64 }; /* no tile is larger */

/* One scale and zero point. */
typedef struct {
    float scale, reciprocal; /* reciprocal 0: divide (numerics 3) */
    int32_t zero_point, qmin, qmax;
    int half_away;
} qk_affine;

/* Two factors, one above and one below 1 / scale, and the zero point + ROUNDER (numerics 3). */
typedef struct {
    float above, below, start;
} qk_bracket;

/* Those of rows, which share them: element i of a row has the parameters of number i / run. */
typedef struct {
    const float *scale, *reciprocal; /* reciprocal NULL: divide */
    const int32_t *zero_point;
    int32_t qmin, qmax;
    int half_away;
    size_t run, rows, in_stride, out_stride; /* strides from row to row, in elements */
    size_t apart; /* of rows that are seen together: 0, neighbours, or a quarter of `rows`, for arrays from memory,
                   * whose runs have 2 */
} qk_affines;

/* A format of codes that are floats (numerics 3): bits of a float32's mantissa that it lacks, the bits of its least
 * normal number as a float32, the distance of its subnormal numbers; the largest code, those of NaN (0: none) and of
 * the first number that is not finite, and the bit of the sign; an integer up to which quotients are clamped, the
 * largest number or, for 7.5, the next: small_floats sees to the rest. */
typedef struct {
    int32_t shift, least;
    float unit;
    int32_t most, nan, special, sign, bound;
} qk_small_float;

/* Gradients of fake_quantize (numerics 26): terms of so many rows are added in float32; a run is rows of so many lanes;
 * so many columns are seen at most. */
enum { QK_GRAD_ROWS = 16, QK_GRAD_LANES = 16, QK_GRAD_COLUMNS = 512 };

/* What sums of terms are added to: one of each a column, or a lane. */
typedef struct {
    double *scale, *zero;
} qk_grad_sums;

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
    int plain;     /* of codes: rounded half to even, no bias after multipliers, products within int32 */
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

/* A column of b', as int16 and as bytes; and rows that meet it: codes of `bytes` each, which bytes are ^ flip. */
typedef struct {
    const int16_t *wide;
    const int8_t *codes;
} qk_column;

typedef struct {
    const void *a;
    size_t lda, count; /* lda: in bytes */
    int bytes;
    uint8_t flip;
} qk_few_rows;

/* The columns of b that become a panel. */
typedef struct {
    const uint8_t *b;
    ptrdiff_t row_stride, col_stride; /* in bytes */
    size_t k;
    uint8_t flip;         /* code ^ flip is stored */
    const int32_t *zero;  /* zero points of the stored codes; NULL: neither sums nor bound are wanted */
    int (*stopped)(void); /* tells to give up, as a signal does, whatever the panel is then; NULL: nothing does */
} qk_panel_source;

static inline int qk_panel_stopped(const qk_panel_source *s) { return s->stopped && s->stopped(); }

/* What a tile asks the caches for, so that it is there in time: what is read after the tile, `step` bytes for each of
 * its steps, and the 128 bytes of each row of its result. */
typedef struct {
    const int8_t *read;
    size_t step;
    char *write;
    size_t row_stride;
} qk_ahead;

/* A window of an image that is read where it lies: so many lines, of `steps` steps of a panel each, the next of which
 * begins `skip` bytes after the end of one. */
typedef struct {
    size_t lines, steps, skip;
} qk_window;

/* A panel of 4-bit weights, or of blocks of 8-bit ones: see qk_gemm4_weights. */
enum { QK_SHORT_BLOCK = 255 }; /* 128 * 255 < 2^15 */
enum { QK_GEMM4_NR = 32, QK_GEMM4_KR = 4, QK_COLUMN_LEVELS_NR = 16, QK_COLUMN_LEVELS_KR = 32, QK_LEVELS = 16 };
typedef struct {
    const uint8_t *records;
    size_t blocks, steps, last_steps; /* steps of a block, and of the last */
    int half_scales, own_zeros, more; /* more: what y holds is added to */
    const int8_t *levels;             /* what codes stand for; NULL: for themselves */
    int long_sums;                    /* of 8 bits: sums of columns are int32 */
    size_t params_bytes;              /* what follows the codes of a block */
    const qk_ahead *ahead;            /* what tiles of bytes ask for, or NULL: for what follows in the panel */
    int byte_scales;                  /* scales are bytes: shifted left by 20, the bits of floats, times scale_unit */
    float scale_unit;
    int bits, column_levels; /* of 2 and 3 bits only; the panel begins with levels of each column */
} qk_gemm4_panel;

static inline size_t qk_scales_bytes(const qk_gemm4_panel *p)
{
    return QK_GEMM4_NR * (p->byte_scales ? 1 : p->half_scales ? 2 : 4);
}

/* Whole blocks of a panel of weights that fold to int8 (numerics 33): see qk_folded. */
enum {
    QK_FOLDED_CHUNK = 32, /* rows of a block whose codes of a are summed up together */
    QK_FOLDED_SUMMED = 4, /* blocks whose sums are used together */
    QK_FOLDED_STEP = QK_GEMM4_NR * QK_GEMM4_KR / 2
};
typedef struct {
    const uint8_t *codes, *params;
    size_t blocks, steps, last_steps;        /* steps of a block, and of the last */
    const uint8_t *next_codes, *next_params; /* of another panel, which one row meets at the same time; or NULL */
} qk_folded_panel;

/* The scale and the shift of a column, in a byte of a record (generic/folded.h). */
static inline int qk_block_scale(uint8_t params) { return (params & 15) + 1; }
static inline int qk_block_shift(uint8_t params) { return ((params >> 4) ^ 8) - 8; }

/* What folded_sums makes of a row: two numbers for each chunk of whole fours of blocks. */
static inline size_t qk_sums_of(size_t blocks, size_t steps)
{
    return 2 * blocks * ceil_div(steps * QK_GEMM4_KR, QK_FOLDED_CHUNK);
}

enum { QK_CODEBOOK_COLUMNS = 256 };
enum { QK_RANDOM = 1024 }; /* elements that are rounded stochastically at a time: those of a chunk of random.h */

/* Levels, k, 16 at least; and those beside them (numerics 27), k below, then k above: 2^16 over the difference to the
 * next one, 0 if there is none, NaN if it is no ordinary number; and its lowest code, or the same code. The next
 * element has the tables of `step` channels further on. */
typedef struct {
    size_t k, step;
    const float *level, *per_distance;
    const uint8_t *next;
} qk_moves;

/* The code of element i, or by chance that of the level on the other side of x. */
static inline uint8_t qk_moved_code(const qk_moves *m, size_t i, double x, uint8_t code, uint16_t u)
{
    const float *level = m->level + i * m->step * m->k;
    const double rest = x - level[code];
    const uint8_t to = m->next[2 * i * m->step * m->k + (rest > 0 ? m->k : 0) + code];
    if (to == code || rest == 0) return code;
    return u < 65536 * (rest / ((double)level[to] - level[code])) - 0.5 ? to : code;
}

/* Points of k-means that are seen at a time, and bins by which they are sorted; what a thread needs for a chunk. */
enum { QK_UNPACK_ROWS = 1024 };
enum {
    QK_KMEANS_TILE = 32,
    QK_KMEANS_BINS = 16,
    QK_KMEANS_FEW = 10,      /* to 16 centroids: points stay rows */
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

/* The bytes that a tile of vectors takes where codes are turned, one a byte. */
static inline size_t qk_pq_turned(size_t m) { return round_up(m, 16) * QK_PQ_TILE; }

/* The nearest of k centroids by squared distances that do not underflow (numerics 14; of two as near the lower index).
 * `found` is the lowest of those whose distance the kernels took for the smallest. */
int32_t qk_nearest_f32(const float *x, const float *centroids, size_t k, size_t d, int32_t found);
int32_t qk_nearest_f64(const double *x, const double *centroids, size_t k, size_t d, int32_t found);

/* A panel of weights that are floats (numerics 16): rows of k, each of 32 columns in order; but in those of bfloat16
 * columns j and j + 16 are neighbours, so that a shift and a mask widen a register of both. */
enum { QK_GEMMF16_NR = 32, QK_GEMMF16_ROW_PANELS = 4 };

/* Rows and 32 columns on their way to codes. Entry j of row i of w, scale, zero, codes is at i * stride + j, but scale
 * and zero have a row for each group; errors and sums have rows of 32. */
enum { QK_ROUND_ROWS = 12 };
typedef struct {
    int rows;
    const qk_feedback *of;
    size_t row, column;  /* the first ones */
    float *errors;       /* of w, from the first row on */
    const float *before; /* sums of what errors of earlier blocks of rows add */
    const float *after;  /* and of later rows, or NULL */
    float *sums;         /* as those of qk_feedback, from the first row on, or NULL */
} qk_round_rows;
/* How many rows are rounded before what has changed in them is told to all others. */
enum { QK_ROUND_AGAIN = 128 };

static inline size_t qk_code_bytes(qk_dtype t)
{
    return t == QK_I32 || t == QK_F32 ? 4 : t == QK_I16 || t == QK_U16 ? 2 : 1;
}

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

/* What a histogram asks of values before it counts them. */
typedef struct {
    int32_t least, most; /* ranks of the extremes */
    uint32_t nearest;    /* 2 * bits - 1 of the least magnitude that is not 0 */
    uint32_t zeros;
} qk_survey;
enum {
    QK_FINE_SHIFT = 13,       /* of 1024 bins a power of two */
    QK_HISTOGRAM_CHUNK = 4096 /* values at a time: they stay in the L1 cache beside the bins in use */
};

/* Integers in the order of the floats with these bits, -NaN first and NaN last; its own inverse. */
static inline int32_t qk_rank(int32_t bits) { return bits ^ ((bits >> 31) & INT32_MAX); }

/* A family of kernels: sizes and operations that belong together. families/NAME.def has a line for each, from which
 * come the struct here and, for each instruction set that has the family, its table (generic/table.h).
 *
 *     SIZE(name, value)                            a number that drivers ask for
 *     OPERATION(result, name, arguments)           a function
 *     PANEL(result, name, arguments)               one that knows how a panel of gemm8 is laid out
 *     OPTIONAL(result, name, arguments, value)     one that may be NULL */
#define SIZE(name, value) int name;
#define OPERATION(result, name, arguments) result(*name) arguments;
#define PANEL(result, name, arguments) result(*name) arguments;
#define OPTIONAL(result, name, arguments, value) result(*name) arguments;
#define FAMILY(name)                                                                                                   \
    typedef struct qk_##name##_kernels qk_##name##_kernels;                                                            \
    struct qk_##name##_kernels
#include "kernels/generic/families.def"
#undef FAMILY
#undef SIZE
#undef OPERATION
#undef PANEL
#undef OPTIONAL

/* An instruction set: its own families, and what it borrows from another. */
struct qk_kernels {
    const char *name;
    int (*available)(void);                      /* on this CPU */
    size_t (*peak)(size_t rounds);               /* products from registers alone (generic/peak.h), or NULL */
    const qk_gemm8_kernels *gemm8, *gemm8_small; /* of small weights, faster on those (numerics 6), or NULL */
    const qk_gemm4_kernels *gemm4;
    const qk_blocks8_kernels *blocks8;
    const qk_folded_kernels *folded;
    const qk_gemm8_kernels *gemm8_folded; /* which reads rows, and finishes tiles, as folded has them */
    const qk_gemm16_kernels *gemm16;
    const qk_gemmf16_kernels *gemmf16;
    const qk_elementwise_kernels *elementwise;
    const qk_codebooks_kernels *codebooks;
    const qk_layers_kernels *layers;
    const qk_kmeans_kernels *kmeans;
    const qk_pq_kernels *pq;
    const qk_histogram_kernels *histogram;
    const qk_conv_kernels *conv;
};

extern const qk_kernels qk_kernels_scalar, qk_kernels_avx2, qk_kernels_avxvnni, qk_kernels_avx512,
    qk_kernels_avx512vnni, qk_kernels_amx;
extern const qk_kernels qk_kernels_neon, qk_kernels_neon_dotprod, qk_kernels_neon_i8mm;

/* Families that other instruction sets borrow. */
extern const qk_gemm8_kernels qk_gemm8_scalar;
extern const qk_folded_kernels qk_folded_scalar;
extern const qk_conv_kernels qk_conv_scalar;
extern const qk_gemm4_kernels qk_gemm4_neon_dotprod;
extern const qk_blocks8_kernels qk_blocks8_neon_dotprod;
extern const qk_gemm16_kernels qk_gemm16_neon;
extern const qk_gemmf16_kernels qk_gemmf16_neon;
extern const qk_elementwise_kernels qk_elementwise_neon;
extern const qk_codebooks_kernels qk_codebooks_neon;
extern const qk_layers_kernels qk_layers_neon;
extern const qk_kmeans_kernels qk_kmeans_neon;
extern const qk_pq_kernels qk_pq_neon;
extern const qk_histogram_kernels qk_histogram_neon;
extern const qk_gemm8_kernels qk_gemm8_avx512vnni;
extern const qk_gemm4_kernels qk_gemm4_avx2, qk_gemm4_avx512vnni;
extern const qk_blocks8_kernels qk_blocks8_avx2, qk_blocks8_avx512vnni;
extern const qk_gemm8_kernels qk_gemm8_small_avx2;
extern const qk_folded_kernels qk_folded_avx2, qk_folded_avx512vnni;
extern const qk_gemm16_kernels qk_gemm16_avx2, qk_gemm16_avx512vnni;
extern const qk_gemmf16_kernels qk_gemmf16_avx2, qk_gemmf16_avx512;
extern const qk_elementwise_kernels qk_elementwise_avx2, qk_elementwise_avx512;
extern const qk_codebooks_kernels qk_codebooks_avx2, qk_codebooks_avx512;
extern const qk_layers_kernels qk_layers_avx2, qk_layers_avx512;
extern const qk_kmeans_kernels qk_kmeans_avx2, qk_kmeans_avx512;
extern const qk_pq_kernels qk_pq_avx2, qk_pq_avx512;
extern const qk_histogram_kernels qk_histogram_avx2, qk_histogram_avx512;
extern const qk_conv_kernels qk_conv_avx2, qk_conv_avx512, qk_conv_avx512vnni;

qk_affine qk_affine_of(float scale, int32_t zero_point, int32_t qmin, int32_t qmax, qk_rounding rounding);
/* qk_choose where the mode is the default one already. */
void qk_choose_inside(float lo, float hi, int32_t qmin, int32_t qmax, int symmetric, float *scale, int32_t *zero_point);

#endif
