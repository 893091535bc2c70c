"""`zosam sweep`: many runs of `zosam train`, from a file that says which.

Each cell of the grid is a process of its own with its share of the machine, so that a crash takes
one run with it. OUTPUT/NAME is its run folder; OUTPUT/.sweep holds its log, its lock, and how it
failed, if it did.
"""

import contextlib
import dataclasses
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
from zosam_jax.commands.refusal import refusing
from zosam_jax.errors import check_count
from zosam_jax.training import run_folder
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.saved_run import typed

_TABLES = ("train", "grid", "case")
# What `zosam train` ends with where the same command would end so again: options that it refuses,
# and losses that are not finite.
_REFUSED = 2
_LONGEST_NAME = 240  # of a folder, with room for endings of files


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


class Cell(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its folder: what is its own among its options.
      options: of `zosam train`, as the file has them.
      config: what they come to.
    """

    name: str
    options: Mapping[str, Any]
    config: TrainConfig

    def command(self, output: Path) -> list[str]:
        """The arguments of `zosam` that make this run."""
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
            # Data sets may have a slash in their name.
            name = ",".join(f"{k}={v}" for k, v in named).replace("/", "-") or "run"
            options = {**common, **own}
            found.append(Cell(name, options, _configured(name, options)))
    names = [cell.name for cell in found]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"the sweep has {min(repeated)} twice: cases must differ.")
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"file={str(file)!r} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is no TOML: {error}.") from error
    for name, table in tables.items():
        rows = table if name == "case" and isinstance(table, list) and table else [table]
        if name not in _TABLES or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{file}: {name} must be one of [train], [grid] and [[case]].")
    for name, values in tables.get("grid", {}).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{file}: {name}={values!r} in [grid] must be a list of values.")
    return tables


def _configured(name: str, options: Mapping[str, Any]) -> TrainConfig:
    """What `zosam train` would make of these options.

    Raises:
      ValueError: if it would refuse them, or the name is too long for a folder.
    """
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"{name} is too long for a folder: put what all runs share in [train].")
    known = {field.name for field in dataclasses.fields(TrainConfig)} - {"output", "resume"}
    for option in options:
        if option not in known:
            raise ValueError(f"{name}: {option} is no option of a sweep's runs.")
    try:
        start = recipes.get(options["recipe"]).config if "recipe" in options else TrainConfig()
        return dataclasses.replace(start, **typed(options))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _words(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    values = value if isinstance(value, list) else [value]
    return [f"--{option}", *map(str, values)]


def run(config: SweepConfig, console: Console) -> None:
    """Runs the sweep; exit status 1 if some runs are not finished."""
    with refusing():
        is_whole = sweep(config, console)
    if not is_whole and not config.dry_run:
        sys.exit(1)


def sweep(config: SweepConfig, console: Console) -> bool:
    """Runs all cells that are not finished; returns whether all are now.

    SIGINT, SIGTERM and SIGHUP end the runs, which leave checkpoints to go on from.

    Raises:
      ValueError, FileNotFoundError: as `cells`; or if the folder has a run of the same name with
        other options.
      FileExistsError: if the output is a file.
    """
    found = cells(config)
    if config.dry_run:
        for cell in found:
            console.print(shlex.join(["zosam", *cell.command(config.output)]), markup=False)
        return False
    if config.output.is_file():
        raise FileExistsError(f"output={str(config.output)!r} is a file: choose a folder.")
    todo = [cell for cell in found if not _is_settled(config, cell)]
    shares = _shares(config.workers)
    console.print(
        f"{len(found)} runs, {len(found) - len(todo)} of them settled; {len(shares)} at a time, "
        f"in {config.output}"
    )
    work = _Work(config, console, shares, total=len(todo))
    with work.interruptible(), ThreadPoolExecutor(len(shares)) as pool:
        list(pool.map(work.run, todo))
    missing = [cell.name for cell in found if not _is_finished(config, cell)]
    for name in missing:
        where = (
            "under way in another sweep" if name in work.elsewhere else _log(config.output, name)
        )
        console.print(f"not finished: {name} ({where})", markup=False)
    return not missing


class _Work:
    """The runs of a sweep that are under way.

    Attributes:
      elsewhere: the names of those that another sweep has.
    """

    def __init__(
        self, config: SweepConfig, console: Console, shares: Sequence["_Share"], total: int
    ) -> None:
        self._config, self._console, self._total = config, console, total
        self._free: queue.SimpleQueue[_Share] = queue.SimpleQueue()
        for share in shares:
            self._free.put(share)
        self._children: set[subprocess.Popen[bytes]] = set()
        self.elsewhere: set[str] = set()
        self._lock, self._stopping, self._done = threading.Lock(), threading.Event(), 0

    def run(self, cell: Cell) -> None:
        """Runs one cell on a free share of the machine, unless another sweep has it."""
        share = self._free.get()
        try:
            with _claimed(self._config.output, cell.name) as claim:
                if claim is None:
                    self.elsewhere.add(cell.name)
                elif not self._stopping.is_set() and not _is_settled(self._config, cell):
                    self._report(cell, self._train(cell, share, claim))
        except OSError as error:  # a full disk, say: the other runs may still go well
            self._console.print(f"{cell.name}: {error}", markup=False)
        finally:
            self._free.put(share)

    def _train(self, cell: Cell, share: "_Share", claim: int) -> int:
        command = [sys.executable, "-m", "zosam_jax", *cell.command(self._config.output)]
        failure = _failure(self._config.output, cell.name)
        failure.unlink(missing_ok=True)
        with _log(self._config.output, cell.name).open("ab") as log, self._lock:
            if self._stopping.is_set():
                return -signal.SIGTERM
            # In a group of its own: a terminal's Ctrl-C comes through us, once.
            child = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **share.environment},
                start_new_session=True,
                # The claim lasts as long as the run, should we be killed before it.
                pass_fds=[claim],
            )
            self._children.add(child)
        if self._stopping.is_set():  # the signal came while the child was not yet among them
            child.terminate()
        _keep_to(child.pid, share.cores)
        status = child.wait()
        with self._lock:
            self._children.remove(child)
        if status == _REFUSED:
            told = {"status": status, "reason": self._last_line(cell), "options": cell.options}
            failure.write_text(json.dumps(told, indent=2) + "\n")
        return status

    def _report(self, cell: Cell, status: int) -> None:
        with self._lock:
            self._done += 1
            place = f"{self._done}/{self._total} {cell.name}: "
            if _is_finished(self._config, cell):
                summary = json.loads(
                    (self._config.output / cell.name / run_folder.SUMMARY).read_text()
                )
                outcome = f"{summary['test_accuracy']:.2%} in {summary['seconds']:.0f} s"
            else:
                outcome = f"status {status}, {self._last_line(cell)}"
            self._console.print(place + outcome, markup=False)

    def _last_line(self, cell: Cell) -> str:
        lines = _log(self._config.output, cell.name).read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no output")

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets SIGINT, SIGTERM and SIGHUP end the runs, and starts no others."""

        def stop(number: int, frame: Any) -> None:
            del number, frame
            self._stopping.set()
            for child in list(self._children):
                child.send_signal(signal.SIGTERM)

        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, stop) for number in signals}
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
    if platform == "cpu":
        cores = _cores()
        count = min(workers or len(cores), len(cores))
        return [_Share({}, frozenset(cores[i::count])) for i in range(count)]
    if platform != "gpu":
        return [_Share({}, frozenset())] * (workers or 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(devices)]
    count = workers or devices
    memory = {} if count <= devices else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return [
        _Share({"CUDA_VISIBLE_DEVICES": names[i % devices], **memory}, frozenset())
        for i in range(count)
    ]


