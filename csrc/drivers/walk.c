#include "drivers/drivers.h"
#include "drivers/walk.h"

#include "kernels/kernels.h"
#include "runtime/parallel.h"

enum { BLOCK_BYTES = 256 * 1024, SMALL_BYTES = 24 * 1024 }; /* rows that stay in the L2 cache; memory on the stack */

void qk_share_blocks(walk *w, size_t rows)
{
    const size_t team = (size_t)qk_threads_for(SIZE_MAX, w->work);
    w->block_rows = rows, w->row_blocks = ceil_div(w->m, rows);
    w->col_chunks = w->row_blocks >= team ? 1 : min_size(team, w->panels);
}

void qk_share(walk *w, size_t row_bytes, int tile_rows)
{
    const size_t m = w->m, mr = (size_t)tile_rows, team = (size_t)qk_threads_for(SIZE_MAX, w->work);
    if (team == 1 && m <= mr) { /* whose divisions would take as long as their product */
        w->block_rows = m, w->row_blocks = w->col_chunks = 1;
        return;
    }
    size_t most = (w->block_bytes ? w->block_bytes : BLOCK_BYTES) / (row_bytes + 1) / mr * mr;
    most = most < mr ? mr : min_size(most, MAX_ROWS / mr * mr);
    size_t blocks = ceil_div(m, most);
    if (blocks < team && m >= team * 4 * mr) blocks = team;
    if (blocks > team / 2 && blocks % team) blocks = round_up(blocks, team);
    const size_t rows = ceil_div(m, blocks), even = team > 1 && rows <= 8 * mr; /* of few rows, an even share counts */
    qk_share_blocks(w, blocks > 1 && !even ? round_up(rows, mr) : rows);
}

/* All panels at once, unless the call can be stopped: then it looks for that before each panel, or, of a single row,
 * before each few that a kernel takes together. */
static void multiply(const walk *w, void *memory, size_t first, size_t rows, size_t begin, size_t end)
{
    const size_t step = !qk_stoppable() ? end - begin : rows == 1 ? QK_GEMMF16_ROW_PANELS : 1;
    for (; begin < end && !qk_stopped(); begin += step)
        w->multiply(w, memory, first, rows, begin, min_size(begin + step, end));
}

static void fail(walk *w, int code) { __atomic_store_n(&w->failure, code, __ATOMIC_RELAXED); }

static void run_tasks(void *context, size_t begin, size_t end)
{
    walk *w = context;
    char small[SMALL_BYTES] __attribute__((aligned(64)));
    void *memory = w->bytes <= sizeof small ? small : qk_obtain(w->bytes);
    if (!memory) {
        fail(w, -1);
        return;
    }
    size_t taken = SIZE_MAX; /* the first of the rows that the memory holds */
    for (size_t task = begin; task < end; task++) {
        const size_t chunks = w->col_chunks, block = qk_over(task, chunks), chunk = task - block * chunks;
        const size_t first = block * w->block_rows;
        const size_t rows = min_size(w->m - first, w->block_rows);
        if (first != taken && !w->take_rows(w, memory, first, rows)) {
            fail(w, -2);
            break;
        }
        taken = first;
        multiply(w, memory, first, rows, qk_over(w->panels * chunk, chunks), qk_over(w->panels * (chunk + 1), chunks));
    }
    if (memory != small) qk_release(memory);
}

int qk_walk(walk *w)
{
    const int status = qk_parallel_for(w->row_blocks * w->col_chunks, w->work, run_tasks, w);
    return status ? status : w->failure ? w->failure : 1;
}
