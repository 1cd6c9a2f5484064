/* The loops of codebooks (codebook.c, numerics 15), compiled once per instruction set, after layers.h.
 *
 * At most 16 levels fit a register or two. An instruction set that looks them up there defines HAVE_LEVELS16 and,
 * before this, encode16 and decode16 for GROUP16 values at a time, and magnitudes4 for blocks. More levels are found
 * through a table of buckets. */
#ifndef QK_GENERIC_CODEBOOK_H
#define QK_GENERIC_CODEBOOK_H

#include "kernels/generic/elementwise.h"
#include "kernels/generic/layers.h"
#include "kernels/generic/target.h"
#include "kernels/kernels.h"

enum { BUCKETED = 256, SEARCHED = 64 }; /* values at a time: their intermediate results stay in the L1 cache */

/* The value as an unsigned integer: ordered as values are, -0.0 just below 0.0. */
static inline uint32_t ordered_bits(int32_t bits) { return (uint32_t)bits ^ (uint32_t)(bits >> 31 | INT32_MIN); }

/* Without gathers: plain loads, an addition and a shift for each value. The carry of the addition is the comparison
 * with a threshold of the bucket. `pairs` is a constant where this is inlined: buckets have a second threshold. */
static inline void encode_buckets(const float *restrict x, uint8_t *restrict q, size_t n, float factor,
                                  const qk_levels *t, int pairs)
{
    const uint64_t *restrict bucket = t->bucket, *restrict second = t->second;
    const int32_t least = t->least, last = t->last;
    const int shift = t->shift;
    uint32_t value[BUCKETED], which[BUCKETED];
    for (size_t count; n > 0; x += count, q += count, n -= count) {
        count = n < BUCKETED ? n : BUCKETED;
        for (size_t i = 0; i < count; i++) {
            const int32_t bits = bits_of(x[i] * factor), above = (bits & INT32_MAX) - least;
            const int32_t step = (above > 0 ? above : 0) >> shift, side = bits >> 31 & (last + 1);
            value[i] = ordered_bits(bits);
            which[i] = (uint32_t)((step < last ? step : last) + side);
        }
        for (size_t i = 0; i < count; i++) {
            const uint64_t rank = (bucket[which[i]] + value[i]) >> 32;
            q[i] = (uint8_t)(pairs ? rank + ((second[which[i]] + value[i]) >> 32) : rank);
        }
    }
}

static void encode_by_buckets(const float *x, uint8_t *q, size_t n, float factor, const qk_levels *t)
{
    if (t->second)
        encode_buckets(x, q, n, factor, t, 1);
    else
        encode_buckets(x, q, n, factor, t, 0);
}

/* Level by level of the tree, so that the compiler can take several values at a time. */
static void encode_by_search(const float *restrict x, uint8_t *restrict q, size_t n, float factor, const qk_levels *t)
{
    const float *restrict node = t->node;
    const int depth = t->depth;
    float value[SEARCHED];
    uint32_t at[SEARCHED];
    for (size_t count; n > 0; x += count, q += count, n -= count) {
        count = n < SEARCHED ? n : SEARCHED;
        for (size_t i = 0; i < count; i++) value[i] = x[i] * factor, at[i] = 1;
        for (int d = 0; d < depth; d++)
            for (size_t i = 0; i < count; i++) at[i] = 2 * at[i] + (value[i] > node[at[i]]);
        for (size_t i = 0; i < count; i++) q[i] = (uint8_t)(at[i] - (1u << depth));
    }
}

#ifdef HAVE_LEVELS16
static void encode_16_levels(const float *x, uint8_t *q, size_t n, float factor, const qk_levels *t)
{
    const nodes16 nodes = load_nodes16(t);
    const size_t whole = n / GROUP16 * GROUP16;
    for (size_t i = 0; i < whole; i += GROUP16) encode16(x + i, q + i, factor, nodes);
    if (whole == n) return;
    float values[GROUP16] = {0};
    uint8_t codes[GROUP16];
    for (size_t i = whole; i < n; i++) values[i - whole] = x[i];
    encode16(values, codes, factor, nodes);
    for (size_t i = whole; i < n; i++) q[i] = codes[i - whole];
}
#endif

