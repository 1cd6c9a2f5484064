/* Drivers of codebooks (numerics 15): which values share a table and a scale, and threads. */
#include <string.h>

#include "blocking.h"
#include "kernels.h"
#include "parallel.h"

enum { PIECE = 32768 }; /* values that a thread takes at a time */
enum { CHUNK = 1024 };  /* values without scales that are looked at, for NaN, just before they are encoded */

/* Lines of neighbours, divided into blocks; or rows of columns whose blocks run down the rows. */
typedef struct {
    const qk_codebook *c;
    const float *x;
    uint8_t *codes;
    float *scales, *y;
    size_t length, block, piece, pieces; /* of a line, or of the columns */
    size_t inner, blocks;
    int32_t most;
} job;

static qk_levels levels_of(const qk_codebook *c, size_t channel)
{
    qk_levels t = c->first;
    const size_t skip = channel << t.depth;
    t.level += skip, t.node += skip, t.order += skip;
    return t;
}

static void note(job *j, int32_t magnitude)
{
    int32_t seen = __atomic_load_n(&j->most, __ATOMIC_RELAXED);
    while (magnitude > seen && !__atomic_compare_exchange_n(&j->most, &seen, magnitude, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

static void code_lines(void *context, size_t begin, size_t end)
{
    job *j = context;
    for (size_t item = begin; item < end; item++) {
        const size_t line = item / j->pieces, skip = item % j->pieces * j->piece, start = line * j->length + skip;
        const size_t n = at_most(j->length - skip, j->piece);
        const qk_levels t = levels_of(j->c, line % j->c->channels);
        float *scale = j->scales ? j->scales + line * j->blocks + skip / j->block : NULL;
        if (j->y)
            qk_active()->decode_f32(j->codes + start, j->y + start, n, j->block, scale, &t);
        else
            note(j, qk_active()->encode_f32(j->x + start, j->codes + start, n, j->block, scale, &t));
    }
}

static void code_columns(void *context, size_t begin, size_t end)
{
    job *j = context;
    for (size_t item = begin; item < end; item++) {
        const size_t part = item / j->pieces, col = item % j->pieces * j->piece, row = part % j->blocks * j->block;
        const size_t start = (part / j->blocks * j->length + row) * j->inner + col;
        const size_t rows = at_most(j->length - row, j->block), cols = at_most(j->inner - col, j->piece);
        float *scale = j->scales + part * j->inner + col;
        if (j->y)
            qk_active()->decode_columns_f32(j->codes + start, j->y + start, j->inner, rows, cols, scale, &j->c->first);
        else
            note(j, qk_active()->encode_columns_f32(j->x + start, j->codes + start, j->inner, rows, cols, scale, &j->c->first));
    }
}

static void run(job *j, size_t outer, size_t length, size_t inner, size_t block, double ns)
{
    const size_t total = outer * length * inner;
    if (total == 0) return;
    if (j->scales && inner > 1) {
        j->length = length, j->inner = inner, j->block = at_most(block, length), j->blocks = ceil_div(length, j->block);
        j->piece = QK_CODEBOOK_COLUMNS, j->pieces = ceil_div(inner, j->piece);
        qk_parallel_for(outer * j->blocks * j->pieces, ns * (double)total, code_columns, j);
        return;
    }
    size_t lines = outer;
    if (!j->scales)
        lines = j->c->channels > 1 ? outer * length : 1, length = total / lines, block = CHUNK;
    else if (length % block == 0)
        lines = 1, length = total;
    j->length = length, j->block = at_most(block, length), j->blocks = ceil_div(length, j->block);
    j->piece = j->block < PIECE ? PIECE / j->block * j->block : j->block;
    j->pieces = ceil_div(length, j->piece);
    qk_parallel_for(lines * j->pieces, ns * (double)total, code_lines, j);
}

int qk_encode(const float *x, uint8_t *q, const qk_codebook *c, size_t outer, size_t length, size_t inner, size_t block, float *scale)
{
    job j = {.c = c, .x = x, .codes = q, .scales = scale};
    run(&j, outer, length, inner, block, 0.3);
    return j.most < 0x7f800000;
}

void qk_decode(const uint8_t *q, float *y, const qk_codebook *c, size_t outer, size_t length, size_t inner, size_t block,
               const float *scale)
{
    job j = {.c = c, .codes = (uint8_t *)q, .y = y, .scales = (float *)scale};
    run(&j, outer, length, inner, block, 0.2);
}

int qk_largest_code(const uint8_t *q, size_t n)
{
    uint8_t most = 0;
    for (size_t i = 0; i < n; i++) most = q[i] > most ? q[i] : most;
    return most;
}
