"""A finished or interrupted run, opened again from its folder to be looked at."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from flax import nnx

from zosam_jax.errors import check_one_of
from zosam_jax.training import build, devices
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.config import ProblemConfig, TrainConfig
from zosam_jax.training.problem import Problem
from zosam_jax.training.progress import Progress
from zosam_jax.training.run_folder import (
    CONFIG,
    SUMMARY,
    SWEEP,
    TUNING_RUNS,
    VERSIONS,
    RunFolder,
    UnreadableRunError,
)
from zosam_jax.training.trainer import Run


class SavedRun:
    """A run folder with its problem, and the run at one of its checkpoints.

    Attributes:
      folder: the run folder.
      config: its options.
      run: the run, at its start until `restore` is called.
    """

    def __init__(self, folder: RunFolder, config: TrainConfig, problem: Problem) -> None:
        """Initialises the run anew; see `open_run`."""
        self.folder, self.config = folder, config
        self.run = Run(problem, config.optimizer, build.rho_of(config), config.seed)
        self._checkpoints = Checkpoints(folder.path, keep=1, seconds=0.0, read_only=True)

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
        """Puts the run where a checkpoint left it, the newest one by default.

        Raises:
          FileNotFoundError: if there is none.
          UnreadableRunError: if it is damaged.
        """
        state, progress = self._checkpoints.restore(self.run.state, number)
        self.run.resume(state, progress, [])
        return progress

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops the background threads."""
        self._checkpoints.__exit__(*exception)
        self.run.problem.feed.close()


def open_run(
    path: Path, *, data_dir: Path | None = None, problem: Problem | None = None
) -> SavedRun:
    """Opens a run folder, on the devices there are now.

    Args:
      path: the run folder.
      data_dir: where the data set's files are, if not where the run found them.
      problem: of another run on the same data and model, to be shared.

    Raises:
      FileNotFoundError: if `path` holds no run.
      UnreadableRunError: if its config.json cannot be read.
    """
    config = read_config(path)
    circumstances: dict[str, Any] = {"mesh": None, "data_dir": data_dir or config.data_dir}
    config = dataclasses.replace(config, **circumstances)
    if problem is None:
        devices.compute_exactly(config.precision)
        problem = Problem(config)
        build.check_budget(problem)
    return SavedRun(RunFolder(path, "train", may_hold_results=True), config, problem)


def open_runs(paths: Iterable[Path], *, data_dir: Path | None = None) -> Iterator[SavedRun]:
    """Opens runs one after another, and closes each again.

    Neighbours that differ in nothing that a problem is made of share it: its data, and what has
    been compiled for it.
    """
    problem: Problem | None = None
    options: ProblemConfig | None = None
    for path in paths:
        following = read_config(path).problem
        shared = problem if following == options else None
        with open_run(path, data_dir=data_dir, problem=shared) as saved:
            problem, options = saved.run.problem, following
            yield saved


def run_folders(path: Path) -> list[Path]:
    """A run folder, or all that a folder holds at any depth, in order.

    Raises:
      FileNotFoundError: if there is none.
    """
    found = sorted(
        file.parent for file in path.rglob(CONFIG) if counts(file, path) and _is_of_run(file)
    )
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


def counts(file: Path, path: Path) -> bool:
    """Whether a file is of a run in its own right: those of a sweep's tuning are not."""
    above = [path / folder for folder in file.relative_to(path).parents][:-1]
    return not any(f.name == TUNING_RUNS and (f.parent / SWEEP).is_dir() for f in above)


def _is_of_run(file: Path) -> bool:
    """Another command's config.json names no optimizer."""
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UnreadableRunError(f"{file} is damaged: {error}") from error
    return isinstance(content, dict) and "optimizer" in content


def read_config(path: Path) -> TrainConfig:
    """The options in a run folder's config.json, None where they are the defaults."""
    file = path / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no run folder: it holds no {CONFIG}.")
    try:
        values = json.loads(file.read_text())
        values.pop(VERSIONS, None)
        return build.canonical(TrainConfig(**typed(values)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnreadableRunError(
            f"{file} cannot be read as the options of a run: {error}"
        ) from error


def typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options out of JSON or TOML, which know neither paths nor tuples, as `TrainConfig` has them.

    Raises:
      TypeError: for a name that is no option.
    """
    kinds = typing.get_type_hints(TrainConfig)
    for name in values:
        if name not in kinds:
            raise TypeError(f"{name} is no option of zosam train.")
    return {name: _typed(name, kinds[name], value) for name, value in values.items()}


def _typed(name: str, kind: Any, value: Any) -> Any:
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    kinds = typing.get_args(kind) if is_union else (kind,)
    if value is None and types.NoneType in kinds:
        return None
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    if isinstance(value, list):
        return tuple(value)
    choices = [
        c for k in kinds if typing.get_origin(k) is typing.Literal for c in typing.get_args(k)
    ]
    if choices:
        check_one_of(name, value, tuple(choices))
    elif not any(_is_of(k, value) for k in kinds):
        raise TypeError(f"{name}={value!r} must be of the type {kind}.")
    return value


def _is_of(kind: Any, value: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else typing.get_origin(kind) or kind)
