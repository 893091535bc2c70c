"""What does the loss look like around the weights? Its values along a line and on a plane.

Directions may be any: random ones, scaled filter by filter so that networks of different scales
compare (`filter_normalised`, `random_plane`), or eigenvectors of the Hessian.

Reference: Li et al., Visualizing the Loss Landscape of Neural Nets,
https://arxiv.org/abs/1712.09913
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import directions as draws
from zosam_jax import keys, masks, trees
from zosam_jax import radius as radii
from zosam_jax.analysis import batches as means
from zosam_jax.analysis.batches import Batch, LossFn
from zosam_jax.binding import Call
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Float, FloatTree, PyTree


def filter_normalised(direction: Any, params: PyTree, *, mask: PyTree = None) -> FloatTree:
    """u_f ‖θ_f‖₂ / ‖u_f‖₂ for every filter f, and 0 for arrays of fewer than two axes.

    A distance of 1 along it moves every filter by as much as its weights are long, so that the
    curves of networks of other scales compare. Filters are those of `zosam_jax.radius.filterwise`;
    biases and the scales of normalisations stay where they are, as in the paper.

    Args:
      direction: u, a pytree like `params`; or a seed or random key, by which u ~ N(0, I) is drawn
        on the kept weights.
      params: θ, where the surface is to be drawn.
      mask: the kept weights (`zosam_jax.sparsity.get_masks`); None for all. The direction is
        exactly zero elsewhere, and norms count kept weights alone.

    Returns:
      A pytree like `params` in float32 or wider, None where those are not floating point.
    """
    floating, _ = trees.split_floating(params)
    kept = masks.resolve(mask, floating)
    if _is_key(direction):
        direction = draws.normal(keys.as_key(direction), floating, kept)
    direction = jax.tree.map(
        lambda u: u if jnp.ndim(u) > 1 else jnp.zeros_like(u),
        _fitting("direction", direction, floating),
    )
    return radii.perturbation(radii.filterwise, direction, floating, jnp.ones(()), kept)


def random_plane(
    params: PyTree, key: int | Array = 0, *, mask: PyTree = None, orthogonal: bool = False
) -> tuple[FloatTree, FloatTree]:
    """Two random filter-normalised directions (u, v), drawn independently.

    Among d weights their cosine is of the size 1/√d, so that they are all but orthogonal.

    Args:
      orthogonal: whether to make v ← v − (⟨u, v⟩ / ⟨u, u⟩) u. Its filters are then no longer
        exactly as long as their weights.

    Returns:
      Two pytrees as `filter_normalised` returns them.
    """
    first, second = jax.random.split(keys.as_key(key))
    u = filter_normalised(first, params, mask=mask)
    v = filter_normalised(second, params, mask=mask)
    if orthogonal:
        v = trees.displace(v, u, -trees.ratio(trees.inner(u, v), trees.inner(u, u)))
    return u, v


def line(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    direction: PyTree,
    distances: Sequence[float] | np.ndarray,
) -> Float[Array, " n"]:
    """L(θ + t·u) at every distance t, the mean over all batches.

    Args:
      batches: of equal size; iterated over once.
      direction: u, a pytree like `params`.
      distances: the values of t, of shape [n]; one program is compiled for all.

    Returns:
      The losses, of shape [n], in float32 or wider.
    """
    along = (_fitting("direction", direction, params),)
    return _losses(loss_fn, params, batches, along, _axis("distances", distances)[:, None])


def plane(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    directions: tuple[PyTree, PyTree],
    *,
    xs: Sequence[float] | np.ndarray,
    ys: Sequence[float] | np.ndarray,
) -> Float[Array, "rows columns"]:
    """L(θ + x·u + y·v) at every point of a grid, the mean over all batches.

    Args:
      batches: of equal size; iterated over once.
      directions: (u, v), two pytrees like `params`; x goes along the first, y along the second.
      xs: the coordinates along u, of shape [columns].
      ys: those along v, of shape [rows].

    Returns:
      The losses, of shape [len(ys), len(xs)], in float32 or wider: losses[i, j] is the one at
      xs[j], ys[i], as matplotlib's contour(xs, ys, losses) takes it.
    """
    if not isinstance(directions, tuple | list) or len(directions) != 2:
        raise ValueError("directions must be two pytrees like params: (u, v).")
    u, v = (_fitting(f"directions[{i}]", d, params) for i, d in enumerate(directions))
    columns, rows = np.meshgrid(_axis("xs", xs), _axis("ys", ys))
    points = np.stack([columns.ravel(), rows.ravel()], axis=1)
    return _losses(loss_fn, params, batches, (u, v), points).reshape(columns.shape)


def _losses(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    along: tuple[FloatTree, ...],
    points: Float[np.ndarray, "n k"],
) -> Float[Array, " n"]:
    """The mean losses at points of shape [n, k], coordinates along k directions."""

    @jax.jit
    def at(
        params: PyTree, batch: Batch, along: tuple[FloatTree, ...], point: Float[Array, " k"]
    ) -> Float[Array, ""]:
        floating, merge = trees.split_floating(params)
        # Summed first, so that parameters of a narrow dtype are rounded once.
        offset = trees.scale(along[0], point[0])
        for direction, step in zip(along[1:], point[1:], strict=True):
            offset = trees.displace(offset, direction, step)
        loss = Objective(Call(loss_fn, (batch,)), name="loss_fn")
        return loss.probe(merge(trees.displace(floating, offset)))

    losses: Array = means.mean(
        lambda batch: jnp.stack([at(params, batch, along, point) for point in points]), batches
    )
    return losses


def _is_key(value: Any) -> bool:
    """Whether a value is a seed or a random key, and no array of directions."""
    if isinstance(value, int | np.integer):
        return True
    dtype = getattr(value, "dtype", None)
    return dtype is not None and (dtype == jnp.uint32 or jnp.issubdtype(dtype, jax.dtypes.prng_key))


def _fitting(argument: str, direction: PyTree, params: PyTree) -> FloatTree:
    """The direction's floating-point leaves in float32 or wider, one for each of `params`.

    Raises:
      ValueError: if structure or shape do not fit, naming the leaf.
    """
    (floating, _), (direction, _) = trees.split_floating(params), trees.split_floating(direction)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (direction, floating)]
    actual, expected = structures
    if actual != expected:
        raise ValueError(
            f"{argument} has the structure {actual}, which does not fit the parameters' "
            f"{expected}: give one array for each parameter."
        )
    pairs = zip(jax.tree.leaves_with_path(direction), jax.tree.leaves(floating), strict=True)
    for (path, u), theta in pairs:
        if jnp.shape(u) != jnp.shape(theta):
            raise ValueError(
                f"{argument}{jax.tree_util.keystr(path)} has the shape {jnp.shape(u)}, its "
                f"parameter has {jnp.shape(theta)}; they must be equal."
            )
    return jax.tree.map(lambda u: jnp.asarray(u, trees.wide_dtype(u)), direction)


def _axis(argument: str, values: Sequence[float] | np.ndarray) -> Float[np.ndarray, " n"]:
    """Coordinates as float64 of shape [n], n ≥ 1."""
    axis = np.asarray(values, np.float64)
    if axis.ndim != 1 or axis.size == 0 or not np.isfinite(axis).all():
        raise ValueError(f"{argument}={values!r} must be a sequence of one or more finite numbers.")
    return axis
