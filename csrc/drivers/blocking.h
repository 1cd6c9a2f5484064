/* Sizes that the drivers share: bounds of tiles, and how rows are divided. */
#ifndef QK_BLOCKING_H
#define QK_BLOCKING_H

#include "runtime/sizes.h"

enum { MAX_NR = 64, MAX_MR = 16, MAX_KR = 4 };       /* no tile, and no step of one, is larger */
enum { A_BLOCK_BYTES = 256 * 1024, MAX_ROWS = 480 }; /* rows of a that a task takes: they stay in the L2 cache */

static inline size_t ceil_div(size_t n, size_t by) { return n / by + (n % by != 0); }
static inline size_t round_up(size_t n, size_t step) { return qk_times(ceil_div(n, step), step); }
static inline size_t min_size(size_t n, size_t limit) { return n < limit ? n : limit; }

typedef struct {
    size_t block_rows, row_blocks; /* rows of a that a task takes, and how many such blocks there are */
    size_t col_chunks;             /* parts of the panels that a task takes: 1 unless rows are few */
} blocking;

/* Blocks of m rows of `row_bytes` that fit the cache and that the threads of a team can share evenly. */
static inline blocking block_rows(size_t m, size_t row_bytes, size_t mr, size_t panels, size_t team)
{
    size_t most = A_BLOCK_BYTES / (row_bytes + 1) / mr * mr;
    most = most < mr ? mr : min_size(most, MAX_ROWS / mr * mr);
    size_t blocks = ceil_div(m, most);
    if (blocks < team && m >= team * 4 * mr) blocks = team;
    if (blocks > team / 2 && blocks % team) blocks = round_up(blocks, team);
    blocking b = {.block_rows = ceil_div(m, blocks)};
    if (b.block_rows > 8 * mr) b.block_rows = round_up(b.block_rows, mr); /* of few rows, an even share counts more */
    b.row_blocks = ceil_div(m, b.block_rows);
    b.col_chunks = b.row_blocks >= team ? 1 : min_size(team, panels);
    return b;
}

#endif
