"""Run folders as the report reads them."""

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from zosam_jax.analysis.convergence import Reached, reach
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.progress import EpochRecord
from zosam_jax.training.run_folder import (
    ANALYSIS,
    FAILED,
    METRICS,
    ROBUSTNESS,
    SUMMARY,
    SWEEP,
    TUNING,
    UnreadableRunError,
)
from zosam_jax.training.saved_run import counts, read_config, run_folders

_Content = TypeVar("_Content")


class Omission(NamedTuple):
    """A run folder that is not reported.

    Attributes:
      name: the run's.
      reason: why not, as part of a sentence.
    """

    name: str
    reason: str


class Plane(NamedTuple):
    """The loss on a plane through the weights.

    Attributes:
      xs, ys: coordinates along the two directions, (columns,) and (rows,).
      losses: a row for each y; masked where they are not finite.
      directions: how the two directions were chosen.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    losses: Any
    directions: str


class Curve(NamedTuple):
    """Values along an axis; those that are not known are left out."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]


NO_CURVE = Curve((), ())


class Analysis(NamedTuple):
    """What analysis.json says; of a missing file nothing.

    Attributes:
      train_accuracy: on the images that were analysed.
      facts: its numbers by name.
      variance_curve: the gradient's variance at the analysed checkpoints, over epochs.
      lines: direction, "random" or "hessian" → the loss over the distance.
      plane: the loss on a plane; None if it was not computed, or is nowhere finite.
    """

    train_accuracy: float
    facts: dict[str, float]
    variance_curve: Curve
    lines: Mapping[str, Curve]
    plane: Plane | None


class CorruptionResult(NamedTuple):
    """What robustness.json says; of a missing file nothing.

    Attributes:
      facts: its numbers by name.
      severity_curve: accuracy over severity, each a mean over the corruptions.
      source: where the corrupted images come from, and how many they are; empty if not known.
    """

    facts: dict[str, float]
    severity_curve: Curve
    source: str


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """A complete run.

    Attributes:
      name: its folder, seen from the folder that holds all runs of the report.
      config: its options.
      records: of metrics.jsonl, a line for each epoch.
      facts: every number that it came to, by name; those that are not known are left out.
      analysis, robustness: what was found in it afterwards.
      tuned: the options that its sweep chose on held-out images, and whether the best of each was
        the first or the last of its grid.
    """

    name: str
    config: TrainConfig
    records: Sequence[EpochRecord]
    facts: Mapping[str, Any]
    analysis: Analysis
    robustness: CorruptionResult
    tuned: Mapping[str, bool] = dataclasses.field(default_factory=dict)

    def fact(self, name: str) -> float:
        """One number of `facts`; NaN if the run has none of that name."""
        value = self.facts.get(name, math.nan)
        return float(value) if isinstance(value, int | float) else math.nan

    @property
    def last_training(self) -> Sequence[EpochRecord]:
        """The records without the earlier rounds of lth."""
        return [record for record in self.records if record.round == self.records[-1].round]

    @property
    def test_curve(self) -> Curve:
        """Test accuracy after each epoch that was evaluated."""
        return _curve([(r.epoch, r.test_accuracy) for r in self.last_training])

    def reached(self, target: float) -> Reached | None:
        """When the test accuracy of the last training first was at `target`; None if never."""
        return reach([record._asdict() for record in self.last_training], target)


def gather(paths: Sequence[Path]) -> tuple[list[RunResult], list[Omission]]:
    """The complete runs in folders, and what is left out of them; each folder counts once.

    Args:
      paths: run folders, and folders that hold run folders at any depth.

    Raises:
      ValueError: for a path without a run, or a run with a damaged file.
    """
    folders = list(dict.fromkeys(f for path in paths for f in _folders(path)))
    root = os.path.commonpath([folder.parent for folder in folders])
    runs, omissions = [], []
    for folder in folders:
        name = str(folder.relative_to(root))
        if (folder / SUMMARY).is_file():
            runs.append(_read(folder, name))
        else:
            omissions.append(Omission(name, _why_incomplete(folder)))
    return runs, omissions


