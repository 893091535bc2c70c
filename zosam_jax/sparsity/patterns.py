"""Which shapes a mask may take: any, blocks, or N of every M weights.

A pattern divides an array into units that live and die together (single weights, or blocks), and
says how the units to keep are chosen. Every way of making masks takes one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from zosam_jax import shardings
from zosam_jax.errors import check_count
from zosam_jax.sparsity.distributions import Shape
from zosam_jax.sparsity.layers import Layers
from zosam_jax.sparsity.selection import largest_in_each, largest_in_groups
from zosam_jax.trees import Array, Bool, Int, Num


class Pattern(NamedTuple):
    """The shape of a mask.

    Attributes:
      name: as shown in messages.
      check: (path, shape) → None; raises ValueError for an array that does not fit.
      units: scores of weights → scores of units.
      expand: mask of units → mask of weights.
      choose: (scores of units, counts) of all layers → masks of the units to keep.
      density: the fraction that `choose` keeps whatever the counts; None if they decide.
      per_column: whether `choose` rounds the counts to as many units in each column; the count of
        a layer then stays what it is at first.
    """

    name: str
    check: Callable[[str, Shape], None]
    units: Callable[[Num[Array, "..."]], Num[Array, "..."]]
    expand: Callable[[Bool[Array, "..."]], Bool[Array, "..."]]
    choose: Callable[[Sequence[Num[Array, "..."]], Int[Array, " layers"]], list[Bool[Array, "..."]]]
    density: float | None
    per_column: bool = False


class PerArray(NamedTuple):
    """Arrays of which each has its own blocks (or single weights), as a pattern says.

    Attributes:
      layers: those arrays, picked out of the parameters.
      pattern: the pattern.
    """

    layers: Layers
    pattern: Pattern

    def scores(self, arrays: Sequence[Num[Array, "..."]]) -> list[Num[Array, "..."]]:
        """Scores of blocks, for each array."""
        return [self.pattern.units(array) for array in arrays]

    def growth(self, arrays: Sequence[Num[Array, "..."]]) -> list[Num[Array, "..."]]:
        """The same, of what may grow."""
        return self.scores(arrays)

    def active(self, masks: Sequence[Bool[Array, "..."]]) -> list[Bool[Array, "..."]]:
        """The blocks of which any weight is kept."""
        return [self.pattern.units(m.astype(jnp.float32)) > 0 for m in masks]

    def choose(
        self, scores: Sequence[Num[Array, "..."]], counts: Int[Array, " layers"]
    ) -> list[Bool[Array, "..."]]:
        """The counts[l] blocks of the largest scores in each array, or what the pattern keeps."""
        return self.pattern.choose(scores, counts)

    def masks(self, kept: Sequence[Bool[Array, "..."]]) -> list[Bool[Array, "..."]]:
        """The arrays' masks."""
        return [self.pattern.expand(blocks) for blocks in kept]


def unstructured() -> Pattern:
    """Every weight for itself."""
    return Pattern(
        name="unstructured",
        check=lambda path, shape: None,
        units=lambda scores: scores,
        expand=lambda mask: mask,
        choose=largest_in_each,
        density=None,
    )


def n_m(n: int = 2, m: int = 4, *, axis: int = -2) -> Pattern:
    """N of every M consecutive weights along an axis, as sparse tensor cores take them (2:4).

    Args:
      n: weights that stay in each group.
      m: weights in each group.
      axis: the axis along which groups lie; −2 is that of the input features in kernels of both
        dense layers (in, out) and convolutions (height, width, in, out), the one that a matrix
        product sums over. Its length must be a multiple of m.

    The sparsity is 1 − n/m in every array, whatever the distribution.

    Returns:
      A Pattern of fixed density.

    Raises:
      ValueError, TypeError: for counts below 1, or n above m.

    Reference: Mishra et al., Accelerating Sparse Deep Neural Networks,
    https://arxiv.org/abs/2104.08378
    """
    check_count("n", n)
    check_count("m", m)
    if n > m:
        raise ValueError(f"n={n} must be at most m={m}: n of every m weights stay.")

    def check(path: str, shape: Shape) -> None:
        if not -len(shape) <= axis < len(shape) or shape[axis] % m:
            raise ValueError(
                f"the {n}:{m} pattern needs a multiple of {m} along axis {axis}, but {path} has "
                f"the shape {shape}: leave it dense with where=."
            )

    def choose_one(scores: Num[Array, "*layer"]) -> Bool[Array, "*layer"]:
        last = jnp.moveaxis(shardings.gathered(scores), axis, -1)
        groups = last.reshape(*last.shape[:-1], -1, m)
        return jnp.moveaxis(largest_in_groups(groups, n).reshape(last.shape), -1, axis)

    def choose(
        scores: Sequence[Num[Array, "..."]], counts: Int[Array, " layers"]
    ) -> list[Bool[Array, "..."]]:
        del counts
        return [choose_one(score) for score in scores]

    return unstructured()._replace(name=f"{n}:{m}", check=check, choose=choose, density=n / m)


def block(rows: int, columns: int, *, per_column: bool = False) -> Pattern:
    """Blocks of rows × columns weights in the last two axes (input and output features).

    A block's score is the sum of its weights' scores.

    Args:
      rows: along the input features.
      columns: along the output features.
      per_column: whether every column of blocks keeps the same number of them, whichever they are,
        as products that skip the others need (`block_sparse`). A layer's count is rounded to a
        multiple of its columns, at least one block in each: six rows of blocks are 83% sparse at
        most. The global distribution is then the uniform one.
    """
    check_count("rows", rows)
    check_count("columns", columns)

    def check(path: str, shape: Shape) -> None:
        if len(shape) < 2 or shape[-2] % rows or shape[-1] % columns:
            raise ValueError(
                f"blocks of {rows}×{columns} need multiples of both in the last two axes, but "
                f"{path} has the shape {shape}: leave it dense with where=."
            )

    def units(scores: Num[Array, "*outer a b"]) -> Num[Array, "*outer r c"]:
        *outer, a, b = scores.shape
        tiles = shardings.gathered(scores).reshape(*outer, a // rows, rows, b // columns, columns)
        return tiles.sum(axis=(-3, -1))

    def expand(mask: Bool[Array, "*outer r c"]) -> Bool[Array, "*outer a b"]:
        return jnp.repeat(jnp.repeat(mask, rows, axis=-2), columns, axis=-1)

    return Pattern(
        name=f"blocks of {rows}×{columns}" + (", as many in each column" if per_column else ""),
        check=check,
        units=units,
        expand=expand,
        choose=_as_many_in_each_column if per_column else largest_in_each,
        density=None,
        per_column=per_column,
    )


def _as_many_in_each_column(
    scores: Sequence[Num[Array, "..."]], counts: Int[Array, " layers"]
) -> list[Bool[Array, "..."]]:
    """Of each array about counts[i] units, the largest along its axis −2, as many in each group."""

    def one(scores: Num[Array, "*outer r c"], count: Int[Array, ""]) -> Bool[Array, "*outer r c"]:
        groups = jnp.moveaxis(scores, -2, -1)
        in_each = jnp.round(count / max(scores.size // max(scores.shape[-2], 1), 1))
        kept = largest_in_groups(groups, jnp.maximum(in_each, 1).astype(jnp.int32))
        return jnp.moveaxis(kept, -1, -2)

    return [one(score, count) for score, count in zip(scores, counts, strict=True)]
