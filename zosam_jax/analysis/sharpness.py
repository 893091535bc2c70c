"""How much does the loss rise nearby? On average over random directions, and at worst.

At a minimum of a quadratic with the Hessian H on d weights, and within the radius ρ, the average
rise is ρ² tr(H) / (2d), the worst ρ² λ_max(H) / 2. Losses are those of parameters widened to
float32, which small displacements do not fall through.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import directions, masks, trees
from zosam_jax import radius as radii
from zosam_jax.analysis import batches as means
from zosam_jax.analysis.batches import Batch, LossFn
from zosam_jax.analysis.hessian import MonteCarloEstimate, around, monte_carlo_estimate
from zosam_jax.errors import check_count, check_number, check_one_of, choose
from zosam_jax.keys import as_key
from zosam_jax.trees import Array, Float, FloatTree, Key, PyTree


class WorstRise(NamedTuple):
    """What `worst_rise` finds.

    Attributes:
      rise: L(θ+ε) − L(θ), a lower bound of the maximum over the ball; at least 0, which ε = 0
        gives, and at least the rise of one step. NaN where the loss is.
      epsilon: ε, a pytree like the parameters in float32 or wider, exactly zero on pruned weights;
        None for parameters that are not floating point.
      rises: float64[num_steps], the rise at each point that was tried, the first SAM's.
    """

    rise: float
    epsilon: FloatTree
    rises: Float[np.ndarray, " steps"]


def average_rise(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    rho: float,
    *,
    radius: str | radii.Rule = "global",
    mask: PyTree = None,
    num_samples: int = 16,
    distribution: str | directions.Distribution = "normal",
    key: int | Array = 0,
) -> MonteCarloEstimate:
    """E_u[L(θ + ε(u))] − L(θ), ε(u) the perturbation of a radius along a random direction u.

    Args:
      batches: of equal size; iterated over once for each sample and once for L(θ).
      rho: ρ > 0, in the units of `radius`.
      radius: a rule of `zosam_jax.radius` by name, or one of your own.
      num_samples: the number of directions.
      distribution: theirs, of `zosam_jax.directions`, by name or your own.
      key: a seed or a random key; the same one gives other networks the same directions.

    Returns:
      The rise, in units of the loss, with its standard error.
    """
    check_number("rho", rho, above=0.0, inclusive=False)
    check_count("num_samples", num_samples)
    rule = choose("radius", radius, radii.RULES)
    draw = directions.get(distribution)
    point = around(loss_fn, params, mask)

    @jax.jit
    def perturb(key: Key[Array, ""], theta: FloatTree, kept: masks.Resolved) -> FloatTree:
        return radii.perturbation(rule, draw(key, theta, kept), theta, jnp.asarray(rho), kept)

    @jax.jit
    def loss(theta: FloatTree, epsilon: FloatTree, batch: Batch) -> Float[Array, ""]:
        return point.on_batch(batch).probe(trees.displace(theta, epsilon))

    def loss_at(epsilon: FloatTree) -> float:
        return float(means.mean(lambda batch: loss(point.params, epsilon, batch), batches))

    here = loss_at(jax.tree.map(jnp.zeros_like, point.params))
    samples = jax.random.split(as_key(key), num_samples)
    return monte_carlo_estimate(
        [loss_at(perturb(k, point.params, point.mask)) - here for k in samples]
    )


def worst_rise(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    rho: float,
    *,
    radius: str = "global",
    mask: PyTree = None,
    num_steps: int = 20,
    key: int | Array = 0,
) -> WorstRise:
    """max L(θ+ε) − L(θ) over the ball of a radius, by projected normalised gradient ascent.

    Written ε = T z, the ball is ‖z‖₂ ≤ ρ and steps are taken in z:

        global      T = 1
        adaptive    T = |θ| elementwise (ASAM without its η)
        layerwise   T_l = ‖θ_l‖₂, and ‖z_l‖₂ ≤ ρ for every array l of the parameters on its own

        z₁ = ρ ∇/‖∇‖,   z ← Π(z + α ∇/‖∇‖),   ∇ = ∂L(θ+Tz)/∂z,   α = 2ρ at first

    z₁ is the point at which SAM takes its gradient, with the radius of the same name. Where the
    gradient at θ is zero, it is a random point on the sphere. A step that does not raise the loss
    is taken back, and halves α.

    Args:
      batches: of equal size; iterated over once in each step and once for L(θ).
      rho: ρ > 0, in the units of the parameters for "global", else without units.
      radius: "global", "adaptive" or "layerwise".
      num_steps: passes with gradients, each over all batches; 1 for SAM's point alone.
      key: a seed or a random key, for the random point.

    Returns:
      A WorstRise, in units of the loss.

    Reference: Andriushchenko et al., A Modern Look at the Relationship between Sharpness and
    Generalization, https://arxiv.org/abs/2302.07011
    """
    check_number("rho", rho, above=0.0, inclusive=False)
    check_count("num_steps", num_steps)
    check_one_of("radius", radius, tuple(_BALLS))
    point = around(loss_fn, params, mask)
    ball = _BALLS[radius](masks.restrict(point.params, point.mask))
    # Zero on pruned weights, so that nothing there moves and no slope there counts.
    scales = masks.restrict(ball.scales, point.mask)

    @jax.jit
    def on_batch(z: PyTree, theta: PyTree, scales: PyTree, batch: Batch) -> tuple[Array, PyTree]:
        def loss(z: PyTree) -> Array:
            epsilon = jax.tree.map(jnp.multiply, scales, z)
            return point.on_batch(batch).probe(trees.displace(theta, epsilon))

        return jax.value_and_grad(loss)(z)

    @jax.jit
    def ascend(z: PyTree, unit_gradient: PyTree, step: float) -> PyTree:
        return ball.project(trees.displace(z, unit_gradient, step), rho)

    unit = jax.jit(ball.unit)

    def evaluated(z: PyTree) -> _Point:
        value, slope = means.mean(lambda b: on_batch(z, point.params, scales, b), batches)
        return _Point(z, float(value), unit(slope))

    here = evaluated(jax.tree.map(jnp.zeros_like, point.params))
    first = here.unit_gradient
    if trees.norm(first) == 0:
        first = unit(directions.normal(as_key(key), point.params, point.mask))
    best = evaluated(ascend(here.z, first, rho))
    losses, step = [best.loss], 2.0 * rho
    for _ in range(num_steps - 1):
        tried = evaluated(ascend(best.z, best.unit_gradient, step))
        losses.append(tried.loss)
        if tried.loss > best.loss:
            best = tried
        else:
            step /= 2
    if best.loss < here.loss:
        best = here
    return WorstRise(
        rise=best.loss - here.loss,
        epsilon=jax.tree.map(jnp.multiply, scales, best.z),
        rises=np.asarray(losses) - here.loss,
    )


class _Point(NamedTuple):
    """A point in the ball, its loss, and the unit direction of steepest ascent there."""

    z: FloatTree
    loss: float
    unit_gradient: FloatTree


class _Ball(NamedTuple):
    """ε = T z with ‖z‖₂ ≤ ρ, over all arrays together or `each` on its own."""

    scales: FloatTree
    each: Callable[[Callable[[PyTree], PyTree], PyTree], PyTree]

    def unit(self, z: FloatTree) -> FloatTree:
        """Scaled to the length 1; zero stays zero."""
        one = jnp.ones(())
        return self.each(lambda part: trees.scale(part, trees.ratio(one, trees.norm(part))), z)

    def project(self, z: FloatTree, rho: float) -> FloatTree:
        """The nearest point of the ball."""
        return self.each(
            lambda part: trees.scale(part, rho / jnp.maximum(trees.norm(part), rho)), z
        )


def _together(function: Callable[[PyTree], PyTree], tree: PyTree) -> PyTree:
    return function(tree)


_BALLS: dict[str, Callable[[PyTree], _Ball]] = {
    "global": lambda theta: _Ball(jax.tree.map(jnp.ones_like, theta), _together),
    "adaptive": lambda theta: _Ball(jax.tree.map(jnp.abs, theta), _together),
    "layerwise": lambda theta: _Ball(
        jax.tree.map(lambda p: jnp.full_like(p, trees.norm(p)), theta), jax.tree.map
    ),
}
