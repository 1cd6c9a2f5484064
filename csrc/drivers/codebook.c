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

/* Whether x leaves the level that is nearest to it for one beside it. */
static uint8_t moved_code(const qk_moved_codes *m, double x, uint8_t code, size_t channel, uint16_t u)
{
    const float *level = m->level + channel * m->k;
    const double rest = x - level[code];
    const uint8_t to = (rest > 0 ? m->above : m->below)[channel * m->k + code];
    if (to == code || rest == 0) return code;
    return u < 65536 * (rest / ((double)level[to] - level[code])) - 0.5 ? to : code;
}

static void move_items(void *context, size_t begin, size_t end)
{
    const qk_moved_codes *m = context;
    const size_t blocks = m->scale ? ceil_div(m->length, m->block) : 0;
    uint16_t u[QK_RANDOM];
    for (size_t first = begin * QK_RANDOM; begin < end; begin++, first += QK_RANDOM) {
        const size_t n = min_size(m->total - first, QK_RANDOM);
        size_t inner = first % m->inner, at = first / m->inner % m->length, outer = first / m->inner / m->length;
        qk_active()->elementwise->random_16(first, m->seed, u, n);
        for (size_t i = 0; i < n; i++) {
            double x = m->dtype == QK_F64 ? ((const double *)m->x)[first + i] : ((const float *)m->x)[first + i];
            if (m->scale) {
                const float scale = m->scale[(outer * blocks + at / m->block) * m->inner + inner];
                x = (float)x * (1.0f / (scale > FLT_MIN ? scale : FLT_MIN));
            }
            m->codes[first + i] = moved_code(m, x, m->codes[first + i], m->channels > 1 ? at : 0, u[i]);
            if (++inner == m->inner) inner = 0, at++;
            if (at == m->length) at = 0, outer++;
        }
    }
}

int qk_move_codes(qk_moved_codes *m)
{
    QK_DEFAULT_MODE;
    return qk_parallel_for(ceil_div(m->total, QK_RANDOM), 4.0 * (double)m->total, move_items, m);
}
