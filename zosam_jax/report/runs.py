"""Run folders as the report reads them; the one place that knows what their files are called."""

import dataclasses
import functools
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zosam_jax.analysis.convergence import Reached, reach
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.progress import EpochRecord
from zosam_jax.training.run_folder import UnreadableRunError
from zosam_jax.training.saved_run import read_config, run_folders

# Where `zosam sweep` says which of its runs failed.
_SWEEP, _FAILED = ".sweep", ".failed.json"


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


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A complete run.

    Attributes:
      name: its folder, seen from the folder that holds all runs of the report.
      config: its options.
      summary: of summary.json.
      records: of metrics.jsonl, a line for each epoch.
      analysis, robustness: of the files of these names; empty without one.
    """

    name: str
    config: TrainConfig
    summary: Mapping[str, Any]
    records: Sequence[EpochRecord]
    analysis: Mapping[str, Any]
    robustness: Mapping[str, Any]

    def fact(self, name: str) -> float:
        """One number of `facts`; NaN if the run has none of that name."""
        value = self.facts.get(name, math.nan)
        return float(value) if isinstance(value, int | float) else math.nan

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """Every number that the run came to, by name; those that are not known are left out."""
        named = {
            **_from_summary(self.summary),
            **_accuracies(self.records[-1], self.analysis),
            **_means(self.records),
            **_from_analysis(self.analysis),
            **_from_robustness(self.robustness),
        }
        return {name: value for name, value in named.items() if _is_known(value)}

    @property
    def last_training(self) -> Sequence[EpochRecord]:
        """The records without the earlier rounds of lth."""
        return [record for record in self.records if record.round == self.records[-1].round]

    @property
    def test_curve(self) -> Curve:
        """Test accuracy after each epoch that was evaluated."""
        return _curve((r.epoch, r.test_accuracy) for r in self.last_training)

    def reached(self, target: float) -> Reached | None:
        """When the test accuracy of the last training first was at `target`; None if never."""
        return reach([record._asdict() for record in self.last_training], target)

    @property
    def variance_curve(self) -> Curve:
        """The gradient's variance at the analysed checkpoints, over epochs."""
        return _curve(
            (c["epoch"], _entry(c, "gradient_variance", "variance"))
            for c in self.analysis.get("checkpoints") or ()
        )

    def line(self, direction: str) -> Curve:
        """The loss along a direction, "random" or "hessian", over the distance."""
        surface = _part(self.analysis, "surface")
        return _curve(
            zip(surface.get("distances") or (), surface.get(direction) or (), strict=False)
        )

    @property
    def plane(self) -> Plane | None:
        """The loss on a plane; None if it was not computed, or is nowhere finite."""
        plane = _part(self.analysis, "surface").get("plane")
        if not plane:
            return None
        losses = np.ma.masked_invalid(np.array(plane["losses"], float))
        return Plane(**{**plane, "losses": losses}) if losses.count() else None

    @property
    def severity_curve(self) -> Curve:
        """Accuracy over severity, each a mean over the corruptions."""
        by_severity = list(zip(*_part(self.robustness, "corruptions").values(), strict=True))
        severities = self.robustness.get("severities") or range(1, len(by_severity) + 1)
        return _curve(zip(severities, map(statistics.fmean, by_severity), strict=True))

    @property
    def corrupted_by(self) -> str:
        """Where the corrupted images come from, and how many they are; empty if not known."""
        known = [self.robustness.get(name) for name in ("source", "images")]
        return "{}, {} images".format(*known) if None not in known else ""


def gather(paths: Sequence[Path]) -> tuple[list[Run], list[Omission]]:
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
        if (folder / "summary.json").is_file():
            runs.append(_read(folder, name))
        else:
            omissions.append(Omission(name, _why_incomplete(folder)))
    return runs, omissions


def _folders(path: Path) -> list[Path]:
    """Those of all runs below a folder, and where those would be that a sweep could not begin."""
    failures = path.rglob(f"{_SWEEP}/*{_FAILED}") if path.is_dir() else ()
    unbegun = [f.parent.parent / f.name.removesuffix(_FAILED) for f in failures]
    try:
        begun = run_folders(path)
    except FileNotFoundError as error:
        if not unbegun:
            raise ValueError(f"runs: {error}") from error
        begun = []
    return sorted({folder.resolve() for folder in (*begun, *unbegun)})


