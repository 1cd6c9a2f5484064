/* AMX (Sapphire Rapids and later): tiles of 16 rows x 64 bytes; products of bytes, in blocks or not, which weights of 2
 * to 4 bits become once for many rows; all else as AVX-512 VNNI has it.
 *
 * tdpbusd: 16 x 16 sums += 16 rows x 64 unsigned bytes by 64 x 16 signed ones, modulo 2^32, in 16 cycles: 1024 products
 * a cycle, eight times what two vpdpbusd do; its sums are there after 52. A tile is loaded in 8 cycles from the L1
 * cache, from L2 in some 20, and stored in 16.
 *
 * Tile: up to 64 rows x 32 columns, of which a pair of 16 rows is summed up at a time: four tiles of sums, two of a,
 * two of b, which a panel holds as vpdpbusd reads it: a step of 64 codes is 16 rows of 4 codes of 32 columns.
 *
 *               b0 (16 columns)  b1 (16 columns)
 *     a0        t0               t1
 *     a1        t2               t3
 *
 * A step loads 4 KB for 64 cycles of tdpbusd, which is what L2 gives at best. So of more than one pair, k is cut into
 * stretches whose codes of b stay in the L1 cache while the pairs pass. To store the sums of a pair takes as long as a
 * step: it happens while the next pair has begun. */
#if defined(__x86_64__)
#include "runtime/compiler.h"
#if QK_HAVE_AVXVNNI
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/x86/cpu.h"
#include "kernels/x86/target.h"

static int available(void) { return qk_has_avx512vnni() && qk_has_amx(); }

QK_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8,avx2,fma,f16c,prfchw",
                "prefer-vector-width=512")

#define MR 64
#define NR 32
#define KR 64
#define GEMM8_ASK_ROWS 16
#define GEMM8_WHOLE_TILE gemm8_whole_tile
#define GEMM8_FAR_TILE gemm8_far_tile
#define GEMM8_BLOCK_BYTES (1024 * 1024)
#define GEMM8_BEGIN begin_tiles
#define GEMM8_END end_tiles
#define BLOCKS8_MR MR
#define BLOCKS8_FLIP 128
#define BLOCKS8_BEGIN blocks8_begin
#define BLOCKS8_END end_tiles
#define FOLDED_MR 12
#define FOLDED_PAIRS 1
#define UNFOLD_ROWS 16
#define UNFOLD_PANEL unfold_panel
#include "kernels/generic/table.h"
#include "kernels/x86/avx512_gemm4.h"

enum {
    FOURS = KR / 4, /* of a step: steps of vpdpbusd */
    HALF = 16,      /* rows of a tile, and columns; fewer rows are faster by vpdpbusd */
    STRETCH = 8,    /* steps whose codes of b take 16 KB */
    STEP_BYTES = NR * KR
};

static const qk_gemm8_kernels *const few = &qk_gemm8_avx512vnni;
static const qk_blocks8_kernels *const few_blocks = &qk_blocks8_avx512vnni;
static const qk_folded_kernels *const few_folded = &qk_folded_avx512vnni;

/* Bytes and rows of the eight tiles. */
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} shapes;

static const shapes whole_tiles __attribute__((aligned(64))) = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {HALF, HALF, HALF, HALF, HALF, HALF, HALF, HALF}};

static void begin_tiles(size_t rows)
{
    if (rows >= HALF) _tile_loadconfig(&whole_tiles);
}

static void end_tiles(size_t rows)
{
    if (rows >= HALF) _tile_release();
}

/* Where the sums of two times 16 rows are, and the bytes from row to row; no place: they are zeros. */
typedef struct {
    int32_t *at[2];
    size_t ld[2];
} place;

/* What each step asks the caches for: lines that are read next, and those of some rows of the result. */
typedef struct {
    const int8_t *read;
    size_t lines;
    char *write, *end;
    size_t row_stride, rows;
} asked;

