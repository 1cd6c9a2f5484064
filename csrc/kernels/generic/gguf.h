/* GGUF's blocks (gguf.c, numerics 15), compiled once per instruction set, after layers.h. */
#ifndef QK_GENERIC_GGUF_H
#define QK_GENERIC_GGUF_H

#include <float.h>
#include <string.h>

#include "kernels/generic/codebook.h"
#include "kernels/generic/elementwise.h"
#include "kernels/generic/layers.h"
#include "kernels/gguf.h"
#include "runtime/compiler.h"

enum { GGUF_BLOCK = 32, Q8_0_BYTES = 2 + GGUF_BLOCK, Q4_0_BYTES = 2 + GGUF_BLOCK / 2 };

/* Of a scale below 2^-128, which float16 does not have, the reciprocal is infinite: codes are then 0. */
static inline float gguf_reciprocal(float scale)
{
    const float reciprocal = 1.0f / scale;
    return reciprocal <= FLT_MAX && reciprocal >= -FLT_MAX ? reciprocal : 0.0f;
}

static inline void put_half(float scale, uint8_t *to)
{
    uint16_t half;
    f32_to_f16(&scale, &half, 1);
    memcpy(to, &half, sizeof half);
}

static inline float get_half(const uint8_t *from)
{
    uint16_t half;
    float scale;
    memcpy(&half, from, sizeof half);
    f16_to_f32(&half, &scale, 1);
    return scale;
}

static int32_t to_q8_0(const float *x, uint8_t *to, size_t blocks)
{
    int32_t most = 0;
    for (size_t b = 0; b < blocks; b++, x += GGUF_BLOCK, to += Q8_0_BYTES) {
        const int32_t magnitude = absmax_f32(x, 0, 1, GGUF_BLOCK);
        const float scale = float_of(magnitude) / 127.0f, reciprocal = gguf_reciprocal(scale);
        most = magnitude > most ? magnitude : most;
        put_half(scale, to);
        for (int i = 0; i < GGUF_BLOCK; i++) to[2 + i] = (uint8_t)round_to_int(x[i] * reciprocal, 1);
    }
    return most;
}

/* The value of the largest magnitude, the first of two with different signs. */
static inline float first_extreme(const float *x, int32_t magnitude)
{
    int positive = 0, negative = 0;
    for (int i = 0; i < GGUF_BLOCK; i++) {
        positive |= bits_of(x[i]) == magnitude;
        negative |= bits_of(x[i]) == (magnitude | INT32_MIN);
    }
    if (positive && negative)
        for (;; x++)
            if ((bits_of(*x) & INT32_MAX) == magnitude) return *x;
    return float_of(negative ? magnitude | INT32_MIN : magnitude);
}

static int32_t to_q4_0(const float *x, uint8_t *to, size_t blocks)
{
    int32_t most = 0;
    for (size_t b = 0; b < blocks; b++, x += GGUF_BLOCK, to += Q4_0_BYTES) {
        const int32_t magnitude = absmax_f32(x, 0, 1, GGUF_BLOCK);
        const float scale = first_extreme(x, magnitude) / -8.0f, reciprocal = gguf_reciprocal(scale);
        int32_t codes[GGUF_BLOCK];
        most = magnitude > most ? magnitude : most;
        put_half(scale, to);
        for (int i = 0; i < GGUF_BLOCK; i++) {
            const float code = x[i] * reciprocal + 8.5f;
            codes[i] = (int32_t)(code < 15.0f ? code : 15.0f); /* also NaN, which the caller refuses later */
        }
        for (int i = 0; i < GGUF_BLOCK / 2; i++) to[2 + i] = (uint8_t)(codes[i] | codes[i + GGUF_BLOCK / 2] << 4);
    }
    return most;
}

/* ---- reading ---- */

enum { GGUF_MOST = 256, GGUF_GROUPS = 16 }; /* values and scales of a block, or of several small ones */

static const float gguf_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float gguf_fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}; /* doubled */
static const qk_levels gguf_levels[] = {
    [QK_LEVELS_NL] = {.depth = 4, .level = gguf_nl}, [QK_LEVELS_FP4] = {.depth = 4, .level = gguf_fp4}};

static const uint64_t ONES = 0x0101010101010101; /* eight bytes */

