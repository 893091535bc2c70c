"""Draws docs/_static/accuracy_and_cost.svg from the committed results, and its twin for dark pages.

    python benchmarks/figures.py

For every problem of the family study: what a method gains over SGD (AdamW for the transformer) in
points of test accuracy, paired by seed, over what its step takes relative to SGD's.
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
OUTPUT = HERE.parent / "docs" / "_static" / "accuracy_and_cost.svg"
DARK_OUTPUT = OUTPUT.with_stem(f"{OUTPUT.stem}_dark")

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


def draw() -> str:
    """The picture as SVG without a background: a panel for each problem, on the same axes."""
    figure = Figure(figsize=(5.2, 6.6), layout="constrained", facecolor="none")
    panels = figure.subplots(3, 2, sharex=True, sharey=True)
    for axes, (problem, title) in zip(panels.flat, PROBLEMS.items(), strict=False):
        _panel(axes, title, points(problem))
    panels[1, 1].tick_params(labelbottom=False)
    _legend(panels[2, 1])
    figure.supylabel("gain over SGD, points of test accuracy", color=INK, fontsize=10)
    figure.supxlabel("time of a step, SGD's = 1", color=INK, fontsize=10)
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": OUTPUT.name}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return re.sub("[ \t]+\n", "\n", file.getvalue())


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
    axes.tick_params(colors=INK, labelsize=10, length=0)
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


def in_dark(picture: str) -> str:
    """The picture in the colours for dark pages."""
    return re.sub("|".join(DARK), lambda found: DARK[found[0]], picture)


if __name__ == "__main__":
    OUTPUT.write_text(draw())
    DARK_OUTPUT.write_text(in_dark(OUTPUT.read_text()))
