"""The ready-made transformations: short compositions of an ascent and a radius.

Each is the first link of an optax.chain and documents its rule; the arguments they share are
explained at `zosam_jax.sharpness_aware`.
"""

from collections.abc import Callable

import optax

from zosam_jax import ascent, directions, radius
from zosam_jax.objective import AxisName
from zosam_jax.transform import Mask, Rho, sharpness_aware
from zosam_jax.trees import Array


def zo_sam(
    rho: Rho,
    *,
    num_directions: int = 1,
    delta: float = 1e-3,
    distribution: str | directions.Distribution = "normal",
    radius: str | radius.Radius = "global",
    batching: str = "auto",
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Zero-order sharpness-aware minimization: the climb from forward passes alone.

        ĝ = (1/m) Σᵢ [L(θ+δuᵢ) − L(θ−δuᵢ)] / (2δ) · uᵢ,   ε = ρ ĝ / ‖ĝ‖,   emits ∇L(θ+ε)

    2m + 1 forward passes and one backward pass a step. With one direction among 10⁴ weights or
    more, ĝ is close to a random direction: the radius that serves it is 25 to 50 times SAM's.

    Args:
      rho: ρ ≥ 0 or an optax schedule, in the units of `radius`.
      num_directions: m ≥ 1, the random directions.
      delta: δ > 0, the step of the central differences, per coordinate; 1e-3 suits float32,
        3e-3 to 1e-2 bfloat16.
      distribution: "normal", "rademacher" or "sphere" (`zosam_jax.directions`).
      radius: "global" (the paper: ‖ε‖ = ρ), "layerwise" or "adaptive" (`zosam_jax.radius`).
      batching: how to run the probes, "auto", "unroll", "vmap" or "map" (`zosam_jax.probes`).
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.
      key: a seed or a random key.

    Reference: Ji et al., ZO-SAM, CVPR 2026, https://arxiv.org/abs/2603.13115
    """
    estimate = ascent.random_gradient_estimate(num_directions, delta, distribution, batching)
    return sharpness_aware(estimate, rho, radius=radius, mask=mask, axis_name=axis_name, key=key)


def sam(
    rho: Rho,
    *,
    radius: str | radius.Radius = "global",
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sharpness-aware minimization: the climb from a second backpropagation.

        g = ∇L(θ),   ε = ρ g / ‖g‖,   emits ∇L(θ+ε)

    Two forward and two backward passes a step. radius="adaptive" makes it ASAM.

    Args:
      rho: ρ ≥ 0 or an optax schedule; 0.05 is the paper's for CIFAR.
      radius: "global", "layerwise" or "adaptive" (`zosam_jax.radius`).
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412
    """
    return sharpness_aware(ascent.backprop(), rho, radius=radius, mask=mask, axis_name=axis_name)


def random_weight_perturbation(
    rho: Rho,
    *,
    distribution: str | directions.Distribution = "normal",
    radius: str | radius.Radius = "global",
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """The control: a random perturbation of the same radius, at plain SGD's cost.

        u random,   ε = ρ u / ‖u‖,   emits ∇L(θ+ε)

    One forward and one backward pass a step. What ZO-SAM gains over this it owes to its probes.

    Args:
      rho: ρ ≥ 0 or an optax schedule, in the units of `radius`.
      distribution: "normal", "rademacher" or "sphere" (`zosam_jax.directions`).
      radius: "global", "layerwise" or "adaptive" (`zosam_jax.radius`).
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.
      key: a seed or a random key.

    Reference: with layer- or filter-wise radii, Bisla et al., https://arxiv.org/abs/2201.08025,
      and Li et al., https://arxiv.org/abs/2404.00357
    """
    control = ascent.random_direction(distribution)
    return sharpness_aware(control, rho, radius=radius, mask=mask, axis_name=axis_name, key=key)


#: Every ready-made transformation by name; the command line offers them, and the contract tests
#: hold each of them to the same acceptance list. The first argument of each is ρ.
REGISTRY: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "sam": sam,
    "zo_sam": zo_sam,
    "random_weight_perturbation": random_weight_perturbation,
}
