/* Drivers of GGUF's block layouts: the kernel of each, and threads. */
#include "drivers/drivers.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

enum { BLOCK = 32, PIECE = 1024 }; /* values of a block; blocks that a thread takes at a time */

static size_t bytes_of(qk_gguf_type type) { return type == QK_Q8_0 ? 2 + BLOCK : 2 + BLOCK / 2; }

typedef struct {
    const float *x;
    float *y;
    const uint8_t *from;
    uint8_t *to;
    size_t blocks;
    qk_gguf_type type;
    int32_t most;
} job;

static void write_pieces(void *context, size_t begin, size_t end)
{
    job *j = context;
    const qk_codebooks_kernels *k = qk_active()->codebooks;
    for (size_t start = begin * PIECE; begin < end; begin++, start += PIECE) {
        const float *x = j->x + start * BLOCK;
        uint8_t *to = j->to + start * bytes_of(j->type);
        const size_t n = min_size(j->blocks - start, PIECE);
        const int32_t most = j->type == QK_Q8_0 ? k->to_q8_0(x, to, n) : k->to_q4_0(x, to, n);
        qk_keep_most(&j->most, most);
    }
}

static void read_pieces(void *context, size_t begin, size_t end)
{
    job *j = context;
    const qk_codebooks_kernels *k = qk_active()->codebooks;
    const size_t start = begin * PIECE, n = min_size(j->blocks - start, (end - begin) * PIECE);
    const uint8_t *from = j->from + start * bytes_of(j->type);
    float *y = j->y + start * BLOCK;
    if (j->type == QK_Q8_0)
        k->from_q8_0(from, y, n);
    else
        k->from_q4_0(from, y, n);
}

int32_t qk_to_gguf(const float *x, uint8_t *data, size_t blocks, qk_gguf_type type)
{
    QK_DEFAULT_MODE;
    job j = {.x = x, .to = data, .blocks = blocks, .type = type};
    const int status = qk_parallel_for(ceil_div(blocks, PIECE), 15.0 * (double)blocks, write_pieces, &j);
    return status ? status : j.most;
}

int qk_from_gguf(const uint8_t *data, float *y, size_t blocks, qk_gguf_type type)
{
    QK_DEFAULT_MODE;
    job j = {.from = data, .y = y, .blocks = blocks, .type = type};
    return qk_parallel_for(ceil_div(blocks, PIECE), 8.0 * (double)blocks, read_pieces, &j);
}
