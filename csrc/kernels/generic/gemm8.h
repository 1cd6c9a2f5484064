/* Packing and the epilogues of products (numerics 6 to 8), compiled once per instruction set, after elementwise.h.
 * The including file sets NR and KR, the columns of a panel and the codes of k that a step takes. */
#ifndef QK_GENERIC_GEMM8_H
#define QK_GENERIC_GEMM8_H

#include <string.h>

#include "kernels/generic/elementwise.h"
#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

/* ---- b' ---- */

/* Four rows of nr unit-stride columns; the fours of columns are `apart` fours apart. */
static inline void interleave_fours(const uint8_t *b, ptrdiff_t row_stride, uint8_t flip, uint32_t *restrict fours,
                                    const int nr, const int apart)
{
    const uint8_t *b1 = b + row_stride, *b2 = b1 + row_stride, *b3 = b2 + row_stride;
    for (int j = 0; j < nr; j++)
        fours[j * apart] =
            (b[j] | (uint32_t)b1[j] << 8 | (uint32_t)b2[j] << 16 | (uint32_t)b3[j] << 24) ^ flip * 0x01010101u;
}

/* kr rows (2, 4 or 8) of nr unit-stride columns, interleaved; written as whole steps, which is what gcc vectorizes. */
static inline void interleave_rows(const uint8_t *b, ptrdiff_t row_stride, uint8_t flip, uint8_t *to, const int nr,
                                   const int kr)
{
    const uint8_t *b1 = b + row_stride;
    if (kr == 2) {
        uint16_t *restrict pairs = (uint16_t *)to;
        for (int j = 0; j < nr; j++) pairs[j] = (uint16_t)((b[j] | b1[j] << 8) ^ flip * 0x0101);
        return;
    }
    for (int i = 0; i < kr / 4; i++)
        interleave_fours(b + 4 * i * row_stride, row_stride, flip, (uint32_t *)to + i, nr, kr / 4);
}

/* A step of any strides, codes that b does not have being 0. */
static void pack_step(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols,
                      uint8_t flip, uint8_t *to, const int nr, const int kr)
{
    memset(to, 0, (size_t)(nr * kr));
    for (size_t j = 0; j < cols; j++)
        for (size_t i = 0; i < rows; i++)
            to[j * (size_t)kr + i] = b[(ptrdiff_t)i * row_stride + (ptrdiff_t)j * col_stride] ^ flip;
}

/* A step of columns whose codes are adjacent: b is the transpose of a C-contiguous matrix. */
static inline void copy_columns(const uint8_t *b, ptrdiff_t col_stride, uint8_t flip, uint8_t *to, const int nr,
                                const int kr)
{
    uint64_t flips = flip * 0x0101010101010101u, codes = 0;
    for (int j = 0; j < nr; j++) {
        memcpy(&codes, b + j * col_stride, (size_t)kr);
        codes ^= flips;
        memcpy(to + j * kr, &codes, (size_t)kr);
    }
}

/* Adds the stored codes of some rows to sum, and |code - zero| to size, per column. */
static inline void add_rows(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols,
                            uint8_t flip, const int32_t *restrict zero, int32_t *restrict sum, int32_t *restrict size)
{
    for (size_t i = 0; i < rows; i++) {
        const uint8_t *line = b + (ptrdiff_t)i * row_stride;
        for (size_t j = 0; j < cols; j++) {
            const int32_t code = (int8_t)(line[(ptrdiff_t)j * col_stride] ^ flip), distance = code - zero[j];
            sum[j] += code;
            size[j] += distance < 0 ? -distance : distance;
        }
    }
}

static inline void add_column(const uint8_t *restrict b, size_t rows, uint8_t flip, int32_t zero, int32_t *restrict sum,
                              int32_t *restrict size)
{
    int32_t total = 0, distances = 0;
    for (size_t i = 0; i < rows; i++) {
        const int32_t code = (int8_t)(b[i] ^ flip), distance = code - zero;
        total += code;
        distances += distance < 0 ? -distance : distance;
    }
    *sum += total;
    *size += distances;
}