static QK_INLINE void ask(asked *what)
{
    for (size_t i = 0; i < what->lines; i++, what->read += 64) __builtin_prefetch(what->read, 0, 2);
    for (size_t i = 0; i < what->rows && what->write < what->end; i++, what->write += what->row_stride)
        __builtin_prefetch(what->write, 1), __builtin_prefetch(what->write + 64, 1);
}

/* gcc's operations on tiles are statements. */
#define LOAD_B(b)                                                                                                      \
    _tile_loadd(6, b, 4 * NR);                                                                                         \
    _tile_loadd(7, (b) + 4 * HALF, 4 * NR)
#define ADD_PRODUCTS(left, right, a)                                                                                   \
    _tile_dpbusd(left, a, 6);                                                                                          \
    _tile_dpbusd(right, a, 7)
#define STORE(left, right, c, ld)                                                                                      \
    _tile_stored(left, c, ld);                                                                                         \
    _tile_stored(right, (c) + HALF, ld)

/* The first products of two tiles of sums: those of the pair before leave them. */
#define BEGIN(left, right, half, a)                                                                                    \
    if (before.at[half]) { STORE(left, right, before.at[half], before.ld[half]); }                                     \
    START(left, right, from.at[half], from.ld[half]);                                                                  \
    ADD_PRODUCTS(left, right, a)
#define START(left, right, from, ld)                                                                                   \
    if (from) {                                                                                                        \
        _tile_loadd(left, from, ld);                                                                                   \
        _tile_loadd(right, (from) + HALF, ld);                                                                         \
    } else {                                                                                                           \
        _tile_zero(left);                                                                                              \
        _tile_zero(right);                                                                                             \
    }

/* Adds up `steps` steps, of which there is one at least, and leaves the sums in their tiles. */
static QK_INLINE void sum_pair(const place before, const place from, size_t steps, const char *a0, const char *a1,
                               size_t lda, const int8_t *b, asked *next)
{
    _tile_loadd(4, a0, lda);
    LOAD_B(b);
    _tile_loadd(5, a1, lda);
    BEGIN(0, 1, 0, 4);
    BEGIN(2, 3, 1, 5);
    ask(next);
    while (--steps > 0) {
        a0 += KR, a1 += KR, b += STEP_BYTES;
        _tile_loadd(4, a0, lda);
        LOAD_B(b);
        _tile_loadd(5, a1, lda);
        ADD_PRODUCTS(0, 1, 4);
        ADD_PRODUCTS(2, 3, 5);
        ask(next);
    }
}

/* A tile, as sum_pairs sees it. Its last pair may have rows that the one before it has, too: then its second half goes
 * to `odd`. */
typedef struct {
    int rows;
    const char *a, *last; /* rows, and the last 16 of them */
    size_t lda, ldc;      /* in bytes */
    int32_t *c, *odd;
    const qk_ahead *ahead; /* or NULL */
} whole;

/* Where the sums of pair i go: until the last stretch to a place in the L1 cache, for rows of the result may be so far
 * apart that the cache holds few of them. */
static QK_INLINE place place_of(const whole *t, int i, int32_t *between)
{
    const size_t ld = NR * sizeof *between;
    int32_t *c = between ? between + i * 2 * HALF * NR : (int32_t *)((char *)t->c + (size_t)(2 * HALF * i) * t->ldc);
    if (between) return (place){{c, c + HALF * NR}, {ld, ld}};
    if (2 * HALF * (i + 1) > t->rows) return (place){{c, t->odd}, {t->ldc, ld}};
    return (place){{c, (int32_t *)((char *)c + HALF * t->ldc)}, {t->ldc, t->ldc}};
}

/* The rows of the result that pair i asks for in so many steps. */
static QK_INLINE void ask_for_pair(const whole *t, int i, size_t steps, asked *next)
{
    const size_t row = (size_t)(2 * HALF * i), rows = min_size((size_t)t->rows - row, 2 * HALF);
    next->rows = (rows + steps - 1) / steps;
    next->write = t->ahead->write + row * t->ahead->row_stride;
    next->end = next->write + rows * t->ahead->row_stride;
}

