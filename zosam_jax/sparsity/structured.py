"""Units on the arrays of a network: from scores of weights to units, from those to masks of arrays.

The score of a unit is the sum of the scores of the weights that it carries in all of its members,
the kernels that make it and those that read it alike. Which arrays count is the choice of a
`where`; by default kernels do, and biases, BatchNorm's scales and statistics do not, though they
are masked too.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import shardings
from zosam_jax.errors import check_one_of
from zosam_jax.sparsity import distributions
from zosam_jax.sparsity.distributions import GLOBAL, Shape, SparsityDistribution
from zosam_jax.sparsity.groups import (
    ELEMENTWISE,
    INPUT,
    OUTPUT,
    Member,
    Units,
    check_fit,
    check_is_units,
)
from zosam_jax.sparsity.layers import Layers, Where, chooser, is_weight
from zosam_jax.sparsity.selection import largest_in_each, largest_of_all, largest_within
from zosam_jax.trees import Array, Bool, Float, Int, Num, PyTree, Shaped

ROLES = (OUTPUT, ELEMENTWISE, INPUT)
BUDGETS = ("units", "weights", "macs")


class Part(NamedTuple):
    """A member among the arrays of a network."""

    array: int  # its position among them
    member: Member
    counts: bool  # whether its weights count in the scores


class Structure(NamedTuple):
    """Groups of units on the arrays that have them.

    Attributes:
      layers: those arrays, picked out of the parameters.
      shapes: of each of them.
      names: of the groups.
      sizes: the number of units of each group.
      parts: the members of each group.
    """

    layers: Layers
    shapes: tuple[Shape, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    parts: tuple[tuple[Part, ...], ...]

    def scores(self, arrays: Sequence[Num[Array, "..."] | None]) -> list[Float[Array, " _"]]:
        """Sums the scores of weights over the units that carry them, group by group.

        What is given for arrays that do not count is not looked at.
        """
        return self._sums(arrays, lambda part: part.counts)

    def growth(self, arrays: Sequence[Num[Array, "..."] | None]) -> list[Float[Array, " _"]]:
        """The same over the weights that read a unit: others have no gradient when it is gone."""
        return self._sums(arrays, lambda part: part.counts and part.member.role == INPUT)

    def active(self, masks: Sequence[Bool[Array, "..."]]) -> list[Bool[Array, " _"]]:
        """The units of which any weight is kept."""
        return [kept > 0 for kept in self._sums(masks, lambda part: True)]

    def masks(
        self, kept: Sequence[Bool[Array, " _"]], roles: tuple[str, ...] = ROLES
    ) -> list[Bool[Array, "..."]]:
        """The arrays' masks, in which a unit that is not kept is zero in its members of `roles`."""
        found = [jnp.ones((), bool)] * len(self.shapes)
        for units, parts in zip(kept, self.parts, strict=True):
            for array, member, _ in parts:
                if member.role in roles:
                    found[array] &= by_position(units, member, len(self.shapes[array]))
        return [jnp.broadcast_to(m, shape) for m, shape in zip(found, self.shapes, strict=True)]

    def choose(
        self, scores: Sequence[Num[Array, " _"]], counts: Int[Array, " groups"]
    ) -> list[Bool[Array, " _"]]:
        """The counts[g] units of the largest scores in each group."""
        kept: list[Array] = largest_in_each(list(scores), counts)
        return kept

    def cost(
        self, of_arrays: Sequence[float]
    ) -> Callable[[list[Bool[Array, " _"]]], Float[Array, ""]]:
        """A function of masks of units: the part of the arrays' costs that is left.

        An array costs in proportion to what remains of it without the units' rows and columns.
        """
        shares = np.asarray(of_arrays, np.float64) / max(sum(of_arrays), 1)

        def left(kept: list[Bool[Array, " _"]]) -> Float[Array, ""]:
            axes: dict[tuple[int, int], Array] = {}
            for units, parts in zip(kept, self.parts, strict=True):
                for array, member, _ in parts:
                    key = (array, member.axis)
                    axes[key] = axes.get(key, jnp.ones((), bool)) & by_position(
                        units, member, ndim=member.axis + 1
                    )
            density = [jnp.ones((), jnp.float32)] * len(self.shapes)
            for (array, _), mask in axes.items():
                density[array] *= jnp.mean(mask, dtype=jnp.float32)
            return sum(
                (jnp.float32(c) * d for c, d in zip(shares, density, strict=True)),
                start=jnp.zeros((), jnp.float32),
            )

        return left

    def _sums(
        self, arrays: Sequence[Shaped[Array, "..."] | None], chosen: Callable[[Part], bool]
    ) -> list[Float[Array, " _"]]:
        return [
            sum(
                (_per_unit(arrays[p.array], p.member, size) for p in filter(chosen, parts)),
                start=jnp.zeros(size, jnp.float32),
            )
            for size, parts in zip(self.sizes, self.parts, strict=True)
        ]


