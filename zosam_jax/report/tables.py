"""Tables of a study, for HTML and Markdown alike, and the numbers in them as text."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from zosam_jax.report.estimates import Estimate, gain, over_seeds
from zosam_jax.report.study import Row, Study

NOTHING = "–"
_ALL_ROWS = "all cells, paired"
# With more optimizers a table has a line for each.
_MOST_COLUMNS = 8
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class TableCell(NamedTuple):
    """What stands at one place of a table."""

    text: str  # what it says
    note: str = ""  # said smaller, below
    bold: bool = False  # whether it stands out


class Table(NamedTuple):
    """A table."""

    head: Sequence[str]  # names of the columns
    # lines of as many entries; the first `labels` columns name what a line is about
    body: Sequence[Sequence[TableCell]]
    caption: str  # what is seen, and how it was measured
    labels: int = 1  # how many columns are names
    total: bool = False  # whether the last line sums up the others


Format: TypeAlias = Callable[[float, float], str]


class Column(NamedTuple):
    """A column of `by_optimizer`."""

    title: str  # its name
    entry: Callable[[Row, str], TableCell]  # (row, optimizer) → what it says of them


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


def precise(value: float, beside: float = 0.0) -> str:
    """A number with four decimals."""
    del beside
    return signed(f"{value:.4f}")


def signed_change(estimate: Estimate) -> str:
    """A difference with its sign ± its standard error, four decimals; nothing of no pair."""
    if estimate.num == 0:
        return NOTHING
    error = "" if math.isnan(estimate.error) else f" ± {precise(estimate.error)}"
    return signed(f"{estimate.mean:+.4f}{error}")


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
    """A fraction, rows against optimizers, with paired gains over the base.

    Each entry is mean ± sample standard deviation over seeds, in percent, with the paired gain ±
    its standard error below; the last line has the gains over all rows. Many optimizers are lines
    of the table instead of columns.
    """
    rows = [row for row in study.rows if any(study.values(row, o, fact) for o in study.optimizers)]
    body = [_line_of_gains(study, row, fact) for row in rows]
    if len(rows) > 1:
        body.append(_total_of_gains(study, rows, fact))
    head = ("", "seeds", *study.optimizers)
    if len(study.optimizers) > _MOST_COLUMNS:
        turned = list(zip(map(TableCell, head), *body, strict=True))
        return Table([entry.text for entry in turned[0]], turned[1:], caption)
    return Table(head, body, caption, total=len(rows) > 1)


def against(study: Study, rival: str, fact: str, caption: str) -> Table:
    """Paired gains of the other optimizers over one of them, in points ± standard errors."""
    others = [name for name in study.optimizers if name != rival]
    rows = [row for row in study.rows if study.values(row, rival, fact)]
    body = []
    for label, some in [*((row.label, [row]) for row in rows), (_ALL_ROWS, rows)]:
        gains = [gain(study.pairs(name, fact, some, rival)) for name in others]
        most = max(g.num for g in gains)
        entries = [TableCell(gained(g) or NOTHING, bold=g.stands_out) for g in gains]
        body.append([TableCell(label), TableCell(str(most)), *entries])
    if len(rows) == 1:
        body.pop()
    return Table(("", "seeds", *others), body, caption, total=len(rows) > 1)


def _line_of_gains(study: Study, row: Row, fact: str) -> list[TableCell]:
    estimates = [over_seeds(study.values(row, name, fact)) for name in study.optimizers]
    gains = [gain(study.pairs(name, fact, [row])) for name in study.optimizers]
    best = max(estimate.mean for estimate in estimates if estimate.num)
    most = max(estimate.num for estimate in estimates)
    entries = [
        TableCell(spread(e, percent, most), gained(g), bold=e.mean == best and g.stands_out)
        for e, g in zip(estimates, gains, strict=True)
    ]
    return [TableCell(row.label), TableCell(str(most)), *entries]


def _total_of_gains(study: Study, rows: Sequence[Row], fact: str) -> list[TableCell]:
    pairs = [study.pairs(name, fact, rows) for name in study.optimizers]
    gains = [gain(some) for some in pairs]
    best = max((g.mean for g in gains if g.num), default=math.nan)
    most = max(g.num for g in gains)
    entries = [
        TableCell(
            gained(g) + _few(g, most) or NOTHING,
            f"{len(some)} of {len(rows)} rows" if 0 < len(some) < len(rows) else "",
            bold=g.mean == best and g.stands_out,
        )
        for g, some in zip(gains, pairs, strict=True)
    ]
    return [TableCell(_ALL_ROWS), TableCell(str(most or "")), *entries]


def by_optimizer(study: Study, columns: Sequence[Column], caption: str) -> Table:
    """A line for each row and optimizer that knows any of the columns."""
    body = []
    for row in study.rows:
        said = TableCell(row.label)
        for optimizer in study.compared_in(row):
            entries = [column.entry(row, optimizer) for column in columns]
            if any(entry.text != NOTHING for entry in entries):
                seeds = len(study.cell(row, optimizer))
                body.append([said, TableCell(optimizer), TableCell(str(seeds)), *entries])
                said = TableCell("")
    head = ["", "optimizer", "seeds", *(column.title for column in columns)]
    if len(study.rows) == 1:
        return Table(head[1:], [line[1:] for line in body], caption)
    return Table(head, body, caption, labels=2)


def measured(study: Study, title: str, fact: str, form: Format = number) -> Column:
    """A column of a number that runs know: mean ± sample standard deviation over seeds."""

    def entry(row: Row, optimizer: str) -> TableCell:
        values = study.values(row, optimizer, fact)
        return TableCell(spread(over_seeds(values), form, len(study.cell(row, optimizer))))

    return Column(title, entry)