/* The sums of so many pairs, which start from those of 16 rows at `start` if there are any. */
static void sum_pairs(const whole *t, int count, size_t steps, const int8_t *panel, int32_t *start, asked *next)
{
    _Alignas(64) int32_t sums[MR * NR];
    const size_t stretch = count > 1 ? STRETCH : steps, ld = NR * sizeof *sums;
    place before = {{NULL, NULL}, {0, 0}};
    for (size_t first = 0, n; first < steps; first += n, panel += n * STEP_BYTES) {
        n = min_size(steps - first, stretch);
        const int is_last = first + n == steps;
        for (int i = 0; i < count; i++) {
            const char *a0 = t->a + (size_t)(2 * HALF * i) * t->lda, *a1 = a0 + HALF * t->lda;
            const place from = first ? place_of(t, i, sums) : (place){{start, start}, {ld, ld}};
            if (2 * HALF * (i + 1) > t->rows) a1 = t->last;
            if (t->ahead && is_last) ask_for_pair(t, i, n, next);
            sum_pair(before, from, n, a0 + first * KR, a1 + first * KR, t->lda, panel, next);
            before = place_of(t, i, is_last ? NULL : sums);
            next->rows = 0;
        }
    }
    if (!before.at[0]) return;
    STORE(0, 1, before.at[0], before.ld[0]);
    STORE(2, 3, before.at[1], before.ld[1]);
}

/* Adds to tiles 0 and 1, and those of every other step to 2 and 3, so that sums do not wait for each other. */
static QK_INLINE void sum_half(size_t steps, const char *a, size_t lda, const int8_t *b, asked *next)
{
    for (; steps > 0; steps--, a += KR, b += STEP_BYTES) {
        _tile_loadd(4, a, lda);
        LOAD_B(b);
        ADD_PRODUCTS(0, 1, 4);
        ask(next);
        if (--steps == 0) return;
        a += KR, b += STEP_BYTES;
        _tile_loadd(5, a, lda);
        LOAD_B(b);
        ADD_PRODUCTS(2, 3, 5);
        ask(next);
    }
}

/* Sums of 16 rows, to two places that add up to them. */
static void sum_rows(size_t steps, const char *a, size_t lda, const int8_t *panel, const int32_t *from, int32_t *sums,
                     int32_t *more, asked *next)
{
    const size_t ld = NR * sizeof *sums;
    START(0, 1, from, ld);
    _tile_zero(2);
    _tile_zero(3);
    sum_half(steps, a, lda, panel, next);
    STORE(0, 1, sums, ld);
    STORE(2, 3, more, ld);
}

/* The last rows of a tile, whose sums two places add up to, or one. */
static QK_INLINE void copy_rows(int rows, const int32_t *sums, const int32_t *more, int32_t *c, size_t ldc)
{
    for (int row = 0; row < rows; row++, sums += NR, c += ldc)
        for (int j = 0; j < NR; j += 16) {
            const __m512i v = _mm512_load_si512(sums + j);
            _mm512_storeu_si512(c + j, more ? _mm512_add_epi32(v, _mm512_load_si512(more + NR * row + j)) : v);
        }
}

/* `init` in each row of `to`. Returns NULL if all are zeros, which tiles are without being loaded. */
static QK_INLINE int32_t *spread(const int32_t *init, int32_t *to)
{
    const __m512i left = _mm512_loadu_si512(init), right = _mm512_loadu_si512(init + HALF);
    const __m512i any = _mm512_or_si512(left, right);
    if (!_mm512_test_epi32_mask(any, any)) return NULL;
    for (int i = 0; i < HALF * NR; i += NR) _mm512_store_si512(to + i, left), _mm512_store_si512(to + i + HALF, right);
    QK_WRITTEN;
    return to;
}

/* Rows by vpdpbusd. */
static QK_NOINLINE void few_rows(int rows, size_t steps, const char *a, size_t lda, const int8_t *panel,
                                 const int32_t *init, int32_t *c, size_t ldc)
{
    for (int i = 0; i < rows; i += few->mr)
        few->gemm8_tile(rows - i < few->mr ? rows - i : few->mr, steps * FOURS, a + (size_t)i * lda, lda, panel, init,
                        c + (size_t)i * ldc, ldc);
}

