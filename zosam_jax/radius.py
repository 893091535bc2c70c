"""Radius rules: from an ascent's direction g and a radius ρ to the perturbation ε.

A radius rule is a function `(direction, params, rho, mask=None) -> epsilon` (`Rule`). It sees
directions that are zero where the mask is, and returns ε = 0 where there is nothing to scale. Norms
of parameters are those of the kept weights. A `Radius` is a rule with a factor on ρ that it learns
from the steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from zosam_jax import masks, probes, trees
from zosam_jax.errors import check_count, check_number, check_part, check_positive_fraction, choose
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Float, FloatTree, Int, PyTree


class Rule(Protocol):
    """How far to go along a direction."""

    def __call__(
        self,
        direction: FloatTree,
        params: FloatTree,
        rho: Float[Array, ""],
        mask: masks.Resolved = None,
        /,
    ) -> FloatTree:
        """Scales a direction to the radius.

        Args:
          direction: g, zero where the mask is.
          params: θ, a pytree like `direction`.
          rho: ρ ≥ 0, a scalar in the units of the rule.
          mask: resolved (`zosam_jax.masks.resolve`).

        Returns:
          ε, a pytree like `direction`; zero where there is nothing to scale.
        """


class Radius(NamedTuple):
    """A rule whose ρ adapts itself.

    Attributes:
      rule: (direction, params, rho, mask) → ε.
      init: () → state (arrays only).
      factor: state → what ρ is multiplied by, a scalar.
      observe: (state, objective, params, epsilon) → state, after each step; it may ask `objective`,
        a `zosam_jax.objective.Objective`, for further passes. ε is None where ρ is zero for good.
    """

    rule: Rule
    init: Callable[[], PyTree]
    factor: Callable[[PyTree], Float[Array, ""] | float]
    observe: Callable[[PyTree, Objective, FloatTree, FloatTree | None], PyTree]


RadiusLike: TypeAlias = str | Rule | Radius


def global_(
    direction: FloatTree, params: FloatTree, rho: Float[Array, ""], mask: masks.Resolved = None
) -> FloatTree:
    """ε = ρ g / ‖g‖₂ over all leaves together, so that ‖ε‖₂ = ρ (SAM, ZO-SAM).

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412
    """
    del params, mask
    return trees.scale(direction, trees.ratio(rho, trees.norm(direction)))


def layerwise(
    direction: FloatTree, params: FloatTree, rho: Float[Array, ""], mask: masks.Resolved = None
) -> FloatTree:
    """ε_l = ρ ‖θ_l‖₂ g_l / ‖g_l‖₂ for every array l of the parameters on its own.

    ρ is relative: 0.1 moves each array by a tenth of its norm, whatever its scale. An array that
    is all zeros (a fresh bias) stays where it is.
    """

    def leaf(g: Array, theta: Array) -> Array:
        epsilon: Array = trees.scale(g, trees.ratio(rho * trees.norm(theta), trees.norm(g)))
        return epsilon

    return jax.tree.map(leaf, direction, masks.restrict(params, mask))


def filterwise(
    direction: FloatTree, params: FloatTree, rho: Float[Array, ""], mask: masks.Resolved = None
) -> FloatTree:
    """ε_f = ρ ‖θ_f‖₂ g_f / ‖g_f‖₂ for every filter f, the weights of one output feature.

    Filters are the slices along the last axis, where Flax keeps output features; an array of
    fewer than two axes moves as a whole, as in `layerwise`. ρ is relative as it is there.

    Reference: for random g, Bisla et al., https://arxiv.org/abs/2201.08025
    """

    def leaf(g: Array, theta: Array) -> Array:
        axes = tuple(range(g.ndim - 1)) if g.ndim > 1 else None
        factor = trees.ratio(rho * _norms(theta, axes), _norms(g, axes))
        return g * factor.astype(g.dtype)

    return jax.tree.map(leaf, direction, masks.restrict(params, mask))


def _norms(leaf: Float[Array, "..."], axes: tuple[int, ...] | None) -> Float[Array, "..."]:
    """Euclidean norms over some axes, which are kept with length 1; one norm for None."""
    wide = leaf.astype(trees.wide_dtype(leaf))
    return jnp.sqrt(jnp.sum(jnp.square(wide), axis=axes, keepdims=True))


def adaptive(
    direction: FloatTree, params: FloatTree, rho: Float[Array, ""], mask: masks.Resolved = None
) -> FloatTree:
    """ε = ρ T²g / ‖T g‖₂ with T = |θ| elementwise, so that ‖ε/θ‖₂ = ρ (ASAM without its η).

    The norm is over the relative changes of all weights together: for the same mean relative
    change ρ grows with √d, d the number of weights, when g is a random direction.

    Reference: Kwon et al., ASAM, https://arxiv.org/abs/2102.11600
    """
    del mask
    return _scaled_by(jax.tree.map(jnp.abs, params), direction, rho)


def adaptive_layerwise(
    direction: FloatTree, params: FloatTree, rho: Float[Array, ""], mask: masks.Resolved = None
) -> FloatTree:
    """ε_l = ρ ‖θ_l‖₂ T_l g_l / ‖T_l g_l‖₂ for every array l on its own, T = |θ| elementwise.

        T_i = |θ_i|,   but ‖θ_l‖₂ / √n_l where a kept weight is exactly 0, n_l the kept weights of l

    `layerwise`'s lengths and `adaptive`'s directions, with one |θ| where that has two: large
    weights of an array move most, and each array by the fraction ρ of its norm. Weights at zero
    move like one of root mean square size. With T = 0 they would stand still, and where all kept
    weights of a channel are new, at zero, the gradient at θ+ε would be that of a channel without
    variance, which BatchNorm multiplies by 1/√(its ε), 316 for 1e-5.
    """

    def scaled(g: Array, theta: Array, kept: Array | None) -> Array:
        count = jnp.size(theta) if kept is None else jnp.maximum(jnp.sum(kept), 1)
        typical = trees.norm(theta) / jnp.sqrt(count)
        size = jnp.abs(theta).astype(g.dtype)
        return jnp.where(theta == 0, typical.astype(g.dtype), size) * g

    present = masks.restrict(params, mask)
    kept = jax.tree.map(lambda g: None, direction) if mask is None else mask
    return layerwise(jax.tree.map(scaled, direction, present, kept), params, rho, mask)


def asam(eta: float = 0.01) -> Rule:
    """ε = ρ T²g / ‖T g‖₂ with T = |θ| + η, and T = 1 for arrays named "bias": ASAM's own rule.

    Args:
      eta: η ≥ 0, in the units of the parameters; keeps weights at zero from standing still.

    Returns:
      A rule; its ρ is without units but for the biases' part, 0.5 in the paper.

    Raises:
      ValueError: for an η below 0.

    Reference: Kwon et al., ASAM, https://arxiv.org/abs/2102.11600
    """
    check_number("eta", eta, above=0.0, inclusive=True)

    def scale(path: tuple[Any, ...], theta: Array) -> Array:
        names = [jax.tree_util.keystr((entry,), simple=True) for entry in path]
        is_bias = "bias" in names[-2:]  # an nnx.State's paths go on to its variables' "value"
        return jnp.ones_like(theta) if is_bias else jnp.abs(theta) + eta

    def rule(
        direction: FloatTree, params: FloatTree, rho: Float[Array, ""], mask: masks.Resolved = None
    ) -> FloatTree:
        del mask
        return _scaled_by(jax.tree_util.tree_map_with_path(scale, params), direction, rho)

    return rule


def loss_equated(rho_max: float = 0.3) -> Rule:
    """ε = min(σ/‖g‖, ρ_max) g/‖g‖: as far as the loss takes to rise by σ, were it linear.

    σ is what is given as ρ, in units of the loss. g has to be the gradient itself, of `backprop`:
    its length matters.

    Args:
      rho_max: ρ_max > 0, the longest ε.

    Raises:
      ValueError, TypeError: for a ρ_max that is not above 0.

    Reference: Wang et al., Fix the Loss, Not the Radius (LE-SAM), ICML 2026,
      https://arxiv.org/abs/2605.10183
    """
    check_number("rho_max", rho_max, above=0.0, inclusive=False)

    def rule(
        direction: FloatTree, params: FloatTree, rho: Float[Array, ""], mask: masks.Resolved = None
    ) -> FloatTree:
        length = trees.norm(direction)
        # 0 where the length is, at which the rule goes nowhere either way.
        return global_(direction, params, jnp.minimum(trees.ratio(rho, length), rho_max), mask)

    return rule


def _scaled_by(scales: FloatTree, direction: FloatTree, rho: Float[Array, ""]) -> FloatTree:
    """ρ T²g / ‖T g‖₂."""
    scaled = jax.tree.map(lambda t, g: t.astype(g.dtype) * g, scales, direction)
    factor = trees.ratio(rho, trees.norm(scaled))
    return jax.tree.map(lambda t, tg: t.astype(tg.dtype) * trees.scale(tg, factor), scales, scaled)


RULES: dict[str, Rule] = {
    "global": global_,
    "layerwise": layerwise,
    "filterwise": filterwise,
    "adaptive": adaptive,
    "adaptive_layerwise": adaptive_layerwise,
}


def constant(rule: Rule) -> Radius:
    """A rule under ρ as it is given."""
    return Radius(rule, init=lambda: (), factor=lambda state: 1.0, observe=lambda state, *_: state)


class Calibration(NamedTuple):
    """State of `calibrated`.

    Attributes:
      count: int32 scalar, the steps taken.
      factor: float32 scalar, what ρ is multiplied by.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count, as optax's own do
    factor: Float[Array, ""]


