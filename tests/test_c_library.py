"""Build libqkernels by CMake, install it and embed it, in C and in C++; its bits are those of the Python package."""

import ctypes
import os
import platform
import re
import shlex
import shutil
import sys
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int, c_int32, c_size_t, c_ssize_t, c_void_p
from pathlib import Path

import common
import ml_dtypes
import numpy as np
import pytest
from simde import FLAGS, build_commands, simde_include

import qkernels as qk

ROOT = Path(__file__).parents[1]
HEADER = ROOT / "csrc/include/qkernels.h"
EXAMPLE = ROOT / "examples/embed_c"
STRICT = ["-Wall", "-Wextra", "-pedantic", "-Werror"]
LANGUAGES = {"C11": ["cc", "-x", "c", "-std=c11"], "C++17": ["c++", "-x", "c++", "-std=c++17"]}
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # CMake is of the extra `test`
SIMDE = simde_include() if platform.machine() == "x86_64" else None

needs_cmake = pytest.mark.skipif(not shutil.which("cmake", path=PATH), reason="no CMake: pip install cmake")
needs_pkg_config = pytest.mark.skipif(not shutil.which("pkg-config"), reason="no pkg-config here")


def run(*command, **settings):
    return common.run(*command, env=os.environ | {"PATH": PATH} | settings)


def compiler_of(language):
    compiler, *flags = LANGUAGES[language]
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    return [compiler, *flags, *STRICT]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    run("cmake", "-S", ROOT / "csrc", "-B", folder, *([f"-DQKERNELS_SIMDE={SIMDE}"] if SIMDE else []))
    run("cmake", "--build", folder, "--parallel", "2")
    return folder


