"""How far to climb: turns an ascent direction g and a radius ρ into the perturbation ε.

A radius rule is a function `(direction, params, rho, mask=None) -> epsilon`. It sees directions
that are zero where the mask is, and returns ε = 0 where there is nothing to scale. A `Radius` is a
rule with a factor on ρ that it learns from the steps.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from zosam_jax import trees
from zosam_jax.errors import choose
from zosam_jax.sparsity import masks
from zosam_jax.trees import Array, PyTree

Rule: TypeAlias = Callable[..., PyTree]


class Radius(NamedTuple):
    """A rule whose ρ adapts itself.

    Attributes:
      rule: (direction, params, rho, mask) → ε.
      init: () → state (arrays only).
      factor: state → what ρ is multiplied by, a scalar.
      observe: (state, objective, params, epsilon, climb, landing) → state, after each step; it may
        ask `objective` for further passes.
    """

    rule: Rule
    init: Callable[[], PyTree]
    factor: Callable[[PyTree], Array | float]
    observe: Callable[..., PyTree]


def global_(direction: PyTree, params: PyTree, rho: Array, mask: PyTree = None) -> PyTree:
    """ε = ρ g / ‖g‖₂ over all leaves together, so that ‖ε‖₂ = ρ (SAM, ZO-SAM).

    Args:
      direction: g, a pytree of floating-point arrays.
      params: θ, a pytree like `direction` (unused by this rule).
      rho: ρ ≥ 0, a scalar in the units of the parameters.
      mask: unused by this rule; `direction` is already zero where the mask is.

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412
    """
    del params, mask
    return trees.scale(direction, trees.ratio(rho, trees.norm(direction)))


def layerwise(direction: PyTree, params: PyTree, rho: Array, mask: PyTree = None) -> PyTree:
    """ε_l = ρ ‖θ_l‖₂ g_l / ‖g_l‖₂ for every array l of the parameters on its own.

    ρ is relative: 0.1 moves each array by a tenth of its norm, whatever its scale. An array that
    is all zeros (a fresh bias) stays where it is.

    Args:
      direction: g, a pytree of floating-point arrays.
      params: θ, a pytree like `direction`.
      rho: ρ ≥ 0, a scalar without units.
      mask: where given, ‖θ_l‖₂ counts the kept weights only.
    """

    def leaf(g: Array, theta: Array) -> Array:
        epsilon: Array = trees.scale(g, trees.ratio(rho * trees.norm(theta), trees.norm(g)))
        return epsilon

    return jax.tree.map(leaf, direction, masks.restrict(params, mask))


def adaptive(direction: PyTree, params: PyTree, rho: Array, mask: PyTree = None) -> PyTree:
    """ε = ρ T²g / ‖T g‖₂ with T = |θ| elementwise, so that ‖ε/θ‖₂ = ρ (ASAM without its η).

    The norm is over the relative changes of all weights together: for the same mean relative
    change ρ grows with √d, d the number of weights, when g is a random direction.

    Args:
      direction: g, a pytree of floating-point arrays.
      params: θ, a pytree like `direction`.
      rho: ρ ≥ 0, a scalar without units.
      mask: unused by this rule; `direction` is already zero where the mask is.

    Reference: Kwon et al., ASAM, https://arxiv.org/abs/2102.11600
    """
    del mask
    scaled = jax.tree.map(lambda g, theta: jnp.abs(theta).astype(g.dtype) * g, direction, params)
    factor = trees.ratio(rho, trees.norm(scaled))
    return jax.tree.map(
        lambda tg, theta: jnp.abs(theta).astype(tg.dtype) * trees.scale(tg, factor), scaled, params
    )


RULES: dict[str, Rule] = {"global": global_, "layerwise": layerwise, "adaptive": adaptive}


def constant(rule: Rule) -> Radius:
    """A rule under ρ as it is given."""
    return Radius(rule, init=lambda: (), factor=lambda state: 1.0, observe=lambda state, *_: state)


def get(radius: str | Rule | Radius) -> Radius:
    """The radius of that name; a function of your own is taken for a rule."""
    if isinstance(radius, Radius):
        return radius
    return constant(choose("radius", radius, RULES))


def perturbation(
    rule: Rule, direction: PyTree, params: PyTree, rho: Array, mask: PyTree = None
) -> PyTree:
    """ε by `rule`, with every guard in one place: masked, and zero if the estimate is not finite.

    A direction of norm zero, or one that holds a NaN or an infinity, gives ε = 0 on every leaf:
    the descent then takes the plain gradient. ε is float32 or wider, whatever the parameters are.
    """
    direction = masks.restrict(direction, mask)
    direction = jax.tree.map(lambda g: g.astype(trees.wide_dtype(g)), direction)
    epsilon = rule(direction, params, rho, mask)
    # Last, so that the rule's own norms and this one are the same expressions, computed once.
    finite = jnp.isfinite(trees.norm(direction))
    return jax.tree.map(lambda e: jnp.where(finite, e, 0), epsilon)
