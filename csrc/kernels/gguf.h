/* How GGUF's kinds of blocks lie in memory (numerics 15): what reads them, and what asks for their sizes, look here. */
#ifndef QK_KERNELS_GGUF_H
#define QK_KERNELS_GGUF_H

#include <stdint.h>

typedef enum {
    QK_Q4_0,
    QK_Q4_1,
    QK_Q5_0,
    QK_Q5_1,
    QK_Q8_0,
    QK_Q2_K,
    QK_Q3_K,
    QK_Q4_K,
    QK_Q5_K,
    QK_Q6_K,
    QK_IQ4_NL,
    QK_IQ4_XS,
    QK_TQ1_0,
    QK_TQ2_0,
    QK_MXFP4,
    QK_NVFP4,
    QK_GGUF_TYPES
} qk_gguf_type;

/* Bits of codes: each byte of a chunk has one of each 8 / bits runs of `chunk` codes, the first in its lowest bits. */
typedef struct {
    uint8_t at, chunk, bits;
} qk_gguf_plane;

/* Scales: a float16; with a float16 that is added; a power of two; bytes of float8; a float16 times integers of 4, 6 or
 * 8 bits, in the order of that kind. */
typedef enum {
    QK_HALF,
    QK_HALF_AND_LEAST,
    QK_E8M0,
    QK_UE4M3,
    QK_SCALES_Q2,
    QK_SCALES_Q3,
    QK_SCALES_Q4,
    QK_SCALES_Q6,
    QK_SCALES_XS
} qk_gguf_scales;

/* Codes: as they are, but for `zero`, which is subtracted; five a byte in base 3; numbers of levels. */
typedef enum { QK_UNIFORM, QK_TERNARY, QK_LEVELS_NL, QK_LEVELS_FP4 } qk_gguf_codes;

typedef struct {
    const char *name;
    int values, bytes, group; /* of a block, and how many values have one scale */
    qk_gguf_plane low, high;  /* the bits of `high` stand above those of `low` */
    qk_gguf_codes codes;
    int zero;
    qk_gguf_scales scales;
    int at; /* where the float16 is */
} qk_gguf_layout;

static const qk_gguf_layout qk_gguf_layouts[QK_GGUF_TYPES] = {
    {"Q4_0", 32, 18, 32, {2, 16, 4}, {0, 0, 0}, QK_UNIFORM, 8, QK_HALF, 0},
    {"Q4_1", 32, 20, 32, {4, 16, 4}, {0, 0, 0}, QK_UNIFORM, 0, QK_HALF_AND_LEAST, 0},
    {"Q5_0", 32, 22, 32, {6, 16, 4}, {2, 1, 1}, QK_UNIFORM, 16, QK_HALF, 0},
    {"Q5_1", 32, 24, 32, {8, 16, 4}, {4, 1, 1}, QK_UNIFORM, 0, QK_HALF_AND_LEAST, 0},
    {"Q8_0", 32, 34, 32, {2, 32, 8}, {0, 0, 0}, QK_UNIFORM, 0, QK_HALF, 0},
    {"Q2_K", 256, 84, 16, {16, 32, 2}, {0, 0, 0}, QK_UNIFORM, 0, QK_SCALES_Q2, 80},
    {"Q3_K", 256, 110, 16, {32, 32, 2}, {0, 32, 1}, QK_UNIFORM, 4, QK_SCALES_Q3, 108},
    {"Q4_K", 256, 144, 32, {16, 32, 4}, {0, 0, 0}, QK_UNIFORM, 0, QK_SCALES_Q4, 0},
    {"Q5_K", 256, 176, 32, {48, 32, 4}, {16, 32, 1}, QK_UNIFORM, 0, QK_SCALES_Q4, 0},
    {"Q6_K", 256, 210, 16, {0, 64, 4}, {128, 32, 2}, QK_UNIFORM, 32, QK_SCALES_Q6, 208},
    {"IQ4_NL", 32, 18, 32, {2, 16, 4}, {0, 0, 0}, QK_LEVELS_NL, 0, QK_HALF, 0},
    {"IQ4_XS", 256, 136, 32, {8, 16, 4}, {0, 0, 0}, QK_LEVELS_NL, 0, QK_SCALES_XS, 0},
    {"TQ1_0", 256, 54, 256, {0, 0, 0}, {0, 0, 0}, QK_TERNARY, 1, QK_HALF, 52},
    {"TQ2_0", 256, 66, 256, {0, 32, 2}, {0, 0, 0}, QK_UNIFORM, 1, QK_HALF, 64},
    {"MXFP4", 32, 17, 32, {1, 16, 4}, {0, 0, 0}, QK_LEVELS_FP4, 0, QK_E8M0, 0},
    {"NVFP4", 64, 36, 16, {4, 8, 4}, {0, 0, 0}, QK_LEVELS_FP4, 0, QK_UE4M3, 0},
};

#endif
