/* The search for clusters on a line, for doubles. */
#ifndef QK_GENERIC_KMEANS1D_H
#define QK_GENERIC_KMEANS1D_H

#include "kernels/kmeans1d.h"

#define REAL double
#define TYPED(name) line_##name
#include "kernels/generic/kmeans1d_template.h"
#undef REAL
#undef TYPED

#endif
