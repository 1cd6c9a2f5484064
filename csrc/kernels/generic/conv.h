/* What convolutions and pools read of an image (numerics 22), compiled once per instruction set, after elementwise.h.
 */
#ifndef QK_GENERIC_CONV_H
#define QK_GENERIC_CONV_H

#include <string.h>

#include "kernels/generic/elementwise.h"
#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

/* ---- rows of the implicit matrix ---- */

/* What one call gathers. */
typedef struct {
    const qk_image *image;
    const uint8_t *from, *end; /* the first channel that is taken, of all images; the end of these */
    size_t depth, line,
        whole; /* channels; bytes from line to line; codes of a line of a window if these are neighbours, else 0 */
    uint8_t flip;
} gathered;

/* Codes in chunks, the last of which may reach beyond n on both sides. */
static QK_INLINE void copy_chunks(const uint8_t *restrict from, size_t n, uint8_t flip, void *to, const int bytes,
                                  const size_t chunk)
{
    uint8_t *restrict narrow = to;
    uint16_t *restrict wide = to;
    for (size_t i = 0; i < n; i += chunk)
        for (size_t j = 0; j < chunk; j++)
            if (bytes == 1)
                narrow[i + j] = from[i + j] ^ flip;
            else
                wide[i + j] = from[i + j] ^ flip;
}

static QK_INLINE char *copy_run(const gathered *g, const uint8_t *from, size_t n, char *to, const int bytes)
{
    if (n > (size_t)(g->end - from) || (size_t)(g->end - from) - n < 64)
        copy_chunks(from, n, g->flip, to, bytes, 1);
    else if (n <= 16)
        copy_chunks(from, n, g->flip, to, bytes, 16);
    else if (n <= 32)
        copy_chunks(from, n, g->flip, to, bytes, 32);
    else
        copy_chunks(from, n, g->flip, to, bytes, 64);
    return to + n * (size_t)bytes;
}

static QK_INLINE char *fill_run(uint8_t code, size_t n, char *to, const int bytes)
{
    uint16_t *wide = (uint16_t *)to;
    if (bytes == 1) memset(to, code, n);
    for (size_t i = 0; bytes == 2 && i < n; i++) wide[i] = code;
    return to + n * (size_t)bytes;
}

/* A line of a window whose first column is x: what lies in the image, between what is padding. */
static QK_INLINE char *gather_edge(const gathered *g, const uint8_t *line, ptrdiff_t x, char *to, const int bytes)
{
    const qk_image *p = g->image;
    const uint8_t pad = p->pad ^ g->flip;
    if (g->whole) {
        const size_t before = x >= 0 ? 0 : min_size((size_t)-x, p->kernel_width);
        const size_t left = x >= (ptrdiff_t)p->width ? 0 : (size_t)((ptrdiff_t)p->width - x - (ptrdiff_t)before);
        const size_t inside = min_size(p->kernel_width - before, left);
        to = fill_run(pad, before * g->depth, to, bytes);
        if (inside)
            to = copy_run(g, line + (size_t)(x + (ptrdiff_t)before) * p->channels, inside * g->depth, to, bytes);
        return fill_run(pad, (p->kernel_width - before - inside) * g->depth, to, bytes);
    }
    for (size_t kx = 0; kx < p->kernel_width; kx++) {
        const size_t at = (size_t)x + kx * p->dilation_x; /* far beyond the width if it is negative */
        to = at < p->width ? copy_run(g, line + at * p->channels, g->depth, to, bytes)
                           : fill_run(pad, g->depth, to, bytes);
    }
    return to;
}

static QK_INLINE char *gather_window(const gathered *g, size_t number, ptrdiff_t y, ptrdiff_t x, char *to,
                                     const int bytes)
{
    const qk_image *p = g->image;
    const uint8_t *image = g->from + number * p->height * g->line;
    const int inside = g->whole && x >= 0 && x + (ptrdiff_t)p->kernel_width <= (ptrdiff_t)p->width;
    for (size_t ky = 0; ky < p->kernel_height; ky++) {
        const size_t at = (size_t)y + ky * p->dilation_y;
        if (at >= p->height)
            to = fill_run(p->pad ^ g->flip, p->kernel_width * g->depth, to, bytes);
        else if (inside)
            to = copy_run(g, image + at * g->line + (size_t)x * p->channels, g->whole, to, bytes);
        else
            to = gather_edge(g, image + at * g->line, x, to, bytes);
    }
    return to;
}

