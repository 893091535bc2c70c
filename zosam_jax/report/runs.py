"""Run folders as the report reads them."""

import dataclasses
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from zosam_jax.analysis.convergence import Reached, reach
from zosam_jax.training import contents, run_folder
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.progress import EpochRecord
from zosam_jax.training.run_folder import (
    ANALYSIS,
    FAILED,
    ROBUSTNESS,
    SUMMARY,
    SWEEP,
    TUNING,
    RunFolder,
    UnreadableRunError,
)
from zosam_jax.training.saved_run import counts, read_config, run_folders

_Content = TypeVar("_Content")


class Omission(NamedTuple):
    """A run folder that is not reported."""

    name: str  # the run's
    reason: str  # why not, as part of a sentence


class Plane(NamedTuple):
    """The loss on a plane through the weights."""

    # xs, ys: coordinates along the two directions, (columns,) and (rows,)
    xs: Sequence[float]
    ys: Sequence[float]
    losses: Any  # a row for each y; masked where they are not finite
    directions: str  # how the two directions were chosen


class Curve(NamedTuple):
    """Values along an axis; those that are not known are left out."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]


NO_CURVE = Curve((), ())


class Analysis(NamedTuple):
    """What analysis.json says; of a missing file nothing."""

    train_accuracy: float  # on the images that were analysed
    facts: dict[str, float]  # its numbers by name
    variance_curve: Curve  # the gradient's variance at the analysed checkpoints, over epochs
    lines: Mapping[str, Curve]  # direction, "random" or "hessian" → the loss over the distance
    plane: Plane | None  # the loss on a plane; None if it was not computed, or is nowhere finite


class CorruptionResult(NamedTuple):
    """What robustness.json says; of a missing file nothing."""

    facts: dict[str, float]  # its numbers by name
    severity_curve: Curve  # accuracy over severity, each a mean over the corruptions
    source: str  # where the corrupted images come from, and how many they are; empty if not known


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """A complete run."""

    name: str  # its folder, seen from the folder that holds all runs of the report
    config: TrainConfig  # its options
    records: Sequence[EpochRecord]  # of metrics.jsonl, a line for each epoch
    # every number that it came to, by name; those that are not known are left out
    facts: Mapping[str, Any]
    # analysis, robustness: what was found in it afterwards
    analysis: Analysis
    robustness: CorruptionResult
    # the options that its sweep chose on held-out images, and whether the best of each was the
    # first or the last of its grid
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
    """The complete and whole runs in folders, and those left out; each folder counts once.

    Args:
      paths: run folders, and folders that hold run folders at any depth.

    Raises:
      ValueError: for a path without a run.
    """
    folders = list(dict.fromkeys(f for path in paths for f in _folders(path)))
    root = os.path.commonpath([folder.parent for folder in folders])
    runs, omissions = [], []
    for folder in folders:
        name = str(folder.relative_to(root))
        try:
            if os.path.lexists(folder / SUMMARY):
                runs.append(_read(folder, name))
            else:
                omissions.append(Omission(name, _why_incomplete(folder)))
        except (UnreadableRunError, FileNotFoundError) as error:
            omissions.append(Omission(name, str(error)))
    return runs, omissions


def _folders(path: Path) -> list[Path]:
    """Those of all runs below a folder, and where those would be that a sweep could not begin."""
    failures = path.rglob(f"{SWEEP}/*{FAILED}") if path.is_dir() else ()
    unbegun = [
        f.parent.parent / f.name.removesuffix(FAILED)
        for f in failures
        if counts(f.parent.parent, path)
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
    if os.path.lexists(failure):
        reason: str = run_folder.read_json(failure, contents.Failure)["reason"]
        return f"failed: {reason.removeprefix('zosam: ')}"
    return "incomplete: it has no summary.json"


def _read(folder: Path, name: str) -> RunResult:
    config = read_config(folder)
    of_run = RunFolder(folder, "train", may_hold_results=True)
    records, summary = of_run.all_records, of_run.summary or {}
    analysis = _understood(folder / ANALYSIS, contents.Analysis, _analysis)
    robustness = _understood(folder / ROBUSTNESS, contents.Robustness, _robustness)
    facts = {
        **_from_summary(summary),
        **_accuracies(records[-1], analysis),
        **_means(records),
        **analysis.facts,
        **robustness.facts,
    }
    known = {fact: value for fact, value in facts.items() if _is_known(value)}
    tuned = _understood(
        folder.parent / TUNING,
        list[contents.TuningChoice],
        lambda choices: _tuned(choices, folder, config.seed),
    )
    return RunResult(name, config, records, known, analysis, robustness, tuned)


def _tuned(choices: Iterable[contents.TuningChoice], folder: Path, seed: int) -> dict[str, bool]:
    """What the tuning.json of a sweep says of one of its runs; see `RunResult.tuned`."""
    for choice in choices:
        if folder.name in (choice["method"], f"{choice['method']},seed={seed}"):
            return {option: option in choice["at_the_end"] for option in choice["chosen"]}
    return {}


def _understood(path: Path, kind: Any, read: Callable[[Any], _Content]) -> _Content:
    """What a file says that may be missing.

    Raises:
      UnreadableRunError: if it is damaged, or its parts contradict each other.
    """
    content = run_folder.read_json(path, kind) if os.path.lexists(path) else {}
    try:
        return read(content)
    except ValueError as error:
        raise UnreadableRunError(f"{path} is damaged: {error}") from error


def _from_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    # The options say these themselves; the sparsity reached may differ from the one asked for.
    asked = ("optimizer", "rho", "seed", "sparse", "sparsity")
    return {
        **{name: value for name, value in summary.items() if name not in (*asked, "measures")},
        **{f"test_{name}": value for name, value in summary.get("measures", {}).items()},
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


def _analysis(content: Mapping[str, Any]) -> Analysis:
    checkpoints = _last_round(content.get("checkpoints", []))
    surface = content.get("surface", {})
    return Analysis(
        _number(content.get("train_accuracy")),
        _along_the_run(checkpoints) | _at_the_end(content),
        _curve(
            [
                (checkpoint["epoch"], checkpoint["gradient_variance"]["variance"])
                for checkpoint in checkpoints
            ]
        ),
        {
            direction: _curve(_together(direction, surface["distances"], surface[direction]))
            for direction in ("random", "hessian")
            if surface
        },
        _plane(surface.get("plane")),
    )


def _last_round(checkpoints: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The analysed checkpoints without those of the earlier rounds of lth."""
    return [
        checkpoint for checkpoint in checkpoints if checkpoint["round"] == checkpoints[-1]["round"]
    ]


