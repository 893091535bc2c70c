"""`zosam compare`: several optimizers on the same masks, data order and seeds."""

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from zosam_jax.commands.refusal import RefusedError, refusing
from zosam_jax.commands.train import checked_problem
from zosam_jax.data import Dataset
from zosam_jax.data import dataset as datasets
from zosam_jax.errors import check_count
from zosam_jax.optimizers import ESTIMATORS
from zosam_jax.training import build, run_folder
from zosam_jax.training.callbacks import Callback
from zosam_jax.training.config import OptimizerName, ProblemConfig, check_fraction
from zosam_jax.training.feed import BrokenDataError
from zosam_jax.training.problem import Problem, load_dataset
from zosam_jax.training.progress import EpochRecord
from zosam_jax.training.run_folder import RunFolder
from zosam_jax.training.trainer import Diagnosis, NonFiniteLossError, Run

_HOLD_OUT_SEED = 0
_TIMED_STEPS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(ProblemConfig):
    """Train with several optimizers on the same masks, data order and seeds; print a table."""

    optimizers: tuple[OptimizerName, ...] = ("sgd", "sam", "random_weight_perturbation", "zo_sam")
    """Optimizers to compare; the base optimizer is always among them, since times are relative to
    it."""

    seeds: int = 3
    """Number of seeds: 0, 1, …"""

    tune: bool = False
    """Choose each optimizer's rho on images held out of the training split, from a grid of the
    same size for everyone, before the comparison."""

    tune_seeds: int = 2
    """Seeds for each point of the grid."""

    tune_fraction: float = 0.2
    """Fraction of the training images held out for tuning; the comparison trains on all."""

    output: Path | None = None
    """Folder to create for compare.json. Default: runs/compare-DATE-TIME."""

    def __post_init__(self) -> None:
        """As for the problem."""
        super().__post_init__()
        for name in ("seeds", "tune_seeds"):
            check_count(name, getattr(self, name))
        check_fraction("tune_fraction", self.tune_fraction)
        if self.validation_fraction:
            raise ValueError(
                f"validation_fraction={self.validation_fraction!r} is for train; compare holds "
                "images out by tune_fraction, to choose each rho."
            )
        if self.tune and self.stream:
            raise ValueError("tune=True does not go with stream: no images are held out of it.")
        base = self.base_optimizer or "sgd"
        other = "adamw" if base == "sgd" else "sgd"
        if other in self.optimizers:
            raise ValueError(
                f"optimizers={self.optimizers!r}: {other} does not go with "
                f"base_optimizer={base!r}, which all others use."
            )
        others = [o for o in self.optimizers if o != base]
        object.__setattr__(self, "optimizers", (base, *others))


class Row(NamedTuple):
    """One optimizer's line of the table.

    Attributes:
      optimizer, rho, radius: what was compared.
      accuracy_mean, accuracy_sd: of the test accuracy after the last epoch, over seeds, as
        fractions; sd is the sample standard deviation, None for one seed.
      accuracies: one for each seed.
      time_ratio: median time of a step relative to the base optimizer's, all interleaved in one
        run.
      cosine: mean cos(ε, ∇L(θ)) on a minibatch at the start of each epoch; None without ε.
      ascent_gain: mean L(θ+ε) − L(θ) on the same minibatches; None without ε.
      rho_used, epsilon_norm, slope: means over all steps of what they tell at no further pass
        (`zosam_jax.transform.Diagnostics`); None where the optimizer does not know them.
    """

    optimizer: str
    rho: float
    radius: str
    accuracy_mean: float
    accuracy_sd: float | None
    accuracies: tuple[float, ...]
    time_ratio: float
    cosine: float | None
    ascent_gain: float | None
    rho_used: float | None
    epsilon_norm: float | None
    slope: float | None


def run(config: CompareConfig, console: Console) -> None:
    """Trains them all, and writes the table."""
    with refusing():
        folder = RunFolder(config.output, "compare")
        problem = checked_problem(config, config.optimizers)
    folder.write_json(run_folder.CONFIG, config)
    try:
        with contextlib.closing(problem.feed):
            compare(config, problem, folder, console)
    except BrokenDataError as error:
        raise RefusedError(str(error)) from error


def compare(
    config: CompareConfig, problem: Problem, folder: RunFolder, console: Console
) -> list[Row]:
    """Trains every optimizer from every seed, prints the table and writes compare.json."""
    rhos: dict[str, float] = {
        name: build.default_rho(name, config.radius) for name in config.optimizers
    }
    with Progress(console=console, transient=True) as bar:
        if config.tune:
            rhos, tuning = _tune(config, bar)
            folder.write_json(run_folder.TUNING, tuning)
        rows = _rows(problem, rhos, config.seeds, bar)
    folder.write_json(run_folder.COMPARISON, [row._asdict() for row in rows])
    console.print(_table(rows, config))
    console.print(f"results in {folder.path}")
    return rows


