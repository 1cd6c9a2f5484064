"""PackedMatrix: what it gives back, what it keeps, and what it is not made of."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from common import LAYOUTS, bits, random_codes, refusals, refuse
from numpy.testing import assert_array_equal
from products import HALVES, LEVELS, SOME, SOME_NAMES, random_x

import qkernels as qk


@pytest.mark.parametrize(("kind", "dtype", "shared"), SOME, ids=SOME_NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_gives_back_what_it_was_made_of(kind, dtype, shared, layout, isas):
    rng = np.random.default_rng(0)
    for k, n in [(0, 0), (0, 5), (5, 0), (1, 1), (3, 17), (130, 67)]:
        for zeros, half in ("none", False), ("own", True), ("one", False):
            if kind is LEVELS and n == 0 and shared == "column":
                continue  # there is no such codebook
            weights, x = kind.make(rng, k, n, dtype, shared, zeros, half), random_x(rng, 4, k)
            lefts = [random_codes(rng, (4, k), left) for left in kind.lefts]
            for isa in isas():
                packed = weights.pack(LAYOUTS[layout])
                arrays = packed.to_arrays()
                assert all(type(value) is np.ndarray and value.dtype.isbuiltin == 1 for value in arrays.values())
                for same in packed, pickle.loads(pickle.dumps(packed)), qk.PackedMatrix.from_arrays(arrays):
                    assert_same(same, packed, weights)
                    assert_array_equal(qk.linear(x, same), qk.linear(x, packed), err_msg=isa, strict=True)
                    for a in lefts:
                        assert_array_equal(qk.matmul(a, same), qk.matmul(a, weights.b), err_msg=isa, strict=True)


def assert_same(packed, first, weights):
    """Its attributes and codes are those of the weights, and of the first that was packed of them."""
    kind, b, params, scales = weights
    assert isinstance(packed, qk.PackedMatrix) and packed.shape == b.shape and packed.params == params
    assert packed.nbytes == first.nbytes and packed.level_error == first.level_error
    assert (packed.scales is None) == (scales is None)
    assert scales is None or (packed.scales == np.float32(scales)).all()
    assert kind is LEVELS or packed.dtype == b.dtype
    assert_array_equal(packed.unpack(), b, strict=True)
    if kind is HALVES:
        assert_array_equal(bits(packed.unpack()), bits(b), strict=True)  # zeros have their signs
        assert repr(packed) == f"PackedMatrix(shape={b.shape}, dtype='{b.dtype}')"


def test_packed_keeps_nothing_of_its_source():
    b = np.ones((64, 64), np.int8)
    packed = qk.pack(b.T, qk.QParams(1))
    b[:] = 5
    packed.unpack()[:] = 6
    packed.to_arrays()["codes"][:] = 7
    assert_array_equal(packed.unpack(), np.ones((64, 64)))


def test_packed_takes_a_quarter_of_float32():
    for k, n in [(384, 384), (384, 1536), (1536, 384), (1000, 1001)]:
        packed = qk.pack(np.ones((k, n), np.int8), qk.QParams(np.ones(n), np.zeros(n, int), axis=1))
        assert k * n <= packed.nbytes <= 1.1 * k * n


@pytest.mark.parametrize("attribute", ["params", "shape", "nbytes"])
def test_packed_is_read_only(attribute):
    packed = qk.pack(np.ones((2, 3), np.int8), qk.QParams(1))
    with pytest.raises(AttributeError):
        setattr(packed, attribute, None)


def test_params_per_column_by_a_negative_axis():
    b = np.int8([[1, 2], [3, 4]])
    params = qk.QParams([0.5, 2.0], axis=-1)
    x = np.float32([[1, 2], [-3, 4]])
    want = qk.linear(x, qk.pack(b, qk.QParams([0.5, 2.0], axis=1)))
    assert_array_equal(qk.linear(x, qk.pack(b, params)), want)


# ---- refusals ----


B = np.arange(12, dtype=np.int8).reshape(3, 4)
PARAMS = qk.QParams(0.5)
PACKED = qk.pack(B, PARAMS)


@refusals(r"""
qk.pack(B.astype(np.int32), PARAMS)
    # TypeError: b must be int8, uint8, int16, int4, uint4, int2, uint2 or float4_e2m1fn, got int32
qk.pack(B.astype(np.uint8), PARAMS)  # TypeError: b must have dtype int8 \(as params\), got uint8
qk.pack(B[0], PARAMS)  # ValueError: b must have shape \(K, N\), got \(4,\)
qk.pack(B, 0.5)  # TypeError: params must be QParams or a Codebook, got float
qk.pack(B, qk.QParams([1.0] * 3, axis=0))
    # ValueError: params must be per tensor or per column \(axis=1\), .* got axis=0
