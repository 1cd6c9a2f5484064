/* The C API of qkernels: what embedders include. */
#ifndef QKERNELS_H
#define QKERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Codes of 4 and 2 bits stand alone in the low bits of a byte, the others of which are written as 0. */
typedef enum {
    QK_F32,
    QK_F64,
    QK_F16,
    QK_BF16,
    QK_I8,
    QK_U8,
    QK_I16,
    QK_U16,
    QK_I32,
    QK_I4,
    QK_U4,
    QK_I2,
    QK_U2
} qk_dtype;
typedef enum { QK_HALF_EVEN, QK_HALF_AWAY, QK_GEMMLOWP, QK_TFLITE } qk_rounding;
typedef enum { QK_IDENTITY, QK_RELU, QK_GELU, QK_GELU_TANH, QK_SILU } qk_activation;

/* ---- threads ---- */

void qk_set_num_threads(int n); /* at least 1; more than qk_most_threads() are as many as that */
int qk_get_num_threads(void);
int qk_most_threads(void); /* CPUs of the machine, or 8 where it has fewer */

/* Long calls ask `poll`, on the thread that called and every 40 ms or so, whether to stop. Where it does not return 0
 * they return QK_INTERRUPTED soon, and what they write to is undefined. NULL: they do not ask. */
enum { QK_INTERRUPTED = -3 };
void qk_set_interrupt(int (*poll)(void));

#endif
