"""Tables of a study, for HTML and Markdown alike, and the numbers in them as text."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from zosam_jax.report.estimates import Estimate, gain, gain_over_cells, over_seeds
from zosam_jax.report.study import Row, Study

NOTHING = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Cell(NamedTuple):
    """An entry of a table.

    Attributes:
      text: what it says.
      note: said smaller, below.
      bold: whether it stands out.
    """

    text: str
    note: str = ""
    bold: bool = False


class Table(NamedTuple):
    """A table.

    Attributes:
      head: names of the columns.
      body: lines of as many cells; the first `labels` columns name what a line is about.
      caption: what is seen, and how it was measured.
      labels: how many columns are names.
      total: whether the last line sums up the others.
    """

    head: Sequence[str]
    body: Sequence[Sequence[Cell]]
    caption: str
    labels: int = 1
    total: bool = False


Format: TypeAlias = Callable[[float, float], str]


class Column(NamedTuple):
    """A column of `by_optimizer`.

    Attributes:
      title: its name.
      cell: (row, optimizer) → the entry.
    """

    title: str
    cell: Callable[[Row, str], Cell]


def percent(value: float, beside: float = 0.0) -> str:
    """A fraction in percent, with two decimals."""
    del beside
    return signed(f"{100 * value:.2f}")


def whole(value: float, beside: float = 0.0) -> str:
    """A number without decimals."""
    del beside
    return signed(f"{value:,.0f}")


def number(value: float, beside: float | None = None) -> str:
    """A number of any size to three digits, or to as many decimals as `beside` then has."""
    scale = abs(value if beside is None else beside)
    size = math.floor(math.log10(scale)) if scale and math.isfinite(scale) else 0
    if -4 < size < 5:
        return signed(f"{value:,.{max(0, 2 - size)}f}")
    power = str(size).translate(_SUPERSCRIPTS)
    return signed(f"{value / 10.0**size:.2f} × 10{power}")


def signed(text: str) -> str:
    """With the sign that is as wide as a plus."""
    return text.replace("-", "−")


def spread(estimate: Estimate, form: Format, out_of: int = 0) -> str:
    """Mean ± deviation; the mean alone of one value, and how many there are if below `out_of`."""
    if estimate.num == 0:
        return NOTHING
    mean = form(estimate.mean, estimate.mean)
    few = _few(estimate, out_of)
    if math.isnan(estimate.error):
        return mean + few
    return f"{mean} ± {form(estimate.error, estimate.mean)}{few}"


def _few(estimate: Estimate, out_of: int) -> str:
    return f" (n = {estimate.num})" if 0 < estimate.num < out_of else ""


def gained(estimate: Estimate) -> str:
    """A gain in percentage points ± its standard error; nothing of no pair."""
    if estimate.num == 0:
        return ""
    error = "" if math.isnan(estimate.error) else f" ± {percent(estimate.error)}"
    return signed(f"{100 * estimate.mean:+.2f}{error}")


def with_gains(study: Study, fact: str, caption: str) -> Table:
    """A fraction, rows against optimizers, with paired gains over the base optimizer.

    Each entry is mean ± sample standard deviation over seeds, in percent, with the paired gain ±
    its standard error below; the last line has the gains over all rows.
    """
    rows = [row for row in study.rows if any(study.values(row, o, fact) for o in study.optimizers)]
    body = [_line_of_gains(study, row, fact) for row in rows]
    if len(rows) > 1:
        body.append(_total_of_gains(study, rows, fact))
    head = ("", "seeds", *study.optimizers)
    return Table(head, body, caption, total=len(rows) > 1)


def against(study: Study, rival: str, fact: str, caption: str) -> Table:
    """Paired gains of the other optimizers over one of them, in points ± standard errors."""
    others = [name for name in study.optimizers if name != rival]
    rows = [row for row in study.rows if study.values(row, rival, fact)]
    body = []
    for label, some in [*((row.label, [row]) for row in rows), ("all cells, paired", rows)]:
        gains = [_gain_over(study, name, rival, fact, some) for name in others]
        most = max(g.num for g in gains)
        cells = [Cell(gained(g) or NOTHING, bold=g.stands_out) for g in gains]
        body.append([Cell(label), Cell(str(most)), *cells])
    if len(rows) == 1:
        body.pop()
    return Table(("", "seeds", *others), body, caption, total=len(rows) > 1)


def _gain_over(study: Study, name: str, rival: str, fact: str, rows: Sequence[Row]) -> Estimate:
    pairs = [(study.values(row, name, fact), study.values(row, rival, fact)) for row in rows]
    return gain_over_cells(
        [(values, base) for values, base in pairs if values.keys() & base.keys()]
    )


def _line_of_gains(study: Study, row: Row, fact: str) -> list[Cell]:
    columns = [study.values(row, optimizer, fact) for optimizer in study.optimizers]
    base = study.values(row, row.base, fact)
    gains = [
        Estimate(math.nan, math.nan, 0) if name == row.base else gain(values, base)
        for name, values in zip(study.optimizers, columns, strict=True)
    ]
    estimates = [over_seeds(values) for values in columns]
    best = max(estimate.mean for estimate in estimates if estimate.num)
    most = max(estimate.num for estimate in estimates)
    cells = [Cell(row.label), Cell(str(most))]
    for estimate, over_base in zip(estimates, gains, strict=True):
        bold = estimate.mean == best and over_base.stands_out
        cells.append(Cell(spread(estimate, percent, most), gained(over_base), bold))
    return cells


def _total_of_gains(study: Study, rows: Sequence[Row], fact: str) -> list[Cell]:
    gains, shares = [], []
    for optimizer in study.optimizers:
        pairs = [
            (study.values(row, optimizer, fact), study.values(row, row.base, fact))
            for row in rows
            if optimizer != row.base
        ]
        pairs = [(values, base) for values, base in pairs if values.keys() & base.keys()]
        gains.append(gain_over_cells(pairs))
        shares.append(f"{len(pairs)} of {len(rows)} rows" if 0 < len(pairs) < len(rows) else "")
    best = max((g.mean for g in gains if g.num), default=math.nan)
    most = max(g.num for g in gains)
    cells = [
        Cell(gained(g) + _few(g, most) or NOTHING, share, g.mean == best and g.stands_out)
        for g, share in zip(gains, shares, strict=True)
    ]
    return [Cell("all cells, paired"), Cell(str(most or "")), *cells]


def by_optimizer(study: Study, columns: Sequence[Column], caption: str) -> Table:
    """A line for each row and optimizer that knows any of the columns."""
    body = []
    for row in study.rows:
        said = Cell(row.label)
        for optimizer in study.compared_in(row):
            entries = [column.cell(row, optimizer) for column in columns]
            if any(entry.text != NOTHING for entry in entries):
                seeds = len(study.cell(row, optimizer))
                body.append([said, Cell(optimizer), Cell(str(seeds)), *entries])
                said = Cell("")
    head = ("", "optimizer", "seeds", *(column.title for column in columns))
    return Table(head, body, caption, labels=2)


def measured(study: Study, title: str, fact: str, form: Format = number) -> Column:
    """A column of a number that runs know: mean ± sample standard deviation over seeds."""

    def cell(row: Row, optimizer: str) -> Cell:
        values = study.values(row, optimizer, fact)
        return Cell(spread(over_seeds(values), form, len(study.cell(row, optimizer))))

    return Column(title, cell)