def bind(units: Units, params: PyTree, where: Where = is_weight) -> Structure:
    """Finds the members among the parameters; what is not there, as statistics, is left out.

    Args:
      units: the units.
      params: the parameters.
      where: which arrays count in the scores.

    Raises:
      ValueError: for units of another network, without groups, or with a group of which no array
        counts.
    """
    check_is_units(units)
    if not units.groups:
        raise ValueError(
            "units has no group, so there is nothing to remove"
            + (f": {units.whole[0]}" if units.whole else ".")
        )
    wanted = {m.path for group in units.groups for m in group.members}
    leaves = [(_name(path, wanted), x) for path, x in jax.tree.leaves_with_path(params)]
    check_fit(units, {path: tuple(jnp.shape(x)) for path, x in leaves})
    indices = [i for i, (path, _) in enumerate(leaves) if path in wanted]
    array_of = {leaves[i][0]: n for n, i in enumerate(indices)}
    shapes = tuple(tuple(jnp.shape(leaves[i][1])) for i in indices)
    chosen = chooser(where)
    counts = [chosen(*leaves[i]) for i in indices]
    parts = []
    for group in units.groups:
        here = [m for m in group.members if m.path in array_of]
        bound = tuple(Part(array_of[m.path], m, counts[array_of[m.path]]) for m in here)
        if not any(part.counts for part in bound):
            raise ValueError(
                f"where= chooses no array of the group {group.name}, so its units have no score; "
                f"it has {', '.join(m.path for m in here)}. Choose one of them, or leave the group "
                "out of units."
            )
        parts.append(bound)
    layers = Layers(jax.tree.structure(params), tuple(indices), tuple(array_of))
    names, sizes = zip(*((group.name, group.size) for group in units.groups), strict=True)
    return Structure(layers, shapes, names, sizes, tuple(parts))


def check_read(structure: Structure) -> None:
    """Raises for a group that nothing reads."""
    for name, parts in zip(structure.names, structure.parts, strict=True):
        if not any(part.counts and part.member.role == INPUT for part in parts):
            raise ValueError(
                f"units: nothing among the parameters reads the group {name}: leave it out."
            )


def choose(
    structure: Structure,
    scores: Sequence[Num[Array, " _"]],
    sparsity: float,
    *,
    distribution: str | SparsityDistribution = GLOBAL,
    costs: Sequence[float] | None = None,
) -> list[Bool[Array, " _"]]:
    """The units that stay: those of the largest scores within a budget, at least one of each group.

    Args:
      structure: the units on their arrays.
      scores: of the units, group by group.
      sparsity: the fraction of units that go, or of the costs.
      distribution: see `from_scores`.
      costs: of the arrays; None for a budget of units.

    Raises:
      ValueError: for a budget that would empty a group.
    """
    scores = list(scores)
    if costs is not None:
        check_limit(structure, sparsity, distribution, costs)
        return largest_within(
            scores,
            1.0 - sparsity,
            structure.cost(costs),
            evenly=distribution != GLOBAL,
        )
    if distribution != GLOBAL:
        counts = counts_of(structure, sparsity, distribution)
        return structure.choose(scores, jnp.asarray(counts, jnp.int32))
    return largest_of_all(scores, total_of(structure, sparsity))


def total_of(structure: Structure, sparsity: float) -> int:
    """The number of units that stay in all groups together; raises if it is below one of each."""
    count, groups = round((1.0 - sparsity) * sum(structure.sizes)), len(structure.sizes)
    if count < groups:
        raise ValueError(
            f"sparsity={sparsity} leaves {count} of {sum(structure.sizes)} units to {groups} "
            "groups, of which each keeps one at least: choose a lower sparsity, or leave small "
            "groups out of units."
        )
    return count


def counts_of(
    structure: Structure, sparsity: float, distribution: str | SparsityDistribution
) -> list[int]:
    """The number of units that stay in each group, by a distribution; raises if one is empty."""
    counts_by = distributions.get(distribution)
    try:
        counts = counts_by([(size,) for size in structure.sizes], sparsity)
    except ValueError as error:
        raise ValueError(
            f"sparsity={sparsity} would leave nothing of a group of {min(structure.sizes)} units: "
            "choose a lower sparsity, distribution='global', or leave small groups out of units."
        ) from error
    distributions.check_counts(counts, structure.sizes)
    return counts


