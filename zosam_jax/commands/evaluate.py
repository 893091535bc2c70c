"""`zosam evaluate`: how much of its accuracy a trained network keeps on corrupted images."""

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from zosam_jax.commands.options import OpeningConfig
from zosam_jax.commands.refusal import refusing
from zosam_jax.commands.steps import Steps
from zosam_jax.data import CORRUPTIONS, Dataset, Split, cifar10_c, corrupt, corruptions
from zosam_jax.data import dataset as datasets
from zosam_jax.errors import check_count, check_number
from zosam_jax.training import devices, run_folder
from zosam_jax.training.config import ProblemConfig, TrainConfig, is_own
from zosam_jax.training.contents import Robustness
from zosam_jax.training.problem import Network, Problem
from zosam_jax.training.run_folder import RunFolder, UnreadableRunError
from zosam_jax.training.saved_run import SavedRun, Step, complete_runs, opener, read_config
from zosam_jax.training.tasks import load_whole

# (corruption, severity) → the test images under it.
Copies: TypeAlias = Callable[[str, int], Split]

_RUNS_A_TABLE = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(OpeningConfig):
    """Measure trained networks on corrupted test images; print a table."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, and folders that hold run folders (a sweep's). Each run gets a robustness.json,
    which replaces an older one."""

    cifar10_c: Path | None = None
    """Folder of CIFAR-10-C's files, for runs on cifar10. Default: corrupt the data set's own test
    images as ImageNet-C does, which is harsher."""

    only: tuple[str, ...] = CORRUPTIONS
    """Corruptions to measure."""

    severities: tuple[int, ...] = corruptions.SEVERITIES
    """Severities to measure, from 1 to 5."""

    images: int | None = None
    """Use only the first so many test images, the clean ones too. Default: all."""

    seed: int = 0
    """Seed of the corruptions' random numbers."""

    checkpoint: Literal["newest", "best"] = "newest"
    """Which checkpoint of a run to measure."""

    def __post_init__(self) -> None:
        """Checks what the types cannot say, and puts corruptions and severities in order."""
        for name in ("runs", "only", "severities"):
            if not getattr(self, name):
                raise ValueError(f"{name}=() is empty: name at least one.")
        for corruption in self.only:
            for severity in self.severities:
                corruptions.check_corruption(corruption, severity)
        if self.images is not None:
            check_count("images", self.images)
        check_number("seed", self.seed, above=0.0, inclusive=True)
        object.__setattr__(self, "only", tuple(c for c in CORRUPTIONS if c in self.only))
        object.__setattr__(self, "severities", tuple(sorted(set(self.severities))))


class _Subject(NamedTuple):
    """A network to be measured; `checkpoint` is the step after which it was saved."""

    folder: RunFolder
    problem: Problem
    network: Network
    checkpoint: int


def run(config: EvaluateConfig, console: Console) -> None:
    """`evaluate`, with compiled programs kept on the disk."""
    devices.keep_compiled(None)
    with refusing():
        evaluate(config, console)


def evaluate(config: EvaluateConfig, console: Console) -> list[Robustness]:
    """Measures every run, writes each a robustness.json, and prints a table of all.

    Runs on the same test images are measured together, so that these are corrupted once. Nothing is
    written for a run before its last number is known.
    """
    paths = complete_runs(config.runs)
    left_out: dict[Path, str] = {}
    if config.cifar10_c is None:
        corruptions.library_version()
    for path in paths:
        with _leaving_out(path, left_out):
            _check(config, path, read_config(path))
    say = functools.partial(console.print, markup=False)
    open_next = opener(data_dir=config.data_dir, code=config.code, say=say)
    step: Step = "best" if config.checkpoint == "best" else "last"
    groups: dict[tuple[object, ...], list[_Subject]] = {}
    for path in paths:
        if path not in left_out:
            with _leaving_out(path, left_out), open_next(path, step) as saved:
                subject = _subject(saved)
                groups.setdefault(_test_images(saved.config), []).append(subject)
    measured: dict[Path, Robustness] = {}
    with Steps(console) as steps:
        for group in groups.values():
            found = _measure(config, group, steps)
            for subject, robustness in zip(group, found, strict=True):
                subject.folder.write_json(run_folder.ROBUSTNESS, robustness._asdict())
                measured[subject.folder.path] = robustness
    for start in range(0, len(measured), _RUNS_A_TABLE):
        console.print(_table(dict(list(measured.items())[start : start + _RUNS_A_TABLE])))
    if left_out:
        raise ValueError("\n".join(f"left out: {path}: {why}" for path, why in left_out.items()))
    return [measured[path] for path in paths]


@contextlib.contextmanager
def _leaving_out(path: Path, left_out: dict[Path, str]) -> Iterator[None]:
    """Notes that a run is damaged or lacks a checkpoint, in the place of an error."""
    try:
        yield
    except (UnreadableRunError, FileNotFoundError) as error:
        left_out[path] = str(error)


