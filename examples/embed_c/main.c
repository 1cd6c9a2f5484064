/* A dense layer by qkernels from C, or from C++: float weights are quantized and packed once, then each batch is one
 * call.
 *
 * README of the library: docs/embedding.md. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qkernels.h>

enum { INPUTS = 384, OUTPUTS = 1536, ROWS = 8 };

/* Says what went wrong, and where; QK_OK is 0. */
static qk_status report(qk_status status, const char *what)
{
    if (status) fprintf(stderr, "%s: %s\n", what, qk_status_text(status));
    return status;
}

/* Weights of a layer as PyTorch keeps them, (outputs, inputs): codes with one scale an output, packed from the
 * transpose, which is only a matter of strides. */
static qk_status pack(const float *w, size_t outputs, size_t inputs, qk_weights **packed)
{
    int8_t *codes = (int8_t *)malloc(outputs * inputs);
    float *scale = (float *)malloc(outputs * sizeof *scale);
    int32_t *zero_point = (int32_t *)malloc(outputs * sizeof *zero_point);
    qk_status status = QK_NO_MEMORY;
    if (codes && scale && zero_point)
        status = qk_dynamic_quantize(w, outputs, inputs, codes, QK_I8, 1, scale, zero_point);
    if (!status) {
        qk_matrix matrix;
        memset(&matrix, 0, sizeof matrix);
        matrix.b = codes;
        matrix.type = QK_I8;
        matrix.k = inputs;
        matrix.n = outputs;
        matrix.row_stride = 1;
        matrix.col_stride = (ptrdiff_t)inputs;
        matrix.kind = QK_PER_AXIS;
        matrix.scale = scale;
        matrix.zero_point = zero_point;
        status = qk_weights_new(&matrix, packed);
    }
    free(codes);
    free(scale);
    free(zero_point);
    return report(status, "pack");
}

static float uniform(void) { return (float)rand() / (float)RAND_MAX * 2 - 1; }

static void fill(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = uniform();
}

/* The largest distance of y from relu(x . w' + bias), over the largest value. */
static double error_of(const float *y, const float *x, const float *w, const float *bias)
{
    double worst = 0, largest = 0;
    for (size_t row = 0; row < ROWS; row++)
        for (size_t j = 0; j < OUTPUTS; j++) {
            double sum = bias[j];
            for (size_t i = 0; i < INPUTS; i++) sum += (double)x[row * INPUTS + i] * w[j * INPUTS + i];
            if (sum < 0) sum = 0;
            worst = fmax(worst, fabs(y[row * OUTPUTS + j] - sum));
            largest = fmax(largest, sum);
        }
    return worst / largest;
}

static int run(const float *w, const float *bias, float *x, float *y)
{
    qk_weights *packed = NULL;
    qk_layer layer;
    if (pack(w, OUTPUTS, INPUTS, &packed)) return 1;
    printf("%zu x %zu weights in %zu bytes, %s, %d threads\n", qk_weights_rows(packed), qk_weights_cols(packed),
           qk_weights_bytes(packed), qk_get_isa(), qk_get_num_threads());

    memset(&layer, 0, sizeof layer);
    layer.bias = bias;
    layer.activation = QK_RELU;
    qk_status status = report(qk_linear(packed, x, ROWS, &layer, y), "linear");
    const double error = status ? 1 : error_of(y, x, w, bias);
    printf("largest error: %.4f of the largest value\n", error);

    x[7] = NAN; /* what the library says of a value that it cannot quantize */
    status = qk_linear(packed, x, ROWS, &layer, y);
    printf("with NaN: %s\n", qk_status_text(status));

    qk_weights_free(packed);
    return error < 0.02 && status == QK_NOT_FINITE ? 0 : 1;
}

int main(void)
{
    float *w = (float *)malloc(sizeof(float) * OUTPUTS * INPUTS), *bias = (float *)malloc(sizeof(float) * OUTPUTS);
    float *x = (float *)malloc(sizeof(float) * ROWS * INPUTS), *y = (float *)malloc(sizeof(float) * ROWS * OUTPUTS);
    int failed = 1;
    if (w && bias && x && y) {
        fill(w, (size_t)OUTPUTS * INPUTS);
        fill(bias, OUTPUTS);
        fill(x, (size_t)ROWS * INPUTS);
        printf("qkernels %s\n", qk_version());
        failed = run(w, bias, x, y);
    }
    free(w);
    free(bias);
    free(x);
    free(y);
    return failed;
}
