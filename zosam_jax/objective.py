"""The minibatch loss as one step sees it: cheap values for probes, and one exact gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.trees import Array, PyTree

AxisName: TypeAlias = str | tuple[str, ...]


class Objective(NamedTuple):
    """What an ascent may ask about the loss L at parameters θ.

    Attributes:
      value_and_grad: θ → ((L(θ), aux), ∇L(θ)), averaged over the device axis. One forward and
        one backward pass. aux is None for a loss without auxiliary output.
      probe: θ → L(θ) by a forward pass alone, on this device's part of the batch.
      across_devices: averages a value over the device axis, where there is one.
    """

    value_and_grad: Callable[[PyTree], tuple[tuple[Array, Any], PyTree]]
    probe: Callable[[PyTree], Array]
    across_devices: Callable[[PyTree], PyTree]


def objective(
    loss: Callable[[PyTree], Any],
    *,
    name: str,
    probe: Callable[[PyTree], Any] | None = None,
    has_aux: bool = False,
    axis_name: AxisName | None = None,
) -> Objective:
    """Wraps a loss of the parameters alone.

    Args:
      loss: θ → scalar, or θ → (scalar, aux) with `has_aux`.
      name: what the caller calls `loss`, for error messages.
      probe: a stand-in for the loss at probes, θ → scalar; by default the loss.
      has_aux: whether `loss` returns auxiliary output.
      axis_name: the device axis to average over, inside shard_map or pmap.

    Raises:
      TypeError: while tracing, if a loss is not a real floating-point scalar.
    """

    def loss_and_aux(params: PyTree) -> tuple[Array, Any]:
        result = loss(params)
        if not has_aux:
            return _scalar(result, name), None
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                f"{name} must return (loss, aux) with has_aux=True; it returned {_shown(result)}."
            )
        return _scalar(result[0], name), result[1]

    def probed(params: PyTree) -> Array:
        if probe is None:
            return loss_and_aux(params)[0]
        return _scalar(probe(params), "probe_fn")

    def across_devices(tree: PyTree) -> PyTree:
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def value_and_grad(params: PyTree) -> tuple[tuple[Array, Any], PyTree]:
        params = params if axis_name is None else _as_varying(params, axis_name)
        (value, aux), gradient = jax.value_and_grad(loss_and_aux, has_aux=True)(params)
        value, gradient = across_devices((value, gradient))
        return (value, aux), gradient

    return Objective(value_and_grad, probed, across_devices)


def _as_varying(params: PyTree, axis_name: AxisName) -> PyTree:
    """Marks replicated parameters as each device's own.

    A checked shard_map sums gradients with respect to replicated values over the devices by
    itself; averaging that sum would leave it as many times too large as there are devices.
    """
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not set(names) <= set(jax.sharding.get_abstract_mesh().manual_axes):
        return params  # an axis of vmap: no such types, no such sums

    def leaf(p: Array) -> Array:
        try:
            varying: Array = jax.lax.pcast(p, axis_name, to="varying")
        except ValueError:  # varying already
            return p
        return varying

    return jax.tree.map(leaf, params)


def _shown(value: Any) -> str:
    return "an array" if isinstance(value, jax.Array) else f"{type(value).__name__}: {value!r}"


def _scalar(value: Any, name: str) -> Array:
    if isinstance(value, tuple):
        raise TypeError(
            f"{name} returned a tuple of {len(value)}; it must return a scalar loss. For a loss "
            "with auxiliary output pass has_aux=True."
        )
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        raise TypeError(f"{name} returned {_shown(value)}; it must return one real number.")
    if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(
            f"{name} returned an array of shape {jnp.shape(value)} and dtype "
            f"{jnp.result_type(value)}; it must return one real number, for example the mean "
            "over the batch."
        )
    scalar: Array = jnp.asarray(value, jnp.promote_types(jnp.result_type(value), jnp.float32))
    return scalar
