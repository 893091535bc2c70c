"""Arrays in pieces on several devices, where their types say so: meshes with explicit axes.

On a mesh of automatic axes the compiler settles the layout, and nothing here does anything. On one
of explicit axes, which jax.make_mesh gives by default, JAX derives the layout of a result from the
operands: what has none (draws, masks from elsewhere) is put into that of the parameters, and what
JAX does not do in pieces is done on whole arrays.
"""

import math
from typing import TypeAlias

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zosam_jax.errors import is_traced
from zosam_jax.trees import Array, Shaped

Axes: TypeAlias = str | tuple[str, ...] | None


def of(x: Shaped[Array, "..."]) -> NamedSharding | None:
    """The sharding that is part of the type of `x`; None where it is the compiler's affair."""
    # That of an array outside jit is asked first: its mesh knows the devices. A traced one would
    # search the whole program for the words of its refusal.
    own = None if is_traced(x) else getattr(x, "sharding", None)
    sharding = own or jax.typeof(x).sharding
    is_explicit = (
        isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types
    )
    return sharding if is_explicit else None


def like(x: Shaped[Array, "*s"], leaf: Shaped[Array, "*s"]) -> Shaped[Array, "*s"]:
    """`x` in the pieces that `leaf` is in."""
    sharding = of(leaf)
    return x if sharding is None else jax.sharding.reshard(x, sharding)


def gathered(x: Shaped[Array, "*s"]) -> Shaped[Array, "*s"]:
    """`x` whole on every device."""
    sharding = of(x)
    return x if sharding is None else _resharded(x, sharding, ())


def batch_axes(x: Shaped[Array, "..."]) -> Axes:
    """The mesh axes over which the first axis of `x` is split."""
    sharding = of(x)
    return sharding.spec[0] if sharding is not None and len(sharding.spec) else None


def batch_pieces(x: Shaped[Array, "..."]) -> int:
    """Into how many pieces the first axis of `x` is split."""
    axes, sharding = batch_axes(x), of(x)
    if axes is None or sharding is None:
        return 1
    names = axes if isinstance(axes, tuple) else (axes,)
    return math.prod(sharding.mesh.shape[name] for name in names)


def split_batch(x: Shaped[Array, "*s"], axes: Axes) -> Shaped[Array, "*s"]:
    """`x` with its first axis split over these mesh axes, in place of its own."""
    sharding = of(x)
    return x if sharding is None else _resharded(x, sharding, (axes, *tuple(sharding.spec)[1:]))


def _resharded(
    x: Shaped[Array, "*s"], sharding: NamedSharding, spec: tuple[Axes, ...]
) -> Shaped[Array, "*s"]:
    moved: Array = jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))
    return moved