/* Put eight codes, those of a high plane above the bits that are there. */
static QK_INLINE void put_eight(uint64_t codes, int shift, uint8_t *q)
{
    uint64_t below = 0;
    if (shift) memcpy(&below, q, sizeof below);
    codes = codes << shift | below;
    memcpy(q, &codes, sizeof codes);
}

static QK_INLINE void read_plane(const uint8_t *from, qk_gguf_plane p, int values, int shift, uint8_t *q)
{
    const int run = p.chunk, parts = 8 / p.bits;
    const uint64_t mask = ONES * ((1u << p.bits) - 1);
    for (int first = 0; first < values; first += parts * run, from += run)
        for (int part = 0; part < parts; part++, q += run)
            for (int i = 0; i < run; i += 8) {
                uint64_t eight;
                memcpy(&eight, from + i, sizeof eight);
                put_eight(eight >> (part * p.bits) & mask, shift, q + i);
            }
}

/* A plane whose bytes have the bits of eight neighbours. */
static QK_INLINE void read_bits(const uint8_t *from, int values, int shift, uint8_t *q)
{
    for (int i = 0; i < values; i += 8) {
        const uint64_t bit = ONES * *from++ & 0x8040201008040201; /* each in its place: 7f more sets the highest */
        put_eight((bit + ONES * 0x7f) >> 7 & ONES, shift, q + i);
    }
}

/* Of bytes that are fractions of 256, digits in base 3: the first is the integer part of three times the fraction. */
static QK_INLINE uint8_t *read_digits(const uint8_t *from, int bytes, int digits, uint8_t *q)
{
    uint8_t power = 1;
    for (int digit = 0; digit < digits; digit++, power *= 3, q += bytes)
        for (int i = 0; i < bytes; i++) q[i] = (uint8_t)((uint8_t)(from[i] * power) * 3 >> 8);
    return q;
}

static QK_INLINE void read_codes(const uint8_t *from, const qk_gguf_layout *k, uint8_t *code)
{
    if (k->codes == QK_TERNARY) {
        code = read_digits(from, 32, 5, code);
        code = read_digits(from + 32, 16, 5, code);
        read_digits(from + 48, 4, 4, code);
    } else {
        read_plane(from + k->low.at, k->low, k->values, 0, code);
        if (k->high.chunk == 1)
            read_bits(from + k->high.at, k->values, k->low.bits, code);
        else if (k->high.bits)
            read_plane(from + k->high.at, k->high, k->values, k->low.bits, code);
    }
}

static QK_INLINE int by_level(const qk_gguf_layout *k) { return k->codes == QK_LEVELS_NL || k->codes == QK_LEVELS_FP4; }

static inline float of_e8m0(uint8_t e) { return float_of(e < 2 ? 0x00200000 << e : (e - 1) << 23); } /* halved */

static inline float of_ue4m3(uint8_t bits) /* halved */
{
    const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
    if (bits == 0x7f) return 0.0f;
    return exponent ? float_of((exponent + 119) << 23 | mantissa << 20) : (float)mantissa * 0x1p-10f;
}

/* The integer scale i of those of 6 bits; of QK_SCALES_Q4 also the integer that the least value has. */
static QK_INLINE int scale_q3(const uint8_t *s, int i)
{
    return ((i < 8 ? s[i] & 15 : s[i - 8] >> 4) | ((s[8 + i % 4] >> (2 * (i / 4))) & 3) << 4) - 32;
}
static QK_INLINE int scale_q4(const uint8_t *s, int i)
{
    return i < 4 ? s[i] & 63 : (s[i + 4] & 15) | (s[i - 4] >> 6) << 4;
}
static QK_INLINE int least_q4(const uint8_t *s, int i)
{
    return i < 4 ? s[i + 4] & 63 : s[i + 4] >> 4 | (s[i] >> 6) << 4;
}
static QK_INLINE int scale_xs(const uint8_t *s, int i)
{
    const int high = s[0] | s[1] << 8;
    return (((s[2 + i / 2] >> (4 * (i % 2))) & 15) | ((high >> (2 * i)) & 3) << 4) - 32;
}

