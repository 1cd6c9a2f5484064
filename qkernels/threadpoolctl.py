"""Let threadpoolctl see and limit the threads of qkernels: importing this module is all that it takes.

`threadpoolctl` knows libraries by the names of their files, and of ours only once it is told. Then
``threadpool_limits(1)``, which scikit-learn, joblib and others use around work that has threads of its own, counts for
qkernels, too.

>>> import qkernels.threadpoolctl
>>> from threadpoolctl import threadpool_limits
>>> with threadpool_limits(1, user_api="qkernels"):
...     qk.get_num_threads()
1
"""

from threadpoolctl import LibController, register

from .config import __version__, get_num_threads, set_num_threads

__all__ = []


class _Controller(LibController):
    """Tell threadpoolctl how many threads there are, and set their number: those of `qkernels.set_num_threads`."""

    user_api = internal_api = "qkernels"
    filename_prefixes = ("runtime.",)  # the file of the bindings; the next line knows it from others' of that name
    check_symbols = ("PyInit_integer_layers",)

    def get_num_threads(self):
        """Return their number."""
        return get_num_threads()

    def set_num_threads(self, num_threads):
        """Use at most so many from now on."""
        set_num_threads(max(1, num_threads))

    def get_version(self):
        """Return the version of qkernels."""
        return __version__


register(_Controller)
