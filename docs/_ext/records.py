"""The `records` directive: tables of the ready-made optimizers, made of `optimizers.RECORDS`."""

import inspect
import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from zosam_jax.optimizers import RECORDS, Record

PAPER = re.compile(r"https://arxiv\.org/abs/[\d.]+")
COLUMNS = ("Optimizer", "What it computes", "Passes of a step", "Radius", "ρ", "Paper")


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directive, which reStructuredText and `eval-rst` know."""
    app.add_directive("records", RecordsTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class RecordsTable(SphinxDirective):
    """A row for each optimizer, everything else at its default."""

    def run(self) -> list[nodes.Node]:
        """The table, as a list-table."""
        rows = [COLUMNS, *(_row(name, record) for name, record in RECORDS.items())]
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: auto", ""]
        for row in rows:
            first, *others = row
            lines += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
        return self.parse_text_to_nodes("\n".join(lines))


def _row(name: str, record: Record) -> tuple[str, ...]:
    documentation = inspect.getdoc(record.make) or ""
    paper = PAPER.search(documentation)
    passes = record.count_passes()
    return (
        f":func:`~zosam_jax.{name}`",
        documentation.splitlines()[0],
        f"{passes.forward:g} + {passes.backward:g}",
        (record.radius or "its own") if record.has_rho else "none",
        f"{record.default_rho():g}" if record.has_rho else "none",
        f"`{paper[0].rpartition('/')[2]} <{paper[0]}>`__" if paper else "none",
    )
