"""`zosam report`: any number of runs on one page."""

from collections.abc import Sequence
from pathlib import Path

from zosam_jax.report import figures, geometry, performance
from zosam_jax.report.header import header
from zosam_jax.report.markdown import markdown
from zosam_jax.report.page import page
from zosam_jax.report.runs import gather
from zosam_jax.report.section import Section
from zosam_jax.report.spreadsheet import to_csv
from zosam_jax.report.study import Study
from zosam_jax.training import run_folder
from zosam_jax.training.run_folder import RunFolder

__all__ = ["report"]


def report(
    runs: Sequence[Path],
    output: Path | None,
    *,
    title: str | None = None,
    target: float | None = None,
    base: str | None = None,
) -> Path:
    """Gathers runs into report.html, report.md and runs.csv, and returns their folder.

    The page needs no other file and no network; the Markdown has its tables, the CSV a line for
    each run. Runs with the same options but the seed are averaged, and gains are paired by seed.

    Args:
      runs: run folders, and folders that hold run folders at any depth.
      output: folder for the files, which are replaced if they exist; None for
        runs/report-DATE-TIME.
      title: heading of the page; by default model, data set, label noise, sparse methods and
        sparsities.
      target: test accuracy, as a fraction, to which epochs and seconds are counted; by default
        99% of what the base ends at, row by row.
      base: the optimizer over which gains are taken, by its name or the label of its column; by
        default the base optimizer, sgd or adamw.

    Raises:
      ValueError: for a path without a run, a damaged file, if no run is complete, or if
        `base` means no optimizer or several.
      FileExistsError: if `output` is a file.
    """
    folder = RunFolder(output, "report", may_hold_results=True)
    complete, omissions = gather(runs)
    if not complete:
        raise ValueError(
            "runs: no run is complete; "
            + "; ".join(f"{one.name}: {one.reason.rstrip('.')}" for one in omissions[:3])
            + "."
        )
    study = Study(complete, base)
    sections = _sections(study, target)
    top = header(study, omissions, title)
    folder.write_text(run_folder.REPORT_PAGE, page(top, sections))
    folder.write_text(run_folder.REPORT_MARKDOWN, markdown(top, sections))
    folder.write_text(run_folder.REPORT_TABLE, to_csv(study))
    return folder.path


def _sections(study: Study, target: float | None) -> list[Section]:
    """Those of which any run has data."""
    styles = figures.styles(study.optimizers, [row.base for row in study.rows])
    made = [
        performance.accuracy(study, styles),
        performance.loss(study),
        performance.curves(study, styles),
        performance.convergence(study, target),
        performance.cost(study),
        performance.robustness(study, styles),
        geometry.sharpness(study),
        geometry.flatness(study, styles),
        geometry.variance(study, styles),
        geometry.surfaces(study, styles),
    ]
    return [section for section in made if section is not None]