def _rows(problem: Problem, rhos: dict[str, float], num_seeds: int, bar: Progress) -> list[Row]:
    seeds = range(num_seeds)
    task = bar.add_task("comparing", total=len(rhos) * len(seeds))
    accuracies: dict[str, list[float]] = {name: [] for name in rhos}
    diagnoses: dict[str, list[Diagnosis]] = {name: [] for name in rhos}
    records: dict[str, list[EpochRecord]] = {name: [] for name in rhos}
    last: dict[str, Run] = {}
    for seed in seeds:
        for name, rho in rhos.items():
            run = Run(problem, name, rho, seed)
            watcher = _Diagnoses(run)
            accuracies[name].append(_final_accuracy(run, watcher))
            diagnoses[name] += watcher.diagnoses
            records[name] += run.records
            last[name] = run
            bar.advance(task)
    time_ratios = _time_ratios(last)
    return [
        Row(
            optimizer=name,
            rho=rho,
            radius=build.radius_rule(name, problem.config.radius),
            accuracy_mean=statistics.fmean(accuracies[name]),
            accuracy_sd=statistics.stdev(accuracies[name]) if len(seeds) > 1 else None,
            accuracies=tuple(accuracies[name]),
            time_ratio=time_ratios[name],
            cosine=_mean([d.cosine for d in diagnoses[name]]),
            ascent_gain=_mean([d.ascent_gain for d in diagnoses[name]]),
            **{
                field: _mean([getattr(r, field) for r in records[name]])
                for field in ("rho_used", "epsilon_norm", "slope")
            },
        )
        for name, rho in rhos.items()
    ]


def _final_accuracy(run: Run, callback: Callback | None = None) -> float:
    """Test accuracy after the last epoch; NaN if the run diverges, which is a result too."""
    try:
        return run.train(callback)[-1].test_accuracy
    except NonFiniteLossError:
        return math.nan


class _Diagnoses(Callback):
    """Looks at the next perturbation after each epoch, on a minibatch of the first epoch."""

    def __init__(self, run: Run) -> None:
        self.diagnoses: list[Diagnosis] = []
        self._run = run
        self._batch = next(run.problem.feed.epoch(run.seed, 0))

    def on_epoch(self, record: EpochRecord, run: Run) -> None:
        del record, run
        if self._run.sam_tx is not None and self._run.optimizer not in ESTIMATORS:
            self.diagnoses.append(self._run.diagnose(self._batch))


def _time_ratios(runs: dict[str, Run]) -> dict[str, float]:
    """The median time of a step relative to the first one's; steps of all optimizers take turns."""
    batches = {name: next(run.problem.feed.epoch(run.seed, 0)) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_TIMED_STEPS):
        for name, run in runs.items():
            jax.block_until_ready(run.state)
            started = time.perf_counter()
            run.state = jax.block_until_ready(run.step(run.state, batches[name]))
            times[name].append(time.perf_counter() - started)
    base = statistics.median(next(iter(times.values())))
    return {name: statistics.median(values) / base for name, values in times.items()}


def _tune(config: CompareConfig, bar: Progress) -> tuple[dict[str, float], list[dict[str, object]]]:
    """The radius with the best mean validation accuracy, from as many candidates for everyone."""
    dataset = load_dataset(config)
    assert isinstance(dataset, Dataset)  # the options refuse to tune on a stream
    problem = Problem(config, datasets.hold_out(dataset, config.tune_fraction, _HOLD_OUT_SEED))
    candidates = [
        (name, rho) for name in config.optimizers for rho in build.rho_grid(name, config.radius)
    ]
    task = bar.add_task("tuning rho", total=len(candidates) * config.tune_seeds)
    trials: list[dict[str, object]] = []
    best: dict[str, tuple[float, float]] = {}
    for name, rho in candidates:
        accuracies = []
        for seed in range(config.tune_seeds):
            accuracy = _final_accuracy(Run(problem, name, rho, seed))
            accuracies.append(0.0 if math.isnan(accuracy) else accuracy)
            bar.advance(task)
        mean = statistics.fmean(accuracies)
        trials.append({"optimizer": name, "rho": rho, "validation_accuracies": accuracies})
        if name not in best or mean > best[name][0]:
            best[name] = (mean, rho)
    return {name: rho for name, (_, rho) in best.items()}, trials


def _table(rows: Sequence[Row], config: CompareConfig) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{config.model} on {config.dataset}, {100 * config.sparsity:g}% {config.sparse}, "
        f"{config.epochs} epochs, {config.seeds} seeds, radius {config.radius}",
    )
    table.add_column("optimizer", no_wrap=True)
    for heading in ("rho", "accuracy (%)", "time / base", "cosine", "ascent gain"):
        wraps = heading != "accuracy (%)"
        table.add_column(heading, justify="right", min_width=5, no_wrap=not wraps)
    for row in rows:
        spread = "" if row.accuracy_sd is None else f" ± {100 * row.accuracy_sd:.2f}"
        table.add_row(
            row.optimizer,
            "–" if row.cosine is None else f"{row.rho:g}",
            f"{100 * row.accuracy_mean:.2f}{spread}",
            f"{row.time_ratio:.2f}",
            "–" if row.cosine is None else f"{row.cosine:.4f}",
            "–" if row.ascent_gain is None else f"{row.ascent_gain:.4f}",
        )
    return table


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else None