/* colsum and bound of the panel's columns; |code - zero| <= 383, so 32 bits hold the sums of a block of rows. */
static int64_t sum_columns(const qk_panel_source *s, size_t cols, int32_t *colsum)
{
    enum { BLOCK = 4096 };
    int64_t sums[NR] = {0}, sizes[NR] = {0}, bound = 0;
    for (size_t row = 0; row < s->k && !qk_panel_stopped(s); row += BLOCK) {
        const size_t rows = s->k - row < BLOCK ? s->k - row : BLOCK;
        const uint8_t *b = s->b + (ptrdiff_t)row * s->row_stride;
        int32_t sum[NR] = {0}, size[NR] = {0};
        if (s->row_stride == 1)
            for (size_t j = 0; j < cols; j++)
                add_column(b + (ptrdiff_t)j * s->col_stride, rows, s->flip, s->zero[j], sum + j, size + j);
        else if (s->col_stride == 1 && cols == NR)
            add_rows(b, s->row_stride, 1, rows, NR, s->flip, s->zero, sum, size);
        else
            add_rows(b, s->row_stride, s->col_stride, rows, cols, s->flip, s->zero, sum, size);
        for (int j = 0; j < NR; j++) sums[j] += sum[j], sizes[j] += size[j];
    }
    for (int j = 0; j < NR; j++) {
        colsum[j] = (int32_t)(uint32_t)sums[j];
        if (sizes[j] > bound) bound = sizes[j];
    }
    return bound;
}

/* A step of kr rows and nr columns, which are constants where this is inlined. */
static QK_INLINE void interleave_step(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows,
                                      size_t cols, uint8_t flip, uint8_t *to, const size_t nr, const size_t kr)
{
    if (rows == kr && cols == nr && col_stride == 1)
        interleave_rows(b, row_stride, flip, to, (int)nr, (int)kr);
    else if (rows == kr && cols == nr && row_stride == 1)
        copy_columns(b, col_stride, flip, to, (int)nr, (int)kr);
    else
        pack_step(b, row_stride, col_stride, rows, cols, flip, to, (int)nr, (int)kr);
}

/* Steps of kr codes from `row` on, which is a constant where this is inlined. */
static QK_INLINE void interleave(const qk_panel_source *s, size_t row, size_t steps, size_t cols, int8_t *panel,
                                 const size_t kr)
{
    uint8_t *to = (uint8_t *)panel;
    for (size_t i = 0; i < steps; i++, row += kr, to += NR * kr) {
        const uint8_t *b = s->b + (ptrdiff_t)row * s->row_stride;
        interleave_step(b, s->row_stride, s->col_stride, s->k - row < kr ? s->k - row : kr, cols, s->flip, to, NR, kr);
    }
}

static int64_t gemm8_pack_panel(const qk_panel_source *s, size_t cols, int8_t *panel, int32_t *colsum)
{
    enum { ROWS = 4096 };
    for (size_t row = 0; row < s->k && !qk_panel_stopped(s); row += ROWS) {
        const size_t steps = ((s->k - row < ROWS ? s->k - row : ROWS) + KR - 1) / KR;
        int8_t *to = panel + row * NR;
        interleave(s, row, steps, cols, to, KR);
        for (size_t i = 0; PANEL_FLIP && i < steps * NR * KR; i++) to[i] ^= PANEL_FLIP;
    }
    return s->zero ? sum_columns(s, cols, colsum) : 0;
}

static size_t gemm8_panel_bytes(size_t steps) { return qk_times(steps, NR * KR); }

static void gemm8_unpack_panel(const int8_t *panel, size_t k, size_t first, size_t cols, uint8_t flip, uint8_t *to,
                               size_t row_stride)
{
    for (size_t row = first; row < k && row < first + QK_UNPACK_ROWS; row++)
        for (size_t col = 0; col < cols; col++)
            to[row * row_stride + col] = (uint8_t)(panel[(row / KR * NR + col) * KR + row % KR] ^ PANEL_FLIP) ^ flip;
}

/* ---- a' ---- */

/* Whole steps of 4 codes, stored at once: a tile's load of 4 bytes would wait for stores of one each. */
static inline void pack_row_bytes(const uint8_t *restrict a, size_t n, size_t n_pad, uint8_t flip, uint8_t *restrict to)
{
    const uint32_t flips = flip * 0x01010101u;
    size_t done = n / 4 * 4;
    uint32_t codes;
    for (size_t i = 0; i < done; i += 4) {
        memcpy(&codes, a + i, 4);
        codes ^= flips;
        memcpy(to + i, &codes, 4);
    }
    if (done < n && n_pad - done >= 4) {
        codes = 0;
        for (size_t i = done; i < n; i++) codes |= (uint32_t)(a[i] ^ flip) << i % 4 * 8;
        memcpy(to + done, &codes, 4);
        done += 4;
    }
    for (; done < n; done++) to[done] = a[done] ^ flip;
    if (done < n_pad) memset(to + done, 0, n_pad - done);
}

