/* The C interface by itself: products of each kind of weights beside the plain sums that they stand for, and each error
 * that the header promises. C11 without extensions; exits with 0 if all holds, else names the lines that failed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qkernels.h>

enum { K = 70, N = 37, M = 5, BLOCK = 32, BLOCKS = 3 };

static int checks, failures;
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        checks++;                                                                                                      \
        if (!(condition)) failures++, printf("line %d: %s\n", __LINE__, #condition);                                   \
    } while (0)
#define REFUSED(call) CHECK((call) == QK_INVALID)

static uint32_t seed = 1;
static int32_t draw(int32_t least, int32_t most)
{
    seed = seed * 1664525u + 1013904223u;
    return least + (int32_t)((seed >> 8) % (uint32_t)(most - least + 1));
}

static float x[M * K], y[M * N];
static uint8_t bytes[K * N];
static int16_t shorts[K * N];
static float scales[BLOCKS * N];
static int32_t zeros[BLOCKS * N];

static void fill(void)
{
    for (size_t i = 0; i < M * K; i++) x[i] = (float)draw(-1000, 1000) / 256;
    for (size_t i = 0; i < K * N; i++) bytes[i] = (uint8_t)draw(0, 15), shorts[i] = (int16_t)draw(-32768, 32767);
    for (size_t i = 0; i < BLOCKS * N; i++) scales[i] = (float)draw(1, 100) / 512, zeros[i] = draw(0, 7);
}

/* ---- products ---- */

/* What a row and a column of the matrix stand for. */
static double value_of(const qk_matrix *m, size_t row, size_t col)
{
    const size_t at = row * N + col, block = m->kind == QK_PER_BLOCK ? row / m->block : 0;
    const size_t which = m->kind == QK_PER_TENSOR ? 0 : block * N + col;
    if (m->levels) {
        const float *levels = m->levels + (m->kind == QK_PER_AXIS ? col * m->level_count : 0);
        return (double)levels[bytes[at]] * (m->scale ? m->scale[which] : 1);
    }
    int32_t code = bytes[at];
    if (m->type == QK_I8) code = ((const int8_t *)m->b)[at];
    if (m->type == QK_I16) code = shorts[at];
    if (m->type == QK_I4) code = (code ^ 8) - 8;
    if (m->type == QK_I2) code = ((code & 3) ^ 2) - 2;
    if (m->type == QK_U2) code &= 3;
    if (m->type == QK_F16) return ldexp(1 + (shorts[at] & 1023) / 1024.0, (shorts[at] >> 10 & 31) - 15);
    if (m->type == QK_BF16) return ldexp(1 + (shorts[at] & 127) / 128.0, (shorts[at] >> 7 & 255) - 127);
    return (double)(code - (m->zero_point ? m->zero_point[which] : 0)) * m->scale[which];
}

/* Whether qk_linear by the matrix is near the plain sum, and has the same bits with other numbers of threads and by all
 * instruction sets. */
static void check_linear(const qk_matrix *m, double tolerance)
{
    static const char *isas[] = {"scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "amx"};
    float bias[N], again[M * N];
    for (size_t j = 0; j < N; j++) bias[j] = (float)j;
    qk_layer layer = {.bias = bias, .activation = QK_RELU, .bounded = 1, .lo = 0, .hi = 1e6f};
    const char *best = qk_get_isa();
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        qk_weights *w = NULL;
        if (qk_set_isa(isas[i])) continue;
        CHECK(qk_weights_new(m, &w) == QK_OK);
        CHECK(qk_weights_rows(w) == K && qk_weights_cols(w) == N && qk_weights_bytes(w) > K * N / 2);
        CHECK(qk_linear(w, x, M, &layer, i ? again : y) == QK_OK);
        if (i) CHECK(memcmp(y, again, sizeof y) == 0);
        qk_weights_free(w);
    }
    CHECK(qk_set_isa(best) == QK_OK);
    for (size_t row = 0; row < M; row++)
        for (size_t col = 0; col < N; col++) {
            double sum = bias[col], size = 1;
            for (size_t i = 0; i < K; i++) {
                const double value = value_of(m, i, col);
                sum += x[row * K + i] * value, size += fabs(4 * value);
            }
            CHECK(fabs(y[row * N + col] - fmin(fmax(sum, 0), 1e6)) <= tolerance * size);
        }
}

