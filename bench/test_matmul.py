"""Products of 8-bit codes: qkernels.matmul and pack. Shapes are M x N x K."""

import numpy as np
import peers
import pytest
from arrays import aligned, aligned_empty, exact_product, random_codes
from dense import CODES, COLD_BYTES, MANY_ROWS, SHAPES, THREADED, UNPACKED, in_turn, minilm_layer, named, race_product
from limits import moving
from race import Contender, exactly, our_own

import qkernels as qk

A_DTYPES = pytest.mark.parametrize("a_dtype", CODES)


def matmul(a, packed, out):
    return our_own(lambda: qk.matmul(a, packed, out=out), out)


def operands(shape, a_dtype="uint8"):
    """Return a, b, their exact product, and an array for ours."""
    m, n, k = shape
    a, b = random_codes(a_dtype, m, k, seed=0), random_codes("int8", k, n, seed=1)
    return a, b, exact_product(a, b), aligned_empty((m, n), "int32")


def integer_peers(a, b, expected):
    found = [peers.onnxruntime.matmul_integer(a, b), peers.torch.int_mm(a, b), peers.blas.sgemm(a, b, expected)]
    return [*found, peers.numkong.dots(a, b)] if a.dtype == np.int8 else found


@pytest.mark.parametrize("shape", SHAPES + MANY_ROWS, ids=named)
@A_DTYPES
def test_matmul(race, isa, a_dtype, shape):
    a, b, expected, out = operands(shape, a_dtype)
    ours, others = matmul(a, qk.pack(b, qk.QParams(1.0)), out), integer_peers(a, b, expected)
    case = f"matmul {CODES[a_dtype]}s8 {named(shape)}"
    race_product(race, isa, case, shape, ours, others, exactly(expected), [a], b.nbytes, out)


@pytest.mark.parametrize("layer", ["attention.output.dense", "intermediate.dense", "output.dense"])
def test_matmul_minilm(race, isa, layer):
    """Trained weights are mostly small, which AVX2 makes use of; those of test_matmul are uniform."""
    w = minilm_layer(layer)
    params = qk.choose_qparams(w, "int8", axis=1)
    b, shape = aligned(qk.quantize(w, params)), (128, w.shape[1], w.shape[0])
    a = random_codes("uint8", 128, w.shape[0], seed=0)
    expected, out = exact_product(a, b), aligned_empty((128, w.shape[1]), "int32")
    ours, others = matmul(a, qk.pack(b, params), out), integer_peers(a, b, expected)
    case = f"matmul MiniLM {layer.split('.')[0]} {named(shape)}"
    race_product(race, isa, case, shape, ours, others, exactly(expected), [a], b.nbytes, out)


@pytest.mark.parametrize("temperature", ["hot", "cold"])
@pytest.mark.parametrize("shape", [(1, 1536, 384), *((m, 4096, 4096) for m in (1, 2, 3, 4))], ids=named)
def test_few_rows(race, isa, shape, temperature):
    """Reading the weights binds: from the cache that holds them, or from memory, where many matrices take turns."""
    (a, b, expected, out), cold = operands(shape), temperature == "cold"
    copies = COLD_BYTES // b.nbytes if cold else 1
    packed = [qk.pack(b, qk.QParams(1.0)) for _ in range(copies)]
    others = []
    if copies < 100 and len(a) == 1:  # onnxruntime takes long to make more sessions
        sessions = [peers.onnxruntime.matmul_integer(a, b) for _ in range(copies)]
        others = sessions[:1]
        if others[0].call:
            others[0].call = in_turn([session.call for session in sessions])
    ours = our_own(in_turn([matmul(a, p, out).call for p in packed]), out)
    case = f"matmul {temperature} weights {named(shape)}"
    race_product(race, isa, case, shape, ours, others, exactly(expected), [a], b.nbytes, out, cold)


@pytest.mark.parametrize("shape", UNPACKED, ids=named)
def test_unpacked(race, isa, shape):
    """b is packed at each call; of small ones that is most of it."""
    a, b, expected, out = operands(shape)
    packed = matmul(a, qk.pack(b, qk.QParams(1.0)), aligned_empty(out.shape, "int32"))
    packed.name = "packed"
    ours, case = matmul(a, b, out), f"matmul unpacked {named(shape)}"
    race_product(race, isa, case, shape, ours, [packed], exactly(expected), [a], b.nbytes, out)


@pytest.mark.parametrize("shape", THREADED, ids=named)
def test_threads(race, isa, shape):
    """All threads and one. A run of its own: QKERNELS_NUM_THREADS=2 pytest bench -k threads."""
    if peers.threads == 1:
        pytest.skip("one thread")
    a, b, expected, out = operands(shape)
    packed, out_1 = qk.pack(b, qk.QParams(1.0)), aligned_empty(out.shape, "int32")

    def one_thread():
        qk.set_num_threads(1)
        qk.matmul(a, packed, out=out_1)
        qk.set_num_threads(peers.threads)

    others = [Contender("one thread", one_thread, lambda: out_1)]
    others += [peers.onnxruntime.matmul_integer(a, b), peers.torch.int_mm(a, b)]
    ours, case = matmul(a, packed, out), f"matmul threads {named(shape)}"
    race_product(race, isa, case, shape, ours, others, exactly(expected), [a], b.nbytes, out)


def test_batched(race, isa):
    """Attention's q k^T: 12 heads of 32, 128 tokens."""
    a, b = random_codes("int8", 12, 128, 32, seed=0), random_codes("int8", 12, 32, 128, seed=1)
    expected, out = exact_product(a, b), aligned_empty((12, 128, 128), "int32")
    others = [peers.onnxruntime.matmul_integer_of_inputs(a, b), peers.blas.sgemm(a, b, expected)]
    ours, case, shape = matmul(a, b, out), "matmul batched 12 x 128x128x32", (12 * 128, 128, 32)
    race_product(race, isa, case, shape, ours, others, exactly(expected), [a], b.nbytes, out)


@pytest.mark.parametrize("kind", ["int8", "int8 transposed", "int4 in blocks of 32"])
def test_pack(race, kind):
    """GB/s of codes, one a byte."""
    n = 4096
    if kind.startswith("int8"):
        b, params = random_codes("int8", n, n), qk.QParams(np.ones(n), axis=1)
        b = b.T if "transposed" in kind else b
    else:
        params = qk.QParams(np.ones((n // 32, n)), None, "int4", axis=0, block_size=32)
        b = ((random_codes("uint8", n, n) & 15).view(np.int8) - np.int8(8)).astype(params.dtype)
    ours = Contender("qkernels", lambda: qk.pack(b, params), lambda: qk.pack(b, params).unpack().astype(np.int8))
    limits = [moving(n * n, n * n // (1 if "int8" in kind else 2))]
    race(f"pack {kind} {n}x{n}", ours, [], exactly(b.astype(np.int8)), n * n, "GB/s", limits)