/* The same in steps of 2. */
static inline void pack_row_int16(const uint8_t *restrict a, size_t n, size_t n_pad, uint8_t flip, int16_t *restrict to)
{
    const size_t wide = n / 16 * 16;
    size_t done = n / 2 * 2;
    for (size_t i = 0; i < wide; i++) to[i] = a[i] ^ flip;
    for (size_t i = wide; i < done; i += 2) {
        const uint32_t codes = (uint32_t)(a[i] ^ flip) | (uint32_t)(a[i + 1] ^ flip) << 16;
        memcpy(to + i, &codes, 4);
    }
    if (done < n && done + 1 < n_pad) {
        const uint32_t codes = a[done] ^ flip;
        memcpy(to + done, &codes, 4);
        done += 2;
    }
    for (; done < n; done++) to[done] = a[done] ^ flip;
    if (done < n_pad) memset(to + done, 0, (n_pad - done) * sizeof *to);
}

static int32_t sum_codes(const uint8_t *a, size_t n, uint8_t flip)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] ^ flip;
    return (int32_t)sum;
}

/* What sums start from, modulo 2^32. */
static void start_sums(int32_t *restrict sums, const int32_t *restrict bias, const int32_t *restrict colsum,
                       uint32_t zero, size_t n)
{
    if (bias)
        for (size_t j = 0; j < n; j++) sums[j] = (int32_t)((uint32_t)bias[j] - zero * (uint32_t)colsum[j]);
    else
        for (size_t j = 0; j < n; j++) sums[j] = (int32_t)(0 - zero * (uint32_t)colsum[j]);
}

/* ---- a single column ---- */

#ifndef HAVE_COLUMN_SUMS
/* Sums of so many products fit 32 bits: 65536 * 255 * 128 < 2^31. */
enum { COLUMN_STRETCH = 65536 };

static inline int32_t sum_bytes(const uint8_t *restrict a, uint8_t flip, const int16_t *restrict b, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        const int16_t code = a[i] ^ flip;
        sum += code * b[i];
    }
    return sum;
}

