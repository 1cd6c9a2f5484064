/* Products of floats and 4-bit weights, or blocks of 8-bit ones (numerics 12): packing, blocking, threads. The tile
 * belongs to the instruction set.
 *
 * Loop order as in gemm8.c: a block of rows of x, quantized into the L2 cache, x all panels of b, each for all tiles of
 * rows. If rows are many, a panel of 4 bits becomes one of 8 first, by which tiles then are. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "drivers/drivers.h"
#include "runtime/compiler.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "kernels/low_bits.h"
#include "runtime/parallel.h"
#include "drivers/scales.h"
#include "drivers/walk.h"

enum {
    NR = QK_GEMM4_NR,
    KR = QK_GEMM4_KR,
    OWN_STEP_BYTES = QK_COLUMN_LEVELS_NR * QK_COLUMN_LEVELS_KR / 2,
    SHARED_ROWS = 12,           /* tasks take multiples of at most as many: taller tiles are made of parts */
    DECODED_BYTES = 512 * 1024, /* rows of a block, if panels are decoded for each */
    LEAST_BYTE = 8,             /* of scales that are bytes: of a normal number */
    MOST_BYTE = 255
};

/* ---- packing of b ---- */

/* Whether codes lie as kernels/low_bits.h has them. */
static int is_low(const qk_gemm4_weights *p) { return p->bits < 4; }

/* Rows of a step. */
static size_t step_rows(const qk_gemm4_weights *p) { return p->bits == 8 ? KR : p->pad; }

/* Steps of a block, which the last, short one has fewer of. */
static size_t steps_of(const qk_gemm4_weights *p, size_t block)
{
    return ceil_div(min_size(p->k - block * p->block, p->block), p->pad) * (p->pad / step_rows(p));
}

static size_t step_bytes(const qk_gemm4_weights *p)
{
    return is_low(p) ? qk_low_step(p->bits) : NR * KR * (size_t)p->bits / 8;
}
static size_t scale_bytes(const qk_gemm4_weights *p) { return p->byte_scales ? 1 : p->half_scales ? 2 : 4; }

/* Of the sums of columns. */
static size_t sum_bytes(const qk_gemm4_weights *p) { return p->bits == 8 ? NR * (p->long_sums ? 4 : 2) : 0; }

static size_t params_bytes(const qk_gemm4_weights *p)
{
    return NR * (scale_bytes(p) + (p->own_zeros ? 1 : 0)) + sum_bytes(p);
}
static size_t group_bytes(const qk_gemm4_weights *p)
{
    return OWN_STEP_BYTES * (1 + steps_of(p, 0));
} /* levels and codes */

/* Of levels that the codes of columns follow. */
static size_t head_bytes(const qk_gemm4_weights *p) { return p->column_levels && is_low(p) ? qk_low_head(p->bits) : 0; }

static size_t record_bytes(const qk_gemm4_weights *p, size_t block)
{
    if (p->column_levels && !is_low(p)) return NR / QK_COLUMN_LEVELS_NR * group_bytes(p) + params_bytes(p);
    return head_bytes(p) + steps_of(p, block) * step_bytes(p) + params_bytes(p);
}

static size_t panel_bytes(const qk_gemm4_weights *p)
{
    return p->blocks ? (p->blocks - 1) * record_bytes(p, 0) + record_bytes(p, p->blocks - 1) : 0;
}

/* A power of two of which all levels are multiples, if that holds for int8; else the largest level over 127. */
static float scale_of_levels(const float *levels, size_t count)
{
    double largest = 0;
    for (size_t i = 0; i < count; i++)
        if (fabsf(levels[i]) > largest) largest = fabsf(levels[i]); /* of fmax gcc 12 fails to compile it for ARM */
    int exponent, exact = 1;
    frexp(largest, &exponent);
    const double unit = ldexp(1, exponent - 7); /* the largest is 64 of them or more, and less than 128 */
    for (size_t i = 0; i < count; i++) exact &= levels[i] / unit == rint(levels[i] / unit);
    if (exact && largest > 0 && unit >= FLT_MIN) return (float)unit;
    const float scale = (float)(largest / 127);
    return scale > 0 ? scale : largest > 0 ? FLT_MIN : 1;
}

/* Makes levels int8 multiples of a scale, which is returned. */
static float round_levels(const float *levels, size_t count, int8_t *to)
{
    const float scale = scale_of_levels(levels, count);
    for (size_t i = 0; i < count; i++) {
        const double units = rint(levels[i] / (double)scale);
        to[i] = (int8_t)(units < -127 ? -127 : units > 127 ? 127 : units);
    }
    return scale;
}

static int any_but(int32_t zero, const int32_t *zero_point, size_t count)
{
    int any = 0;
    for (size_t i = 0; i < count; i++) any |= zero_point[i] != zero;
    return any;
}

int qk_holds_as_half(const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        const float units = values[i] * 0x1p24f; /* of the smallest subnormal number */
        if (values[i] > 65504 || (values[i] < 0x1p-14f ? units != floorf(units) : bits & 0x1fff)) return 0;
    }
    return 1;
}

/* The byte whose float is nearest to v, at least 2^-126: it has the last five bits of an exponent, three of a mantissa.
 */
