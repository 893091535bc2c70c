"""Draws the pictures of README and guides from committed results, each with a twin for dark pages.

    python benchmarks/figures.py

docs/_static/accuracy_and_cost.svg: for every problem of the family study, what a method gains over
SGD (AdamW for the transformer) in points of test accuracy, paired by seed, over what its step takes
relative to SGD's. docs/_static/weights_and_channels.svg: test accuracy over the MACs that are left
where single weights are pruned, and where whole channels are.
"""

import io
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from zosam_jax.report.figures import PALETTE

HERE = Path(__file__).parent
STUDY = HERE / "results" / "family_study"
STEP_TIMES = HERE / "results" / "bench_resnet32_rademacher.json"
PAYING = HERE / "results" / "paying" / "accuracy.json"
PICTURES = HERE.parent / "docs" / "_static"

PROBLEMS = {
    "mlp-clean-90": "MLP, 90% sparse, clean labels",
    "mlp-noise-90": "MLP, 90% sparse, noisy labels",
    "mlp-noise-98": "MLP, 98% sparse, noisy labels",
    "resnet-digits-noise-0": "ResNet, dense, noisy labels",
    "vit-noise-0": "Transformer, dense, noisy labels",
}
INK, RULE = "#24292f", "#dfe3e8"
# Colour on a light page → on a dark one.
DARK = {INK: "#e6edf3", RULE: "#3d444d", **dict(PALETTE)}


class Method(NamedTuple):
    """A method: its file in the study, its name in the step times, and how it is drawn."""

    name: str
    study: str
    bench: str
    color: str
    marker: str


METHODS = (
    Method("random control", "random-layerwise", "random_weight_perturbation", "#7a7f87", "s"),
    Method("subbatch_sam", "fast-sam", "fast_sam", "#009e73", "^"),
    Method("zo_sam, the paper's", "zo-sam-global", "zo_sam", "#d55e00", "o"),
    Method("sam", "sam-layerwise", "sam", "#0072b2", "D"),
)


OPTIMIZERS = {
    "sgd": ("#c0649b", "v"),
    **{m.bench if m.bench != "fast_sam" else "subbatch_sam": (m.color, m.marker) for m in METHODS},
}


class Point(NamedTuple):
    """A gain in points, its standard error over seeds, and a step's time relative to SGD's."""

    gain: float
    error: float
    price: float


def points(problem: str) -> list[Point]:
    """A point for each of METHODS, at the radius that was best on the held-out images."""
    times = {row["optimizer"]: row["time_ratio"] for row in json.loads(STEP_TIMES.read_text())}
    base = _tested(problem, "sgd")
    made = []
    for method in METHODS:
        tuned = _tested(problem, method.study)
        if tuned.keys() != base.keys():
            raise ValueError(f"{problem}: {method.study} must have the seeds of sgd, {list(base)}.")
        gains = [tuned[seed] - base[seed] for seed in base]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        made.append(Point(statistics.fmean(gains), error, times[method.bench]))
    return made


def _tested(problem: str, method: str) -> dict[int, float]:
    """Seed → test accuracy in percent; of several radii that of the best validation accuracy."""
    file = STUDY / problem / f"{method}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    by_radius: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        if row["kind"] == "validation":
            by_radius[row["rho"]].append(row["accuracy"])
    best = max(by_radius, key=lambda rho: statistics.fmean(by_radius[rho]), default=None)
    tests = [row for row in rows if row["kind"] == "test" and best in (None, row["rho"])]
    return {row["seed"]: row["accuracy"] for row in tests}


def accuracy_and_cost() -> Figure:
    """A panel for each problem, on the same axes."""
    figure = Figure(figsize=(5.2, 6.6), layout="constrained", facecolor="none")
    panels = figure.subplots(3, 2, sharex=True, sharey=True)
    for axes, (problem, title) in zip(panels.flat, PROBLEMS.items(), strict=False):
        _panel(axes, title, points(problem))
    panels[1, 1].tick_params(labelbottom=False)
    _legend(panels[2, 1])
    figure.supylabel("gain over SGD, points of test accuracy", color=INK, fontsize=10)
    figure.supxlabel("time of a step, SGD's = 1", color=INK, fontsize=10)
    return figure


