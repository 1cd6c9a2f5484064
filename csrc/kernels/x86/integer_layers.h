/* What the loops of generic/integer_layers.h ask for, on the registers of avx2.h or avx512.h, a register of codes at a
 * time: after elementwise.h of this folder. */
#ifndef QK_X86_INTEGER_LAYERS_H
#define QK_X86_INTEGER_LAYERS_H

#include "kernels/x86/elementwise.h"

#include "kernels/generic/elementwise.h"

#define HAVE_CODE_GROUPS

/* ---- tables ----
 *
 * vpshufb looks up 16 bytes by the low 4 bits of its index, and gives 0 where bit 7 is set. Let h be the high half of
 * an index; step k looks up table k by the index less 16 k, that is with h - k, which counts if it is 0 .. 7 (modulo
 * 16, so for all h at steps k = h - 7 .. h, k <= 8; the differences of later steps saturate, so for h < 8 none comes
 * again). The results are joined by exclusive or: so table k has what changes from part k - 1 to part k of the whole
 * (and what the end of steps that counted, 8 before, takes away). */

static inline void table_of_changes(const uint8_t *table, uint8_t *change)
{
    for (int i = 0; i < 256; i++) {
        change[i] = table[i];
        if (i >= 16) change[i] ^= table[i - 16];
        if (i >= 128) change[i] ^= table[i - 128];
        if (i >= 144) change[i] ^= table[i - 144];
    }
}

static inline size_t shuffled_groups(const uint8_t *q, uint8_t *y, size_t n, const uint8_t *table, uint8_t mask,
                                     uint8_t shift)
{
    if (n < 2 * REG) return 0;
    uint8_t change[256];
    table_of_changes(table, change);
    const reg sixteen = all_i8(16), masks = all_i8(mask), shifts = all_i8(shift);
    reg part[16];
    for (int k = 0; k < 8; k++) part[k] = all_lanes(change + 16 * k);
    for (int k = 8; k < 16; k++) part[k] = all_lanes(change + 16 * k);
    for (size_t i = 0; i < n; i = next_span(i, n, 0, REG)) {
        reg index = add_i8(exclusive(load_reg(q + i), masks), shifts);
        reg codes = look_up_u8(part[0], index);
        for (int k = 1; k <= 8; k++) { /* two loops, for gcc unrolls no longer ones */
            index = sub_i8(index, sixteen);
            codes = exclusive(codes, look_up_u8(part[k], index));
        }
        for (int k = 9; k < 16; k++) {
            index = subs_i8(index, sixteen);
            codes = exclusive(codes, look_up_u8(part[k], index));
        }
        store_reg(y + i, codes);
    }
    return n;
}

#ifndef HAVE_TABLE_GROUPS
static size_t table_groups(const uint8_t *q, uint8_t *y, size_t n, const uint8_t *table, uint8_t mask, uint8_t shift)
{
    return shuffled_groups(q, y, n, table, mask, shift);
}

#define weight_groups(...) 0
#endif

/* ---- sums and products of two ---- */

static QK_INLINE floats codes_as_floats(const uint8_t *q, const int is_signed)
{
    return to_floats(is_signed ? widen_i8(q) : widen_u8(q));
}

/* Codes of values below 2^31, which may have the zero point in them already (`added`). */
static QK_INLINE void round_to_codes(uint8_t *y, const floats *v, const int added, qk_code_range to)
{
    const reg n0 = packs_i32(to_i32(v[0]), to_i32(v[1])), n1 = packs_i32(to_i32(v[2]), to_i32(v[3]));
    const reg zero = all_i16(to.zero_point);
    store_reg(y, added ? packed_codes(n0, n1, to.qmin, to.qmax) : to_codes(n0, n1, zero, zero, to.qmin, to.qmax));
}