static void check_each_kind_of_weights(void)
{
    static const qk_dtype types[] = {QK_I8, QK_U8, QK_I4, QK_U4, QK_I2, QK_U2};
    static const qk_kind kinds[] = {QK_PER_TENSOR, QK_PER_AXIS, QK_PER_BLOCK};
    for (size_t i = 0; i < 6; i++)
        for (size_t j = 0; j < 3; j++)
            for (int with_zeros = 0; with_zeros < (types[i] < QK_I2 ? 2 : 1); with_zeros++) {
                const qk_matrix m = {.b = bytes,
                                     .type = types[i],
                                     .k = K,
                                     .n = N,
                                     .kind = kinds[j],
                                     .block = BLOCK,
                                     .scale = scales,
                                     .zero_point = with_zeros ? zeros : NULL};
                check_linear(&m, 1.0 / 120);
            }
    const qk_matrix wide = {.b = shorts, .type = QK_I16, .k = K, .n = N, .kind = QK_PER_AXIS, .scale = scales};
    check_linear(&wide, 1.0 / 30000);
}

static void check_weights_of_floats(void)
{
    for (size_t i = 0; i < K * N; i++) shorts[i] = (int16_t)(14 << 10 | draw(0, 1023));
    const qk_matrix half = {.b = shorts, .type = QK_F16, .k = K, .n = N};
    check_linear(&half, 1e-6);
    for (size_t i = 0; i < K * N; i++) shorts[i] = (int16_t)(126 << 7 | draw(0, 127));
    const qk_matrix brain = {.b = shorts, .type = QK_BF16, .k = K, .n = N};
    check_linear(&brain, 1e-6);
    qk_weights *w = NULL;
    shorts[K] = 0x7f80;
    CHECK(qk_weights_new(&brain, &w) == QK_NOT_FINITE && !w);
}

static void check_weights_of_codebooks(void)
{
    float levels[N * 16];
    for (size_t i = 0; i < N * 16; i++) levels[i] = (float)draw(-500, 500) / 256;
    qk_matrix m = {.b = bytes, .type = QK_U8, .k = K, .n = N, .levels = levels, .level_count = 16};
    check_linear(&m, 1.0 / 50);
    m.kind = QK_PER_AXIS;
    check_linear(&m, 1.0 / 50);
    m.kind = QK_PER_BLOCK, m.block = BLOCK, m.scale = scales;
    check_linear(&m, 1.0 / 50);
    qk_weights *w = NULL;
    m.level_count = 15;
    REFUSED(qk_weights_new(&m, &w)); /* codes of 15 */
    m.level_count = 17;
    REFUSED(qk_weights_new(&m, &w));
    m.level_count = 16, levels[3] = INFINITY;
    REFUSED(qk_weights_new(&m, &w));
    const uint8_t block_scale[K * N] = {0};
    const int8_t block_shift[K * N] = {0};
    m = (qk_matrix){.b = bytes,
                    .type = QK_U2,
                    .k = K,
                    .n = N,
                    .kind = QK_PER_BLOCK,
                    .block = 4,
                    .scale = scales,
                    .block_scale = block_scale,
                    .block_shift = block_shift};
    REFUSED(qk_weights_new(&m, &w)); /* integer scales of 2 bits */
}

