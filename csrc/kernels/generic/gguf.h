/* GGUF's blocks of 32 values (gguf.c, numerics 15), compiled once per instruction set, after layers.h. */
#ifndef QK_GENERIC_GGUF_H
#define QK_GENERIC_GGUF_H

#include <float.h>
#include <string.h>

#include "kernels/generic/elementwise.h"
#include "kernels/generic/layers.h"

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

static void from_q8_0(const uint8_t *from, float *y, size_t blocks)
{
    for (size_t b = 0; b < blocks; b++, from += Q8_0_BYTES, y += GGUF_BLOCK) {
        const float scale = get_half(from);
        for (int i = 0; i < GGUF_BLOCK; i++) y[i] = (float)(int8_t)from[2 + i] * scale;
    }
}

static void from_q4_0(const uint8_t *from, float *y, size_t blocks)
{
    for (size_t b = 0; b < blocks; b++, from += Q4_0_BYTES, y += GGUF_BLOCK) {
        const float scale = get_half(from);
        for (int i = 0; i < GGUF_BLOCK / 2; i++) y[i] = (float)((from[2 + i] & 15) - 8) * scale;
        for (int i = 0; i < GGUF_BLOCK / 2; i++) y[i + GGUF_BLOCK / 2] = (float)((from[2 + i] >> 4) - 8) * scale;
    }
}

#endif
