/* Philox4x32-7 (numerics 27; Salmon et al., 2011): the numbers that it is made of. */
#ifndef QK_GENERIC_PHILOX_H
#define QK_GENERIC_PHILOX_H

#include <stdint.h>

enum { PHILOX_ROUNDS = 7, PHILOX_ELEMENTS = 8 /* that a counter serves, with 16 bits each */ };

static const uint32_t PHILOX_FACTOR0 = 0xd2511f53, PHILOX_FACTOR1 = 0xcd9e8d57;
static const uint32_t PHILOX_BUMP0 = 0x9e3779b9, PHILOX_BUMP1 = 0xbb67ae85;

#endif