static void check_matmul(void)
{
    uint8_t a[M * K];
    int32_t a_zero[M], b_zero[N], out[M * N];
    qk_weights *w = NULL;
    qk_matrix m = {.b = bytes, .type = QK_U8, .k = K, .n = N, .scale = scales};
    for (size_t i = 0; i < M * K; i++) a[i] = (uint8_t)draw(0, 255);
    for (size_t i = 0; i < M; i++) a_zero[i] = draw(0, 255);
    for (size_t i = 0; i < N; i++) b_zero[i] = draw(0, 255);
    CHECK(qk_weights_new(&m, &w) == QK_OK);
    CHECK(qk_matmul(w, a, QK_U8, M, a_zero, b_zero, out) == QK_OK);
    for (size_t row = 0; row < M; row++)
        for (size_t col = 0; col < N; col++) {
            int32_t sum = 0;
            for (size_t i = 0; i < K; i++) sum += (a[row * K + i] - a_zero[row]) * (bytes[i * N + col] - b_zero[col]);
            CHECK(out[row * N + col] == sum);
        }
    b_zero[3] = 256;
    REFUSED(qk_matmul(w, a, QK_U8, M, NULL, b_zero, out));
    REFUSED(qk_matmul(w, a, QK_I16, M, NULL, NULL, out));
    REFUSED(qk_matmul(w, a, (qk_dtype)99, M, NULL, NULL, out));
    REFUSED(qk_matmul(w, NULL, QK_U8, M, NULL, NULL, out));
    REFUSED(qk_matmul(NULL, a, QK_U8, M, NULL, NULL, out));
    REFUSED(qk_matmul(w, a, QK_U8, SIZE_MAX / 2, NULL, NULL, out));
    qk_weights_free(w);
}

static void check_matmul_of_int16(void)
{
    int16_t a[M * K];
    int64_t out[M * N];
    qk_weights *w = NULL;
    const qk_matrix m = {.b = shorts, .type = QK_I16, .k = K, .n = N, .scale = scales};
    for (size_t i = 0; i < M * K; i++) a[i] = (int16_t)draw(-32768, 32767);
    CHECK(qk_weights_new(&m, &w) == QK_OK);
    CHECK(qk_matmul(w, a, QK_I16, M, NULL, NULL, out) == QK_OK);
    for (size_t row = 0; row < M; row++)
        for (size_t col = 0; col < N; col++) {
            int64_t sum = 0;
            for (size_t i = 0; i < K; i++) sum += (int64_t)a[row * K + i] * shorts[i * N + col];
            CHECK(out[row * N + col] == sum);
        }
    qk_code_layer layer = {.type = QK_I8, .out_type = QK_I8, .scale = 1, .out_scale = 1};
    REFUSED(qk_qlinear(w, a, M, &layer, out));
    REFUSED(qk_matmul(w, a, QK_I8, M, NULL, NULL, out));
    qk_weights_free(w);
}

static void check_qlinear(void)
{
    uint8_t q[M * K], out[M * N];
    int32_t bias[N];
    qk_weights *w = NULL;
    const qk_matrix m = {.b = bytes, .type = QK_I8, .k = K, .n = N, .kind = QK_PER_AXIS, .scale = scales};
    const qk_code_layer plain = {.type = QK_U8,
                                 .out_type = QK_U8,
                                 .scale = 0.5f,
                                 .out_scale = 8,
                                 .zero_point = 100,
                                 .out_zero_point = 30,
                                 .int_bias = bias};
    for (size_t i = 0; i < M * K; i++) q[i] = (uint8_t)draw(0, 255);
    for (size_t i = 0; i < N; i++) bias[i] = draw(-1000, 1000);
    CHECK(qk_weights_new(&m, &w) == QK_OK);
    for (int rounding = QK_HALF_EVEN; rounding <= QK_TFLITE; rounding++) {
        qk_code_layer l = plain;
        l.rounding = (qk_rounding)rounding;
        CHECK(qk_qlinear(w, q, M, &l, out) == QK_OK);
        for (size_t i = 0; i < M * N; i++) {
            int32_t sum = bias[i % N];
            for (size_t j = 0; j < K; j++) sum += (q[i / N * K + j] - 100) * (int8_t)bytes[j * N + i % N];
            const double code = sum * 0.5 * scales[i % N] / 8 + 30;
            CHECK(fabs(out[i] - fmin(fmax(code, 0), 255)) <= 0.501);
        }
    }
    qk_code_layer bad = plain;
    bad.scale = 0;
    REFUSED(qk_qlinear(w, q, M, &bad, out));
    bad = plain, bad.out_scale = NAN;
    REFUSED(qk_qlinear(w, q, M, &bad, out));
    bad = plain, bad.zero_point = 256;
    REFUSED(qk_qlinear(w, q, M, &bad, out));
    bad = plain, bad.out_type = (qk_dtype)-1;
    REFUSED(qk_qlinear(w, q, M, &bad, out));
    bad = plain, bad.type = QK_I4;
    REFUSED(qk_qlinear(w, q, M, &bad, out));
    bad = plain, bad.rounding = (qk_rounding)4;
    REFUSED(qk_qlinear(w, q, M, &bad, out));
    bad = plain, bad.rounding = QK_TFLITE, bad.activation = QK_GELU;
    REFUSED(qk_qlinear(w, q, M, &bad, out));
    bad = plain, bad.bias = scales;
    REFUSED(qk_qlinear(w, q, M, &bad, out));
    bad = plain, bad.q_stride = K - 1;
    REFUSED(qk_qlinear(w, q, M, &bad, out));
    bad = plain, bias[3] = INT32_MAX;
    CHECK(qk_qlinear(w, q, M, &bad, out) == QK_OVERFLOW);
    float real_bias[N] = {[N - 1] = NAN};
    bad.int_bias = NULL, bad.bias = real_bias;
    CHECK(qk_qlinear(w, q, M, &bad, out) == QK_NOT_FINITE);
    REFUSED(qk_qlinear(w, q, M, NULL, out));
    qk_weights_free(w);
}

