"""The runs as CSV: a line for each, with its options and every number that it came to."""

import csv
import dataclasses
import io
from typing import Any

from zosam_jax.report.runs import RunResult
from zosam_jax.report.study import Study
from zosam_jax.training import build
from zosam_jax.training.config import CIRCUMSTANCES, TrainConfig


def to_csv(study: Study) -> str:
    """A line for each run, in the order of the tables; what is not known is empty.

    `run` is its folder, `row` and `column` are where the tables have it; then come its options
    (`rho` as used), then its numbers at full precision.
    """
    lines = [
        {"run": run.name, "row": row.label, "column": optimizer, **_options(run), **run.facts}
        for (row, optimizer), cell in study.cells.items()
        for run in cell.values()
    ]
    names = list(dict.fromkeys(name for line in lines for name in line))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _options(run: RunResult) -> dict[str, Any]:
    told = {
        field.name: getattr(run.config, field.name)
        for field in dataclasses.fields(TrainConfig)
        if field.name not in CIRCUMSTANCES
    }
    return told | {"rho": build.rho_of(run.config)}
