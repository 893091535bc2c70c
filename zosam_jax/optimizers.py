"""The ready-made transformations: short compositions of an ascent, a radius and a descent.

Each is the first link of an optax.chain and documents its rule; the arguments they share are
explained at `zosam_jax.sharpness_aware`.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax

from zosam_jax import ascent, descent, directions, radius
from zosam_jax.errors import check_number, check_part, check_positive_fraction
from zosam_jax.objective import AxisName
from zosam_jax.transform import Mask, Rho, sharpness_aware
from zosam_jax.trees import Array


def zo_sam(
    rho: Rho,
    *,
    num_directions: int = 1,
    delta: float = 1e-3,
    distribution: str | directions.Distribution = "normal",
    radius: radius.RadiusLike = "global",
    batching: str = "auto",
    difference: str = "central",
    fraction: float | None = None,
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
      radius: "global" (the paper: ‖ε‖ = ρ), "layerwise", "filterwise" or "adaptive"
        (`zosam_jax.radius`).
      batching: how to run the probes, "auto", "unroll", "vmap" or "map" (`zosam_jax.probes`).
      difference: "central", or "forward", whose m + 1 probes are cheaper and coarser.
      fraction: how much of the batch the probes see, in (0, 1]; None for all of it.
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.
      key: a seed or a random key.

    Reference: Ji et al., ZO-SAM, CVPR 2026, https://arxiv.org/abs/2603.13115
    """
    estimate = ascent.random_gradient_estimate(
        num_directions,
        delta,
        distribution,
        batching,
        difference=difference,
        fraction=_number(fraction),
    )
    return sharpness_aware(estimate, rho, radius=radius, mask=mask, axis_name=axis_name, key=key)