/* A single column, whose results are a column of a larger matrix, as its residuals are. */
static void check_a_single_column(void)
{
    enum { ROWS = 43, DEPTH = 8, APART = 3 };
    const qk_matrix m = {.b = bytes, .type = QK_I8, .k = DEPTH, .n = 1, .scale = scales};
    float dense[ROWS], apart[ROWS * APART], residual[ROWS], residuals[ROWS * APART] = {0};
    qk_weights *w = NULL;
    CHECK(qk_weights_new(&m, &w) == QK_OK);
    for (size_t i = 0; i < ROWS * APART; i++) apart[i] = -1, residuals[i] = (float)i;
    for (size_t i = 0; i < ROWS; i++) residual[i] = residuals[i * APART];
    qk_layer layer = {.residual = residual, .activation = QK_GELU};
    CHECK(qk_linear(w, x, ROWS, &layer, dense) == QK_OK);
    layer.residual = residuals, layer.residual_stride = layer.y_stride = APART;
    CHECK(qk_linear(w, x, ROWS, &layer, apart) == QK_OK);
    for (size_t i = 0; i < ROWS * APART; i++) CHECK(apart[i] == (i % APART ? -1 : dense[i / APART]));
    for (size_t i = 0; i < ROWS; i++) {
        double sum = residual[i];
        for (size_t j = 0; j < DEPTH; j++) sum += x[i * DEPTH + j] * (double)(int8_t)bytes[j] * scales[0];
        CHECK(fabs(dense[i] - sum / 2 * (1 + erf(sum * sqrt(0.5)))) <= 0.02 * (1 + fabs(sum)));
    }
    qk_weights_free(w);
}

static void check_what_weights_refuse(void)
{
    const qk_matrix good = {.b = bytes, .type = QK_I8, .k = K, .n = N, .scale = scales};
    qk_weights *w = NULL;
    qk_matrix m = good;
    REFUSED(qk_weights_new(NULL, &w));
    REFUSED(qk_weights_new(&m, NULL));
    m.b = NULL;
    REFUSED(qk_weights_new(&m, &w));
    m = good, m.scale = NULL;
    REFUSED(qk_weights_new(&m, &w));
    m = good, m.kind = QK_PER_BLOCK;
    REFUSED(qk_weights_new(&m, &w)); /* block is 0 */
    m = good, m.kind = (qk_kind)3;
    REFUSED(qk_weights_new(&m, &w));
    m = good, m.k = SIZE_MAX / 2;
    REFUSED(qk_weights_new(&m, &w));
    m = good, m.type = QK_U4, m.k = 0, m.n = SIZE_MAX - 63; /* panels of no bytes, but too many to count */
    REFUSED(qk_weights_new(&m, &w));
    m = good, m.k = SIZE_MAX, m.n = 0;
    REFUSED(qk_weights_new(&m, &w));
    for (int type = -1; type < 20; type++) {
        m = good, m.type = (qk_dtype)type;
        if (type != QK_I8 && type != QK_U8 && type != QK_I16 && (type < QK_I4 || type > QK_U2))
            REFUSED(qk_weights_new(&m, &w));
    }
    const float wrong[] = {0, -1, NAN, INFINITY, 1e-40f};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        m = good, m.scale = wrong + i;
        REFUSED(qk_weights_new(&m, &w));
    }
    const int32_t zero_point = 128;
    m = good, m.zero_point = &zero_point;
    REFUSED(qk_weights_new(&m, &w));
    CHECK(!w);
    qk_weights_free(NULL);
    CHECK(qk_weights_bytes(NULL) == 0);
    m = good, m.k = m.n = 0, m.b = NULL;
    CHECK(qk_weights_new(&m, &w) == QK_OK && qk_linear(w, NULL, 0, NULL, NULL) == QK_OK);
    qk_weights_free(w);
}

