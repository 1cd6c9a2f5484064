"""The chart: quality and speed against bits a weight."""

from report import pyplot

from .measure import bits_a_weight


def draw_chart(title, results, path):
    """Draw quality and speed, a point for each variant; the baseline, at 32 bits, is a line."""
    plt, base, others = pyplot(), results[0], results[1:]
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
            style = dict(fmt="os^Dv<>Pph*"[i % 11], color=f"C{i % 10}", capsize=3, label=r.name)
            axis.errorbar(bits_a_weight(r, base), value(r), error, **style)
        axis.set(title=heading, xlabel="bits a weight")
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)