static int32_t byte_of(float v)
{
    int32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return (bits + 0x80000) >> 20;
}

static float float_of_byte(int32_t byte)
{
    const int32_t bits = byte << 20;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static int are_bytes(const float *scale, size_t count, float unit)
{
    for (size_t i = 0; i < count; i++) {
        const int32_t byte = byte_of(scale[i] / unit);
        if (byte < LEAST_BYTE || byte > MOST_BYTE || float_of_byte(byte) * unit != scale[i]) return 0;
    }
    return 1;
}

/* A number of which all scales are multiples by what bytes stand for, exactly, or 0. The largest scale has one of the
 * last 8 bytes: others are powers of two away. */
static float unit_of_scales(const float *scale, size_t count)
{
    float least = FLT_MAX, most = 0;
    for (size_t i = 0; i < count; i++) {
        if (scale[i] < least) least = scale[i];
        if (scale[i] > most) most = scale[i];
    }
    if (!(least >= 0x1p-100f && least <= most && most <= 0x1p30f)) return 0;
    for (int32_t byte = MOST_BYTE; byte > MOST_BYTE - 8; byte--) {
        float unit = nextafterf(most / float_of_byte(byte), 0);
        for (int i = 0; i < 3; i++, unit = nextafterf(unit, INFINITY))
            if (are_bytes(&most, 1, unit) && are_bytes(&least, 1, unit) && are_bytes(scale, count, unit)) return unit;
    }
    return 0;
}

/* Codes of so many bits, which fill whole steps in each block. */
static void set_bits(qk_gemm4_weights *p, int bits)
{
    p->bits = bits;
    p->pad = bits < 4 ? qk_low_rows(bits) : bits == 4 && p->column_levels ? QK_COLUMN_LEVELS_KR : KR;
}

/* As few bits as levels take, but 4 where blocks are so short that steps of 3 bits are larger. */
static void set_bits_of_levels(qk_gemm4_weights *p, size_t count)
{
    set_bits(p, 4);
    const size_t most = panel_bytes(p);
    set_bits(p, count <= 4 ? 2 : count <= 8 ? 3 : 4);
    if (panel_bytes(p) > most) set_bits(p, 4);
}

/* Per tensor or per column, all rows are one block; equal zero points are kept once. */
void qk_gemm4_init(qk_gemm4_weights *p, const qk_matrix *m, int8_t *levels)
{
    const size_t most = m->kind == QK_PER_BLOCK ? min_size(m->block, m->k) : m->k;
    const size_t count = m->scale ? qk_scale_count(m) : 0;
    const int own_levels = m->levels && m->kind == QK_PER_AXIS;
    const int is_signed = m->type == QK_I2 || m->type == QK_I4 || m->type == QK_I8;
    *p = (qk_gemm4_weights){.kernels = qk_active(),
                            .k = m->k,
                            .n = m->n,
                            .n_pad = round_up(m->n, NR),
                            .block = most ? most : 1,
                            .half_scales = !own_levels && qk_holds_as_half(m->scale, count),
                            .column_levels = own_levels,
                            .level_scale = 1};
    p->blocks = ceil_div(m->k, p->block), p->long_sums = p->block > QK_SHORT_BLOCK;
    set_bits(p, m->type == QK_I2 || m->type == QK_U2 ? 2 : m->type == QK_I4 || m->type == QK_U4 ? 4 : 8);
    if (m->levels) set_bits_of_levels(p, m->level_count);
    if (p->bits == 4 && m->kind == QK_PER_BLOCK) p->scale_unit = unit_of_scales(m->scale, count);
    p->byte_scales = p->scale_unit != 0;
    if (m->levels) {
        p->zero = 128;
        if (!own_levels) p->level_scale = round_levels(m->levels, m->level_count, levels), p->levels = levels;
        return;
    }
    p->flip = p->bits < 8 ? (is_signed ? 1 << (p->bits - 1) : 0) : is_signed ? 0 : 128;
    const int32_t zero = p->bits == 8 ? p->flip : count ? m->zero_point[0] : 0;
    p->own_zeros = any_but(zero, m->zero_point, count);
    if (p->bits < 8) p->zero = zero + p->flip;
}

/* A row, and all of a block of one, take less than MOST bytes of a panel: with such k no size above overflows. */
size_t qk_gemm4_bytes(const qk_gemm4_weights *p)
{
    enum { MOST = 1024 };
    return p->k > SIZE_MAX / MOST - MOST ? SIZE_MAX : qk_times(p->n_pad / NR, panel_bytes(p));
}

typedef struct {
    const qk_gemm4_weights *p;
    const qk_matrix *m;
    int32_t most_scale; /* bits, which are in the order of scales */
} pack_job;

static void read_scales(const qk_gemm4_weights *p, const uint8_t *from, float *scale)
{
    if (p->byte_scales)
        for (size_t j = 0; j < NR; j++) scale[j] = float_of_byte(from[j]) * p->scale_unit;
    else if (p->half_scales)
        p->kernels->elementwise->f16_to_f32((const uint16_t *)from, scale, NR);
    else
        memcpy(scale, from, NR * sizeof *scale);
}

/* Scales and zero points of a block; those of absent columns are 0. */
static void pack_params(pack_job *job, size_t block, size_t col, size_t cols, uint8_t *to)
{
    const qk_gemm4_weights *p = job->p;
    const qk_matrix *m = job->m;
    float scale[NR] = {0}; /* 1 of levels that all values share */
    uint8_t *zero = to + NR * scale_bytes(p);
    if (p->own_zeros) memset(zero, 0, NR);
    for (size_t j = 0; j < cols; j++) {
        const size_t at = m->kind == QK_PER_TENSOR ? 0 : m->kind == QK_PER_AXIS ? col + j : block * m->n + col + j;
        scale[j] = p->column_levels ? scale_of_levels(m->levels + at * m->level_count, m->level_count)
            : m->scale              ? m->scale[at]
                                    : 1;
        if (p->own_zeros) zero[j] = (uint8_t)(m->zero_point[at] + p->flip); /* or - 128: the same byte */
    }
    qk_keep_most(&job->most_scale, p->kernels->layers->absmax_f32(scale, 0, 1, NR));
    if (p->byte_scales)
        for (size_t j = 0; j < NR; j++) to[j] = (uint8_t)byte_of(scale[j] / p->scale_unit);
    else if (p->half_scales)
        p->kernels->elementwise->f32_to_f16(scale, (uint16_t *)to, NR);
    else
        memcpy(to, scale, sizeof scale);
}

/* One block, its steps one after the other. */
static void pack_block(const pack_job *job, const uint8_t *b, size_t rows, size_t cols, uint8_t *to)
{
    const qk_gemm4_weights *p = job->p;
    const qk_matrix *m = job->m;
    for (size_t row = 0; row < rows && !(row && qk_stopped_at(row));
         row += KR, b += KR * m->row_stride, to += step_bytes(p))
        p->kernels->gemm4->gemm4_pack_step(b, m->row_stride, m->col_stride, min_size(rows - row, KR), cols,
                                           (uint8_t)p->flip, to);
}

/* The same of 2 and 3 bits. */
static void pack_low_block(const pack_job *job, const uint8_t *b, size_t rows, size_t cols, uint8_t *to)
{
    const qk_gemm4_weights *p = job->p;
    const qk_matrix *m = job->m;
    const ptrdiff_t step = (ptrdiff_t)p->pad * m->row_stride;
    for (size_t row = 0; row < rows && !(row && qk_stopped_at(row)); row += p->pad, b += step, to += step_bytes(p))
        p->kernels->gemm4->low_pack_step(b, m->row_stride, m->col_stride, min_size(rows - row, p->pad), cols, p->bits,
                                         (uint8_t)p->flip, to);
}

/* The levels of each column that a panel of 2 or 3 bits begins with; those that are absent are 0. */
static void pack_low_levels(const pack_job *job, size_t col, size_t cols, uint8_t *to)
{
    const qk_matrix *m = job->m;
    memset(to, 0, head_bytes(job->p));
    for (size_t j = 0; j < cols; j++) {
        int8_t levels[QK_LEVELS];
        round_levels(m->levels + (col + j) * m->level_count, m->level_count, levels);
        for (size_t i = 0; i < m->level_count; i++) to[qk_low_level_at((int)i, j)] = (uint8_t)levels[i];
    }
}

/* The same of 8 bits; then the sums of the columns, behind scales and zero points. */
static void pack_bytes(const pack_job *job, const uint8_t *b, size_t rows, size_t cols, uint8_t *to)
{
    const qk_gemm4_weights *p = job->p;
    const qk_matrix *m = job->m;
    int32_t sum[NR] = {0};
    for (size_t row = 0; row < rows; row += KR, b += KR * m->row_stride, to += step_bytes(p))
        p->kernels->gemm4->blocks8_pack_step(b, m->row_stride, m->col_stride, min_size(rows - row, KR), cols,
                                             (uint8_t)p->flip, to, sum);
    to += params_bytes(p) - sum_bytes(p);
    for (size_t j = 0; j < NR; j++) {
        const int32_t negative = -sum[j];
        const int16_t low = (int16_t)negative;
        if (p->long_sums)
            memcpy(to + 4 * j, &negative, 4);
        else
            memcpy(to + 2 * j, &low, 2);
    }
}

/* Levels and codes of the columns of a panel from `col` on, 16 at a time; those that are absent are 0. */
static void pack_column_levels(const pack_job *job, size_t col, size_t cols, uint8_t *to)
{
    enum { HALF = QK_COLUMN_LEVELS_KR / 2 };
    const qk_gemm4_weights *p = job->p;
    const qk_matrix *m = job->m;
    const size_t group = group_bytes(p);
    memset(to, 0, NR / QK_COLUMN_LEVELS_NR * group);
    for (size_t j = 0; j < cols; j++) {
        const uint8_t *b = (const uint8_t *)m->b + (ptrdiff_t)(col + j) * m->col_stride;
        uint8_t *codes = to + j / QK_COLUMN_LEVELS_NR * group + j % QK_COLUMN_LEVELS_NR * HALF;
        round_levels(m->levels + (col + j) * m->level_count, m->level_count, (int8_t *)codes);
        for (size_t row = 0; row < p->k && !qk_stopped_at(row); row++) {
            const size_t in_step = row % QK_COLUMN_LEVELS_KR;
            if (in_step == 0) codes += OWN_STEP_BYTES;
            codes[in_step % HALF] |= (uint8_t)(b[(ptrdiff_t)row * m->row_stride] << (in_step < HALF ? 0 : 4));
        }
    }
}

static void pack_panels(void *context, size_t begin, size_t end)
{
    pack_job *job = context;
    const qk_gemm4_weights *p = job->p;
    const qk_matrix *m = job->m;
    for (size_t panel = begin; panel < end; panel++) {
        const size_t col = panel * NR, cols = min_size(p->n - col, NR);
        uint8_t *to = p->panels + panel * panel_bytes(p);
        for (size_t block = 0; block < p->blocks && !(block % 64 == 0 && qk_stopped());
             block++, to += record_bytes(p, 0)) {
            const size_t first = block * p->block, rows = min_size(p->k - first, p->block);
            const uint8_t *b =
                (const uint8_t *)m->b + (ptrdiff_t)first * m->row_stride + (ptrdiff_t)col * m->col_stride;
            if (head_bytes(p)) pack_low_levels(job, col, cols, to);
            if (is_low(p))
                pack_low_block(job, b, rows, cols, to + head_bytes(p));
            else if (p->column_levels)
                pack_column_levels(job, col, cols, to);
            else
                (p->bits == 8 ? pack_bytes : pack_block)(job, b, rows, cols, to);
            pack_params(job, block, col, cols, to + record_bytes(p, block) - params_bytes(p));
        }
    }
}

int qk_gemm4_pack(qk_gemm4_weights *p, const qk_matrix *m)
{
    QK_DEFAULT_MODE;
    pack_job job = {p, m, 0};
    if (p->k == 0) return 0; /* without bytes, panels may be more than a loop can count */
    const int status = qk_parallel_for(p->n_pad / NR, 0.3 * (double)p->k * (double)p->n, pack_panels, &job);
    memcpy(&p->most_scale, &job.most_scale, sizeof p->most_scale);
    return status;
}

/* The code of a row and a column, as it is stored. */
static int stored_code(const qk_gemm4_weights *p, size_t row, size_t col)
{
    const uint8_t *panel = p->panels + col / NR * panel_bytes(p);
    const size_t j = col % NR, in_step = row % p->block % step_rows(p), step = row % p->block / step_rows(p);
    if (p->column_levels && !is_low(p)) {
        const uint8_t *group = panel + j / QK_COLUMN_LEVELS_NR * group_bytes(p) + (1 + step) * OWN_STEP_BYTES;
        const int two =
            group[j % QK_COLUMN_LEVELS_NR * (QK_COLUMN_LEVELS_KR / 2) + in_step % (QK_COLUMN_LEVELS_KR / 2)];
        return (in_step < QK_COLUMN_LEVELS_KR / 2 ? two : two >> 4) & 15;
    }
    const uint8_t *codes = panel + row / p->block * record_bytes(p, 0) + head_bytes(p) + step * step_bytes(p);
    if (is_low(p)) return qk_low_code(codes, p->bits, in_step, j);
    if (p->bits == 8) return codes[j * KR + in_step];
    const int two = codes[j % 16 * KR + in_step];
    return (j < 16 ? two : two >> 4) & 15;
}

static void unpack_rows(void *context, size_t begin, size_t end)
{
    const unpack_job *job = context;
    const qk_gemm4_weights *p = job->weights;
    uint8_t *to = (uint8_t *)job->to + begin * p->n;
    for (size_t row = begin; row < end; row++)
        for (size_t col = 0; col < p->n; col++) {
            const int code = stored_code(p, row, col) ^ p->flip;
            *to++ = (uint8_t)(p->bits < 8 ? (code ^ p->flip) - p->flip : code); /* signed ones fill their bytes */
        }
}

int qk_gemm4_unpack(const qk_gemm4_weights *p, void *b)
{
    QK_DEFAULT_MODE;
    unpack_job job = {p, b};
    return qk_parallel_for(p->k, 5.0 * (double)p->k * (double)p->n, unpack_rows, &job);
}

/* The record of a block in the panel of a column. */
static const uint8_t *record_at(const qk_gemm4_weights *p, size_t block, size_t col)
{
    return p->panels + col / NR * panel_bytes(p) + block * record_bytes(p, 0);
}

/* The zero point of column j as it was given, of those that a record has. */
static int32_t given_zero(const qk_gemm4_weights *p, const uint8_t *zeros, size_t j)
{
    if (p->bits == 8) return (p->own_zeros ? (int8_t)zeros[j] : p->zero) + p->flip;
    return (p->own_zeros ? zeros[j] : p->zero) - p->flip;
}

void qk_gemm4_params(const qk_gemm4_weights *p, float *scale, int32_t *zero_point)
{
    QK_DEFAULT_MODE;
    for (size_t block = 0; block < p->blocks; block++)
        for (size_t col = 0; col < p->n; col += NR) {
            const size_t cols = min_size(p->n - col, NR);
            const uint8_t *from = record_at(p, block, col) + record_bytes(p, block) - params_bytes(p);
            float all[NR];
            read_scales(p, from, all);
            for (size_t j = 0; j < cols; j++)
                *scale++ = all[j], *zero_point++ = given_zero(p, from + NR * scale_bytes(p), j);
        }
}

/* ---- the product ---- */

typedef struct {
    walk walk;
    const float *x;
    ptrdiff_t row_stride;
    const qk_gemm4_weights *b;      /* what tiles read */
    const qk_gemm4_weights *packed; /* of fewer bits: becomes b panel by panel; or NULL */
    const qk_epilogue *epilogue;
    size_t block_pad, k_pad;           /* of a row's codes: each block is padded with zeros to whole steps */
    size_t lda, ld_start, ld_prepared; /* the last is 0 if the tile reads codes */
    size_t start_at, spare_at, prepared_at, panel_at; /* where things lie in the memory of a task */
    qk_row_quantizer quantizer;
} product;

/* A block of rows of x: codes, starting sums and scales. */
typedef struct {
    int32_t *start;
    int8_t *prepared; /* what the tile reads instead of the codes, or NULL */
    int any_wide;
    float scale[MAX_ROWS];
    double wide_scale[MAX_ROWS]; /* qk_row_scale */
    _Alignas(64) int8_t codes[];
} row_block;

/* Blocks of a row, each padded with zeros to whole steps. */
static void spread_blocks(const product *g, const int8_t *from, int8_t *to)
{
    for (size_t i = 0; i < g->b->k; i += g->b->block, to += g->block_pad) {
        const size_t n = min_size(g->b->k - i, g->b->block);
        memcpy(to, from + i, n);
        memset(to + n, 0, round_up(n, g->b->pad) - n);
    }
}

static void flip_codes(int8_t *codes, size_t n, int flip)
{
    for (size_t i = 0; i < n; i++) codes[i] ^= (int8_t)flip;
}

/* What tiles need of row i, whose codes are there. */
static void finish_row(const product *g, row_block *rows, size_t i)
{
    const qk_gemm4_weights *b = g->b;
    const qk_kernels *k = b->kernels;
    int8_t *codes = rows->codes + i * g->lda;
    int32_t *start = rows->start + i * g->ld_start;
    if (b->bits < 8 || b->own_zeros)
        k->gemm4->gemm4_starts(codes, g->k_pad, g->block_pad, b->own_zeros ? -1 : -b->zero, start);
    if (b->bits < 8) return;
    for (size_t j = 0; b->own_zeros && j < b->blocks; j++)
        start[j] = (int32_t)((uint32_t)(start[j] >> 8) << 16 | (start[j] & 255));
    if (rows->prepared)
        k->blocks8->blocks8_prepare_row(codes, g->k_pad, g->block_pad, rows->prepared + i * g->ld_prepared);
    if (k->blocks8->flip) flip_codes(codes, g->k_pad, k->blocks8->flip);
}

/* Quantizes rows of x by their largest magnitude. */
static int take_rows(const void *context, void *memory, size_t first, size_t count)
{
    const product *g = context;
    const qk_gemm4_weights *b = g->b;
    const int spread = b->block % b->pad && b->blocks > 1;
    row_block *rows = memory;
    rows->start = (int32_t *)((char *)memory + g->start_at);
    rows->prepared = g->ld_prepared ? (int8_t *)memory + g->prepared_at : NULL;
    rows->any_wide = 0;
    for (size_t i = 0; i < count && !qk_stopped_at_long(b->k); i++) {
        const float *x = (const float *)((const char *)g->x + (ptrdiff_t)(first + i) * g->row_stride);
        int8_t *codes = rows->codes + i * g->lda, *q = spread ? (int8_t *)memory + g->spare_at : codes;
        qk_row_scale row;
        if (!qk_quantize_row(&g->quantizer, x, q, &row)) return 0;
        if (spread)
            spread_blocks(g, q, codes);
        else
            memset(codes + b->k, 0, g->k_pad - b->k);
        rows->scale[i] = row.scale * b->level_scale;
        rows->wide_scale[i] = row.wide * b->level_scale;
        rows->any_wide |= row.wide != 0;
        finish_row(g, rows, i);
    }
    return 1;
}

/* Adds the products of a row's codes with those of a step to the sums of its columns. */
static void add_bytes(const int8_t *a, uint8_t flip, const uint8_t *step, int32_t *sum)
{
    for (int j = 0; j < NR; j++)
        for (int i = 0; i < KR; i++) sum[j] += (int8_t)(a[i] ^ flip) * (int8_t)step[j * KR + i];
}

/* The same of 4 bits. */
static void add_step(const int8_t *a, const uint8_t *step, const int8_t *levels, int32_t *sum)
{
    for (int j = 0; j < NR / 2; j++)
        for (int i = 0; i < KR; i++) {
            const int two = step[j * KR + i], low = two & 15, high = two >> 4;
            sum[j] += a[i] * (levels ? levels[low] : low);
            sum[j + NR / 2] += a[i] * (levels ? levels[high] : high);
        }
}

/* The same of 2 and 3 bits; `own_levels` of each column, or NULL. */
static void add_low_step(const qk_gemm4_weights *b, const int8_t *a, const uint8_t *step, const int8_t *own_levels,
                         int32_t *sum)
{
    for (size_t i = 0; i < b->pad; i++)
        for (size_t j = 0; j < NR; j++) {
            const int code = qk_low_code(step, b->bits, i, j);
            sum[j] += a[i] * (own_levels ? own_levels[qk_low_level_at(code, j)] : b->levels ? b->levels[code] : code);
        }
}

/* What a zero point in the panel is multiplied by, and that. */
static int32_t zero_product(const qk_gemm4_weights *b, const uint8_t *zeros, int j, int32_t start)
{
    if (b->bits == 8) return b->own_zeros ? (int8_t)zeros[j] * ((start >> 16) * 256 + (start & 255)) : 0;
    return b->levels || b->column_levels ? 0 : start * (b->own_zeros ? zeros[j] : 1);
}

/* What gemm4_tile or blocks8_tile makes of a row, in double. */
static void wide_sums(const qk_gemm4_weights *b, const qk_gemm4_panel *p, const int8_t *a, const int32_t *start,
                      double *total)
{
    const uint8_t *record = p->records + head_bytes(b);
    const int8_t *own_levels = head_bytes(b) ? (const int8_t *)p->records : NULL;
    float scale[NR];
    memset(total, 0, NR * sizeof *total);
    for (size_t block = 0; block < p->blocks; block++) {
        int32_t sum[NR];
        const size_t steps = steps_of(b, block);
        const uint8_t *params = record + steps * step_bytes(b), *zeros = params + NR * scale_bytes(b);
        for (int j = 0; j < NR; j++) sum[j] = zero_product(b, zeros, j, start[block]);
        for (size_t s = 0; s < steps; s++, a += step_rows(b))
            if (is_low(b))
                add_low_step(b, a, record + s * step_bytes(b), own_levels, sum);
            else if (b->bits == 8)
                add_bytes(a, (uint8_t)b->kernels->blocks8->flip, record + s * step_bytes(b), sum);
            else
                add_step(a, record + s * step_bytes(b), p->levels, sum);
        read_scales(b, params, scale);
        for (int j = 0; j < NR; j++) total[j] += (double)sum[j] * scale[j];
        record += record_bytes(b, block);
    }
}

/* What column_levels_tile makes of a row, in double. */
static void wide_sums_of_column_levels(const qk_gemm4_weights *b, const qk_gemm4_panel *p, const int8_t *a,
                                       double *total)
{
    enum { HALF = QK_COLUMN_LEVELS_KR / 2 };
    float scale[NR];
    memset(total, 0, NR * sizeof *total);
    if (!p->blocks) return;
    memcpy(scale, p->records + NR / QK_COLUMN_LEVELS_NR * group_bytes(b), sizeof scale);
    for (size_t j = 0; j < NR; j++) {
        const int8_t *levels =
            (const int8_t *)p->records + j / QK_COLUMN_LEVELS_NR * group_bytes(b) + j % QK_COLUMN_LEVELS_NR * QK_LEVELS;
        const uint8_t *codes = (const uint8_t *)levels + OWN_STEP_BYTES;
        int32_t sum = 0;
        for (size_t s = 0; s < p->last_steps; s++, codes += OWN_STEP_BYTES)
            for (size_t i = 0; i < HALF; i++)
                sum += a[s * QK_COLUMN_LEVELS_KR + i] * levels[codes[i] & 15] +
                    a[s * QK_COLUMN_LEVELS_KR + HALF + i] * levels[codes[i] >> 4];
        total[j] = (double)sum * scale[j];
    }
}

/* Rows of a tile some of which are wide: `wide` are their scales. */
static QK_NOINLINE void store_rows_apart(const product *g, const qk_gemm4_panel *p, const int8_t *codes,
                                         const int32_t *start, const double *wide, float *y, const qk_tile *t)
{
    const qk_kernels *k = g->b->kernels;
    double sums[NR];
    for (int i = 0; i < t->rows; i++, codes += g->lda, start += g->ld_start, y += NR) {
        const qk_tile row = qk_row_of_tile(t, i);
        if (!wide[i]) {
            k->elementwise->finish_floats(y, &row);
            continue;
        }
        if (g->b->column_levels && !is_low(g->b))
            wide_sums_of_column_levels(g->b, p, codes, sums);
        else
            wide_sums(g->b, p, codes, start, sums);
        for (int j = 0; j < NR; j++) sums[j] *= wide[i];
        qk_finish_row(k, sums, &row);
    }
}

/* Rows that a tile takes. */
static size_t tile_rows(const qk_gemm4_weights *b)
{
    return (size_t)(b->bits == 8 ? b->kernels->blocks8->mr : b->kernels->gemm4->mr);
}

/* Blocks of a panel that are multiplied between two looks for signals. */
static size_t blocks_at_once(const product *g) { return QK_STRETCH / (g->block_pad + 1) + 1; }
static int is_long(const product *g) { return g->b->blocks > blocks_at_once(g); }

/* A tile of bytes; a long one begins by itself. */
static void bytes_tile(const product *g, int rows, const qk_gemm4_panel *p, const void *a, size_t lda,
                       const int32_t *start, float *y)
{
    const qk_blocks8_kernels *k = g->b->kernels->blocks8;
    const int begins = k->blocks8_begin && is_long(g);
    if (begins) k->blocks8_begin((size_t)rows, p);
    k->blocks8_tile(rows, p, a, lda, start, g->ld_start, y);
    if (begins) k->blocks8_end((size_t)rows);
}

/* y = rows of the block from `row` on, times a panel: some blocks after the other, if they are so many that a signal
 * would wait for all of them. */
static void multiply_tile(const product *g, const row_block *block, size_t row, int rows, const qk_gemm4_panel *panel,
                          float *y)
{
    const qk_gemm4_kernels *k = g->b->kernels->gemm4;
    const int8_t *a = block->prepared ? block->prepared + row * g->ld_prepared : block->codes + row * g->lda;
    const size_t lda = block->prepared ? g->ld_prepared : g->lda;
    const size_t a_block = block->prepared ? 2 * g->block_pad + 8 : g->block_pad;
    const size_t most = blocks_at_once(g);
    const int32_t *start = block->start + row * g->ld_start;
    qk_gemm4_panel p = *panel;
    if (g->b->column_levels && !is_low(g->b)) {
        k->column_levels_tile(rows, &p, a, lda, start, g->ld_start, y);
        return;
    }
    for (size_t left = panel->blocks; !p.more || (left && !qk_stopped()); left -= p.blocks, p.more = 1) {
        p.blocks = min_size(left, most);
        p.last_steps = p.blocks < left ? p.steps : panel->last_steps;
        if (g->b->bits == 8)
            bytes_tile(g, rows, &p, a, lda, start, y);
        else if (is_low(g->b) && k->low_tile)
            k->low_tile(rows, &p, a, lda, start, g->ld_start, y);
        else
            k->gemm4_tile(rows, &p, a, lda, start, g->ld_start, y);
        a += p.blocks * a_block, start += p.blocks, p.records += p.blocks * record_bytes(g->b, 0);
    }
}

/* Weights of fewer bits as blocks8_tile takes them: a panel of them is made at a time, for all rows of a block. */
static qk_gemm4_weights as_bytes(const qk_gemm4_weights *p)
{
    qk_gemm4_weights b = *p;
    if (!is_low(p)) b.pad = KR;
    b.bits = 8, b.flip = b.zero = 0, b.half_scales = b.own_zeros = b.column_levels = 0;
    b.long_sums = 1, b.levels = NULL, b.panels = NULL, b.byte_scales = 0;
    return b;
}

/* Whether that is worth while, or the only way. */
static int decodes(const qk_gemm4_weights *p, size_t m)
{
    const qk_gemm4_kernels *k = p->kernels->gemm4;
    if (is_low(p) && !k->low_tile) return p->k != 0;
    const int looked_up = p->levels || p->column_levels;
    const size_t least = (size_t)(is_low(p) ? (looked_up ? k->low_levels_rows : k->low_codes_rows)
                                            : (looked_up ? k->levels_rows : k->codes_rows));
    return p->bits < 8 && p->k && least && m >= least && DECODED_BYTES / p->k >= least;
}

/* What tiles are told of all panels. */
static qk_gemm4_panel panel_of(const qk_gemm4_weights *b)
{
    qk_gemm4_panel p = {.blocks = b->blocks,
                        .steps = ceil_div(b->block, b->pad) * (b->pad / step_rows(b)),
                        .half_scales = b->half_scales,
                        .own_zeros = b->own_zeros,
                        .long_sums = b->long_sums,
                        .params_bytes = params_bytes(b),
                        .levels = b->levels,
                        .byte_scales = b->byte_scales,
                        .scale_unit = b->scale_unit,
                        .bits = b->bits,
                        .column_levels = b->column_levels};
    if (b->blocks) p.last_steps = steps_of(b, b->blocks - 1);
    return p;
}

/* Makes a panel of bytes in the memory of a task. */
static const uint8_t *decode_panel(const product *g, void *memory, size_t panel)
{
    const qk_gemm4_weights *from = g->packed;
    const qk_gemm4_kernels *k = from->kernels->gemm4;
    qk_gemm4_panel p = panel_of(from);
    p.records = from->panels + panel * panel_bytes(from);
    uint8_t *to = (uint8_t *)memory + g->panel_at;
    if (is_low(from))
        k->low_to_bytes(&p, from->zero, to);
    else if (from->column_levels)
        k->column_levels_to_bytes(&p, steps_of(g->b, 0), to);
    else
        k->gemm4_to_bytes(&p, from->zero, to);
    return to;
}

/* Rows that are a single tile: sums of some panels become results together. What these read and write in between would
 * stop a stream of codes from memory. */
static void multiply_some(const product *g, const row_block *block, size_t first, size_t rows, size_t begin, size_t end,
                          const qk_gemm4_panel *of)
{
    enum { FEW_SUMS = 512 };
    float y[MAX_MR * NR] __attribute__((aligned(64)));
    qk_gemm4_panel p = *of;
    const size_t together = rows * NR < FEW_SUMS ? FEW_SUMS / (rows * NR) : 1, bytes = panel_bytes(g->b);
    for (size_t panel = begin; panel < end; panel += together) {
        const size_t some = min_size(end - panel, together);
        for (size_t i = 0; i < some; i++) {
            p.records = g->b->panels + (panel + i) * bytes;
            multiply_tile(g, block, 0, (int)rows, &p, y + i * rows * NR);
        }
        for (size_t i = 0; i < some; i++) {
            const size_t col = (panel + i) * NR;
            qk_tile t = qk_float_tile(g->epilogue, col, min_size(g->b->n - col, NR));
            qk_set_rows(&t, g->epilogue, first, rows, col, block->scale);
            g->b->kernels->elementwise->finish_floats(y + i * rows * NR, &t);
        }
    }
}

static void multiply(const void *context, void *memory, size_t first, size_t rows, size_t begin, size_t end)
{
    const product *g = context;
    const row_block *block = memory;
    const qk_gemm4_weights *b = g->b;
    const qk_kernels *k = b->kernels;
    const size_t tiles = ceil_div(rows, tile_rows(b));
    float y[MAX_MR * NR] __attribute__((aligned(64)));
    qk_gemm4_panel p = panel_of(b);
    qk_ahead ahead = {.row_stride = g->epilogue->row_stride};
    const size_t packed_bytes = g->packed ? panel_bytes(g->packed) : 0, steps = ceil_div(b->k, KR);
    if (g->packed) p.ahead = &ahead, ahead.step = ceil_div(packed_bytes, steps * tiles);
    const int begins = b->bits == 8 && k->blocks8->blocks8_begin && !is_long(g);
    if (begins) k->blocks8->blocks8_begin(rows, &p);
    if (tiles == 1 && !g->packed && !block->any_wide) {
        multiply_some(g, block, first, rows, begin, end, &p);
        begin = end;
    }
    for (size_t panel = begin; panel < end; panel++) {
        const size_t col = panel * NR;
        qk_tile t = qk_float_tile(g->epilogue, col, min_size(b->n - col, NR));
        p.records = g->packed ? decode_panel(g, memory, panel) : b->panels + panel * panel_bytes(b);
        if (g->packed) ahead.read = (const int8_t *)g->packed->panels + (panel + 1) % g->walk.panels * packed_bytes;
        for (size_t tile = 0; tile < tiles; tile++) {
            const size_t row = rows * tile / tiles; /* tiles of even height */
            const size_t count = rows * (tile + 1) / tiles - row;
            qk_set_rows(&t, g->epilogue, first + row, count, col, block->scale + row);
            ahead.write = t.dst;
            multiply_tile(g, block, row, t.rows, &p, y);
            if (g->packed) ahead.read += ahead.step * steps;
            if (block->any_wide)
                store_rows_apart(g, &p, block->codes + row * g->lda, block->start + row * g->ld_start,
                                 block->wide_scale + row, y, &t);
            else
                k->elementwise->finish_floats(y, &t);
        }
    }
    if (begins) k->blocks8->blocks8_end(rows);
}

/* Divides the rows, and says where things lie in the memory of a task. */
static void lay_out(product *g)
{
    if (g->b->bits == 8 && g->b->kernels->blocks8->blocks8_prepare_row)
        g->ld_prepared = round_up(qk_plus(qk_times(g->k_pad, 2), qk_times(g->b->blocks, 8)), 64);
    if (g->packed) g->walk.block_bytes = DECODED_BYTES;
    qk_share(&g->walk, g->ld_prepared ? g->ld_prepared : g->lda, (int)min_size(tile_rows(g->b), SHARED_ROWS));
    const size_t rows = g->walk.block_rows, codes = qk_times(g->lda, rows);
    g->start_at = qk_plus(sizeof(row_block), codes);
    g->spare_at = qk_plus(g->start_at, qk_times(qk_times(g->ld_start, rows), sizeof(int32_t)));
    g->prepared_at = qk_plus(g->spare_at, round_up(g->b->k + 64, 64));
    g->panel_at = qk_plus(g->prepared_at, qk_times(g->ld_prepared, rows));
    g->walk.bytes = qk_plus(g->panel_at, g->packed ? round_up(panel_bytes(g->b), 64) : 0);
}

int qk_gemm4_linear(const float *x, ptrdiff_t row_stride, size_t m, const qk_gemm4_weights *b,
                    const qk_epilogue *epilogue)
{
    QK_DEFAULT_MODE;
    if (m == 0 || b->n == 0) return 1;
    product g = {.walk = {.m = m, .panels = b->n_pad / NR, .take_rows = take_rows, .multiply = multiply},
                 .x = x,
                 .row_stride = row_stride,
                 .b = b,
                 .epilogue = epilogue};
    qk_gemm4_weights bytes;
    if (decodes(b, m)) bytes = as_bytes(b), g.b = &bytes, g.packed = b;
    g.block_pad = round_up(b->block, g.b->pad);
    if (b->blocks)
        g.k_pad = qk_plus(qk_times(b->blocks - 1, g.block_pad), steps_of(g.b, b->blocks - 1) * step_rows(g.b));
    const double most = b->bits == 8 ? 255 : 128; /* distance of a code from its zero point, or magnitude of a level */
    const double sum = 127.0 * most * (double)b->k * b->most_scale; /* of magnitudes */
    const qk_factors factors = {b->level_scale, b->level_scale, sum, qk_largest_bias(b->kernels, epilogue, b->n)};
    g.quantizer = (qk_row_quantizer){b->kernels, b->k, -127, 127, 1, 1, factors};
    g.lda = round_up(g.k_pad + 1, 64), g.ld_start = round_up(b->blocks + 1, 16);
    g.walk.work = qk_product_work(m, b->k, b->n, 128);
    lay_out(&g);
    return qk_walk(&g.walk);
}
