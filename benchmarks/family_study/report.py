"""Tables in Markdown: accuracies, what they cost, and paired differences with their intervals."""

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy import stats

from benchmarks.family_study.methods import BASELINES, LENGTHENED_SGD, METHODS
from benchmarks.family_study.problems import PROBLEMS
from benchmarks.family_study.study import best_rho

CONFIDENCE = 0.95
# An SGD run counts as equally long from this fraction of a method's time on.
EQUALLY_LONG = 0.95


class Cell(NamedTuple):
    """A method on a problem at one radius.

    Attributes:
      rho: the radius.
      at_edge: whether it is the smallest or the largest of a grid.
      ratio: of a step's time to SGD's.
      length: of the run, in the problem's epochs.
      test, train: seed → accuracy in percent.
    """

    rho: float
    at_edge: bool
    ratio: float
    length: float
    test: dict[int, float]
    train: dict[int, float]

    @property
    def time(self) -> float:
        """The run's, in those of SGD's over the problem's epochs."""
        return self.ratio * self.length


Table = dict[str, Cell]


def read(results: Path, problem: str, *, tuned: bool) -> Table:
    """The finished methods of a problem, at their tuned or at their default radii."""
    table = {}
    for name, method in METHODS.items():
        path = results / problem / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        rho = best_rho(rows, method) if tuned else method.default
        runs = [row for row in rows if row["kind"] == "test" and row["rho"] == rho]
        ratios = [row["ratio"] for row in rows if row["kind"] == "time"]
        if runs and ratios:
            table[name] = Cell(
                rho,
                len(method.grid) > 1 and rho in (method.grid[0], method.grid[-1]),
                ratios[0],
                method.length,
                {row["seed"]: row["accuracy"] for row in runs},
                {row["seed"]: row["train"] for row in runs},
            )
    return table


def equally_long_sgd(table: Table, cell: Cell) -> str:
    """The shortest SGD run that takes as long as this one, else the longest there is."""
    runs = [name for name in LENGTHENED_SGD if name in table]
    for name in runs:
        if table[name].length >= EQUALLY_LONG * cell.time:
            return name
    return runs[-1]


def paired(values: dict[int, float], others: dict[int, float]) -> list[float]:
    """The differences of the seeds that both have."""
    return [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]


def interval(differences: Sequence[float]) -> str:
    """Their mean, the confidence interval of Student's t, and the p-value of no difference."""
    mean = f"{statistics.fmean(differences):+.2f}"
    if len(differences) < 2 or statistics.stdev(differences) == 0:
        return mean
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return f"{mean} [{low:+.2f}, {high:+.2f}], p = {test.pvalue:.2g}"


def spread(values: Iterable[float]) -> str:
    values = list(values)
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def chosen(name: str, cell: Cell) -> str:
    """What tuning chose, and whether it would have gone on."""
    method = METHODS[name]
    if method.make is None and not method.tunes_decay:
        return "–"
    unit = " × decay" if method.tunes_decay else ""
    return f"{cell.rho:g}{unit}{' (edge)' if cell.at_edge else ''}"


def problem_table(tuned: Table, default: Table) -> str:
    """One line for each method; differences are paired over seeds."""
    baselines = [name for name in BASELINES if name in tuned]
    shown = {name for name in default if METHODS[name].tests_default}
    lines = []
    for name, cell in tuned.items():
        line = [
            name,
            chosen(name, cell),
            f"{cell.time:.2f}",
            f"{statistics.fmean(cell.train.values()):.1f}",
            spread(cell.test.values()),
            spread(default[name].test.values()) if name in shown else "–",
        ]
        line += [
            interval(paired(cell.test, tuned[other].test)) if other != name else "–"
            for other in baselines
        ]
        other = equally_long_sgd(tuned, cell)
        same = "–" if other == name else interval(paired(cell.test, tuned[other].test))
        lines.append([*line, f"{same} ({other})" if other != name else "–"])
    header = ["method", "ρ", "time", "train", "test", "test at default ρ"]
    return markdown(header + [f"− {o}" for o in baselines] + ["− SGD of equal time"], lines)


def summary(tables: dict[str, Table]) -> str:
    """Means over the problems, for methods that finished all of them."""
    lines = []
    for name in METHODS:
        if not all(name in table for table in tables.values()):
            continue
        cells = [(table[name], table) for table in tables.values()]
        line = [
            name,
            f"{statistics.fmean(cell.time for cell, _ in cells):.2f}",
            f"{statistics.fmean(v for cell, _ in cells for v in cell.test.values()):.2f}",
            f"{statistics.fmean(rank(table, name) for _, table in cells):.1f}",
        ]
        line += [
            over_problems([(cell, table.get(other)) for cell, table in cells])
            for other in BASELINES
        ]
        pairs = [(cell, table[equally_long_sgd(table, cell)]) for cell, table in cells]
        lines.append([*line, over_problems(pairs)])
    header = ["method", "time", "test", "rank", *(f"− {o}" for o in BASELINES)]
    return markdown([*header, "− SGD of equal time"], lines)


def overview(tables: dict[str, Table], defaults: dict[str, Table]) -> str:
    """Test accuracies of every method on every problem, tuned and at the default radius."""
    lines = []
    for name, method in METHODS.items():
        cells = [table.get(name) for table in tables.values()]
        if any(cells):
            lines.append([name, *("–" if c is None else spread(c.test.values()) for c in cells)])
        if method.tests_default and any(cells):
            cells = [table.get(name) for table in defaults.values()]
            found = ["–" if c is None else spread(c.test.values()) for c in cells]
            lines.append([f"{name}, ρ = {method.default:g}", *found])
    return markdown(["method", *tables], lines)


def rank(table: Table, name: str) -> int:
    """1 for the best mean test accuracy."""
    means = {n: statistics.fmean(cell.test.values()) for n, cell in table.items()}
    return 1 + sum(mean > means[name] for mean in means.values())


def over_problems(pairs: Sequence[tuple[Cell, Cell | None]]) -> str:
    """The mean difference over problems; its interval is over seeds, each a mean over problems."""
    if any(other is None or other is cell for cell, other in pairs):
        return "–"
    runs = [
        {s: cell.test[s] - other.test[s] for s in cell.test.keys() & other.test.keys()}
        for cell, other in pairs
        if other is not None
    ]
    seeds = set.intersection(*(set(run) for run in runs))
    return interval([statistics.fmean(run[seed] for run in runs) for seed in sorted(seeds)])


def report(options: argparse.Namespace) -> None:
    tables = {name: read(options.results, name, tuned=True) for name in PROBLEMS}
    tables = {name: table for name, table in tables.items() if "sgd" in table}
    defaults = {name: read(options.results, name, tuned=False) for name in tables}
    if not tables:
        return
    print(f"## Overview\n\n{overview(tables, defaults)}")
    for name, table in tables.items():
        print(f"## {name}\n\n{problem_table(table, defaults[name])}")
    print(f"## All problems\n\n{summary(tables)}", end="")