static void check_what_linear_refuses(void)
{
    qk_weights *w = NULL;
    const qk_matrix m = {.b = bytes, .type = QK_U4, .k = K, .n = N, .scale = scales};
    CHECK(qk_weights_new(&m, &w) == QK_OK);
    qk_layer layer = {.activation = (qk_activation)5};
    REFUSED(qk_linear(w, x, M, &layer, y));
    layer = (qk_layer){.bounded = 1, .lo = 1, .hi = NAN};
    REFUSED(qk_linear(w, x, M, &layer, y));
    layer = (qk_layer){.x_stride = K - 1};
    REFUSED(qk_linear(w, x, M, &layer, y));
    REFUSED(qk_linear(w, NULL, M, NULL, y));
    REFUSED(qk_linear(w, x, M, NULL, NULL));
    REFUSED(qk_linear(NULL, x, M, NULL, y));
    REFUSED(qk_linear(w, x, SIZE_MAX, NULL, y));
    const float kept = x[K + 1];
    x[K + 1] = NAN;
    CHECK(qk_linear(w, x, M, NULL, y) == QK_NOT_FINITE);
    x[K + 1] = kept;
    qk_weights_free(w);
}

static void check_overflow_is_told(void)
{
    enum { LONG = 70000 };
    uint8_t *many = malloc(LONG);
    float *row = calloc(LONG, sizeof *row), one = 1, result;
    qk_weights *w = NULL;
    const qk_matrix m = {.b = many, .type = QK_U8, .k = LONG, .n = 1, .scale = &one};
    if (many && row) {
        memset(many, 255, LONG);
        CHECK(qk_weights_new(&m, &w) == QK_OK);
        CHECK(qk_linear(w, row, 1, NULL, &result) == QK_OVERFLOW);
        qk_weights_free(w);
    }
    free(many), free(row);
}

/* ---- arrays ---- */

