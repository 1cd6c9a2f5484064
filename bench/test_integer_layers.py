"""Layers on 262,144 codes, 256 rows of 1,024, which the L2 cache holds: tables, sums and products, softmax and layer
norm. Peers with floats (torch, NumPy) do the same layer on float32 values."""

from functools import cache

import numpy as np
import peers
import pytest
from arrays import aligned_empty, random_codes, random_floats
from race import exactly, our_own, within

import qkernels as qk

SHAPE, COUNT = (256, 1024), 256 * 1024
PARAMS, OUT = (0.04, 3), (0.05, -7)
PROBABILITY = (1 / 256, -128)


@cache
def of(pair):
    return qk.QParams(*pair)


def codes(v, to):
    return np.clip(np.rint(v / np.float32(to[0])) + to[1], -128, 127).astype(np.int8)


def reals(q, params=PARAMS):
    return (q.astype(np.float64) - params[1]) * float(np.float32(params[0]))


def floats_of(x, name, *arguments):
    contender = peers.torch.layer_of_floats(name, x, *arguments)
    contender.check = lambda result: "~"
    return contender


def numpy_floats(call):
    contender = peers.contender("NumPy float32", call)
    contender.check = lambda result: "~"
    return contender


@pytest.mark.parametrize("name", ["sigmoid", "gelu"])
def test_take_table(race, name):
    q, out, x = random_codes("int8", *SHAPE), aligned_empty(SHAPE, "int8"), random_floats(*SHAPE)
    to = PROBABILITY if name == "sigmoid" else OUT
    table = qk.make_table(name, of(PARAMS), of(to))
    ours = our_own(lambda: qk.take_table(q, table, out=out), out)
    others = [peers.litert.unary({"sigmoid": "LOGISTIC", "gelu": "GELU"}[name], q, PARAMS, to), floats_of(x, name)]
    if name == "sigmoid":
        others += [peers.onnxruntime.qlinear("QLinearSigmoid", [(q, PARAMS)], to)]
    race(f"take_table {name}", ours, others, within(table[q.astype(int) + 128], 1), COUNT, "Gcodes/s", moved=2 * COUNT)


@pytest.mark.parametrize("operation", ["add", "multiply"])
def test_pairs(race, operation):
    a, b, out = random_codes("int8", *SHAPE), random_codes("int8", *SHAPE, seed=5), aligned_empty(SHAPE, "int8")
    to = (0.083, 2) if operation == "add" else (0.1, 2)
    function = qk.qadd if operation == "add" else qk.qmultiply
    ours = our_own(lambda: function(a, of(PARAMS), b, of(OUT), of(to), out=out), out)
    real = reals(a) + reals(b, OUT) if operation == "add" else reals(a) * reals(b, OUT)
    x, y, z = random_floats(*SHAPE), random_floats(*SHAPE, seed=2), aligned_empty(SHAPE, "float32")
    ufunc = np.add if operation == "add" else np.multiply
    name = "QLinearAdd" if operation == "add" else "QLinearMul"
    others = [
        peers.onnxruntime.qlinear(name, [(a, PARAMS), (b, OUT)], to),
        peers.litert.pair("ADD" if operation == "add" else "MUL", a, PARAMS, b, OUT, to),
        numpy_floats(lambda: ufunc(x, y, out=z)),
        floats_of(x, "add" if operation == "add" else "mul", y),
    ]
    ours.check = within(codes(real, to), 1, most=0.02)
    race(f"q{operation}", ours, others, within(codes(real, to), 1, most=0.02), COUNT, "Gcodes/s", moved=3 * COUNT)


def test_softmax(race):
    q, out, x = random_codes("int8", *SHAPE), aligned_empty(SHAPE, "int8"), random_floats(*SHAPE)
    e = np.exp(reals(q) - reals(q).max(-1, keepdims=True))
    expected = codes(e / e.sum(-1, keepdims=True), PROBABILITY)
    ours = our_own(lambda: qk.qsoftmax(q, of(PARAMS), of(PROBABILITY), out=out), out)
    others = [
        peers.onnxruntime.qlinear("QLinearSoftmax", [(q, PARAMS)], PROBABILITY, opset=13, axis=-1),
        peers.litert.softmax(q, PARAMS, PROBABILITY),
        floats_of(x, "softmax", -1),
    ]
    race("qsoftmax", ours, others, within(expected, 1), COUNT, "Gcodes/s", moved=2 * COUNT)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms(race, kind):
    q, out, x = random_codes("int8", *SHAPE), aligned_empty(SHAPE, "int8"), random_floats(*SHAPE)
    weight, bias = random_floats(SHAPE[1], seed=3), random_floats(SHAPE[1], seed=4)
    v = reals(q) - (reals(q).mean(-1, keepdims=True) if kind == "layer" else 0)
    v = v / np.sqrt((v * v).mean(-1, keepdims=True) + 1e-5) * weight + (bias if kind == "layer" else 0)
    if kind == "layer":
        call, others = qk.qlayer_norm, [floats_of(x, "layer_norm", SHAPE[1:], weight, bias)]
        arguments = (q, of(PARAMS), weight, bias, of(OUT))
    else:
        call, others, arguments = (
            qk.qrms_norm,
            [floats_of(x, "rms_norm", SHAPE[1:], weight)],
            (q, of(PARAMS), weight, of(OUT)),
        )
    ours = our_own(lambda: call(*arguments, eps=1e-5, out=out), out)
    ours.check = exactly(codes(v, OUT))
    race(f"q{kind}_norm", ours, others, within(codes(v, OUT), 1), COUNT, "Gcodes/s", moved=2 * COUNT)