/* Codes of x * factor. */
static void encode_run(const float *x, uint8_t *q, size_t n, float factor, const qk_levels *t)
{
#ifdef HAVE_LEVELS16
    if (t->depth == 4) {
        encode_16_levels(x, q, n, factor, t);
        return;
    }
#endif
    if (t->bucket)
        encode_by_buckets(x, q, n, factor, t);
    else
        encode_by_search(x, q, n, factor, t);
    if (!t->in_order)
        for (size_t i = 0; i < n; i++) q[i] = t->order[q[i]];
}

/* Of the bits of the largest magnitude: 1 over it, or over FLT_MIN where it is smaller. */
static inline float normalizer(int32_t magnitude)
{
    return 1.0f / float_of(magnitude > 0x00800000 ? magnitude : 0x00800000);
}

#ifdef HAVE_LEVELS16
/* Four blocks at a time, whose maxima and reciprocals are found together. Short ones are normalised first and then
 * encoded at once. Returns how many values are done. */
static size_t encode_blocks(const float *x, uint8_t *q, size_t n, size_t block, float *scale, const qk_levels *t,
                            int32_t *most)
{
    const int together = t->depth == 4 ? block % GROUP16 != 0 : 1;
    size_t done = 0;
    for (; n - done >= 4 * block; done += 4 * block, scale += 4) {
        float factor[4], normal[BUCKETED];
        const int32_t magnitude = magnitudes4(x + done, block, scale, factor);
        *most = magnitude > *most ? magnitude : *most;
        if (!together || 4 * block > BUCKETED) {
            for (size_t i = 0; i < 4; i++) encode_run(x + done + i * block, q + done + i * block, block, factor[i], t);
            continue;
        }
        for (size_t i = 0; i < 4; i++)
            for (size_t j = i * block; j < (i + 1) * block; j++) normal[j] = x[done + j] * factor[i];
        encode_run(normal, q + done, 4 * block, 1.0f, t);
    }
    return done;
}
#endif

static int32_t encode_f32(const float *x, uint8_t *q, size_t n, size_t block, float *scale, const qk_levels *t)
{
    int32_t most = 0;
#ifdef HAVE_LEVELS16
    if (scale && block % 16 == 0) {
        const size_t done = encode_blocks(x, q, n, block, scale, t, &most);
        x += done, q += done, n -= done, scale += done / block;
    }
#endif
    for (size_t count; n > 0; x += count, q += count, n -= count) {
        count = n < block ? n : block;
        const int32_t magnitude = absmax_f32(x, 0, 1, count);
        float factor = 1.0f;
        if (scale) *scale++ = float_of(magnitude), factor = normalizer(magnitude);
        encode_run(x, q, count, factor, t);
        most = magnitude > most ? magnitude : most;
    }
    return most;
}

static int32_t encode_columns_f32(const float *x, uint8_t *q, size_t stride, size_t rows, size_t cols, float *scale,
                                  const qk_levels *t)
{
    int32_t magnitude[QK_CODEBOOK_COLUMNS] = {0}, most = 0;
    float factor[QK_CODEBOOK_COLUMNS], normal[QK_CODEBOOK_COLUMNS];
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) {
            const int32_t bits = bits_of(x[i * stride + j]) & INT32_MAX;
            magnitude[j] = bits > magnitude[j] ? bits : magnitude[j];
        }
    for (size_t j = 0; j < cols; j++) {
        scale[j] = float_of(magnitude[j]);
        factor[j] = normalizer(magnitude[j]);
        most = magnitude[j] > most ? magnitude[j] : most;
    }
    for (size_t i = 0; i < rows; i++, x += stride, q += stride) {
        for (size_t j = 0; j < cols; j++) normal[j] = x[j] * factor[j];
        encode_run(normal, q, cols, 1.0f, t);
    }
    return most;
}

