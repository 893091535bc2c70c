"""Runs arranged for comparison: a row for each problem and budget, a column for each optimizer."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, get_args

from zosam_jax.report.runs import Omission, RunResult
from zosam_jax.training import build
from zosam_jax.training.applicable import base_optimizer
from zosam_jax.training.config import (
    CIRCUMSTANCES,
    AscentConfig,
    OptimizerName,
    SparseConfig,
    SparseName,
    TrainConfig,
)

Options: TypeAlias = dict[str, Any]

_PERTURBATION = ("optimizer", "rho", *(field.name for field in dataclasses.fields(AscentConfig)))
_BUDGET = tuple(field.name for field in dataclasses.fields(SparseConfig))
_SETTING = tuple(
    field.name
    for field in dataclasses.fields(TrainConfig)
    if field.name not in (*_PERTURBATION, *_BUDGET, *CIRCUMSTANCES, "seed")
)
# Options whose values say by themselves what they are.
_SPEAKING = ("dataset", "model", "base_optimizer", "precision", "schedule")
_SYMBOLS = {"rho": "ρ"}


class Row(NamedTuple):
    """What the optimizers are compared on.

    Attributes:
      label: the budget, as "rigl 95%", and whatever else varies among the runs.
      base: the label of the base optimizer.
    """

    label: str
    base: str


class _Described(NamedTuple):
    """A run's options that decide what it computes, in three parts; the seed is in none."""

    run: RunResult
    setting: Options
    budget: Options
    perturbation: Options


class Study:
    """The runs of a report.

    Attributes:
      runs: all of them.
      rows: by setting in order of appearance, then method, then sparsity.
      optimizers: labels of the columns, plain optimizers first.
      settings: option → its values among the runs, for data, model and descent.
      perturbations: optimizer label → the options of its perturbation.
      duplicates: runs left out because another has the same options and seed.
    """

    def __init__(self, runs: Sequence[RunResult]) -> None:
        """Groups the runs by everything but the seed."""
        described = [_describe(run) for run in runs]
        settings = list(dict.fromkeys(_key(d.setting) for d in described))
        described.sort(key=lambda d: _order(d, settings))
        row_of, label_of = _row_namer(described), _perturbation_namer(described)
        self._runs: dict[tuple[Row, str], dict[int, RunResult]] = {}
        self.duplicates: list[Omission] = []
        for one in described:
            cell = self._runs.setdefault((row_of(one), label_of(one)), {})
            first = cell.setdefault(one.run.config.seed, one.run)
            if first is not one.run:
                reason = f"left out: it has the options and the seed of {first.name}"
                self.duplicates.append(Omission(one.run.name, reason))
        self.runs = [run for cell in self._runs.values() for run in cell.values()]
        self.rows = list(dict.fromkeys(row for row, _ in self._runs))
        by_column = sorted(described, key=lambda d: _perturbation_order(d.perturbation))
        self.perturbations = {label_of(d): d.perturbation for d in by_column}
        self.optimizers = list(self.perturbations)
        self.settings = _values(d.setting for d in described)

    def cell(self, row: Row, optimizer: str) -> Mapping[int, RunResult]:
        """Seed → run, in the order of the seeds."""
        return self._runs.get((row, optimizer), {})

    def compared_in(self, row: Row) -> list[str]:
        """The optimizers that have runs in a row."""
        return [o for o in self.optimizers if self.cell(row, o)]

    def values(self, row: Row, optimizer: str, fact: str) -> dict[int, float]:
        """Seed → a number of the run, for the seeds that know it."""
        values = {seed: run.fact(fact) for seed, run in self.cell(row, optimizer).items()}
        return {seed: value for seed, value in values.items() if not math.isnan(value)}

    def knows(self, *facts: str) -> bool:
        """Whether any run has any of these numbers."""
        return any(not math.isnan(run.fact(name)) for run in self.runs for name in facts)

    @property
    def seeds(self) -> list[int]:
        """All of them, in order."""
        return sorted({seed for cell in self._runs.values() for seed in cell})

    @property
    def cells(self) -> Mapping[tuple[Row, str], Mapping[int, RunResult]]:
        """(row, optimizer) → seed → run, for those that have runs."""
        return self._runs


def _describe(run: RunResult) -> _Described:
    config = run.config
    setting = {name: getattr(config, name) for name in _SETTING}
    budget = {name: getattr(config, name) for name in _BUDGET}
    perturbation = {name: getattr(config, name) for name in _PERTURBATION}
    if config.is_dense:
        budget = {"sparse": "none", "sparsity": 0.0}
    setting["base_optimizer"] = base_optimizer(vars(config), config.optimizer)
    if build.is_plain(config.optimizer):
        perturbation = {"optimizer": config.optimizer}
    else:
        perturbation["rho"] = build.rho_of(config)
        perturbation["radius"] = build.radius_rule(config.optimizer, config.radius)
    return _Described(run, setting, budget, perturbation)


def _key(options: Options) -> tuple[tuple[str, Any], ...]:
    return tuple(options.items())


def _order(one: _Described, settings: Sequence[Any]) -> tuple[Any, ...]:
    methods = get_args(SparseName)
    budget = one.budget
    return (
        settings.index(_key(one.setting)),
        methods.index(budget["sparse"]),
        budget["sparsity"],
        *_perturbation_order(one.perturbation),
        one.run.config.seed,
    )


def _perturbation_order(perturbation: Options) -> tuple[int, float]:
    return get_args(OptimizerName).index(perturbation["optimizer"]), perturbation.get("rho", 0.0)


def _values(many: Iterable[Options]) -> dict[str, list[Any]]:
    """Option → the values it takes, in order of appearance."""
    values: dict[str, list[Any]] = {}
    for options in many:
        for name, value in options.items():
            if value not in values.setdefault(name, []):
                values[name].append(value)
    return values


def _varying(many: Iterable[Options]) -> list[str]:
    return [name for name, values in _values(many).items() if len(values) > 1]


def _row_namer(described: Sequence[_Described]) -> Callable[[_Described], Row]:
    in_setting = _varying(d.setting for d in described)
    in_budget = {
        method: _varying(d.budget for d in described if d.budget["sparse"] == method)
        for method in {d.budget["sparse"] for d in described}
    }

    def row_of(one: _Described) -> Row:
        method = one.budget["sparse"]
        name = "dense" if method == "none" else f"{method} {100 * one.budget['sparsity']:g}%"
        others = [option for option in in_budget[method] if option != "sparsity"]
        parts = (
            *_said(one.setting, [option for option in in_setting if option in _SPEAKING]),
            name,
            *_said(one.setting, [option for option in in_setting if option not in _SPEAKING]),
            *_said(one.budget, others),
        )
        return Row(", ".join(parts), one.setting["base_optimizer"])

    return row_of


def _perturbation_namer(described: Sequence[_Described]) -> Callable[[_Described], str]:
    varying = {
        name: _varying(d.perturbation for d in described if d.perturbation["optimizer"] == name)
        for name in {d.perturbation["optimizer"] for d in described}
    }

    def label_of(one: _Described) -> str:
        name = one.perturbation["optimizer"]
        return ", ".join((name, *_said(one.perturbation, varying[name])))

    return label_of


def _said(options: Options, names: Iterable[str]) -> list[str]:
    return [say(name, options[name]) for name in names]


def say(name: str, *values: Any) -> str:
    """An option and its value, or all that it takes, in short."""
    shown = " or ".join(map(_shown, values))
    return shown if name in _SPEAKING else f"{_SYMBOLS.get(name, name)} = {shown}"


def _shown(value: Any) -> str:
    if value is None:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value)
