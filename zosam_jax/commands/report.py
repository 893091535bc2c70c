"""`zosam report`: any number of runs on one page."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from zosam_jax.commands.refusal import refusing
from zosam_jax.errors import check_positive_fraction
from zosam_jax.report import report


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Gather runs into one page: tables, figures and a CSV file."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, and folders that hold run folders (a sweep's)."""

    output: Path | None = None
    """Folder for report.html, report.md and runs.csv, which are replaced if they exist. Default:
    runs/report-DATE-TIME."""

    title: str | None = None
    """Heading of the page. Default: what was trained on what."""

    target: float | None = None
    """Test accuracy, as a fraction, to which epochs and seconds are counted. Default: 99% of what
    --base reaches, row by row."""

    base: str | None = None
    """Optimizer over which gains are taken, by its name or, where it has several columns, by the
    label of one. Default: the base optimizer, sgd or adamw."""

    def __post_init__(self) -> None:
        """Checks what the types cannot say."""
        if not self.runs:
            raise ValueError("runs=() must name at least one run folder.")
        if self.target is not None:
            check_positive_fraction("target", self.target)


def run(config: ReportConfig, console: Console) -> None:
    """Writes the page, the Markdown and the CSV file."""
    with refusing():
        folder = report(
            config.runs,
            config.output,
            title=config.title,
            target=config.target,
            base=config.base,
        )
    console.print(f"report.html, report.md and runs.csv are in {folder}", markup=False)
