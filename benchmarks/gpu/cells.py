"""What the parts have in common: cells of work, the time there is, and rows that are kept at once.

A cell is what one process does: it has a name, the names of the rows that it is to leave, and an
estimate of its minutes. Rows are lines of JSON in one file, each written and flushed by itself; a
cell whose rows are all there has been done.
"""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROWS = "rows.jsonl"


class CutOffError(Exception):
    """The time is over; says how far the work came, which goes on from there."""


class Rows:
    """The rows in a folder."""

    def __init__(self, folder: Path) -> None:
        """Drops the end of a last line that was not written whole."""
        self._path = folder / ROWS
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            text = self._path.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]
            if whole != text:
                self._path.write_bytes(whole)

    def all(self) -> list[dict[str, Any]]:
        """In the order in which they were written."""
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text().splitlines()]

    def of(self, cell: str) -> list[dict[str, Any]]:
        return [row for row in self.all() if row["cell"] == cell]

    def add(self, row: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Budget:
    """Minutes, counted from when it is made."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + 60 * minutes

    @property
    def seconds(self) -> float:
        """What is left; never less than 0."""
        return max(0.0, self._end - self._clock())


class Work(NamedTuple):
    """What a cell's work is given.

    Attributes:
      cell: the cell.
      rows: where rows go.
      budget: the time that there is.
      data_dir: of Fashion-MNIST's files; None where it was not given.
      output: the folder of everything that is written.
      tiny: whether it is to be small, to see that it works; its figures mean nothing.
    """

    cell: "Cell"
    rows: Rows
    budget: Budget
    data_dir: Path | None
    output: Path
    tiny: bool

    @property
    def missing(self) -> list[str]:
        """The names of the rows that are still to be made."""
        there = {row["row"] for row in self.rows.of(self.cell.name)}
        return [name for name in self.cell.rows if name not in there]

    def add(self, row: str, **figures: Any) -> None:
        """Keeps a row, with what it was measured on; figures may give another precision or seed."""
        found = {"part": self.cell.part, "cell": self.cell.name, "row": row, "tiny": self.tiny}
        self.rows.add({**found, "precision": None, "seed": 0, **machine(), **figures})

    @contextlib.contextmanager
    def attempting(self, row: str, **figures: Any) -> Iterator[None]:
        """What fails within becomes a row that says why, and the rest goes on."""
        try:
            yield
        except CutOffError:
            raise
        except Exception as error:  # out of memory, or anything that a compiler says
            self.add(row, error=sentence(error), **figures)


class Cell(NamedTuple):
    """Work that one process does.

    Attributes:
      part: the number of its part.
      name: its own.
      rows: the names of the rows that it leaves.
      minutes: what it takes on one large GPU, a guess: it has not been run on one.
      run: the work.
      goes_on: whether it stops by itself when the time is over, and goes on from there next time.
    """

    part: int
    name: str
    rows: Sequence[str]
    minutes: float
    run: Callable[[Work], None]
    goes_on: bool = False


def sentence(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def machine() -> dict[str, Any]:
    """What the figures of this process were measured on. Takes the devices, if nothing has yet."""
    import jax  # noqa: PLC0415 (the process that plans has no need of it)
    from jax.extend.backend import get_backend  # noqa: PLC0415

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        # On a GPU it names the CUDA version that jaxlib was built for.
        "backend": get_backend().platform_version.strip(),
        "driver": _driver() if device.platform == "gpu" else None,
        "jax": jax.__version__,
        "processor": platform.machine(),
    }


def _driver() -> str | None:
    """NVIDIA's, which JAX does not know; None where its own program is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, check=False)
    return next(iter(told.stdout.split()), None)
