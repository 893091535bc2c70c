"""A finished or interrupted run, opened again from its folder to be looked at."""

import dataclasses
import json
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeAlias

from flax import nnx

from zosam_jax.training import build, contents, devices, run_folder
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.config import ProblemConfig, TrainConfig
from zosam_jax.training.problem import Problem
from zosam_jax.training.progress import Progress
from zosam_jax.training.run_folder import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    SUMMARY,
    SWEEP,
    TUNING_RUNS,
    VERSIONS,
    RunFolder,
    UnreadableRunError,
)
from zosam_jax.training.trainer import Run

Say: TypeAlias = Callable[[str], object]


class SavedRun:
    """A run folder with its problem, and the run at one of its checkpoints.

    Attributes:
      folder: the run folder.
      config: its options.
      run: the run, at its start until `restore` is called.
      say: is given a sentence where a damaged checkpoint is passed over.
    """

    def __init__(
        self, folder: RunFolder, config: TrainConfig, problem: Problem, say: Say = warnings.warn
    ) -> None:
        """Initialises the run anew; see `open_run`."""
        self.folder, self.config, self.say = folder, config, say
        self.run = Run(problem, config.optimizer, build.rho_of(config), config.seed)
        self._checkpoints = Checkpoints(folder.path, keep=1, seconds=0.0)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps after which checkpoints were kept, in order."""
        return self._checkpoints.numbers

    @property
    def best(self) -> int | None:
        """The best checkpoint's number; None if none is known."""
        return self._checkpoints.best

    @property
    def model(self) -> nnx.Module:
        """The network as it stands, in inference mode."""
        return self.run.problem.model(self.run.network)

    def restore(self, number: int | None = None) -> Progress:
        """Puts the run where a checkpoint left it, by default the newest one that is whole.

        Raises:
          FileNotFoundError: if there is none.
          UnreadableRunError: if it is damaged.
        """
        state = self.run.state
        if number is None:
            state, progress = self._checkpoints.restore_newest(state, self.say)
        else:
            state, progress = self._checkpoints.restore(state, number)
        self.run.resume(state, progress, [])
        return progress

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops the background threads."""
        self._checkpoints.__exit__(*exception)
        self.run.problem.feed.close()


def open_run(
    path: Path,
    *,
    data_dir: Path | None = None,
    problem: Problem | None = None,
    say: Say = warnings.warn,
) -> SavedRun:
    """Opens a run folder, on the devices there are now.

    Args:
      path: the run folder.
      data_dir: where the data set's files are, if not where the run found them.
      problem: of another run on the same data and model, to be shared.
      say: see `SavedRun`.

    Raises:
      FileNotFoundError: if `path` holds no run.
      UnreadableRunError: if a file of it is damaged.
    """
    config = read_config(path)
    folder = RunFolder(path, "train", may_hold_results=True)
    _ = folder.is_complete  # a damaged summary is said now
    circumstances: dict[str, Any] = {"mesh": None, "data_dir": data_dir or config.data_dir}
    config = dataclasses.replace(config, **circumstances)
    if problem is None:
        devices.compute_exactly(config.precision)
        problem = Problem(config)
        build.check_budget(problem)
    return SavedRun(folder, config, problem, say)


def opener(*, data_dir: Path | None = None, say: Say = warnings.warn) -> Callable[[Path], SavedRun]:
    """`open_run` for several runs in turn, where each is closed before the next is opened.

    Neighbours that differ in nothing that a problem is made of share it: its data, and what has
    been compiled for it.
    """
    problem: Problem | None = None
    options: ProblemConfig | None = None

    def open_next(path: Path) -> SavedRun:
        nonlocal problem, options
        following = read_config(path).problem
        shared = problem if following == options else None
        saved = open_run(path, data_dir=data_dir, problem=shared, say=say)
        problem, options = saved.run.problem, following
        return saved

    return open_next


def run_folders(path: Path) -> list[Path]:
    """A run folder, or all that a folder holds at any depth, in order.

    Raises:
      FileNotFoundError: if there is none.
    """
    # Of a run whose config.json is gone the metrics are left.
    folders = {file.parent for name in (CONFIG, METRICS) for file in path.rglob(name)}
    found = sorted(f for f in folders if counts(f, path) and _is_of_run(f))
    if not found:
        raise FileNotFoundError(
            f"{path} is neither a run folder (zosam train leaves config.json and summary.json "
            "there) nor a folder of run folders."
        )
    return found


def complete_runs(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Run folders as they are named, and in other folders the runs that have ended, each once.

    Raises:
      FileNotFoundError: for a path without a run, or without one that has ended.
    """
    found = []
    for path in paths:
        folders = run_folders(path)
        ended = [f for f in folders if f == path or (f / SUMMARY).is_file()]
        if not ended:
            raise FileNotFoundError(f"{path}: none of its {len(folders)} runs has ended.")
        found += ended
    return tuple(dict.fromkeys(found))


def counts(folder: Path, path: Path) -> bool:
    """Whether a run counts in its own right: those of a sweep's tuning do not."""
    above = [path / parent for parent in (folder / CONFIG).relative_to(path).parents][:-1]
    return not any(f.name == TUNING_RUNS and (f.parent / SWEEP).is_dir() for f in above)


def _is_of_run(folder: Path) -> bool:
    """Another command's config.json names no optimizer, and has nothing of a run beside it."""
    beside = [name for name in (METRICS, CHECKPOINTS, SUMMARY) if (folder / name).exists()]
    if not (folder / CONFIG).is_file() or len(beside) > 1:
        return len(beside) > 1
    try:
        content = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        return bool(beside)
    return isinstance(content, dict) and "optimizer" in content


def read_config(path: Path) -> TrainConfig:
    """The options in a run folder's config.json, None where they are the defaults.

    Raises:
      FileNotFoundError: if it is missing.
      UnreadableRunError: if it is damaged.
    """
    file = path / CONFIG
    try:
        values = run_folder.read_json(file, contents.Config)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is no run folder: it holds no {CONFIG}.") from None
    try:
        return build.canonical(TrainConfig(**typed(_without_versions(values))))
    except (ValueError, TypeError) as error:
        raise UnreadableRunError(f"{file} is damaged: {error}") from error


def _without_versions(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != VERSIONS}


def typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options out of JSON or TOML, which know neither paths nor tuples, as `TrainConfig` has them.

    Raises:
      ValueError: for a name that is no option, or a value of another type.
    """
    kinds = typing.get_type_hints(TrainConfig)
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"{name} is no option of zosam train.")
        contents.check(name, value, kinds[name])
    return {name: _typed(value, kinds[name]) for name, value in values.items()}


def _typed(value: Any, kind: Any) -> Any:
    if isinstance(value, str) and Path in typing.get_args(kind):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
