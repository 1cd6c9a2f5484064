"""Files of io.save and io.load: what comes back, how large they are, what is not copied, and what is refused."""

import errno
import json
import mmap
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from calls import CONVS, HESSIAN, PACKED, VECTORS, X
from common import output
from numpy.testing import assert_array_equal

import qkernels as qk
from qkernels import io, observers
from qkernels._bind import runtime

safetensors = pytest.importorskip("safetensors.numpy")


def everything():
    """One of each kind, by a name, in dicts of dicts."""
    plain = {np.dtype(t).name: np.arange(6).reshape(2, 3).astype(t) for t in io.NATIVE.values()}
    plain |= {name: np.arange(5).astype(name) % 2 for name in ("int4", "uint4", "int2", "uint2")}
    plain |= {name: np.arange(5).astype(name)[::-1] for name in ("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn")}
    plain |= {"nothing": np.empty((0, 3), np.float32), "number": np.array(7), "turned": np.arange(6.0).reshape(2, 3).T}
    params = {
        str(i): qk.QParams(np.ones(2, np.float32) / 3, 1 if "u" in name else 0, name, axis=i, narrow_range=i == 1)
        for i, name in enumerate(("int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"))
    } | {name: qk.QParams(0.5, dtype=name) for name in ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")}
    params["blocks"] = qk.QParams([[1, 2, 3]], [[0, 1, 2]], axis=-2, block_size=7)
    books = {"vectors": VECTORS, "NF4": qk.NF4, "channels": qk.Codebook(X, axis=0)}
    seen = {name: getattr(observers, name)(axis=axis).update(X) for name in observers.__all__ for axis in (None, 1)}
    packed = PACKED | {"codes": qk.pack_codes(np.arange(12, dtype=np.uint8).reshape(4, 3)), "bfloat16": bfloat16()}
    packed |= {f"conv.{i}": conv for i, conv in enumerate(CONVS)}
    return {"plain": plain, "params": params, "books": books, "seen": seen, "packed": packed, "H": HESSIAN, "none": {}}


def bfloat16():
    return qk.pack(np.eye(3, dtype=ml_dtypes.bfloat16), None)


def flat(value, name=""):
    """All arrays of what was saved, by name, and the type of each value."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from flat(part, f"{name}/{key}")
    elif isinstance(value, np.ndarray):
        yield name, value
    else:
        yield name, type(value)
        yield from flat(value.to_arrays(), name)


def assert_same(got, want):
    got, want = dict(flat(got)), dict(flat(want))
    assert got.keys() == want.keys()
    for name, value in want.items():
        if isinstance(value, type):
            assert got[name] is value
        else:
            assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape), name
            assert got[name].tobytes() == value.tobytes(), name


def test_what_was_saved_is_loaded(tmp_path):
    contents = everything()
    io.save(tmp_path / "x", contents)
    got = io.load(str(tmp_path / "x"))
    assert_same(got, contents)
    assert got["params"] == contents["params"] and got["books"] == contents["books"]
    for packed in got["packed"].values():
        assert type(packed).from_arrays(packed.to_arrays()).nbytes == packed.nbytes
    io.save(tmp_path / "x", got)  # over the file that is mapped
    assert_same(got, contents)
    assert_same(io.load(tmp_path / "x"), contents)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_library_of_safetensors_reads_and_writes_them(tmp_path):
    io.save(tmp_path / "x", {"layer": {"weight": PACKED["int8"]}, "bias": np.float32([1, 2, 3])})
    read = safetensors.load_file(tmp_path / "x")
    assert read.keys() == {f"layer.weight.{name}" for name in ("codes", "scale", "zero_point", "qmin")} | {"bias"}
    for name, array in PACKED["int8"].to_arrays().items():
        assert_array_equal(read[f"layer.weight.{name}"], array, strict=True)
    arrays = {"a.b": np.arange(6, dtype=np.int16).reshape(2, 3), "c": np.array(2.5), "d": np.empty(0)}
    safetensors.save_file(arrays, tmp_path / "y", {"format": "np"})
    assert_same(io.load(tmp_path / "y"), arrays)
    safetensors.save_file({}, tmp_path / "y")
    assert io.load(tmp_path / "y") == {}


def root(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base


def test_arrays_are_views_of_the_file(tmp_path):
    """Codes of 8 bits are packed straight from it: nothing of their size is made but the panels."""
    codes = np.random.default_rng(0).integers(-128, 128, (2048, 1024), np.int8)
    io.save(tmp_path / "x", {"codes": codes, "odd": np.ones(3, np.uint8), "w": qk.pack(codes, qk.QParams(0.5))})
    loaded = io.load(tmp_path / "x")
    for array in loaded["codes"], loaded["odd"]:
        assert isinstance(getattr(root(array), "obj", root(array)), mmap.mmap) and not array.flags.writeable
    io.save(tmp_path / "y", {"few": codes[:2].astype("int4")})
    assert not io.load(tmp_path / "y")["few"].flags.writeable
    tracemalloc.start()
    try:
        packed = io.load(tmp_path / "x")["w"]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert packed.nbytes <= most < 1.1 * packed.nbytes
    assert_array_equal(packed.unpack(), loaded["codes"])


SHAPES = [(384, 1152), (384, 384), (384, 1536), (1536, 384)]  # of the dense layers of each of MiniLM's six


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.265), ("int4", 0.14), ("NF4", 0.14), ("fitted", 0.14)])
def test_the_size_of_a_network(kind, most, tmp_path):
    """In the file and in memory, to its float32 weights."""
    rng, layers = np.random.default_rng(0), {}
    for i, shape in enumerate(SHAPES):
        w = rng.standard_normal(shape, np.float32)
        if kind in ("int8", "int4"):
            blocks = dict(axis=1) if kind == "int8" else dict(axis=0, block_size=64)
            scale = qk.choose_qparams(w, kind, **blocks).scale
            params = qk.QParams(np.float16(scale), dtype=kind, **blocks)
            packed = qk.pack(qk.quantize(w, params), params)
        else:
            book = qk.NF4 if kind == "NF4" else qk.Codebook.fit(w[:64], 16, axis=0, block_size=64)
            book = qk.Codebook(book.levels, axis=0, block_size=64)
            codes, scales = qk.encode(w, book)
            packed = qk.pack(codes, book, scales=np.float16(scales))
        layers[f"encoder.layer.{i}.weight"] = packed
    io.save(tmp_path / "x", layers)
    size = 4 * sum(k * n for k, n in SHAPES)
    assert (tmp_path / "x").stat().st_size <= most * size
    if kind == "int8" and runtime.get_isa() == "avx2":
        most = 0.266  # steps of small weights that 16 bits do not hold stand in steps of their own (numerics 6)
    assert sum(packed.nbytes for packed in io.load(tmp_path / "x").values()) <= most * size


# ---- what is refused ----


def forged(path, change, data=b"\0" * 8):
    """Write a file whose header, of one array, `change` has changed."""
    header = {"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


FORGED = {
    "no such dtype": (lambda h: h["a"].update(dtype="I65"), "'a' has no dtype, shape and offsets that fit"),
    "a dtype that is a list": (lambda h: h["a"].update(dtype=[]), "'a' has no dtype"),
    "another shape": (lambda h: h["a"].update(shape=[2]), "'a' has no dtype"),
    "a negative shape": (lambda h: h["a"].update(shape=[-1, -1]), "'a' has no dtype"),
    "a huge shape": (lambda h: h["a"].update(shape=[0, 2**70], data_offsets=[0, 0]), "'a' has no dtype"),
    "too many dimensions": (lambda h: h["a"].update(shape=[1] * 99), "'a' has a shape that no array has"),
    "too long a shape": (lambda h: h["a"].update(shape=[0, 2**61], data_offsets=[0, 0]), "'a' has a shape that no"),
    "a shape that is a dict": (lambda h: h["a"].update(dtype="U8", shape={}, data_offsets=[0, 1]), "'a' has no dtype"),
    "a shape that is a str": (lambda h: h["a"].update(dtype="U8", shape="", data_offsets=[0, 1]), "'a' has no dtype"),
    "a float": (lambda h: h["a"].update(shape=[1.0]), "'a' has no dtype"),
    "True": (lambda h: h["a"].update(shape=[True]), "'a' has no dtype"),
    "offsets backwards": (lambda h: h["a"].update(data_offsets=[8, 0]), "'a' has no dtype"),
    "offsets beyond": (lambda h: h["a"].update(data_offsets=[8, 16]), "truncated: 'a' ends at byte"),
    "one offset": (lambda h: h["a"].update(data_offsets=[8]), "'a' has no dtype"),
    "no offsets": (lambda h: h["a"].pop("data_offsets"), "'a' has no dtype"),
    "no object": (lambda h: h.update(a=3), "'a' has no dtype"),
    "two in one place": (lambda h: h.update(b=h["a"]), "'b' begins at byte 0 of the data, where the one before ends"),
    "bytes that are left": (lambda h: h.pop("a"), "has 8 bytes after its last array"),
    "no metadata of ours": (lambda h: h.update(__metadata__={"qkernels": "3"}), "its metadata is no object of JSON"),
    "a number of metadata": (lambda h: h.update(__metadata__={"qkernels": 3}), "metadata must be an object of strings"),
    "a list of metadata": (lambda h: h.update(__metadata__={"qkernels": "[]"}), "its metadata is no object of JSON"),
    "metadata that is a list": (lambda h: h.update(__metadata__=[1]), "metadata must be an object of strings, got"),
    "metadata that is empty": (lambda h: h.update(__metadata__=[]), "metadata must be an object of strings, got"),
    "too deep metadata": (lambda h: told(h, nested(600)), "its metadata has more than 50 dicts in one another"),
    "no version": (lambda h: h.update(__metadata__={"qkernels": "{}"}), "the metadata of qkernels is corrupt"),
    "a new version": (lambda h: told(h, {}, 2), "has version 2 of the format, of which this qkernels reads up to 1"),
    "version 0": (lambda h: told(h, {}, 0), "the metadata of qkernels is corrupt"),
    "an array that is not told": (lambda h: told(h, {}), "'a' is not among the contents that its metadata names"),
    "an array that is not there": (lambda h: told(h, {"b": ["array"]}), "there is no 'b', which its metadata names"),
    "a part that is not there": (lambda h: told(h, {"b": ["QParams", "scale"]}), "there is no 'b.scale'"),
    "another kind": (lambda h: told(h, {"a": ["tuple", ""]}), "there is no 'a.', which"),
    "no kind": (lambda h: told(h, {"a": []}), "'a' has corrupt metadata"),
    "a number": (lambda h: told(h, {"a": 3}), "'a' has corrupt metadata: 3"),
    "kinds that are numbers": (lambda h: told(h, {"a": ["array", 3]}), "'a' has corrupt metadata"),
    "an empty class": (lambda h: told(h, {"b": ["QParams"]}), "'b' is no QParams: arrays must hold scale"),
    "empty codes": (lambda h: told(h, {"b": ["int4"]}), "'b' is no int4: arrays must hold codes and shape"),
    "an unknown class": (lambda h: told(h, {"b": ["Secret"]}), "'b' is of a kind that is not known, 'Secret'"),
}


def nested(depth):
    return {"a": nested(depth - 1)} if depth else {}


def told(header, contents, version=1):
    header["__metadata__"] = {"qkernels": json.dumps({"version": version, "contents": contents})}


@pytest.mark.parametrize("name", FORGED)
def test_forged_headers(name, tmp_path):
    change, words = FORGED[name]
    forged(tmp_path / "x", change)
    with pytest.raises(ValueError, match=r"x\b") as raised:
        io.load(tmp_path / "x")
    assert words in str(raised.value) and str(tmp_path / "x") in str(raised.value)


def test_metadata_may_be_null(tmp_path):
    forged(tmp_path / "x", lambda header: header.update(__metadata__=None))
    theirs = safetensors.load_file(tmp_path / "x")
    assert theirs.keys() == io.load(tmp_path / "x").keys() == {"a"}


def test_files_that_are_no_safetensors(tmp_path):
    path = tmp_path / "x"
    for text in (
        b"",
        b"\0\0",
        b"PK\3\4" * 9,
        b"\2" + b"\0" * 7,
        b"\2" + b"\0" * 7 + b"[]",
        b"\2" + b"\0" * 7 + b"{\xff",
    ):
        path.write_bytes(text)
        with pytest.raises(ValueError, match="no safetensors file"):
            io.load(path)
    twice = b'{"a": {}, "a": {}}'
    for text, words in [(twice, "'a' stands twice"), (b"[" * 100_000, "its header is no JSON")]:
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(ValueError, match=words):
            io.load(path)
    forged(path, lambda header: header["a"].update(dtype="BOOL", shape=[8]), b"\1\0\1\2\1\1\1\1")
    with pytest.raises(ValueError, match="'a' has values that are neither true nor false"):
        io.load(path)
    with pytest.raises(FileNotFoundError):
        io.load(tmp_path / "y")


def test_cut_or_changed_anywhere_it_is_refused_or_whole(tmp_path):
    """Cut after any byte it is refused; with a byte changed it is, or is read, and nothing else happens."""
    path, rng = tmp_path / "x", np.random.default_rng(0)
    io.save(path, {"w": PACKED["blocks"], "p": qk.QParams([0.5, 1], [1, 2], "uint8", axis=0), "s": seen()})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=str(path)):
            io.load(path)
    refused = 0
    for at in rng.permutation(len(whole))[:400]:
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            io.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert 200 < refused < 400


def seen():
    return observers.MinMax(axis=1).update(X)


def test_arrays_that_are_not_saved(tmp_path):
    path = tmp_path / "x"
    circle = {}
    circle["a"] = circle
    for arrays, error, words in [
        ([1], TypeError, "arrays must be a mapping of str to what is saved, got list"),
        ({1: X}, TypeError, r"arrays must have keys that are str, got 1"),
        ({"a": {2: X}}, TypeError, r"arrays\['a'\] must have keys that are str, got 2"),
        ({"a": {"b": "c"}}, TypeError, r"arrays\['a.b'\] must"),
        ({"a": np.complex128(1)}, TypeError, r"arrays\['a'\] must have a dtype that safetensors has, got complex128"),
        ({"\ud800": X}, ValueError, "must have keys that are text of UTF-8"),
        ({"a": None}, TypeError, r"arrays\['a'\] must"),
        ({"a": {"b": X}, "a.b": X}, ValueError, "arrays must have one array of each name, got 'a.b' again"),
        ({"__metadata__": X}, ValueError, "arrays must have one array of each name, got '__metadata__'"),
        (circle, ValueError, "arrays must have at most 50 dicts in one another"),
    ]:
        with pytest.raises(error, match=words):
            io.save(path, arrays)
        assert not list(tmp_path.iterdir())
    for call in io.load, lambda path: io.save(path, {}):
        for wrong in 3, None, b"x":
            with pytest.raises(TypeError, match="path must be a str or path-like, got"):
                call(wrong)
    with pytest.raises(OSError):
        io.save(tmp_path / "no" / "x", {"a": X})


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    io.save(tmp_path / "x", {"a": X})

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        io.save(tmp_path / "x", {"a": X + 1})
    assert_array_equal(io.load(tmp_path / "x")["a"], X)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(os.name == "nt", reason="needs links and permissions of POSIX")
def test_a_file_keeps_what_it_is(tmp_path):
    """Its permissions; a link stays one; other files beside it stay as they are."""
    path, link = tmp_path / "x", tmp_path / "link"
    io.save(path, {"a": X})
    path.chmod(0o600)
    link.symlink_to(path)
    (tmp_path / "x.part").write_text("mine")
    io.save(link, {"a": X + 1})
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o600
    assert_array_equal(io.load(path)["a"], X + 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "x", "x.part"]


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="needs names of what is open")
def test_what_has_no_name_is_written_to(tmp_path):
    """A pipe, and a file that was unlinked: nothing appears where the system says that they are."""
    io.save(tmp_path / "x", {"a": X})
    reader, writer = os.pipe()
    with open(reader, "rb") as taken:
        io.save(f"/dev/fd/{writer}", {"a": X})  # which fits the buffer of a pipe
        os.close(writer)
        assert taken.read() == (tmp_path / "x").read_bytes()
    with open(tmp_path / "y", "w+b") as file:
        os.unlink(tmp_path / "y")
        io.save(f"/dev/fd/{file.fileno()}", {"a": X})
        assert file.read() == (tmp_path / "x").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_name_of_a_folder_is_no_file(tmp_path):
    (tmp_path / "f").write_text("mine")
    for path in "f/", "f/.", "new/", "new/.", ".", "":
        with pytest.raises(OSError):
            io.save(os.path.join(tmp_path, path) if path else path, {"a": X})
    assert [path.name for path in tmp_path.iterdir()] == ["f"] and (tmp_path / "f").read_text() == "mine"


def test_a_name_may_be_as_long_as_the_system_takes(tmp_path):
    path = tmp_path / ("x" * os.pathconf(tmp_path, "PC_NAME_MAX") if hasattr(os, "pathconf") else "x")
    for _ in range(2):
        io.save(path, {"a": X})
        assert_array_equal(io.load(path)["a"], X)


def test_a_file_system_may_have_no_permissions(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError("no")

    io.save(tmp_path / "x", {"a": X})
    monkeypatch.setattr(os, "chmod", refused)
    io.save(tmp_path / "x", {"a": X + 1})
    assert_array_equal(io.load(tmp_path / "x")["a"], X + 1)


def test_files_are_those_of_any_process(tmp_path):
    """Whose instruction set may be another: panels are made when weights are loaded."""
    io.save(tmp_path / "x", {"w": PACKED["columns"]})
    code = f"import qkernels as qk; print(qk.io.load({str(tmp_path / 'x')!r})['w'].unpack().tolist())"
    assert json.loads(output(code, QKERNELS_ISA="scalar")) == PACKED["columns"].unpack().tolist()


def test_a_file_that_finds_no_place_is_a_memory_error(tmp_path, monkeypatch):
    io.save(tmp_path / "x", {"x": X})
    for code, kind in (errno.ENOMEM, MemoryError), (errno.EACCES, OSError):

        def refused(*arguments, code=code, **options):
            raise OSError(code, "no")

        monkeypatch.setattr(mmap, "mmap", refused)
        with pytest.raises(kind, match="no"):
            io.load(tmp_path / "x")
