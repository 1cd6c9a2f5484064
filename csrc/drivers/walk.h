/* The loop of all products. A driver says how rows become a block that its tiles read, and how a block is multiplied
 * with panels of weights; here are blocks and threads, memory of a task, failure and signals. */
#ifndef QK_WALK_H
#define QK_WALK_H

#include "runtime/parallel.h"
#include "runtime/sizes.h"

enum {
    MAX_ROWS = 480,         /* of a block */
    QK_STRETCH = 128 * 1024 /* k of a tile between two looks for signals */
};

/* The first member of a product, which is what the two functions get. */
typedef struct {
    size_t m, panels;
    double work;        /* ns on one thread, roughly */
    size_t block_bytes; /* rows that stay in the L2 cache; 0: as much as most caches allow */
    /* Makes a block of rows in the memory of a task. Returns 0 if a value is not finite. */
    int (*take_rows)(const void *product, void *memory, size_t first, size_t rows);
    /* Multiplies that block with panels begin .. end - 1. */
    void (*multiply)(const void *product, void *memory, size_t first, size_t rows, size_t begin, size_t end);
    size_t block_rows, row_blocks; /* rows that a task takes, at most MAX_ROWS, and how many such blocks there are */
    size_t col_chunks;             /* parts of the panels that a task takes: 1 unless rows are few */
    size_t bytes;                  /* memory of a task, in whole cache lines */
    int failure;
} walk;

/* Whether a product is stopped, asked before each row of k values if these take long. */
static inline int qk_stopped_at_long(size_t k) { return k > QK_STRETCH && qk_stopped(); }

/* The time of m rows of k values and n columns, of so many products a nanosecond: as the estimate of qk_parallel_for,
 * to which rows count, too, since of few columns most of the time is theirs. */
static inline double qk_product_work(size_t m, size_t k, size_t n, double products)
{
    return (double)m * (double)k * ((double)n / products + 0.125);
}

/* Rows so far apart share a few sets of the L1 cache, which hold 8 to 12 lines each; bytes from one row to the next so
 * that they do not. */
static inline int qk_share_sets(size_t bytes) { return bytes % 2048 == 0; }
static inline size_t qk_apart(size_t bytes) { return qk_share_sets(bytes) ? qk_plus(bytes, 64) : bytes; }

/* Divides m rows, which take `row_bytes` each in the memory of a task, among tasks; tiles have mr of them at most. */
void qk_share(walk *w, size_t row_bytes, int mr);
/* Divides them among tasks that take so many rows. */
void qk_share_blocks(walk *w, size_t rows);
/* Runs a product that has been shared, its `bytes` being known. Returns 1, -1 if there is no memory, -2 if a value is
 * not finite, or QK_INTERRUPTED. */
int qk_walk(walk *w);

/* What loops over packed weights that write them out again get. */
typedef struct {
    const void *weights;
    void *to;
} unpack_job;

#endif