static void gemm8_far_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                           int32_t *c, size_t ldc)
{
    few->gemm8_far_tile(rows, steps * FOURS, a, lda, panel, init, c, ldc);
}

/* Rows that fill no pair end with the last one, and begin with some of those before them. */
static void gemm8_whole_tile(int rows, size_t steps, const void *codes, size_t lda, const int8_t *panel,
                             const int32_t *init, int32_t *c, size_t ldc, const qk_ahead *ahead)
{
    const char *a = codes;
    if (rows < HALF || steps == 0) {
        few_rows(rows, steps, a, lda, panel, init, c, ldc);
        return;
    }
    _Alignas(64) int32_t starts[HALF * NR], sums[HALF * NR], more[HALF * NR];
    int32_t *start = spread(init, starts);
    const int count = (rows + HALF - 1) / (2 * HALF), rest = rows - 2 * HALF * count;
    const char *last = a + (size_t)(rows - HALF) * lda;
    const whole t = {rows, a, last, lda, ldc * sizeof *c, c, sums, ahead};
    const size_t parts = (size_t)count + (rest > 0);
    asked next = {.read = ahead ? ahead->read : panel, .row_stride = ahead ? ahead->row_stride : 0};
    if (ahead) next.lines = (ahead->step + 64 * parts - 1) / (64 * parts);
    sum_pairs(&t, count, steps, panel, start, &next);
    if (rest > 0) sum_rows(steps, last, lda, panel, start, sums, more, &next);
    const int left = rest < 0 ? HALF + rest : rest, begin = HALF - left;
    int32_t *to = c + (size_t)(rows - left) * ldc;
    if (rest > 0)
        copy_rows(left, sums + begin * NR, more + begin * NR, to, ldc);
    else if (rest < 0)
        copy_rows(left, sums + begin * NR, NULL, to, ldc);
}

static void gemm8_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                       int32_t *c, size_t ldc)
{
    gemm8_whole_tile(rows, steps, a, lda, panel, init, c, ldc, NULL);
}

/* ---- blocks of bytes (numerics 12) ---- */

/* A block has sums of its own, which become floats: to store a tile of them takes 16 cycles, as long as its 64 codes of
 * k do, and its 256 sums take 24 cycles of additions, conversions and multiply-adds. So y of 16 rows x 16 columns stays
 * in 16 registers from block to block, and the sums of one block are added to it while those of the next are made.
 *
 *     tiles 0, 1   sums of even and of odd blocks
 *     tiles 2, 3   a and b of 64 codes
 *     tiles 4, 5   the same of the last codes of a block, 64 at most
 *     tiles 6, 7   and of the last block */

/* Codes of the last step of a block. */
static inline size_t last_codes(size_t steps) { return (steps * QK_GEMM4_KR + KR - 1) % KR + 1; }

static void blocks8_begin(size_t rows, const qk_gemm4_panel *p)
{
    const size_t n = last_codes(p->steps), last = last_codes(p->last_steps);
    const shapes of = {1,
                       0,
                       {0},
                       {64, 64, KR, 64, (uint16_t)n, 64, (uint16_t)last, 64},
                       {HALF, HALF, HALF, FOURS, HALF, (uint8_t)(n / 4), HALF, (uint8_t)(last / 4)}};
    if (rows >= HALF) _tile_loadconfig(&of);
}

/* 16 columns of a panel, and blocks that 16 rows meet. */
typedef struct {
    const qk_gemm4_panel *p;
    size_t first, end;
    const int8_t *b; /* codes of the first */
    const char *a;
    size_t lda;
    int half; /* which columns of the panel */
} some_blocks;

#define ADD_STEP(sums, of_a, of_b)                                                                                     \
    _tile_loadd(of_a, a, t->lda);                                                                                      \
    _tile_loadd(of_b, b, 4 * NR);                                                                                      \
    _tile_dpbusd(sums, of_a, of_b)
