"""How good the networks are, and what they cost: accuracy, robustness, convergence, price."""

import math
from collections.abc import Callable, Mapping

from zosam_jax.report import figures
from zosam_jax.report.estimates import gain, over_seeds
from zosam_jax.report.figures import Panel, Style
from zosam_jax.report.section import BAND, SPREAD, Section, figure, in_percent, line_figure
from zosam_jax.report.study import Row, Study, in_short, symbol
from zosam_jax.report.tables import (
    NOTHING,
    Column,
    Table,
    TableCell,
    against,
    by_optimizer,
    gained,
    measured,
    number,
    percent,
    precise,
    signed_change,
    spread,
    whole,
    with_gains,
)
from zosam_jax.training import build

_CONTROL = "random_weight_perturbation"
# Without a target of the reader's own: this share of what the base reaches.
_SHARE_OF_BASE = 0.99
# What the loss of a language model comes to, and how scores agree.
_MEASURES = {
    "test_perplexity": "perplexity",
    "test_bits_a_byte": "bits a byte",
    "test_pearson": "Pearson's r",
    "test_spearman": "Spearman's ρ",
}
_FURTHER_ACCURACIES = {
    "validation_accuracy": "Accuracy on the held-out training images after the last epoch",
    "ema_test_accuracy": "Accuracy of the averaged weights on the test images",
}


def accuracy(study: Study, styles: Mapping[str, Style]) -> Section | None:
    """Test accuracy with paired gains; that on held-out images and of averaged weights too."""
    section = _gains(
        study,
        styles,
        "test_accuracy",
        "Test accuracy",
        "Accuracy on the test images after the last epoch",
    )
    if section is None:
        return None
    chosen = _tuned(study)
    # Of one row, the table of what was tuned says it all.
    gains = section.tables if len(study.rows) > 1 or not chosen else ()
    further = [
        _gain_table(study, fact, what)
        for fact, what in _FURTHER_ACCURACIES.items()
        if study.knows(fact)
    ]
    return section._replace(tables=[*gains, *chosen, *_over_control(study), *further])


def loss(study: Study) -> Section | None:
    """The loss on the test examples where there is no accuracy, and what it comes to."""
    if not any(math.isnan(run.fact("test_accuracy")) for run in study.runs):
        return None

    def change(row: Row, optimizer: str) -> TableCell:
        found = gain(study.pairs(optimizer, "test_loss", [row]))
        # A loss is better if it is smaller.
        lower = found._replace(mean=-found.mean)
        return TableCell(signed_change(found), bold=found.num > 0 and lower.stands_out)

    known = {name: title for name, title in _MEASURES.items() if study.knows(name)}
    columns = [
        *_tuned_options(study),
        measured(study, "test loss", "test_loss", precise),
        Column(f"change from {study.base}", change),
        *(measured(study, title, name, precise) for name, title in known.items()),
    ]
    caption = (
        f"Mean loss on the test examples after the last epoch. {SPREAD} Change: paired by seed, ± "
        "its standard error; bold if its 95% interval (Student's t over seeds) lies below 0."
    )
    table = by_optimizer(study, columns, caption)
    return Section("Test loss", "Of runs that are judged by their loss alone.", [table])


def _tuned_options(study: Study) -> list[Column]:
    """What tuning chose for each optimizer, where anything was tuned."""
    tuned = [option for run in study.runs for option in run.tuned]
    if not tuned:
        return []

    def value_of(option: str) -> Callable[[Row, str], TableCell]:
        def entry(row: Row, optimizer: str) -> TableCell:
            run = next(iter(study.cell(row, optimizer).values()))
            value = build.rho_of(run.config) if option == "rho" else getattr(run.config, option)
            if option == "rho" and build.is_plain(run.config.optimizer):
                return TableCell(NOTHING)
            how = {True: "tuned, end of grid", False: "tuned", None: ""}
            return TableCell(in_short(value), how[run.tuned.get(option)])

        return entry

    return [Column(symbol(o), value_of(o)) for o in dict.fromkeys(["rho", *tuned])]


