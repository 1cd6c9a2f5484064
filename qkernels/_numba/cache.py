"""Numba's decorator, with its cache among the user's. Beside the module, as Numba has it, compiled code would outlive an installed
package: pip does not take away what it has not brought, and the folder that stays hides an editable install."""

from numba import config, njit
from numba.misc.appdirs import AppDirs


def compiled(*signatures):
    """Compile without the GIL, and keep the result in NUMBA_CACHE_DIR or else in the user's cache for qkernels."""

    def decorate(function):
        given = config.CACHE_DIR
        config.CACHE_DIR = given or AppDirs("qkernels", appauthor=False).user_cache_dir
        try:
            return njit(*signatures, nogil=True, cache=True)(function)
        finally:
            config.CACHE_DIR = given

    return decorate