def _panel(axes: Any, title: str, drawn: list[Point]) -> None:
    axes.set_title(title.replace(", ", ",\n", 1), color=INK, fontsize=10, loc="left")
    axes.axhline(0.0, color=INK, linewidth=1)
    control = drawn[0]
    axes.axhline(control.gain, color=METHODS[0].color, linewidth=1, linestyle=":")
    for method, point in zip(METHODS, drawn, strict=True):
        axes.errorbar(
            point.price,
            point.gain,
            yerr=point.error,
            color=method.color,
            marker=method.marker,
            markersize=6.5,
            capsize=3,
            linewidth=1.4,
        )
    axes.set(xlim=(0.95, 2.0), ylim=(-1.5, 19), xticks=(1.0, 1.5, 2.0), yticks=(0, 5, 10, 15))
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.tick_params(colors=INK, which="both", labelsize=10, length=0)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.patch.set_visible(False)


def _legend(axes: Any) -> None:
    axes.axis("off")
    prices = [point.price for point in points(next(iter(PROBLEMS)))]
    for i, (method, price) in enumerate(zip(METHODS, prices, strict=True)):
        y = 0.92 - 0.14 * i
        style = {"color": method.color, "transform": axes.transAxes, "clip_on": False}
        axes.plot([0.03], [y], marker=method.marker, markersize=6.5, **style)
        text = f"{method.name}, {price:.2f}"
        axes.text(0.1, y, text, color=INK, fontsize=10, va="center", transform=axes.transAxes)
    note = "dotted: the control's gain\nbars: standard errors,\nfive seeds"
    axes.text(0.0, 0.3, note, color=INK, fontsize=9.5, va="top", transform=axes.transAxes)


def weights_and_channels() -> Figure:
    """A panel for single weights and one for channels: accuracy over the MACs that are left."""
    rows = json.loads(PAYING.read_text())
    figure = Figure(figsize=(5.2, 4.0), layout="constrained", facecolor="none")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, removed in zip(panels, ("weights", "channels"), strict=True):
        axes.set_title(f"{removed} pruned", color=INK, fontsize=10, loc="left")
        for name, (color, marker) in OPTIMIZERS.items():
            drawn = _over_macs(
                [r for r in rows if r["optimizer"] == name and r["removed"] in ("dense", removed)]
            )
            axes.errorbar(
                *zip(*drawn, strict=True),
                color=color,
                marker=marker,
                markersize=5,
                capsize=2,
                linewidth=1.2,
                label=name.replace("random_weight_perturbation", "random control"),
            )
        axes.set(xscale="log", xlim=(1.15, 0.09), xticks=(1.0, 0.5, 0.25, 0.1))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        _plain(axes)
    named = panels[1].get_legend_handles_labels()
    figure.legend(
        *named, loc="outside upper left", ncols=3, fontsize=9, labelcolor=INK, frameon=False
    )
    figure.supylabel("test accuracy (%)", color=INK, fontsize=10)
    figure.supxlabel("MACs, the dense network's = 1", color=INK, fontsize=10)
    return figure


def _over_macs(rows: list[dict[str, Any]]) -> list[tuple[float, float, float]]:
    """(MACs, mean accuracy in percent, its standard error) at each sparsity."""
    by_sparsity: dict[float, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_sparsity[row["sparsity"]].append(row)
    made = []
    for _, of_seeds in sorted(by_sparsity.items()):
        values = [100 * row["test_accuracy"] for row in of_seeds]
        error = statistics.stdev(values) / len(values) ** 0.5
        made.append((of_seeds[0]["macs"], statistics.fmean(values), error))
    return made


def file(name: str) -> Path:
    """Where a picture is."""
    return PICTURES / f"{name}.svg"


def as_svg(figure: Figure, name: str) -> str:
    """A picture without a background, the same bytes from the same results."""
    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{name}.svg"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return re.sub("[ \t]+\n", "\n", drawn.getvalue())


def in_dark(picture: str) -> str:
    """The picture in the colours for dark pages."""
    return re.sub("|".join(DARK), lambda found: DARK[found[0]], picture)


if __name__ == "__main__":
    for picture in (accuracy_and_cost, weights_and_channels):
        text = as_svg(picture(), picture.__name__)
        file(picture.__name__).write_text(text)
        file(f"{picture.__name__}_dark").write_text(in_dark(text))
