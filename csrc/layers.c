/* Float layers around the products: layer norm, and attention by integer products (numerics 10 and 11). */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "parallel.h"

enum { MAX_NR = 64, MAX_MR = 16 };

static size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

/* ---- layer norm ---- */

typedef struct {
    const float *x, *residual, *weight, *bias;
    float *y;
    size_t cols;
    float eps;
} norm_job;

static void norm_rows(void *context, size_t begin, size_t end)
{
    const norm_job *job = context;
    const qk_kernels *k = qk_active();
    for (size_t at = begin * job->cols; begin < end; begin++, at += job->cols)
        k->layer_norm_f32(job->x + at, job->residual ? job->residual + at : NULL, job->cols, job->weight, job->bias, job->eps,
                          job->y + at);
}

void qk_layer_norm(const float *x, const float *residual, size_t rows, size_t cols, const float *weight, const float *bias,
                   float eps, float *y)
{
    norm_job job = {x, residual, weight, bias, y, cols, eps};
    qk_parallel_for(rows, 0.15 * (double)rows * (double)cols, norm_rows, &job);
}

/* ---- attention ----
 *
 * A task is one head of one sequence. Its q, k and v become int8 codes with one scale each; k and v become panels of an
 * integer product (gemm.c). Then, for mr tokens at a time, all of it in the L1 cache:
 *
 *     q (mr x size) . k' (size x n) -> scores (mr x n) -> weights, uint8 -> . v (n x size) -> out (mr x size)
 */

typedef struct {
    const qk_attention_args *args;
    const qk_kernels *k;
    int failure;
} attention_job;

/* One task's operands. Sizes in codes: of a head and of a sequence, up to whole steps (kr) and whole panels (nr). */
typedef struct {
    size_t n, size_steps, n_steps, size_cols, n_cols;
    uint8_t *codes, *rows;          /* n_steps rows of size_steps codes; q or weights as the tile reads them */
    int8_t *keys, *values;          /* panels */
    int32_t *init, *score;          /* starting sums of the scores; mr rows of n_cols */
    uint8_t *weights;
    float score_factor, value_scale;
} head;

static char *carve(char **at, size_t bytes)
{
    char *here = *at;
    *at += round_up(bytes, 64);
    return here;
}

/* Lays out the operands for a sequence of n tokens from `at`; returns the end. */
static char *lay_out(head *h, const attention_job *job, size_t n, char *at)
{
    const size_t kr = (size_t)job->k->kr, nr = (size_t)job->k->nr, mr = (size_t)job->k->mr;
    const size_t size = job->args->size, bytes = (size_t)job->k->a_bytes;
    h->n = n;
    h->size_steps = round_up(size, kr), h->n_steps = round_up(n, kr);
    h->size_cols = round_up(size, nr), h->n_cols = round_up(n, nr);
    h->codes = (uint8_t *)carve(&at, h->n_steps * h->size_steps);
    h->rows = (uint8_t *)carve(&at, (n * h->size_steps > mr * h->n_steps ? n * h->size_steps : mr * h->n_steps) * bytes);
    h->keys = (int8_t *)carve(&at, h->n_cols * h->size_steps);
    h->values = (int8_t *)carve(&at, h->size_cols * h->n_steps);
    h->init = (int32_t *)carve(&at, h->n_cols * sizeof *h->init);
    h->score = (int32_t *)carve(&at, mr * h->n_cols * sizeof *h->score);
    h->weights = (uint8_t *)carve(&at, mr * h->n_steps * bytes);
    return at;
}
