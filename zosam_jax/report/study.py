"""Runs arranged for comparison: a row for each problem and budget, a column for each optimizer."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, get_args

from zosam_jax.report.runs import Omission, RunResult
from zosam_jax.training import build
from zosam_jax.training.applicable import OWN_OPTIMIZER, base_optimizer
from zosam_jax.training.config import (
    CIRCUMSTANCES,
    AscentConfig,
    OptimizationConfig,
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
_TRAINING = {field.name for field in dataclasses.fields(OptimizationConfig)} - {"base_optimizer"}
# Options whose values say by themselves what they are.
_SPEAKING = ("dataset", "model", "base_optimizer", "precision", "schedule", "radius")
# Rows are named after these wherever they vary, after others where that tells them apart.
_TELLING = ("dataset", "model", "base_optimizer", "label_noise")
_SYMBOLS = {"rho": "ρ"}
# In the place of a value that tuning chose, which may be another one for each row.
_TUNED = "tuned"


class Row(NamedTuple):
    """What the optimizers are compared on."""

    label: str  # the budget, as "rigl 95%", and whatever else varies among the runs
    base: str  # the label of the optimizer over which gains are taken


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
      perturbations: optimizer label → the options of its perturbation; of a plain optimizer, those
        in which its training differs from the others'.
      base: the optimizers over which gains are taken, in words.
      duplicates: runs left out because another has the same options and seed.
    """

    def __init__(self, runs: Sequence[RunResult], base: str | None = None) -> None:
        """Groups the runs by everything but the seed.

        Args:
          runs: all of them.
          base: the optimizer over which gains are taken, by its label or, if it has one column, by
            its name; None for each row's base optimizer.

        Raises:
          ValueError: if no column, or more than one, is meant by `base`.
        """
        described = _joined([_describe(run) for run in runs])
        settings = list(dict.fromkeys(_key(d.setting) for d in described))
        described.sort(key=lambda d: _order(d, settings))
        label_of = _perturbation_namer(described)
        by_column = sorted(described, key=lambda d: _perturbation_order(d.perturbation))
        self.perturbations = {label_of(d): d.perturbation for d in by_column}
        self.optimizers = list(self.perturbations)
        row_of = _row_namer(described, None if base is None else _column(base, self.optimizers))
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
        self.base = " or ".join(dict.fromkeys(row.base for row in self.rows))
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

    def pairs(
        self, optimizer: str, fact: str, rows: Iterable[Row], rival: str | None = None
    ) -> list[tuple[dict[int, float], dict[int, float]]]:
        """(its values, the rival's or the base's), for each row where they share a seed."""
        found = [
            (self.values(row, optimizer, fact), self.values(row, rival or row.base, fact))
            for row in rows
            if optimizer != (rival or row.base)
        ]
        return [(values, others) for values, others in found if values.keys() & others.keys()]

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
    for options in (setting, budget, perturbation):
        options |= {name: _TUNED for name in run.tuned if name in options}
    return _Described(run, setting, budget, perturbation)


def _joined(described: Sequence[_Described]) -> list[_Described]:
    """Puts plain runs into the rows of others: those whose training no other optimizer had.

    SGD for twice the epochs, for example, joins the row whose training is nearest to its own, and
    what differs names its column.
    """
    hosts = [d for d in described if not build.is_plain(d.perturbation["optimizer"])]
    rows = {(_key(d.setting), _key(d.budget)) for d in hosts}
    joined = []
    for one in described:
        found = [d for d in hosts if d.budget == one.budget and _same_problem(d, one)]
        if found and (_key(one.setting), _key(one.budget)) not in rows:
            setting = min(found, key=lambda d: len(_differing(one.setting, d.setting))).setting
            own = one.perturbation | _differing(one.setting, setting)
            if "epochs" in own:
                own["epochs"] = f"× {one.setting['epochs'] / setting['epochs']:.3g}"
            one = one._replace(setting=setting, perturbation=own)  # noqa: PLW2901
        joined.append(one)
    return joined


def _same_problem(one: _Described, other: _Described) -> bool:
    return not set(_differing(one.setting, other.setting)) - _TRAINING


def _differing(options: Options, others: Options) -> Options:
    return {name: value for name, value in options.items() if value != others[name]}


def _column(name: str, labels: Sequence[str]) -> str:
    """The label that is meant by it, or by the name of its optimizer."""
    if name in labels:
        return name
    found = [label for label in labels if label.split(", ")[0] == name]
    if len(found) != 1:
        raise ValueError(f"base={name!r} must be one of {', '.join(map(repr, found or labels))}.")
    return found[0]


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


def _perturbation_order(perturbation: Options) -> tuple[int, int, float]:
    """Optimizers as they are listed; plain ones with options of their own last, tuned ρ first."""
    rho = perturbation.get("rho", 0.0)
    names = (*get_args(OptimizerName), OWN_OPTIMIZER)
    place = names.index(perturbation["optimizer"])
    return place, len(perturbation), -1.0 if rho == _TUNED else rho


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


def _row_namer(described: Sequence[_Described], base: str | None) -> Callable[[_Described], Row]:
    in_setting = _telling_apart(described)
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
        return Row(", ".join(parts), base or one.setting["base_optimizer"])

    return row_of


def _telling_apart(described: Sequence[_Described]) -> list[str]:
    """The options of the settings that rows are named after."""

    def count(options: Sequence[str]) -> int:
        return len({(*(d.setting[o] for o in options), _key(d.budget)) for d in described})

    varying = _varying(d.setting for d in described)
    named = [option for option in varying if option in _TELLING]
    for option in varying:
        if count([*named, option]) > count(named):
            named.append(option)
    return [option for option in varying if option in named]


def _perturbation_namer(described: Sequence[_Described]) -> Callable[[_Described], str]:
    varying = {
        name: _varying(d.perturbation for d in described if d.perturbation["optimizer"] == name)
        for name in {d.perturbation["optimizer"] for d in described}
    }

    def label_of(one: _Described) -> str:
        name = one.perturbation["optimizer"]
        options = [o for o in one.perturbation if o in _TRAINING or o in varying[name]]
        return ", ".join((name, *_said(one.perturbation, options)))

    return label_of


def _said(options: Options, names: Iterable[str]) -> list[str]:
    return [say(name, options[name]) for name in names]


def say(name: str, *values: Any) -> str:
    """An option and its value, or all that it takes, in short."""
    text = " or ".join(map(in_short, values))
    if name in _SPEAKING:
        return text
    return f"{symbol(name)} {'' if text.startswith((_TUNED, '×')) else '= '}{text}"


def symbol(name: str) -> str:
    """What an option is called in the report."""
    return _SYMBOLS.get(name, name)


def in_short(value: Any) -> str:
    """A value of an option."""
    if value is None:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value)
