"""A recognizer of text, PP-OCRv4's of the package rapidocr-onnxruntime, run on codes: a walk over the nodes of an ONNX
graph, each of which is a function of qkernels.

    python tests/ocr.py 200 && echo "lines of text; the package is downloaded once"

Whatever is a function of one tensor's values (hard swish in four nodes, affine maps of scalars around it) is composed
first, and becomes one table. Images are views (N, C, H, W) of arrays (N, H, W, C).
"""

import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import qkernels as qk
from qkernels import observers

PACKAGE, CACHE = "rapidocr-onnxruntime==1.4.4", Path(__file__).parents[1] / "examples" / "cache"
MODEL, PIXELS = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", qk.QParams(1 / 127.5, 128, "uint8")
LOGITS = "p2o.Add.277"

Codes = namedtuple("Codes", "q params")
Function = namedtuple("Function", "of f")  # of the values of Codes


def load():
    """Return the model; pip downloads it once."""
    if not list(CACHE.glob("rapidocr*.whl")):
        subprocess.run(
            [sys.executable, *f"-m pip download -q --retries 1 --no-deps {PACKAGE} -d".split(), str(CACHE)], check=True
        )
    return onnx.load_from_string(zipfile.ZipFile(next(CACHE.glob("rapidocr*.whl"))).read(MODEL))


# ---- nodes ----


def channels_last(images):
    return images.transpose(0, 2, 3, 1)


def channels_first(images):
    return images.transpose(0, 3, 1, 2)


def take_table(q, table):
    return channels_first(qk.take_table(channels_last(q), table)) if q.ndim == 4 else qk.take_table(q, table)


UNARY = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Clip": np.clip,
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "HardSigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
}
BINARY = {"Add": qk.qadd, "Mul": qk.qmultiply}
NORM = ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"]


