"""Removing units for good: smaller arrays, modules and optimizer states of the same function.

A unit goes when nothing reads it (the masks have no 1 left at its positions in the arrays that read
it), or when nothing makes it (none left in those that make it) and it is 0: every array that shifts
it, a bias or a running mean, is 0 there. A unit that nothing makes but a bias is a constant, and
stays: behind padding it cannot be folded into the next layer exactly. What goes may empty other
units, of the layers before and behind; they go as well.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import masks as mask_trees
from zosam_jax.sparsity import modules
from zosam_jax.sparsity.groups import ELEMENTWISE, INPUT, OUTPUT, Group, Member, Units
from zosam_jax.sparsity.removal import (
    along,
    check_units,
    cut,
    cut_state,
    gone_positions,
    leaves_by_path,
)
from zosam_jax.trees import Bool, PyTree


def compact(params: Any, masks: PyTree, units: Units) -> Any:
    """The smaller network that computes what the masked one does.

        small = sparsity.compact(params, masks, units)
        small_model = sparsity.compact(model, masks, units)  # of a Flax NNX module

    Units that the masks leave no weight in, or none out, are removed from every array that has
    them; zeros inside kept units stay zeros (`compact_masks` has their masks). Outputs are those of
    params ⊙ masks but for rounding, in training with BatchNorm as well; dropout draws other
    numbers. The smaller arrays lie on the default device.

    Args:
      params: any pytree of arrays, statistics of BatchNorm among them or not, or an NNX module,
        which is left as it is.
      masks: a pytree like `params` (of a module like its nnx.Param) with 1/0 or bool leaves; None
        where all weights are kept.
      units: as `sparsity.units` finds them, or written by hand.

    Returns:
      A tree like `params` of smaller arrays; of a module, a new one whose layers, Flax's own, know
      their new widths.

    Raises:
      ValueError: if masks or units do not fit the parameters; if the masks empty no unit, or all
        units of a group.
    """
    trained = _trained(params)
    resolved = mask_trees.resolve(masks, trained)
    remaining = _kept(params, resolved, units)
    if all(np.all(units_kept) for units_kept in remaining.values()):
        raise ValueError(
            "masks empty no unit of any group, so nothing can be removed: they are masks of single "
            "weights, or were drawn for other units than these."
        )
    small = cut(mask_trees.restrict(trained, resolved), units, remaining)
    if not modules.is_nnx(params):
        return small
    return modules.of_widths(params, [small, cut(modules.arrays(params)[1], units, remaining)])


def compact_masks(params: Any, masks: PyTree, units: Units) -> PyTree:
    """The masks of the compacted network, for the zeros that are left inside kept units.

    Args:
      params: the dense parameters or NNX module, as they are given to `compact`.
      masks: likewise.
      units: likewise.

    Returns:
      A tree like the parameters: bool arrays of the smaller shapes, None where all are kept.
    """
    resolved = mask_trees.resolve(masks, _trained(params))
    if resolved is None:
        return None
    small = cut(resolved, units, _kept(params, resolved, units))
    return jax.tree.map(lambda mask: None if bool(jnp.all(mask)) else mask, small)


def compact_state(opt_state: PyTree, params: Any, masks: PyTree, units: Units) -> PyTree:
    """The state of an optimizer for the compacted network, so that training goes on.

    Every array in it that belongs to a parameter is cut as that is: momentum, Adam's moments, the
    masks that a sparse wrapper keeps. Counters and schedules stay.

    Args:
      opt_state: the state of any optax transformation.
      params: the dense parameters or NNX module, as they are given to `compact`.
      masks: likewise.
      units: likewise.

    Returns:
      A state of the same structure with smaller arrays.
    """
    return cut_state(opt_state, _trained(params), units, kept_units(params, masks, units))


def kept_units(params: Any, masks: PyTree, units: Units) -> dict[str, Bool[np.ndarray, " units"]]:
    """Which units `compact` keeps.

    Args:
      params: the dense parameters or NNX module, as they are given to `compact`. Without the
        statistics of a BatchNorm a unit that nothing makes is not known to be 0, and is kept.
      masks: likewise.
      units: likewise.

    Returns:
      For each group, by its name, True for units that are kept.

    Raises:
      ValueError: if masks or units do not fit the parameters; if all units of a group would go.
    """
    return _kept(params, mask_trees.resolve(masks, _trained(params)), units)


def _kept(
    params: Any, masks: mask_trees.Resolved, units: Units
) -> dict[str, Bool[np.ndarray, " units"]]:
    trained = _trained(params)
    tree = modules.arrays(params, together=True) if modules.is_nnx(params) else params
    check_units(units, tree)
    given = dict(zip(leaves_by_path(trained), mask_trees.leaves(masks, trained), strict=True))
    paths = {member.path for group in units.groups for member in group.members}
    values = {path: x for path, x in leaves_by_path(tree).items() if path in paths}
    alive: dict[str, Bool[np.ndarray, ...]] = {
        path: np.ones(np.shape(x), bool) if given.get(path) is None else np.array(given[path])
        for path, x in values.items()
    }
    shifts = {path: alive[path] & (np.asarray(x) != 0) for path, x in values.items()}
    remaining = {group.name: np.ones(group.size, bool) for group in units.groups}
    is_settled = False
    while not is_settled:
        is_settled = True
        for group in units.groups:
            left = remaining[group.name] & _needed(group, alive, shifts)
            if np.array_equal(left, remaining[group.name]):
                continue
            if not left.any():
                raise ValueError(
                    f"masks empty all {group.size} {group.kind} of {group.name}, which no layer "
                    "can be without: keep one unit of each group at least."
                )
            is_settled = False
            remaining[group.name] = left
            for member in group.members:
                if member.path in alive:
                    along(alive[member.path], member)[gone_positions(member, left)] = False
    return remaining


def _needed(
    group: Group,
    alive: Mapping[str, Bool[np.ndarray, "..."]],
    shifts: Mapping[str, Bool[np.ndarray, "..."]],
) -> Bool[np.ndarray, " units"]:
    """The units that something reads, and that something makes or shifts."""

    def any_in(arrays: Mapping[str, Any], members: list[Member]) -> Bool[np.ndarray, " units"]:
        found: Bool[np.ndarray, " units"] = np.zeros(group.size, bool)
        for member in members:
            if member.path not in arrays:
                return ~found | True  # it is not known
            array = along(arrays[member.path], member)
            living = array.reshape(len(array), -1).any(axis=1)
            found[member.unit_of[living & (member.unit_of >= 0)]] = True
        return found

    def of_role(role: str) -> list[Member]:
        return [member for member in group.members if member.role == role]

    shifting = [member for member in of_role(ELEMENTWISE) if not member.scales]
    needed: Bool[np.ndarray, " units"] = any_in(alive, of_role(OUTPUT)) | any_in(shifts, shifting)
    reading = of_role(INPUT)
    if reading:
        needed = needed & any_in(alive, reading)
    return needed


def _trained(params: Any) -> PyTree:
    return modules.arrays(params)[0] if modules.is_nnx(params) else params
