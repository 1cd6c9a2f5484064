/* Rotation of rows by Hadamard matrices with random signs (numerics 34). */
#include <math.h>
#include <stdlib.h>

#include "drivers/drivers.h"
#include "kernels/kernels.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

enum { FAR = 64 }; /* exponents of the largest magnitude of a row up to which no sum leaves float32, nor counts */

typedef struct {
    const qk_rotation *args;
    const qk_layers_kernels *kernels;
    const float *factors;
    size_t size; /* the largest power of two that divides the columns */
} job;

static void times_power(const float *x, float *y, size_t n, int exponent)
{
    for (size_t i = 0; i < n; i++) y[i] = (float)ldexp(x[i], exponent);
}

/* Which NaN a sum gives is the compiler's choice. */
static void give_one_nan(float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = isnan(y[i]) ? NAN : y[i];
}

static void rotate_row(const job *j, const float *x, float *y)
{
    const qk_rotation *p = j->args;
    const size_t n = p->cols, parts = n / j->size;
    const int32_t most = j->kernels->absmax_f32(x, n, 1, n);
    const int exponent = (most >> 23) - 127, finite = most && exponent < 128,
              far = finite && (exponent < -FAR || exponent > FAR);
    if (far) times_power(x, y, n, -exponent), x = y;
    for (size_t at = 0; at < n; at += j->size)
        j->kernels->hadamard_f32(x + at, p->inverse ? NULL : j->factors + at, y + at, j->size);
    if (parts > 1) j->kernels->reflect_f32(y, j->size, parts);
    if (p->inverse) j->kernels->multiply_f32(y, j->factors, n);
    if (far) times_power(y, y, n, exponent);
    if (exponent == 128) give_one_nan(y, n);
}

static void rotate_rows(void *context, size_t begin, size_t end)
{
    const job *j = context;
    const size_t n = j->args->cols;
    for (; begin < end && !qk_stopped(); begin++) rotate_row(j, j->args->x + begin * n, j->args->y + begin * n);
}

int qk_rotate(const qk_rotation *p)
{
    QK_DEFAULT_MODE;
    if (qk_times(p->rows, p->cols) == 0) return 0;
    const size_t size = p->cols & -p->cols, numbers = ceil_div(p->cols, 16);
    float *factors = qk_obtain(qk_plus(qk_times(p->cols, sizeof *factors), qk_times(numbers, sizeof(uint16_t))));
    if (!factors) return -1;
    uint16_t *u = (uint16_t *)(factors + p->cols);
    qk_active()->elementwise->random_16(0, p->seed, u, numbers);
    qk_active()->layers->signed_factors(u, (float)(1 / sqrt((double)size)), factors, p->cols);
    job j = {p, qk_active()->layers, factors, size};
    const int status = qk_parallel_for(p->rows, 0.5 * (double)p->rows * (double)p->cols, rotate_rows, &j);
    qk_release(factors);
    return status;
}