def _cores() -> list[int]:
    """The cores that this process may use, where the system says so; else all."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _keep_to(process: int, cores: frozenset[int]) -> None:
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):  # over already
            os.sched_setaffinity(process, cores)


def _accelerators() -> tuple[str, int]:
    """The kind and number of devices, asked for in a process of its own, which lets go of them."""
    program = "import jax; print(jax.default_backend(), jax.local_device_count())"
    asked = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    if asked.returncode:
        raise OSError(f"jax finds no devices: {asked.stderr.strip()}")
    platform, count = asked.stdout.split()[-2:]
    return platform, int(count)


def _is_finished(config: SweepConfig, cell: Cell) -> bool:
    """Whether its run has ended.

    Raises:
      ValueError: if it was one with other options.
    """
    folder = config.output / cell.name
    finished = (folder / run_folder.SUMMARY).is_file()
    if finished:
        run_folder.for_training(dataclasses.replace(cell.config, output=folder))
    return finished


def _is_settled(config: SweepConfig, cell: Cell) -> bool:
    """Whether it is finished, or would fail again."""
    if _is_finished(config, cell):
        return True
    failure = _failure(config.output, cell.name)
    if config.retry or not failure.is_file():
        return False
    options: Mapping[str, Any] = json.loads(failure.read_text())["options"]
    return bool(options == json.loads(json.dumps(cell.options)))


def _failure(output: Path, name: str) -> Path:
    return _about(output) / f"{name}{run_folder.FAILED}"


def _log(output: Path, name: str) -> Path:
    return _about(output) / f"{name}{run_folder.LOG}"


def _about(output: Path) -> Path:
    folder = output / run_folder.SWEEP
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _claimed(output: Path, name: str) -> Iterator[int | None]:
    """A file descriptor that claims the cell as long as any process has it; None if one has."""
    try:
        import fcntl  # noqa: PLC0415 (Windows has none)
    except ModuleNotFoundError as error:
        raise OSError("zosam sweep needs a POSIX system: Linux, macOS or WSL.") from error
    with (_about(output) / f"{name}{run_folder.LOCK}").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()
