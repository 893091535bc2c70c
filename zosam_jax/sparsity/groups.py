"""Units that structured pruning removes whole: channels, heads and neurons, and where they lie.

A group is a set of units of one kind, for example the output channels of a convolution. Each of its
members is one axis of one array, along which the units lie: the convolution's kernel and bias, the
BatchNorm behind it, the input axis of the layers that read it. To remove a unit is to remove its
positions from every member.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from zosam_jax.errors import check_one_of
from zosam_jax.trees import Int

CHANNELS, NEURONS, HEADS = "channels", "neurons", "heads"

#: What a member is to its units: it makes them, scales or shifts them, or reads them.
OUTPUT, ELEMENTWISE, INPUT = "output", "elementwise", "input"


class Member(NamedTuple):
    """One axis of one array, along which the units of a group lie.

    Attributes:
      path: the name of the array, as jax.tree_util.keystr gives it.
      axis: which of its axes, counted from 0.
      unit_of: for each position along the axis the unit to which it belongs, from 0 up; −1 for a
        position that belongs to no unit of the group (an axis that reads a concatenation).
      role: "output" for an array that makes the units (a kernel's output axis), "elementwise" for
        one that scales or shifts them (bias, BatchNorm and its statistics), "input" for one that
        reads them (a kernel's input axis).
      scales: whether an elementwise member only multiplies, so that a unit that is 0 stays 0
        whatever it holds; a bias does not.
    """

    path: str
    axis: int
    unit_of: Int[np.ndarray, " positions"]
    role: str
    scales: bool = False


class Group(NamedTuple):
    """Units that stand in the same arrays.

    Attributes:
      name: the array that makes them, without its last key, as in "['fc1']".
      kind: "channels", "neurons" or "heads".
      size: the number of units.
      members: every array that has them, those that make them first.
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]


class Units(NamedTuple):
    """The units of a network.

    Attributes:
      groups: what can be removed.
      whole: what was left whole, one sentence for each axis or set of axes, with its reason.
    """

    groups: tuple[Group, ...]
    whole: tuple[str, ...] = ()


def check_is_units(units: Any) -> None:
    """Raises for anything that is not Units."""
    if not isinstance(units, Units):
        raise TypeError(f"units is {type(units).__name__}; it must be what sparsity.units returns.")


def check_fit(units: Units, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises for units that do not fit arrays of these names; see `check_units`."""
    check_is_units(units)
    names = [group.name for group in units.groups]
    for group in units.groups:
        of_group = f"units: the group {group.name!r}"
        if names.count(group.name) > 1:
            raise ValueError(f"{of_group} stands there twice; each needs a name of its own.")
        if not any(member.path in shapes for member in group.members):
            raise ValueError(
                f"{of_group} lies in {', '.join(m.path for m in group.members[:3])}, and params "
                f"holds {', '.join(list(shapes)[:3])}: they are units of another network."
            )
        for path, axis, unit_of, role, *_ in group.members:
            check_one_of("role", role, (OUTPUT, ELEMENTWISE, INPUT))
            shape = shapes.get(path)
            if shape is not None and not 0 <= axis < len(shape):
                raise ValueError(f"{of_group} names axis {axis} of {path}, whose shape is {shape}.")
            if shape is not None and len(unit_of) != shape[axis]:
                raise ValueError(
                    f"{of_group} has {len(unit_of)} positions along axis {axis} of {path}, whose "
                    f"shape is {shape}."
                )
            if len(unit_of) and not -1 <= np.min(unit_of) <= np.max(unit_of) < group.size:
                raise ValueError(
                    f"{of_group} has {group.size} units, and along axis {axis} of {path} there "
                    f"are {np.min(unit_of)} … {np.max(unit_of)}."
                )