def _tuned(study: Study) -> list[Table]:
    """What tuning chose for each optimizer, and what came of it, where anything was tuned."""
    options = _tuned_options(study)
    if not options:
        return []

    def gain_of(row: Row, optimizer: str) -> TableCell:
        found = gain(study.pairs(optimizer, "test_accuracy", [row]))
        return TableCell(gained(found) or NOTHING, bold=found.stands_out)

    columns = [
        *options,
        measured(study, "accuracy (%)", "test_accuracy", percent),
        Column(f"gain over {study.base}", gain_of),
    ]
    caption = (
        "What each optimizer was trained with: tuned means chosen on held-out images, and a choice "
        "at an end of its grid may not be the best. Accuracy on the test images after the last "
        "epoch: mean ± sample standard deviation over seeds. Gain: in points, paired by seed, ± "
        "its standard error; bold if its 95% interval (Student's t over seeds) lies above 0."
    )
    return [by_optimizer(study, columns, caption)]


def _over_control(study: Study) -> list[Table]:
    """What is left of the gains over a random perturbation, where the study has one."""
    controls = [name for name in study.optimizers if name.split(",")[0] == _CONTROL]
    if len(controls) != 1:
        return []
    caption = (
        f"The same test accuracy less that of {_CONTROL}, the control: gains in points, paired by "
        "seed, ± standard errors. What is not larger than zero here is no more than a random "
        "perturbation gives. Bold: the 95% interval (Student's t over seeds) lies above 0."
    )
    return [against(study, controls[0], "test_accuracy", caption)]


def robustness(study: Study, styles: Mapping[str, Style]) -> Section | None:
    """Accuracy on corrupted images."""
    section = _gains(
        study,
        styles,
        "corrupted_accuracy",
        "Robustness to corruptions",
        "Mean accuracy on the test images under all corruptions and severities",
    )
    if section is None:
        return None
    columns = [
        measured(study, "clean (%)", "clean_accuracy", percent),
        measured(study, "corrupted (%)", "corrupted_accuracy", percent),
        measured(study, "Δ (points)", "robustness_delta", percent),
    ]
    sources = sorted({run.robustness.source for run in study.runs} - {""})
    caption = (
        "Accuracy on clean images, mean accuracy under corruptions, and Δ, their difference. "
        f"Corrupted images: {'; '.join(sources) or 'of unknown origin'}. {SPREAD}"
    )
    by_severity = line_figure(
        study,
        styles,
        lambda run: in_percent(run.robustness.severity_curve),
        ("severity", "accuracy (%)"),
        f"Accuracy by the severity of the corruption, a mean over all kinds. {BAND}",
    )
    return section._replace(
        tables=[*section.tables, by_optimizer(study, columns, caption)],
        figures=[*section.figures, *by_severity],
    )


def curves(study: Study, styles: Mapping[str, Style]) -> Section | None:
    """Test accuracy over the epochs."""
    shown = line_figure(
        study,
        styles,
        lambda run: in_percent(run.test_curve),
        ("epoch", "test accuracy (%)"),
        "Test accuracy after each evaluated epoch; the axis begins at what the second half of the "
        f"training shows. {BAND}",
        settled=True,
    )
    return (
        Section("Learning curves", "How the accuracy got there.", figures=shown) if shown else None
    )


