"""The chart: accuracy against latency, and the range of each layer by each observer."""

import numpy as np
from report import pyplot


def draw_chart(title, results, params, path):
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained", width_ratios=[1, 1, 1.6])
    for i, (axis, size) in enumerate(zip(axes, (64, 224))):
        for j, r in enumerate(results):
            style = dict(fmt="os^Dv<>Pph*"[j % 11], color=f"C{j % 10}", capsize=3, label=r.name)
            axis.errorbar(r.seconds[i] * 1e3, 100 * r.accuracy, 100 * r.error, **style)
        axis.set(xlabel=f"ms for one image of {size} x {size}", ylabel="accuracy, %", xlim=(0, None))
    axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    draw_ranges(axes[2], params)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_ranges(axis, params):
    """Draw the lowest and the highest value that codes have, of each layer in the order of inference."""
    for i, (observer, of_layers) in enumerate(params.items()):
        names = [name for name in of_layers if name not in ("pixels", "logits")]
        ends = [[p.scale * (end - p.zero_point) for p in map(of_layers.get, names)] for end in (0, 255)]
        for end in ends:
            axis.plot(end, color=f"C{i}", linewidth=1, label=observer if end is ends[0] else None)
    wide = np.arange(0, len(names), 4)
    axis.set_xticks(wide, [names[i] for i in wide], rotation=60, ha="right", fontsize=7)
    axis.set(title="ranges of layers by each observer")
    axis.title.set_fontsize(10)
    axis.legend(fontsize=8, frameon=False)
