"""Axes as products and sums of others, found equal in any order."""

import numpy as np
import pytest

from zosam_jax.sparsity.dependencies.axes import Axis, concatenated, product, unify


def test_a_split_axis_is_the_product_of_its_parts_wherever_it_stands():
    kernel, bias = Axis(24), Axis(24)
    unify(kernel, bias)
    three, heads, features = Axis(3), Axis(2), Axis(4)
    unify(kernel, product([three, heads, features]))
    assert bias.atoms() == [three, heads, features]
    np.testing.assert_array_equal(bias.positions(heads), [0, 0, 0, 0, 1, 1, 1, 1] * 3)
    np.testing.assert_array_equal(bias.positions(features), [0, 1, 2, 3] * 6)


def test_products_of_other_factors_are_split_until_they_agree():
    six, four, three, eight = Axis(6), Axis(4), Axis(3), Axis(8)
    unify(product([six, four]), product([three, eight]))
    assert [atom.size for atom in six.atoms()] == [3, 2]
    assert [atom.size for atom in eight.atoms()] == [2, 4]
    assert six.atoms()[1] is eight.atoms()[0]


def test_sums_are_split_where_the_other_has_an_end():
    whole = concatenated([Axis(2), Axis(5)])
    third = Axis(3)
    unify(concatenated([third, Axis(4)]), whole)
    assert [atom.size for atom in whole.atoms()] == [2, 1, 4]
    np.testing.assert_array_equal(whole.positions(third.atoms()[1]), [-1, -1, 0, -1, -1, -1, -1])


def test_heads_of_queries_and_keys_put_end_to_end():
    """A slice and then a reshape, or a reshape and then a slice: the same heads."""
    for slice_first in (True, False):
        both, heads = Axis(12), [Axis(2), Axis(2)]
        halves = [Axis(6), Axis(6)]
        steps = [
            lambda both=both, halves=halves: unify(both, concatenated(halves)),
            lambda both=both: unify(both, product([Axis(2), Axis(2), Axis(3)])),
        ]
        for step in steps if slice_first else steps[::-1]:
            step()
        for half, head in zip(halves, heads, strict=True):
            unify(half, product([head, Axis(3)]))
        np.testing.assert_array_equal(half.positions(head.root), [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("parts", [(2, 3), (3, 2)])
def test_what_does_not_fit_stays_whole(parts):
    axis = product([Axis(n) for n in parts])
    unify(axis, product([Axis(n) for n in parts[::-1]]))
    assert all(atom.whole for atom in axis.atoms())
    other = product([Axis(2), Axis(4)])
    unify(other, concatenated([Axis(3), Axis(5)]))
    assert all(atom.whole for atom in other.atoms())


def test_a_reason_is_handed_to_the_parts_and_the_first_is_kept():
    axis, same = Axis(6), Axis(6)
    axis.keep_whole("first")
    unify(axis, same)
    two, three = Axis(2), Axis(3)
    three.keep_whole("before")
    unify(same, product([two, three]))
    assert (two.whole, three.whole) == ("first", "before")
