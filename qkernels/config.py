"""Set the number of threads, and tell what embedders need to know of the build."""

import os.path
from contextlib import contextmanager
from threading import RLock

from ._bind import runtime
from ._checks import integer

__version__ = runtime.version()


def set_num_threads(n):
    """Use at most n threads from now on.

    Parameters
    ----------
    n : int
        At least 1; more than the machine has CPUs (or 8, if it has fewer) are as many as it has. At first it is
        QKERNELS_NUM_THREADS (an error at import if it is no number from 1 to 8192), else OMP_NUM_THREADS, else the
        number of CPUs that this process may use. Threads start when work first needs them: small work stays on one
        thread, and if the system refuses one, the others do its part. Results are the same bits. A call that finds the
        threads at another's work runs on the thread that makes it.

    Raises
    ------
    TypeError, ValueError
        For another n.

    Examples
    --------
    >>> before = qk.get_num_threads()
    >>> qk.set_num_threads(1)
    >>> qk.get_num_threads()
    1
    >>> qk.set_num_threads(before)
    """
    runtime.set_num_threads(min(integer(n, "n", 1), runtime.most_threads()))


def get_num_threads():
    """Return the largest number of threads that an operation uses: int, at least 1.

    Examples
    --------
    >>> qk.get_num_threads() >= 1
    True
    """
    return runtime.get_num_threads()


_contexts, _changing = [], RLock()  # of num_threads, in the order in which they were entered; handlers may use it


@contextmanager
def num_threads(n):
    """Use at most n threads in a context; the setting is the process's, not the thread's.

    Contexts of several threads may overlap: the last to be entered counts, and after all of them the setting is as it
    was before.

    `threadpoolctl.threadpool_limits` does the same once `qkernels.threadpoolctl` has been imported. (Processes that
    joblib starts have OMP_NUM_THREADS set, which counts.)

    Parameters
    ----------
    n : int
        At least 1.

    Examples
    --------
    >>> with qk.num_threads(1):
    ...     qk.get_num_threads()
    1
    """
    with _changing:
        mine = [get_num_threads()]  # what to leave behind
        set_num_threads(n)
        _contexts.append(mine)
    try:
        yield
    finally:
        with _changing:
            at = next(i for i, context in enumerate(_contexts) if context is mine)
            del _contexts[at]
            if at == len(_contexts):
                set_num_threads(mine[0])
            else:  # another thread's has been entered since: it leaves behind what this one found
                _contexts[at][0] = mine[0]


def show_config():
    """Print the version, the compiler, the instruction sets that are built, available and in use, and the threads.

    Examples
    --------
    >>> qk.show_config()  # doctest: +ELLIPSIS
    qkernels ...
    compiler: ...
    instruction sets built: ...
    instruction sets of this CPU: ...
    in use: ...
    threads: ...
    """
    print(f"qkernels {__version__}")
    print(f"compiler: {runtime.compiler()}")
    print(f"instruction sets built: {', '.join(runtime.built_isas())}")
    print(f"instruction sets of this CPU: {', '.join(runtime.available_isas())}")
    print(f"in use: {runtime.get_isa()} (QKERNELS_ISA chooses another)")
    print(f"threads: {get_num_threads()}")


def get_include():
    """Return the folder of `qkernels.h`, for a C compiler's ``-I``: str.

    Examples
    --------
    >>> import os
    >>> os.path.exists(os.path.join(qk.get_include(), "qkernels.h"))
    True
    """
    here = os.path.dirname(os.path.abspath(__file__))
    installed = os.path.join(here, "include")
    return installed if os.path.exists(installed) else os.path.join(os.path.dirname(here), "csrc", "include")
