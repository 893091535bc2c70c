"""Runs of `zosam train`, each a process of its own with its share of the machine.

A crash takes one run with it. OUTPUT/NAME is a run's folder; OUTPUT/.sweep holds its log, its lock,
and how it failed, if it did.
"""

import contextlib
import dataclasses
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from zosam_jax.commands.cells import Cell
from zosam_jax.training import contents, lock, run_folder
from zosam_jax.training.run_folder import RunFolder

# What `zosam train` ends with where the same command would end so again: options that it refuses,
# and losses that are not finite.
_REFUSED = 2
_DIVERGED = "is not finite"


class Runs(NamedTuple):
    """Where and how runs are made.

    Attributes:
      output: folder of the run folders.
      console: where their ends are reported.
      workers: runs at a time; None for as many as the machine has room for.
      retry: whether to make those again that diverged or were refused.
    """

    output: Path
    console: Console
    workers: int | None = None
    retry: bool = False

    def make(self, cells: Sequence[Cell]) -> list[Cell]:
        """Makes all runs that are not finished; returns those that are not even now.

        SIGINT, SIGTERM and SIGHUP end the runs, which leave checkpoints to go on from.

        Raises:
          ValueError: if the folder has a run of the same name with other options.
          UnwritableError: as `prepare`.
        """
        self.prepare()
        todo = [cell for cell in cells if not self.is_settled(cell)]
        shares = _shares(self.workers) if todo else []
        self.console.print(
            f"{len(cells)} runs, {len(cells) - len(todo)} of them settled"
            + (f"; {len(shares)} at a time, in {self.output}" if todo else f", in {self.output}")
        )
        if todo:
            work = _Work(self, shares, total=len(todo))
            with work.interruptible(), ThreadPoolExecutor(len(shares)) as pool:
                list(pool.map(work.run, todo))
        return [cell for cell in cells if not self.is_finished(cell)]

    def prepare(self) -> None:
        """Makes the folder, if need be.

        Raises:
          UnwritableError: if it cannot be written.
        """
        run_folder.check_writable(self.output)
        (self.output / run_folder.SWEEP).mkdir(parents=True, exist_ok=True)

    def is_finished(self, cell: Cell) -> bool:
        """Whether its run has ended; one with a damaged file has not: `zosam train` says why.

        Raises:
          ValueError: if it was one with other options.
        """
        folder = self.folder(cell)
        try:
            if not folder.is_complete:
                return False
            run_folder.for_training(dataclasses.replace(cell.config, output=folder.path))
        except run_folder.UnreadableRunError:
            return False
        return True

    def folder(self, cell: Cell) -> RunFolder:
        """Its run folder."""
        return RunFolder(self.output / cell.name, "train", may_hold_results=True)

    def summary(self, cell: Cell) -> dict[str, Any]:
        """The numbers of a finished run; NaN where they are not known."""
        return self.folder(cell).summary or {}

    def failure(self, cell: Cell) -> str | None:
        """What a run that is not finished was refused for; None if it would go on."""
        file = self.failure_file(cell)
        if not os.path.lexists(file) or self.is_finished(cell):
            return None
        try:
            told = run_folder.read_json(file, contents.Failure)
        except run_folder.UnreadableRunError:  # nobody knows: try again
            return None
        same = told["options"] == json.loads(json.dumps(cell.options))
        return str(told["reason"]) if same else None

    def diverged(self, cell: Cell) -> bool:
        """Whether its loss was not finite: a result too."""
        return _DIVERGED in (self.failure(cell) or "")

    def state(self, cell: Cell) -> str:
        """In words, how far a run that is not finished is."""
        with self.claimed(cell) as claim:
            return str(self.log_file(cell)) if claim is not None else "under way in another sweep"

    def is_settled(self, cell: Cell) -> bool:
        """Whether it is finished, or would fail again."""
        return self.is_finished(cell) or (not self.retry and self.failure(cell) is not None)

    def failure_file(self, cell: Cell) -> Path:
        """Where the reason of a failure is kept."""
        return self._about(cell, run_folder.FAILED)

    def log_file(self, cell: Cell) -> Path:
        """Where the output of a run goes."""
        return self._about(cell, run_folder.LOG)

    def last_line(self, cell: Cell) -> str:
        """The last thing that a run said."""
        lines = self.log_file(cell).read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no output")

    def _about(self, cell: Cell, ending: str) -> Path:
        return self.output / run_folder.SWEEP / f"{cell.name}{ending}"

    @contextlib.contextmanager
    def claimed(self, cell: Cell) -> Iterator[int | None]:
        """A file descriptor that claims the cell as long as any process has it; None if one has."""
        with self._about(cell, run_folder.LOCK).open("w") as file:
            try:
                lock.acquire(file.fileno())
            except BlockingIOError:
                yield None
            else:
                yield file.fileno()


class _Work:
    """The runs that are under way."""

    def __init__(self, runs: Runs, shares: Sequence["_Share"], total: int) -> None:
        self._runs, self._total = runs, total
        self._free: queue.SimpleQueue[_Share] = queue.SimpleQueue()
        for share in shares:
            self._free.put(share)
        self._children: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopping, self._done = threading.Lock(), threading.Event(), 0

    def run(self, cell: Cell) -> None:
        """Runs one cell on a free share of the machine, unless another sweep has it."""
        share = self._free.get()
        try:
            with self._runs.claimed(cell) as claim:
                if claim is None or self._stopping.is_set():
                    return
                if not self._runs.is_settled(cell):
                    self._report(cell, self._train(cell, share, claim))
        except OSError as error:  # a full disk, say: the other runs may still go well
            self._runs.console.print(f"{cell.name}: {error}", markup=False)
        finally:
            self._free.put(share)

    def _train(self, cell: Cell, share: "_Share", claim: int) -> int:
        failure = self._runs.failure_file(cell)
        failure.unlink(missing_ok=True)
        status = self._launch(cell, share, claim)
        if status == _REFUSED:
            told = {"status": status, "reason": self._runs.last_line(cell), "options": cell.options}
            with run_folder.replacing(failure) as partial:
                partial.write_text(run_folder.as_json(told) + "\n")
        return status

    def _launch(self, cell: Cell, share: "_Share", claim: int) -> int:
        """Its exit status, once it has ended."""
        command = [sys.executable, "-m", "zosam_jax", *cell.command(self._runs.output)]
        with self._runs.log_file(cell).open("ab") as log, self._lock:
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
        if status == 1:
            self._check_room(cell)
        return status

    def _check_room(self, cell: Cell) -> None:
        """Raises UnwritableError if a run's log takes nothing more, not even why it has failed."""
        path = self._runs.log_file(cell)
        try:
            with path.open("ab") as log:
                log.write(b"\n")
        except OSError as error:
            raise run_folder.unwritable(path, error) from error

    def _report(self, cell: Cell, status: int) -> None:
        with self._lock:
            self._done += 1
            place = f"{self._done}/{self._total} {cell.name}: "
            if self._runs.is_finished(cell):
                split = "validation" if cell.config.validation_fraction else "test"
                summary = self._runs.summary(cell)
                accuracy = summary[f"{split}_accuracy"]
                outcome = f"{split} accuracy {accuracy:.2%} in {summary['seconds']:.0f} s"
            else:
                outcome = f"status {status}, {self._runs.last_line(cell)}"
            self._runs.console.print(place + outcome, markup=False)

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


@functools.cache
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