static void check_arrays(void)
{
    const float values[6] = {-1, 0.25f, 0.75f, 100, NAN, 1.25f};
    const uint8_t half_even[6] = {1, 3, 5, 203, 3, 5}, half_away[6] = {1, 4, 5, 203, 3, 6};
    float scale = 0.5f, back[6];
    int32_t zero = 3;
    uint8_t q[6];
    const qk_params good = {.outer = 1, .length = 6, .inner = 1, .scale = &scale, .zero_point = &zero, .qmax = 255};
    CHECK(qk_quantize(values, QK_F32, q, QK_U8, &good, QK_HALF_EVEN) == QK_OK);
    CHECK(memcmp(q, half_even, sizeof q) == 0);
    CHECK(qk_dequantize(q, QK_U8, back, QK_F32, &good) == QK_OK && back[0] == -1 && back[3] == 100);
    CHECK(qk_fake_quantize(values, back, QK_F32, &good) == QK_OK && back[2] == 1 && back[4] == 0);
    CHECK(qk_quantize(values, QK_F32, q, QK_U8, &good, QK_HALF_AWAY) == QK_OK);
    CHECK(memcmp(q, half_away, sizeof q) == 0);
    REFUSED(qk_quantize(NULL, QK_F32, q, QK_U8, &good, QK_HALF_EVEN));
    REFUSED(qk_quantize(values, QK_F32, q, QK_U8, NULL, QK_HALF_EVEN));
    REFUSED(qk_quantize(values, QK_F32, q, QK_U8, &good, QK_TFLITE));
    REFUSED(qk_quantize(values, QK_F32, q, QK_I8, &good, QK_HALF_EVEN)); /* qmax is 255 */
    for (int type = -2; type < 20; type++) {
        if (type < 0 || type > QK_BF16) REFUSED(qk_quantize(values, (qk_dtype)type, q, QK_U8, &good, QK_HALF_EVEN));
        if (type < QK_I8 || type > QK_U2) REFUSED(qk_dequantize(q, (qk_dtype)type, back, QK_F32, &good));
        if (type < 0 || type > QK_BF16) REFUSED(qk_fake_quantize(values, back, (qk_dtype)type, &good));
    }
    REFUSED(qk_quantize(values, QK_F32, q, QK_I32, &good, QK_HALF_EVEN));
    qk_params bad = good;
    bad.kind = (qk_kind)-1;
    REFUSED(qk_dequantize(q, QK_U8, back, QK_F32, &bad));
    bad = good, bad.kind = QK_PER_BLOCK;
    REFUSED(qk_dequantize(q, QK_U8, back, QK_F32, &bad));
    bad = good, bad.outer = bad.inner = SIZE_MAX / 4;
    REFUSED(qk_dequantize(q, QK_U8, back, QK_F32, &bad));
    const uint8_t floats[6] = {0xc0, 0x30, 0x3c, 0x74, 0x7f, 0x42};
    REFUSED(qk_quantize(values, QK_F32, q, QK_F8_E4M3, &good, QK_HALF_EVEN)); /* the zero point is 3 */
    zero = 0;
    CHECK(qk_quantize(values, QK_F32, q, QK_F8_E4M3, &good, QK_HALF_EVEN) == QK_OK);
    CHECK(memcmp(q, floats, sizeof q) == 0);
    CHECK(qk_dequantize(q, QK_F8_E4M3, back, QK_F32, &good) == QK_OK && back[1] == 0.25f && back[3] == 96);
    REFUSED(qk_quantize(values, QK_F32, q, QK_F8_E4M3, &good, QK_HALF_AWAY));
    scale = 0;
    REFUSED(qk_dequantize(q, QK_U8, back, QK_F32, &good));
    scale = 1, zero = 256;
    REFUSED(qk_dequantize(q, QK_U8, back, QK_F32, &good));
}

static void check_ranges(void)
{
    const float values[6] = {0, 2, -3, -2.5f, 1.34f, 0.5f}; /* the example of ONNX DynamicQuantizeLinear */
    const uint8_t codes[6] = {153, 255, 0, 26, 221, 179};
    float scale[2], missing[2] = {1, NAN};
    int32_t zero[2];
    uint8_t q[6];
    CHECK(qk_choose_qparams(values, 6, QK_U8, 0, scale, zero) == QK_OK && *zero == 153 && *scale == 5.0f / 255);
    CHECK(qk_choose_qparams(values, 6, QK_I8, 1, scale, zero) == QK_OK && *zero == 0 && *scale == 3.0f / 127);
    CHECK(qk_choose_qparams(missing, 2, QK_I8, 1, scale, zero) == QK_NOT_FINITE);
    REFUSED(qk_choose_qparams(values, 6, QK_I32, 1, scale, zero));
    REFUSED(qk_choose_qparams(NULL, 6, QK_I8, 1, scale, zero));
    REFUSED(qk_choose_qparams(values, 6, QK_I8, 1, NULL, zero));
    CHECK(qk_dynamic_quantize(values, 1, 6, q, QK_U8, 0, scale, zero) == QK_OK && memcmp(q, codes, sizeof q) == 0);
    CHECK(qk_dynamic_quantize(missing, 2, 1, q, QK_U8, 0, scale, zero) == QK_NOT_FINITE);
    REFUSED(qk_dynamic_quantize(values, 1, 6, q, QK_F32, 0, scale, zero));
    REFUSED(qk_dynamic_quantize(values, SIZE_MAX, 6, q, QK_U8, 0, scale, zero));
    REFUSED(qk_dynamic_quantize(values, 1, 6, NULL, QK_U8, 0, scale, zero));
    REFUSED(qk_dynamic_quantize(values, SIZE_MAX / 2, 0, q, QK_U8, 0, scale, zero)); /* as many scales */
}

