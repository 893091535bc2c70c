"""`zosam sweep`: many runs of `zosam train`, from a file that says which.

Each cell of the grid is a process of its own with its share of the machine, so that a crash takes
one run with it. OUTPUT/NAME is its run folder; OUTPUT/.sweep holds its log, its lock, and how it
failed, if it did.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from rich.console import Console

from zosam_jax import recipes
from zosam_jax.errors import check_count
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.saved_run import typed

_TABLES = ("train", "grid", "case")
# What `zosam train` ends with where the same command would end so again: options that it refuses,
# and losses that are not finite.
_REFUSED = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Run a grid of trainings, side by side where the machine allows; again to go on with it."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """TOML file with the options of `zosam train` in tables: [train] for all runs, [grid] with a
    list for each option (all combinations are run), and any number of [[case]], sets of options
    that go together."""

    recipes: tuple[str, ...] = ()
    """Recipes to run, as another axis of the grid (`zosam recipes` lists them)."""

    seeds: int | None = None
    """Seeds 0, 1, … to run each cell from, as another axis of the grid."""

    output: Path = Path("runs/sweep")
    """Folder for the run folders. What is finished in it is not run again."""

    data_dir: Path | None = None
    """Folder of the data set's files, for all runs."""

    workers: int | None = None
    """Runs at a time. Default: one for each GPU, else one for each CPU core; 1 on a TPU."""

    retry: bool = False
    """Run those again that diverged or were refused."""

    dry_run: bool = False
    """Only print the commands."""

    def __post_init__(self) -> None:
        """Checks what the types cannot say."""
        for name in ("seeds", "workers"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.file is None and not self.recipes:
            raise ValueError("file=None: name a TOML file, or --recipes.")


class Cell(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its folder: what is its own among its options.
      options: of `zosam train`.
    """

    name: str
    options: Mapping[str, Any]

    def command(self, output: Path) -> list[str]:
        """The command that makes this run."""
        words = itertools.chain.from_iterable(itertools.starmap(_words, self.options.items()))
        return ["train", *words, "--output", str(output / self.name)]


def cells(config: SweepConfig) -> list[Cell]:
    """All runs of a sweep, in order; seeds vary slowest, so that a part of it is balanced too.

    Raises:
      ValueError: if the file is not as `SweepConfig.file` says, or an option is not as `zosam
        train` takes it.
      FileNotFoundError: if there is no such file.
    """
    tables = {} if config.file is None else _read(config.file)
    common, cases = dict(tables.get("train", {})), tables.get("case", [{}])
    if config.data_dir is not None:
        common["data_dir"] = str(config.data_dir)
    axes = dict(tables.get("grid", {}))
    if config.recipes:
        axes["recipe"] = list(config.recipes)
    if config.seeds is not None:
        axes["seed"] = list(range(config.seeds))
    ordered = sorted(axes, key=lambda name: name != "seed")
    found = []
    for values in itertools.product(*(axes[name] for name in ordered)):
        for case in cases:
            own = {**dict(zip(ordered, values, strict=True)), **case}
            named = sorted(own.items(), key=lambda item: item[0] == "seed")
            cell = Cell(",".join(f"{k}={v}" for k, v in named) or "run", {**common, **own})
            _check(cell)
            found.append(cell)
    names = [cell.name for cell in found]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"the sweep has {min(repeated)} twice: cases must differ.")
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is no TOML: {error}.") from error
    for name, table in tables.items():
        if name not in _TABLES or not isinstance(table, list if name == "case" else dict):
            raise ValueError(f"{file}: {name} must be one of [train], [grid] and [[case]].")
    for name, values in tables.get("grid", {}).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{file}: {name}={values!r} in [grid] must be a list of values.")
    return tables


def _check(cell: Cell) -> None:
    """Raises unless `zosam train` would take these options."""
    options = dict(cell.options)
    known = {field.name for field in dataclasses.fields(TrainConfig)} - {"output", "resume"}
    for name in options:
        if name not in known:
            raise ValueError(f"{cell.name}: {name} is no option of a sweep's runs.")
    try:
        if "recipe" in options:
            dataclasses.replace(recipes.get(options["recipe"]).config, **typed(options))
        else:
            TrainConfig(**typed(options))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{cell.name}: {error}") from error


def _words(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    values = value if isinstance(value, list) else [value]
    return [f"--{option}", *map(str, values)]


def sweep(config: SweepConfig, console: Console) -> bool:
    """Runs all cells that are not finished; returns whether all are now.

    SIGINT and SIGTERM are handed on to the runs, which leave checkpoints to go on from.
    """
    found = cells(config)
    if config.dry_run:
        for cell in found:
            console.print(shlex.join(["zosam", *cell.command(config.output)]), markup=False)
        return False
    todo = [cell for cell in found if not _is_settled(config, cell)]
    shares = _shares(config.workers)
    console.print(
        f"{len(found)} runs, {len(found) - len(todo)} of them settled; {len(shares)} at a time, "
        f"in {config.output}"
    )
    work = _Work(config, console, shares, total=len(todo))
    with work.interruptible(), ThreadPoolExecutor(len(shares)) as pool:
        list(pool.map(work.run, todo))
    failed = [cell.name for cell in found if not _is_finished(config, cell)]
    for name in failed:
        console.print(f"not finished: {name} ({_log(config.output, name)})", markup=False)
    return not failed


class _Work:
    """The runs of a sweep that are under way."""

    def __init__(
        self, config: SweepConfig, console: Console, shares: Sequence["_Share"], total: int
    ) -> None:
        self._config, self._console, self._total = config, console, total
        self._free: queue.SimpleQueue[_Share] = queue.SimpleQueue()
        for share in shares:
            self._free.put(share)
        self._children: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopping, self._done = threading.Lock(), False, 0

    def run(self, cell: Cell) -> None:
        """Runs one cell on a free share of the machine, unless another sweep has it."""
        share = self._free.get()
        try:
            with _claimed(self._config.output, cell.name) as mine:
                if mine and not self._stopping and not _is_settled(self._config, cell):
                    self._report(cell, self._train(cell, share))
        finally:
            self._free.put(share)

    def _train(self, cell: Cell, share: "_Share") -> int:
        command = [sys.executable, "-m", "zosam_jax", *cell.command(self._config.output)]
        failure = _failure(self._config.output, cell.name)
        failure.unlink(missing_ok=True)
        with _log(self._config.output, cell.name).open("ab") as log, self._lock:
            if self._stopping:
                return -signal.SIGTERM
            # In a group of its own: a terminal's Ctrl-C comes through us, once.
            child = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **share.environment},
                start_new_session=True,
            )
            self._children.add(child)
        if share.cores:
            with contextlib.suppress(ProcessLookupError):  # over already
                os.sched_setaffinity(child.pid, share.cores)
        status = child.wait()
        with self._lock:
            self._children.remove(child)
        if status == _REFUSED:
            failure.write_text(json.dumps({"status": status, "reason": self._last_line(cell)}))
        return status

    def _report(self, cell: Cell, status: int) -> None:
        with self._lock:
            self._done += 1
            place = f"{self._done}/{self._total} {cell.name}: "
            if status == 0:
                summary = json.loads((self._config.output / cell.name / "summary.json").read_text())
                outcome = f"{summary['test_accuracy']:.2%} in {summary['seconds']:.0f} s"
            else:
                outcome = f"status {status}, {self._last_line(cell)}"
            self._console.print(place + outcome, markup=False)

    def _last_line(self, cell: Cell) -> str:
        lines = _log(self._config.output, cell.name).read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no output")

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Hands SIGINT and SIGTERM on to the runs and starts no others."""

        def stop(number: int, frame: Any) -> None:
            del number, frame
            self._stopping = True
            for child in list(self._children):
                child.send_signal(signal.SIGTERM)

        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Share(NamedTuple):
    """What one run has of the machine: environment variables, and CPU cores (all, if empty)."""

    environment: Mapping[str, str]
    cores: frozenset[int]


def _shares(workers: int | None) -> list[_Share]:
    """The machine in as many shares as runs go side by side."""
    platform, devices = _accelerators()
    cores = sorted(os.sched_getaffinity(0))
    if platform == "cpu":
        count = min(workers or len(cores), len(cores))
        return [_Share({}, frozenset(cores[i::count])) for i in range(count)]
    if platform != "gpu":
        return [_Share({}, frozenset())] * (workers or 1)
    count = workers or devices
    memory = {} if count <= devices else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return [
        _Share({"CUDA_VISIBLE_DEVICES": str(i % devices), **memory}, frozenset())
        for i in range(count)
    ]


def _accelerators() -> tuple[str, int]:
    """The kind and number of devices, asked for in a process of its own, which lets go of them."""
    program = "import jax; print(jax.default_backend(), jax.local_device_count())"
    asked = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    platform, count = asked.stdout.split()[-2:]
    return platform, int(count)


def _is_finished(config: SweepConfig, cell: Cell) -> bool:
    return (config.output / cell.name / "summary.json").is_file()


def _is_settled(config: SweepConfig, cell: Cell) -> bool:
    """Whether it is finished, or would fail again."""
    failed = _failure(config.output, cell.name).is_file() and not config.retry
    return failed or _is_finished(config, cell)


def _failure(output: Path, name: str) -> Path:
    return _about(output) / f"{name}.failed.json"


def _log(output: Path, name: str) -> Path:
    return _about(output) / f"{name}.log"


def _about(output: Path) -> Path:
    folder = output / ".sweep"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _claimed(output: Path, name: str) -> Iterator[bool]:
    """Whether this process has the cell to itself; the claim ends with it, however it ends."""
    with (_about(output) / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
