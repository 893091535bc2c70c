"""The command line, zosam COMMAND: from typed options to what carries them out."""

import contextlib
import dataclasses
import functools
import operator
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, TypeVar

# The options, tyro and rich come with the extra `train`.
try:
    import tyro
    from rich.console import Console

    from zosam_jax import recipes
    from zosam_jax.report import ReportConfig, report
    from zosam_jax.training import devices, optimizers, run_folder, sparse
    from zosam_jax.training.analyze import AnalyzeConfig, analyze
    from zosam_jax.training.bench import bench
    from zosam_jax.training.compare import compare
    from zosam_jax.training.config import BenchConfig, CompareConfig, ProblemConfig, TrainConfig
    from zosam_jax.training.contenders import BenchProblem
    from zosam_jax.training.evaluate import EvaluateConfig, evaluate
    from zosam_jax.training.feed import BrokenDataError
    from zosam_jax.training.interruption import InterruptedRunError
    from zosam_jax.training.problem import Problem
    from zosam_jax.training.run_folder import RunFolder, UnreadableRunError
    from zosam_jax.training.sweep import SweepConfig, sweep
    from zosam_jax.training.train import train
    from zosam_jax.training.trainer import NonFiniteLossError
except ModuleNotFoundError as error:
    raise SystemExit(
        f"zosam needs {error.name}, which comes with: pip install 'zosam_jax[train]'"
    ) from error


T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipesConfig:
    """List the recipes of the paper's experiments."""

    containing: Annotated[str, tyro.conf.Positional] = ""
    """Only names that contain this."""


_COMMANDS = {
    "train": TrainConfig,
    "sweep": SweepConfig,
    "compare": CompareConfig,
    "bench": BenchConfig,
    "analyze": AnalyzeConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "recipes": RecipesConfig,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the options and runs the command; a wrong option ends it with one sentence."""
    console = Console(soft_wrap=True)
    try:
        config = _parse(list(sys.argv[1:] if arguments is None else arguments))
        _run(config, console)
    except _RefusedError as refused:
        console.print(f"zosam: {refused}", style="red", markup=False)
        sys.exit(2)


def _run(config: Any, console: Console) -> None:
    match config:
        case TrainConfig():
            _train(config, console)
        case CompareConfig():
            _compare(config, console)
        case BenchConfig():
            _bench(config, console)
        case SweepConfig():
            _sweep(config, console)
        case AnalyzeConfig():
            devices.keep_compiled(None)
            _refusing(lambda: analyze(config, console))
        case EvaluateConfig():
            devices.keep_compiled(None)
            _refusing(lambda: evaluate(config, console))
        case ReportConfig():
            _report(config, console)
        case _:
            recipes.show(console, config.containing)


class _RefusedError(Exception):
    """What the options cause ends in a sentence; a fault of ours keeps its traceback."""


_REFUSED = (ValueError, OSError, ModuleNotFoundError)


def _same_on_all(make: Callable[[], RunFolder]) -> RunFolder:
    """What the first process refuses, all refuse; none waits for another then."""
    refusal: Exception | None = None
    folder: RunFolder | None = None
    try:
        folder = make()
    except _REFUSED as error:
        refusal = error
    if devices.agree(refusal is not None) or folder is None:
        raise refusal or ValueError("refused by process 0, which says why.")
    return folder


def _parse(arguments: list[str]) -> Any:
    try:
        recipe = recipes.named_in(arguments)
        start = TrainConfig() if recipe is None else recipe.config
    except ValueError as error:
        raise _RefusedError(str(error)) from error
    subcommand: Any = tyro.conf.subcommand
    kinds = [
        Annotated[kind, subcommand(name, **({"default": start} if name == "train" else {}))]
        for name, kind in _COMMANDS.items()
    ]
    commands: Any = functools.reduce(operator.or_, kinds)
    return tyro.cli(
        commands,
        prog="zosam",
        description="Sharpness-aware and sparse training in JAX.",
        args=arguments,
    )


def _train(config: TrainConfig, console: Console) -> None:
    try:
        devices.join(config.coordinator, config.num_processes, config.process_id)
        console.quiet = not devices.is_first()
        folder = _same_on_all(lambda: run_folder.for_training(config))
        if folder.is_complete:
            console.print(f"{folder.path} is complete; its results are in summary.json")
            return
        problem = _checked_problem(config, [config.optimizer])
    except _REFUSED as error:
        raise _RefusedError(str(error)) from error
    try:
        with contextlib.closing(problem.feed):
            train(config, problem, folder, console)
    except NonFiniteLossError as error:
        raise _RefusedError(
            f"{error} With --on-non-finite skip this run goes on from its newest checkpoint, if it "
            "has one; other options need another --output."
        ) from error
    except (BrokenDataError, UnreadableRunError) as error:
        if devices.is_alone():
            raise _RefusedError(str(error)) from error
        # Where one process fails the others wait for it, and so must not be waited for.
        print(f"zosam, process {config.process_id}: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    except InterruptedRunError as interruption:
        console.print(f"{interruption}; the same command goes on from there ({folder.path})")
        # As shells report a process that its signal has ended.
        sys.exit(128 + interruption.signal)


def _bench(config: BenchConfig, console: Console) -> None:
    try:
        if config.output is not None and config.output.is_dir():
            raise ValueError(f"output={str(config.output)!r} is a folder: name a file.")
        devices.keep_compiled(None)
        devices.compute_exactly(config.precision)
        problem = BenchProblem(config)
        optimizers.check(problem.config, config.optimizers)
        sparse.check(problem)
    except _REFUSED as error:
        raise _RefusedError(str(error)) from error
    with contextlib.closing(problem.feed):
        bench(config, problem, console)


def _sweep(config: SweepConfig, console: Console) -> None:
    is_whole = _refusing(lambda: sweep(config, console))
    if not is_whole and not config.dry_run:
        sys.exit(1)


def _report(config: ReportConfig, console: Console) -> None:
    folder = _refusing(
        lambda: report(config.runs, config.output, title=config.title, target=config.target)
    )
    console.print(f"report.html, report.md and runs.csv are in {folder}", markup=False)


def _refusing(command: Callable[[], T]) -> T:
    """Runs a command whose refusals are sentences about its options."""
    try:
        return command()
    except _REFUSED as error:
        raise _RefusedError(str(error)) from error


def _checked_problem(config: ProblemConfig, names: Collection[str]) -> Problem:
    """What is trained; nothing has been computed yet that a wrong option could spoil."""
    optimizers.check(config, names)
    devices.keep_compiled(config.compilation_cache)
    devices.compute_exactly(config.precision)
    problem = Problem(config)
    sparse.check(problem)
    return problem


def _compare(config: CompareConfig, console: Console) -> None:
    try:
        folder = RunFolder(config.output, "compare")
        problem = _checked_problem(config, config.optimizers)
    except _REFUSED as error:
        raise _RefusedError(str(error)) from error
    folder.write_json("config.json", config)
    try:
        with contextlib.closing(problem.feed):
            compare(config, problem, folder, console)
    except BrokenDataError as error:
        raise _RefusedError(str(error)) from error


if __name__ == "__main__":
    main()