def _check(config: EvaluateConfig, path: Path, options: TrainConfig) -> None:
    """Raises for what the options and a run's own options rule out, before anything is loaded."""
    if options.task != "image":
        raise ValueError(f"{path} was trained on texts (task={options.task!r}): images are needed.")
    if options.stream:
        raise ValueError(
            f"{path} was trained with stream=True, and only images in memory can be corrupted."
        )
    if is_own(options.dataset):
        raise ValueError(
            f"{path} was trained on {options.dataset}, and only data sets by name or in files can "
            "be corrupted."
        )
    if config.cifar10_c is not None and options.dataset != "cifar10":
        raise ValueError(
            f"cifar10_c={str(config.cifar10_c)!r} is for runs on cifar10; {path} was trained "
            f"on {options.dataset}."
        )


def _subject(saved: SavedRun) -> _Subject:
    """The network at the checkpoint asked for."""
    path = saved.folder.path
    run_folder.check_writable(path)
    steps = saved.run.progress.total_steps
    return _Subject(saved.folder, saved.run.problem, saved.run.network, steps)


def _measure(
    config: EvaluateConfig, subjects: Sequence[_Subject], steps: Steps
) -> list[Robustness]:
    """All networks on all corrupted copies of the test images they share, one copy at a time."""
    dataset = load_whole(subjects[0].problem.config)
    clean = _first(dataset.test, config.images)
    copies, source = _copies(config, dataset, clean)
    accuracies: list[dict[str, list[float]]] = [
        {corruption: [] for corruption in config.only} for _ in subjects
    ]
    cells = steps.each("measuring under", _cells(config), lambda cell: f"{cell[0]} {cell[1]}")
    for corruption, severity in cells:
        copy = copies(corruption, severity)
        for subject, own in zip(subjects, accuracies, strict=True):
            own[corruption].append(_accuracy(subject, copy))
    found = []
    for subject, own in zip(subjects, accuracies, strict=True):
        on_clean = _accuracy(subject, clean)
        mean = statistics.fmean(accuracy for column in own.values() for accuracy in column)
        place = (source, len(clean), subject.checkpoint)
        found.append(Robustness(*place, on_clean, mean, on_clean - mean, config.severities, own))
    return found


def _copies(config: EvaluateConfig, dataset: Dataset, clean: Split) -> tuple[Copies, str]:
    """The corrupted copies of the clean images, and where they come from."""
    folder = config.cifar10_c
    if folder is not None:
        return lambda *cell: _same_images(cifar10_c(folder, *cell), clean, folder), "CIFAR-10-C"
    white = int(max(dataset.train.images.max(), dataset.test.images.max()))

    def made(corruption: str, severity: int) -> Split:
        return corrupt(clean, corruption, severity, seed=config.seed, white=white)

    return made, corruptions.library_version()


def _same_images(split: Split, clean: Split, folder: Path) -> Split:
    first = split.take(np.arange(min(len(split), len(clean))))
    if not np.array_equal(first.labels, clean.labels):
        raise ValueError(
            f"cifar10_c={str(folder)!r} holds other images than the test split: their labels "
            "differ."
        )
    return first


def _accuracy(subject: _Subject, split: Split) -> float:
    shrunk = datasets.shrink_split(split, subject.problem.config.shrink)
    return subject.problem.accuracy_on(subject.network, shrunk)


def _first(split: Split, count: int | None) -> Split:
    if count is None:
        return split
    if count > len(split):
        raise ValueError(f"images={count} is more than the {len(split)} test images there are.")
    return split.take(np.arange(count))


def _cells(config: EvaluateConfig) -> list[tuple[str, int]]:
    return [(corruption, severity) for corruption in config.only for severity in config.severities]


def _test_images(config: ProblemConfig) -> tuple[object, ...]:
    """Which test images a run has, at full size."""
    return config.dataset, config.data_dir, config.label_column, config.image_size


def _table(measured: dict[Path, Robustness]) -> Table:
    """One column for each run; means over severities, in percent."""
    first = next(iter(measured.values()))
    severities = ", ".join(map(str, first.severities))
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"accuracy (%) under {first.source}, means over severities {severities}",
    )
    table.add_column("corruption", no_wrap=True)
    for path in measured:
        table.add_column(path.name, justify="right", min_width=6, overflow="fold")
    for corruption in first.corruptions:
        means = [statistics.fmean(r.corruptions[corruption]) for r in measured.values()]
        table.add_row(corruption, *map(_percent, means))
    table.add_section()
    for heading, field in (("mean", "mean_accuracy"), ("clean", "clean_accuracy"), ("Δ", "delta")):
        table.add_row(heading, *(_percent(getattr(r, field)) for r in measured.values()))
    table.add_row("test images", *(str(r.images) for r in measured.values()))
    return table


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
