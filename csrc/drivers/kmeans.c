/* Lloyd's k-means in d dimensions (numerics 14): which chunk of points goes to which thread. Sums are those of chunks,
 * merged in their order, so that they do not depend on the number of threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

int32_t qk_nearest_f32(const float *x, const float *centroids, size_t k, size_t d, int32_t found)
{
    if (!memcmp(x, centroids + (size_t)found * d, d * sizeof *x)) return found;
    double least = INFINITY;
    for (size_t j = 0; j < k; j++) {
        double sum = 0;
        for (size_t f = 0; f < d; f++) {
            const double t = (double)x[f] - (double)centroids[j * d + f];
            sum += t * t;
        }
        if (sum < least) least = sum, found = (int32_t)j;
    }
    return found;
}

/* Squared distance as mantissa in [1/2, 1), or 0, and exponent. */
static double scaled_distance(const double *x, const double *c, size_t d, int *exponent)
{
    double largest = 0, sum = 0;
    int e, more;
    for (size_t f = 0; f < d; f++) largest = fmax(largest, fabs(x[f] - c[f]));
    frexp(largest, &e);
    const double unit = ldexp(1, e < -1022 ? 1022 : -e);
    for (size_t f = 0; f < d; f++) sum += (x[f] - c[f]) * unit * ((x[f] - c[f]) * unit);
    sum = frexp(sum, &more);
    *exponent = largest > 0 ? 2 * (e < -1022 ? -1022 : e) + more : INT32_MIN;
    return sum;
}

int32_t qk_nearest_f64(const double *x, const double *centroids, size_t k, size_t d, int32_t found)
{
    if (!memcmp(x, centroids + (size_t)found * d, d * sizeof *x)) return found;
    double least = INFINITY;
    int of_least = INT32_MAX, exponent;
    for (size_t j = 0; j < k; j++) {
        const double sum = scaled_distance(x, centroids + j * d, d, &exponent);
        if (exponent < of_least || (exponent == of_least && sum < least))
            least = sum, of_least = exponent, found = (int32_t)j;
    }
    return found;
}

typedef struct {
    const qk_kmeans *args;
    const qk_kmeans_kernels *k;
    size_t first; /* chunk */
    qk_kmeans_counts *counts;
    int failed;
    const void *seeds; /* of qk_kmeans_seed */
    size_t count;
    int update;
    void *nearest;
    double *sums; /* one or `count` a chunk */
} kmeans_job;

/* Lays out the memory of one thread from `at`; returns the end. */
static char *lay_out(const qk_kmeans *p, qk_kmeans_scratch *s, char *at)
{
    s->tile = qk_carve(&at, p->d * QK_KMEANS_TILE * sizeof(double));
    s->reach = qk_carve(&at, p->k * sizeof(double));
    s->list = qk_carve(&at, (p->chunk + 1) * sizeof *s->list);
    s->sorted = qk_carve(&at, p->chunk * sizeof *s->sorted);
    s->key = qk_carve(&at, p->chunk * sizeof *s->key);
    s->ends = qk_carve(&at, (QK_KMEANS_BINS * p->k + 1) * sizeof *s->ends);
    s->all = qk_carve(&at, (p->k + 16) * sizeof *s->all);
    s->near = qk_carve(&at, (p->k + 16) * sizeof *s->near);
    return at;
}

/* Memory, or NULL and a note of it. */
static void *obtain(kmeans_job *job, size_t bytes)
{
    void *memory = qk_obtain(bytes);
    if (!memory) __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
    return memory;
}

/* Runs body on items, with the time in nanoseconds of one. */
static int run(kmeans_job *job, size_t items, double each, void (*body)(void *, size_t, size_t))
{
    job->k = qk_active()->kmeans;
    const int status = qk_parallel_for(items, each * (double)items, body, job);
    return status ? status : !job->failed;
}

