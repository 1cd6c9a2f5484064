# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Hold the state of the process: instruction set, threads, signals, the floating-point mode of calls."""

import contextvars
import os
import threading

import numpy as np

from cpython.contextvars cimport PyContextVar_Reset, PyContextVar_Set

from .c cimport (
    qk_activate, qk_active, qk_built, qk_enter_mode, qk_find, qk_get_num_threads, qk_kernels, qk_leave_mode, qk_mode,
    qk_most_threads, qk_name, qk_run_peak, qk_set_interrupt, qk_set_num_threads, qk_version,
)

cdef extern from *:
    """
    #if defined(__clang__)
    #define QK_COMPILER "clang " __clang_version__
    #else
    #define QK_COMPILER "gcc " __VERSION__
    #endif

    #include <unistd.h>

    /* Python runs the handlers of signals in its main thread alone. An exception of theirs stays set while C returns.
     * The child of one that forks cannot finish the call, which C sees, and Python must be told why. */
    static unsigned long main_thread;
    static int signal_raises(void)
    {
        if (PyThread_get_thread_ident() != main_thread) return 0;
        const PyGILState_STATE state = PyGILState_Ensure();
        const pid_t process = getpid();
        int raised = PyErr_CheckSignals();
        if (!raised && getpid() != process) {
            PyErr_SetString(PyExc_RuntimeError, "this call was forked by a signal's handler, and its threads are gone");
            raised = -1;
        }
        PyGILState_Release(state);
        return raised;
    }
    """
    const char *QK_COMPILER
    unsigned long main_thread
    int signal_raises() noexcept nogil


# ---- instruction sets and threads ----


def shown(value, text=repr, most=100):
    """Describe what a caller gave, for a message: short, and never an error of its own."""
    try:
        found = " ".join(text(value).split())
    except Exception:
        return f"a {type(value).__name__}"
    return found if len(found) <= most else f"{found[: most - 20]}... (a {type(value).__name__})"


def word(value):
    """Return what a caller gave; of a subclass of str, which may compare as it likes, the str that it is."""
    return str.__str__(value) if isinstance(value, str) and type(value) is not str else value


def built_isas():
    """Return the names of the instruction sets that are built, best first."""
    cdef size_t i = 0
    names = []
    while qk_built(i) != NULL:
        names.append(qk_built(i).decode())
        i += 1
    return names


def available_isas():
    """Return the names of those that this CPU has."""
    return [name for name in built_isas() if qk_find(name.encode()) != NULL]


def version():
    return qk_version().decode()


def compiler():
    return QK_COMPILER.decode()


def get_isa():
    """Return the name of the instruction set in use."""
    return qk_name(qk_active()).decode()


def set_isa(str name):
    """Use the instruction set `name` from now on (for tests and comparisons)."""
    cdef const qk_kernels *k = qk_find(name.encode())
    if k == NULL:
        raise ValueError(f"instruction set {name!r} is not available here, only {', '.join(available_isas())}")
    qk_activate(k)


def run_peak(size_t rounds):
    """Multiply bytes from registers alone, as fast as the instruction set in use can; return how many, 0 of scalar."""
    cdef size_t products
    with nogil:
        products = qk_run_peak(rounds)
    return products


def set_num_threads(int n):
    qk_set_num_threads(n)


def get_num_threads():
    return qk_get_num_threads()


def most_threads():
    """Return the largest number of threads that can be set."""
    return qk_most_threads()


def know_main_thread():
    global main_thread
    main_thread = threading.main_thread().ident


know_main_thread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=know_main_thread)
qk_set_interrupt(signal_raises)

if os.environ.get("QKERNELS_ISA"):
    try:
        set_isa(os.environ["QKERNELS_ISA"])
    except ValueError as error:
        raise RuntimeError(f"QKERNELS_ISA: {error}") from None

MOST_CPUS = 8192   # that a machine can have: a larger number of threads is a slip, one up to this means all CPUs


def check_thread_count(text):
    """Raise unless an environment's number of threads, which C reads on first use, is one."""
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10 and 1 <= int(digits) <= MOST_CPUS):
        raise RuntimeError(f"QKERNELS_NUM_THREADS must be a number from 1 to {MOST_CPUS}, got {shown(text)}")


if os.environ.get("QKERNELS_NUM_THREADS"):
    check_thread_count(os.environ["QKERNELS_NUM_THREADS"])


# ---- floating-point mode (_mode.py) ----

cdef extern from *:
    """
    /* Of this thread: whether a function of in_default_mode is at work, and the mode of its caller. */
    static __thread struct { int inside; qk_mode of_caller; } qk_calls;
    """
    struct calls:
        int inside
        qk_mode of_caller
    calls qk_calls


cdef void enter_default() noexcept:
    qk_calls.inside = True
    qk_calls.of_caller = qk_enter_mode()


cdef void leave_default() noexcept:
    qk_calls.inside = False
    qk_leave_mode(qk_calls.of_caller)


def _quiet_errors():
    """Return NumPy's context variable for what np.errstate sets, and its value for all="ignore"; None without one."""
    with np.errstate(all="ignore"):
        context = contextvars.copy_context()
    return next(((var, state) for var, state in context.items() if var.name == "numpy.ufunc.extobj"), None)


# np.errstate costs more than the rest of a call with few values.
cdef object quiet_errors = _quiet_errors()


cdef call_quietly(function, tuple args, dict kwargs):
    """Call the function under np.errstate(all="ignore")."""
    if quiet_errors is None:
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)
    token = PyContextVar_Set(quiet_errors[0], quiet_errors[1])
    try:
        return function(*args, **kwargs)
    finally:
        PyContextVar_Reset(quiet_errors[0], token)


def in_default_mode(function):
    """Wrap the function so that it runs in the default mode and without NumPy's warnings.

    (In Python, Ctrl-C could come between entering and `try`.)
    """
    def call(*args, **kwargs):
        if qk_calls.inside:
            return function(*args, **kwargs)
        enter_default()
        try:
            return call_quietly(function, args, kwargs)
        finally:
            leave_default()
    return call


def in_mode_of_caller(function, errors):
    """Wrap the function so that it runs in the mode of the caller of the outermost in_default_mode.

    `errors` are the settings of np.errstate that it then has.
    """
    def call(*args, **kwargs):
        cdef bint inside = qk_calls.inside
        if inside:
            leave_default()
        try:
            with np.errstate(**errors):
                return function(*args, **kwargs)
        finally:
            if inside:
                enter_default()
    return call
