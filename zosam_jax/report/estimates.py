"""Means with their uncertainty, paired gains and rank correlations."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

BySeed: TypeAlias = Mapping[int, float]


class Estimate(NamedTuple):
    """A mean."""

    mean: float  # NaN of no value
    error: float  # the sample standard deviation, or of a gain the standard error; NaN of one value
    num: int  # how many values there are

    @property
    def stands_out(self) -> bool:
        """Whether the 95% interval of a gain, by Student's t, lies above 0."""
        # scipy takes a second to import.
        from scipy.stats import t  # noqa: PLC0415

        return bool(self.num > 1 and self.mean > t.ppf(0.975, self.num - 1) * self.error)


class Correlation(NamedTuple):
    """How far two quantities rank the same runs alike, from −1 to 1."""

    # Spearman's ρ; NaN for fewer than three pairs, or where one quantity is constant
    spearman: float
    kendall: float  # Kendall's τ_b, likewise
    num: int  # how many pairs there are


def over_seeds(values: BySeed) -> Estimate:
    """Mean and sample standard deviation, √(Σ (x − x̄)² / (n − 1)), of the values that are known."""
    known = [value for value in values.values() if not math.isnan(value)]
    if not known:
        return Estimate(math.nan, math.nan, 0)
    deviation = statistics.stdev(known) if len(known) > 1 else math.nan
    return Estimate(statistics.fmean(known), deviation, len(known))


def gain(pairs: Sequence[tuple[BySeed, BySeed]]) -> Estimate:
    """Mean and standard error, sd/√n, over seeds, of the difference averaged over cells.

    A seed stands for the same initial weights and data order in every cell, so its differences
    are not independent and count once. Only seeds that every cell has on both sides count.

    Args:
      pairs: (values, base) of each cell.
    """
    shared = [values.keys() & base.keys() for values, base in pairs]
    seeds = sorted(set.intersection(*shared)) if shared else []
    mean, deviation, count = over_seeds(
        {
            seed: statistics.fmean(values[seed] - base[seed] for values, base in pairs)
            for seed in seeds
        }
    )
    return Estimate(mean, deviation / math.sqrt(count) if count else math.nan, count)


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> Correlation:
    """Spearman's ρ and Kendall's τ_b of the pairs of which both are known."""
    # Here, since it takes a second to import and other commands do without.
    from scipy import stats  # noqa: PLC0415

    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if not math.isnan(x + y)]
    count = len(pairs)
    if count < 3 or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return Correlation(math.nan, math.nan, count)
    left, right = zip(*pairs, strict=True)
    return Correlation(
        float(stats.spearmanr(left, right).statistic),
        float(stats.kendalltau(left, right).statistic),
        count,
    )