class Recognizer:
    def __init__(self, model, params):
        """`params`: {name of a tensor: QParams}."""
        self.params, self.packed, self.tables = params, {}, {}
        nodes = [n for n in model.graph.node if n.op_type != "Constant"]
        self.constants = constants_of(model)
        self.nodes = [(n.op_type, list(n.input), n.output[0], attributes_of(n)) for n in nodes]

    def __call__(self, pixels):
        """Return codes of logits (N, steps, characters), given uint8 pixels (N, height, width, 3)."""
        self.values, i = self.constants | {"x": Codes(channels_first(pixels), PIXELS)}, 0
        while LOGITS not in self.values:
            i += self.step(i)
        return self.codes(LOGITS).q

    def codes(self, name):
        """Return the codes of a tensor; of a function, by its table."""
        value = self.values[name]
        if isinstance(value, Function):
            if name not in self.tables:
                self.tables[name] = qk.make_table(value.f, value.of.params, self.params[name])
            value = self.values[name] = Codes(take_table(value.of.q, self.tables[name]), self.params[name])
        return value

    def step(self, i):
        """Run node i, and those after it that make one operator with it; return how many."""
        kind, names, result, attributes = self.nodes[i]
        values, count = [self.values[name] for name in names], 1
        if [node[0] for node in self.nodes[i : i + len(NORM)]] == NORM:
            eps, w, b = (self.constant(self.nodes[i + j]) for j in (4, 7, 8))
            result, count, x = self.nodes[i + 8][2], len(NORM), self.codes(names[0])
            y = qk.qlayer_norm(x.q, x.params, w, b, self.params[result], eps=eps.item())
        elif kind in ("Conv", "MatMul") and len(names) > 1 and isinstance(values[1], np.ndarray):
            result, count, y = self.product(i)
        elif not any(isinstance(value, Codes | Function) for value in values):
            self.values[result] = on_integers(kind, values, attributes)
            return 1
        elif kind in UNARY and (made := self.function(kind, values, attributes)):
            self.values[result] = made
            return 1
        elif kind == "Shape":
            self.values[result] = np.array(self.codes(names[0]).q.shape)
            return 1
        elif kind in ("Reshape", "Transpose", "Squeeze", "Slice"):
            x = self.codes(names[0])
            self.values[result] = Codes(on_integers(kind, [x.q, *values[1:]], attributes), x.params)
            return 1
        else:
            y = self.operator(kind, [self.codes(name) for name in names], self.params[result], attributes)
        self.values[result] = Codes(y, self.params[result])
        return count

    def constant(self, node):
        return next(self.values[name] for name in node[1] if isinstance(self.values.get(name), np.ndarray))

    def function(self, kind, values, attributes):
        """Return a node on one tensor's values and scalars as a function, or None if there are more."""
        functions = [Function(v, lambda x: x) if isinstance(v, Codes) else v for v in values]
        sources = {id(v.of): v.of for v in functions if isinstance(v, Function)}
        if len(sources) > 1 or any(isinstance(v, np.ndarray) and v.size > 1 for v in functions):
            return None

        def f(x):
            given = (v.f(x) if isinstance(v, Function) else v.astype(np.float64).reshape(()) for v in functions)
            return UNARY[kind](*given, **attributes)

        return Function(*sources.values(), f)

    def product(self, i):
        """Return the name of the result, the count of nodes and the codes of a layer with weights."""
        (kind, _, _, attributes), x = self.nodes[i], self.codes(self.nodes[i][1][0])
        if i not in self.packed:
            result, count, w, bias = self.layer(i)
            self.packed[i] = result, count, *pack(w, bias, x.params, attributes.get("group"))
        result, count, packed, bias = self.packed[i]
        if kind == "MatMul":
            return result, count, qk.qlinear(x.q, x.params, packed, self.params[result], bias)
        where = dict(strides=tuple(attributes["strides"]), padding=tuple(attributes["pads"]))
        y = qk.qconv2d(channels_last(x.q), x.params, packed, self.params[result], bias, **where)
        return result, count, channels_first(y)

    def layer(self, i):
        """Return the name of the result, the count of nodes, weights and bias."""
        (kind, names, result, _), (follower, others, after, how) = self.nodes[i : i + 2]
        w = self.constants[names[1]].transpose(2, 3, 1, 0) if kind == "Conv" else self.constants[names[1]]
        bias = self.constants[names[2]] if len(names) > 2 else None
        if follower == "BatchNormalization":
            norm = (self.constants[name] for name in others[1:])
            return after, 2, *qk.fold_batchnorm(w, bias, *norm, eps=how["epsilon"])
        if kind == "MatMul" and follower == "Add" and others[0] == result and others[1] in self.constants:
            return after, 2, w, self.constants[others[1]]
        return result, 1, w, bias

    def operator(self, kind, inputs, params, attributes):
        x = inputs[0]
        if kind in BINARY:
            a, b = (channels_last(v.q) if v.q.ndim == 4 else v.q for v in inputs)
            y = BINARY[kind](a, x.params, b, inputs[1].params, params)
            return channels_first(y) if y.ndim == 4 else y
        if kind == "Softmax":
            return qk.qsoftmax(x.q, x.params, params, axis=attributes["axis"])
        if kind == "MatMul":
            return product_of_codes(x, inputs[1], params)
        if kind == "Concat":
            assert attributes["axis"] == 1
            return channels_first(qk.qconcatenate([(channels_last(v.q), v.params) for v in inputs], params, axis=3))
        images = channels_last(x.q)
        if kind == "AveragePool":
            size, strides = tuple(attributes["kernel_shape"]), tuple(attributes["strides"])
            return channels_first(qk.qaverage_pool2d(images, x.params, params, size, strides=strides))
        assert kind == "GlobalAveragePool"
        return channels_first(qk.qglobal_average_pool(images, x.params, params))


def pack(w, bias, x_params, groups):
    params = qk.choose_qparams(w, "int8", axis=w.ndim - 1)
    if bias is not None:  # a filter of next to no weights, as some batch norms leave, has a bias all the same
        least = np.abs(bias.astype(np.float64)) / (2**30 * float(x_params.scale))
        params = qk.QParams(np.maximum(params.scale, least), dtype="int8", axis=w.ndim - 1)
    codes = qk.quantize(w, params)
    packed = qk.pack_conv(codes, params, groups=groups) if w.ndim == 4 else qk.pack(codes, params)
    return packed, None if bias is None else qk.quantize_bias(bias, x_params, params)


def product_of_codes(a, b, params):
    """The matrices of a times those of b: int32 sums, of which codes are made."""
    scale = np.float64(a.params.scale) * b.params.scale / params.scale
    y = np.empty((*a.q.shape[:-1], b.q.shape[-1]), params.dtype)
    for i in np.ndindex(y.shape[:-2]):
        sums = qk.matmul(a.q[i], b.q[i], a_zero_point=a.params.zero_point, b_zero_point=b.params.zero_point)
        y[i] = qk.requantize(sums, scale, params)
    return y


def on_integers(kind, values, attributes):
    """Return what a node makes of shapes, or of where codes are."""
    x = values[0]
    if kind == "Cast":
        return x.astype(np.int64)
    if kind == "Concat":
        return np.concatenate(values, axis=attributes["axis"])
    if kind == "Squeeze":
        return x.squeeze(tuple(attributes["axes"]))
    if kind == "Transpose":
        return x.transpose(attributes["perm"])
    if kind == "Reshape":
        return x.reshape([n or x.shape[i] for i, n in enumerate(values[1].tolist())])
    assert kind == "Slice"
    starts, ends, axes, steps = (*values[1:], np.ones_like(values[1]))[:4]
    parts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(*(v.tolist() for v in (starts, ends, axes, steps))):
        parts[axis] = slice(start, end, step)
    return x[tuple(parts)]


