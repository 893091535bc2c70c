"""The perturbed gradient at every k-th step, its orthogonal part reused between: LookSAM."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import masks, probes, trees
from zosam_jax.descent.base import (
    Descent,
    DescentResult,
    PerturbedPoint,
    change_across,
    clean_pass,
    perturbed,
)
from zosam_jax.errors import check_count, check_number
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Bool, Float, FloatTree, Int, PyTree

# A gᵥ shorter than this part of the gradient is rounding (an array of one weight has no other),
# and would be blown up to the gradient's length.
_ROUNDING = 1e-6


class LookSAMState(NamedTuple):
    """What LookSAM keeps between steps.

    Attributes:
      phase: int32 scalar, the steps since the last look, modulo the interval; it looks at 0.
      across: gᵥ, the part of the last look's gradient that is orthogonal to the one at θ.
    """

    phase: Int[Array, ""]
    across: FloatTree


def looksam(interval: int = 5, alpha: float = 0.7, per_array: bool = False) -> Descent:
    """∇L(θ+ε) at every k-th step, and between them ∇L(θ) bent the way that one was.

        g = ∇L(θ),   ĝ = g / ‖g‖
        t mod k = 0:   G = ∇L(θ+ε),   gᵥ = G − ⟨G, ĝ⟩ ĝ,   gives G
        else:          gives g + α (‖g‖ / ‖gᵥ‖) gᵥ with the last gᵥ

    One forward and one backward pass in k steps, besides the ascent's own at θ in each, and one
    array of memory for each parameter. The value is L(θ+ε) at the steps that look, L(θ) at the
    others. interval=1 is SAM. A gᵥ that means nothing counts as zero: without a perturbation, at a
    gradient that is not finite, or where there is nothing but rounding.

    The reused part is as long as α ‖g‖ whatever ρ is, so that it does not vanish with ρ: away from
    steps that look, the gradient is off by an angle of arctan α = 35°. That is the rule, and costs
    precision near a minimum: on Rosenbrock's function from (0, 0), ρ = 1e-3, 10 000 steps of SGD at
    1e-3, it ends at a loss of 1.1e-2 where SAM ends at 5.3e-4 and SGD at 3.1e-5.

    A convolution under a condition loses XLA's fast path on a CPU (27 times slower). There a loss
    with convolutions is looked at in every step and the result dropped in most, at SAM's cost;
    the numbers are the same.

    Args:
      interval: k ≥ 1.
      alpha: α ≥ 0, how much of the bend to reuse.
      per_array: whether angles and lengths are those of each parameter array on its own.

      TypeError: while tracing, with an ascent that does not take ∇L(θ).

    Reference: Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization,
      https://arxiv.org/abs/2203.02714
    """
    check_count("interval", interval)
    check_number("alpha", alpha, above=0.0, inclusive=True)
    each = _array_by_array if per_array else _at_once

    def init(params: PyTree) -> LookSAMState:
        return LookSAMState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def gradient(point: PerturbedPoint, state: LookSAMState) -> DescentResult:
        if point.epsilon is None:
            return DescentResult(*point.objective.value_and_grad(point.params))
        clean = clean_pass(point.ascent, "looksam")

        def looked() -> tuple[Float[Array, ""], FloatTree, FloatTree]:
            found = point.objective.value_and_grad(perturbed(point.params, point.epsilon))
            across = each(_across, point.mask, clean.gradient, found.gradient)
            return found.value, found.gradient, _where(trees.norm(point.epsilon) > 0, across)

        def reused() -> tuple[Float[Array, ""], FloatTree, FloatTree]:
            bent = each(functools.partial(_bent, alpha), point.mask, clean.gradient, state.across)
            return clean.value, bent, state.across

        due = state.phase == 0
        if _is_slow_under_a_condition(point.objective, point.params):
            chosen = jax.tree.map(functools.partial(jnp.where, due), looked(), reused())
        else:
            chosen = jax.lax.cond(due, looked, reused)
        value, found, across = chosen
        state = LookSAMState((state.phase + 1) % interval, across)
        return DescentResult(value, clean.aux, found, state, is_perturbed=due)

    return Descent(init=init, gradient=gradient, effective_perturbation=_if_due)


def _if_due(point: PerturbedPoint, state: LookSAMState) -> FloatTree:
    """ε at the steps that look, zero at the others."""
    return _where(state.phase == 0, point.epsilon)


def _across(clean: FloatTree, found: FloatTree, mask: masks.Resolved) -> FloatTree:
    """gᵥ, from both gradients, in their dtypes; zero where it is rounding, or not finite."""
    across = change_across(clean, found, clean, mask)
    length, whole = (trees.norm(masks.restrict(x, mask)) for x in (across, found))
    across = _where(length > _ROUNDING * whole, across)
    return jax.tree.map(lambda a, g: a.astype(g.dtype), across, clean)


def _where(condition: Bool[Array, ""], tree: FloatTree) -> FloatTree:
    return jax.tree.map(lambda x: jnp.where(condition, x, jnp.zeros_like(x)), tree)


def _bent(alpha: float, clean: FloatTree, across: FloatTree, mask: masks.Resolved) -> FloatTree:
    """g + α (‖g‖ / ‖gᵥ‖) gᵥ."""
    length, across_length = (trees.norm(masks.restrict(x, mask)) for x in (clean, across))
    return trees.displace(clean, across, alpha * trees.ratio(length, across_length))


def _at_once(function: Callable[..., PyTree], mask: PyTree, *arguments: PyTree) -> PyTree:
    return function(*arguments, mask)


def _array_by_array(function: Callable[..., PyTree], mask: PyTree, *arguments: PyTree) -> PyTree:
    structure = jax.tree.structure(arguments[0])
    arrays = [jax.tree.leaves(x) for x in arguments]
    results = map(function, *arrays, masks.leaves(mask, arguments[0]))
    return jax.tree.unflatten(structure, results)


def _is_slow_under_a_condition(objective: Objective, params: PyTree) -> bool:
    return jax.default_backend() == "cpu" and probes.contains_convolution(
        lambda p: objective.value_and_aux(p)[0], params
    )
