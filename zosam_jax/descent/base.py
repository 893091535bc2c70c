"""What every descent is: a rule for the gradient that the step takes at the perturbed point."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from zosam_jax import masks, trees
from zosam_jax.ascent.base import AscentResult
from zosam_jax.objective import Objective, ValueAndGrad
from zosam_jax.trees import Array, Bool, Float, FloatTree, PyTree


class DescentResult(NamedTuple):
    """What a descent found.

    Attributes:
      value: the loss where the gradient was taken, L(θ+ε).
      aux: the auxiliary output of that pass.
      gradient: what the rest of the optax.chain is given.
      state: what the descent remembers; None to leave the state it was given as it is.
      is_perturbed: whether `value` is that at θ+ε, in this step.
    """

    value: Float[Array, ""]
    aux: Any
    gradient: FloatTree
    state: PyTree = None
    is_perturbed: Bool[Array, ""] | bool = True


class PerturbedPoint(NamedTuple):
    """θ, ε and all else that a descent may start from.

    Attributes:
      objective: the minibatch loss, a `zosam_jax.objective.Objective`.
      params: θ.
      epsilon: ε, a pytree like `params`; None where ρ is zero for good.
      ascent: what the ascent found.
      mask: None or a pytree of bool leaves like `params`.
    """

    objective: Objective
    params: FloatTree
    epsilon: FloatTree | None
    ascent: AscentResult
    mask: masks.Resolved


def _as_it_is(point: PerturbedPoint, state: PyTree) -> FloatTree:
    del state
    return point.epsilon


class Descent(NamedTuple):
    """A rule for the gradient that is handed on to the rest of the chain.

    Attributes:
      init: params → state, whatever the descent wants to remember between steps (arrays only).
      gradient: (point, state) → DescentResult.
      effective_perturbation: (point, state) → the ε at which `gradient` would take the gradient,
        where that is not always the point's; for diagnostics. Not called where ε is None.
      has_dense_gradient: whether its gradient covers the weights that the mask leaves out too, by
        which masks can grow.
    """

    init: Callable[[PyTree], PyTree]
    gradient: Callable[[PerturbedPoint, PyTree], DescentResult]
    effective_perturbation: Callable[[PerturbedPoint, PyTree], FloatTree] = _as_it_is
    has_dense_gradient: bool = True


def stateless(gradient: Callable[[PerturbedPoint], DescentResult], **options: Any) -> Descent:
    """A descent that remembers nothing; `options` are Descent's others."""
    return Descent(lambda params: (), lambda point, state: gradient(point), **options)


def perturbed(params: FloatTree, epsilon: FloatTree | None) -> FloatTree:
    """θ+ε as a value of its own; θ itself for an ε of None.

    The barrier keeps ε's arithmetic out of the descent's program, which so is the very program
    that jax.grad gives: with ρ = 0 the results are equal bit for bit.

    Args:
      params: θ.
      epsilon: ε, a pytree like `params`, or None.

    Returns:
      A pytree like `params`, in its dtypes.
    """
    if epsilon is None:
        return params
    return jax.lax.optimization_barrier(trees.displace(params, epsilon))


def clean_pass(ascent: AscentResult, descent: str) -> ValueAndGrad:
    """The pass at θ that the ascent made.

    Raises:
      TypeError: while tracing, for an ascent that makes none; `descent` is who needs it.
    """
    if ascent.clean is None:
        raise TypeError(
            f"the descent {descent} needs the gradient at θ, and this ascent does not take it on "
            "the whole batch; use zosam_jax.ascent.backprop()."
        )
    return ascent.clean


def change_across(
    start: FloatTree, end: FloatTree, along: FloatTree, mask: masks.Resolved
) -> FloatTree:
    """The part of end − start that is orthogonal to `along`, in float32 or wider.

    With a mask, the angle is that between the kept weights, and the others follow. Where the kept
    part of `along` is zero nothing is along it.
    """
    change = jax.tree.map(
        lambda s, e: e.astype(trees.wide_dtype(e)) - s.astype(trees.wide_dtype(s)), start, end
    )
    kept = masks.restrict(along, mask)
    length = trees.norm(kept)
    share = trees.ratio(trees.ratio(trees.inner(change, kept), length), length)
    return trees.displace(change, along, -share)