def _folders(path: Path) -> list[Path]:
    """Those of all runs below a folder, and where those would be that a sweep could not begin."""
    failures = path.rglob(f"{SWEEP}/*{FAILED}") if path.is_dir() else ()
    unbegun = [
        f.parent.parent / f.name.removesuffix(FAILED) for f in failures if counts(f.parent, path)
    ]
    try:
        begun = run_folders(path)
    except FileNotFoundError as error:
        if not unbegun:
            raise ValueError(f"runs: {error}") from error
        begun = []
    return sorted({folder.resolve() for folder in (*begun, *unbegun)})


def _why_incomplete(folder: Path) -> str:
    failure = folder.parent / SWEEP / f"{folder.name}{FAILED}"
    if failure.is_file():
        reason = str(_understood(failure, _json).get("reason", "for no recorded reason"))
        return f"failed: {reason.removeprefix('zosam: ')}"
    return "incomplete: it has no summary.json"


def _read(folder: Path, name: str) -> RunResult:
    records = _understood(folder / METRICS, _records)
    summary = _understood(folder / SUMMARY, lambda path: _from_summary(_json(path)))
    analysis = _understood(folder / ANALYSIS, _analysis)
    robustness = _understood(folder / ROBUSTNESS, _robustness)
    facts = {
        **summary,
        **_accuracies(records[-1], analysis),
        **_means(records),
        **analysis.facts,
        **robustness.facts,
    }
    known = {fact: value for fact, value in facts.items() if _is_known(value)}
    config = read_config(folder)
    tuned = _understood(folder.parent / TUNING, lambda path: _tuned(path, folder, config.seed))
    return RunResult(name, config, records, known, analysis, robustness, tuned)


def _tuned(path: Path, folder: Path, seed: int) -> dict[str, bool]:
    """What the tuning.json of a sweep says of one of its runs; see `RunResult.tuned`."""
    choices = json.loads(path.read_text()) if path.is_file() else []
    for choice in choices:
        if folder.name in (choice["method"], f"{choice['method']},seed={seed}"):
            return {option: option in choice["at_the_end"] for option in choice["chosen"]}
    return {}


def _understood(path: Path, read: Callable[[Path], _Content]) -> _Content:
    """What a file says.

    Raises:
      UnreadableRunError: if it is damaged, or says something else than zosam does.
    """
    try:
        return read(path)
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        kind = "it lacks " if isinstance(error, KeyError) else ""
        raise UnreadableRunError(f"{path} is damaged: {kind}{error}") from error


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise TypeError("it must hold a JSON object.")
    return content


def _records(path: Path) -> list[EpochRecord]:
    """The lines of metrics.jsonl; another version may have written them without some fields."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if not lines:
        raise ValueError("it has no line.")
    known: list[dict[str, Any]] = [
        {name: _entry(line, name) for name in EpochRecord._fields} for line in lines
    ]
    return [EpochRecord(**values) for values in known]


def _from_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    # The options say these themselves; the sparsity reached may differ from the one asked for.
    asked = ("optimizer", "rho", "seed", "sparse", "sparsity")
    return {
        **{name: value for name, value in summary.items() if name not in asked},
        "final_sparsity": summary.get("sparsity"),
    }


def _accuracies(last: EpochRecord, analysis: Analysis) -> dict[str, float]:
    """On the training images: those that were analysed, else as the steps saw them."""
    known = _is_known(analysis.train_accuracy)
    train = analysis.train_accuracy if known else last.train_accuracy
    return {"train_accuracy": train, "generalization_gap": train - last.test_accuracy}


def _means(records: Sequence[EpochRecord]) -> dict[str, float]:
    """The step's diagnostics, averaged over the epochs that have them."""
    names = ("rho_used", "epsilon_norm", "slope", "ascent_gain")
    return {f"mean_{name}": _mean(getattr(r, name) for r in records) for name in names}


def _analysis(path: Path) -> Analysis:
    content = _json(path) if path.is_file() else {}
    checkpoints = _last_round(_part(content, "checkpoints", list))
    variances = [_part(c, "gradient_variance") for c in checkpoints]
    surface = _part(content, "surface")
    distances = _part(surface, "distances", list)
    return Analysis(
        _entry(content, "train_accuracy"),
        _along_the_run(checkpoints) | _at_the_end(content),
        _curve(
            [(c["epoch"], v.get("variance")) for c, v in zip(checkpoints, variances, strict=True)]
        ),
        {
            direction: _curve(zip(distances, _part(surface, direction, list), strict=True))
            for direction in ("random", "hessian")
            if surface.get(direction) is not None
        },
        _plane(_part(surface, "plane")),
    )