def _along_the_run(checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    last: Mapping[str, Any] = checkpoints[-1] if checkpoints else {}
    noise, perturbed = (
        last.get(name, {}) for name in ("gradient_variance", "perturbed_gradient_variance")
    )
    estimators = [checkpoint.get("estimator", {}) for checkpoint in checkpoints]
    return {
        "gradient_variance": _number(noise.get("variance")),
        "relative_gradient_variance": _number(noise.get("relative")),
        "gradient_norm": _number(noise.get("gradient_norm")),
        "perturbed_gradient_variance": _number(perturbed.get("variance")),
        "estimator_cosine": _mean(_number(e.get("cosine")) for e in estimators),
        "estimator_ascent_gain": _mean(_number(e.get("ascent_gain")) for e in estimators),
    }


def _at_the_end(content: Mapping[str, Any]) -> dict[str, float]:
    hessian, sharpness = content.get("hessian", {}), content.get("sharpness", {})
    return {
        "lambda_max": _number(next(iter(hessian.get("eigenvalues", [])), None)),
        "lambda_max_residual": _number(next(iter(hessian.get("residuals", [])), None)),
        "trace": _number(hessian.get("trace")),
        "trace_error": _number(hessian.get("trace_error")),
        **{f"sharpness_{name}": _number(value) for name, value in sharpness.items()},
    }


def _plane(plane: Mapping[str, Any] | None) -> Plane | None:
    if plane is None:
        return None
    xs, ys, rows = plane["xs"], plane["ys"], plane["losses"]
    if len(rows) != len(ys) or any(len(row) != len(xs) for row in rows):
        raise ValueError(f"surface.plane.losses must be {len(ys)} lists of {len(xs)} numbers.")
    losses = np.ma.masked_invalid(np.array(rows, float).reshape(len(ys), len(xs)))
    has_contours = min(losses.shape) > 1 and losses.count()
    return Plane(xs, ys, losses, plane["directions"]) if has_contours else None


def _robustness(content: Mapping[str, Any]) -> CorruptionResult:
    corruptions, severities = content.get("corruptions", {}), content.get("severities", [])
    for name, values in corruptions.items():
        if None in values or not values:
            raise ValueError(f"corruptions.{name}={values} must be numbers.")
        _together(f"corruptions.{name}", severities, values)
    by_severity = [statistics.fmean(column) for column in zip(*corruptions.values(), strict=True)]
    facts = {
        "clean_accuracy": _number(content.get("clean_accuracy")),
        "corrupted_accuracy": _number(content.get("mean_accuracy")),
        "robustness_delta": _number(content.get("delta")),
        **{f"accuracy_under_{name}": statistics.fmean(a) for name, a in corruptions.items()},
    }
    source = "{source}, {images} images".format(**content) if content else ""
    return CorruptionResult(facts, _curve(zip(severities, by_severity, strict=False)), source)


def _together(name: str, xs: Sequence[float], ys: Sequence[Any]) -> Iterable[tuple[float, Any]]:
    if len(xs) != len(ys):
        raise ValueError(f"{name} must be {len(xs)} numbers, not {len(ys)}.")
    return zip(xs, ys, strict=True)


def _number(value: float | None) -> float:
    """A number of a file; NaN where it is missing or null."""
    return math.nan if value is None else value


def _mean(values: Iterable[float]) -> float:
    """Of those that are known."""
    known = [value for value in values if _is_known(value)]
    return statistics.fmean(known) if known else math.nan


def _curve(points: Iterable[tuple[float | None, float | None]]) -> Curve:
    known = [(x, y) for x, y in points if x is not None and y is not None and _is_known(y)]
    return Curve(tuple(x for x, _ in known), tuple(y for _, y in known))


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))
