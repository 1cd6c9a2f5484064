/* Lloyd's k-means in d dimensions (numerics 14): which chunk of points goes to which thread. Sums are those of chunks, merged in
 * their order, so that they do not depend on the number of threads. */
#include <math.h>
#include <stdlib.h>

#include "blocking.h"
#include "kernels.h"
#include "parallel.h"

typedef struct {
    const qk_kmeans *args;
    const qk_kernels *k;
    size_t first;                  /* chunk */
    size_t changed;
    int failed;
    const void *seeds;             /* of qk_kmeans_seed */
    size_t count;
    int update;
    void *nearest;
    double *sums;                  /* one or `count` a chunk */
} kmeans_job;

/* Memory of one thread; NULL where there is none. */
static void *scratch_of(const qk_kmeans *p, qk_kmeans_scratch *s)
{
    const size_t tile = round_up(p->d * QK_KMEANS_TILE * sizeof(double), 64), list = round_up(p->chunk * sizeof *s->list, 64);
    char *memory = aligned_alloc(64, round_up(tile + 2 * list + (p->k + 1) * sizeof *s->starts, 64));
    s->tile = memory;
    s->list = (int32_t *)(memory + tile);
    s->sorted = (int32_t *)(memory + tile + list);
    s->starts = (int32_t *)(memory + tile + 2 * list);
    return memory;
}

/* Runs body on items, with the time in nanoseconds of one. */
static int run(kmeans_job *job, size_t items, double each, void (*body)(void *, size_t, size_t))
{
    job->k = qk_active();
    qk_parallel_for(items, each * (double)items, body, job);
    return !job->failed;
}

static void assign_chunks(void *context, size_t begin, size_t end)
{
    kmeans_job *job = context;
    const qk_kmeans *p = job->args;
    qk_kmeans_scratch s;
    size_t changed = 0;
    void *memory = scratch_of(p, &s);
    if (!memory) {
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (size_t chunk = job->first + begin; chunk < job->first + end; chunk++)
        changed += (p->type == QK_F32 ? job->k->kmeans_chunk_f32 : job->k->kmeans_chunk_f64)(p, chunk, &s);
    __atomic_fetch_add(&job->changed, changed, __ATOMIC_RELAXED);
    free(memory);
}

int qk_kmeans_assign(const qk_kmeans *p, size_t first, size_t last, size_t *changed)
{
    kmeans_job job = {.args = p, .first = first};
    const int done = run(&job, last - first, (double)p->chunk * (double)p->k * (double)(p->d + 4) / 60, assign_chunks);
    *changed = job.changed;
    return done;
}

static void distance_rows(void *context, size_t begin, size_t end)
{
    kmeans_job *job = context;
    const qk_kmeans *p = job->args;
    void *tile = aligned_alloc(64, round_up(p->d * QK_KMEANS_TILE * sizeof(double), 64));
    if (!tile) {
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (size_t a = begin; a < end; a++) {
        if (p->type == QK_F32)
            job->k->kmeans_row_f32(p, a, tile);
        else
            job->k->kmeans_row_f64(p, a, tile);
    }
    free(tile);
}

int qk_kmeans_distances(const qk_kmeans *p)
{
    kmeans_job job = {.args = p};
    return run(&job, p->k, (double)p->k * (double)(p->d + 20) / 10, distance_rows);
}

static void seed_chunks(void *context, size_t begin, size_t end)
{
    kmeans_job *job = context;
    const qk_kmeans *p = job->args;
    void *tile = aligned_alloc(64, round_up(p->d * QK_KMEANS_TILE * sizeof(double), 64));
    if (!tile) {
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (size_t chunk = begin; chunk < end; chunk++) {
        if (p->type == QK_F32)
            job->k->kmeans_potential_f32(p, chunk, job->seeds, job->count, job->update, job->nearest, tile, job->sums + chunk * job->count);
        else
            job->k->kmeans_potential_f64(p, chunk, job->seeds, job->count, job->update, job->nearest, tile, job->sums + chunk * job->count);
    }
    free(tile);
}

int qk_kmeans_seed(const qk_kmeans *p, const void *seeds, size_t count, int update, void *nearest, double *potential)
{
    kmeans_job job = {.args = p, .seeds = seeds, .count = count, .update = update, .nearest = nearest, .sums = potential};
    return run(&job, ceil_div(p->n, p->chunk), (double)p->chunk * (double)(count + 2) * (double)(p->d + 4) / 20, seed_chunks);
}

/* Exact differences, in double. */
static double squared_error(const qk_kmeans *p, size_t i)
{
    const size_t at = i * p->d, centroid = (size_t)p->labels[i] * p->d;
    double sum = 0;
    for (size_t f = 0; f < p->d; f++) {
        const double difference = p->type == QK_F32 ? (double)((const float *)p->x)[at + f] - (double)((const float *)p->centroids)[centroid + f]
                                                    : ((const double *)p->x)[at + f] - ((const double *)p->centroids)[centroid + f];
        sum += difference * difference;
    }
    return p->weight ? p->weight[i] * sum : sum;
}

static void error_chunks(void *context, size_t begin, size_t end)
{
    kmeans_job *job = context;
    const qk_kmeans *p = job->args;
    for (size_t chunk = begin; chunk < end; chunk++) {
        double sum = 0;
        for (size_t i = chunk * p->chunk; i < at_most((chunk + 1) * p->chunk, p->n); i++) {
            const double error = squared_error(p, i);
            if (job->nearest) ((double *)job->nearest)[i] = error;
            sum += error;
        }
        job->sums[chunk] = sum;
    }
}

void qk_kmeans_errors(const qk_kmeans *p, double *errors, double *inertia)
{
    kmeans_job job = {.args = p, .nearest = errors, .sums = inertia};
    run(&job, ceil_div(p->n, p->chunk), (double)p->chunk * (double)(p->d + 1), error_chunks);
}
