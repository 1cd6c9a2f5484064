/* Drivers of codebooks (numerics 15): which values share a table and a scale, and threads. */
#include <float.h>

#include "drivers/drivers.h"
#include "runtime/compiler.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

enum { PIECE = 32768 }; /* values that a thread takes at a time */
enum { CHUNK = 1024 };  /* values without scales that are looked at, for NaN, just before they are encoded */

/* Lines of neighbours, divided into blocks; or rows of columns whose blocks run down the rows. */
typedef struct {
    const qk_codebook *c;
    const float *x;
    uint8_t *codes;
    float *scales, *y;
    size_t length, block, piece, pieces; /* of a line, or of the columns */
    size_t outer, inner, blocks;
    int32_t most;
} job;

static qk_levels levels_of(const qk_codebook *c, size_t channel)
{
    qk_levels t = c->first;
    const size_t skip = channel << t.depth;
    t.level += skip, t.node += skip, t.order += skip;
    return t;
}

static void code_lines(void *context, size_t begin, size_t end)
{
    job *j = context;
    for (size_t item = begin; item < end; item++) {
        const size_t line = item / j->pieces, skip = item % j->pieces * j->piece, start = line * j->length + skip;
        const size_t n = min_size(j->length - skip, j->piece);
        const qk_levels t = levels_of(j->c, line % j->c->channels);
        float *scale = j->scales ? j->scales + line * j->blocks + skip / j->block : NULL;
        if (j->y)
            qk_active()->codebooks->decode_f32(j->codes + start, j->y + start, n, j->block, scale, &t);
        else
            qk_keep_most(&j->most,
                         qk_active()->codebooks->encode_f32(j->x + start, j->codes + start, n, j->block, scale, &t));
    }
}

static void code_columns(void *context, size_t begin, size_t end)
{
    job *j = context;
    for (size_t item = begin; item < end; item++) {
        const size_t part = item / j->pieces, col = item % j->pieces * j->piece, row = part % j->blocks * j->block;
        const size_t start = (part / j->blocks * j->length + row) * j->inner + col;
        const size_t rows = min_size(j->length - row, j->block), cols = min_size(j->inner - col, j->piece);
        float *scale = j->scales + part * j->inner + col;
        const qk_levels *t = &j->c->first;
        if (j->y)
            qk_active()->codebooks->decode_columns_f32(j->codes + start, j->y + start, j->inner, rows, cols, scale, t);
        else
            qk_keep_most(&j->most,
                         qk_active()->codebooks->encode_columns_f32(j->x + start, j->codes + start, j->inner, rows,
                                                                    cols, scale, t));
    }
}

enum { TILE_COLUMNS = 16, TILE_VALUES = 64 }; /* a cache line of floats in each of 64 rows, or fewer longer ones */

/* `inner` is a constant 1 in the usual case. */
static QK_INLINE void gather(const float *x, size_t row, size_t rows, size_t channels, size_t inner,
                             float (*to)[TILE_VALUES])
{
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < channels; c++)
            for (size_t i = 0; i < inner; i++) to[c][r * inner + i] = x[r * row + c * inner + i];
}

static QK_INLINE void scatter(uint8_t (*codes)[TILE_VALUES], size_t row, size_t rows, size_t channels, size_t inner,
                              uint8_t *to)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < channels; c++)
            for (size_t i = 0; i < inner; i++) to[r * row + c * inner + i] = codes[c][r * inner + i];
}

/* Short runs of a channel: tiles of several channels are transposed, so that each is a line. An item is a tile. */
static void encode_tiles(void *context, size_t begin, size_t end)
{
    job *j = context;
    const size_t inner = j->inner, row = j->length * inner, tiles = ceil_div(j->length, TILE_COLUMNS);
    float values[TILE_COLUMNS][TILE_VALUES];
    uint8_t codes[TILE_COLUMNS][TILE_VALUES];
    for (size_t item = begin; item < end; item++) {
        const size_t first = item % tiles * TILE_COLUMNS, channels = min_size(j->length - first, TILE_COLUMNS);
        const size_t top = item / tiles * j->block, rows = min_size(j->outer - top, j->block),
                     start = top * row + first * inner;
        if (inner == 1)
            gather(j->x + start, row, rows, channels, 1, values);
        else
            gather(j->x + start, row, rows, channels, inner, values);
        for (size_t c = 0; c < channels; c++) {
            const qk_levels t = levels_of(j->c, first + c);
            qk_keep_most(&j->most,
                         qk_active()->codebooks->encode_f32(values[c], codes[c], rows * inner, CHUNK, NULL, &t));
        }
        if (inner == 1)
            scatter(codes, row, rows, channels, 1, j->codes + start);
        else
            scatter(codes, row, rows, channels, inner, j->codes + start);
    }
}

/* An item is a row, of one code for each channel. */
static void decode_rows(void *context, size_t begin, size_t end)
{
    job *j = context;
    for (; begin < end; begin++)
        qk_active()->codebooks->decode_channels_f32(j->codes + begin * j->length, j->y + begin * j->length, j->length,
                                                    &j->c->first);
}

