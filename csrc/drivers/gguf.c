/* Drivers of GGUF's block layouts: the kernel of each, and threads. */
#include "drivers/drivers.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

enum {
    BLOCK = 32,   /* values of a block that is written */
    PIECE = 1024, /* blocks of each that a thread takes at a time */
    SEARCHED = 8  /* those whose scales are searched for */
};

typedef struct {
    const float *x;
    uint8_t *to;
    size_t blocks;
    qk_gguf_type type;
    int32_t most;
} write_job;

typedef struct {
    const uint8_t *from;
    float *y;
    int8_t *q;
    float *scale;
    size_t blocks;
    qk_gguf_type type;
} read_job;

static void write_pieces(void *context, size_t begin, size_t end)
{
    write_job *j = context;
    const qk_codebooks_kernels *k = qk_active()->codebooks;
    for (size_t start = begin * PIECE; begin < end; begin++, start += PIECE) {
        const float *x = j->x + start * BLOCK;
        uint8_t *to = j->to + start * (size_t)qk_gguf_layouts[j->type].bytes;
        const size_t n = min_size(j->blocks - start, PIECE);
        const int32_t most = j->type == QK_Q8_0 ? k->to_q8_0(x, to, n) : k->to_q4_0(x, to, n);
        qk_keep_most(&j->most, most);
    }
}

/* Pieces of as many values, whatever the kind. */
static size_t piece_of(const qk_gguf_layout *k) { return PIECE * BLOCK / (size_t)k->values; }

static void read_pieces(void *context, size_t begin, size_t end)
{
    const read_job *j = context;
    const qk_gguf_layout *k = &qk_gguf_layouts[j->type];
    const size_t piece = piece_of(k), start = begin * piece, n = min_size(j->blocks - start, (end - begin) * piece);
    const size_t values = start * (size_t)k->values;
    const uint8_t *from = j->from + start * (size_t)k->bytes;
    if (j->y)
        qk_active()->codebooks->from_gguf(from, j->y + values, NULL, NULL, n, j->type);
    else
        qk_active()->codebooks->from_gguf(from, NULL, j->q + values, j->scale + values / (size_t)k->group, n, j->type);
}

int32_t qk_to_gguf(const float *x, uint8_t *data, size_t blocks, qk_gguf_type type)
{
    QK_DEFAULT_MODE;
    write_job j = {.x = x, .to = data, .blocks = blocks, .type = type};
    const int status = qk_parallel_for(ceil_div(blocks, PIECE), 15.0 * (double)blocks, write_pieces, &j);
    return status ? status : j.most;
}

int qk_from_gguf(const uint8_t *data, float *y, int8_t *q, float *scale, size_t blocks, qk_gguf_type type)
{
    QK_DEFAULT_MODE;
    const qk_gguf_layout *k = &qk_gguf_layouts[type];
    read_job j = {.from = data, .y = y, .q = q, .scale = scale, .blocks = blocks, .type = type};
    const double cost = 0.25 * (double)blocks * k->values;
    return qk_parallel_for(ceil_div(blocks, piece_of(k)), cost, read_pieces, &j);
}

typedef struct {
    const float *x, *w;
    size_t blocks;
    qk_gguf_type type;
    float *factors;
    int8_t *integers;
    uint8_t *codes;
} search_job;

static void search_pieces(void *context, size_t begin, size_t end)
{
    const search_job *j = context;
    const size_t first = begin * SEARCHED, n = min_size(j->blocks - first, (end - begin) * SEARCHED);
    const size_t values = (size_t)qk_gguf_layouts[j->type].values;
    const size_t groups = values / (size_t)qk_gguf_layouts[j->type].group;
    qk_active()->codebooks->search_k(j->x + first * values, j->w ? j->w + first * values : NULL, n, j->type,
                                     j->factors + 2 * first, j->integers + 2 * first * groups,
                                     j->codes + first * values);
}

int qk_search_k(const float *x, const float *w, size_t blocks, qk_gguf_type type, float *factors, int8_t *integers,
                uint8_t *codes)
{
    QK_DEFAULT_MODE;
    search_job j = {x, w, blocks, type, factors, integers, codes};
    return qk_parallel_for(ceil_div(blocks, SEARCHED), 15000.0 * (double)blocks, search_pieces, &j);
}
