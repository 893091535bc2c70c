"""`zosam compare`: several optimizers on the same masks, data order and seeds: a sweep's table."""

import dataclasses
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from zosam_jax.commands import sweep
from zosam_jax.commands.cells import Cell, Tables, Tuning
from zosam_jax.commands.processes import Runs
from zosam_jax.commands.refusal import RefusedError, refusing
from zosam_jax.errors import check_count
from zosam_jax.report.estimates import gain, over_seeds
from zosam_jax.report.runs import RunResult, gather
from zosam_jax.training import build, run_folder
from zosam_jax.training.config import OptimizerName, ProblemConfig, TrainConfig, check_fraction
from zosam_jax.training.run_folder import RunFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(ProblemConfig):
    """Train with several optimizers on the same masks, data order and seeds; print a table.

    The same command again, with its --output, goes on with it.
    """

    optimizers: tuple[OptimizerName, ...] = ("sgd", "sam", "random_weight_perturbation", "zo_sam")
    """Optimizers to compare; the base optimizer is always among them, since gains and times are
    relative to it."""

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
    """Folder for the run folders, compare.json and tuning.json. Default: runs/compare-DATE-TIME."""

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

    @property
    def tables(self) -> Tables:
        """The comparison as a sweep."""
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(ProblemConfig)
            if getattr(self, field.name) != field.default
        }
        grid: dict[str, list[Any]] = {
            "optimizer": list(self.optimizers),
            "seed": list(range(self.seeds)),
        }
        tuning = Tuning(seeds=self.tune_seeds, fraction=self.tune_fraction)
        return Tables(given, grid, [{}], tuning if self.tune else None)


class OptimizerResult(NamedTuple):
    """One optimizer's line of the table."""

    # optimizer, rho, radius: what was compared
    optimizer: str
    rho: float
    radius: str
    # accuracy_mean, accuracy_sd: of the test accuracy after the last epoch, over seeds, as
    # fractions; sd is the sample standard deviation, NaN for one seed
    accuracy_mean: float
    accuracy_sd: float
    accuracies: tuple[float, ...]  # one for each seed; NaN where the run diverged
    # gain, gain_error: mean of the difference to the base optimizer's, paired by seed, and its
    # standard error
    gain: float
    gain_error: float
    # median time of an image relative to the base optimizer's. Runs side by side share memory and
    # caches: `zosam bench` measures it with care.
    time_ratio: float
    # rho_used, epsilon_norm, slope, ascent_gain: means over all steps of what they tell at no
    # further pass (`zosam_jax.transform.Diagnostics`); NaN where the optimizer does not know
    rho_used: float
    epsilon_norm: float
    slope: float
    ascent_gain: float


def run(config: CompareConfig, console: Console) -> None:
    """Trains them all, and writes the table; exit status 1 if some runs are not finished."""
    with refusing():
        build.check(config, config.optimizers)
        rows = compare(config, console)
    if rows is None:
        sys.exit(1)


def compare(config: CompareConfig, console: Console) -> list[OptimizerResult] | None:
    """Trains every optimizer from every seed, prints the table and writes compare.json.

    Returns:
      A row for each optimizer, the base optimizer's first; None if runs are not finished.
    """
    is_resumed = config.output is not None and (config.output / run_folder.SWEEP).is_dir()
    folder = RunFolder(config.output, "compare", may_hold_results=is_resumed)
    runs = Runs(folder.path, console)
    cells = sweep.tune(config.tables, runs)
    if cells is None or not _are_made(cells, runs):
        return None
    rows = _rows(cells, runs)
    folder.write_json(run_folder.COMPARISON, [row._asdict() for row in rows])
    console.print(_table(rows, config))
    console.print(f"results in {folder.path}; zosam report makes a page of them", markup=False)
    return rows


def _are_made(cells: Sequence[Cell], runs: Runs) -> bool:
    """Whether all runs have ended, be it that they diverged, which is a result too."""
    missing = [cell for cell in runs.make(cells) if not runs.diverged(cell)]
    for cell in missing:
        reason = runs.failure(cell)
        if reason is not None:
            raise RefusedError(f"{cell.name}: {reason.removeprefix('zosam: ')}")
        runs.console.print(f"not finished: {cell.name} ({runs.state(cell)})", markup=False)
    return not missing


def _rows(cells: Sequence[Cell], runs: Runs) -> list[OptimizerResult]:
    ended = [runs.folder(cell).path for cell in cells if runs.is_finished(cell)]
    found: dict[str, dict[int, RunResult]] = {cell.config.optimizer: {} for cell in cells}
    whole, left_out = gather(ended) if ended else ([], [])
    if left_out:
        raise ValueError("\n".join(f"{one.name}: {one.reason}" for one in left_out))
    for one in whole:
        found[one.config.optimizer][one.config.seed] = one
    configs = {cell.config.optimizer: cell.config for cell in cells}
    base = next(iter(found.values()))
    return [_row(configs[name], found[name], base, len(cells) // len(found)) for name in found]


def _row(
    config: TrainConfig,
    runs: Mapping[int, RunResult],
    base: Mapping[int, RunResult],
    num_seeds: int,
) -> OptimizerResult:
    by_seed = _facts(runs, "test_accuracy")
    # The mean of those that did not diverge would flatter the others.
    known = by_seed if len(runs) == num_seeds else {}
    whole, over_base = over_seeds(known), gain([(known, _facts(base, "test_accuracy"))])
    return OptimizerResult(
        config.optimizer,
        build.rho_of(config),
        build.radius_rule(config.optimizer, config.radius),
        whole.mean,
        whole.error,
        tuple(by_seed.get(seed, math.nan) for seed in range(num_seeds)),
        over_base.mean,
        over_base.error,
        _median(base, "images_per_second") / _median(runs, "images_per_second"),
        *(over_seeds(_facts(runs, f"mean_{n}")).mean for n in OptimizerResult._fields[-4:]),
    )


def _facts(runs: Mapping[int, RunResult], fact: str) -> dict[int, float]:
    return {seed: run.fact(fact) for seed, run in runs.items()}


def _median(runs: Mapping[int, RunResult], fact: str) -> float:
    return statistics.median(_facts(runs, fact).values()) if runs else math.nan


def _table(rows: Sequence[OptimizerResult], config: CompareConfig) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{config.model} on {config.dataset}, {100 * config.sparsity:g}% {config.sparse}, "
        f"{config.epochs} epochs, {config.seeds} seeds",
        caption=f"± standard deviation; gain over {rows[0].optimizer} paired by seed ± standard "
        "error; time is rough, of runs side by side (zosam bench measures it)",
    )
    table.add_column("optimizer", no_wrap=True)
    for heading in ("rho", "accuracy (%)", "gain", "time / base", "‖ε‖", "ascent gain"):
        table.add_column(heading, justify="right", min_width=5)
    for row in rows:
        table.add_row(
            row.optimizer,
            f"{row.rho:g}" if row.rho else "–",
            _percent(row.accuracy_mean, row.accuracy_sd, "{:.2f}") or "diverged",
            "–" if row is rows[0] else _percent(row.gain, row.gain_error, "{:+.2f}") or "–",
            *map(_known, (row.time_ratio, row.epsilon_norm, row.ascent_gain)),
        )
    return table


def _percent(mean: float, error: float, form: str) -> str:
    spread = "" if math.isnan(error) else f" ± {100 * error:.2f}"
    return "" if math.isnan(mean) else form.format(100 * mean) + spread


def _known(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"