static void check_requantize(void)
{
    const int32_t acc[4] = {100, -100, 30, 1000000}, bias[2] = {1, -1};
    const float multiplier[2] = {0.5f, 0.25f};
    int32_t mantissa[2], shift[2];
    int8_t q[4];
    qk_requant r = {.multiplier = multiplier, .zero_point = 1, .qmin = -128, .qmax = 127};
    CHECK(qk_requantize(acc, bias, q, QK_I8, 2, 2, &r) == QK_OK);
    CHECK(q[0] == 51 && q[1] == -24 && q[2] == 17 && q[3] == 127); /* 50.5 and 15.5 go to the even one */
    for (int i = 0; i < 2; i++) qk_quantize_multiplier(multiplier[i], mantissa + i, shift + i);
    r.rounding = QK_GEMMLOWP;
    REFUSED(qk_requantize(acc, bias, q, QK_I8, 2, 2, &r));
    r.mantissa = mantissa, r.shift = shift;
    CHECK(qk_requantize(acc, bias, q, QK_I8, 2, 2, &r) == QK_OK && q[0] == 52 && q[3] == 127);
    REFUSED(qk_requantize(acc, NULL, q, QK_I8, 2, 2, &r));
    REFUSED(qk_requantize(acc, bias, q, QK_F32, 2, 2, &r));
    REFUSED(qk_requantize(acc, bias, q, QK_I8, SIZE_MAX, 2, &r));
    r.rounding = (qk_rounding)7;
    REFUSED(qk_requantize(acc, bias, q, QK_I8, 2, 2, &r));
}

static void check_codebooks(void)
{
    const float levels[6] = {1, -1, 0, 0, 2, 2}, values[4] = {0.5f, -3, 0.4f, 9};
    const uint8_t nearest[4] = {0, 1, 2, 0}; /* half-way: the lower code */
    qk_shape shape = {1, 4, 1, 0};
    qk_book *book = NULL;
    uint8_t codes[4];
    float back[4], scale[2];
    CHECK(qk_book_new(levels, 1, 3, &book) == QK_OK);
    CHECK(qk_book_encode(book, values, &shape, codes, NULL) == QK_OK && memcmp(codes, nearest, 4) == 0);
    CHECK(qk_book_decode(book, codes, &shape, NULL, back) == QK_OK && back[0] == 1 && back[2] == 0);
    REFUSED(qk_book_encode(book, values, &shape, codes, scale)); /* no blocks */
    codes[2] = 3;
    REFUSED(qk_book_decode(book, codes, &shape, NULL, back));
    shape.block = 2;
    CHECK(qk_book_encode(book, values, &shape, codes, scale) == QK_OK && scale[0] == 3 && scale[1] == 9);
    REFUSED(qk_book_encode(book, values, &shape, codes, NULL));
    qk_book_free(book);
    CHECK(qk_book_new(levels, 2, 3, &book) == QK_OK);
    REFUSED(qk_book_encode(book, values, &shape, codes, scale)); /* blocks of channels */
    shape = (qk_shape){2, 2, 1, 0};
    CHECK(qk_book_encode(book, values, &shape, codes, NULL) == QK_OK && codes[1] == 0 && codes[3] == 1);
    shape.length = 3;
    REFUSED(qk_book_encode(book, values, &shape, codes, NULL));
    qk_book_free(book), qk_book_free(NULL);
    REFUSED(qk_book_new(levels, 1, 0, &book));
    REFUSED(qk_book_new(levels, 1, 257, &book));
    REFUSED(qk_book_new(NULL, 1, 3, &book));
    REFUSED(qk_book_new(levels, SIZE_MAX / 2, 2, &book));
    back[0] = NAN;
    CHECK(qk_book_new(back, 1, 1, &book) == QK_NOT_FINITE);
}