#define SUM_BLOCK(sums)                                                                                                \
    _tile_zero(sums);                                                                                                  \
    for (; n > KR; n -= KR, a += KR, b += STEP_BYTES) { ADD_STEP(sums, 2, 3); }                                        \
    if (block + 1 < t->p->blocks) {                                                                                    \
        ADD_STEP(sums, 4, 5);                                                                                          \
    } else {                                                                                                           \
        ADD_STEP(sums, 6, 7);                                                                                          \
    }

static QK_INLINE size_t codes_in(const qk_gemm4_panel *p, size_t block)
{
    return (block + 1 < p->blocks ? p->steps : p->last_steps) * QK_GEMM4_KR;
}

/* Where block `block` begins. */
static QK_INLINE const int8_t *block_at(const some_blocks *t, size_t block)
{
    return t->b + (block - t->first) * (t->p->steps * QK_GEMM4_KR * NR + t->p->params_bytes);
}

/* Leaves the sums of a block in tile 0 or 1. */
static QK_INLINE void sum_block(const some_blocks *t, size_t block)
{
    const char *a = t->a + (block - t->first) * t->p->steps * QK_GEMM4_KR;
    const int8_t *b = block_at(t, block) + t->half * 4 * HALF;
    size_t n = codes_in(t->p, block);
    if (block % 2) {
        SUM_BLOCK(1);
    } else {
        SUM_BLOCK(0);
    }
}

#define EACH_ROW(of)                                                                                                   \
    of(0) of(1) of(2) of(3) of(4) of(5) of(6) of(7) of(8) of(9) of(10) of(11) of(12) of(13) of(14) of(15)
#define LOAD_ROW(i) __m512 y##i = _mm512_loadu_ps(y + (i) * NR);
#define STORE_ROW(i) _mm512_storeu_ps(y + (i) * NR, y##i);
#define ADD_ROW(i)                                                                                                     \
    v = _mm512_add_epi32(_mm512_load_si512(sums + (i) * HALF), start);                                                 \
    y##i = _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), scale, y##i);

/* Adds blocks to 16 rows of y. */
static QK_NOINLINE void add_blocks(const some_blocks *t, float *y, asked *next)
{
    _Alignas(64) int32_t sums[HALF * HALF];
    __m512i v;
    EACH_ROW(LOAD_ROW)
    sum_block(t, t->first);
    for (size_t block = t->first; block < t->end; block++) {
        const uint8_t *scales = (const uint8_t *)block_at(t, block) + codes_in(t->p, block) * NR;
        const uint8_t *column_sums = scales + t->p->params_bytes - (t->p->long_sums ? 4 : 2) * NR;
        const __m512 scale = scales16(scales, t->p, t->half);
        const __m512i start = column_starts16(column_sums, t->p->long_sums, t->half);
        if (block + 1 < t->end) sum_block(t, block + 1);
        if (block % 2)
            _tile_stored(1, sums, sizeof *sums * HALF);
        else
            _tile_stored(0, sums, sizeof *sums * HALF);
        ask(next);
        EACH_ROW(ADD_ROW)
    }
    EACH_ROW(STORE_ROW)
}

/* Rows by vpdpbusd. */
static QK_NOINLINE void few_rows_of_blocks(int rows, const qk_gemm4_panel *panel, const char *a, size_t lda,
                                           const int32_t *start, size_t ld_start, float *y)
{
    qk_gemm4_panel p = *panel;
    p.ahead = NULL;
    for (int i = 0; i < rows; i += few_blocks->mr)
        few_blocks->blocks8_tile(rows - i < few_blocks->mr ? rows - i : few_blocks->mr, &p, a + (size_t)i * lda, lda,
                                 start + (size_t)i * ld_start, ld_start, y + i * NR);
}

