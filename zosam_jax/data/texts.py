"""Texts by split, with or without labels: what Python brings along, files, folders, the hub."""

import ast
import hashlib
import itertools
import json
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from zosam_jax.data import files

_T = TypeVar("_T")
# A text, the other one of a pair, a label as it was written.
Labelled: TypeAlias = tuple[str, str | None, Any]

# What a file or a folder of a split may be called.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "test": "test",
}
_SUFFIXES = (".txt", ".jsonl")
# Of texts that come in no splits, what is held out for each.
_HELD_OUT = 0.1
_SPLIT_SEED = 0
_FEW = 10

# Packages of every Python's standard library that have more than a hundred docstrings.
_PACKAGES = (
    *("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest"),
    "xml",
)
_LEAST_LETTERS = 30


class Row(NamedTuple):
    """A text, or a pair of them.

    Attributes:
      text: the first.
      second: the other one; None without.
      label: the number of a class, or a score; None without.
    """

    text: str
    second: str | None = None
    label: float | None = None


class Texts(NamedTuple):
    """Texts by split.

    Attributes:
      name: what messages call them.
      splits: "train" and "test", and "validation" if there is one → texts.
      class_names: what labels are called; None where they are scores, or there are none.
    """

    name: str
    splits: Mapping[str, Sequence[Row]]
    class_names: tuple[str, ...] | None = None


def topics() -> Texts:
    """The language reference that Python's own help shows: some 80 texts, 0.5 MB.

    About a tenth of the letters are for testing and as many for validation, in whole topics. The
    text is another one in each version of Python.
    """
    from pydoc_data.topics import topics as found  # noqa: PLC0415 (0.7 MB)

    # By a hash, so that a topic mostly stays in its split when others come or go.
    ordered = sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest())
    distinct = dict.fromkeys(found[name] for name in ordered)  # some have several names
    most = _HELD_OUT * sum(map(len, distinct))
    splits: dict[str, list[Row]] = {"test": [], "validation": [], "train": []}
    for row in map(Row, distinct):
        taken = (s for s in splits if s == "train" or _letters([*splits[s], row]) <= most)
        splits[next(taken)].append(row)
    return Texts("python-topics", splits)


def _letters(rows: Sequence[Row]) -> int:
    return sum(len(row.text) for row in rows)


def docstrings() -> Texts:
    """Docstrings of packages of the standard library, whose files are parsed, not imported.

    The label is the package. A text that stands in several packages is in none, one that stands
    several times in one is there once.
    """
    root = Path(sysconfig.get_path("stdlib"))
    packages: dict[str, set[str]] = {}
    written: dict[str, str] = {}
    for name in _PACKAGES:
        for text in _docstrings(root / name):
            words = " ".join(text.lower().split())
            packages.setdefault(words, set()).add(name)
            written.setdefault(words, text)
    rows = [
        Row(written[words], label=_PACKAGES.index(next(iter(names))))
        for words, names in sorted(packages.items())
        if len(names) == 1
    ]
    if missing := set(_PACKAGES) - {_PACKAGES[int(row.label or 0)] for row in rows}:
        raise ValueError(
            f"dataset='python-docstrings': this Python has no sources of {', '.join(missing)} in "
            f"{root}."
        )
    return Texts("python-docstrings", _shared_out(rows), _PACKAGES)


def _docstrings(package: Path) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for file in sorted(package.rglob("*.py")):
        if {"test", "tests", "_vendor"} & set(file.parts):
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text and len(text) >= _LEAST_LETTERS:
                yield text


def _shared_out(items: Sequence[_T]) -> dict[str, Sequence[_T]]:
    """Random, always the same eight, one and one tenths for training, validation and testing."""
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(items))
    held_out = max(1, round(_HELD_OUT * len(items)))
    parts = np.split(order, [len(items) - 2 * held_out, len(items) - held_out])
    names = ("train", "validation", "test")
    return {s: [items[i] for i in part] for s, part in zip(names, parts, strict=True)}


EMBEDDED: dict[str, Callable[[], Texts]] = {
    "python-topics": topics,
    "python-docstrings": docstrings,
}


def of_file(path: Path, label: str | None = None) -> Texts:
    """A file's texts, shared out: of a .jsonl file one a line, of a .txt file its parts.

    Raises:
      ValueError: for a file that is empty or cannot be read, or too short to be shared out.
    """
    return _unsplit(str(path), _below(path, path, label))


