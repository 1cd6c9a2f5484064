"""What finds any array of floats that a network makes on its way, if it is to compute on codes alone.

Two looks, for NumPy does not tell what type the memory is for that it asks for. First each function's results are
looked at, which must be integers. Then the network runs once more, and of the memory of `least` bytes or more that
NumPy asks for, there may be exactly the pieces of these results, size by size: one more, of floats or of anything else,
by the network or within a function, and if only for a moment, is an AssertionError that tells where. Smaller pieces are
scales of filters and the like. The constant scratch memory of a kernel is not NumPy's, and not seen.
"""

import ctypes
import traceback
from collections import Counter
from contextlib import contextmanager

from numpy._core._multiarray_umath import _ARRAY_API

import qkernels

WORD, POINTER = ctypes.c_size_t, ctypes.c_void_p
MALLOC, CALLOC, REALLOC, FREE = (
    ctypes.CFUNCTYPE(result, POINTER, *arguments)
    for result, arguments in (
        (POINTER, (WORD,)),
        (POINTER, (WORD, WORD)),
        (POINTER, (POINTER, WORD)),
        (None, (POINTER, WORD)),
    )
)
LIBC = ctypes.CDLL(None)
LIBC.malloc.restype = LIBC.calloc.restype = LIBC.realloc.restype = POINTER
LIBC.malloc.argtypes, LIBC.calloc.argtypes = (WORD,), (WORD, WORD)
LIBC.realloc.argtypes, LIBC.free.argtypes = (POINTER, WORD), (POINTER,)


class Handler(ctypes.Structure):
    """NumPy's PyDataMem_Handler."""

    _fields_ = [("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("context", POINTER)]
    _fields_ += [("malloc", MALLOC), ("calloc", CALLOC), ("realloc", REALLOC), ("free", FREE)]


def set_handler(capsule):
    """Have NumPy take its memory from a handler of version 1, and return the one before."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = POINTER, (ctypes.py_object, ctypes.c_char_p)
    functions = ctypes.cast(pointer(_ARRAY_API, None), ctypes.POINTER(POINTER))
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(functions[304])(capsule)


KEPT = []  # arrays made meanwhile are freed by the handler, whenever that may be


@contextmanager
def memory_watched(see):
    """Call see(bytes) before NumPy gets memory."""
    handler = Handler(
        b"watched",
        1,
        None,
        MALLOC(lambda _, size: see(size) or LIBC.malloc(size or 1)),
        CALLOC(lambda _, n, size: see(n * size) or LIBC.calloc(n or 1, size or 1)),
        REALLOC(lambda _, old, size: see(size) or LIBC.realloc(old, size or 1)),
        FREE(lambda _, memory, size: LIBC.free(memory)),
    )
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (POINTER, ctypes.c_char_p, POINTER)
    KEPT.append((handler, name := b"mem_handler"))
    before = set_handler(new(ctypes.addressof(handler), name, None))
    try:
        yield
    finally:
        set_handler(before)


class Watched:
    """The names of qkernels; results of its functions must be integers, and their sizes are counted."""

    def __init__(self):
        self.sizes = Counter()

    def __getattr__(self, name):
        function = getattr(qkernels, name)

        def watched(*args, **options):
            result = function(*args, **options)
            assert result.dtype.kind in "iu", f"{name} gives {result.dtype}"
            self.sizes[result.nbytes] += 1
            return result

        return watched


def run_in_integers(network, *inputs, least):
    """Return network(functions, *inputs), which it computes with functions.qconv2d and so on, in integers only."""
    watched = Watched()
    network(watched, *inputs)
    left, others = watched.sizes.copy(), []

    def see(size):
        left[size] -= 1
        if size >= least and left[size] < 0:
            others.append(f"{size} bytes\n" + "".join(traceback.format_stack()[-4:-1]))

    with memory_watched(see):
        result = network(qkernels, *inputs)
    assert not others, "\n".join(others)
    return result
