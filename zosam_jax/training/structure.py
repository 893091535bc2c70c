"""Whole units in a run: what a network's options let go, and which of them are left."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import sparsity
from zosam_jax.sparsity import structured
from zosam_jax.sparsity.dependencies import KINDS
from zosam_jax.sparsity.groups import OUTPUT, Group, Units
from zosam_jax.sparsity.layers import chooser
from zosam_jax.training.config import ProblemConfig, maskable
from zosam_jax.trees import Array, Bool, PyTree

# What stands before the name of an array where parameters and model state are one tree.
_TREE = re.compile(r"(?<= )\[[01]\]")

#: For each group, by its name, the numbers of the units that are left; as a checkpoint has it.
Kept: TypeAlias = dict[str, list[int]]


def find(
    config: ProblemConfig,
    apply: Callable[[PyTree, PyTree, Array], Array],
    network: tuple[PyTree, PyTree],
    inputs: Any,
) -> Units:
    """The units that a run may remove; nothing is computed.

    Args:
      config: its options.
      apply: (params, model_state, inputs) → outputs, in inference mode.
      network: shapes of parameters and model state.
      inputs: shapes of inputs.

    Returns:
      Units whose arrays have the names that they have in the parameters, or in the model state.

    Raises:
      ValueError: if nothing can be removed; if a kind that was asked for is not there; for a
        network that cannot run with smaller arrays.
    """
    asked = f"structure={','.join(config.kinds)!r}, model={config.model!r}"
    try:
        found = sparsity.units(
            lambda arrays, x: apply(arrays[0], arrays[1], x), network, inputs, kinds=config.kinds
        )
    except ValueError as error:
        raise ValueError(f"{asked}: {_TREE.sub('', str(error))}") from error
    units = Units(tuple(map(_in_its_tree, found.groups)))
    there = list(dict.fromkeys(group.kind for group in units.groups))
    asks_for_all = config.structure in (None, ",".join(KINDS))
    for kind in config.kinds:
        if kind not in there and not asks_for_all:
            raise ValueError(f"{asked}: it has no {kind} to be removed, but {' and '.join(there)}.")
    leaves = {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(network[0])
    }
    where = config.sparse_layers or maskable(config.model)
    chosen = chooser(where)

    def is_chosen(group: Group) -> bool:
        makers = [m.path for m in group.members if m.role == OUTPUT and m.path in leaves]
        return any(chosen(path, leaves[path]) for path in makers)

    units = Units(tuple(filter(is_chosen, units.groups)))
    if not units.groups:
        raise ValueError(
            f"sparse_layers={where!r} finds no kernel that makes {' or '.join(there)}."
        )
    _check_smaller(asked, apply, network, inputs, units)
    return units


def _in_its_tree(group: Group) -> Group:
    """A group of (parameters, model state) by the names of its arrays in one of the two."""
    members = tuple(m._replace(path=m.path.partition("]")[2]) for m in group.members)
    return group._replace(name=group.name.partition("]")[2], members=members)


def _check_smaller(
    asked: str,
    apply: Callable[[PyTree, PyTree, Array], Array],
    network: tuple[PyTree, PyTree],
    inputs: Any,
    units: Units,
) -> None:
    """Raises for a network that holds on to its widths: it is traced with one unit less of each."""

    def array(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            return leaf
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

    kept = {group.name: np.arange(group.size) > 0 for group in units.groups}
    smaller = [sparsity.cut(jax.tree.map(array, tree), units, kept) for tree in network]
    try:
        jax.eval_shape(apply, *smaller, inputs)
    except Exception as error:  # every library has its own
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{asked}: the network does not run with smaller arrays, since it names its widths "
            f"elsewhere: {reason:.200}"
        ) from error


def kept_by(masks: PyTree, params: PyTree, units: Units) -> Kept:
    """The units that masks leave; all others can be removed from the network under them."""
    left = sparsity.kept_units(params, masks, units)
    return {name: np.flatnonzero(kept).tolist() for name, kept in left.items()}


def as_arrays(kept: Kept, units: Units) -> dict[str, Bool[np.ndarray, " units"]]:
    """The same as `sparsity.cut` takes it.

    Raises:
      ValueError: if they are units of another network.
    """
    names = {group.name for group in units.groups}
    if kept.keys() != names:
        other = min(kept.keys() ^ names)
        raise ValueError(f"the units that were kept are of another network: {other}.")
    return {g.name: np.isin(np.arange(g.size), kept[g.name]) for g in units.groups}


def masks_of(kept: Kept, params: PyTree, units: Units) -> PyTree:
    """The masks of the whole network, in which units that were removed are zero.

    Args:
      kept: which are left.
      params: of the whole network, or their shapes.
      units: of the whole network.
    """
    structure = structured.bind(units, params)
    of_groups = as_arrays(kept, units)
    masks = structure.masks([jnp.asarray(of_groups[group.name]) for group in units.groups])
    return structure.layers.fill(masks)
