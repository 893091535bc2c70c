"""`zosam export`: a trained network as files that other programs run."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zosam_jax.commands.options import OpeningConfig
from zosam_jax.commands.refusal import refusing
from zosam_jax.errors import check_count
from zosam_jax.export import card
from zosam_jax.export.run import check_folder, export_run
from zosam_jax.export.verified import FILES, Verified
from zosam_jax.training import devices, run_folder
from zosam_jax.training.saved_run import opener

_TABLE_WIDTH = 96

FormatName: TypeAlias = Literal["stablehlo", "onnx", "safetensors"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(OpeningConfig):
    """Write a trained network for use without this library, and check every file against it."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run folder."""

    format: tuple[FormatName, ...] = ("stablehlo", "onnx", "safetensors")
    """Which files to write: stablehlo for jax, onnx for ONNX Runtime, safetensors for the arrays
    alone."""

    output: Path | None = None
    """Folder for them, export.json and README.md, which replace those of an earlier export.
    Default: export in the run folder."""

    layout: Literal["dense", "bitmask", "packed"] | None = None
    """Of safetensors: dense; bitmask, without zeros, in compressed-tensors' layout; or packed,
    smaller still. Default: bitmask for a sparse network, else dense."""

    int8: bool = False
    """Round the weights of onnx (and its activations) and safetensors to 8 bits."""

    logits: bool = False
    """End before the softmax."""

    raw: bool = False
    """Begin after the scaling of pixels: take float32 at mean 0 and standard deviation 1."""

    images: int | None = None
    """Check on the first so many test images. Default: all."""

    checkpoint: Literal["newest", "best"] = "newest"
    """Which checkpoint of the run to export."""

    def __post_init__(self) -> None:
        """Checks what the types cannot say."""
        if not self.format:
            raise ValueError(f"format=() is empty: name some of {', '.join(FILES)}.")
        if self.images is not None:
            check_count("images", self.images)
        if self.layout is not None and "safetensors" not in self.format:
            raise ValueError(
                f"layout={self.layout!r} has no effect without safetensors in format={self.format}."
            )


def run(config: ExportConfig, console: Console) -> None:
    """`export`, with compiled programs kept on the disk."""
    devices.keep_compiled(None)
    with refusing():
        export(config, console)


def export(config: ExportConfig, console: Console) -> dict[str, Verified]:
    """Writes and checks every file, then moves all into place, and prints a table.

    Networks that were trained in bfloat16 are exported in float32, as their parameters are.

    Raises:
      FileNotFoundError: if there is no run, or no such checkpoint.
      FileExistsError: if the folder holds anything but an export.
      ModuleNotFoundError: if a library is missing, naming the extra that brings it.
      ValueError: if a network cannot be converted, or a file does not compute what it computes;
        nothing is written then.
    """
    folder = config.output or config.run / run_folder.EXPORT
    check_folder(folder)
    open_next = opener(
        data_dir=config.data_dir, code=config.code, precision="float32", say=console.print
    )
    with open_next(config.run, "best" if config.checkpoint == "best" else "last") as saved:
        found = export_run(
            saved,
            folder,
            formats=config.format,
            layout=config.layout,
            int8=config.int8,
            logits=config.logits,
            raw=config.raw,
            images=config.images,
        )
    console.width = max(console.width, _TABLE_WIDTH)  # a wrapped line is better than cut numbers
    console.print(_table(found, folder))
    return found


def _table(found: dict[str, Verified], folder: Path) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=Text(f"exported to {folder}"))
    for heading in card.HEADINGS:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in card.rows(found):
        table.add_row(*row)
    return table
