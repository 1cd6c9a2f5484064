"""Save and load arrays, and what this library makes of them, as safetensors files.

Any reader of safetensors finds plain arrays in them: those of `to_arrays`. What they are stands in the metadata.
"""

import contextlib
import errno
import math
import mmap
import os
from collections.abc import Mapping
from itertools import chain

import ml_dtypes
import numpy as np

from ._bind.arrays import PART, contiguous_as
from ._bind.runtime import word
from ._checks import array_named, arrays_named, as_array, is_a, shown
from ._codebook import Codebook
from ._conv import PackedConv
from ._hessian import Hessian
from ._pq import PackedCodes
from ._qparams import FLOAT_CODES, QParams
from ._quantize import pack_bits, unpack_bits
from ._weights import PackedMatrix
from .observers import MSE, Entropy, MinMax, MovingAverage, Percentile

__all__ = ["load", "save"]

VERSION = 1
DEEPEST = 50  # dicts in one another
PACKED = Codebook, Hessian, PackedCodes, PackedConv, PackedMatrix, QParams
CLASSES = {cls.__name__: cls for cls in (*PACKED, Entropy, MSE, MinMax, MovingAverage, Percentile)}
BITS = {np.dtype(getattr(ml_dtypes, name)): int(name[-1]) for name in ("int2", "int4", "uint2", "uint4")}
BITS |= {dtype: 4 if "float4" in dtype.name else 6 for dtype in FLOAT_CODES if dtype.name[:6] in ("float4", "float6")}
NATIVE = {"U8": "u1", "I8": "i1", "U16": "u2", "I16": "i2", "U32": "u4", "I32": "i4", "U64": "u8", "I64": "i8"}
NATIVE |= {"BOOL": "?", "F16": "f2", "F32": "f4", "F64": "f8", "C64": "c8", "BF16": ml_dtypes.bfloat16}
NATIVE |= {"F8_E5M2": ml_dtypes.float8_e5m2, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E8M0": ml_dtypes.float8_e8m0fnu}
DTYPES = {name: np.dtype(dtype) for name, dtype in NATIVE.items()}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save(path, arrays):
    """Save arrays, packed weights, parameters, codebooks and observers in a safetensors file.

    A file of that name is replaced once the new one is whole, which gets its permissions; arrays that were loaded from
    it stay as they are. What is no file, such as a pipe, is written to.

    Parameters
    ----------
    path : str or path-like
    arrays : mapping of str to what is saved
        Arrays (bool, integers, floats, complex64, bfloat16, float8_e4m3fn, float8_e5m2 and float8_e8m0fnu, and codes of
        2, 4 and 6 bits, which are kept dense), anything that has `to_arrays`, or mappings of these in turn. In the file
        an array has the keys that lead to it as its name, joined by points.

    Raises
    ------
    TypeError, ValueError
        For what cannot be saved, or two arrays of one name; the message names the keys.

    References
    ----------
    https://github.com/huggingface/safetensors

    Examples
    --------
    >>> import pathlib, tempfile
    >>> weight = qk.pack(np.eye(2, dtype=np.int8), params := qk.QParams(0.5))
    >>> path = pathlib.Path(tempfile.mkdtemp(), "layer.safetensors")
    >>> qk.io.save(path, {"layer": {"weight": weight}, "input": params})
    >>> qk.io.load(path)
    {'layer': {'weight': PackedMatrix(shape=(2, 2), params=QParams(scale=0.5, dtype='int8'))},
     'input': QParams(scale=0.5, dtype='int8')}
    """
    import json

    path, tensors = _path(path), {}
    if not is_a(arrays, Mapping):
        raise TypeError(f"arrays must be a mapping of str to what is saved, got {type(arrays).__name__}")
    contents = _contents(arrays, "", tensors, DEEPEST)
    metadata = {"qkernels": json.dumps({"version": VERSION, "contents": contents})}
    header, at = {"__metadata__": metadata}, 0
    order = sorted(tensors, key=lambda name: -tensors[name].itemsize)  # so that each is aligned
    for name in order:
        array = tensors[name]
        header[name] = {"dtype": NAMES[array.dtype], "shape": array.shape, "data_offsets": (at, at + array.nbytes)}
        at += array.nbytes
    header = json.dumps(header).encode()
    header += b" " * (-(8 + len(header)) % 64)
    _replace(path, chain([len(header).to_bytes(8, "little"), header], *(_bytes_of(tensors[name]) for name in order)))


def load(path):
    """Load what `save` has saved, or the arrays of any other safetensors file.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    dict
        As it was saved, with the types of `save`. Arrays are read-only; but for codes of 2, 4 and 6 bits they are
        views of the file, which is mapped to memory: what is not looked at is not read. Weights are packed for this
        machine straight from there.

    Raises
    ------
    ValueError
        If the file is truncated, corrupt or forged, or made by a version that is newer than this one; the message names
        the file and what in it is wrong.
    OSError
        If there is no such file, or it cannot be read.
    MemoryError
        If there is no room for it among the addresses of the process.
    """
    path = _path(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, begin = _header(file, size, path)
        data = _mapped(file)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError(f"{path}: metadata must be an object of strings, got {shown(metadata)}")
    tensors = {name: _tensor(data, begin, entry, name, path) for name, entry in header.items()}
    _check_cover(header, size - begin, path)
    if "qkernels" not in metadata:
        return tensors
    contents = _parsed(metadata["qkernels"], path, "metadata")
    version = contents.get("version")
    if type(version) is not int or version < 1 or not isinstance(contents.get("contents"), dict):
        raise ValueError(f"{path}: the metadata of qkernels is corrupt: {shown(metadata['qkernels'])}")
    if version > VERSION:
        raise ValueError(f"{path} has version {version} of the format, of which this qkernels reads up to {VERSION}")
    made = _made(contents["contents"], "", tensors, path, DEEPEST)
    if tensors:
        raise ValueError(f"{path}: {next(iter(tensors))!r} is not among the contents that its metadata names")
    return made


# ---- what is saved ----


def _mapped(file):
    """Return a file's memory; that it finds no place is what NumPy calls a MemoryError, too."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"{file.name} cannot be mapped to memory: {error.strerror}") from error
        raise


def _path(path):
    path = word(path)
    if not is_a(path, str, os.PathLike):
        raise TypeError(f"path must be a str or path-like, got {shown(path)}")
    return os.fspath(path)


def _contents(value, name, tensors, deepest):
    """Put the arrays of a value into `tensors`; return what it is: a dict of such, or its class and their names."""
    if is_a(value, Mapping):
        if not deepest:
            raise ValueError(f"arrays must have at most {DEEPEST} dicts in one another, got more at {_key(name)}")
        return {key: _contents(part, _joined(name, key), tensors, deepest - 1) for key, part in _items(value, name)}
    kind = next((kind for kind, cls in CLASSES.items() if is_a(value, cls)), None)
    if kind:
        arrays = value.to_arrays()
        for key, array in arrays.items():
            _put(tensors, _joined(name, key), array)
        return [kind, *arrays]
    array = as_array(value, _key(name))
    if array.dtype in BITS:
        integers = contiguous_as(array, array.dtype).view(np.uint8) if array.dtype in FLOAT_CODES else array
        _put(tensors, _joined(name, "codes"), pack_bits(integers, BITS[array.dtype]))
        _put(tensors, _joined(name, "shape"), np.array(array.shape, np.int64))
        return [array.dtype.name, "codes", "shape"]
    _put(tensors, name, array)
    return ["array"]


def _items(mapping, name):
    """Return the keys and values of a mapping, whose own methods may do anything."""
    try:
        items = [(word(key), mapping[key]) for key in mapping]
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(f"{_key(name)} must be a mapping of str to what is saved, got {shown(error)}") from error
    for key, _ in items:
        if not is_a(key, str):
            raise TypeError(f"{_key(name)} must have keys that are str, got {shown(key)}")
        if any("\ud800" <= letter <= "\udfff" for letter in key):
            raise ValueError(f"{_key(name)} must have keys that are text of UTF-8, got {shown(key)}")
    return items


def _put(tensors, name, array):
    dtype = array.dtype.newbyteorder("=")
    if dtype not in NAMES:
        raise TypeError(f"{_key(name)} must have a dtype that safetensors has, got {array.dtype}")
    if name in tensors or name == "__metadata__":
        raise ValueError(f"arrays must have one array of each name, got {name!r} " + ("again" * (name in tensors)))
    tensors[name] = contiguous_as(array, dtype)


def _joined(name, key):
    return f"{name}.{key}" if name else key


def _key(name):
    return f"arrays[{name!r}]" if name else "arrays"


def _bytes_of(array):
    """Yield the bytes of a contiguous array, some at a time: signals are heard in between."""
    flat = memoryview(array.reshape(-1).view(np.uint8))
    for first in range(0, len(flat), PART):
        yield flat[first : first + PART]


def _replace(path, parts):
    """Write a file beside it, which then takes its place; so there is always a whole one. A link stays one."""
    path = os.fsencode(path)
    target = os.path.realpath(path)
    if _is_no_place(path, target):
        with open(path, "wb") as device:
            return device.writelines(parts)
    beside = os.path.join(os.path.dirname(target), b".%s.part" % os.urandom(8).hex().encode())  # not too long a name
    try:
        with open(beside, "xb") as file:
            with contextlib.suppress(OSError):  # there is none, or a file system without permissions
                os.chmod(beside, os.stat(target).st_mode & 0o777)
            file.writelines(parts)
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def _is_no_place(path, target):
    """Tell whether a path can only be opened: it is a folder's, or of what has no name, such as a pipe's."""
    if os.path.basename(path) in (b"", b".", b".."):
        return True
    return os.path.exists(path) and not (os.path.isfile(path) and _is_one_file(path, target))


def _is_one_file(path, target):
    try:
        return os.path.samefile(path, target)
    except OSError:  # a file that was unlinked while it is open: /proc names it nevertheless
        return False


# ---- what is loaded ----


def _header(file, size, path):
    """Return the header of a file, a dict by name, and where it ends."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"{path} is truncated or no safetensors file: it has {size} bytes, a header of {length}")
    return _parsed(file.read(length), path, "header"), 8 + length


def _parsed(text, path, what):
    """Return the dict that a text of JSON holds, without a key that stands twice."""
    import json

    def unique(pairs):
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
        return made

    try:
        made = json.loads(text, object_pairs_hook=unique)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no safetensors file, or corrupt: its {what} is no JSON: {error}") from None
    if not isinstance(made, dict):
        raise ValueError(f"{path} is no safetensors file, or corrupt: its {what} is no object of JSON")
    return made


def _tensor(data, begin, entry, name, path):
    """Return the array that an entry of the header tells of, as it lies in the file."""
    try:
        dtype, shape, (first, last) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        well = type(shape) is type(entry["data_offsets"]) is list
        well = well and all(type(number) is int and 0 <= number < 2**62 for number in (*shape, first, last))
    except (KeyError, TypeError, ValueError):
        well = False
    if not well or last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path}: {name!r} has no dtype, shape and offsets that fit: {shown(entry)}")
    if begin + last > len(data):
        raise ValueError(f"{path} is truncated: {name!r} ends at byte {begin + last}, the file at {len(data)}")
    array = np.frombuffer(data, np.uint8, last - first, begin + first) if last > first else np.empty(0, np.uint8)
    if dtype == np.bool_ and array.max(initial=0) > 1:
        raise ValueError(f"{path}: {name!r} has values that are neither true nor false")
    try:
        array = array.view(dtype).reshape(shape)
    except ValueError as error:  # too many dimensions
        raise ValueError(f"{path}: {name!r} has a shape that no array has, {shown(shape)}: {error}") from None
    array.flags.writeable = False
    return array


def _check_cover(header, size, path):
    """Raise unless arrays lie one after another, and fill the file."""
    at = 0
    for (first, last), name in sorted((tuple(entry["data_offsets"]), name) for name, entry in header.items()):
        if first != at:
            raise ValueError(f"{path}: {name!r} begins at byte {first} of the data, where the one before ends at {at}")
        at = last
    if at != size:
        raise ValueError(f"{path} has {size - at} bytes after its last array")


def _made(content, name, tensors, path, deepest):
    """Return what was saved, of arrays that it takes out of `tensors`."""
    if isinstance(content, dict):
        if not deepest:
            raise ValueError(f"{path}: its metadata has more than {DEEPEST} dicts in one another")
        return {key: _made(part, _joined(name, key), tensors, path, deepest - 1) for key, part in content.items()}
    if not (isinstance(content, list) and content and all(isinstance(part, str) for part in content)):
        raise ValueError(f"{path}: {name!r} has corrupt metadata: {shown(content)}")
    kind, *keys = content
    names = {key: _joined(name, key) for key in keys} if kind != "array" else {"": name}
    for lacking in names.values():
        if lacking not in tensors:
            raise ValueError(f"{path}: there is no {lacking!r}, which its metadata names")
    arrays = {key: tensors.pop(name) for key, name in names.items()}
    if kind == "array":
        return arrays[""]
    dtype = next((dtype for dtype in BITS if dtype.name == kind), None)
    if dtype is None and kind not in CLASSES:
        raise ValueError(f"{path}: {name!r} is of a kind that is not known, {kind!r}")
    try:
        return CLASSES[kind].from_arrays(arrays) if dtype is None else _codes(arrays, dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {name!r} is no {kind}: {error}") from error


def _codes(arrays, dtype):
    arrays = arrays_named(arrays, ("codes", "shape"))
    codes, shape = array_named(arrays, "codes", np.uint8), array_named(arrays, "shape")
    made, shape = np.uint8 if dtype in FLOAT_CODES else dtype, tuple(shape.reshape(-1).tolist())
    made = unpack_bits(codes, BITS[dtype], shape, dtype=made).view(dtype)
    made.flags.writeable = False
    return made