qk.pack(B, qk.QParams([1.0] * 3, axis=1))  # ValueError: scale must have shape \(4,\) to match axis 1 .*got \(3,\)
""")
def test_pack_refuses(refusal):
    refuse(refusal, globals())


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@refusals(r"""
pack(b.astype(np.int32))  # TypeError: b must be int8, uint8, int16, .*, got int32
pack(b.astype(np.uint8))  # TypeError: b must have dtype {dtype} \(as params\), got uint8
pack(b[:, :2])  # ValueError: scale must have shape \(2, 2\)
pack(b[:32])  # ValueError: scale must have shape \(1, 3\)
pack(b, (64, 1), axis=1, block_size=3)  # ValueError: per block of rows .*got axis=1, block_size=3
pack(b, 64, block_size=None)  # ValueError: got axis=0, block_size=None
pack(b.astype(np.int16), dtype="int16")  # ValueError: got axis=0, block_size=32
pack_from(block_size=-1)  # ValueError: block_size must be at least 0, got -1
""")
def test_pack_refuses_blocks_that_do_not_fit(dtype, refusal):
    def pack(b, shape=(2, 3), dtype=dtype, axis=0, block_size=32):
        return qk.pack(b, qk.QParams(np.ones(shape), dtype=dtype, axis=axis, block_size=block_size))

    def pack_from(**arrays):
        return qk.PackedMatrix.from_arrays(pack(b).to_arrays() | arrays)

    b, (call, error, words) = np.zeros((64, 3), getattr(ml_dtypes, dtype, dtype)), refusal
    refuse((call, error, words.format(dtype=dtype)), globals() | locals())


def test_from_arrays_refuses():
    arrays = PACKED.to_arrays()
    for change, error, message in [
        ({"codes": arrays["codes"].astype(np.float32)}, TypeError, "codes must be int8, uint8 or int16, got float32"),
        ({"qmin": np.int32(-5)}, ValueError, "qmin must be -128 or -127 for codes of int8, got -5"),
    ]:
        with pytest.raises(error, match=message):
            qk.PackedMatrix.from_arrays({**arrays, **change})
    del arrays["scale"]
    with pytest.raises(ValueError, match="scale"):
        qk.PackedMatrix.from_arrays(arrays)


def narrow(dtype):
    info = ml_dtypes.iinfo(getattr(ml_dtypes, dtype))
    return qk.pack(
        np.full((4, 4), info.min + 1, info.dtype),
        qk.QParams(np.ones((2, 4)), dtype=dtype, axis=0, block_size=2, narrow_range=True),
    )


BLOCKS = qk.Codebook([1, 2, 3], axis=0, block_size=2)
STORED = {
    "codes": PACKED.to_arrays(),
    "blocks": narrow("int4").to_arrays(),
    "levels": qk.pack(np.zeros((4, 4), np.uint8), BLOCKS, scales=np.ones((2, 4))).to_arrays(),
    "weights": qk.pack(np.ones((4, 4), np.float16), None).to_arrays(),
}


@pytest.mark.parametrize("kind", STORED)
def test_from_arrays_needs_each_array(kind):
    for name in STORED[kind].keys() - {"shape", "levels", "weights", "bits"}:
        arrays = {key: value for key, value in STORED[kind].items() if key != name}
        with pytest.raises(ValueError, match=f"arrays must hold .*got no .*{name}"):
            qk.PackedMatrix.from_arrays(arrays)
    if "bits" in STORED[kind]:
        with pytest.raises(
            ValueError, match=r"codes must have shape \(8,\) to hold those of shape \(4, 4\), got \(4,\)"
        ):
            qk.PackedMatrix.from_arrays({key: value for key, value in STORED[kind].items() if key != "bits"})
    for arrays in {}, {"levels": np.ones(3)}, {"shape": np.array([4, 4])}:
        with pytest.raises(ValueError, match="arrays must hold .*got no .*codes"):
            qk.PackedMatrix.from_arrays(arrays)
    for arrays in None, 5, [1], "codes":
        with pytest.raises(TypeError, match="arrays must be a mapping"):
            qk.PackedMatrix.from_arrays(arrays)


ARRAYS = {
    "blocks": "codes shape signed block_size scale zero_point qmin",
    "levels": "codes shape levels block_size scales",
    "codes": "codes scale zero_point qmin",
    "weights": "weights",
}
NO_ARRAYS = [None, "x", np.ones(3, complex), 10**400, np.array([object()])]
NONE_OF_THESE = [[[1], [2, 3]], np.array(np.nan), *(np.zeros((1, 2, 3), t) for t in (np.float32, np.int64, np.uint8))]
WRONG = [(kind, name, value, TypeError) for kind in ARRAYS for name in ARRAYS[kind].split() for value in NO_ARRAYS]
WRONG += [
    (kind, name, value, (TypeError, ValueError))
    for kind in ARRAYS
    for name in ARRAYS[kind].split()
    for value in NONE_OF_THESE
]


def wrong(kind, error, **values):
    """Values of arrays that are wrong in these kinds of weights."""
    WRONG.extend((kind, name, value, error) for name in values for value in values[name])


EIGHTS, SEVENS = np.full(8, 0x88, np.uint8), np.full(8, 0x77, np.int8)
wrong("blocks", TypeError, shape=[[4.9, 4]], qmin=[-7.9], codes=[SEVENS], signed=[1.0], block_size=[2.0, 3.5])
wrong("blocks", TypeError, zero_point=[0.0])
wrong("blocks", ValueError, shape=[[-4, -4], [4, 5], [4], np.uint64([2**63, 4])], qmin=[-9], codes=[EIGHTS])
wrong("blocks", ValueError, signed=[[True]], block_size=[-1, 0], zero_point=[-8, [0, 0]])
wrong("blocks", ValueError, scale=[[1.0, 2.0], np.zeros((2, 4))])
wrong("levels", TypeError, shape=[[4.0, 4.0]])
wrong("levels", ValueError, shape=[[2**62, 2**62]], block_size=[0], codes=[np.full(8, 0x33, np.uint8)])
wrong("levels", ValueError, scales=[np.full((2, 4), np.inf)], levels=[np.ones(17)])
wrong("codes", TypeError, qmin=[-127.9, True])
wrong("codes", ValueError, qmin=[[-127]])
wrong("weights", ValueError, weights=[np.full((2, 2), np.nan, np.float16)])


@pytest.mark.parametrize("kind", STORED)
def test_from_arrays_refuses_surplus_arrays(kind):
    for name in ("levels", "weights", "blocks", "floats", "scales", "more"):
        if name not in STORED[kind] and not ("signed" in STORED[kind] and name in ("floats", "blocks")):
            with pytest.raises(ValueError, match="arrays must hold"):
                qk.PackedMatrix.from_arrays({**STORED[kind], name: np.ones(1, np.float32)})


@pytest.mark.parametrize(("kind", "name", "value", "error"), WRONG)
def test_from_arrays_checks_each_array(kind, name, value, error):
    with pytest.raises(error, match=rf"\b({name}|levels|b|scales?|data|zero_point)\b"):
        qk.PackedMatrix.from_arrays({**STORED[kind], name: value})


def test_codes_below_a_narrow_range_are_refused():
    for dtype in "int8", "uint8", "int16", "int4", "uint4":
        info = ml_dtypes.iinfo(getattr(ml_dtypes, dtype, dtype))
        b, params = np.full((3, 5), info.min, info.dtype), qk.QParams(1, 1, dtype, narrow_range=True)
        with pytest.raises(
            ValueError, match=f"b must hold codes from {info.min + 1} on, as params have a narrow range, got {info.min}"
        ):
            qk.pack(b, params)
        arrays = qk.pack(b, qk.QParams(1, 1, dtype)).to_arrays() | {"qmin": np.array(info.min + 1)}
        with pytest.raises(ValueError, match=f"got {info.min}"):
            qk.PackedMatrix.from_arrays(arrays)


def integers(dtype, block, **options):
    """A function that packs random weights of 1536 inputs, in blocks with scales in float16."""

    def made(w):
        found = qk.choose_qparams(w, dtype, axis=0, block_size=block, **options)
        if found.block_scale is None:
            found = qk.QParams(np.float16(found.scale), found.zero_point, dtype, axis=0, block_size=block)
        return qk.pack(qk.quantize(w, found), found)

    return made


def levels(k, block):
    def made(w):
        book = qk.Codebook(np.linspace(-1, 1, k), axis=0, block_size=block)
        codes, scales = qk.encode(w, book)
        return qk.pack(codes, book, scales=np.float16(scales))

    return made


TOLD = [  # what docs/methods.md tells of 1536 inputs
    (integers("uint4", 24, scale_bits=4), 4.36),
    (integers("uint4", 32, scale_bits=4), 4.28),
    (integers("uint4", 36, scale_bits=4), 4.25),
    (integers("uint4", 48, scale_bits=4), 4.19),
    (integers("uint4", 32), 4.75),
    (integers("int4", 32), 4.50),
    (integers("int4", 32, method="mse", narrow_range=False), 4.75),
    *((levels(2**bits, block), bits + 16 / block) for bits in (4, 3, 2) for block in (32, 64)),
    (levels(16, 384), 4.04),
]


@pytest.mark.parametrize(("made", "told"), TOLD, ids=[f"{told:.2f}-{i}" for i, (_, told) in enumerate(TOLD)])
def test_bits_a_weight_are_those_that_are_told(made, told):
    w = np.random.default_rng(0).normal(size=(1536, 96)).astype(np.float32)
    assert 8 * made(w).nbytes / w.size == pytest.approx(told, abs=0.006)
