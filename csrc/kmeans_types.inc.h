/* k-means for float32 and float64; the including file has set VECTOR, the bytes of a register. */
#define REAL float
#define INTEGER int32_t
#define EPSILON 0x1p-24f
#define TINY 0x1p-70f /* above the error that underflow brings to a distance */
#define of(name) name##_f32
static inline float root_f32(float x) { return sqrtf(x); }
static inline float fused_f32(float x, float sum) { return __builtin_fmaf(x, x, sum); }
#include "kmeans.inc.h"
#undef REAL
#undef INTEGER
#undef EPSILON
#undef TINY
#undef of

#define REAL double
#define INTEGER int64_t
#define EPSILON 0x1p-53
#define TINY 0x1p-500
#define of(name) name##_f64
static inline double root_f64(double x) { return sqrt(x); }
static inline double fused_f64(double x, double sum) { return __builtin_fma(x, x, sum); }
#include "kmeans.inc.h"
#undef REAL
#undef INTEGER
#undef EPSILON
#undef TINY
#undef of
