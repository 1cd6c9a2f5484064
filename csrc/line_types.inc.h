/* The search for clusters on a line, for doubles. */
#define REAL double
#define of(name) line_##name
#include "line.inc.h"
#undef REAL
#undef of
