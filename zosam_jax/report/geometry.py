"""The loss around the final weights: curvature, noise of the gradient, surfaces.

All of it comes from `zosam analyze`.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from zosam_jax.report import figures
from zosam_jax.report.estimates import rank_correlation
from zosam_jax.report.figures import Figure, Panel, Style
from zosam_jax.report.runs import NO_CURVE, Plane
from zosam_jax.report.section import BAND, SPREAD, Section, figure, line_figure
from zosam_jax.report.study import Study
from zosam_jax.report.tables import NOTHING, Table, TableCell, by_optimizer, measured, signed

_SHARPNESS = {
    "lambda_max": "λ_max",
    "trace": "trace",
    "sharpness_worst_rise": "worst rise",
    "sharpness_average_rise": "average rise",
    "sharpness_adaptive_worst_rise": "adaptive worst rise",
}
_AGAINST = {"test_accuracy": "test accuracy", "generalization_gap": "generalisation gap"}


def sharpness(study: Study) -> Section | None:
    """How curved the loss is at the end."""
    if not study.knows(*_SHARPNESS):
        return None
    known = {fact: title for fact, title in _SHARPNESS.items() if study.knows(fact)}
    table = by_optimizer(
        study,
        [measured(study, title, fact) for fact, title in known.items()],
        "λ_max and trace are of the Hessian of the training loss at the last checkpoint, on the "
        "weights that are kept. Rises are of the loss. Worst: the highest point that gradient "
        f"ascent finds within the Euclidean distance {_radius(study, 'rho')}. Average: over random "
        f"displacements of length {_radius(study, 'average_rho')}, a fraction of each filter's "
        f"norm. Adaptive worst: within {_radius(study, 'adaptive_rho')}, in units of each weight's "
        f"own size. {SPREAD}",
    )
    return Section("Sharpness", "How flat the minima are: smaller is flatter.", [table])


def _radius(study: Study, name: str) -> str:
    """The radius, or all that the runs were analysed with."""
    fact = f"sharpness_{name}"
    known = {run.facts[fact] for run in study.runs if fact in run.facts}
    said = " or ".join(f"{value:g}" for value in sorted(known))
    return f"ρ = {said}" if said else "ρ"


def flatness(study: Study, styles: Mapping[str, Style]) -> Section | None:
    """Whether flatter means better."""
    known = {fact: title for fact, title in _SHARPNESS.items() if study.knows(fact)}
    if not known or len(study.runs) < 3:
        return None
    tables = [_correlations(study, known, outcome) for outcome in _AGAINST]
    markers = _markers(study)
    shown: list[Figure] = []
    for outcome, said in _AGAINST.items():
        panels = [
            panel
            for fact, title in known.items()
            if (panel := _scatter(study, styles, markers, (fact, title), (outcome, said)))
        ]
        shapes = {label: figures.MARKERS[m] for label, m in markers.items()}
        caption = f"Each point is a run: {said} against each measure of sharpness."
        shown += figure(styles, panels, caption, markers=shapes if len(shapes) > 1 else {})
    text = (
        "Sharpness against what it is to predict, over runs. Were flatter always better, every "
        "correlation with the test accuracy would be −1, and with the generalisation gap 1."
    )
    return Section("Does flatter mean better?", text, tables, shown)


def _correlations(study: Study, known: Mapping[str, str], outcome: str) -> Table:
    """Rank correlations over all runs and within each row."""
    groups = {"all runs": study.runs} if len(study.rows) > 1 else {}
    groups |= {
        row.label: [r for o in study.optimizers for r in study.cell(row, o).values()]
        for row in study.rows
    }
    body = []
    for label, runs in groups.items():
        found = [
            rank_correlation([r.fact(f) for r in runs], [r.fact(outcome) for r in runs])
            for f in known
        ]
        if not any(correlation.num for correlation in found):
            continue
        cells = [
            TableCell(NOTHING)
            if math.isnan(c.spearman)
            else TableCell(signed(f"{c.spearman:+.2f}"), signed(f"τ {c.kendall:+.2f}"))
            for c in found
        ]
        body.append([TableCell(label), TableCell(str(max(c.num for c in found))), *cells])
    gap = (
        " The gap is the accuracy on the training images that were analysed (else that of the last "
        "epoch as the steps saw it, augmented and perturbed), less the test accuracy."
    )
    mixed = " All runs together mix budgets, which change sharpness and accuracy alike."
    return Table(
        (_AGAINST[outcome], "runs", *known.values()),
        body,
        f"Spearman's rank correlation of each measure with the {_AGAINST[outcome]}, below it "
        "Kendall's τ-b; nothing for fewer than three runs or where all are equal."
        f"{mixed if len(study.rows) > 1 else ''}"
        + (gap if outcome == "generalization_gap" else ""),
    )


def _scatter(
    study: Study,
    styles: Mapping[str, Style],
    markers: Mapping[str, str],
    measure: tuple[str, str],
    outcome: tuple[str, str],
) -> Panel | None:
    drawn = []
    for (row, optimizer), runs in study.cells.items():
        pairs = [(r.fact(measure[0]), 100 * r.fact(outcome[0])) for r in runs.values()]
        known = [pair for pair in pairs if not math.isnan(sum(pair))]
        if known:
            xs, ys = zip(*known, strict=True)
            drawn.append(figures.Points(xs, ys, styles[optimizer], markers[row.label]))
    if not drawn:
        return None
    unit = "%" if outcome[0] == "test_accuracy" else "points"
    return figures.scatter(measure[1], drawn, measure[1], f"{outcome[1]} ({unit})")


def _markers(study: Study) -> dict[str, str]:
    shapes = list(figures.MARKERS)
    return {row.label: shapes[i % len(shapes)] for i, row in enumerate(study.rows)}


def variance(study: Study, styles: Mapping[str, Style]) -> Section | None:
    """The gradient's variance along training, and how good the optimizer's estimate is."""
    facts = {
        "gradient_variance": "variance",
        "relative_gradient_variance": "relative",
        "gradient_norm": "gradient norm",
        "perturbed_gradient_variance": "variance at θ + ε",
        "estimator_cosine": "cosine",
        "estimator_ascent_gain": "ascent gain",
    }
    known = {fact: title for fact, title in facts.items() if study.knows(fact)}
    if not known:
        return None
    table = by_optimizer(
        study,
        [measured(study, title, fact) for fact, title in known.items()],
        "Variance of the minibatch gradient over the batches of the training split, relative to "
        "the squared norm of the mean gradient, and that norm, at the last checkpoint; at θ + ε "
        "for optimizers that perturb. Cosine of ε with the gradient and rise of the loss along ε "
        f"are means over the analysed checkpoints. {SPREAD}",
    )
    shown = line_figure(
        study,
        styles,
        lambda run: run.analysis.variance_curve,
        ("epoch", "gradient variance"),
        f"Variance of the minibatch gradient at the weights, along training. {BAND}",
        log=True,
    )
    return Section(
        "Gradient variance", "How much the gradients of minibatches differ.", [table], shown
    )


def surfaces(study: Study, styles: Mapping[str, Style]) -> Section | None:
    """The loss around the weights, on lines and planes."""
    along = {
        "random": "a random direction, each filter as long as the weights'",
        "hessian": "the Hessian's leading eigenvector, 3% as long as that random direction",
    }
    shown: list[Figure] = []
    for direction, said in along.items():
        shown += line_figure(
            study,
            styles,
            lambda run, direction=direction: run.analysis.lines.get(direction, NO_CURVE),  # type: ignore[misc]
            ("distance", "loss"),
            f"Training loss along {said}, from the last weights at 0. {BAND}",
            log=True,
        )
    shown += _planes(study)
    if not shown:
        return None
    return Section("Loss surfaces", "The training loss around the last weights.", figures=shown)


def _planes(study: Study) -> list[Figure]:
    """A figure for each row, whose panels share their levels: the first seed that has a plane."""
    shown = []
    for row in study.rows:
        planes: dict[str, Plane] = {}
        for optimizer in study.compared_in(row):
            found = [
                (s, p) for s, run in study.cell(row, optimizer).items() if (p := run.analysis.plane)
            ]
            planes |= {f"{row.label}: {optimizer}, seed {seed}": plane for seed, plane in found[:1]}
        if planes:
            levels = _levels(np.concatenate([p.losses.compressed() for p in planes.values()]))
            panels = [figures.contours(name, plane, levels) for name, plane in planes.items()]
            directions = ", ".join(sorted({p.directions for p in planes.values()}))
            caption = (
                "Training loss on a plane through the last weights (+), with equal "
                f"levels for all; directions: {directions}."
            )
            shown.append(Figure(panels, caption, {}, {}))
    return shown


def _levels(losses: npt.NDArray[np.float64]) -> list[float]:
    """Between the least loss and nearly the largest, in equal ratios where all are positive."""
    low, high = float(np.min(losses)), float(np.quantile(losses, 0.98))
    if high <= low:
        high = low + 1.0
    spaced = np.geomspace(low, high, 13) if low > 0 else np.linspace(low, high, 13)
    return [float(level) for level in spaced]
