"""The folders that commands leave: the names of all their files, and how they are written.

Each file is complete whenever it exists, also after a power failure: metrics grow by whole lines,
the others are moved into place once written. Of several processes only the first one writes. What
they hold is checked whenever they are read (`contents`).
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import zosam_jax
from zosam_jax.training import build, contents, devices
from zosam_jax.training.config import CIRCUMSTANCES, TrainConfig
from zosam_jax.training.progress import EpochRecord

# Of a run.
CONFIG = "config.json"
DATA = "data.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
MASKS = "masks.txt"
CURVES = "curves.png"
CHECKPOINTS = "checkpoints"
DAMAGED = "damaged"  # checkpoints that were set aside
ROUNDS = "rounds"
TENSORBOARD = "tensorboard"
LOCK = ".lock"  # while it is trained; of a sweep's runs too, beside the next two
# What analyze and evaluate add to it.
ANALYSIS = "analysis.json"
ANALYSIS_PICTURE = "analysis.png"
FEATURES = "features.png"
ROBUSTNESS = "robustness.json"
# Of sweep and compare.
TUNING_RUNS = "tune"
TUNING = "tuning.json"
COMPARISON = "compare.json"
# Of an export: a folder in a run's, or any other.
EXPORT = "export"
EXPORT_RECORD = "export.json"
MODEL_CARD = "README.md"
# Of a report.
REPORT_PAGE = "report.html"
REPORT_MARKDOWN = "report.md"
REPORT_TABLE = "runs.csv"
# Of a sweep: a folder beside the run folders, with files for each of them.
SWEEP = ".sweep"
FAILED = ".failed.json"
LOG = ".log"

_PARTIAL = ".partial"
_PATTERN = frozenset("*?[")

# What config.json has beside the options.
VERSIONS = "versions"
_VERSIONED = ("jax", "jaxlib", "optax", "flax", "numpy")


class UnwritableError(OSError):
    """Results cannot be written; says where, and why.

    Attributes:
      exit_status: what a command ends with then: the same one may succeed later.
    """

    exit_status = 1


class UnreadableRunError(ValueError):
    """A run cannot be taken up, since something of it is missing or damaged; says what."""


class RunFolder:
    """A folder for one command's results.

    Attributes:
      path: where it is.
    """

    def __init__(self, path: Path | None, command: str, *, may_hold_results: bool = False) -> None:
        """Checks that results can go there; nothing is created before the first write.

        Args:
          path: the folder; by default runs/COMMAND-DATE-TIME below the working directory.
          command: train or compare.
          may_hold_results: whether it may be in use already.

        Raises:
          FileExistsError: if it holds results already; nothing is overwritten.
          UnwritableError: if it is to be new and cannot be made.
        """
        if path is None:
            now = datetime.datetime.now()
            path = Path("runs") / f"{command}-{now:%Y%m%d-%H%M%S-%f}"
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"output={str(path)!r} is a file: choose a folder.")
        if not may_hold_results and path.is_dir() and any(map(_is_result, path.iterdir())):
            raise FileExistsError(
                f"output={str(path)!r} is not empty, and nothing is overwritten: choose another "
                "--output or move it away."
            )
        if not path.is_dir():
            check_writable(path)
        self.path = path

    @property
    def is_complete(self) -> bool:
        """Whether its run has ended: the summary is written last.

        Raises:
          UnreadableRunError: if there is one that is damaged.
        """
        return self.summary is not None

    @property
    def summary(self) -> dict[str, Any] | None:
        """What summary.json holds, NaN where it has null; None if there is none.

        Raises:
          UnreadableRunError: if it is damaged.
        """
        file = self.path / SUMMARY
        return _numbers(read_json(file, contents.Summary)) if os.path.lexists(file) else None

    def write_json(self, name: str, content: Any) -> None:
        """Writes a whole JSON file, numbers that are not finite as null."""
        self.write_text(name, as_json(content) + "\n")

    def write_options(self, config: TrainConfig) -> None:
        """Writes config.json: the options as they take effect, and the versions of libraries."""
        options = dataclasses.asdict(build.resolved(config))
        self.write_json(CONFIG, {**options, VERSIONS: versions()})

    @property
    def versions(self) -> dict[str, str]:
        """The versions in config.json; none if there is no such file yet."""
        if not os.path.lexists(self.path / CONFIG):
            return {}
        found: dict[str, str] = read_json(self.path / CONFIG, contents.Config)[VERSIONS]
        return found

    def write_text(self, name: str, content: str) -> None:
        """Writes a whole text file."""
        if devices.is_first():
            with replacing(self.path / name) as partial:
                partial.write_text(content, "utf-8", newline="\n")

    def append_metrics(self, record: EpochRecord) -> None:
        """Adds one line to metrics.jsonl."""
        if not devices.is_first():
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / METRICS).open("a") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.path / METRICS, error) from error

    @property
    def records(self) -> list[EpochRecord]:
        """The records of metrics.jsonl; none if there is no such file.

        Raises:
          UnreadableRunError: as `read_metrics`.
        """
        file = self.path / METRICS
        return read_metrics(file) if os.path.lexists(file) else []

    @property
    def all_records(self) -> list[EpochRecord]:
        """The records of metrics.jsonl; of a run that has ended all that there were.

        Raises:
          UnreadableRunError: as `read_metrics`; or if there are fewer or more.
        """
        records, summary = self.records, self.summary
        last_step = records[-1].step if records else 0
        if summary is not None and last_step != summary["steps"]:
            raise UnreadableRunError(
                f"{self.path / METRICS} is damaged: it ends at step {last_step}; or {SUMMARY} is, "
                f"where the run ends at {summary['steps']}."
            )
        return records

    def write_metrics(self, records: Iterable[EpochRecord]) -> None:
        """Writes metrics.jsonl anew."""
        self.write_text(METRICS, "".join(map(_line, records)))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to be written in the place of another, which it takes once it is on the disk.

    Raises:
      UnwritableError: if it cannot be written; the other file is as it was.
    """
    partial = path.with_name(f"{path.name}{_PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _to_disk(partial)
        partial.replace(path)
        with contextlib.suppress(OSError):  # not every file system knows this of folders
            _to_disk(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise unwritable(path, error) from error


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_json(content: Any) -> str:
    """JSON over several lines, numbers that are not finite as null."""
    return json.dumps(_plain(content), indent=2, allow_nan=False)


def read_json(path: Path, kind: Any) -> Any:
    """What a JSON file holds, which is of a type of `contents`.

    Raises:
      FileNotFoundError: if it is missing.
      UnreadableRunError: if it cannot be read or holds anything else, naming the field.
    """
    return _parsed(path, _text(path), kind)


def read_metrics(path: Path) -> list[EpochRecord]:
    """The records of metrics.jsonl; an unfinished last line, of a killed process, is dropped.

    Raises:
      FileNotFoundError, UnreadableRunError: as `read_json`, naming the line.
    """
    *lines, last = _text(path).split("\n")
    start = f'{{"{EpochRecord._fields[0]}": '
    is_cut = last[: len(start)] == start[: len(last)] and not last.endswith("}")
    lines += [] if is_cut else [last]
    return [
        EpochRecord(**_numbers(_parsed(path, line, EpochRecord, f"line {number}: ")))
        for number, line in enumerate(lines, start=1)
    ]


def _text(path: Path) -> str:
    if os.path.lexists(path) and not path.is_file():
        raise UnreadableRunError(f"{path} is damaged: it is no file.")
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableRunError(f"{path} cannot be read: {error}.") from error


def _parsed(path: Path, text: str, kind: Any, place: str = "") -> Any:
    try:
        return contents.parse(text, kind)
    except ValueError as error:
        raise UnreadableRunError(f"{path} is damaged: {place}{error}") from error


def versions() -> dict[str, str]:
    """Library → its version here, of those that a run's numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in _VERSIONED}
    return {**found, zosam_jax.__name__: zosam_jax.__version__}


def check_writable(path: Path) -> None:
    """Raises UnwritableError unless files can be made in a folder, which may be still to be made.

    For commands that compute for long before they write.
    """
    existing = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not existing.is_dir():
        raise UnwritableError(f"{path} cannot be written: {existing} is a file, not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UnwritableError(
            f"{path} cannot be written: {existing} is read-only, for this user at least."
        )


def unwritable(path: Path, error: OSError) -> UnwritableError:
    """The error that says so of a file."""
    return UnwritableError(f"{path} cannot be written: {error.strerror or error}.")


def for_training(config: TrainConfig) -> RunFolder:
    """The folder of a run, new or to be taken up again; nothing is created yet.

    Args:
      config: its options.

    Raises:
      UnwritableError: if it cannot be written.
      FileExistsError: if it holds anything else, or is not to be resumed.
      ValueError: if it holds a run with other options, naming the first one that differs; or has a
        name that checkpoints cannot be written to.
      UnreadableRunError: if its config.json is damaged.
    """
    path = config.output
    is_run = config.resume and path is not None and os.path.lexists(path / CONFIG)
    folder = RunFolder(path, "train", may_hold_results=is_run or not devices.is_first())
    whole = str(folder.path.absolute())
    if found := sorted(_PATTERN & set(whole)):
        raise ValueError(
            f"output={whole!r} has {found[0]!r} in it, which Orbax takes for part of a pattern: it "
            "would write checkpoints that cannot be read. Choose another folder."
        )
    if is_run:
        check_writable(folder.path)
        before = read_json(folder.path / CONFIG, contents.Config)
        _check_same(before, build.resolved(config), folder.path)
    return folder


def _check_same(before: Mapping[str, Any], config: TrainConfig, path: Path) -> None:
    for field in dataclasses.fields(config):
        now = _plain(getattr(config, field.name))
        then = before.get(field.name, _plain(field.default))
        if field.name not in CIRCUMSTANCES and now != then:
            raise ValueError(
                f"{field.name}={now!r} contradicts the run in {path}, which has "
                f"{field.name}={then!r}: resume it with its own options, or choose "
                "another --output."
            )


def _is_result(path: Path) -> bool:
    """Whether a file is more than what a killed run left half written, or a lock."""
    return path.suffix != _PARTIAL and path.name != LOCK


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_plain`, for numbers by name."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def _line(record: EpochRecord) -> str:
    return json.dumps(_plain(record._asdict())) + "\n"


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