def of_folder(folder: Path, label: str | None = None) -> Texts:
    """Those of a folder's .txt and .jsonl files.

    Where there are train and test, as files or folders, they are the splits, and so is validation;
    a split's folder holds texts in SPLIT/CLASS/FILE.txt, or without classes. Else all files at any
    depth are texts that are shared out.

    Raises:
      FileNotFoundError: if there are none.
      ValueError: for a file that is empty or cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir={str(folder)!r} is not a folder.")
    named: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.stem in _SPLITS and (path.is_dir() or path.suffix in _SUFFIXES):
            named.setdefault(_SPLITS[path.stem], path)
    if "train" not in named:
        return _unsplit(str(folder), _below(folder, folder, label))
    return with_test(str(folder), {s: list(_below(p, p, label)) for s, p in named.items()})


def with_test(
    name: str, found: Mapping[str, Sequence[Labelled]], classes: Sequence[str] = ()
) -> Texts:
    """Texts of splits; that for validation is for testing, where nothing else is.

    Args:
      name: what messages call them.
      found: split → (text, the other one of a pair, label) for each.
      classes: what labels are called, in order; by default as they are sorted.

    Raises:
      FileNotFoundError: without texts to train on, or to test on.
      ValueError: for labels that are missing or outside the classes.
    """
    found = dict(found)
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    if missing := {"train", "test"} - found.keys():
        raise FileNotFoundError(f"{name} has no {' and no '.join(sorted(missing))} split.")
    rows, names = _numbered(name, itertools.chain.from_iterable(found.values()), classes)
    left = iter(rows)
    splits = {s: list(itertools.islice(left, len(some))) for s, some in found.items()}
    return Texts(name, splits, names)


def _unsplit(name: str, found: Iterable[Labelled]) -> Texts:
    """Texts that come in no splits: shared out whole, or cut where they are few."""
    rows, names = _numbered(name, found)
    if len(rows) >= _FEW:
        return Texts(name, _shared_out(rows), names)
    if any(row.label is not None for row in rows):
        raise ValueError(f"{name} has {len(rows)} texts: {_FEW} are needed, at least.")
    parts = [_cut(name, row.text) for row in rows]
    columns = zip(*parts, strict=True)
    names_of = ("train", "validation", "test")
    return Texts(
        name, {s: list(map(Row, texts)) for s, texts in zip(names_of, columns, strict=True)}
    )


def _cut(name: str, text: str) -> list[str]:
    """A text's first eight, next and last tenths, at ends of lines."""
    lines = text.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines]) / len(text)
    cuts = np.searchsorted(ends, [1 - 2 * _HELD_OUT, 1 - _HELD_OUT], side="right")
    parts = [lines[i:j] for i, j in itertools.pairwise((0, *map(int, cuts), len(lines)))]
    if not all(parts):
        raise ValueError(
            f"{name} has a text of {len(lines)} lines, one of them more than a tenth of it, which "
            "cannot be cut for training, validation and testing: pass a folder with train.txt and "
            "test.txt."
        )
    return ["".join(part) for part in parts]


def _below(path: Path, top: Path, label: str | None) -> Iterator[Labelled]:
    """The texts of a file, or of a folder's files; their class is the folder below the top."""
    if not path.is_dir():
        yield from _lines(path, label) if path.suffix == ".jsonl" else [(read(path), None, None)]
        return
    found = [p for p in sorted(path.rglob("*")) if p.suffix in _SUFFIXES and p.is_file()]
    if not found:
        raise FileNotFoundError(f"{path} holds no texts ({', '.join(_SUFFIXES)}).")
    for file in found:
        parts = file.relative_to(top).parts
        if file.suffix == ".jsonl":
            yield from _lines(file, label)
        else:
            yield read(file), None, parts[0] if len(parts) > 1 else None


def read(path: Path) -> str:
    """The text of a file.

    Raises:
      ValueError: if it is empty or no UTF-8, saying where.
    """
    if problem := files.fault(path):
        raise ValueError(f"{path} {problem}.")
    content = files.read(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8: byte {error.start}, in line {line}, is "
            f"0x{content[error.start]:02x}. Convert it first, as by iconv -f latin1 -t utf-8."
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty.")
    return text


def _lines(path: Path, label: str | None) -> Iterator[Labelled]:
    """The texts of JSON lines: objects with "text", and perhaps "second" and "label"."""
    for number, line in enumerate(read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is no JSON: {error}.") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ValueError(f'{path}: line {number} is no object with a "text".')
        second, name = row.get("second"), row.get(label or "label")
        if label is not None and name is None:
            raise ValueError(f"{path}: line {number} has no {label!r}, the column of labels.")
        if not isinstance(second, str | None) or isinstance(name, list | dict):
            raise ValueError(f'{path}: line {number} has a "second" or a label of another type.')
        yield row["text"], second, name


def _numbered(
    name: str, found: Iterable[Labelled], classes: Sequence[str] = ()
) -> tuple[list[Row], tuple[str, ...] | None]:
    """Rows whose labels are numbers: names in their order, integers and scores as they are.

    Raises:
      ValueError: if some have none, or numbers of classes are below 0 or leave out most classes.
    """
    rows = list(found)
    labels = {label for *_, label in rows}
    if labels == {None}:
        return [Row(text, second) for text, second, _ in rows], None
    if None in labels:
        raise ValueError(f"{name}: some of the texts have a label and some have none.")
    numbers: dict[Any, float] = {label: label for label in labels}
    names: tuple[str, ...] | None = None
    if classes or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in labels):
        names = tuple(classes or sorted(map(str, labels)))
        if unknown := sorted(set(map(str, labels)) - set(names)):
            raise ValueError(
                f"{name} has the label {unknown[0]!r}, where {', '.join(names)} are expected."
            )
        numbers = {label: names.index(str(label)) for label in labels}
    elif all(isinstance(label, int) for label in labels):
        if min(labels) < 0 or max(labels) >= len(rows):
            raise ValueError(
                f"{name} has labels from {min(labels)} to {max(labels)} for {len(rows)} texts: "
                "classes are numbered from 0, or have names."
            )
        names = tuple(map(str, range(max(labels) + 1)))
    return [Row(text, second, numbers[label]) for text, second, label in rows], names
