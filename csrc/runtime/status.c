/* What the library says of itself. */
#include "include/qkernels.h"

const char *qk_version(void) { return QK_VERSION; }

const char *qk_status_text(qk_status status)
{
    switch (status) {
    case QK_OK: return "all is well";
    case QK_NO_MEMORY: return "there is no memory";
    case QK_NOT_FINITE: return "a value is NaN or infinite";
    case QK_INTERRUPTED: return "the call was interrupted";
    case QK_OVERFLOW: return "sums could leave int32";
    case QK_INVALID: return "an argument is invalid";
    }
    return "this is no status of qkernels";
}
