"""`zosam sweep`: many runs of `zosam train`, tuned if asked for, from a file that says which."""

import dataclasses
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from zosam_jax.commands import tuning
from zosam_jax.commands.cells import Cell, Tables, Tuning, first_of, read_tables, together
from zosam_jax.commands.processes import Runs
from zosam_jax.commands.refusal import refusing
from zosam_jax.errors import check_count
from zosam_jax.training import run_folder
from zosam_jax.training.run_folder import RunFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Run a grid of trainings, side by side where the machine allows; again to go on with it."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """TOML file with the options of `zosam train` in tables: [train] for all runs that they have
    an effect on, [grid] with a list for each option (all combinations are run), any number of
    [[case]], sets of options that go together, and [tune] (see --tune)."""

    recipes: tuple[str, ...] = ()
    """Recipes to run, as another axis of the grid (`zosam recipes` lists them)."""

    seeds: int | None = None
    """Seeds 0, 1, … to run each cell from, as another axis of the grid."""

    tune: bool = False
    """Choose each rho first, on images held out of the training split, among as many candidates for
    everyone: each optimizer's own grid, or all combinations of what [tune] lists for rho or other
    options. A case may list its own (tune = {weight_decay = [...]}); what it sets itself is not
    tuned. Options that go together stand in tables, under any name: batch = [{batch_size = 64,
    epochs = 20}, {batch_size = 128, epochs = 24}]. [tune] also has candidates, how many of the
    combinations are tried, drawn at random (all), seeds (2) and the fraction held out (0.2) unless
    the runs hold out some; its being there tunes too. OUTPUT/tune has the runs, OUTPUT/tuning.json
    what was chosen."""

    output: Path = Path("runs/sweep")
    """Folder for the run folders. What is finished in it is not run again."""

    data_dir: Path | None = None
    """Folder of the data set's files, for all runs."""

    workers: int | None = None
    """Runs at a time. Default: one for each GPU, else one for each CPU core, which is also the most
    there; 1 on a TPU."""

    retry: bool = False
    """Run those again that diverged or were refused, with the options that they have now."""

    dry_run: bool = False
    """Only print the commands."""

    def __post_init__(self) -> None:
        """Checks what the types cannot say."""
        for name in ("seeds", "workers"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.file is None and not self.recipes:
            raise ValueError("file=None: name a TOML file, or --recipes.")


def tables(config: SweepConfig) -> Tables:
    """The tables of the file, with what the command line adds to them."""
    found = Tables({}, {}, [{}], None) if config.file is None else read_tables(config.file)
    train, grid = dict(found.train), dict(found.grid)
    if config.data_dir is not None:
        train["data_dir"] = str(config.data_dir)
    if config.recipes:
        grid["recipe"] = list(config.recipes)
    if config.seeds is not None:
        grid["seed"] = list(range(config.seeds))
    how = Tuning() if config.tune and found.tuning is None else found.tuning
    return Tables(train, grid, found.cases, how)


def cells(config: SweepConfig) -> list[Cell]:
    """All runs of a sweep, in order, as yet without what tuning will choose."""
    return tables(config).cells()


def run(config: SweepConfig, console: Console) -> None:
    """Runs the sweep; exit status 1 if some runs are not finished."""
    with refusing():
        is_whole = sweep(config, console)
    if not is_whole and not config.dry_run:
        sys.exit(1)


def sweep(config: SweepConfig, console: Console) -> bool:
    """Tunes if asked to, and runs all cells that are not finished; returns whether all are now.

    SIGINT, SIGTERM and SIGHUP end the runs, which leave checkpoints to go on from.
    """
    plan = tables(config)
    runs = Runs(config.output, console, config.workers, config.retry)
    if config.dry_run:
        _print_commands(plan, runs)
        return False
    found = tune(plan, runs)
    return found is not None and make(found, runs)


def make(found: Sequence[Cell], runs: Runs) -> bool:
    """Makes the runs that are not finished and names those that still are not; whether all are."""
    missing = runs.make(found)
    for cell in missing:
        runs.console.print(f"not finished: {cell.name} ({runs.state(cell)})", markup=False)
    return not missing


def tune(plan: Tables, runs: Runs) -> list[Cell] | None:
    """The cells with what was chosen for them; None if tuning was not finished."""
    found = plan.cells()
    tried = {} if plan.tuning is None else tuning.trials(found, plan.tuning)
    if not tried:
        return found
    grids = {cell.method: cell.grid for cell in found}
    apart = runs._replace(output=runs.output / run_folder.TUNING_RUNS)
    runs.prepare()  # says that the folder is a sweep's
    runs.console.print("tuning on held-out images")
    missing = apart.make([run for trials in tried.values() for t in trials for run in t.runs])
    for cell in missing:
        reason = apart.failure(cell)
        if reason is not None and not apart.diverged(cell):
            raise ValueError(f"tuning: {cell.name}: {reason}")
    unfinished = [cell for cell in missing if not apart.diverged(cell)]
    for cell in unfinished:
        runs.console.print(f"not finished: {cell.name} ({apart.state(cell)})", markup=False)
    if unfinished:
        return None

    def told(name: str) -> Callable[[Cell], float]:
        """cell → a number of its summary, the averaged weights' if any; NaN if it diverged."""

        def number(cell: Cell) -> float:
            averaged = "" if cell.config.ema_decay is None else "ema_"
            found = {} if cell in missing else apart.summary(cell)
            return float(found.get(averaged + name, math.nan))

        return number

    choices = {
        name: tuning.choose(
            name, grids[name], trials, told("validation_accuracy"), told("validation_loss")
        )
        for name, trials in tried.items()
    }
    folder = RunFolder(runs.output, "sweep", may_hold_results=True)
    folder.write_json(run_folder.TUNING, [choice._asdict() for choice in choices.values()])
    runs.console.print(tuning.table(choices.values()))
    return [tuning.tuned(cell, choices) for cell in found]


def _print_commands(plan: Tables, runs: Runs) -> None:
    """The commands of all runs; those of tuning first, which the others are not known before."""
    found = plan.cells()
    tried = {} if plan.tuning is None else tuning.trials(found, plan.tuning)
    commands = [
        run.command(runs.output / run_folder.TUNING_RUNS)
        for trials in tried.values()
        for trial in trials
        for run in trial.runs
    ]
    for cell in found:
        tuned = dict.fromkeys(together(first_of(cell.grid)), "TUNED")
        unknown = cell._replace(options={**cell.options, **tuned})
        commands.append(unknown.command(runs.output))
    for command in commands:
        runs.console.print(shlex.join(["zosam", *command]), markup=False)