static int32_t sum_row(const char *row, size_t n, int bytes)
{
    const uint8_t *narrow = (const uint8_t *)row;
    const uint16_t *wide = (const uint16_t *)row;
    uint32_t sum = 0;
    for (size_t i = 0; bytes == 1 && i < n; i++) sum += narrow[i];
    for (size_t i = 0; bytes == 2 && i < n; i++) sum += wide[i];
    return (int32_t)sum;
}

/* Windows that lie within the image, each of whose lines is one run, at most `chunk` codes of which are copied at once.
 */
static QK_INLINE void gather_inside(const gathered *g, const uint8_t *from, size_t count, char *to, size_t lda,
                                    const int bytes, const size_t chunk)
{
    const qk_image *p = g->image;
    const size_t step = p->stride_x * p->channels, down = p->dilation_y * g->line, height = p->kernel_height;
    const size_t whole = g->whole, run = whole * (size_t)bytes;
    const uint8_t flip = g->flip;
    for (size_t i = 0; i < count; i++, from += step, to += lda) {
        const uint8_t *line = from;
        char *at = to;
        for (size_t ky = 0; ky < height; ky++, line += down, at += run)
            copy_chunks(line, chunk < 64 ? chunk : whole, flip, at, bytes, chunk);
        memset(at, 0, 8);
    }
}

/* How many of `count` pixels of a line of the result, from column x of the image on, have windows that lie within it,
 * and far enough from the end of all images to be copied in chunks. */
static inline size_t count_inside(const gathered *g, ptrdiff_t y, ptrdiff_t x, size_t count, const uint8_t *from)
{
    const qk_image *p = g->image;
    const size_t reach = (p->kernel_height - 1) * p->dilation_y, last = reach * g->line + round_up(g->whole, 64);
    if (!g->whole || x < 0 || y < 0 || (size_t)y + reach >= p->height || (size_t)x + p->kernel_width > p->width)
        return 0;
    if (last > (size_t)(g->end - from)) return 0;
    count = min_size(count, (p->width - p->kernel_width - (size_t)x) / p->stride_x + 1);
    return min_size(count, ((size_t)(g->end - from) - last) / (p->stride_x * p->channels) + 1);
}

static QK_INLINE void gather(const gathered *g, size_t first, size_t rows, char *to, size_t lda, int32_t *sums,
                             const int bytes)
{
    const qk_image *p = g->image;
    const size_t k = p->kernel_height * p->kernel_width * g->depth;
    size_t ox = first % p->out_width, oy = first / p->out_width % p->out_height;
    size_t number = first / p->out_width / p->out_height;
    for (size_t i = 0, count; i < rows; i += count) {
        const ptrdiff_t y = (ptrdiff_t)(oy * p->stride_y - p->top), x = (ptrdiff_t)(ox * p->stride_x - p->left);
        const uint8_t *from = g->from + number * p->height * g->line;
        if (y >= 0 && x >= 0) from += (size_t)y * g->line + (size_t)x * p->channels;
        count = count_inside(g, y, x, min_size(rows - i, p->out_width - ox), from);
        if (!count)
            count = 1, memset(gather_window(g, number, y, x, to, bytes), 0, 8);
        else if (g->whole <= 16)
            gather_inside(g, from, count, to, lda, bytes, 16);
        else if (g->whole <= 32)
            gather_inside(g, from, count, to, lda, bytes, 32);
        else
            gather_inside(g, from, count, to, lda, bytes, 64);
        for (size_t j = 0; sums && j < count; j++) sums[i + j] = sum_row(to + j * lda, k, bytes);
        to += count * lda, ox += count;
        if (ox == p->out_width) ox = 0, oy++;
        if (oy == p->out_height) oy = 0, number++;
    }
}

static void gather_rows(const qk_patches *of, size_t first, size_t rows, int a_bytes, uint8_t flip, char *to,
                        size_t lda, int32_t *sums)
{
    const qk_image *p = of->image;
    const size_t pixels = p->count * p->height * p->width;
    const int whole = of->depth == p->channels && p->dilation_x == 1;
    const gathered g = {p,         p->codes + of->channel, p->codes + pixels * p->channels,
                        of->depth, p->width * p->channels, whole ? p->kernel_width * of->depth : 0,
                        flip};
    if (a_bytes == 1)
        gather(&g, first, rows, to, lda, sums, 1);
    else
        gather(&g, first, rows, to, lda, sums, 2);
}

#endif
