"""Measures on a GPU what can be measured in a given time, the most valuable first.

    python benchmarks/gpu/run.py --minutes 30 --data-dir DIR --output DIR
    python benchmarks/gpu/run.py --list --output DIR

README.md beside this file says what is measured. The same command again goes on: rows that are
there are not made anew. Each cell of work is a process of its own, so that none inherits another's
memory, and one that is killed costs its own rows alone.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import device_tests
import long_training
import sparse_products
import throughput
from cells import Budget, Cell, CutOffError, Rows, Work, sentence

from zosam_jax.data import load

_NUMBERS = [1, 2, 3, 4]
CUT_OFF = 75  # the exit status of a cell that has come to the end of its time
_LEAST_SECONDS = 60  # what a cell that goes on later is begun for
_GRACE_SECONDS = 300
_PARTS = (device_tests, throughput, long_training, sparse_products)


def all_cells(tiny: bool) -> list[Cell]:
    """In the order of their value."""
    return [cell for part in _PARTS for cell in part.cells(tiny)]


class Schedule:
    """Runs cells one after another while there is time.

    Attributes:
      said: what has become of each cell, in words.
    """

    def __init__(self, rows: Rows, budget: Budget, options: argparse.Namespace) -> None:
        self._rows, self._budget, self._options = rows, budget, options
        self.said: dict[str, str] = {}

    def run(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            self.said[cell.name] = found = self._outcome(cell)
            print(f"part {cell.part} | {cell.name} | {found}", flush=True)

    def _outcome(self, cell: Cell) -> str:
        work = self._work(cell)
        if not work.missing:
            return "there already"
        left, tiny = self._budget.seconds, self._options.tiny
        needed = _LEAST_SECONDS if cell.goes_on else 60 * cell.minutes
        if left < needed and not (tiny and left):
            return f"skipped: takes about {needed / 60:g} minutes, and {left / 60:.1f} are left"
        try:
            child = self._child(cell, left)
        except subprocess.TimeoutExpired:
            return "cut off at the end of the time; what it has no row of is made next time"
        if child.returncode == CUT_OFF:
            return last_line(child.stderr)
        self._note_failure(work, child)
        failed = [row for row in self._rows.of(cell.name) if "error" in row]
        return f"{len(failed)} of {len(cell.rows)} rows are errors" if failed else "done"

    def _work(self, cell: Cell) -> Work:
        options = self._options
        return Work(cell, self._rows, self._budget, options.data_dir, options.output, options.tiny)

    def _child(self, cell: Cell, seconds: float) -> "subprocess.CompletedProcess[str]":
        options = self._options
        command = [sys.executable, __file__, "--cell", cell.name, "--minutes", str(seconds / 60)]
        command += ["--output", str(options.output)]
        command += ["--data-dir", str(options.data_dir)] if options.data_dir else []
        command += ["--tiny"] if options.tiny else []
        # One that goes on later ends by itself, after what it is in the middle of.
        limit = seconds + _GRACE_SECONDS if cell.goes_on else seconds
        return subprocess.run(
            command, stderr=subprocess.PIPE, text=True, timeout=limit, check=False
        )

    def _note_failure(self, work: Work, child: "subprocess.CompletedProcess[str]") -> None:
        """A process that has ended without its rows leaves rows that say so."""
        why = last_line(child.stderr) or "nothing was written"
        for row in work.missing:
            error = f"the process ended with status {child.returncode}: {why}"
            found = {"part": work.cell.part, "cell": work.cell.name, "row": row}
            self._rows.add({**found, "tiny": work.tiny, "error": error})


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else ""


def run_cell(work: Work) -> int:
    """In its own process."""
    try:
        work.cell.run(work)
    except CutOffError as error:
        print(error, file=sys.stderr)
        return CUT_OFF
    except Exception as error:
        print(sentence(error), file=sys.stderr)
        return 1
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="the time that there is")
    parser.add_argument("--data-dir", type=Path, help="folder of Fashion-MNIST's four IDX files")
    parser.add_argument("--output", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--parts", type=int, nargs="+", choices=_NUMBERS, default=_NUMBERS)
    parser.add_argument("--tiny", action="store_true", help="small, to see that it works")
    parser.add_argument("--list", action="store_true", help="say what is there, and run nothing")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows, budget = Rows(options.output), Budget(options.minutes)
    chosen = [cell for cell in all_cells(options.tiny) if cell.part in options.parts]
    if options.cell is not None:
        (cell,) = (cell for cell in chosen if cell.name == options.cell)
        work = Work(cell, rows, budget, options.data_dir, options.output, options.tiny)
        sys.exit(run_cell(work))
    if options.list:
        for cell in chosen:
            there = len({row["row"] for row in rows.of(cell.name)})
            print(
                f"part {cell.part} | {cell.name} | about {cell.minutes:g} minutes | "
                f"{there} of {len(cell.rows)} rows"
            )
        return
    if 3 in options.parts:  # before its cells leave rows that say so
        try:
            load("fashion-mnist", options.data_dir)
        except (OSError, ValueError) as error:
            parser.error(f"part 3 trains on Fashion-MNIST, or pass --parts without 3: {error}")
    Schedule(rows, budget, options).run(chosen)


if __name__ == "__main__":
    main()
