"""Axes of arrays that are the same axis: found equal, split into factors, put end to end.

Where a program adds two arrays their axes are the same; where it reshapes (…, 96) to (…, 3, 4, 8)
an axis is a product of three; where it concatenates, an axis is a sum. Structure that is found at
one place in the program holds at all others, so axes are variables that are unified.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from zosam_jax.trees import Int

PRODUCT, SUM = "product", "sum"


class Axis:
    """An axis of some length: as yet without structure, a product of axes or a sum of them.

    Attributes:
      size: its length.
      whole: why nothing can be removed along it, or None. "" is a reason that goes without saying.
      is_residual: whether the outputs of several layers are added along it.
      is_heads: whether products of two activations are made for each of its positions.
      varies: whether it is one of a parameter or an input; along others values only repeat.
    """

    def __init__(self, size: int, *, whole: str | None = None, varies: bool = False) -> None:
        """An axis that is no other's as yet."""
        self.size = size
        self.whole = whole
        self.is_residual = False
        self.is_heads = False
        self.varies = varies
        self._operation = ""
        self._parts: tuple[Axis, ...] = ()
        self._same: Axis | None = None

    @property
    def root(self) -> Axis:
        """The axis that stands for all that were found equal to this one."""
        axis = self
        while axis._same is not None:
            axis = axis._same
        return axis

    @property
    def has_parts(self) -> bool:
        """Whether it is a product or a sum."""
        return bool(self.root._parts)

    def atoms(self) -> list[Axis]:
        """The axes without structure of which it is made, each once."""
        root = self.root
        if not root._parts:
            return [root]
        return list(dict.fromkeys(atom for part in root._parts for atom in part.atoms()))

    def factors(self) -> list[Axis]:
        """The axes whose product it is; itself alone where it is none."""
        root = self.root
        if root._operation != PRODUCT:
            return [root]
        return [factor for part in root._parts for factor in part.factors()]

    def terms(self) -> list[Axis]:
        """The axes whose sum it is; itself alone where it is none.

        A product whose first factor is a sum is a sum as well.
        """
        root = self.root
        if root._operation == SUM:
            return [term for part in root._parts for term in part.terms()]
        first, *others = root.factors()
        terms = first.terms() if others else [root]
        return [product([term, *others]) for term in terms] if len(terms) > 1 else [root]

    def positions(self, atom: Axis) -> Int[np.ndarray, " size"]:
        """For each position its position along an atom, −1 for those that have none."""
        root = self.root
        if root is atom:
            return np.arange(root.size)
        if root._operation == SUM:
            return np.concatenate([term.positions(atom) for term in root.terms()])
        found = np.full(root.size, -1)
        if root._operation == PRODUCT:
            factors = root.factors()
            index = np.unravel_index(np.arange(root.size), [factor.size for factor in factors])
            for factor, at in zip(factors, index, strict=True):
                along = factor.positions(atom)[at]
                found = np.where(along >= 0, along, found)
        return found

    def keep_whole(self, reason: str) -> None:
        """Nothing can be removed along it; the first reason is kept."""
        for atom in self.atoms():
            if atom.whole is None:
                atom.whole = reason

    def _become(self, other: Axis) -> None:
        """An atom is found to be another axis, or to have its structure."""
        self._same = other
        if self.whole is not None:
            other.keep_whole(self.whole)
        for atom in other.atoms():
            atom.is_residual |= self.is_residual
            atom.varies |= self.varies
        if self.is_heads and not other._parts:
            other.is_heads = True


def product(axes: Iterable[Axis]) -> Axis:
    """The axis that reshaping makes of several, the last of them the fastest."""
    factors = [factor for axis in axes if axis.size != 1 for factor in axis.factors()]
    return _compound(PRODUCT, factors, math.prod(factor.size for factor in factors))


def concatenated(axes: Iterable[Axis]) -> Axis:
    """The axis that concatenation makes of several."""
    terms = [term for axis in axes if axis.size != 0 for term in axis.terms()]
    return _compound(SUM, terms, sum(term.size for term in terms))


def _compound(operation: str, parts: Sequence[Axis], size: int) -> Axis:
    if len(parts) == 1:
        return parts[0]
    axis = Axis(size)
    axis._operation, axis._parts = (operation, tuple(parts)) if parts else ("", ())
    return axis


def unify(a: Axis, b: Axis) -> None:
    """Two axes of one length are the same; where their structures do not fit both stay whole."""
    a, b = a.root, b.root
    if a is b:
        return
    if not a._parts:
        a._become(b)
    elif not b._parts:
        b._become(a)
    elif a._operation == b._operation:
        _align(a, b)
    else:
        of_sum, of_product = (a, b) if a._operation == SUM else (b, a)
        _distribute(of_sum, of_product)


def _align(a: Axis, b: Axis) -> None:
    """Two products or two sums: the longer part is split where the shorter one ends."""
    is_sum = a._operation == SUM
    parts, compound = (Axis.terms, concatenated) if is_sum else (Axis.factors, product)
    left, right = parts(a)[::-1], parts(b)[::-1]  # the next one last
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size > y.size:
            x, y, left, right = y, x, right, left
        if x.size < y.size:
            rest, remainder = (y.size - x.size, 0) if is_sum else divmod(y.size, x.size)
            pieces = [Axis(x.size), Axis(rest)]
            if remainder:
                return _give_up(a, b)
            unify(y, compound(pieces))
            y, *others = parts(y)
            if y.size != x.size:  # its structure has no such pieces
                return _give_up(a, b)
            right.extend(others[::-1])
        unify(x, y)
    return None


def _distribute(of_sum: Axis, of_product: Axis) -> None:
    """A sum that is a product: its first factor is a sum, each term of it times the others."""
    first, *others = of_product.factors()
    inner = math.prod(other.size for other in others)
    terms = of_sum.terms()
    if any(term.size % inner for term in terms):
        return _give_up(of_sum, of_product)
    pieces = [Axis(term.size // inner) for term in terms]
    unify(first, concatenated(pieces))
    for term, piece in zip(terms, pieces, strict=True):
        unify(term, product([piece, *others]))
    if of_product.root is not of_sum:
        of_sum._same = of_product
    return None


def _give_up(a: Axis, b: Axis) -> None:
    for axis in (a, b):
        axis.keep_whole("it is split in ways that do not fit each other")