def _why_incomplete(folder: Path) -> str:
    failure = folder.parent / _SWEEP / f"{folder.name}{_FAILED}"
    if failure.is_file():
        reason = str(_json(failure).get("reason", "for no recorded reason"))
        return f"failed: {reason.removeprefix('zosam: ')}"
    return "incomplete: it has no summary.json"


def _read(folder: Path, name: str) -> Run:
    records = [_record(line) for line in _json_lines(folder / "metrics.jsonl")]
    if not records:
        raise UnreadableRunError(f"{folder / 'metrics.jsonl'} has no line.")
    return Run(
        name,
        read_config(folder),
        _json(folder / "summary.json"),
        records,
        *(
            _json(folder / file) if (folder / file).is_file() else {}
            for file in ("analysis.json", "robustness.json")
        ),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UnreadableRunError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UnreadableRunError(f"{path} is damaged: it must hold a JSON object.")
    return content


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UnreadableRunError(f"{path} is missing or damaged: {error}") from error


def _record(values: Mapping[str, Any]) -> EpochRecord:
    """A line of metrics.jsonl, as another version may have written it: without some fields."""
    known = {name: values.get(name) for name in EpochRecord._fields}
    finite: dict[str, Any] = {k: math.nan if v is None else v for k, v in known.items()}
    return EpochRecord(**finite)


def _from_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    # The options say these themselves; the sparsity reached may differ from the one asked for.
    asked = ("optimizer", "rho", "seed", "sparse", "sparsity")
    return {
        **{name: value for name, value in summary.items() if name not in asked},
        "final_sparsity": summary.get("sparsity"),
    }


def _accuracies(last: EpochRecord, analysis: Mapping[str, Any]) -> dict[str, float]:
    """On the training images: those that the analysis looked at, else as the steps saw them."""
    train = analysis.get("train_accuracy", last.train_accuracy)
    return {"train_accuracy": train, "generalization_gap": train - last.test_accuracy}


def _means(records: Sequence[EpochRecord]) -> dict[str, float]:
    """What the optimizer's own passes told, averaged over the epochs that know it."""
    means = {}
    for name in ("rho_used", "epsilon_norm", "slope", "ascent_gain"):
        known = [v for r in records if _is_known(v := getattr(r, name))]
        means[f"mean_{name}"] = statistics.fmean(known) if known else math.nan
    return means


def _from_analysis(analysis: Mapping[str, Any]) -> dict[str, Any]:
    checkpoints = analysis.get("checkpoints") or [{}]
    last = checkpoints[-1]
    eigenvalues = _part(analysis, "hessian").get("eigenvalues") or [math.nan]
    residuals = _part(analysis, "hessian").get("residuals") or [math.nan]
    return {
        "gradient_variance": _entry(last, "gradient_variance", "variance"),
        "relative_gradient_variance": _entry(last, "gradient_variance", "relative"),
        "gradient_norm": _entry(last, "gradient_variance", "gradient_norm"),
        "perturbed_gradient_variance": _entry(last, "perturbed_gradient_variance", "variance"),
        "estimator_cosine": _mean_entry(checkpoints, "estimator", "cosine"),
        "estimator_ascent_gain": _mean_entry(checkpoints, "estimator", "ascent_gain"),
        "lambda_max": eigenvalues[0],
        "lambda_max_residual": residuals[0],
        "trace": _entry(analysis, "hessian", "trace"),
        "trace_error": _entry(analysis, "hessian", "trace_error"),
        **{f"sharpness_{k}": v for k, v in _part(analysis, "sharpness").items()},
    }


def _from_robustness(robustness: Mapping[str, Any]) -> dict[str, Any]:
    corruptions = _part(robustness, "corruptions")
    return {
        "clean_accuracy": robustness.get("clean_accuracy"),
        "corrupted_accuracy": robustness.get("mean_accuracy"),
        "robustness_delta": robustness.get("delta"),
        **{f"accuracy_under_{name}": statistics.fmean(a) for name, a in corruptions.items()},
    }


def _part(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a file; empty where it is missing or null."""
    return mapping.get(name) or {}


def _entry(mapping: Mapping[str, Any], part: str, name: str) -> float:
    value = _part(mapping, part).get(name)
    return math.nan if value is None else value


def _mean_entry(checkpoints: Sequence[Mapping[str, Any]], part: str, name: str) -> float:
    known = [v for c in checkpoints if _is_known(v := _entry(c, part, name))]
    return statistics.fmean(known) if known else math.nan


def _curve(points: Any) -> Curve:
    known = [(x, y) for x, y in points if _is_known(y)]
    return Curve(tuple(x for x, _ in known), tuple(y for _, y in known))


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))
