"""Units in trees of arrays: whether they fit, and the arrays without those that are removed."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from zosam_jax.sparsity.groups import Member, Units, check_fit, check_is_units
from zosam_jax.sparsity.moments import map_moments
from zosam_jax.trees import Bool, PyTree, Shaped


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their names."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def check_units(units: Units, params: PyTree) -> None:
    """Raises for units that do not fit the parameters; arrays that are not there are no fault.

    Raises:
      ValueError: naming the group, the array and what does not fit: an axis that it does not have,
        an axis of another length, units outside 0 … size − 1, two groups of one name; if none of
        a group's arrays is among the parameters.
    """
    check_fit(units, {path: np.shape(leaf) for path, leaf in leaves_by_path(params).items()})


def along(array: Shaped[np.ndarray, "..."], member: Member) -> Shaped[np.ndarray, "..."]:
    """A view of an array whose first axis is the member's."""
    view: Shaped[np.ndarray, "*axes"] = np.moveaxis(array, member.axis, 0)
    return view


def gone_positions(
    member: Member, kept_units: Bool[np.ndarray, " units"]
) -> Bool[np.ndarray, " positions"]:
    """The positions of units that are not kept."""
    gone: Bool[np.ndarray, " positions"] = ~np.append(kept_units, True)[member.unit_of]
    return gone


def cut(tree: PyTree, units: Units, kept: Mapping[str, Bool[np.ndarray, " units"]]) -> PyTree:
    """A tree without the positions of removed units.

    Args:
      tree: parameters, BatchNorm's statistics, averages of weights: arrays whose names in the tree
        are those of the units' members. Others stay as they are.
      units: as they are given to `kept_units`.
      kept: what that returned.

    Returns:
      A tree like `tree`, with smaller arrays.
    """
    cuts = _cuts(units, kept)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: cuts.get(jax.tree_util.keystr(path), lambda x: x)(x), tree
    )


def cut_state(
    opt_state: PyTree,
    params: PyTree,
    units: Units,
    kept: Mapping[str, Bool[np.ndarray, " units"]],
) -> PyTree:
    """An optimizer's state without the positions of removed units; see `cut`, `compact_state`.

    Args:
      opt_state: the state of any optax transformation.
      params: the dense parameters, or their shapes.
      units: as they are given to `kept_units`.
      kept: what that returned.
    """
    cuts = _cuts(units, kept)
    of_leaves = jax.tree_util.tree_map_with_path(
        lambda path, _: cuts.get(jax.tree_util.keystr(path)), params
    )
    return map_moments(lambda array, cut_leaf: cut_leaf(array), opt_state, params, of_leaves)


def _cuts(
    units: Units, kept: Mapping[str, Bool[np.ndarray, " units"]]
) -> dict[str, Callable[[Any], Any]]:
    """For the name of each array that becomes smaller the function that makes it so."""
    check_is_units(units)
    gone: dict[str, dict[int, Bool[np.ndarray, " positions"]]] = {}
    for group in units.groups:
        of_group = kept.get(group.name)
        if of_group is None or np.shape(of_group) != (group.size,):
            raise ValueError(
                f"kept[{group.name!r}] must be {group.size} bools, one for each unit; it is "
                f"{of_group}. kept_units makes them."
            )
        for member in group.members:
            of_array = gone.setdefault(member.path, {})
            before = of_array.get(member.axis, False)
            of_array[member.axis] = gone_positions(member, np.asarray(of_group)) | before

    return {
        path: functools.partial(_cut_array, gone=of_array)
        for path, of_array in gone.items()
        if any(np.any(positions) for positions in of_array.values())
    }


def _cut_array(array: Any, gone: Mapping[int, Bool[np.ndarray, " positions"]]) -> Any:
    """A smaller array; of a shape (jax.ShapeDtypeStruct) a smaller shape."""
    if isinstance(array, jax.ShapeDtypeStruct):
        sizes = [np.sum(~gone[axis]) if axis in gone else n for axis, n in enumerate(array.shape)]
        return jax.ShapeDtypeStruct(tuple(map(int, sizes)), array.dtype)
    smaller = np.asarray(array)
    for axis, positions in gone.items():
        smaller = np.compress(~positions, smaller, axis)
    return smaller if isinstance(array, np.ndarray) else jax.device_put(smaller)
