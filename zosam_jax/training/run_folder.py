"""The folder that a run leaves: config.json, metrics.jsonl, summary.json, masks.txt, curves.png.

Each file is complete whenever it exists: metrics grow by whole flushed lines, the others are
moved into place once written.
"""

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zosam_jax.training.trainer import EpochRecord


class RunFolder:
    """A new folder for one command's results."""

    def __init__(self, path: Path | None, command: str) -> None:
        """Creates the folder; by default runs/COMMAND-DATE-TIME below the working directory.

        Raises:
          FileExistsError: if it holds results already; nothing is overwritten.
        """
        if path is None:
            now = datetime.datetime.now()
            path = Path("runs") / f"{command}-{now:%Y%m%d-%H%M%S-%f}"
        if path.is_dir() and any(path.iterdir()):
            raise FileExistsError(
                f"output={str(path)!r} is not empty, and nothing is overwritten: choose another "
                "--output or move it away."
            )
        path.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write_json(self, name: str, content: Any) -> None:
        """Writes a whole JSON file, numbers that are not finite as null."""
        self.write_text(name, json.dumps(_plain(content), indent=2) + "\n")

    def write_text(self, name: str, content: str) -> None:
        """Writes a whole text file."""
        partial = self.path / f"{name}.partial"
        partial.write_text(content)
        partial.replace(self.path / name)

    def append_metrics(self, record: EpochRecord) -> None:
        """Adds one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(_plain(record._asdict())) + "\n")

    def draw_curves(self, records: Sequence[EpochRecord], title: str) -> None:
        """Draws loss and accuracy over the epochs to curves.png."""
        # Here, since matplotlib takes a second to import and is needed once, at the end.
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        epochs = [r.epoch for r in records]
        left.plot(epochs, [r.train_loss for r in records], label="train, at θ+ε")
        left.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
        right.plot(epochs, [100 * r.train_accuracy for r in records], label="train, at θ+ε")
        right.plot(epochs, [100 * r.test_accuracy for r in records], label="test")
        right.set(xlabel="epoch", ylabel="accuracy (%)")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(frameon=False)
        figure.suptitle(title)
        figure.savefig(self.path / "curves.png", dpi=150)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
