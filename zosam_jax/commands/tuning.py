"""Tuning: every method tries as many candidates on held-out images, and keeps the best."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from random import Random
from typing import Any, NamedTuple, TypeVar

from rich import box
from rich.table import Table

from zosam_jax.commands.cells import Cell, Tuning, make_cell, together

T = TypeVar("T")

# Tuning has seeds of its own, so that nobody is tested from those that it was chosen from.
_FIRST_SEED = 100

# What candidates are judged by, one for each seed.
_ACCURACIES, _LOSSES = "validation_accuracies", "validation_losses"


class Trial(NamedTuple):
    """A candidate of a method."""

    values: Mapping[str, Any]  # option → what is tried
    runs: Sequence[Cell]  # one for each seed, on images without those held out


class Choice(NamedTuple):
    """What tuning came to for one method, as tuning.json has it."""

    method: str  # the name of its runs, without the seed
    # the values of each and its `validation_accuracies`, fractions, or where there are none its
    # `validation_losses`, one for each seed
    candidates: Sequence[Mapping[str, Any]]
    chosen: Mapping[str, Any]  # option → the value with the best mean
    # the options whose best value is the first or the last of their grid: another one beyond it may
    # be better
    at_the_end: Sequence[str]


def trials(cells: Iterable[Cell], tuning: Tuning) -> dict[str, list[Trial]]:
    """Method → its candidates, small values first; each method counts once, whatever its seeds."""
    methods = {cell.method: cell for cell in cells if cell.grid}
    return {name: _trials(cell, tuning) for name, cell in methods.items()}


def _trials(cell: Cell, tuning: Tuning) -> list[Trial]:
    found = []
    shared = {name: value for name, value in cell.own.items() if name not in cell.grid}
    for values in _drawn(list(product(*cell.grid.values())), tuning.candidates):
        candidate = together(dict(zip(cell.grid, values, strict=True)))
        options = {name: value for name, value in cell.options.items() if name != "keep_every"}
        options |= {
            **candidate,
            "validation_fraction": cell.config.validation_fraction or tuning.fraction,
            "evaluate_every": cell.config.epochs,
        }
        seeds = range(_FIRST_SEED, _FIRST_SEED + tuning.seeds)
        runs = [
            make_cell({**shared, **candidate, "seed": seed}, {**options, "seed": seed})
            for seed in seeds
        ]
        found.append(Trial(candidate, runs))
    return found


def _drawn(combinations: Sequence[T], count: int | None) -> Sequence[T]:
    """So many of them at random, in order; the same of equally many."""
    if count is None or count >= len(combinations):
        return combinations
    return [
        combinations[i] for i in sorted(Random(_FIRST_SEED).sample(range(len(combinations)), count))
    ]


def choose(
    method: str,
    grid: Mapping[str, Sequence[Any]],
    tried: Sequence[Trial],
    accuracy: Callable[[Cell], float],
    loss: Callable[[Cell], float] = lambda run: math.nan,
) -> Choice:
    """The best mean validation accuracy after the last epoch; of equals the first.

    Where no run has one, as of language models, the lowest mean loss. `accuracy` and `loss` give a
    run's, NaN if it diverged, which counts as 0 and as infinite.
    """
    name, worst, sign = _ACCURACIES, 0.0, 1.0
    found = [[accuracy(run) for run in trial.runs] for trial in tried]
    losses = [[loss(run) for run in trial.runs] for trial in tried]
    if _all_unknown(found) and not _all_unknown(losses):
        name, found, worst, sign = _LOSSES, losses, math.inf, -1.0
    found = [[worst if math.isnan(value) else value for value in values] for values in found]
    best = max(range(len(tried)), key=lambda i: sign * statistics.fmean(found[i]))
    chosen = tried[best].values
    candidates = [
        {**trial.values, name: values} for trial, values in zip(tried, found, strict=True)
    ]
    ends = [
        o
        for o, values in grid.items()
        if len(values) > 1 and o in chosen and chosen[o] in (values[0], values[-1])
    ]
    return Choice(method, candidates, chosen, ends)


def _all_unknown(values: Sequence[Sequence[float]]) -> bool:
    return all(map(math.isnan, itertools.chain.from_iterable(values)))


def tuned(cell: Cell, choices: Mapping[str, Choice]) -> Cell:
    """The run with what was chosen for its method; its folder's name stays."""
    if not cell.grid:
        return cell
    return make_cell(cell.own, {**cell.options, **choices[cell.method].chosen})


def table(choices: Iterable[Choice]) -> Table:
    """What was chosen, for the terminal."""
    shown = Table("method", "chosen", box=box.SIMPLE_HEAD, title="tuned on held-out images")
    shown.add_column("accuracy (%), or loss", justify="right")
    for choice in choices:
        name = _LOSSES if _LOSSES in choice.candidates[0] else _ACCURACIES
        means = [statistics.fmean(c[name]) for c in choice.candidates]
        best = f"{min(means):.4f}" if name == _LOSSES else f"{100 * max(means):.2f}"
        values = ", ".join(
            f"{name}={value:g}" + (" (end of its grid)" if name in choice.at_the_end else "")
            if isinstance(value, float)
            else f"{name}={value}"
            for name, value in choice.chosen.items()
        )
        shown.add_row(choice.method, values, best)
    return shown