def _last_round(checkpoints: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The analysed checkpoints without those of the earlier rounds of lth."""
    return [c for c in checkpoints if c.get("round", 0) == checkpoints[-1].get("round", 0)]


def _along_the_run(checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    last = checkpoints[-1] if checkpoints else {}
    noise, estimators = (
        _part(last, "gradient_variance"),
        [_part(c, "estimator") for c in checkpoints],
    )
    return {
        "gradient_variance": _entry(noise, "variance"),
        "relative_gradient_variance": _entry(noise, "relative"),
        "gradient_norm": _entry(noise, "gradient_norm"),
        "perturbed_gradient_variance": _entry(
            _part(last, "perturbed_gradient_variance"), "variance"
        ),
        "estimator_cosine": _mean(_entry(e, "cosine") for e in estimators),
        "estimator_ascent_gain": _mean(_entry(e, "ascent_gain") for e in estimators),
    }


def _at_the_end(content: Mapping[str, Any]) -> dict[str, float]:
    hessian, sharpness = _part(content, "hessian"), _part(content, "sharpness")
    return {
        "lambda_max": _number("eigenvalues", *_part(hessian, "eigenvalues", list)[:1]),
        "lambda_max_residual": _number("residuals", *_part(hessian, "residuals", list)[:1]),
        "trace": _entry(hessian, "trace"),
        "trace_error": _entry(hessian, "trace_error"),
        **{f"sharpness_{name}": _entry(sharpness, name) for name in sharpness},
    }


def _plane(plane: Mapping[str, Any]) -> Plane | None:
    if not plane:
        return None
    xs, ys = (_numbers(name, plane[name]) for name in ("xs", "ys"))
    losses = np.ma.masked_invalid(np.array(plane["losses"], float))
    if losses.shape != (len(ys), len(xs)):
        raise ValueError(f"losses of the shape {losses.shape} must be {(len(ys), len(xs))}.")
    has_contours = min(losses.shape) > 1 and losses.count()
    return Plane(xs, ys, losses, plane["directions"]) if has_contours else None


def _robustness(path: Path) -> CorruptionResult:
    content = _json(path) if path.is_file() else {}
    corruptions = {
        name: _numbers(name, values) for name, values in _part(content, "corruptions").items()
    }
    by_severity = [statistics.fmean(column) for column in zip(*corruptions.values(), strict=True)]
    severities = content.get("severities") or range(1, len(by_severity) + 1)
    facts = {
        "clean_accuracy": _entry(content, "clean_accuracy"),
        "corrupted_accuracy": _entry(content, "mean_accuracy"),
        "robustness_delta": _entry(content, "delta"),
        **{f"accuracy_under_{name}": statistics.fmean(a) for name, a in corruptions.items()},
    }
    known = [content.get(name) for name in ("source", "images")]
    source = "{}, {} images".format(*known) if None not in known else ""
    return CorruptionResult(facts, _curve(zip(severities, by_severity, strict=True)), source)


def _part(content: Mapping[str, Any], name: str, kind: type = dict) -> Any:
    """An object or a list of a file; empty where it is missing or null."""
    value = content.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {'a list' if kind is list else 'an object'}.")
    return value


def _entry(content: Mapping[str, Any], name: str) -> float:
    return _number(name, content.get(name))


def _number(name: str, value: Any = None) -> float:
    """A number of a file; NaN where it is missing or null."""
    if value is None:
        return math.nan
    if not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} must be a number.")
    return value


def _numbers(name: str, values: Any) -> list[float]:
    is_list = isinstance(values, list) and len(values) > 0
    if not is_list or not all(isinstance(value, int | float) for value in values):
        raise TypeError(f"{name}={values!r} must be a list of numbers.")
    return list(values)


def _mean(values: Iterable[float]) -> float:
    """Of those that are known."""
    known = [value for value in values if _is_known(value)]
    return statistics.fmean(known) if known else math.nan


def _curve(points: Iterable[tuple[Any, Any]]) -> Curve:
    known = [
        (_number("an abscissa", x), value)
        for x, y in points
        if _is_known(value := _number("an ordinate", y))
    ]
    return Curve(tuple(x for x, _ in known), tuple(y for _, y in known))


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))
