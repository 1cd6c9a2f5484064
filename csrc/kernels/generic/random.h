/* The numbers of stochastic rounding (numerics 27): xoroshiro128+ (Blackman and Vigna, 2021), whose states Philox4x32-7
 * (Salmon et al., 2011) draws anew for each chunk of elements. */
#ifndef QK_GENERIC_RANDOM_H
#define QK_GENERIC_RANDOM_H

#include <stdint.h>

enum {
    PHILOX_ROUNDS = 7,
    STATES = 8,                      /* of xoroshiro128+ side by side, a counter each */
    RANDOM_LINE = 4 * STATES,        /* elements that a step of all of them serves, with 16 bits each */
    RANDOM_CHUNK = 32 * RANDOM_LINE, /* elements that share states */
    TURN_0 = 24,
    SHIFT_0 = 16,
    TURN_1 = 37 /* of xoroshiro128+ */
};

static const float NEAR_NUMBER = 0x1p-6f; /* of floats that stand for 16 bits: what float32 does not decide */

static const uint32_t PHILOX_FACTOR0 = 0xd2511f53, PHILOX_FACTOR1 = 0xcd9e8d57;
static const uint32_t PHILOX_BUMP0 = 0x9e3779b9, PHILOX_BUMP1 = 0xbb67ae85;

#endif
