"""The tasks of GLUE by name, from their TSV files or from the hub.

Reference: Wang et al., GLUE, https://arxiv.org/abs/1804.07461
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from zosam_jax.data import files
from zosam_jax.data.texts import Row, Texts, with_test

HUB = "nyu-mll/glue"
# What of a file may be lines with too few columns: QQP's has some.
_TORN = 0.01


class _Task(NamedTuple):
    """One of them.

    Attributes:
      texts: the columns of its texts in the TSV files.
      label: that of the label; a number counts columns in files without a heading.
      on_hub: the columns of its texts on the hub, where the label is "label".
      classes: what labels are called, in the order of the hub; none of scores.
      written: how the files write them, where that is otherwise.
      test: what the file, and the split on the hub, of its labelled test texts are called.
    """

    texts: Sequence[str | int]
    label: str | int
    on_hub: Sequence[str]
    classes: tuple[str, ...]
    written: Sequence[str] = ()
    test: tuple[str, str] = ("dev", "validation")


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_DIGITS = ("0", "1")
TASKS = {
    "cola": _Task((3,), 1, ("sentence",), ("unacceptable", "acceptable"), _DIGITS),
    "sst2": _Task(("sentence",), "label", ("sentence",), ("negative", "positive"), _DIGITS),
    "mrpc": _Task(
        ("#1 String", "#2 String"), "Quality", _PAIR, ("not_equivalent", "equivalent"), _DIGITS
    ),
    "qqp": _Task(
        *(("question1", "question2"), "is_duplicate", ("question1", "question2")),
        *(("not_duplicate", "duplicate"), _DIGITS),
    ),
    "stsb": _Task(_PAIR, "score", _PAIR, ()),
    "mnli": _Task(
        *(_PAIR, "gold_label", ("premise", "hypothesis")),
        *(("entailment", "neutral", "contradiction"), ()),
        ("dev_matched", "validation_matched"),
    ),
    "qnli": _Task(("question", "sentence"), "label", ("question", "sentence"), _ENTAILMENT),
    "rte": _Task(_PAIR, "label", _PAIR, _ENTAILMENT),
}


def of_files(task: str, folder: Path) -> Texts:
    """A task from its train.tsv and dev.tsv, as GLUE hands them out; the latter is for testing.

    MNLI's is dev_matched.tsv. The files' own test texts have no labels.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: for a file that is not in the task's format.
    """
    about = TASKS[task]
    splits = {}
    for split, name in (("train", "train"), ("test", about.test[0])):
        path = files.find(folder / f"{name}.tsv", folder / task.upper() / f"{name}.tsv")
        if path is None:
            raise FileNotFoundError(f"{folder} holds no {name}.tsv of glue:{task}.")
        splits[split] = list(_rows(path, about))
    return Texts(f"glue:{task} in {folder}", splits, about.classes or None)


def from_hub(task: str) -> Texts:
    """A task from the hub; the split called validation, of MNLI validation_matched, is for testing.

    Raises:
      ValueError, FileNotFoundError, ConnectionError: as `hub.texts`.
      ModuleNotFoundError: if a library is missing, naming the extra that brings it.
    """
    from zosam_jax.data import hub  # noqa: PLC0415 (an extra)

    found = hub.texts(HUB, task, columns=TASKS[task].on_hub)
    # Test texts have no labels there.
    splits = {s: rows for s, rows in found.items() if s in ("train", "validation")}
    return with_test(f"glue:{task}", splits, TASKS[task].classes)


def _rows(path: Path, about: _Task) -> Iterator[Row]:
    try:
        lines = files.read(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}.") from error
    has_heading = isinstance(about.label, str)
    heading = lines[0].split("\t") if lines and has_heading else []
    wanted = [*about.texts, about.label]
    try:
        places = [heading.index(c) if isinstance(c, str) else c for c in wanted]
    except ValueError:
        raise ValueError(
            f"{path} lacks one of the columns {', '.join(map(str, wanted))}; its first line is "
            f"{lines[0] if lines else ''!r:.80}."
        ) from None
    torn = 0
    for number, line in enumerate(lines[has_heading:], start=1 + has_heading):
        # Nothing is quoted: a quotation mark is part of the text.
        columns = line.split("\t")
        if len(columns) <= max(places):
            torn += 1
            if torn > 1 + _TORN * len(lines):
                raise ValueError(f"{path}: line {number} has {len(columns)} columns.")
            continue
        *texts, label = (columns[place] for place in places)
        second = texts[1] if len(texts) > 1 else None
        yield Row(texts[0], second, _number(label, about, f"{path}: line {number}"))


def _number(label: str, about: _Task, place: str) -> float:
    """The class that a file's label stands for, or the score."""
    known = about.written or about.classes
    try:
        return known.index(label) if known else float(label)
    except ValueError:
        raise ValueError(
            f"{place} has the label {label!r}, where {', '.join(known) or 'a number'} is expected."
        ) from None