def sam(
    rho: Rho,
    *,
    radius: radius.RadiusLike = "global",
    fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sharpness-aware minimization: the climb from a second backpropagation.

        g = ∇L(θ),   ε = ρ g / ‖g‖,   emits ∇L(θ+ε)

    Two forward and two backward passes a step. `asam` has ASAM's radius.

    Args:
      rho: ρ ≥ 0 or an optax schedule; 0.05 is the paper's for CIFAR.
      radius: "global", "layerwise", "filterwise" or "adaptive" (`zosam_jax.radius`).
      fraction: how much of the batch the climb sees, in (0, 1]; None for all of it.
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412
    """
    gradient = ascent.backprop(_number(fraction))
    return sharpness_aware(gradient, rho, radius=radius, mask=mask, axis_name=axis_name)


def fast_sam(
    rho: Rho = 0.06,
    *,
    fraction: float | None = None,
    radius: radius.RadiusLike = "adaptive_layerwise",
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SAM whose climb sees a part of the batch: its accuracy at close to plain SGD's cost.

        g = ∇L_part(θ),   ε_l = ρ ‖θ_l‖ T_l g_l / ‖T_l g_l‖ with T = |θ|,   emits ∇L(θ+ε)

    1 + f forward and 1 + f backward passes a step for the fraction f. The batch is the loss's
    array arguments, examples along their first axes. Networks that diverge early want ρ to rise
    over the first fifth of the run: rho=optax.linear_schedule(0, 0.06, steps // 5).

    Args:
      rho: ρ ≥ 0 or an optax schedule; 0.06 moves each array by 6% of its norm.
      fraction: f in (0, 1]; None for an eighth.
      radius: "adaptive_layerwise", or another of `zosam_jax.radius`.
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.

    Reference: for a climb on a part of the batch, Bahri et al., https://arxiv.org/abs/2110.08529
    """
    climb = ascent.backprop(0.125 if fraction is None else fraction)
    return sharpness_aware(climb, rho, radius=radius, mask=mask, axis_name=axis_name)


def random_weight_perturbation(
    rho: Rho,
    *,
    distribution: str | directions.Distribution = "normal",
    radius: radius.RadiusLike = "global",
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
      radius: "global", "layerwise", "filterwise" or "adaptive" (`zosam_jax.radius`).
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.
      key: a seed or a random key.

    Reference: with layer- or filter-wise radii, Bisla et al., https://arxiv.org/abs/2201.08025,
      and Li et al., https://arxiv.org/abs/2404.00357
    """
    control = ascent.random_direction(distribution)
    return sharpness_aware(control, rho, radius=radius, mask=mask, axis_name=axis_name, key=key)


def asam(
    rho: Rho = 0.5,
    *,
    eta: float = 0.01,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adaptive sharpness-aware minimization: SAM in units of each weight.

        g = ∇L(θ),   T = |θ| + η,   ε = ρ T²g / ‖T g‖,   emits ∇L(θ+ε)

    Two forward and two backward passes a step. T is 1 for biases, as `radius.asam` says.

    Args:
      rho: ρ ≥ 0 or an optax schedule, without units; the paper's are 0.5 and 1.
      eta: η ≥ 0, in the units of the parameters.
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.

    Reference: Kwon et al., ASAM, https://arxiv.org/abs/2102.11600
    """
    return sharpness_aware(
        ascent.backprop(), rho, radius=radius.asam(eta), mask=mask, axis_name=axis_name
    )


def gsam(
    rho: Rho,
    *,
    alpha: float = 0.4,
    radius: radius.RadiusLike = "global",
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Surrogate-gap-guided sharpness-aware minimization: SAM that also closes the gap to L(θ).

        g = ∇L(θ),   G = ∇L(θ+ρ g/‖g‖),   emits G − α g⊥,   g⊥ = g − ⟨g, Ĝ⟩ Ĝ,   Ĝ = G / ‖G‖

    Two forward and two backward passes a step. α = 0 is SAM.

    Args:
      rho: ρ ≥ 0 or an optax schedule; the paper's falls with the learning rate (`gsam_rho`).
      alpha: α ≥ 0; the paper takes 0.01 for ResNet-50, 0.4 for ViT-S/32, 1 for ViT-S/16.
      radius: "global", "layerwise", "filterwise" or "adaptive" (`zosam_jax.radius`).
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.

    Reference: Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training,
      https://arxiv.org/abs/2203.08065
    """
    return sharpness_aware(
        ascent.backprop(),
        rho,
        radius=radius,
        descent=descent.surrogate_gap(alpha),
        mask=mask,
        axis_name=axis_name,
    )


def gsam_rho(
    learning_rate: optax.Schedule, rho_max: float, rho_min: float, lr_max: float, lr_min: float
) -> optax.Schedule:
    """GSAM's radius, which follows the learning rate λ between two ends.

        ρ_t = ρ_min + (ρ_max − ρ_min) (λ_t − λ_min) / (λ_max − λ_min), within [ρ_min, ρ_max]

    Args:
      learning_rate: λ, an optax schedule.
      rho_max: the radius where λ = λ_max; the paper takes 0.04 for ResNet-50, 0.6 for ViT-S.
      rho_min: the radius where λ = λ_min; the paper takes 0.02 and 0.
      lr_max: λ_max, the largest learning rate, after the warmup.
      lr_min: λ_min < λ_max, the one it ends at.

    Raises:
      ValueError, TypeError: for a radius below 0, ends of λ in the wrong order, or a λ that is no
        schedule.
    """
    if not callable(learning_rate):
        raise TypeError(
            f"learning_rate={learning_rate!r} must be an optax schedule, for example "
            "optax.cosine_decay_schedule(0.1, 1000)."
        )
    check_number("rho_max", rho_max, above=0.0, inclusive=True)
    check_number("rho_min", rho_min, above=0.0, inclusive=True)
    check_number("lr_max", lr_max, above=lr_min, inclusive=False)

    def schedule(count: Array) -> Array:
        # A warmup may begin below λ_min.
        height = jnp.clip((learning_rate(count) - lr_min) / (lr_max - lr_min), 0.0, 1.0)
        return rho_min + (rho_max - rho_min) * height

    return schedule


def look_sam(
    rho: Rho = 0.1,
    *,
    interval: int = 5,
    alpha: float = 0.7,
    per_array: bool = False,
    radius: radius.RadiusLike = "global",
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LookSAM: a second gradient at every k-th step only, its bend reused between them.

        t mod k = 0:   emits G = ∇L(θ+ρ g/‖g‖),   gᵥ = G − ⟨G, ĝ⟩ ĝ,   g = ∇L(θ),   ĝ = g / ‖g‖
        else:          emits g + α (‖g‖ / ‖gᵥ‖) gᵥ

    1 + 1/k forward and backward passes a step, and one array of memory for each parameter; on a
    CPU, losses with convolutions cost as much as SAM (`descent.look`). interval=1 is SAM.

    Args:
      rho: ρ ≥ 0 or an optax schedule.
      interval: k ≥ 1.
      alpha: α ≥ 0, how much of the bend to reuse.
      per_array: whether angles and lengths are those of each parameter array on its own.
      radius: "global", "layerwise", "filterwise" or "adaptive" (`zosam_jax.radius`).
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.

    Reference: Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization,
      https://arxiv.org/abs/2203.02714
    """
    return sharpness_aware(
        ascent.backprop(),
        rho,
        radius=radius,
        descent=descent.look(interval, alpha, per_array),
        mask=mask,
        axis_name=axis_name,
    )


def esam(
    rho: Rho,
    *,
    beta: float = 0.5,
    gamma: float = 0.5,
    radius: radius.RadiusLike = "global",
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Efficient SAM: climbs with some of the arrays, comes down on the examples it hurts most.

        ε = (ρ/β) g / ‖g‖,   g = ∇L(θ) on each array with probability β, 0 on the others
        emits ∇L(θ+ε) on the γB examples with the largest ℓᵢ(θ+ε) − ℓᵢ(θ)

    2 + γ forward and 1 + γ backward passes a step, and one more forward pass with auxiliary output.
    The examples save γ its part of the last pass; the arrays save nothing in a compiled program,
    which knows only as it runs which are kept.
    β = γ = 1 is SAM. The losses of the examples come from `losses_fn`, whose mean is then taken
    for the loss at θ, or from the loss on each example alone (no BatchNorm).

    Args:
      rho: ρ ≥ 0 or an optax schedule.
      beta: β in (0, 1], the part of the arrays that a step perturbs.
      gamma: γ in (0, 1], the part of the batch that the descent sees.
      radius: "global", "layerwise", "filterwise" or "adaptive" (`zosam_jax.radius`).
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.
      key: a seed or a random key.

    Reference: Du et al., Efficient Sharpness-aware Minimization,
      https://arxiv.org/abs/2110.03141
    """
    if not callable(rho):
        check_number("rho", rho, above=0.0, inclusive=True)
    check_positive_fraction("beta", beta)
    check_part("gamma", gamma)
    examples = descent.hardest_examples(gamma)
    return sharpness_aware(
        ascent.random_arrays(ascent.backprop(losses=gamma < 1), keep=beta),
        (lambda count: rho(count) / beta) if callable(rho) else rho / beta,
        radius=radius,
        descent=examples,
        mask=mask,
        axis_name=axis_name,
        key=key,
    )


def s2_sam(
    rho: Rho,
    *,
    decay: float = 0.0,
    radius: radius.RadiusLike = "global",
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Single-step SAM: climbs along the gradient of the step before, at plain SGD's cost.

        ε = ρ G / ‖G‖ with the last step's G,   emits G = ∇L(θ+ε)

    One forward and one backward pass a step, and one array of memory for each parameter. The
    first step is not perturbed.

    Args:
      rho: ρ ≥ 0 or an optax schedule, in the units of `radius`.
      decay: in [0, 1); above 0 a moving average of the past gradients takes the last one's place.
      radius: "global", "layerwise", "filterwise" or "adaptive" (`zosam_jax.radius`).
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.

    Reference: Ji et al., A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve
      Efficient and Accurate Sparse Training, NeurIPS 2024
    """
    return sharpness_aware(
        ascent.previous_gradient(decay), rho, radius=radius, mask=mask, axis_name=axis_name
    )


def m_sharpness(
    rho: Rho,
    *,
    microbatches: int = 2,
    radius: radius.RadiusLike = "global",
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SAM on each of M equal parts of the batch, whose gradients are averaged.

        emits (1/M) Σⱼ ∇Lⱼ(θ + ρ gⱼ/‖gⱼ‖),   gⱼ = ∇Lⱼ(θ) on part j

    Two forward and two backward passes a step, in M turns of a smaller batch. The parts do not
    depend on the number of devices.

    Args:
      rho: ρ ≥ 0 or an optax schedule.
      microbatches: M ≥ 1, which must divide the batch; 1 is SAM.
      radius: "global", "layerwise", "filterwise" or "adaptive" (`zosam_jax.radius`).
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412
    """
    return sharpness_aware(
        ascent.backprop(),
        rho,
        radius=radius,
        microbatches=microbatches,
        mask=mask,
        axis_name=axis_name,
    )


def guided_zo_sam(
    rho: Rho,
    *,
    history: int = 1,
    num_directions: int = 1,
    delta: float = 1e-3,
    distribution: str | directions.Distribution = "normal",
    radius: radius.RadiusLike = "global",
    batching: str = "auto",
    fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """ZO-SAM whose probes look where the gradient is likely to be.

        b₁, …, b_{k+m} an orthonormal basis of the last k gradients and m random directions
        ĝ = Σᵢ [L(θ+hbᵢ) − L(θ−hbᵢ)] / (2h) · bᵢ,   h = δ√d,   ε = ρ ĝ / ‖ĝ‖,   emits ∇L(θ+ε)

    2(k + m) + 1 forward passes and one backward pass a step, and k arrays of memory for each
    parameter.

    Args:
      rho: ρ ≥ 0 or an optax schedule, in the units of `radius`.
      history: k ≥ 1, the past gradients.
      num_directions: m ≥ 1, the random directions.
      delta: δ > 0, the step of the central differences, per coordinate, as in `zo_sam`.
      distribution: "normal", "rademacher" or "sphere" (`zosam_jax.directions`).
      radius: "global", "layerwise", "filterwise" or "adaptive" (`zosam_jax.radius`).
      batching: how to run the probes, "auto", "unroll", "vmap" or "map" (`zosam_jax.probes`).
      fraction: how much of the batch the probes see, in (0, 1]; None for all of it.
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.
      key: a seed or a random key.

    Reference: the search space is that of Maheswaranathan et al., Guided Evolutionary Strategies,
      https://arxiv.org/abs/1806.10230
    """
    estimate = ascent.guided_gradient_estimate(
        history, num_directions, delta, distribution, batching, fraction=_number(fraction)
    )
    return sharpness_aware(estimate, rho, radius=radius, mask=mask, axis_name=axis_name, key=key)


def antithetic_sam(
    rho: Rho,
    *,
    distribution: str | directions.Distribution = "normal",
    radius: radius.RadiusLike = "global",
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """A random perturbation, on the side where the loss is larger.

        u random,   ε = ± ρ u / ‖u‖ with the sign of the larger L(θ+ε),   emits ∇L(θ+ε)

    Two forward passes and one backward pass a step, and up to twice the memory for activations
    (`descent.worst_side`): ZO-SAM of one direction, probed at the perturbation's own distance.

    Args:
      rho: ρ ≥ 0 or an optax schedule, in the units of `radius`.
      distribution: "normal", "rademacher" or "sphere" (`zosam_jax.directions`).
      radius: "global", "layerwise", "filterwise" or "adaptive" (`zosam_jax.radius`).
      mask: which weights to perturb.
      axis_name: the device axis of the batch inside shard_map or pmap.
      key: a seed or a random key.
    """
    return sharpness_aware(
        ascent.random_direction(distribution),
        rho,
        radius=radius,
        descent=descent.worst_side(),
        mask=mask,
        axis_name=axis_name,
        key=key,
    )


def mezo(
    num_directions: int = 1,
    delta: float = 1e-3,
    *,
    distribution: str | directions.Distribution = "normal",
    batching: str = "auto",
    difference: str = "central",
    fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """MeZO: the gradient itself from forward passes alone.

        emits ĝ = (1/m) Σᵢ [L(θ+δuᵢ) − L(θ−δuᵢ)] / (2δ) · uᵢ

    2m forward passes a step and no backward pass, in the memory of inference. ‖ĝ‖ is about √(d/m)
    times ‖∇L‖ for d weights: it takes learning rates as much smaller.

    Args:
      num_directions: m ≥ 1, the random directions.
      delta: δ > 0, the step of the central differences, per coordinate, as in `zo_sam`.
      distribution: "normal", "rademacher" or "sphere" (`zosam_jax.directions`).
      batching: how to run the probes, "auto", "unroll", "vmap" or "map" (`zosam_jax.probes`).
      difference: "central", or "forward", whose m + 1 probes are cheaper and coarser.
      fraction: how much of the batch the probes see, in (0, 1]; None for all of it. On a part, a
        forward pass more gives the value.
      mask: which weights to estimate; the gradient of the others is zero.
      axis_name: the device axis of the batch inside shard_map or pmap.
      key: a seed or a random key.

    Reference: Malladi et al., Fine-Tuning Language Models with Just Forward Passes,
      https://arxiv.org/abs/2305.17333
    """
    estimate = ascent.random_gradient_estimate(
        num_directions,
        delta,
        distribution,
        batching,
        difference=difference,
        fraction=_number(fraction),
    )
    return _descend_along(estimate, mask, axis_name, key)


def forward_gradient(
    num_directions: int = 1,
    *,
    distribution: str | directions.Distribution = "normal",
    batching: str = "auto",
    fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """The gradient itself, from slopes by forward-mode differentiation: unbiased.

        emits ĝ = (1/m) Σᵢ ⟨∇L(θ), uᵢ⟩ uᵢ

    m forward passes a step that carry a derivative along, each with the arithmetic of a gradient,
    and no stored activations. ‖ĝ‖ is about √(d/m) times ‖∇L‖ for d weights.

    Args:
      num_directions: m ≥ 1, the random directions.
      distribution: "normal", "rademacher" or "sphere" (`zosam_jax.directions`).
      batching: how to run the passes, "auto", "unroll", "vmap" or "map" (`zosam_jax.probes`).
      fraction: how much of the batch the slopes see, in (0, 1]; None for all of it. On a part, a
        forward pass more gives the value.
      mask: which weights to estimate; the gradient of the others is zero.
      axis_name: the device axis of the batch inside shard_map or pmap.
      key: a seed or a random key.

    Reference: Baydin et al., Gradients without Backpropagation, https://arxiv.org/abs/2202.08587
    """
    estimate = ascent.forward_gradient(
        num_directions, distribution, batching, fraction=_number(fraction)
    )
    return _descend_along(estimate, mask, axis_name, key)


def _descend_along(
    estimate: ascent.Ascent, mask: Mask, axis_name: AxisName | None, key: int | Array
) -> optax.GradientTransformationExtraArgs:
    """The estimate for the gradient, and no perturbation."""
    return sharpness_aware(
        estimate,
        rho=optax.constant_schedule(0.0),  # the number 0 would leave the ascent out
        descent=descent.estimate(),
        mask=mask,
        axis_name=axis_name,
        key=key,
    )


def _number(fraction: float | None) -> float:
    """The default is no number, so that optax.inject_hyperparams does not trace it."""
    return 1.0 if fraction is None else fraction


#: Every ready-made transformation that perturbs, by name; the command line offers them, and the
#: contract tests hold each of them to the same acceptance list. The first argument of each is ρ.
REGISTRY: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "sam": sam,
    "fast_sam": fast_sam,
    "zo_sam": zo_sam,
    "random_weight_perturbation": random_weight_perturbation,
    "asam": asam,
    "gsam": gsam,
    "look_sam": look_sam,
    "esam": esam,
    "s2_sam": s2_sam,
    "m_sharpness": m_sharpness,
    "guided_zo_sam": guided_zo_sam,
    "antithetic_sam": antithetic_sam,
}

#: Those that estimate the gradient and perturb nothing: they have no ρ.
ESTIMATORS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "mezo": mezo,
    "forward_gradient": forward_gradient,
}
