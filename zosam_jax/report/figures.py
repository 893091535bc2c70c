"""Figures as inline SVG in the page's colours, which change with its light or dark scheme.

Text stays text, in the page's font. Every panel is a drawing of its own, so that the page can put
as many beside one another as fit.
"""

import hashlib
import html
import io
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from zosam_jax.report.runs import Curve, Plane

# What matplotlib draws in, to be replaced by the page's variables; no other colour is equal.
_INK, _RULE = "#010203", "#040506"
# Matplotlib writes six decimals of a point in the attributes that place things; what cannot be seen
# is most of the page. Labels are text, outside of any attribute.
_COORDINATES = re.compile(r'\s(?:d|x|y|width|height|transform)="[^"]*"')
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")
# (light, dark): the base optimizers' greys, then colours that the colour-blind can tell apart
# (after Okabe and Ito).
PALETTE = (
    ("#7a7f87", "#969ba3"),
    ("#0072b2", "#55a8e2"),
    ("#d55e00", "#f58549"),
    ("#009e73", "#37c79b"),
    ("#c0649b", "#e091bf"),
    ("#a87900", "#e3b341"),
    ("#5b4fc4", "#a79bff"),
    ("#6b8e23", "#a9c95f"),
)
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}


class Style(NamedTuple):
    """How an optimizer is drawn in every figure."""

    color: int  # an index of PALETTE
    dashed: bool  # told apart from the one before that has the same colour

    @property
    def light(self) -> str:
        """The colour that matplotlib is given."""
        return PALETTE[self.color][0]

    @property
    def dashes(self) -> str:
        """Matplotlib's name of the line."""
        return "--" if self.dashed else "-"


class Panel(NamedTuple):
    """A drawing of a figure."""

    title: str  # what it shows
    svg: str  # the drawing


class Figure(NamedTuple):
    """Panels side by side, with one caption."""

    panels: Sequence[Panel]  # the drawings
    caption: str  # what is seen, and how it was measured
    legend: dict[str, Style]  # optimizer → its style, for those drawn in colour
    markers: dict[str, str]  # what else the points' shapes say: row label → glyph


class Line(NamedTuple):
    """A mean over seeds with the band of their standard deviations; one value has none."""

    xs: Sequence[float]
    means: Sequence[float]
    deviations: Sequence[float]
    style: Style


class Points(NamedTuple):
    """Points of one optimizer and one shape."""

    xs: Sequence[float]
    ys: Sequence[float]
    style: Style
    marker: str