static inline int32_t sum_int16(const int16_t *restrict a, const int16_t *restrict b, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Adds the sums of four rows of bytes, which share what they load of b. */
static inline void add_four(const uint8_t *restrict a, size_t lda, uint8_t flip, const int16_t *restrict b, size_t n,
                            int32_t *c)
{
    const uint8_t *a1 = a + lda, *a2 = a1 + lda, *a3 = a2 + lda;
    int32_t sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
    for (size_t i = 0; i < n; i++) {
        const int16_t code0 = a[i] ^ flip, code1 = a1[i] ^ flip, code2 = a2[i] ^ flip, code3 = a3[i] ^ flip;
        sum0 += code0 * b[i], sum1 += code1 * b[i], sum2 += code2 * b[i], sum3 += code3 * b[i];
    }
    const int32_t sums[] = {sum0, sum1, sum2, sum3};
    for (int i = 0; i < 4; i++) c[i] = (int32_t)((uint32_t)c[i] + (uint32_t)sums[i]);
}

static void column_sums(const qk_few_rows *rows, size_t k, const qk_column *column, int32_t *c)
{
    memset(c, 0, rows->count * sizeof *c);
    for (size_t done = 0, n, i; done < k; done += n) {
        const char *row = (const char *)rows->a + done * (size_t)rows->bytes;
        const int16_t *b = column->wide + done;
        n = k - done < COLUMN_STRETCH ? k - done : COLUMN_STRETCH;
        for (i = 0; rows->bytes == 1 && i + 4 <= rows->count; i += 4, row += 4 * rows->lda)
            add_four((const uint8_t *)row, rows->lda, rows->flip, b, n, c + i);
        for (; i < rows->count; i++, row += rows->lda) {
            const int32_t sum = rows->bytes == 1 ? sum_bytes((const uint8_t *)row, rows->flip, b, n)
                                                 : sum_int16((const int16_t *)row, b, n);
            c[i] = (int32_t)((uint32_t)c[i] + (uint32_t)sum);
        }
    }
}
#endif

/* ---- what becomes of a tile ---- */

#ifndef HAVE_GELU_RUN
static void gelu_run(float *restrict y, size_t n, const gelu_table *g)
{
    for (size_t i = 0; i < n; i++) y[i] = gelu_f32(y[i], g);
}
#endif

static void silu_run(float *restrict y, size_t n)
{
    int far = 0;
    for (size_t i = 0; i < n; i++) far |= y[i] < SILU_FAR;
    if (far)
        for (size_t i = 0; i < n; i++) y[i] = y[i] < SILU_FAR ? silu_far(y[i]) : silu_f32(y[i]);
    else
        for (size_t i = 0; i < n; i++) y[i] = silu_f32(y[i]);
}

static void activate(float *restrict y, size_t n, qk_activation activation)
{
    if (activation == QK_RELU)
        for (size_t i = 0; i < n; i++) y[i] = at_least(0.0f, y[i]);
    else if (activation == QK_GELU)
        gelu_run(y, n, &gelu_erf);
    else if (activation == QK_GELU_TANH)
        gelu_run(y, n, &gelu_tanh);
    else if (activation == QK_SILU)
        silu_run(y, n);
}

static inline void add_residual(float *restrict y, const qk_tile *t, int row)
{
    const float *restrict residual = (const float *)((const char *)t->residual + (size_t)row * t->residual_stride);
    for (int j = 0; j < t->cols; j++) y[j] += residual[j];
}

/* What follows the scaled sums of a tile, rows of `width`: all rows at once, so that constants stay in registers. */
static void finish_rows(float *y, size_t width, const qk_tile *t)
{
    const size_t n = (size_t)t->rows * width;
    if (t->residual)
        for (int row = 0; row < t->rows; row++) add_residual(y + (size_t)row * width, t, row);
    activate(y, n, t->activation);
    if (t->bounded)
        for (size_t i = 0; i < n; i++) y[i] = clamp(y[i], t->lo, t->hi);
}

/* Copies some bytes; a call of memcpy takes longer. */
static QK_INLINE void copy_few(char *restrict to, const char *restrict from, size_t bytes)
{
    if (bytes >= 16) {
        for (size_t i = 0; i + 16 < bytes; i += 16) memcpy(to + i, from + i, 16);
        memcpy(to + bytes - 16, from + bytes - 16, 16);
    } else if (bytes >= 8) {
        memcpy(to, from, 8), memcpy(to + bytes - 8, from + bytes - 8, 8);
    } else if (bytes >= 4) {
        memcpy(to, from, 4), memcpy(to + bytes - 4, from + bytes - 4, 4);
    } else {
        for (size_t i = 0; i < bytes; i++) to[i] = from[i];
    }
}

/* Rows of NR elements, of which `cols` are wanted, to where they belong. */
static inline void store_rows(const void *from, size_t size, const qk_tile *t)
{
    const char *row = from;
    for (int i = 0; i < t->rows; i++, row += NR * size) {
        char *to = (char *)t->dst + (size_t)i * t->row_stride;
        if (t->cols == NR)
            memcpy(to, row, NR * size);
        else
            copy_few(to, row, (size_t)t->cols * size);
    }
}

/* Takes from the sums of a row a multiple of what its columns hold; modulo 2^32. */
static inline void subtract(int32_t *row, int32_t factor, const int32_t *restrict column)
{
    uint32_t *restrict acc = (uint32_t *)row;
    for (int j = 0; j < NR; j++) acc[j] -= (uint32_t)factor * (uint32_t)column[j];
}

static inline void correct_for_b(int32_t *acc, const qk_tile *t)
{
    if (!t->row_term) return;
    for (int row = 0; row < t->rows; row++) subtract(acc + row * NR, t->row_term[row], t->col_zero);
}

static inline void correct_for_a(int32_t *acc, const qk_tile *t)
{
    if (!t->row_zero) return;
    for (int row = 0; row < t->rows; row++) subtract(acc + row * NR, t->row_zero[row], t->colsum);
}

static void tile_to_int32(int32_t *acc, const qk_tile *t)
{
    correct_for_a(acc, t);
    correct_for_b(acc, t);
    store_rows(acc, sizeof *acc, t);
}

/* Scales a row, and corrects it for the zero point of a on the way. */
static inline void scale_row(const int32_t *restrict acc, float *restrict y, const qk_tile *t, int row)
{
    const float *restrict col_scale = t->col_scale, *restrict bias = t->bias;
    const int32_t *restrict colsum = t->colsum;
    const uint32_t zero = t->row_zero ? (uint32_t)t->row_zero[row] : 0;
    if (t->row_scale) {
        const float row_scale = t->row_scale[row];
        for (int j = 0; j < NR; j++)
            y[j] =
                (float)(int32_t)((uint32_t)acc[j] - zero * (uint32_t)colsum[j]) * (row_scale * col_scale[j]) + bias[j];
    } else {
        for (int j = 0; j < NR; j++)
            y[j] = (float)(int32_t)((uint32_t)acc[j] - zero * (uint32_t)colsum[j]) * col_scale[j] + bias[j];
    }
}

static void tile_to_float(int32_t *acc, const qk_tile *t)
{
#ifdef HAVE_FLOAT_TILE
    if (t->activation != QK_SILU) {
        float_tile(acc, t);
        return;
    }
#endif
    float y[MR * NR];
    const int in_place =
        t->activation == QK_IDENTITY && t->cols == NR && !t->residual && !t->bounded; /* one visit is enough */
    correct_for_b(acc, t);
    for (int row = 0; row < t->rows; row++)
        scale_row(acc + row * NR, in_place ? (float *)((char *)t->dst + (size_t)row * t->row_stride) : y + row * NR, t,
                  row);
    if (in_place) return;
    finish_rows(y, NR, t);
    store_rows(y, sizeof *y, t);
}

#ifndef HAVE_MULTIPLY_TILE
static inline void multiply_tile_row(const int32_t *restrict acc, uint8_t *restrict q, const qk_tile *t, int half_away)
{
    const float *restrict multiplier = t->multiplier, *restrict bias = t->bias;
    const int32_t zero_point = t->requant->zero_point;
    const float lo = (float)(t->requant->qmin - zero_point), hi = (float)(t->requant->qmax - zero_point);
    for (int j = 0; j < NR; j++)
        q[j] = (uint8_t)scale_to_code((float)acc[j] * multiplier[j] + bias[j], lo, hi, zero_point, half_away);
}

static inline void fixed_point_row(const int32_t *acc, uint8_t *restrict q, const qk_tile *t)
{
    uint16_t codes[NR];
    fixed_point_run(acc, t->mantissa, t->shift, codes, NR, t->requant);
    for (int j = 0; j < NR; j++) q[j] = (uint8_t)codes[j];
}

static void multiply_tile(int32_t *acc, uint8_t *q, const qk_tile *t)
{
    const qk_rounding rounding = t->requant->rounding;
    correct_for_b(acc, t);
    correct_for_a(acc, t);
    for (int row = 0; row < t->rows; row++, acc += NR, q += NR) {
        if (rounding == QK_HALF_EVEN)
            multiply_tile_row(acc, q, t, 0);
        else if (rounding == QK_HALF_AWAY)
            multiply_tile_row(acc, q, t, 1);
        else
            fixed_point_row(acc, q, t);
    }
}
#endif

/* Of an activation: as floats first. */
static void activated_tile(int32_t *acc, uint8_t *q, const qk_tile *t)
{
    float y[MR * NR];
    qk_tile real = *t;
    real.dst = y, real.row_stride = NR * sizeof *y, real.cols = NR;
    tile_to_float(acc, &real);
    quantize_f32_8(y, q, (size_t)t->rows * NR, &t->out);
}

static void tile_to_codes(int32_t *acc, const qk_tile *t)
{
    uint8_t q[MR * NR];
#ifdef HAVE_PLAIN_TILE
    if (t->plain && !t->row_zero && !t->row_term) {
        plain_tile(acc, t);
        return;
    }
#endif
#ifdef HAVE_GELU_CODES
    const int is_gelu = t->activation == QK_GELU || t->activation == QK_GELU_TANH;
    if (is_gelu && t->out.reciprocal != 0 && !t->out.half_away && gelu_codes(acc, t)) return;
#endif
    if (t->rows > MR) __builtin_unreachable(); /* or gcc warns of what cannot be */
    if (t->activation > QK_RELU)
        activated_tile(acc, q, t);
    else
        multiply_tile(acc, q, t);
    store_rows(q, 1, t);
}

#endif
