/* Packing of b, compiled once per instruction set. The including file sets NR and KR, the columns of a panel and the codes
 * of k that a step takes. */

/* KR rows of NR unit-stride columns, interleaved; written as whole steps, which is what gcc vectorizes. */
static inline void interleave_rows(const uint8_t *b, ptrdiff_t row_stride, uint8_t flip, uint8_t *to)
{
    const uint8_t *b1 = b + row_stride;
#if KR == 2
    uint16_t *restrict pairs = (uint16_t *)to;
    for (int j = 0; j < NR; j++) pairs[j] = (uint16_t)((b[j] | b1[j] << 8) ^ flip * 0x0101);
#else
    const uint8_t *b2 = b1 + row_stride, *b3 = b2 + row_stride;
    uint32_t *restrict fours = (uint32_t *)to;
    for (int j = 0; j < NR; j++)
        fours[j] = (b[j] | (uint32_t)b1[j] << 8 | (uint32_t)b2[j] << 16 | (uint32_t)b3[j] << 24) ^ flip * 0x01010101u;
#endif
}

/* A step of any strides, codes that b does not have being 0. */
static void pack_step(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols, uint8_t flip,
                      uint8_t *to)
{
    memset(to, 0, NR * KR);
    for (size_t j = 0; j < cols; j++)
        for (size_t i = 0; i < rows; i++)
            to[j * KR + i] = b[(ptrdiff_t)i * row_stride + (ptrdiff_t)j * col_stride] ^ flip;
}

/* A step of columns whose codes are adjacent: b is the transpose of a C-contiguous matrix. */
static inline void copy_columns(const uint8_t *b, ptrdiff_t col_stride, uint8_t flip, uint8_t *to)
{
    uint32_t flips = flip * 0x01010101u, codes = 0;
    for (int j = 0; j < NR; j++) {
        memcpy(&codes, b + j * col_stride, KR);
        codes ^= flips;
        memcpy(to + j * KR, &codes, KR);
    }
}

/* Adds the stored codes of some rows to sum, and |code - zero| to size, per column. */
static inline void add_rows(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols,
                            uint8_t flip, const int32_t *restrict zero, int32_t *restrict sum, int32_t *restrict size)
{
    for (size_t i = 0; i < rows; i++) {
        const uint8_t *line = b + (ptrdiff_t)i * row_stride;
        for (size_t j = 0; j < cols; j++) {
            const int32_t code = (int8_t)(line[(ptrdiff_t)j * col_stride] ^ flip), distance = code - zero[j];
            sum[j] += code;
            size[j] += distance < 0 ? -distance : distance;
        }
    }
}

static inline void add_column(const uint8_t *restrict b, size_t rows, uint8_t flip, int32_t zero, int32_t *restrict sum,
                              int32_t *restrict size)
{
    int32_t total = 0, distances = 0;
    for (size_t i = 0; i < rows; i++) {
        const int32_t code = (int8_t)(b[i] ^ flip), distance = code - zero;
        total += code;
        distances += distance < 0 ? -distance : distance;
    }
    *sum += total;
    *size += distances;
}

/* colsum and bound of the panel's columns; |code - zero| <= 383, so 32 bits hold the sums of a block of rows. */
static int64_t sum_columns(const qk_panel_source *s, size_t cols, int32_t *colsum)
{
    enum { BLOCK = 4096 };
    int64_t sums[NR] = {0}, sizes[NR] = {0}, bound = 0;
    for (size_t row = 0; row < s->k; row += BLOCK) {
        const size_t rows = s->k - row < BLOCK ? s->k - row : BLOCK;
        const uint8_t *b = s->b + (ptrdiff_t)row * s->row_stride;
        int32_t sum[NR] = {0}, size[NR] = {0};
        if (s->row_stride == 1)
            for (size_t j = 0; j < cols; j++)
                add_column(b + (ptrdiff_t)j * s->col_stride, rows, s->flip, s->zero[j], sum + j, size + j);
        else if (s->col_stride == 1 && cols == NR)
            add_rows(b, s->row_stride, 1, rows, NR, s->flip, s->zero, sum, size);
        else
            add_rows(b, s->row_stride, s->col_stride, rows, cols, s->flip, s->zero, sum, size);
        for (int j = 0; j < NR; j++) sums[j] += sum[j], sizes[j] += size[j];
    }
    for (int j = 0; j < NR; j++) {
        colsum[j] = (int32_t)(uint32_t)sums[j];
        if (sizes[j] > bound) bound = sizes[j];
    }
    return bound;
}

static int64_t gemm_pack_panel(const qk_panel_source *s, size_t cols, int8_t *panel, int32_t *colsum)
{
    uint8_t *to = (uint8_t *)panel;
    for (size_t row = 0; row < s->k; row += KR, to += NR * KR) {
        const uint8_t *b = s->b + (ptrdiff_t)row * s->row_stride;
        const size_t rows = s->k - row < KR ? s->k - row : KR;
        if (rows == KR && cols == NR && s->col_stride == 1)
            interleave_rows(b, s->row_stride, s->flip, to);
        else if (rows == KR && cols == NR && s->row_stride == 1)
            copy_columns(b, s->col_stride, s->flip, to);
        else
            pack_step(b, s->row_stride, s->col_stride, rows, cols, s->flip, to);
    }
    return sum_columns(s, cols, colsum);
}
