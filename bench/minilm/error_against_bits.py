"""What fewer bits cost MiniLM, scheme by scheme: python -m bench.minilm.error_against_bits [results.json] [chart.png]

The weights of all dense layers are quantized to codes of 2 to 8 bits and decoded, and the network runs on them in
float32, so that nothing but the weights differs. Bits a weight count codes, scales and levels (16 bits each).
Docstrings are others than those of calibration. *Compensated*: rounded with feedback (gptq), the bias adapted. Takes
about ten minutes.
"""

import json
import sys
from pathlib import Path

import numpy as np
from report import pyplot

import qkernels as qk

from . import example
from .corpus import collect_docstrings
from .measure import make_groups, set_threads
from .model import CALIBRATION, baseline, hessians, squares
from .variants import fit_scaled_levels, variances

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "error_against_bits.json"
CHART = ROOT / "docs" / "error_against_bits.png"
CODE_BITS = range(2, 9)
DOCSTRINGS = 100
MOST_BITS = 9  # of the chart; codebooks of many levels for each column weigh more than the codes
STYLES = {"uniform": ("#64748b", "s"), "NormalFloat": ("#c2410c", "^"), "k-means": ("#1d4ed8", "o")}
LINES = ["-", "--", ":", "-."]  # of the schemes of one style


def main():
    results, chart = (Path(given) for given in [*sys.argv[1:], *[RESULTS, CHART][len(sys.argv) - 1 :]])
    report = measure()
    results.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, chart)


# ---- the schemes ----
#
# From a weight (inputs, outputs), bits of a code, and the Hessian of its inputs: (decoded weight, bits in all), and
# perhaps what the bias gains.


def uniform_columns(weight, bits, seen):
    return scaled(weight, uniform_levels(bits), len(weight))


def uniform_blocks(weight, bits, seen):
    return scaled(weight, uniform_levels(bits), 32)


def normal_blocks(weight, bits, seen):
    return scaled(weight, normal_levels(bits), 64)


def kmeans_columns(weight, bits, seen, weights=None):
    codebook = qk.Codebook.fit(weight, 2**bits, axis=1, weights=weights)
    kept = qk.Codebook(np.float16(codebook.levels), axis=1)
    return qk.decode(qk.encode(weight, kept), kept), bits * weight.size + 16 * kept.levels.size


def kmeans_columns_weighted(weight, bits, seen):
    return kmeans_columns(weight, bits, seen, squares(seen)[:, None])


def kmeans_blocks_weighted(weight, bits, seen):
    levels, codes, scales = fit_scaled_levels(weight, 2**bits, 32, squares(seen))
    decoded = qk.decode(codes, qk.Codebook(np.float16(levels), axis=0, block_size=32), scales)
    return decoded, bits * weight.size + 16 * (levels.size + scales.size)


def kmeans_blocks_compensated(weight, bits, seen):
    levels, _, scales = fit_scaled_levels(weight, 2**bits, 32, variances(seen))
    codebook = qk.Codebook(np.float16(levels), axis=0, block_size=32)
    codes, codebook, scales, change, _ = qk.gptq(weight, seen, (codebook, scales), refine=3, refit=True)
    return qk.decode(codes, codebook, scales), bits * weight.size + 16 * (levels.size + scales.size), change


SCHEMES = {
    "uniform, columns": uniform_columns,
    "uniform, blocks of 32": uniform_blocks,
    "NormalFloat, blocks of 64": normal_blocks,
    "k-means, columns": kmeans_columns,
    "k-means, columns, weighted": kmeans_columns_weighted,
    "k-means, blocks of 32, weighted": kmeans_blocks_weighted,
    "k-means, blocks of 32, compensated": kmeans_blocks_compensated,
}


def scaled(weight, levels, block_size):
    """With the largest magnitude of each block as its scale."""
    codebook = qk.Codebook(levels, axis=0, block_size=block_size)
    codes, scales = qk.encode(weight, codebook)
    bits = (len(levels) - 1).bit_length() * weight.size + 16 * scales.size
    return qk.decode(codes, codebook, np.float16(scales)), bits