static QK_INLINE void pair_groups_of(const uint8_t *a, const uint8_t *b, const size_t b_step, uint8_t *y, size_t n,
                                     const qk_pair *given, const int product, const int is_signed)
{
    const qk_pair p = *given;
    const floats one = all_floats(is_signed ? (float)(int8_t)*b : (float)*b);
    const floats a_factor = all_floats(p.a_factor), b_factor = all_floats(p.b_factor), offset = all_floats(p.offset);
    const floats a_zero = all_floats(p.a_zero), b_zero = all_floats(p.b_zero), factor = all_floats(p.factor);
    const floats zero_point = all_floats((float)p.to.zero_point);
    for (size_t i = 0; i < n; i = next_span(i, n, 0, REG)) {
        floats v[4];
        for (size_t k = 0; k < 4; k++) {
            const floats left = codes_as_floats(a + i + k * FLOATS, is_signed);
            const floats right = b_step ? codes_as_floats(b + i + k * FLOATS, is_signed) : one;
            if (product)
                v[k] = sum_of(product_of(product_of(difference_of(left, a_zero), difference_of(right, b_zero)), factor),
                              zero_point);
            else
                v[k] = add_product(add_product(offset, right, b_factor), left, a_factor);
        }
        round_to_codes(y + i, v, 1, p.to);
    }
}

static inline size_t pair_groups(const uint8_t *a, const uint8_t *b, size_t b_step, uint8_t *y, size_t n,
                                 const qk_pair *p)
{
    if (n < REG) return 0;
    switch (4 * !!b_step + 2 * !!p->product + !!p->is_signed) {
    case 0: pair_groups_of(a, b, 0, y, n, p, 0, 0); break;
    case 1: pair_groups_of(a, b, 0, y, n, p, 0, 1); break;
    case 2: pair_groups_of(a, b, 0, y, n, p, 1, 0); break;
    case 3: pair_groups_of(a, b, 0, y, n, p, 1, 1); break;
    case 4: pair_groups_of(a, b, 1, y, n, p, 0, 0); break;
    case 5: pair_groups_of(a, b, 1, y, n, p, 0, 1); break;
    case 6: pair_groups_of(a, b, 1, y, n, p, 1, 0); break;
    default: pair_groups_of(a, b, 1, y, n, p, 1, 1); break;
    }
    return n;
}

/* ---- norms ---- */

/* Lanes gain at most 4 * 255^2 from a register. */
enum { MOST_SUMMED = 8192 * REG };

static inline uint64_t sum_of_lanes(reg v)
{
    uint32_t lanes[REG / 4];
    uint64_t sum = 0;
    store_reg(lanes, v);
    for (int i = 0; i < REG / 4; i++) sum += lanes[i];
    return sum;
}

static inline size_t sum_groups(const uint8_t *q, size_t n, uint8_t flip, uint64_t *sum, uint64_t *squares)
{
    const reg flips = all_i8(flip), zero = zero_reg(), ones = all_i16(1);
    size_t i = 0;
    while (n - i >= REG) {
        reg of_codes = zero, of_squares = zero;
        for (const size_t end = n - i < MOST_SUMMED ? n : i + MOST_SUMMED; end - i >= REG; i += REG) {
            const reg codes = exclusive(load_reg(q + i), flips);
            const reg low = low_u8(codes, zero), high = high_u8(codes, zero);
            of_codes = add_i32(of_codes, madd_i16(add_i16(low, high), ones));
            of_squares = add_i32(of_squares, add_i32(madd_i16(low, low), madd_i16(high, high)));
        }
        *sum += sum_of_lanes(of_codes), *squares += sum_of_lanes(of_squares);
    }
    return i;
}

static QK_INLINE void norm_groups_of(const uint8_t *q, uint8_t *y, size_t n, const qk_code_norm *given,
                                     const int is_signed)
{
    const qk_code_norm p = *given;
    const floats times = all_floats(p.times), minus = all_floats(-p.less), inverse = all_floats(p.inverse);
    const floats most = all_floats((float)(p.to.qmax - p.to.zero_point));
    for (size_t i = 0; i < n; i = next_span(i, n, 0, REG)) {
        floats v[4];
        for (size_t k = 0; k < 4; k++) {
            const size_t at = i + k * FLOATS;
            const floats d = product_of(add_product(minus, codes_as_floats(q + at, is_signed), times), inverse);
            v[k] = smaller_of(most, add_product(load_floats(p.offset + at), d, load_floats(p.factor + at)));
        }
        round_to_codes(y + i, v, 0, p.to);
    }
}

static inline size_t norm_groups(const uint8_t *q, uint8_t *y, size_t n, const qk_code_norm *p)
{
    if (n < REG) return 0;
    if (p->is_signed)
        norm_groups_of(q, y, n, p, 1);
    else
        norm_groups_of(q, y, n, p, 0);
    return n;
}

#endif
