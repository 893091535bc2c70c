"""A section of the report, and the figures that several sections share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from zosam_jax.report import figures
from zosam_jax.report.figures import Figure, Panel, Style
from zosam_jax.report.runs import Curve, RunResult
from zosam_jax.report.study import Study
from zosam_jax.report.tables import Table

SPREAD = "Mean ± sample standard deviation over seeds."
BAND = "Lines are means over seeds, bands one sample standard deviation to either side."


class Section(NamedTuple):
    """A part of the report."""

    title: str  # its heading
    text: str  # what it is about, in a sentence or two
    # tables, figures: what it shows, tables first
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()


def line_figure(
    study: Study,
    styles: Mapping[str, Style],
    curve: Callable[[RunResult], Curve],
    axes: tuple[str, str],
    caption: str,
    *,
    log: bool = False,
    settled: bool = False,
) -> list[Figure]:
    """A panel for each row, a line for each optimizer; no figure without a line."""
    panels = []
    for row in study.rows:
        drawn = [
            line
            for optimizer in study.compared_in(row)
            if (
                line := figures.averaged(
                    [curve(run) for run in study.cell(row, optimizer).values()], styles[optimizer]
                )
            )
        ]
        if drawn:
            panels.append(figures.lines(row.label, drawn, *axes, log=log, settled=settled))
    return figure(styles, panels, caption)


def figure(
    styles: Mapping[str, Style],
    panels: Sequence[Panel],
    caption: str,
    *,
    markers: dict[str, str] | None = None,
    without: Iterable[str] = (),
) -> list[Figure]:
    """A figure with the legend of all optimizers but some; none without a panel."""
    legend = {name: style for name, style in styles.items() if name not in set(without)}
    return [Figure(panels, caption, legend, markers or {})] if panels else []


def in_percent(curve: Curve) -> Curve:
    """A curve of fractions in percent."""
    return Curve(curve.xs, tuple(100 * y for y in curve.ys))
