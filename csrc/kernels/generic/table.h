/* What makes the table of a family of its lines (kernels.h): functions of the including file that bear the names of the
 * operations, so that one which is missing does not compile. */
#ifndef QK_GENERIC_TABLE_H
#define QK_GENERIC_TABLE_H

#include "kernels/generic/target.h"
#include "kernels/kernels.h"

#define SIZE(size, value) .size = value,
#define OPERATION(result, name, arguments) .name = name,
#define PANEL(result, name, arguments) .name = name,
#define OPTIONAL(result, name, arguments, value) .name = value,

#endif
