"""`zosam predict`: labels images or texts with a finished run's network, or goes on with a text."""

import csv
import dataclasses
import functools
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zosam_jax.commands.options import OpeningConfig
from zosam_jax.commands.refusal import refusing
from zosam_jax.data import texts
from zosam_jax.errors import check_count, check_number
from zosam_jax.training import predicting, run_folder
from zosam_jax.training.saved_run import SavedRun, opener

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig(OpeningConfig):
    """Label images or texts by a finished run, or go on with texts; exit status 1 if some could not
    be read.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Images, and folders of images. They are scaled and cropped as the run's test images were. Of
    a run on texts, files of which each line is a text (of a pair, with a tab between)."""

    text: tuple[str, ...] = ()
    """Of a run on texts: what to classify, or to go on with."""

    tokens: int = 100
    """Language models: how many tokens to go on, at most."""

    temperature: float = 0.0
    """Language models: 0 takes the likeliest token each time, 1 draws as the network says."""

    seed: int = 0
    """Language models: seed of the draws."""

    json: bool = False
    """Print JSON: an object for each image, with all probabilities."""

    csv: bool = False
    """Print CSV: a row for each image, with all probabilities."""

    checkpoint: Literal["newest", "best"] = "newest"
    """Which checkpoint of the run to take."""

    top: int = 3
    """How many classes the table shows."""

    batch_size: int = 64
    """Images a pass."""

    def __post_init__(self) -> None:
        """Checks what the types cannot say."""
        if not self.images and not self.text:
            raise ValueError("images=() must name at least one image or folder, or text= a text.")
        if self.json and self.csv:
            raise ValueError("json=True does not go with csv=True: choose one.")
        for name in ("top", "batch_size", "tokens"):
            check_count(name, getattr(self, name))
        for name in ("temperature", "seed"):
            check_number(name, getattr(self, name), above=0.0, inclusive=True)


def run(config: PredictConfig, console: Console) -> None:
    """Prints what the network says of each image.

    Raises:
      SystemExit: with status 1 if an image could not be read; the others are labelled.
    """
    errors = Console(stderr=True, soft_wrap=True, emoji=False)
    open_run = opener(
        code=config.code,
        loads=False,
        say=lambda text: errors.print(text, markup=False),
    )
    with (
        refusing(),
        open_run(config.run, "best" if config.checkpoint == "best" else "last") as opened,
    ):
        if opened.config.task == "image":
            if config.text:
                raise ValueError(f"text={config.text!r}: {config.run} was trained on images.")
            rows = predictions(opened, list(_files(config.images)), config.batch_size)
        elif opened.config.task == "lm":
            rows = _continued(opened, _texts(config), config)
        else:
            rows = _classified(opened, _texts(config), config.batch_size)
    unread = [row for row in rows if "error" in row]
    for row in unread:
        errors.print(row["error"], style="red", markup=False, highlight=False)
    if config.json:
        _write(console, run_folder.as_json(rows))
    elif config.csv:
        _write(console, _csv([row for row in rows if row not in unread]))
    elif rows and "continuation" in rows[0]:
        for row in rows:
            console.print(Text(row["text"], style="bold") + Text(row["continuation"]))
    elif len(unread) < len(rows):
        console.print(_table([row for row in rows if row not in unread], config.top))
    if unread:
        sys.exit(1)


def predictions(opened: SavedRun, files: Sequence[Path], batch_size: int) -> list[dict[str, Any]]:
    """What the network says of image files, in order.

    Returns:
      For each {"image": its path} with "class", "probability" and "probabilities" by class; with
      "outputs" where the run's targets are no labels; or with "error" where it cannot be read.
    """
    rows: list[dict[str, Any]] = [{"image": str(file)} for file in files]
    for start in range(0, len(files), batch_size):
        readable, images = [], []
        for row, file in zip(rows[start:], files[start : start + batch_size], strict=False):
            try:
                images.append(predicting.inputs(file, opened.data, opened.config))
                readable.append(row)
            except ValueError as error:
                row["error"] = str(error)
        if images:
            outputs = opened.predict(np.concatenate(images), batch_size=batch_size)
            for row, output in zip(readable, outputs, strict=True):
                row.update(_described(output, opened))
    return rows


def _texts(config: PredictConfig) -> list[str]:
    """Those of the command line, then the lines of files that are not empty."""
    lines = [line for file in config.images for line in texts.read(file).splitlines()]
    return [*config.text, *filter(str.strip, lines)]


def _classified(opened: SavedRun, lines: Sequence[str], batch_size: int) -> list[dict[str, Any]]:
    """What the network says of texts, or of pairs with a tab between."""
    pairs = [tuple(line.split("\t", 1)) if "\t" in line else line for line in lines]
    outputs = opened.predict(pairs, batch_size=batch_size)
    found = zip(lines, outputs, strict=True)
    return [{"text": line, **_described(output, opened)} for line, output in found]


def _continued(
    opened: SavedRun, prompts: Sequence[str], config: PredictConfig
) -> list[dict[str, Any]]:
    generate = functools.partial(
        opened.generate, tokens=config.tokens, temperature=config.temperature, seed=config.seed
    )
    return [{"text": prompt, "continuation": generate(prompt)} for prompt in prompts]


def _described(output: Any, opened: SavedRun) -> dict[str, Any]:
    if opened.data.label_dtype != "int32":
        return {"outputs": output.tolist()}
    # A network may have more outputs than the data have classes.
    names = [*(opened.data.class_names or ())]
    names += map(str, range(len(names), len(output)))
    best = int(np.argmax(output))
    probabilities = dict(zip(names, map(float, output), strict=True))
    return {
        "class": names[best],
        "probability": float(output[best]),
        "probabilities": probabilities,
    }


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """The images among the paths, and in folders at any depth.

    Raises:
      FileNotFoundError: for a folder without any.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in _SUFFIXES]
        found = [p for p in found if not p.is_dir() and not p.name.startswith(".")]
        if not found:
            raise FileNotFoundError(f"{path} holds no images ({', '.join(_SUFFIXES)}).")
        yield from found


def _write(console: Console, text: str) -> None:
    console.file.write(f"{text}\n")  # as it is, for other programs


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """All of an image's numbers by name."""
    if "outputs" in row:
        return {str(i): value for i, value in enumerate(np.ravel(row["outputs"]).tolist())}
    found: dict[str, float] = row["probabilities"]
    return found


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=os.linesep)
    if rows and "continuation" in rows[0]:
        writer.writerow(["text", "continuation"])
        writer.writerows([row["text"], row["continuation"]] for row in rows)
        return text.getvalue().rstrip()
    name = _first_column(rows)
    writer.writerow([name, "class", *(_numbers(rows[0]) if rows else ())])
    for row in rows:
        writer.writerow([row[name], row.get("class", ""), *_numbers(row).values()])
    return text.getvalue().rstrip()


def _first_column(rows: Sequence[Mapping[str, Any]]) -> str:
    return "text" if rows and "text" in rows[0] else "image"


def _table(rows: Sequence[Mapping[str, Any]], top: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    name = _first_column(rows)
    table.add_column(name, overflow="fold")
    table.add_column("classes" if "class" in rows[0] else "outputs", overflow="fold")
    for row in rows:
        found = _numbers(row)
        if "class" in row:
            likely = sorted(found, key=lambda name: -found[name])[:top]
            told = ",  ".join(f"{name} {found[name]:.1%}" for name in likely)
        else:
            told = "  ".join(f"{value:.4g}" for value in found.values())
        table.add_row(Text(row[name]), Text(told))
    return table