/* Read scales, and what is added: -0.0, which changes nothing, if that is nothing. */
static QK_INLINE void read_scales(const uint8_t *from, const qk_gguf_layout *k, float *scale, float *least)
{
    const int groups = k->values / k->group;
    const float d = k->scales == QK_E8M0 || k->scales == QK_UE4M3 ? 0.0f : get_half(from + k->at);
    const int has_least = k->scales == QK_HALF_AND_LEAST || k->scales == QK_SCALES_Q2 || k->scales == QK_SCALES_Q4;
    const float m = has_least ? get_half(from + k->at + 2) : 0.0f;
    for (int i = 0; i < groups; i++) {
        least[i] = -0.0f;
        switch (k->scales) {
        case QK_HALF: scale[i] = d; break;
        case QK_HALF_AND_LEAST: scale[i] = d, least[i] = m; break;
        case QK_E8M0: scale[i] = of_e8m0(from[0]); break;
        case QK_UE4M3: scale[i] = of_ue4m3(from[i]); break;
        case QK_SCALES_Q2: scale[i] = d * (float)(from[i] & 15), least[i] = -(m * (float)(from[i] >> 4)); break;
        case QK_SCALES_Q3: scale[i] = d * (float)scale_q3(from + 96, i); break;
        case QK_SCALES_Q4:
            scale[i] = d * (float)scale_q4(from + 4, i), least[i] = -(m * (float)least_q4(from + 4, i));
            break;
        case QK_SCALES_Q6: scale[i] = d * (float)(int8_t)from[192 + i]; break;
        case QK_SCALES_XS: scale[i] = d * (float)scale_xs(from + 2, i); break;
        }
    }
}

/* One byte of code, as a number before its scale: 8 bits have a sign. */
static QK_INLINE int number_of(uint8_t code, const qk_gguf_layout *k)
{
    return by_level(k) ? (int)gguf_levels[k->codes].level[code] : k->low.bits == 8 ? (int8_t)code : code - k->zero;
}

/* Read values, or, if y is NULL, codes and scales; codes of some 256 values are all there before they are looked at, as
 * wider loads than their stores would wait for these. */
static QK_INLINE void read_blocks(const uint8_t *from, float *y, int8_t *q, float *scale, size_t blocks,
                                  const qk_gguf_layout *k)
{
    const int groups = k->values / k->group;
    const size_t most = GGUF_MOST / (size_t)k->values;
    for (size_t count; blocks > 0; blocks -= count) {
        uint8_t code[GGUF_MOST];
        float d[GGUF_GROUPS], least[GGUF_GROUPS];
        count = blocks < most ? blocks : most;
        for (size_t b = 0; b < count; b++, from += k->bytes) {
            read_codes(from, k, code + b * (size_t)k->values);
            read_scales(from, k, d + b * (size_t)groups, least + b * (size_t)groups);
        }
        for (size_t g = 0; g < count * (size_t)groups; g++) {
            const uint8_t *of = code + g * (size_t)k->group;
            if (!y) {
                for (int i = 0; i < k->group; i++) *q++ = (int8_t)number_of(of[i], k);
                *scale++ = d[g];
                continue;
            }
            if (by_level(k))
                decode_run(of, y, (size_t)k->group, d[g], &gguf_levels[k->codes]);
            else
                for (int i = 0; i < k->group; i++) y[i] = (float)number_of(of[i], k) * d[g] + least[g];
            y += k->group;
        }
    }
}

#define GGUF_CASE(type)                                                                                                \
    case type: read_blocks(from, y, q, scale, blocks, &qk_gguf_layouts[type]); break
static void from_gguf(const uint8_t *from, float *y, int8_t *q, float *scale, size_t blocks, qk_gguf_type type)
{
    switch (type) { /* each has a loop of its own */
        GGUF_CASE(QK_Q4_0);
        GGUF_CASE(QK_Q4_1);
        GGUF_CASE(QK_Q5_0);
        GGUF_CASE(QK_Q5_1);
        GGUF_CASE(QK_Q8_0);
        GGUF_CASE(QK_Q2_K);
        GGUF_CASE(QK_Q3_K);
        GGUF_CASE(QK_Q4_K);
        GGUF_CASE(QK_Q5_K);
        GGUF_CASE(QK_Q6_K);
        GGUF_CASE(QK_IQ4_NL);
        GGUF_CASE(QK_IQ4_XS);
        GGUF_CASE(QK_TQ1_0);
        GGUF_CASE(QK_TQ2_0);
        GGUF_CASE(QK_MXFP4);
        GGUF_CASE(QK_NVFP4);
    case QK_GGUF_TYPES: break;
    }
}
#undef GGUF_CASE

#endif