static int run(job *j, size_t outer, size_t length, size_t inner, size_t block, double ns)
{
    const size_t total = outer * length * inner;
    if (total == 0) return 0;
    if (j->scales && inner > 1) {
        j->length = length, j->inner = inner, j->block = min_size(block, length),
        j->blocks = ceil_div(length, j->block);
        j->piece = QK_CODEBOOK_COLUMNS, j->pieces = ceil_div(inner, j->piece);
        return qk_parallel_for(outer * j->blocks * j->pieces, ns * (double)total, code_columns, j);
    }
    if (j->c->channels > 1 && inner < TILE_VALUES / 2 && !j->y) {
        j->outer = outer, j->length = length, j->inner = inner, j->block = TILE_VALUES / inner;
        return qk_parallel_for(ceil_div(outer, j->block) * ceil_div(length, TILE_COLUMNS), 1.0 * (double)total,
                               encode_tiles, j);
    }
    if (j->c->channels > 1 && inner == 1 && j->y) {
        j->length = length;
        return qk_parallel_for(outer, 0.5 * (double)total, decode_rows, j);
    }
    size_t lines = outer;
    if (!j->scales)
        lines = j->c->channels > 1 ? outer * length : 1, length = total / lines, block = CHUNK;
    else if (length % block == 0)
        lines = 1, length = total;
    j->length = length, j->block = min_size(block, length), j->blocks = ceil_div(length, j->block);
    j->piece = j->block < PIECE ? PIECE / j->block * j->block : j->block;
    j->pieces = ceil_div(length, j->piece);
    return qk_parallel_for(lines * j->pieces, ns * (double)total, code_lines, j);
}

int qk_encode(const float *x, uint8_t *q, const qk_codebook *c, size_t outer, size_t length, size_t inner, size_t block,
              float *scale)
{
    QK_DEFAULT_MODE;
    job j = {.c = c, .x = x, .codes = q, .scales = scale};
    const int status = run(&j, outer, length, inner, block, 0.3);
    return status ? status : j.most < 0x7f800000;
}

int qk_decode(const uint8_t *q, float *y, const qk_codebook *c, size_t outer, size_t length, size_t inner, size_t block,
              const float *scale)
{
    QK_DEFAULT_MODE;
    job j = {.c = c, .codes = (uint8_t *)q, .y = y, .scales = (float *)scale};
    return run(&j, outer, length, inner, block, 0.2);
}

static void look_at_codes(void *context, size_t begin, size_t end)
{
    job *j = context;
    const size_t start = begin * PIECE, n = min_size(j->length - start, (end - begin) * PIECE);
    qk_keep_most(&j->most, qk_active()->codebooks->largest_code(j->codes + start, n));
}

int qk_largest_code(const uint8_t *q, size_t n)
{
    QK_DEFAULT_MODE;
    job j = {.codes = (uint8_t *)q, .length = n};
    const int status = qk_parallel_for(ceil_div(n, PIECE), 0.03 * (double)n, look_at_codes, &j);
    return status ? status : j.most;
}

/* ---- stochastic codes (numerics 27) ---- */

static qk_moves moves_of(const qk_moved_codes *m, size_t channel, size_t step)
{
    const size_t at = channel * m->k;
    return (qk_moves){m->k, step, m->level + at, m->per_distance + 2 * at, m->next + 2 * at};
}

static void take_factors(void *context, size_t begin, size_t end)
{
    qk_moved_codes *m = context;
    for (size_t i = begin * PIECE; i < min_size(end * PIECE, m->scales); i++)
        m->factor[i] = 1.0f / (m->scale[i] > FLT_MIN ? m->scale[i] : FLT_MIN);
}

/* Values of float32 in the units of their blocks. */
static void take_units(const qk_moved_codes *m, size_t first, float *v, size_t n)
{
    const qk_elementwise_kernels *k = qk_active()->elementwise;
    const float *x = (const float *)m->x + first;
    const size_t blocks = ceil_div(m->length, m->block);
    for (size_t i = 0, count; i < n; i += count) {
        const size_t inner = (first + i) % m->inner, line = (first + i) / m->inner, at = line % m->length;
        const float *factor = m->factor + (line / m->length * blocks + at / m->block) * m->inner + inner;
        count = min_size(n - i, m->inner > 1 ? m->inner - inner : m->length - at);
        if (m->inner > 1)
            k->units_of_blocks_f32(x + i, factor, v + i, count, 0, 1);
        else
            k->units_of_blocks_f32(x + i, factor, v + i, count, at % m->block, m->block);
    }
}

static void move_f64(const qk_moved_codes *m, size_t first, const uint16_t *u, size_t n, const qk_moves *moves)
{
    const double *x = (const double *)m->x + first;
    uint8_t *codes = m->codes + first;
    for (size_t i = 0; i < n; i++) codes[i] = qk_moved_code(moves, i, x[i], codes[i], u[i]);
}

static void move_items(void *context, size_t begin, size_t end)
{
    const qk_moved_codes *m = context;
    const qk_elementwise_kernels *k = qk_active()->elementwise;
    const int each = m->channels > 1 && m->inner == 1; /* has tables of its own */
    uint16_t u[QK_RANDOM];
    float v[QK_RANDOM];
    for (size_t first = begin * QK_RANDOM; begin < end; begin++, first += QK_RANDOM) {
        const size_t n = min_size(m->total - first, QK_RANDOM);
        k->random_16(first, m->seed, u, n);
        if (m->scale) take_units(m, first, v, n);
        for (size_t i = 0, count; i < n; i += count) {
            const size_t at = first + i, channel = m->channels > 1 ? at / m->inner % m->length : 0;
            const qk_moves moves = moves_of(m, channel, each);
            count = each ? m->length - channel : m->channels > 1 ? m->inner - at % m->inner : n;
            count = min_size(count, n - i);
            if (m->dtype == QK_F64)
                move_f64(m, at, u + i, count, &moves);
            else
                k->move_codes_f32(m->scale ? v + i : (const float *)m->x + at, u + i, m->codes + at, count, &moves);
        }
    }
}

int qk_move_codes(qk_moved_codes *m)
{
    QK_DEFAULT_MODE;
    const int status = qk_parallel_for(ceil_div(m->scales, PIECE), (double)m->scales, take_factors, m);
    return status ? status : qk_parallel_for(ceil_div(m->total, QK_RANDOM), 0.5 * (double)m->total, move_items, m);
}