/* What the tile asks for while it adds blocks t->first and on to 16 rows from row `row` on. */
static QK_INLINE void ask_for_blocks(const some_blocks *t, size_t row, asked *next)
{
    const qk_ahead *ahead = t->p->ahead;
    next->rows = 0;
    if (!ahead || t->half || t->end < t->p->blocks) return;
    next->rows = (HALF + t->end - t->first - 1) / (t->end - t->first);
    next->write = ahead->write + row * ahead->row_stride;
    next->end = next->write + HALF * ahead->row_stride;
}

/* The lines that a tile asks for, some with each block that it adds to 16 rows and columns, `parts` times 16 rows. */
static asked asked_by_blocks(const qk_gemm4_panel *p, size_t parts)
{
    if (!p->ahead) return (asked){0};
    const size_t steps = (p->blocks - 1) * p->steps + p->last_steps;
    return (asked){.read = p->ahead->read,
                   .lines = ceil_div(p->ahead->step * steps, 64 * 2 * parts * p->blocks),
                   .row_stride = p->ahead->row_stride};
}

/* As many blocks at a time as their part of b stays in the L1 cache while rows pass. The last rows, if they fill no 16,
 * are those of 16 that end with them, whose y is elsewhere meanwhile. */
static void blocks8_tile(int rows, const qk_gemm4_panel *p, const void *codes, size_t lda, const int32_t *start,
                         size_t ld_start, float *y)
{
    const char *a = codes;
    if (rows < HALF || p->own_zeros || p->blocks == 0) {
        few_rows_of_blocks(rows, p, a, lda, start, ld_start, y);
        return;
    }
    _Alignas(64) float last[HALF * NR];
    const size_t whole = (size_t)rows / HALF, left = (size_t)rows % HALF, parts = whole + (left > 0);
    const size_t block_codes = p->steps * QK_GEMM4_KR, step = block_codes * NR + p->params_bytes;
    const size_t most = STRETCH * KR / block_codes + 1;
    float *end = y + (rows - HALF) * NR;
    asked next = asked_by_blocks(p, parts);
    if (!p->more) memset(y, 0, (size_t)rows * NR * sizeof *y);
    memcpy(last, end, sizeof last);
    for (size_t first = 0; first < p->blocks; first += most)
        for (size_t i = 0; i < 2 * parts; i++) {
            const size_t row = i / 2 < whole ? i / 2 * HALF : (size_t)rows - HALF;
            const some_blocks t = {p,
                                   first,
                                   min_size(first + most, p->blocks),
                                   (const int8_t *)p->records + first * step,
                                   a + row * lda + first * block_codes,
                                   lda,
                                   (int)(i % 2)};
            ask_for_blocks(&t, row, &next);
            add_blocks(&t, (i / 2 < whole ? y + row * NR : last) + i % 2 * HALF, &next);
        }
    memcpy(end + (HALF - left) * NR, last + (HALF - left) * NR, left * NR * sizeof *y);
}

/* ---- weights that fold to int8 (numerics 33) ---- */

/* The panel of AVX-512 VNNI, and zeros up to whole steps. */
static void unfold_panel(const qk_folded_panel *p, int half, int8_t *to)
{
    const size_t bytes = ((p->blocks - 1) * p->steps + p->last_steps) * QK_GEMM4_KR * NR;
    few_folded->unfold_panel(p, half, to);
    memset(to + bytes, 0, round_up(bytes, STEP_BYTES) - bytes);
}

static void folded_tile(int rows, const qk_folded_panel *p, const uint8_t *a, size_t lda, const int32_t *sums,
                        size_t ld_sums, int32_t *c)
{
    few_folded->folded_tile(rows, p, a, lda, sums, ld_sums, c);
}

static void folded_sums(const uint8_t *a, size_t k, size_t block, int32_t *sums)
{
    few_folded->folded_sums(a, k, block, sums);
}

static void folded_columns(const uint16_t *low, const int8_t *high, size_t n, int32_t *sums)
{
    few_folded->folded_columns(low, high, n, sums);
}

/* ---- what AVX-512 VNNI has ---- */