static void check_layers(void)
{
    const float ones[2] = {1, 1}, none[2] = {0, 0}, row[2] = {3, 5};
    const float q[8] = {0, 0, 0, 0}, v[8] = {1, 2, 3, 4};
    float out[8];
    const int64_t starts[2] = {0, 2}, backwards[2] = {0, -2};
    CHECK(qk_layer_norm(row, NULL, 1, 2, ones, none, 0, out) == QK_OK && out[0] == -1 && out[1] == 1);
    REFUSED(qk_layer_norm(row, NULL, 1, 2, ones, none, NAN, out));
    REFUSED(qk_layer_norm(row, NULL, 1, 2, NULL, none, 0, out));
    REFUSED(qk_layer_norm(row, NULL, SIZE_MAX, 2, ones, none, 0, out));
    const qk_attention_args good = {.q = q,
                                    .k = q,
                                    .v = v,
                                    .q_stride = 2,
                                    .k_stride = 2,
                                    .v_stride = 2,
                                    .out = out,
                                    .out_stride = 2,
                                    .heads = 1,
                                    .size = 2,
                                    .sequences = 1,
                                    .starts = starts,
                                    .scale = 0.7};
    CHECK(qk_attention(&good) == QK_OK && fabsf(out[0] - 2) < 0.02f && fabsf(out[3] - 3) < 0.02f);
    qk_attention_args bad = good;
    REFUSED(qk_attention(NULL));
    bad.starts = backwards;
    REFUSED(qk_attention(&bad));
    bad = good, bad.size = 0;
    REFUSED(qk_attention(&bad));
    bad = good, bad.scale = -1;
    REFUSED(qk_attention(&bad));
    bad = good, bad.v = NULL;
    REFUSED(qk_attention(&bad));
    const float missing[4] = {0, NAN, 0, 0};
    bad = good, bad.k = missing;
    CHECK(qk_attention(&bad) == QK_NOT_FINITE);
}

static void check_the_library(void)
{
    const char *isa = qk_get_isa();
    CHECK(strcmp(qk_version(), QK_VERSION) == 0);
    REFUSED(qk_set_isa("abacus"));
    REFUSED(qk_set_isa(NULL));
    CHECK(strcmp(qk_get_isa(), isa) == 0 && qk_set_isa("scalar") == QK_OK && qk_set_isa(isa) == QK_OK);
    for (int status = -9; status < 2; status++) CHECK(strlen(qk_status_text((qk_status)status)) > 5);
    qk_set_num_threads(2);
    CHECK(qk_get_num_threads() == 2 && qk_most_threads() >= 2);
}

static int stop(void) { return 1; }

static void check_interruption(void)
{
    enum { MANY = 1 << 24 }; /* quotients in double: more than 40 ms by one thread */
    double *values = calloc(MANY, sizeof *values);
    float scale = 1;
    int32_t zero = 0;
    const qk_params p = {.outer = 1, .length = MANY, .inner = 1, .scale = &scale, .zero_point = &zero, .qmax = 255};
    if (!values) return;
    qk_set_num_threads(1);
    qk_set_interrupt(stop);
    CHECK(qk_fake_quantize(values, values, QK_F64, &p) == QK_INTERRUPTED);
    qk_set_interrupt(NULL);
    CHECK(qk_fake_quantize(values, values, QK_F64, &p) == QK_OK);
    free(values);
}

static int asked;

static int alone(void)
{
    asked++;
    return 1;
}

static void check_that_calls_ask_whether_to_work_alone(void)
{
    enum { MANY = 1 << 22 };
    float *values = calloc(MANY, sizeof *values), scale = 1;
    int32_t zero = 0;
    const qk_params p = {.outer = 1, .length = MANY, .inner = 1, .scale = &scale, .zero_point = &zero, .qmax = 255};
    if (!values) return;
    qk_set_num_threads(2);
    qk_set_alone(alone);
    CHECK(qk_fake_quantize(values, values, QK_F32, &p) == QK_OK && asked > 0);
    const int before = asked;
    qk_set_alone(NULL);
    CHECK(qk_fake_quantize(values, values, QK_F32, &p) == QK_OK && asked == before);
    qk_set_num_threads(1);
    free(values);
}

int main(void)
{
    check_the_library();
    fill();
    check_each_kind_of_weights();
    check_matmul(), check_matmul_of_int16(), check_qlinear(), check_a_single_column();
    check_weights_of_codebooks(), check_weights_of_floats();
    check_what_weights_refuse(), check_what_linear_refuses(), check_overflow_is_told();
    check_arrays(), check_ranges(), check_requantize(), check_codebooks(), check_layers(), check_interruption();
    check_that_calls_ask_whether_to_work_alone();
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