def check_limit(
    structure: Structure,
    sparsity: float,
    distribution: str | SparsityDistribution,
    costs: Sequence[float],
) -> None:
    """Raises unless a budget of costs can be met with one unit in each group."""
    if distribution not in (GLOBAL, "uniform", "erk"):
        raise ValueError(
            f"distribution={distribution!r} does not go with a budget of weights or MACs, which "
            "takes 'global' or 'uniform'."
        )
    with jax.ensure_compile_time_eval():
        least = float(structure.cost(costs)([jnp.arange(n) == 0 for n in structure.sizes]))
    if least > 1.0 - sparsity + 1e-6:
        raise ValueError(
            f"sparsity={sparsity} cannot be reached: with one unit in each group {least:.1%} of "
            "the budget remain: choose a lower sparsity."
        )


def costs_of(structure: Structure, budget: str, costs: PyTree | None) -> Sequence[float] | None:
    """The arrays' costs under a budget, None for one of units.

    Args:
      structure: the units on their arrays.
      budget: "units", "weights" or "macs".
      costs: for "macs" what `zosam_jax.sparsity.macs.macs` returns.
    """
    check_one_of("budget", budget, BUDGETS)
    if (budget == "macs") != (costs is not None):
        raise ValueError(
            "budget='macs' needs costs=macs.macs(function, params, inputs), the MACs of each "
            f"parameter, and no other budget takes them; budget={budget!r}."
        )
    if budget == "units":
        return None
    if budget == "weights":
        return [float(np.prod(shape)) for shape in structure.shapes]
    return [float(c) for c in structure.layers.take(costs)]


def kept(units: Units, masks: PyTree) -> list[Bool[Array, " _"]]:
    """The units that masks keep, group by group."""
    structure = bind(units, masks, every_array)
    return structure.active(structure.layers.take(masks))


def both(masks: PyTree, others: PyTree) -> PyTree:
    """What both trees of masks keep; None where neither masks anything."""

    def leaf(one: Array | None, other: Array | None) -> Array | None:
        if one is None or other is None:
            return other if one is None else one
        return one & other

    return jax.tree.map(leaf, masks, others, is_leaf=lambda x: x is None)


def every_array(path: str, leaf: Array) -> bool:
    """A `where` by which all members count."""
    del path, leaf
    return True


def of_kind(units: Units, *kinds: str) -> Units:
    """The groups of these kinds alone: "channels", "heads" or "neurons"."""
    found = tuple(group for group in units.groups if group.kind in kinds)
    if not found:
        there = sorted({group.kind for group in units.groups})
        raise ValueError(f"units has no {' or '.join(kinds)}; it has {', '.join(there)}.")
    return units._replace(groups=found)


def _name(path: tuple[Any, ...], wanted: set[str]) -> str:
    """A parameter's name; those of Flax NNX may stand in variables, with a `value` of their own."""
    name = jax.tree_util.keystr(path)
    return name if name in wanted else name.removesuffix(".value")


def by_position(
    of_units: Shaped[Array, " units"], member: Member, ndim: int, fill: float | bool = True
) -> Shaped[Array, "..."]:
    """What each position along a member's axis has of its unit, `fill` where it has none.

    Broadcasts against an array of `ndim` dimensions.
    """
    row = jnp.append(of_units, fill)[np.asarray(member.unit_of)]  # −1 is the last
    return row.reshape([-1 if axis == member.axis else 1 for axis in range(ndim)])


def _per_unit(array: Any, member: Member, size: int) -> Float[Array, " units"]:
    """Σ over all positions of each unit, always in the same order."""
    others = tuple(axis for axis in range(array.ndim) if axis != member.axis)
    along = jnp.sum(shardings.gathered(array), axis=others, dtype=jnp.float32)
    return jnp.sum(jnp.append(along, 0.0)[_positions(member, size)], axis=1)


def _positions(member: Member, size: int) -> Int[np.ndarray, "units most"]:
    """The positions of each unit, filled up with −1."""
    unit_of = np.asarray(member.unit_of)
    positions = np.argsort(unit_of, kind="stable")[np.sum(unit_of < 0) :]
    counts = np.bincount(unit_of[positions], minlength=size)
    table = np.full((size, max(counts)), -1)
    table[np.arange(max(counts)) < counts[:, None]] = positions
    return table