@pytest.fixture(scope="module")
def prefix(build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", build, "--prefix", folder)
    return folder


def library_folder(prefix):
    return next(prefix.rglob("libqkernels.so")).parent


def pkg_config(prefix, *options):
    path = library_folder(prefix) / "pkgconfig"
    return shlex.split(run("pkg-config", *options, "qkernels", PKG_CONFIG_PATH=str(path)))


def declared():
    """Return the names of the functions that the header declares."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    return set(re.findall(r"^QK_API [^;]*?\b(qk_\w+)\(", text, flags=re.MULTILINE))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_header_compiles_alone_and_twice(language, tmp_path):
    source = tmp_path / "alone.c"
    source.write_text("#include <qkernels.h>\n#include <qkernels.h>\nint main(void) { return (int)QK_OK; }\n")
    run(*compiler_of(language), f"-I{HEADER.parent}", "-fsyntax-only", source)


def test_every_function_of_the_header_is_marked_as_public():
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    assert declared() == set(re.findall(r"\b(qk_\w+)\(", text)) and len(declared()) >= 30


def test_the_header_has_the_version_of_the_package():
    assert re.findall(r'^#define QK_VERSION "(.*)"$', HEADER.read_text(), flags=re.MULTILINE) == [qk.__version__]


def test_cmake_compiles_as_setup_does():
    """Results depend on the flags of contraction and of traps."""
    flags = re.findall(
        r"-[\w-]+(?:=[\w-]+)*", (ROOT / "setup.py").read_text().partition("flags = [")[2].split("core =")[0]
    )
    cmake = (ROOT / "csrc/CMakeLists.txt").read_text()
    said_otherwise = {"-std=gnu11", "-pthread", "-fvisibility=hidden", "-g0"}
    wanted = {flag for flag in flags if flag not in said_otherwise and flag[1] != "-"}
    assert {"-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"} <= wanted
    listed = cmake.partition("set(flags")[2].split(")")[0].split()
    assert set(listed) == wanted
    assert "--param=max-completely-peel-times=8" in cmake and "C_VISIBILITY_PRESET hidden" in cmake


@needs_cmake
def test_ctest_passes(build):
    tests = run("ctest", "--test-dir", build, "--output-on-failure", "--exclude-regex", "^simde$")
    assert "c_api_shared" in tests and "c_api_static" in tests and "100% tests passed" in tests
    assert not SIMDE or ": simde" in run("ctest", "--test-dir", build, "--show-only")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="csrc/ builds kernels/x86 on x86-64 only")
@pytest.mark.skipif(not SIMDE, reason="no SIMDe headers: pip install simde-py, or apt-get install libsimde-dev")
def test_kernels_by_simde(request, tmp_path):
    """As CMake builds it, once for all; by the compiler alone if there is no CMake."""
    if shutil.which("cmake", path=PATH):
        program = request.getfixturevalue("build") / "simde_test"
    else:
        program = tmp_path / "simde_test"
        for command in build_commands([common.COMPILER, *FLAGS], program):
            run(*command)
    compared = {line.split()[3]: int(line.split()[0]) for line in run(program).splitlines()}
    assert list(compared) == ["avxvnni", "avx512", "avx512vnni", "amx"]
    assert min(compared.values()) > 500_000 and compared["avx512"] > 5_000_000


@needs_cmake
def test_the_libraries_offer_what_the_header_declares_and_nothing_else(prefix):
    """A static library needs its inner names for itself: they all begin with qk_."""
    symbols = run("nm", "-D", "--defined-only", library_folder(prefix) / "libqkernels.so")
    assert {line.split()[2] for line in symbols.splitlines()} == declared()
    symbols = run("nm", "-g", "--defined-only", library_folder(prefix) / "libqkernels.a")
    names = {line.split()[2] for line in symbols.splitlines() if len(line.split()) == 3}
    assert declared() < names and {name for name in names if not name.startswith("qk_")} == set()


def embeds(program, prefix):
    shown = run(program, LD_LIBRARY_PATH=str(library_folder(prefix)))
    assert shown.startswith(f"qkernels {qk.__version__}\n384 x 1536 weights in ")
    assert shown.endswith("with NaN: a value is NaN or infinite\n")


@needs_cmake
@needs_pkg_config
@pytest.mark.parametrize("linked", ["shared", "static"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_example_runs_by_pkg_config(language, linked, prefix, tmp_path):
    libraries = pkg_config(prefix, "--libs", *(["--static"] if linked == "static" else []))
    if linked == "static":
        libraries = [name.replace("-lqkernels", "-l:libqkernels.a") for name in libraries]
    flags = pkg_config(prefix, "--cflags")
    run(*compiler_of(language), *flags, EXAMPLE / "main.c", "-x", "none", *libraries, "-lm", "-o", tmp_path / "embed")
    needed = run("readelf", "-d", tmp_path / "embed")
    assert ("libqkernels.so" in needed) == (linked == "shared")
    embeds(tmp_path / "embed", prefix)


@needs_cmake
@needs_pkg_config
@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_the_example_runs_by_its_makefile(prefix, tmp_path):
    for file in EXAMPLE.iterdir():
        shutil.copy(file, tmp_path)
    run("make", "-C", tmp_path, f"PKG_CONFIG_PATH={library_folder(prefix) / 'pkgconfig'}")
    embeds(tmp_path / "embed", prefix)


@needs_cmake
def test_the_example_runs_by_find_package(prefix, tmp_path):
    run("cmake", "-S", EXAMPLE, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", tmp_path)
    for kind in "shared", "static":
        embeds(tmp_path / f"embed_{kind}", prefix)


def test_the_example_is_short():
    assert len((EXAMPLE / "main.c").read_text().splitlines()) <= 150


@needs_cmake
@needs_pkg_config
def test_pkg_config_knows_the_version(prefix):
    assert pkg_config(prefix, "--modversion") == [qk.__version__]


# ---- the same bits as in Python ----

I8, U8, I16, F16, BF16, I4, U4, I2, U2 = 4, 5, 6, 2, 3, 9, 10, 11, 12
PER_TENSOR, PER_AXIS, PER_BLOCK = 0, 1, 2


def fields(names):
    """Return the fields of a struct, whose kinds are written in letters."""
    letters = {"p": c_void_p, "i": c_int, "4": c_int32, "f": c_float, "z": c_size_t, "s": c_ssize_t}
    return [(name, letters[kind]) for kind, name in (word.split(":") for word in names.split())]


class Matrix(Structure):
    _fields_ = fields(
        "p:b i:type z:k z:n s:row_stride s:col_stride i:kind z:block p:scale p:zero_point p:levels z:level_count "
        "p:block_scale p:block_shift"
    )


class Layer(Structure):
    _fields_ = fields("p:bias p:residual i:activation i:bounded f:lo f:hi z:x_stride z:y_stride z:residual_stride")


class CodeLayer(Structure):
    _fields_ = fields(
        "i:type i:out_type f:scale f:out_scale 4:zero_point 4:out_zero_point 4:qmin 4:qmax "
        "p:int_bias p:bias i:activation i:rounding z:q_stride z:out_stride"
    )


class Shape(Structure):
    _fields_ = fields("z:outer z:length z:inner z:block")


@pytest.fixture(scope="module")
def library(prefix):
    library = ctypes.CDLL(str(library_folder(prefix) / "libqkernels.so"))
    library.qk_linear.argtypes = [c_void_p, c_void_p, c_size_t, POINTER(Layer), c_void_p]
    library.qk_qlinear.argtypes = [c_void_p, c_void_p, c_size_t, POINTER(CodeLayer), c_void_p]
    library.qk_weights_free.argtypes = library.qk_book_free.argtypes = [c_void_p]
    library.qk_book_new.argtypes = [c_void_p, c_size_t, c_size_t, POINTER(c_void_p)]
    library.qk_book_encode.argtypes = [c_void_p, c_void_p, POINTER(Shape), c_void_p, c_void_p]
    library.qk_book_decode.argtypes = [c_void_p, c_void_p, POINTER(Shape), c_void_p, c_void_p]
    library.qk_quantize_multiplier.argtypes = [c_double, c_void_p, c_void_p]
    library.qk_quantize_multiplier.restype = None
    return library


def address(array):
    return None if array is None else array.ctypes.data


def matrix_of(b, kind, scale=None, zero_point=None, block=0, levels=None):
    """Return the struct, which keeps the arrays that it points to."""
    types = {"int8": I8, "uint8": U8, "int16": I16, "float16": F16, "bfloat16": BF16, "int4": I4, "uint4": U4}
    types |= {"int2": I2, "uint2": U2}
    scale, zero_point, levels = (
        None if a is None else np.ascontiguousarray(a, dtype)
        for a, dtype in ((scale, np.float32), (zero_point, np.int32), (levels, np.float32))
    )
    matrix = Matrix(address(b), types[b.dtype.name], *b.shape, *b.strides, kind, block)
    matrix.scale, matrix.zero_point, matrix.levels = map(address, (scale, zero_point, levels))
    matrix.level_count = 0 if levels is None else levels.shape[-1]
    matrix.kept = b, scale, zero_point, levels
    return matrix


def weights(k=161, n=75):
    """Yield (name, PackedMatrix, struct) of each kind of weights."""
    rng = np.random.default_rng(5)
    for dtype in "int8", "uint8", "int4", "uint4", "int2", "uint2", "int16":
        params = qk.QParams(0.01, 0 if dtype in ("int4", "int2") else 3, dtype)
        info = ml_dtypes.iinfo(dtype)
        b = rng.integers(info.min, info.max, (n, k), np.int32, endpoint=True).astype(dtype).T
        yield dtype, qk.pack(b, params), matrix_of(b, PER_TENSOR, params.scale, params.zero_point)
        scale = np.float32(rng.uniform(0.01, 0.02, n))
        params = qk.QParams(scale, rng.integers(0, 2 if dtype.endswith("2") else 7, n), dtype, axis=1)
        yield f"{dtype} columns", qk.pack(b, params), matrix_of(b, PER_AXIS, params.scale, params.zero_point)
        if dtype == "int16":
            continue
        for scale in np.float16(rng.uniform(0.01, 0.02, (5, n))), np.float32(rng.uniform(0.01, 0.02, (5, n))):
            params = qk.QParams(scale, dtype=dtype, axis=0, block_size=36)
            yield f"{dtype} blocks", qk.pack(b, params), matrix_of(b, PER_BLOCK, scale, params.zero_point, 36)
    for dtype in "int4", "uint4":
        w = np.float32(rng.normal(size=(k, n)))
        params = qk.choose_qparams(w, dtype, axis=0, block_size=36, scale_bits=4, symmetric=False)
        b = qk.quantize(w, params)
        matrix = matrix_of(b, PER_BLOCK, params.scale, block=36)
        matrix.integers = integers = params.block_scale, params.block_shift
        matrix.block_scale, matrix.block_shift = map(address, integers)
        yield f"{dtype} integer scales", qk.pack(b, params), matrix
    for dtype in np.float16, ml_dtypes.bfloat16:
        with np.errstate(under="ignore"):
            b = rng.normal(size=(k, n)).astype(dtype)
        yield np.dtype(dtype).name, qk.pack(b, None), matrix_of(b, PER_TENSOR)
    for count in 11, 8, 4:
        codes, levels = rng.integers(0, count, (k, n), np.uint8), np.float32(rng.normal(size=(n, count)))
        yield f"{count} levels", qk.pack(codes, qk.Codebook(levels[0])), matrix_of(codes, PER_TENSOR, levels=levels[0])
        own = qk.Codebook(levels, axis=1)
        yield f"{count} levels of columns", qk.pack(codes, own), matrix_of(codes, PER_AXIS, levels=levels)
        blocks, scale = qk.Codebook(levels[0], axis=0, block_size=36), np.float32(rng.uniform(0, 2, (5, n)))
        in_blocks = matrix_of(codes, PER_BLOCK, scale, block=36, levels=levels[0])
        yield f"{count} levels of blocks", qk.pack(codes, blocks, scales=scale), in_blocks


@pytest.fixture
def new_weights(library):
    made = []

    def new(matrix):
        handle = c_void_p()
        assert library.qk_weights_new(byref(matrix), byref(handle)) == 0
        made.append(handle)
        return handle

    yield new
    for handle in made:
        library.qk_weights_free(handle)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@needs_cmake
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_linear_gives_the_bits_of_python_by_each_kind_of_weights(activation, library, new_weights):
    rng = np.random.default_rng(7)
    x, code = np.float32(rng.normal(size=(19, 161))), [None, "relu", "gelu", "gelu_tanh", "silu"].index(activation)
    bias, residual = np.float32(rng.normal(size=75)), np.float32(rng.normal(size=(19, 75)))
    layer, y = Layer(address(bias), address(residual), code, 1, -0.5, 60), np.empty((19, 75), np.float32)
    for name, packed, matrix in weights():
        assert library.qk_linear(new_weights(matrix), address(x), 19, byref(layer), address(y)) == 0, name
        expected = qk.linear(x, packed, bias, activation=activation, residual=residual, clamp=(-0.5, 60))
        assert same_bits(y, expected), name


@needs_cmake
@pytest.mark.parametrize(
    ("rounding", "real_bias"),
    [("half_even", False), ("half_even", True), ("half_away", True), ("gemmlowp", False), ("tflite", False)],
)
def test_qlinear_gives_the_bits_of_python(rounding, real_bias, library, new_weights):
    rng = np.random.default_rng(8)
    code = ["half_even", "half_away", "gemmlowp", "tflite"].index(rounding)
    q, out = rng.integers(0, 256, (19, 161), np.uint8), np.empty((19, 75), np.int8)
    bias = np.float32(rng.normal(size=75)) if real_bias else rng.integers(-9999, 9999, 75, np.int32)
    params = qk.QParams(0.03, 100, "uint8")
    kinds = [kind for kind in weights() if kind[0] in ("int8", "uint8", "int8 columns", "uint8 columns")]
    # 1e-30: multipliers beyond float32 and biases in units that it lacks
    for scale in (0.5, 1e-30) if code < 2 else (0.5,):
        layer = CodeLayer(U8, I8, 0.03, scale, 100, -7, rounding=code, activation=1)
        layer.bias, layer.int_bias = (address(bias), None) if real_bias else (None, address(bias))
        for name, packed, matrix in kinds:
            assert library.qk_qlinear(new_weights(matrix), address(q), 19, byref(layer), address(out)) == 0, name
            to = qk.QParams(scale, -7, "int8")
            assert same_bits(out, qk.qlinear(q, params, packed, to, bias, activation="relu", rounding=rounding)), name


@needs_cmake
@pytest.mark.parametrize("k", [1, 2, 3, 16, 17, 100, 256])
def test_codebooks_give_the_codes_and_values_of_python(k, library):
    rng = np.random.default_rng(k)
    levels = np.float32(np.round(rng.normal(size=(6, k)) * 8) / 8)  # with equal ones, and ties between them
    levels[0, 0] = -0.0
    x = np.float32(np.round(rng.normal(size=(5, 6, 7)) * 32) / 32)
    for channels, block in ((6, 0), (1, 0), (1, 4)):
        book, shape = c_void_p(), Shape(5, 6, 7, block)
        assert library.qk_book_new(address(levels), channels, k, byref(book)) == 0
        codes, y = np.empty(x.shape, np.uint8), np.empty_like(x)
        scale = np.empty((5, 2, 7), np.float32) if block else None
        assert library.qk_book_encode(book, address(x), byref(shape), address(codes), address(scale)) == 0
        assert library.qk_book_decode(book, address(codes), byref(shape), address(scale), address(y)) == 0
        library.qk_book_free(book)
        axis = 1 if channels > 1 or block else None
        codebook = qk.Codebook(levels if channels > 1 else levels[0], axis=axis, block_size=block or None)
        expected = qk.encode(x, codebook)
        if block:
            assert same_bits(scale, expected[1])
        assert same_bits(codes, expected[0] if block else expected)
        assert same_bits(y, qk.decode(codes, codebook, scales=scale))