def calibrated(
    rule: str | Rule = "filterwise",
    *,
    target: float = 0.15,
    interval: int = 20,
    bounds: tuple[float, float] = (0.25, 3.0),
    rate: float = 0.5,
    fraction: float = 1.0,
) -> Radius:
    """A rule whose ρ is set by measurement: so far that the loss rises by c √L(θ).

        r = ½ [L(θ+ε) + L(θ−ε)] − L(θ),   f ← f (c √L(θ) / r)^(rate/2), within the bounds

    r is the even part of the rise, which grows with the square of ε and is what curvature makes of
    it. Each measurement moves f by a factor of 2 at most, upwards where the loss does not rise at
    all, downwards where it is not finite. Three forward passes every `interval` steps, none at
    others, and no parameter-sized buffer. At the radii that are best for random directions, r / √L
    takes much the same course on clean and on noisy labels, where r itself and r / L do not. The
    loss has to be positive; f stays where it is at one that is not, and while ε is zero. While a
    schedule still raises ρ, f runs ahead of it, and comes back within a few measurements.

    Args:
      rule: the rule that ρ f is given to.
      target: c > 0, in units of √loss.
      interval: steps from one measurement to the next, the first before the second step.
      bounds: smallest and largest f.
      rate: in (0, 1], how far towards a measured radius f moves on the scale of logarithms.
      fraction: how much of the batch the forward passes see, in (0, 1].

    Raises:
      ValueError, TypeError: at construction, for an argument out of range.
    """
    check_number("target", target, above=0.0, inclusive=False)
    check_count("interval", interval)
    check_positive_fraction("rate", rate)
    check_part("fraction", fraction)
    low, high = bounds
    check_number("bounds[0]", low, above=0.0, inclusive=False)
    check_number("bounds[1]", high, above=low, inclusive=True)

    def init() -> Calibration:
        return Calibration(jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32))

    def measured(
        objective: Objective, params: FloatTree, epsilon: FloatTree, factor: Float[Array, ""]
    ) -> Float[Array, ""]:
        part = objective.on_fraction(fraction)
        losses = probes.along(part.probe, params, epsilon, (1.0, -1.0, 0.0), "unroll")
        above, below, here = objective.across_devices(losses)
        rise = (above + below) / 2 - here
        # No rise at all: there is room. None that is a number: too far.
        change = jnp.where(rise > 0, target * jnp.sqrt(here) / rise, jnp.inf) ** (rate / 2)
        change = jnp.where(jnp.isfinite(rise), change, 0.0)
        change = jnp.where((here > 0) & (trees.norm(epsilon) > 0), change, 1.0)
        moved = factor * jnp.clip(change, 0.5, 2.0)
        return jnp.clip(moved, low, high).astype(jnp.float32)

    def observe(
        state: Calibration, objective: Objective, params: FloatTree, epsilon: FloatTree | None
    ) -> Calibration:
        if epsilon is None:
            return state
        # Forward passes alone: in a cond they are as fast as outside, on CPUs too.
        factor = jax.lax.cond(
            state.count % interval == 0,
            lambda: measured(objective, params, epsilon, state.factor),
            lambda: state.factor,
        )
        return Calibration(state.count + 1, factor)

    return Radius(
        choose("rule", rule, RULES), init=init, factor=lambda state: state.factor, observe=observe
    )


