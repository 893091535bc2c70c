"""The report's statistics against numbers worked out by hand, and against NumPy."""

import math

import numpy as np
import pytest

from zosam_jax.report.estimates import (
    Estimate,
    gain,
    over_seeds,
    rank_correlation,
)


def test_spread_is_the_sample_standard_deviation():
    estimate = over_seeds({0: 1.0, 1: 2.0, 5: 6.0})
    assert estimate.mean == 3.0
    assert estimate.error == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert estimate.num == 3


def test_one_value_has_no_spread_and_none_no_mean():
    assert over_seeds({3: 2.0})[0] == 2.0
    assert math.isnan(over_seeds({3: 2.0}).error)
    assert over_seeds({}).num == 0
    assert math.isnan(over_seeds({}).mean)


def test_gains_pair_the_seeds_that_both_have():
    ours, base = {2: 7.0, 0: 5.0, 3: 1.0}, {0: 1.0, 9: 0.0, 2: 4.0}
    # Differences 4 and 3: sd 1/√2, standard error 1/2.
    assert gain([(ours, base)]) == pytest.approx((3.5, 0.5, 2))


def test_pairing_removes_what_the_seeds_share():
    base = {seed: 10.0 * seed for seed in range(4)}
    ours = {seed: value + 1.0 for seed, value in base.items()}
    assert gain([(ours, base)]) == pytest.approx((1.0, 0.0, 4))
    assert over_seeds(ours).error > 10


def test_the_standard_error_is_that_of_the_mean():
    rng = np.random.default_rng(0)
    ours, base = rng.normal(size=7), rng.normal(size=7)
    found = gain([(dict(enumerate(ours)), dict(enumerate(base)))])
    assert found.error == pytest.approx(np.std(ours - base, ddof=1) / np.sqrt(7))


def test_over_cells_each_seed_counts_once():
    zero = {0: 0.0, 1: 0.0, 2: 0.0}
    first, second = {0: 1.0, 1: 2.0, 2: 4.0}, {0: 3.0, 1: 3.0, 2: 5.0, 7: 99.0}
    # Averages over cells: 2, 2.5, 4.5.
    expected = (3.0, np.std([2.0, 2.5, 4.5], ddof=1) / np.sqrt(3), 3)
    assert gain([(first, zero), (second, zero)]) == pytest.approx(expected)


def test_over_cells_counts_seeds_that_all_cells_have():
    zero = dict.fromkeys(range(3), 0.0)
    assert gain([({0: 1.0, 1: 3.0}, zero), ({1: 5.0, 2: 9.0}, zero)])[::2] == (4.0, 1)
    assert gain([({0: 1.0}, zero), ({1: 5.0}, zero)]).num == 0
    assert gain([]).num == 0


@pytest.mark.parametrize(
    ("estimate", "stands_out"),
    [
        (Estimate(1.0, 0.2, 3), True),  # t is 4.30 for three seeds
        (Estimate(1.0, 0.3, 3), False),
        (Estimate(1.0, 0.3, 30), True),
        (Estimate(-1.0, 0.1, 3), False),
        (Estimate(0.0, 0.0, 3), False),
        (Estimate(1.0, math.nan, 1), False),
    ],
)
def test_a_gain_stands_out_where_its_interval_is_above_zero(estimate, stands_out):
    assert estimate.stands_out is stands_out


def test_rank_correlations_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: Σd² = 4, ρ = 1 − 6·4/(4·15) = 0.6; 4 of 6 pairs agree.
    found = rank_correlation([1.0, 2.0, 5.0, 9.0], [20.0, 10.0, 90.0, 30.0])
    assert found == pytest.approx((0.6, 1 / 3, 4))
    # Ties: no pair of the two equal values counts for Kendall's τ-b, 5 of √(5·6) do.
    assert rank_correlation([1, 1, 2, 3], [1, 2, 3, 4]).kendall == pytest.approx(5 / np.sqrt(30))


def test_unknown_values_are_left_out_of_a_correlation():
    found = rank_correlation([1.0, math.nan, 2.0, 3.0, 4.0], [3.0, 2.0, 2.0, 1.0, math.nan])
    assert found == pytest.approx((-1.0, -1.0, 3))


@pytest.mark.parametrize(
    ("xs", "ys", "num"), [([1, 2], [1, 2], 2), ([1, 1, 1], [1, 2, 3], 3), ([], [], 0)]
)
def test_too_few_or_constant_values_have_no_correlation(xs, ys, num):
    found = rank_correlation(xs, ys)
    assert math.isnan(found.spearman)
    assert math.isnan(found.kendall)
    assert found.num == num
