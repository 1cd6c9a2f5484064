/* Codes of a few bits, stored densely: code i has the bits from i * bits on, the lowest first, of little-endian bytes.
 * Eight codes fill `bits` bytes; in a register they move together, and apart again, in three steps. */
#include <string.h>

#include "runtime/compiler.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"
#include "drivers/drivers.h"
#include "runtime/sizes.h"

enum { PIECE = 65536 }; /* codes that a thread takes at a time: whole bytes */

static inline uint64_t low(int bits) { return bits < 64 ? ((uint64_t)1 << bits) - 1 : UINT64_MAX; }

/* Eight bytes of `bits` bits each to 8 * bits bits. */
static inline uint64_t squeeze(uint64_t x, int bits)
{
    const uint64_t even = 0x00ff00ff00ff00ff, pairs = 0x0000ffff0000ffff;
    x &= low(bits) * 0x0101010101010101;
    x = (x & even) | (x >> 8 & even) << bits;
    x = (x & pairs) | (x >> 16 & pairs) << 2 * bits;
    return (x & UINT32_MAX) | x >> 32 << 4 * bits;
}

static inline uint64_t spread(uint64_t x, int bits)
{
    const uint64_t two = low(2 * bits) * 0x0000000100000001, one = low(bits) * 0x0001000100010001;
    x = (x & low(4 * bits)) | (x >> 4 * bits & low(4 * bits)) << 32;
    x = (x & two) | (x >> 2 * bits & two) << 16;
    return (x & one) | (x >> bits & one) << 8;
}

typedef struct {
    const uint8_t *codes, *data;
    uint8_t *to;
    size_t n;
    int bits;
} job;

/* `bits` is a constant where these are inlined, so that copies of so many bytes are not calls. */
static QK_INLINE void pack(const int bits, const uint8_t *codes, uint8_t *to, size_t n)
{
    uint64_t x;
    for (; n >= 8; n -= 8, codes += 8, to += bits) {
        memcpy(&x, codes, 8);
        x = squeeze(x, bits);
        memcpy(to, &x, (size_t)bits);
    }
    x = 0;
    for (size_t i = 0; i < n; i++) x |= (uint64_t)codes[i] << 8 * i;
    x = squeeze(x, bits);
    for (size_t i = 0; i < ceil_div(n * (size_t)bits, 8); i++) to[i] = (uint8_t)(x >> 8 * i);
}

static QK_INLINE void unpack(const int bits, const uint8_t *data, uint8_t *to, size_t n)
{
    uint64_t x = 0;
    for (; n >= 8; n -= 8, data += bits, to += 8) {
        memcpy(&x, data, (size_t)bits);
        x = spread(x, bits);
        memcpy(to, &x, 8);
    }
    x = 0;
    for (size_t i = 0; i < ceil_div(n * (size_t)bits, 8); i++) x |= (uint64_t)data[i] << 8 * i;
    x = spread(x, bits);
    for (size_t i = 0; i < n; i++) to[i] = (uint8_t)(x >> 8 * i);
}

static void pack_pieces(void *context, size_t begin, size_t end)
{
    const job *j = context;
    const size_t start = begin * PIECE, n = min_size(j->n - start, (end - begin) * PIECE);
    const uint8_t *from = j->codes + start;
    uint8_t *to = j->to + start / 8 * (size_t)j->bits;
    ROWS_8(j->bits, pack, from, to, n);
}

static void unpack_pieces(void *context, size_t begin, size_t end)
{
    const job *j = context;
    const size_t start = begin * PIECE, n = min_size(j->n - start, (end - begin) * PIECE);
    const uint8_t *from = j->data + start / 8 * (size_t)j->bits;
    uint8_t *to = j->to + start;
    ROWS_8(j->bits, unpack, from, to, n);
}

int qk_pack_bits(const uint8_t *codes, size_t n, int bits, uint8_t *data)
{
    QK_DEFAULT_MODE;
    job j = {.codes = codes, .to = data, .n = n, .bits = bits};
    return qk_parallel_for(ceil_div(n, PIECE), 0.3 * (double)n, pack_pieces, &j);
}

int qk_unpack_bits(const uint8_t *data, size_t n, int bits, uint8_t *codes)
{
    QK_DEFAULT_MODE;
    job j = {.data = data, .to = codes, .n = n, .bits = bits};
    return qk_parallel_for(ceil_div(n, PIECE), 0.3 * (double)n, unpack_pieces, &j);
}