_BY_NAME: dict[str, Rule | Radius] = {**RULES, "calibrated": calibrated()}


def get(radius: RadiusLike) -> Radius:
    """The radius of that name; a function of your own is taken for a rule."""
    if isinstance(radius, Radius):
        return radius
    found = choose("radius", radius, _BY_NAME)
    return found if isinstance(found, Radius) else constant(found)


def perturbation(
    rule: Rule,
    direction: FloatTree,
    params: FloatTree,
    rho: Float[Array, ""],
    mask: masks.Resolved = None,
) -> FloatTree:
    """ε by `rule`, with every guard in one place: masked, and zero where it would mean nothing.

    A ρ that is below zero or not finite, a direction of norm zero, or one that holds a NaN or an
    infinity, gives ε = 0 on every leaf: the descent then takes the plain gradient. ε is float32 or
    wider, whatever the parameters are.
    """
    direction = masks.restrict(direction, mask)
    direction = jax.tree.map(lambda g: g.astype(trees.wide_dtype(g)), direction)
    epsilon = rule(direction, masks.restrict(params, mask), rho, mask)
    # Last, so that the rule's own norms and this one are the same expressions, computed once.
    usable = jnp.isfinite(trees.norm(direction)) & jnp.isfinite(rho) & (rho >= 0)
    return jax.tree.map(lambda e: jnp.where(usable, e, 0), epsilon)
