/* The tables by which values are looked up, from levels alone, and the C interface to codebooks (numerics 15). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "runtime/fpmode.h"
#include "runtime/sizes.h"

enum { LEAST_DEPTH = 4 };

struct qk_book {
    qk_codebook tables;
    size_t k;
    float *level, *node; /* of each channel 2^depth */
    uint8_t *order;
};

/* Ranks of k levels, ascending: the code of each, the lowest one of equal levels. */
static void rank(const float *levels, size_t k, uint8_t *order)
{
    for (size_t i = 0; i < k; i++) {
        size_t at = i;
        for (; at > 0 && levels[order[at - 1]] > levels[i]; at--) order[at] = order[at - 1];
        order[at] = (uint8_t)i;
    }
    for (size_t i = 1; i < k; i++)
        if (levels[order[i]] == levels[order[i - 1]]) order[i] = order[i - 1];
}

/* The largest float that is nearer to `low` than to `high`, or as near and ties go down. Half of the sum, in double, is
 * what total and rest are together: exactly so. */
static float threshold(double low, double high, int ties_go_up)
{
    const double total = low + high, part = total - low;
    const double rest = (low - (total - part)) + (high - part), middle = total / 2;
    const float near = (float)middle;
    const int beyond = near > middle || (near == middle && (rest < 0 || (rest == 0 && ties_go_up)));
    return (beyond ? nextafterf(near, -INFINITY) : near) + 0.0f;
}

/* Node i of a binary tree over 2^depth - 1 thresholds, of which k - 1 are finite. */
static void fill_tree(const float *thresholds, size_t k, int depth, float *node)
{
    node[0] = k > 1 ? thresholds[0] : INFINITY;
    for (int row = 0; row < depth; row++) {
        const size_t first = (size_t)1 << row, step = (size_t)1 << (depth - row);
        for (size_t i = 0; i < first; i++) {
            const size_t at = i * step + step / 2 - 1;
            node[first + i] = at + 1 < k ? thresholds[at] : INFINITY;
        }
    }
}

static void fill_channel(qk_book *book, const float *levels, size_t channel)
{
    const size_t k = book->k, skip = channel << book->tables.first.depth;
    float thresholds[QK_MAX_LEVELS];
    uint8_t *order = book->order + skip;
    rank(levels, k, order);
    for (size_t i = 1; i < k; i++)
        thresholds[i - 1] = threshold(levels[order[i - 1]], levels[order[i]], order[i - 1] > order[i]);
    fill_tree(thresholds, k, book->tables.first.depth, book->node + skip);
    for (size_t i = 0; i < k; i++) book->level[skip + i] = levels[i] + 0.0f; /* -0 is 0 */
    for (size_t i = 0; i < k; i++) book->tables.first.in_order &= order[i] == i;
}

static int all_are_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

static qk_book *allocate(size_t channels, size_t k)
{
    int depth = LEAST_DEPTH;
    while ((size_t)1 << depth < k) depth++;
    const size_t entries = qk_times(channels, (size_t)1 << depth);
    qk_book *book = calloc(1, sizeof *book);
    if (!book) return NULL;
    book->k = k;
    book->level = calloc(entries, sizeof *book->level);
    book->node = calloc(entries, sizeof *book->node);
    book->order = calloc(entries, 1);
    if (!book->level || !book->node || !book->order) {
        qk_book_free(book);
        return NULL;
    }
    const qk_levels first = {
        .depth = depth, .in_order = 1, .level = book->level, .node = book->node, .order = book->order};
    book->tables = (qk_codebook){channels, first};
    return book;
}

qk_status qk_book_new(const float *levels, size_t channels, size_t k, qk_book **book)
{
    QK_DEFAULT_MODE;
    if (!levels || !book || !channels || !k || k > QK_MAX_LEVELS || channels > PTRDIFF_MAX / sizeof *levels / k)
        return QK_INVALID;
    if (!all_are_finite(levels, channels * k)) return QK_NOT_FINITE;
    qk_book *made = allocate(channels, k);
    if (!made) return QK_NO_MEMORY;
    for (size_t channel = 0; channel < channels; channel++) fill_channel(made, levels + channel * k, channel);
    *book = made;
    return QK_OK;
}

qk_codebook qk_book_tables(const qk_book *book) { return book->tables; }

void qk_book_free(qk_book *book)
{
    if (!book) return;
    free(book->level), free(book->node), free(book->order), free(book);
}

static int is_laid_out(const qk_book *book, const qk_shape *shape, const void *x, const void *codes, const float *scale)
{
    if (!book || !shape || (shape->block && book->tables.channels > 1)) return 0;
    if (book->tables.channels > 1 && shape->length != book->tables.channels) return 0;
    const size_t total = qk_times(qk_times(shape->outer, shape->length), shape->inner);
    if (total > PTRDIFF_MAX / sizeof(float) || (!shape->block && scale)) return 0;
    return total == 0 || (x && codes && (scale || !shape->block));
}

qk_status qk_book_encode(const qk_book *book, const float *x, const qk_shape *shape, uint8_t *codes, float *scale)
{
    QK_DEFAULT_MODE;
    if (!is_laid_out(book, shape, x, codes, scale)) return QK_INVALID;
    const int done = qk_encode(x, codes, &book->tables, shape->outer, shape->length, shape->inner, shape->block, scale);
    return done < 0 ? (qk_status)done : done ? QK_OK : QK_NOT_FINITE;
}

qk_status qk_book_decode(const qk_book *book, const uint8_t *codes, const qk_shape *shape, const float *scale, float *y)
{
    QK_DEFAULT_MODE;
    if (!is_laid_out(book, shape, y, codes, scale)) return QK_INVALID;
    const size_t n = shape->outer * shape->length * shape->inner;
    if (book->k < QK_MAX_LEVELS && n) {
        const int most = qk_largest_code(codes, n);
        if (most < 0) return (qk_status)most;
        if ((size_t)most >= book->k) return QK_INVALID;
    }
    return (qk_status)qk_decode(codes, y, &book->tables, shape->outer, shape->length, shape->inner, shape->block,
                                scale);
}
