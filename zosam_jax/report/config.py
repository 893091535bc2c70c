"""The typed options of `zosam report`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from zosam_jax.errors import check_positive_fraction


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
    the base optimizer reaches, row by row."""

    def __post_init__(self) -> None:
        """Checks what the types cannot say."""
        if not self.runs:
            raise ValueError("runs=() must name at least one run folder.")
        if self.target is not None:
            check_positive_fraction("target", self.target)