static size_t gemm8_panel_bytes(size_t steps) { return qk_times(steps, STEP_BYTES); }

/* Codes that the last step lacks are zeros. */
static int64_t gemm8_pack_panel(const qk_panel_source *s, size_t cols, int8_t *panel, int32_t *colsum)
{
    const size_t codes = round_up(s->k, 4);
    memset(panel + codes * NR, 0, (round_up(codes, KR) - codes) * NR);
    return few->gemm8_pack_panel(s, cols, panel, colsum);
}

static void gemm8_unpack_panel(const int8_t *panel, size_t k, size_t first, size_t cols, uint8_t flip, uint8_t *to,
                               size_t row_stride)
{
    few->gemm8_unpack_panel(panel, k, first, cols, flip, to, row_stride);
}

static void gemm8_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    few->gemm8_pack_row(a, n, n_pad, flip, to);
}

static int32_t sum_codes(const uint8_t *a, size_t n, uint8_t flip) { return few->sum_codes(a, n, flip); }

static void start_sums(int32_t *sums, const int32_t *bias, const int32_t *colsum, uint32_t zero, size_t n)
{
    few->start_sums(sums, bias, colsum, zero, n);
}

static void column_sums(const qk_few_rows *rows, size_t k, const qk_column *column, int32_t *c)
{
    few->column_sums(rows, k, column, c);
}

/* A tile in parts, of as many rows as those of AVX-512 VNNI have. */
static QK_INLINE void in_parts(void (*store)(int32_t *acc, const qk_tile *t), int32_t *acc, const qk_tile *t)
{
    if (t->rows <= few->mr) {
        store(acc, t);
        return;
    }
    qk_tile part = *t;
    for (int rows = t->rows; rows > 0; rows -= part.rows, acc += part.rows * NR) {
        part.rows = rows < few->mr ? rows : few->mr;
        store(acc, &part);
        if (part.row_zero) part.row_zero += part.rows;
        if (part.row_term) part.row_term += part.rows;
        if (part.row_scale) part.row_scale += part.rows;
        if (part.residual)
            part.residual = (const float *)((const char *)part.residual + (size_t)part.rows * part.residual_stride);
        part.dst = (char *)part.dst + (size_t)part.rows * part.row_stride;
    }
}

static void tile_to_int32(int32_t *acc, const qk_tile *t) { in_parts(few->tile_to_int32, acc, t); }
static void tile_to_float(int32_t *acc, const qk_tile *t) { in_parts(few->tile_to_float, acc, t); }
static void tile_to_codes(int32_t *acc, const qk_tile *t) { in_parts(few->tile_to_codes, acc, t); }

static const qk_gemm8_kernels gemm8 = {
#include "kernels/families/gemm8.def"
};
static const qk_blocks8_kernels blocks8 = {
#include "kernels/families/blocks8.def"
};
static const qk_folded_kernels folded = {
#include "kernels/families/folded.def"
};

/* Four tiles of sums, as the tile of the product has them. See generic/peak.h. */
static size_t peak(size_t rounds)
{
    begin_tiles(MR);
    for (size_t i = 0; i < rounds; i++) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    end_tiles(MR);
    return rounds * 4 * HALF * HALF * KR;
}

const qk_kernels qk_kernels_amx = {
    .name = "amx",
    .available = available,
    .peak = peak,
    .gemm8 = &gemm8,
    .gemm4 = &qk_gemm4_avx512vnni,
    .blocks8 = &blocks8,
    .folded = &folded,
    .gemm8_folded = &gemm8,
    .gemm16 = &qk_gemm16_avx512vnni,
    .gemmf16 = &qk_gemmf16_avx512,
    .elementwise = &qk_elementwise_avx512,
    .codebooks = &qk_codebooks_avx512,
    .layers = &qk_layers_avx512,
    .kmeans = &qk_kmeans_avx512,
    .pq = &qk_pq_avx512,
    .histogram = &qk_histogram_avx512,
    .conv = &qk_conv_avx512vnni,
};

QK_TARGET_END
#endif
#endif