def uniform_levels(bits):
    """Those of symmetric codes, one of which goes unused."""
    return np.linspace(-1, 1, 2**bits - 1)


def normal_levels(bits):
    """As NF4 is made (QLoRA, section 3), with 2**(bits - 1) levels above 0 and one less below."""
    from scipy.special import ndtri

    half = 2 ** (bits - 1)
    end = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    below, above = (ndtri(np.linspace(0.5, end, n + 1)) for n in (half - 1, half))
    return np.concatenate([-below[:0:-1], above]) / above[-1]


# ---- measuring ----


def measure():
    set_threads(1)
    weights, tokenizer, config = example.load_model()
    texts = [d.document for d in collect_docstrings()]
    tokens = [np.array(e.ids) for e in tokenizer.encode_batch(texts[: CALIBRATION + DOCSTRINGS])]
    seen, tokens = hessians(weights, config, tokens[:CALIBRATION]), tokens[CALIBRATION:]
    batches = [example.make_batch([tokens[i] for i in group]) for group in make_groups(tokens)]

    class Decoded(baseline()):
        """Dense layers of float32 weights that a scheme has made."""

        def __init__(self, scheme, bits):
            self.scheme, self.code_bits = scheme, bits
            self.size = self.bits = self.error = self.square = 0
            super().__init__(weights, config)

        def dense(self, name, weight, bias):
            decoded, bits, *change = self.scheme(weight.T, self.code_bits, seen[name])
            self.size += weight.size
            self.bits += bits
            self.error += np.sum((decoded - weight.T) ** 2)
            self.square += np.sum(weight**2)
            return super().dense(name, np.ascontiguousarray(decoded.T), sum(change, bias))

    def embed(model):
        return np.concatenate([model.embed(*batch) for batch in batches])

    def row(scheme, bits):
        model = Decoded(scheme, bits)
        cosine = np.mean(np.sum(embed(model) * exact, axis=1))
        error = np.sqrt(model.error / model.square)
        return {"code_bits": bits, "bits": model.bits / model.size, "error": float(error), "cosine": float(cosine)}

    exact = embed(Decoded(lambda weight, bits, seen: (weight, 32 * weight.size), 32))
    schemes = {}
    for name, scheme in SCHEMES.items():
        schemes[name] = [row(scheme, bits) for bits in CODE_BITS]
        found = ", ".join(f"{each['cosine']:.4f} at {each['bits']:.2f} bits" for each in schemes[name])
        print(f"{name}: {found}", flush=True)
    return dict(title=f"MiniLM-L6, {DOCSTRINGS} docstrings, {sum(map(len, tokens)):,} tokens", schemes=schemes)


# ---- the chart ----


def draw(report, path):
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    drawn = []
    for name, rows in report["schemes"].items():
        style = name.split(",")[0]
        color, marker = STYLES[style]
        line = LINES[drawn.count(style)]
        drawn.append(style)
        rows = [row for row in rows if row["bits"] <= MOST_BITS]
        for axis, values in zip(axes, ([row["error"] for row in rows], [1 - row["cosine"] for row in rows])):
            axis.plot([row["bits"] for row in rows], values, line, color=color, marker=marker, markersize=5, label=name)
    axes[0].set(ylabel="relative error of the weights (Frobenius norm)")
    axes[1].set(ylabel="1 - cosine of embeddings to those of float32")
    for axis in axes:
        axis.set(yscale="log", xlim=(1.8, MOST_BITS + 0.2), xlabel="bits a weight, codes, scales and levels")
        axis.grid(alpha=0.25, which="both")
    axes[0].legend(fontsize=9)
    figure.suptitle(report["title"])
    figure.savefig(path, dpi=140)
    plt.close(figure)


if __name__ == "__main__":
    main()
