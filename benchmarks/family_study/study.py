"""The work: each problem and method by one process at a time, one row for each finished run."""

import argparse
import collections
import contextlib
import fcntl
import itertools
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from benchmarks.family_study.methods import METHODS, Method
from benchmarks.family_study.problems import PROBLEMS
from benchmarks.family_study.training import Trainer, load, step_time

Row = dict[str, Any]

TUNING_SEEDS = range(100, 200)


def work(options: argparse.Namespace) -> None:
    """Goes through problems and methods, past those that another process is at work on."""
    for problem in options.problems:
        data = load(PROBLEMS[problem], options.data)
        reference = Trainer(PROBLEMS[problem], METHODS["sgd"], data)
        for method in options.methods:
            with locked(options.results / problem / f"{method}.jsonl") as file:
                if file is not None:
                    _Work(options, problem, method, reference, file).go()


class _Work:
    """The runs of one problem and method that its file does not have yet."""

    def __init__(
        self,
        options: argparse.Namespace,
        problem: str,
        method: str,
        reference: Trainer,
        file: TextIO,
    ) -> None:
        self._options, self._name, self._file = options, f"{problem} {method}", file
        self._rows: list[Row] = [json.loads(line) for line in file]
        self._method = METHODS[method]
        self._reference = reference
        self._trainer = (
            reference
            if self._method is reference.method
            else Trainer(reference.problem, self._method, reference.data)
        )

    def go(self) -> None:
        """Tunes, trains at the tuned and at the default radius, takes the time of a step."""
        method, options = self._method, self._options
        if len(method.grid) > 1:
            self._run("validation", method.grid, TUNING_SEEDS[: options.tuning_seeds])
        if options.only_tune:
            return
        chosen = best_rho(self._rows, method)
        radii = (chosen, method.default) if method.tests_default else (chosen,)
        self._run("test", radii, range(options.seeds))
        if not any(row["kind"] == "time" for row in self._rows):
            self._record(kind="time", ratio=step_time(self._trainer, self._reference))

    def _run(self, split: str, radii: Iterable[float], seeds: Sequence[int]) -> None:
        done = {(row["rho"], row["seed"]) for row in self._rows if row["kind"] == split}
        for rho, seed in itertools.product(dict.fromkeys(radii), seeds):
            if (rho, seed) not in done:
                result = self._trainer.run(rho, seed, split)
                self._record(kind=split, rho=rho, seed=seed, **result)

    def _record(self, **row: Any) -> None:
        self._rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        print(time.strftime("%H:%M:%S"), self._name, json.dumps(row), flush=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[TextIO | None]:
    """The file, open to read from the start and to append; None if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        file.seek(0)
        yield file


def best_rho(rows: list[Row], method: Method) -> float:
    """The radius of the best mean validation accuracy; the gentler of two that tie."""
    found: dict[float, list[float]] = collections.defaultdict(list)
    for row in rows:
        if row["kind"] == "validation":
            found[row["rho"]].append(row["accuracy"])
    tried = [rho for rho in method.grid if rho in found]
    return max(tried, key=lambda rho: statistics.fmean(found[rho]), default=method.default)