static void assign_chunks(void *context, size_t begin, size_t end)
{
    kmeans_job *job = context;
    const qk_kmeans *p = job->args;
    qk_kmeans_scratch s;
    qk_kmeans_counts counts = {0};
    char *memory = obtain(job, (size_t)(lay_out(p, &s, (char *)64) - (char *)64));
    if (!memory) return;
    lay_out(p, &s, memory);
    s.stopped = qk_stopped;
    for (size_t j = 0; j < p->k + 16; j++) s.all[j] = (int32_t)min_size(j, p->k);
    for (size_t chunk = job->first + begin; chunk < job->first + end; chunk++) {
        if (p->type == QK_F32)
            job->k->kmeans_chunk_f32(p, chunk, &s, &counts);
        else
            job->k->kmeans_chunk_f64(p, chunk, &s, &counts);
    }
    __atomic_fetch_add(&job->counts->changed, counts.changed, __ATOMIC_RELAXED);
    __atomic_fetch_add(&job->counts->by_label, counts.by_label, __ATOMIC_RELAXED);
    qk_release(memory);
}

int qk_kmeans_assign(const qk_kmeans *p, size_t first, size_t last, qk_kmeans_counts *counts)
{
    QK_DEFAULT_MODE;
    kmeans_job job = {.args = p, .first = first, .counts = counts};
    const double each =
        (double)(p->k + 3) * (double)(p->d + 4) / 60 + (double)(p->d + 8) / 4; /* with bounds and sums */
    return run(&job, last - first, (double)p->chunk * each, assign_chunks);
}

static void distance_rows(void *context, size_t begin, size_t end)
{
    kmeans_job *job = context;
    const qk_kmeans *p = job->args;
    void *columns = obtain(job, qk_times(qk_times(p->d, p->k), sizeof(double)));
    if (!columns) return;
    if (p->type == QK_F32)
        job->k->kmeans_distances_f32(p, begin, end, columns);
    else
        job->k->kmeans_distances_f64(p, begin, end, columns);
    qk_release(columns);
}

int qk_kmeans_distances(const qk_kmeans *p)
{
    QK_DEFAULT_MODE;
    kmeans_job job = {.args = p};
    return run(&job, p->k, (double)p->k * (double)(p->d + 4) / 10, distance_rows);
}

static void seed_chunks(void *context, size_t begin, size_t end)
{
    kmeans_job *job = context;
    const qk_kmeans *p = job->args;
    double *tile = obtain(job, qk_times(p->d + job->count, QK_KMEANS_TILE * sizeof *tile)),
           *lanes = tile + p->d * QK_KMEANS_TILE;
    if (!tile) return;
    for (size_t chunk = begin; chunk < end; chunk++) {
        double *potential = job->sums + chunk * job->count;
        if (p->type == QK_F32)
            job->k->kmeans_potential_f32(p, chunk, job->seeds, job->count, job->update, job->nearest, (float *)tile,
                                         lanes, potential);
        else
            job->k->kmeans_potential_f64(p, chunk, job->seeds, job->count, job->update, job->nearest, tile, lanes,
                                         potential);
    }
    qk_release(tile);
}

int qk_kmeans_seed(const qk_kmeans *p, const void *seeds, size_t count, int update, void *nearest, double *potential)
{
    QK_DEFAULT_MODE;
    kmeans_job job = {
        .args = p, .seeds = seeds, .count = count, .update = update, .nearest = nearest, .sums = potential};
    return run(&job, ceil_div(p->n, p->chunk), (double)p->chunk * (double)(count + 2) * (double)(p->d + 4) / 20,
               seed_chunks);
}

static void error_chunks(void *context, size_t begin, size_t end)
{
    kmeans_job *job = context;
    const qk_kmeans *p = job->args;
    for (size_t chunk = begin; chunk < end; chunk++)
        job->sums[chunk] =
            (p->type == QK_F32 ? job->k->kmeans_errors_f32 : job->k->kmeans_errors_f64)(p, chunk, job->nearest);
}

int qk_kmeans_errors(const qk_kmeans *p, double *errors, double *sums)
{
    QK_DEFAULT_MODE;
    kmeans_job job = {.args = p, .nearest = errors, .sums = sums};
    return run(&job, ceil_div(p->n, p->chunk), (double)p->chunk * (double)(p->d + 8) / 4, error_chunks);
}
