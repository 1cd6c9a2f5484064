/* The search for clusters on a line, for doubles. */
#define REAL double
#define of(name) line_##name
#include "kernels/generic/kmeans1d_template.h"
#undef REAL
#undef of