static uint8_t largest_code(const uint8_t *q, size_t n)
{
    uint8_t most = 0;
    for (size_t i = 0; i < n; i++) most = q[i] > most ? q[i] : most;
    return most;
}

static inline float level_at(const float *level, uint64_t codes, int byte) { return level[codes >> 8 * byte & 255]; }

/* Eight codes are one load; the levels of each are another, which is faster than a gather. Returns how many are done.
 */
static QK_INLINE size_t decode_eights(const uint8_t *restrict q, float *restrict y, size_t n, float scale,
                                      const float *restrict level, const uint64_t masks)
{
    size_t i = 0;
    for (; n - i >= 8; i += 8) {
        uint64_t codes;
        memcpy(&codes, q + i, sizeof codes);
        codes &= masks;
        const float v[8] = {level_at(level, codes, 0), level_at(level, codes, 1), level_at(level, codes, 2),
                            level_at(level, codes, 3), level_at(level, codes, 4), level_at(level, codes, 5),
                            level_at(level, codes, 6), level_at(level, codes, 7)};
        for (int j = 0; j < 8; j++) y[i + j] = v[j] * scale;
    }
    return i;
}

/* Codes are cut to the size of the table: those that another thread has changed since they were looked at stay within
 * it. */
static void decode_run(const uint8_t *restrict q, float *restrict y, size_t n, float scale, const qk_levels *t)
{
    const float *restrict level = t->level;
    const uint64_t mask = ((uint64_t)1 << t->depth) - 1;
    size_t i = 0;
#ifdef HAVE_LEVELS16
    if (t->depth == 4) {
        const levels16 levels = load_levels16(t);
        for (; n - i >= GROUP16; i += GROUP16) decode16(q + i, y + i, scale, levels);
    }
#endif
    i += t->depth == 8 ? decode_eights(q + i, y + i, n - i, scale, level, UINT64_MAX)
                       : decode_eights(q + i, y + i, n - i, scale, level, mask * 0x0101010101010101);
    for (; i < n; i++) y[i] = level[q[i] & mask] * scale;
}

#ifdef HAVE_LEVELS16
/* Whole blocks of whole groups, without a call for each. Returns how many values are done. */
static size_t decode_blocks(const uint8_t *q, float *y, size_t n, size_t block, const float *scale, const qk_levels *t)
{
    const levels16 levels = load_levels16(t);
    size_t done = 0;
    for (; n - done >= block; scale++)
        for (const size_t end = done + block; done < end; done += GROUP16) decode16(q + done, y + done, *scale, levels);
    return done;
}
#endif

static void decode_f32(const uint8_t *q, float *y, size_t n, size_t block, const float *scale, const qk_levels *t)
{
#ifdef HAVE_LEVELS16
    if (scale && t->depth == 4 && block % GROUP16 == 0) {
        const size_t done = decode_blocks(q, y, n, block, scale, t);
        q += done, y += done, n -= done, scale += done / block;
    }
#endif
    for (size_t count; n > 0; q += count, y += count, n -= count) {
        count = n < block ? n : block;
        decode_run(q, y, count, scale ? *scale++ : 1.0f, t);
    }
}

/* Columns with a table each. */
static void decode_channels_f32(const uint8_t *restrict q, float *restrict y, size_t n, const qk_levels *t)
{
    const float *restrict level = t->level;
    const int depth = t->depth;
    const size_t mask = ((size_t)1 << depth) - 1;
    for (size_t i = 0; i < n; i++) y[i] = level[(i << depth) + (q[i] & mask)];
}

static void decode_columns_f32(const uint8_t *q, float *y, size_t stride, size_t rows, size_t cols, const float *scale,
                               const qk_levels *t)
{
    for (size_t i = 0; i < rows; i++, q += stride, y += stride) {
        decode_run(q, y, cols, 1.0f, t);
        for (size_t j = 0; j < cols; j++) y[j] *= scale[j];
    }
}

#endif
