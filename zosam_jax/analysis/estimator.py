"""The quality of an ascent: its direction against the gradient that it stands for."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import keys, masks, trees
from zosam_jax import radius as radii
from zosam_jax.analysis.batches import Batch, LossFn
from zosam_jax.ascent.base import Ascent
from zosam_jax.binding import Call
from zosam_jax.errors import check_count, check_number
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Float, FloatTree, Key, PyTree


class Spread(NamedTuple):
    """A quantity over samples that differ in batch and random key.

    Attributes:
      mean: over the samples.
      sd: the standard deviation of one sample (n − 1 in the denominator); NaN for a single one.
    """

    mean: float
    sd: float


class PerturbationQuality(NamedTuple):
    """What one perturbation ε does to a loss.

    Attributes:
      norm: ‖ε‖.
      cosine: cos(ε, ∇L(θ)); 0 for an ε of zero.
      gain: L(θ+ε) − L(θ).
    """

    norm: Array
    cosine: Array
    gain: Array


class Quality(NamedTuple):
    """What `quality` finds, g = ∇L being the gradient of the sample's own batch.

    Attributes:
      cosine: ⟨ĝ, g⟩ / (‖ĝ‖ ‖g‖) of the direction ĝ, 0 for a direction of zero. Random directions
        have mean 0 and sd 1/√d; those with the right sign a mean of about √(2/(πd)).
      gain: L(θ+ε) − L(θ), ε the perturbation along ĝ.
      gradient_gain: the same of g in the place of ĝ.
      relative_gain: the ratio of these two means; NaN where the gradient gains nothing.
      relative_error: ‖ĝ − g‖² / ‖g‖². It means something only of directions that estimate the
        gradient, length and all: the mean is (d + 1)/m for the random gradient estimate from m
        normal directions, (d − 1)/m for rademacher and sphere, and 1 for a direction of zero.
      dimension: d, the number of kept weights.
      num_samples: the number of draws times that of batches.
    """

    cosine: Spread
    gain: Spread
    gradient_gain: Spread
    relative_gain: float
    relative_error: Spread
    dimension: int
    num_samples: int


def perturbation_quality(
    loss: Callable[[PyTree], Array],
    params: PyTree,
    epsilon: PyTree,
    *,
    direction: PyTree = None,
    mask: PyTree = None,
) -> PerturbationQuality:
    """How long a perturbation is, its angle to the gradient, and its gain; for use within jit.

    Args:
      loss: params → scalar.
      params: θ, floating-point arrays.
      epsilon: ε, like the parameters.
      direction: whose cosine to take, where a radius has turned it into ε; ε's own by default.
      mask: the kept weights, to which the gradient is restricted; None for all.

    Returns:
      ‖ε‖, the cosine and the gain: one pass with gradients and one without.
    """
    value, gradient = jax.value_and_grad(loss)(params)
    gradient = masks.restrict(gradient, mask)
    aim = epsilon if direction is None else direction
    return PerturbationQuality(
        norm=trees.norm(epsilon),
        cosine=trees.ratio(trees.inner(aim, gradient), trees.norm(aim) * trees.norm(gradient)),
        gain=loss(trees.displace(params, epsilon)) - value,
    )


def quality(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    ascent: Ascent,
    *,
    rho: float,
    radius: radii.RadiusLike = "layerwise",
    mask: PyTree = None,
    num_draws: int = 8,
    key: int | Array = 0,
) -> Quality:
    """Measures an ascent's direction at θ on every batch in turn, `num_draws` times over.

    θ stays the same. An ascent with a state is given the batches one after another, and after
    each the gradient at θ+ε, as in training; its first sample, from the initial state, counts
    too. A sample costs what the ascent does, a pass with gradients and two without, one of which
    has gradients too where the ascent's state needs them. Calls with the same batches and key give
    several ascents the same random numbers.

    Args:
      batches: of equal size; iterated over once for each draw.
      ascent: how the direction is found (`zosam_jax.ascent`).
      rho: ρ > 0, a number in the units of `radius`.
      radius: the rule that makes ε of it (`zosam_jax.radius`); of one that
        calibrates itself, the rule alone.
      num_draws: how often each batch is used, with a random key of its own each time.
      key: a seed or a random key; the same one gives other ascents the same random numbers.

    Returns:
      The means over all samples, each with its spread.
    """
    if not isinstance(ascent, Ascent):
        raise TypeError(
            f"ascent={ascent!r} must be an Ascent, for example "
            "zosam_jax.ascent.random_gradient_estimate()."
        )
    check_number("rho", rho, above=0.0, inclusive=False)
    check_count("num_draws", num_draws)
    rule, key = radii.get(radius).rule, keys.as_key(key)
    floating, _ = trees.split_floating(params)
    kept = masks.resolve(mask, floating)
    measure = jax.jit(functools.partial(_measure, loss_fn, ascent, rule, rho))
    state, found = ascent.init(floating), list[_Sample]()
    for _ in range(num_draws):
        for batch in batches:
            seen, state = measure(
                params=params,
                batch=batch,
                kept=kept,
                state=state,
                key=jax.random.fold_in(key, len(found)),
            )
            found.append(jax.device_get(seen))
    if not found:
        raise ValueError("batches is empty: pass at least one batch.")
    columns = _Sample(*np.asarray(found, np.float64).T)
    gain, gradient_gain = _spread(columns.gain), _spread(columns.gradient_gain)
    return Quality(
        cosine=_spread(columns.cosine),
        gain=gain,
        gradient_gain=gradient_gain,
        relative_gain=gain.mean / gradient_gain.mean if gradient_gain.mean else math.nan,
        relative_error=_spread(columns.relative_error),
        dimension=int(masks.count_kept(floating, kept)),
        num_samples=len(found),
    )


class _Sample(NamedTuple):
    """One sample, as in Quality: scalars, or a column of them."""

    cosine: Any
    gain: Any
    gradient_gain: Any
    relative_error: Any


def _measure(
    loss_fn: LossFn,
    ascent: Ascent,
    rule: radii.Rule,
    rho: float,
    *,
    params: PyTree,
    batch: Batch,
    kept: masks.Resolved,
    state: PyTree,
    key: Key[Array, ""],
) -> tuple[_Sample, PyTree]:
    """One sample, and the state of the ascent after it."""
    theta, merge = trees.split_floating(params)
    objective = Objective(Call(loss_fn, (batch,)), name="loss_fn", merge=merge)

    def epsilon(direction: FloatTree) -> FloatTree:
        return radii.perturbation(rule, direction, theta, jnp.asarray(rho), kept)

    clean = objective.value_and_grad(theta)
    gradient = masks.restrict(clean.gradient, kept)
    result = ascent.direction(objective, theta, state, key=key, mask=kept)
    direction = masks.restrict(result.direction, kept)
    # XLA drops the backward pass for ascents whose state does not need its gradient.
    perturbed = objective.value_and_grad(trees.displace(theta, epsilon(direction)))
    highest = objective.probe(trees.displace(theta, epsilon(gradient)))
    # XLA computes once what this has in common with the passes above.
    aimed = perturbation_quality(
        objective.probe, theta, epsilon(direction), direction=direction, mask=kept
    )
    error = trees.norm(trees.displace(direction, gradient, -1.0))
    seen = _Sample(
        cosine=aimed.cosine,
        gain=aimed.gain,
        gradient_gain=highest - clean.value,
        relative_error=jnp.square(error / trees.norm(gradient)),
    )
    return seen, ascent.observe(state, result, perturbed.gradient)


def _spread(values: Float[np.ndarray, " samples"]) -> Spread:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(float(np.mean(values)), sd)
