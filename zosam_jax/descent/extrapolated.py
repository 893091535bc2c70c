"""Along the arc that runs from ε through the gradient at θ+ε: XSAM's descent."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import masks, probes, trees
from zosam_jax.descent.base import Descent, DescentResult, PerturbedPoint, perturbed, stateless
from zosam_jax.errors import check_count, check_number
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Bool, Float, FloatTree, Int, PyTree

#: How many α `extrapolated_as_measured` compares, evenly from 0 to 2.
ARC_POINTS = 21
_FARTHEST = 2.0

# Where the sine of the angle is below it the arc is a point, or may turn either way.
_NO_ARC = 1e-4


class Arc(NamedTuple):
    """The arc from ε to the gradient G at θ+ε, both restricted to the mask.

    Attributes:
      epsilon: ε, in float32 or wider.
      gradient: G.
      lengths: ‖ε‖ and ‖G‖.
      angle: φ, between the two, in radians.
      exists: whether both have a length, and the angle is neither 0 nor π.
    """

    epsilon: FloatTree
    gradient: FloatTree
    lengths: tuple[Float[Array, ""], Float[Array, ""]]
    angle: Float[Array, ""]
    exists: Bool[Array, ""]

    def weights(self, alpha: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """What ε and G are multiplied by at α, of a vector as long as G; 0, 1 without an arc."""
        own, other = self.lengths
        sine = jnp.where(self.exists, jnp.sin(self.angle), 1.0)
        of_epsilon = trees.ratio(other, own) * jnp.sin((1 - alpha) * self.angle) / sine
        of_gradient = jnp.sin(alpha * self.angle) / sine
        return jnp.where(self.exists, of_epsilon, 0.0), jnp.where(self.exists, of_gradient, 1.0)

    def at(self, alpha: Float[Array, ""]) -> FloatTree:
        """The vector at α: along ε at 0, G at 1, beyond it above; as long as G, in wide dtypes."""
        of_epsilon, of_gradient = self.weights(alpha)
        return jax.tree.map(
            lambda e, g: (
                of_epsilon.astype(e.dtype) * e + of_gradient.astype(e.dtype) * g.astype(e.dtype)
            ),
            self.epsilon,
            self.gradient,
        )


def _arc(epsilon: FloatTree, gradient: FloatTree, mask: masks.Resolved) -> Arc:
    kept = masks.restrict(gradient, mask)
    lengths = trees.norm(epsilon), trees.norm(kept)
    cosine = trees.ratio(trees.ratio(trees.inner(epsilon, kept), lengths[0]), lengths[1])
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    # False for a NaN too.
    exists = (lengths[0] > 0) & (lengths[1] > 0) & (jnp.sin(angle) > _NO_ARC)
    return Arc(epsilon, kept, lengths, angle, exists & jnp.isfinite(lengths[1]))


def extrapolated(alpha: float) -> Descent:
    """‖G‖ (sin((1−α)φ) v₀ + sin(αφ) v₁) / sin φ with v₀ = ε/‖ε‖, v₁ = G/‖G‖ and φ = ∠(v₀, v₁).

    G = ∇L(θ+ε), one forward and one backward pass. α = 1 gives G, which is SAM; α > 1 goes on
    along the arc that leads from ε to G, α < 1 goes back. The length stays that of G. Without an
    arc (ε = 0, or G along ε) it is G. With a mask the arc is that of the kept weights; the others
    have G.

    Args:
      alpha: α ≥ 0; 1.2 helped SAM with an eighth of the batch on noisy labels.

    Reference: Chen and Zhou, Revisiting Sharpness-Aware Minimization (XSAM), ICLR 2026,
      https://arxiv.org/abs/2603.10048; its α is measured (`extrapolated_as_measured`).
    """
    check_number("alpha", alpha, above=0.0, inclusive=True)

    def gradient(point: PerturbedPoint) -> DescentResult:
        found, arc = _found(point)
        return found if arc is None else _turned(found, arc, jnp.asarray(alpha), point.mask)

    return stateless(gradient)


class ExtrapolationState(NamedTuple):
    """What `extrapolated_as_measured` keeps between steps.

    Attributes:
      alpha: float32 scalar, α; 1 until it is first measured.
      wait: int32 scalar, the steps until the next measurement.
    """

    alpha: Float[Array, ""]
    wait: Int[Array, ""]


def extrapolated_as_measured(interval: int = 100, reach: float = 2.0) -> Descent:
    """As `extrapolated`, with the α at which the loss is largest, measured once in n steps.

        α = argmax L(θ + R (sin((1−α)φ) v₀ + sin(αφ) v₁) / sin φ) over α = 0, 0.1, …, 2

    with R = reach · ‖ε‖, on the step's own batch. 21 forward passes at those steps, besides one
    forward and one backward pass in each. The first measurement is at the first step that has a
    perturbation; until then α is 1. Of equal losses the smallest α counts; those that are not
    finite do not.

    Args:
      interval: n ≥ 1; the paper measures once an epoch.
      reach: R / ‖ε‖ > 0, so that R is the paper's ρ_max and follows a schedule of ρ.

    Reference: Chen and Zhou, Revisiting Sharpness-Aware Minimization (XSAM), ICLR 2026,
      https://arxiv.org/abs/2603.10048
    """
    check_count("interval", interval)
    check_number("reach", reach, above=0.0, inclusive=False)

    def init(params: PyTree) -> ExtrapolationState:
        del params
        return ExtrapolationState(jnp.ones((), jnp.float32), jnp.zeros((), jnp.int32))

    def gradient(point: PerturbedPoint, state: ExtrapolationState) -> DescentResult:
        found, arc = _found(point)
        if arc is None:
            return found
        due = (state.wait == 0) & arc.exists
        # Forward passes alone: in a cond they are as fast as outside, on CPUs too.
        alpha = jax.lax.cond(
            due,
            lambda: _steepest(point.objective, point.params, arc, reach, state.alpha),
            lambda: state.alpha,
        )
        wait = jnp.where(due, interval - 1, jnp.maximum(state.wait - 1, 0)).astype(jnp.int32)
        turned = _turned(found, arc, alpha, point.mask)
        return turned._replace(state=ExtrapolationState(alpha, wait))

    return Descent(init=init, gradient=gradient)


def _found(point: PerturbedPoint) -> tuple[DescentResult, Arc | None]:
    """The pass at θ+ε, and the arc; None where ρ is zero for good."""
    found = DescentResult(*point.objective.value_and_grad(perturbed(point.params, point.epsilon)))
    if point.epsilon is None:
        return found, None
    return found, _arc(point.epsilon, found.gradient, point.mask)


def _turned(
    found: DescentResult, arc: Arc, alpha: Float[Array, ""], mask: masks.Resolved
) -> DescentResult:
    """What was found, with the arc's vector at α for the gradient of the kept weights."""
    turned = jax.tree.map(lambda t, g: t.astype(g.dtype), arc.at(alpha), found.gradient)
    if mask is not None:
        turned = jax.tree.map(
            lambda g, t, m: t if m is None else jnp.where(m, t, g), found.gradient, turned, mask
        )
    return found._replace(gradient=turned)


def _steepest(
    objective: Objective,
    params: FloatTree,
    arc: Arc,
    reach: float,
    before: Float[Array, ""],
) -> Float[Array, ""]:
    """The α of the largest loss; the one before where none is finite."""
    own, other = arc.lengths
    length = trees.ratio(reach * own, other)

    def loss(alpha: Float[Array, ""]) -> Float[Array, ""]:
        return objective.probe(trees.displace(params, arc.at(alpha), length))

    alphas = jnp.linspace(0.0, _FARTHEST, ARC_POINTS)
    origin, unit = jnp.zeros(()), jnp.ones(())
    mode = probes.choose_batching("auto", loss, origin, ARC_POINTS)
    losses = objective.across_devices(probes.along(loss, origin, unit, list(alphas), mode))
    losses = jnp.where(jnp.isfinite(losses), losses, -jnp.inf)
    best = alphas[jnp.argmax(losses)]
    return jnp.where(jnp.isfinite(jnp.max(losses)), best, before).astype(before.dtype)