def convergence(study: Study, target: float | None) -> Section | None:
    """Epochs and seconds until a target accuracy."""

    def aim(row: Row) -> float:
        if target is not None:
            return target
        return _SHARE_OF_BASE * over_seeds(study.values(row, row.base, "test_accuracy")).mean

    def until(field: str) -> Callable[[Row, str], TableCell]:
        def cell(row: Row, optimizer: str) -> TableCell:
            runs = study.cell(row, optimizer)
            if math.isnan(aim(row)):
                return TableCell(NOTHING)
            reached = {seed: run.reached(aim(row)) for seed, run in runs.items()}
            known = {seed: getattr(r, field) for seed, r in reached.items() if r is not None}
            return TableCell(
                spread(over_seeds(known), number, len(runs)) if known else "not reached"
            )

        return cell

    def aimed(row: Row, optimizer: str) -> TableCell:
        del optimizer
        return TableCell(NOTHING if math.isnan(aim(row)) else percent(aim(row)))

    columns = [
        Column("target (%)", aimed),
        Column("epochs", until("epoch")),
        Column("dense SGD epochs", until("training_cost")),
        Column("seconds", until("seconds")),
    ]
    whose = "given" if target is not None else "99% of what the base ends at, row by row"
    table = by_optimizer(
        study,
        columns,
        f"Epochs until the test accuracy is at the target ({whose}), as far as it was evaluated; "
        "their MACs in epochs of the dense network with plain SGD; and seconds, "
        "compilation included. Mean ± sample standard deviation over the seeds that reach it, with "
        "their number where not all do.",
    )
    if not table.body:
        return None
    return Section("Convergence", "How soon a run is nearly as good as it gets.", [table])


def cost(study: Study) -> Section | None:
    """What training takes."""

    def slowdown(row: Row, optimizer: str) -> TableCell:
        base = study.values(row, row.base, "images_per_second")
        own = study.values(row, optimizer, "images_per_second")
        ratios = {s: base[s] / own[s] for s in sorted(own.keys() & base.keys()) if own[s]}
        return TableCell(spread(over_seeds(ratios), number))

    columns = [
        measured(study, "training (%)", "training_cost", percent),
        measured(study, "inference (%)", "inference_cost", percent),
        measured(study, "examples/s", "images_per_second", whole),
        Column("time / base", slowdown),
        measured(study, "seconds", "seconds", number),
    ]
    table = by_optimizer(
        study,
        columns,
        "MACs of the whole training relative to the dense network with plain SGD, and of "
        "a forward pass relative to the dense one: what kernels that skip zeros would do. Images "
        "a second are the median epoch's, without compilation and evaluation; time / base is the "
        "base's speed over the own, paired by seed; seconds are the whole run's. "
        f"{SPREAD}",
    )
    if not table.body:
        return None
    text = "MACs are exact; speeds depend on the machine and on what else it was doing."
    return Section("Cost", text, [table])


def _gains(
    study: Study, styles: Mapping[str, Style], fact: str, title: str, what: str
) -> Section | None:
    if not study.knows(fact):
        return None
    panels = _gain_panels(study, styles, fact)
    shown = figure(
        styles,
        panels,
        f"Paired gains over {study.base} (the line at 0), with bars of two standard errors.",
        without={row.base for row in study.rows},
    )
    text = (
        f"Gains are differences to the run of the base, {study.base}, from the same seed: the same "
        "initial weights and the same order of the data."
    )
    return Section(title, text, [_gain_table(study, fact, what)], shown)


def _gain_table(study: Study, fact: str, what: str) -> Table:
    caption = (
        f"{what}, in percent: mean ± sample standard deviation over seeds. With it the gain over "
        f"{study.base} in points, paired by seed, ± its standard error. Bold: the best in its "
        "setting, if the 95% interval of its gain (Student's t over seeds) lies above 0."
    )
    return with_gains(study, fact, caption)


def _gain_panels(study: Study, styles: Mapping[str, Style], fact: str) -> list[Panel]:
    """A panel for each row, all on one scale: gain and two standard errors, in points."""
    bars: dict[str, list[tuple[float, float, Style]]] = {}
    for row in study.rows:
        for name in study.compared_in(row):
            over_base = gain(study.pairs(name, fact, [row]))
            if over_base.num:
                error = 0.0 if math.isnan(over_base.error) else 200 * over_base.error
                bar = (100 * over_base.mean, error, styles[name])
                bars.setdefault(row.label, []).append(bar)
    ends = [m + sign * e for drawn in bars.values() for m, e, _ in drawn for sign in (-1, 1)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    return [
        figures.intervals(label, drawn, "gain (points)", limits) for label, drawn in bars.items()
    ]