def attributes_of(node):
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def constants_of(model):
    nodes = [n for n in model.graph.node if n.op_type == "Constant"]
    return {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in nodes}


# ---- text ----


def lines_of_text(count):
    """Return lines of three words of our licence and a number, any two of which differ."""
    words, rng = (Path(__file__).parents[1] / "LICENSE").read_text().split(), np.random.default_rng(0)
    return [" ".join(rng.permutation([*rng.choice(words, 3), str(rng.integers(10_000))])) for _ in range(count)]


@cache
def font():
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    found = FT2Font(font_manager.findfont("DejaVu Sans"))
    found.set_size(32, 72)
    return found


def render(text):
    """Return uint8 pixels (1, 48, width, 3) of black text on white."""
    font().set_text(text)
    font().draw_glyphs_to_bitmap()
    ink = np.asarray(font().get_image())
    page = np.full((48, ink.shape[1] + 16), 255, np.uint8)
    top = (48 - ink.shape[0]) // 2
    page[top : top + ink.shape[0], 8:-8] -= ink
    return np.repeat(page[None, ..., None], 3, axis=3)


def read(logits, characters):
    """Return the likeliest text: repeated codes are one, code 0 is none."""
    best = logits.argmax(-1)[0]
    return "".join(characters[i] for i, before in zip(best, [0, *best[:-1]]) if i and i != before).strip()


def characters_of(model):
    return ["", *model.metadata_props[0].value.split("\n")[:6623], " "]


def right(found, text):
    """How many characters are right: those of the text, less what must be changed (Levenshtein)."""
    row = list(range(len(found) + 1))
    for i, a in enumerate(text, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(found, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return max(0, len(text) - row[-1])


# ---- in float32 ----


class Float:
    """The model in onnxruntime; `everything`: with each tensor of floats among the results."""

    def __init__(self, model, everything=False):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.graph.output[:]
        names = [n.output[0] for n in model.graph.node if n.op_type != "Constant"] if everything else [LOGITS]
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.names = names
        self.session = onnxruntime.InferenceSession(copy.SerializeToString(), options, ["CPUExecutionProvider"])

    def __call__(self, pixels):
        x = channels_first((pixels - np.float32(128)) / np.float32(127.5))
        return dict(zip(self.names, self.session.run(None, {"x": np.ascontiguousarray(x)})))


def calibrate(model, images, observer=observers.MinMax):
    """Return QParams of each tensor of floats."""
    run, seen = Float(model, everything=True), {}
    for image in images:
        for name, values in run(image).items():
            if values.dtype == np.float32:
                seen.setdefault(name, observer()).update(values)
    return {name: one.qparams("uint8") for name, one in seen.items()}


def compare(model, count, observer=observers.MinMax, calibration=32):
    """Return how many characters of so many lines there are, and how many are right in float32 and in integers."""
    lines, characters = lines_of_text(calibration + count), characters_of(model)
    params = calibrate(model, [render(line) for line in lines[:calibration]], observer)
    exact, quantized, totals = Float(model), Recognizer(model, params), np.zeros(3, int)
    for text in lines[calibration:]:
        image = render(text)
        texts = read(exact(image)[LOGITS], characters), read(quantized(image), characters)
        totals += len(text), right(texts[0], text), right(texts[1], text)
    return totals


def milliseconds(networks, images, rounds=5):
    """Return the mean time of an image by each network, which take turns; of each image the shortest time counts."""
    qk.set_num_threads(1)
    times = np.full((len(networks), len(images)), np.inf)
    for _ in range(rounds):
        for j, image in enumerate(images):
            for i, network in enumerate(networks):
                start = time.perf_counter()
                network(image)
                times[i, j] = min(times[i, j], time.perf_counter() - start)
    return 1e3 * times.mean(axis=1)


def main(count):
    model, images = load(), [render(line) for line in lines_of_text(40)]
    for observer in (observers.MinMax, observers.Percentile, observers.MSE, observers.Entropy):
        print(observer.__name__, "characters, right in float32 and on codes:", *compare(model, count, observer))
    networks = Float(model), Recognizer(model, calibrate(model, images[:32]))
    times = milliseconds(networks, images[32:])
    weights = sum(packed.nbytes for _, _, packed, _ in networks[1].packed.values()) / 1e6
    print(f"ms a line, in float32 and on codes: {times[0]:.1f} {times[1]:.1f}; MB of weights on codes: {weights:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