def styles(optimizers: Sequence[str], bases: Iterable[str]) -> dict[str, Style]:
    """A colour for each optimizer; base optimizers are grey."""
    plain = [name for name in optimizers if name in set(bases)]
    others = [name for name in optimizers if name not in plain]
    colors = len(PALETTE) - 1
    grey = {name: Style(0, i % 2 == 1) for i, name in enumerate(plain)}
    return grey | {n: Style(1 + i % colors, i // colors % 2 == 1) for i, n in enumerate(others)}


def averaged(curves: Sequence[Curve], style: Style) -> Line | None:
    """The mean of several seeds' curves where any of them has a value; None without one."""
    at: dict[float, list[float]] = defaultdict(list)
    for curve in curves:
        for x, y in zip(curve.xs, curve.ys, strict=True):
            at[x].append(y)
    if not at:
        return None
    xs = sorted(at)
    deviations = [statistics.stdev(at[x]) if len(at[x]) > 1 else 0.0 for x in xs]
    return Line(xs, [statistics.fmean(at[x]) for x in xs], deviations, style)


def lines(
    name: str,
    drawn: Sequence[Line],
    xlabel: str,
    ylabel: str,
    *,
    log: bool = False,
    settled: bool = False,
) -> Panel:
    """Lines with their bands; if `settled`, only as low as they are in their second half."""
    figure, axes = _axes(xlabel, ylabel)
    for line in drawn:
        short = len(line.xs) < 12
        axes.plot(
            line.xs,
            line.means,
            color=line.style.light,
            linestyle=line.style.dashes,
            linewidth=1.6,
            marker="o" if short else None,
            markersize=3,
        )
        low = [m - d for m, d in zip(line.means, line.deviations, strict=True)]
        high = [m + d for m, d in zip(line.means, line.deviations, strict=True)]
        axes.fill_between(line.xs, low, high, color=line.style.light, alpha=0.16, linewidth=0)
    if all(float(x).is_integer() for line in drawn for x in line.xs):
        axes.xaxis.get_major_locator().set_params(integer=True)
    if settled:
        axes.set_ylim(bottom=_settled_low(drawn))
    means = [mean for line in drawn for mean in line.means]
    if log and min(means) > 0:
        _make_logarithmic(axes, "y")
    return Panel(name, _svg(figure, f"{ylabel} over {xlabel}: {name}"))


def _settled_low(drawn: Sequence[Line]) -> float:
    """A little below the lines in their second half, so that their ends can be told apart."""
    late = [
        mean
        for line in drawn
        for x, mean in zip(line.xs, line.means, strict=True)
        if 2 * x >= line.xs[-1]
    ]
    low, high = min(late), max(late)
    return low - 0.1 * ((high - low) or 1.0)


def scatter(name: str, drawn: Sequence[Points], xlabel: str, ylabel: str) -> Panel:
    """Points; the horizontal axis is logarithmic where all lie right of 0."""
    figure, axes = _axes(xlabel, ylabel)
    for points in drawn:
        face = "none" if points.style.dashed else points.style.light
        axes.scatter(
            points.xs,
            points.ys,
            s=22,
            marker=points.marker,
            facecolor=face,
            edgecolor=points.style.light,
            linewidth=1,
            alpha=0.85,
        )
    if min(x for points in drawn for x in points.xs) > 0:
        _make_logarithmic(axes, "x")
    return Panel(name, _svg(figure, f"{ylabel} against {xlabel}"))


def intervals(
    name: str,
    drawn: Sequence[tuple[float, float, Style]],
    xlabel: str,
    limits: tuple[float, float],
) -> Panel:
    """A mean with an error bar for each entry, from top to bottom, and a line at 0."""
    figure, axes = _axes(xlabel, "", height=0.75 + 0.2 * len(drawn))
    axes.axvline(0.0, color=PALETTE[0][0], linewidth=1)
    for i, (mean, error, style) in enumerate(drawn):
        axes.errorbar(
            mean,
            -i,
            xerr=error,
            fmt="o",
            markersize=5,
            markerfacecolor="none" if style.dashed else style.light,
            color=style.light,
            linewidth=1.6,
        )
    axes.set_xlim(*limits)
    axes.set_yticks([])
    axes.set_ylim(-len(drawn) + 0.4, 0.6)
    axes.grid(axis="y", visible=False)
    return Panel(name, _svg(figure, f"{xlabel}: {name}"))


def contours(name: str, plane: Plane, levels: Sequence[float]) -> Panel:
    """Level lines of the loss, one colour scale for all panels that share their levels."""
    from matplotlib.colors import BoundaryNorm  # noqa: PLC0415

    figure, axes = _axes("", "", width=3.0)
    surface = (plane.xs, plane.ys, plane.losses, levels)
    even = BoundaryNorm(levels, 256, extend="both")
    filled = axes.contourf(*surface, cmap="viridis", norm=even, extend="both")
    axes.contour(*surface, colors="white", linewidths=0.4)
    axes.locator_params(nbins=4)
    axes.plot([0.0], [0.0], marker="+", color="white", markersize=7)
    axes.grid(visible=False)
    axes.set_aspect("equal")
    ticks = levels[::3]
    bar = figure.colorbar(filled, ax=axes, ticks=ticks, format=_distinct(ticks))
    bar.outline.set_edgecolor(_RULE)
    bar.ax.tick_params(which="both", colors=_INK, labelsize=8, length=0)
    return Panel(name, _svg(figure, f"loss around the weights: {name}"))


def _distinct(values: Sequence[float]) -> str:
    """The format with the fewest digits, two or more, that tells the values apart."""
    formats = [f"%.{digits}g" for digits in range(2, 18)]
    return next(f for f in formats if len({f % v for v in values}) == len(values))


def _axes(xlabel: str, ylabel: str, *, width: float = 3.4, height: float = 2.4) -> tuple[Any, Any]:
    # Here, since matplotlib takes a second to import and other commands do without.
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415

    figure = Canvas(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots()
    axes.patch.set_alpha(0.0)
    axes.set_xlabel(xlabel, color=_INK, fontsize=9)
    axes.set_ylabel(ylabel, color=_INK, fontsize=9)
    axes.tick_params(which="both", colors=_INK, labelsize=8, length=0)
    axes.grid(color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.margins(x=0.03)
    return figure, axes


def _make_logarithmic(axes: Any, which: str) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5, or at powers of ten where many."""
    from matplotlib import ticker  # noqa: PLC0415

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_locator(ticker.NullLocator())


def _svg(figure: Any, description: str) -> str:
    """The drawing for a page that has others: no header, ids of its own, the page's colours."""
    from matplotlib import rc_context  # noqa: PLC0415

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(file, format="svg")
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text)
    label = html.escape(description)
    head = f'<svg {view.group() if view else ""} role="img" aria-label="{label}">'
    text = head + text[text.index(">") + 1 :]
    text = text.replace(_INK, "var(--ink-soft)").replace(_RULE, "var(--rule)")
    for i, (light, _) in enumerate(PALETTE):
        text = text.replace(light, f"var(--c{i})")
    text = _COORDINATES.sub(lambda found: _DECIMALS.sub(r"\1", found[0]), text)
    # Ids must differ among all drawings of a page, and their uses with them.
    prefix = hashlib.sha256(text.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
