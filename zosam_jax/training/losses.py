"""What is minimised: losses by name, or of one's own, of each example."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import optax

from zosam_jax.errors import check_one_of
from zosam_jax.trees import Array

# (outputs, targets) → the loss of each example, of shape [batch].
Losses: TypeAlias = Callable[[Array, Array], Array]

CROSS_ENTROPY = "cross_entropy"


class Metrics(NamedTuple):
    """What a pass of the model reports beside the loss: of `seen` labels, `correct` are right.

    Both are 0 where targets are no labels.
    """

    correct: Array
    seen: Array


def metrics(outputs: Array, labels: Array) -> Metrics:
    """How many outputs are largest at their label; labels below 0 do not count."""
    is_label = jnp.issubdtype(labels.dtype, jnp.integer) and outputs.shape[:-1] == labels.shape
    if not is_label:
        return Metrics(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    return Metrics(jnp.sum(jnp.argmax(outputs, axis=-1) == labels), jnp.sum(labels >= 0))


def function(name: str, given: Callable[..., Any] | None = None) -> Losses:
    """A loss of each example: the mean over its further axes, such as tokens or outputs.

    Args:
      name: cross_entropy or squared_error; of a function that is given, where it comes from.
      given: (outputs, targets) → losses of shape [batch, …].

    Raises:
      ValueError: for an unknown name; when called, for outputs that do not fit the targets.
    """
    if given is None:
        check_one_of("loss", name, tuple(_NAMED))
    loss = given or _NAMED[name]

    def losses(outputs: Array, targets: Array) -> Array:
        if jnp.issubdtype(targets.dtype, jnp.floating) and outputs.size == targets.size:
            outputs = outputs.reshape(targets.shape)  # one output an example, in an axis of its own
        found = jnp.asarray(loss(outputs, targets))
        if found.shape[:1] != targets.shape[:1]:
            raise ValueError(
                f"loss={name!r} gives an array of shape {found.shape} for a batch of "
                f"{len(targets)}: the loss of each example is expected, of shape [batch, …]."
            )
        return found.mean(axis=tuple(range(1, found.ndim))) if found.ndim > 1 else found

    return losses


def of_known(outputs: Array, targets: Array) -> Array:
    """The cross-entropy of each example, a mean over those of its labels that are not below 0."""
    known = targets >= 0
    each = optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.maximum(targets, 0))
    total: Array = jnp.sum(jnp.where(known, each, 0.0), axis=-1)
    return total / jnp.maximum(known.sum(axis=-1), 1)


def _cross_entropy(outputs: Array, targets: Array) -> Array:
    """To labels, or to distributions over the classes."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        if outputs.shape[:-1] != targets.shape:
            raise _unfit(CROSS_ENTROPY, outputs, targets, f"{targets.shape} and classes last")
        return jnp.asarray(optax.softmax_cross_entropy_with_integer_labels(outputs, targets))
    if outputs.shape != targets.shape:
        raise _unfit(CROSS_ENTROPY, outputs, targets, "the same shape")
    return jnp.asarray(optax.softmax_cross_entropy(outputs, targets))


def _squared_error(outputs: Array, targets: Array) -> Array:
    if outputs.shape != targets.shape:
        raise _unfit("squared_error", outputs, targets, "the same shape")
    return jnp.square(outputs - targets)


_NAMED: dict[str, Losses] = {CROSS_ENTROPY: _cross_entropy, "squared_error": _squared_error}


def _unfit(name: str, outputs: Array, targets: Array, expected: str) -> ValueError:
    return ValueError(
        f"loss={name!r} takes outputs of {expected}, and the network gives {outputs.shape} for "
        f"targets of {targets.shape} and dtype {targets.dtype}."
    )
