"""The ready-made transformations: short compositions of an ascent, a radius and a descent.

Each is the first transformation of an optax.chain, and documents its rule, what a step costs and
the arguments of its own. Those that several take mean the same in all of them:

- rho: ρ ≥ 0 or an optax schedule of the step count, in the units of `radius`;
- radius: "global" (‖ε‖ = ρ, as in most papers), "layerwise", "filterwise", "adaptive",
  "adaptive_layerwise" or "calibrated" (`zosam_jax.radius`);
- num_directions: m ≥ 1, the random directions;
- delta: δ > 0, the step of the differences, per coordinate; 1e-3 suits float32, 3e-3 to 1e-2
  bfloat16;
- distribution: "normal", "rademacher" or "sphere" (`zosam_jax.directions`);
- batching: how to run the probes, "auto", "unroll", "vmap" or "map" (`zosam_jax.probes`);
- difference: "central", or "forward", whose m + 1 probes are cheaper and coarser;
- fraction: how much of the step's examples the ascent sees, in (0, 1]; None for all of them;
- batch_fraction: how much of the batch the step sees, in (0, 1], drawn anew each step; None for all
  of it (`zosam_jax.value_and_grad`);
- extrapolation: α, how far to go along the arc from ε to the gradient (`descent.extrapolated`);
  None for the gradient itself;
- mask: which weights to perturb, or to estimate: the gradient of the others is then zero;
- axis_name: the device axis of the batch inside shard_map or pmap;
- key: a seed or a random key.

`RECORDS`, at the end, is the one list of the transformations: the command line, the benchmark, the
documentation and the tests are derived from it.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from zosam_jax import ascent, descent, directions, radius
from zosam_jax.errors import check_number, check_part, check_positive_fraction
from zosam_jax.gradient import Mask, Rho
from zosam_jax.objective import AxisName
from zosam_jax.transform import sharpness_aware
from zosam_jax.trees import Array

# What `zosam_jax` exports from here.
__all__ = [
    "ESTIMATORS",
    "RECORDS",
    "REGISTRY",
    "antithetic_sam",
    "asam",
    "bisam",
    "esam",
    "forward_gradient",
    "friendly_sam",
    "gsam",
    "gsam_rho",
    "le_sam",
    "look_sam",
    "mezo",
    "momentum_sam",
    "msam",
    "random_weight_perturbation",
    "s2_sam",
    "sam",
    "subbatch_sam",
    "vasso",
    "xsam",
    "zo_sam",
]

# The part of the batch that subbatch_sam's ascent sees.
SUBBATCH = 0.125


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
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Zero-order sharpness-aware minimization: the ascent direction from forward passes alone.

        ĝ = (1/m) Σᵢ [L(θ+δuᵢ) − L(θ−δuᵢ)] / (2δ) · uᵢ,   ε = ρ ĝ / ‖ĝ‖,   emits ∇L(θ+ε)

    2m + 1 forward passes and one backward pass a step. With one direction among 10⁴ weights or
    more, ĝ is close to a random direction: the radius that serves it is 25 to 50 times SAM's. For
    the arguments see `zosam_jax.optimizers`.

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
    return sharpness_aware(
        estimate,
        rho,
        radius=radius,
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
        key=key,
    )


def sam(
    rho: Rho,
    *,
    radius: radius.RadiusLike = "global",
    fraction: float | None = None,
    batch_fraction: float | None = None,
    extrapolation: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sharpness-aware minimization: the ascent direction from a second backpropagation.

        g = ∇L(θ),   ε = ρ g / ‖g‖,   emits ∇L(θ+ε)

    Two forward and two backward passes a step. `asam` has ASAM's radius. For the arguments see
    `zosam_jax.optimizers`; the paper's ρ for CIFAR is 0.05.

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412
    """
    return sharpness_aware(
        ascent.backprop(_number(fraction)),
        rho,
        radius=radius,
        descent=_along_arc(extrapolation),
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def subbatch_sam(
    rho: Rho = 0.06,
    *,
    fraction: float | None = None,
    extrapolation: float | None = None,
    radius: radius.RadiusLike = "adaptive_layerwise",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SAM whose ascent sees a part of the batch: close to its accuracy, at close to SGD's cost.

        g = ∇L_part(θ),   ε_l = ρ ‖θ_l‖ T_l g_l / ‖T_l g_l‖ with T = |θ|,   emits ∇L(θ+ε)

    1 + f forward and 1 + f backward passes a step for the fraction f. The batch is the loss's
    array arguments, examples along their first axes. Networks that diverge early want ρ to rise
    over the first fifth of the run: rho=optax.linear_schedule(0, 0.06, steps // 5).

    Args:
      rho: ρ ≥ 0 or an optax schedule; 0.06 moves each array by 6% of its norm.
      fraction: f in (0, 1]; None for an eighth.
      others: as in `zosam_jax.optimizers`.

    Reference: for an ascent on a part of the batch, Bahri et al., https://arxiv.org/abs/2110.08529
    """
    return sharpness_aware(
        ascent.backprop(SUBBATCH if fraction is None else fraction),
        rho,
        radius=radius,
        descent=_along_arc(extrapolation),
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def _along_arc(extrapolation: float | None) -> descent.Descent | None:
    if extrapolation is None:
        return None
    check_number("extrapolation", extrapolation, above=0.0, inclusive=True)
    return descent.extrapolated(extrapolation)


def xsam(
    rho: Rho,
    *,
    interval: int = 100,
    reach: float = 2.0,
    fraction: float | None = None,
    radius: radius.RadiusLike = "global",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """XSAM: SAM's gradient, turned towards where on an arc around θ the loss is largest.

        v₀ = ε/‖ε‖ with ε = ρ g/‖g‖,   G = ∇L(θ+ε),   v₁ = G/‖G‖,   φ = ∠(v₀, v₁)
        v(α) = (sin((1−α)φ) v₀ + sin(αφ) v₁) / sin φ,   emits ‖G‖ v(α)
        α = argmax L(θ + reach·‖ε‖ v(α)) over 0, 0.1, …, 2, once in `interval` steps

    Two forward and two backward passes a step, and 21 forward passes once in `interval` steps.
    α = 1 is SAM. For an α of your own, under any ascent, see `descent.extrapolated`, and
    `extrapolation` of `sam` and `subbatch_sam`.

    Args:
      interval: n ≥ 1, the steps from one measurement to the next; the paper's are an epoch's.
      reach: > 0, how far from θ the losses are compared, in lengths of ε.
      others: as in `zosam_jax.optimizers`.

    Reference: Chen and Zhou, Revisiting Sharpness-Aware Minimization (XSAM), ICLR 2026,
      https://arxiv.org/abs/2603.10048
    """
    return sharpness_aware(
        ascent.backprop(_number(fraction)),
        rho,
        radius=radius,
        descent=descent.extrapolated_as_measured(interval, reach),
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def random_weight_perturbation(
    rho: Rho,
    *,
    distribution: str | directions.Distribution = "normal",
    radius: radius.RadiusLike = "global",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """The control: a random perturbation of the same radius, at plain SGD's cost.

        u random,   ε = ρ u / ‖u‖,   emits ∇L(θ+ε)

    One forward and one backward pass a step. What ZO-SAM gains over this it owes to its probes. For
    the arguments see `zosam_jax.optimizers`.

    Reference: with layer- or filter-wise radii, Bisla et al., https://arxiv.org/abs/2201.08025,
      and Li et al., https://arxiv.org/abs/2404.00357
    """
    control = ascent.random_direction(distribution)
    return sharpness_aware(
        control,
        rho,
        radius=radius,
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
        key=key,
    )


def asam(
    rho: Rho = 0.5,
    *,
    eta: float = 0.01,
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adaptive sharpness-aware minimization: SAM in units of each weight.

        g = ∇L(θ),   T = |θ| + η,   ε = ρ T²g / ‖T g‖,   emits ∇L(θ+ε)

    Two forward and two backward passes a step. T is 1 for biases, as `radius.asam` says.

    Args:
      rho: ρ ≥ 0 or an optax schedule, without units; the paper's are 0.5 and 1.
      eta: η ≥ 0, in the units of the parameters.
      others: as in `zosam_jax.optimizers`.

    Reference: Kwon et al., ASAM, https://arxiv.org/abs/2102.11600
    """
    return sharpness_aware(
        ascent.backprop(),
        rho,
        radius=radius.asam(eta),
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def bisam(
    rho: Rho,
    *,
    fraction: float | None = None,
    radius: radius.RadiusLike = "global",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """BiSAM: SAM whose ascent climbs another function than the loss, a bound on errors.

        g = ∇B(θ),   ε = ρ g / ‖g‖,   emits ∇L(θ+ε)

    Two forward and two backward passes a step. B is what `update` is given as `probe_fn`: the mean
    of `ascent.misclassification_bound` on the network's logits, or anything else; without one B is
    L, which is SAM. For the arguments see `zosam_jax.optimizers`.

    Reference: Xie et al., Improving SAM Requires Rethinking its Optimization Formulation, ICML
      2024, https://arxiv.org/abs/2407.12993
    """
    return sharpness_aware(
        ascent.backprop(_number(fraction), of_probe=True),
        rho,
        radius=radius,
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def gsam(
    rho: Rho,
    *,
    alpha: float = 0.4,
    radius: radius.RadiusLike = "global",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Surrogate-gap-guided sharpness-aware minimization: SAM that also closes the gap to L(θ).

        g = ∇L(θ),   G = ∇L(θ+ρ g/‖g‖),   emits G − α g⊥,   g⊥ = g − ⟨g, Ĝ⟩ Ĝ,   Ĝ = G / ‖G‖

    Two forward and two backward passes a step. α = 0 is SAM.

    Args:
      rho: ρ ≥ 0 or an optax schedule; the paper's falls with the learning rate (`gsam_rho`).
      alpha: α ≥ 0; the paper takes 0.01 for ResNet-50, 0.4 for ViT-S/32, 1 for ViT-S/16.
      others: as in `zosam_jax.optimizers`.

    Reference: Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training,
      https://arxiv.org/abs/2203.08065
    """
    return sharpness_aware(
        ascent.backprop(),
        rho,
        radius=radius,
        descent=descent.surrogate_gap(alpha),
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def gsam_rho(
    learning_rate: optax.Schedule, rho_max: float, rho_min: float, lr_max: float, lr_min: float
) -> optax.Schedule:
    """GSAM's radius, which follows the learning rate λ between two bounds.

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
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LookSAM: a second gradient at every k-th step only, its bend reused between them.

        t mod k = 0:   emits G = ∇L(θ+ρ g/‖g‖),   gᵥ = G − ⟨G, ĝ⟩ ĝ,   g = ∇L(θ),   ĝ = g / ‖g‖
        else:          emits g + α (‖g‖ / ‖gᵥ‖) gᵥ

    1 + 1/k forward and backward passes a step, and one array of memory for each parameter; on a
    CPU, losses with convolutions cost as much as SAM (`descent.looksam`). interval=1 is SAM.

    Args:
      interval: k ≥ 1.
      alpha: α ≥ 0, how much of the bend to reuse.
      per_array: whether angles and lengths are those of each parameter array on its own.
      others: as in `zosam_jax.optimizers`.

    Reference: Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization,
      https://arxiv.org/abs/2203.02714
    """
    return sharpness_aware(
        ascent.backprop(),
        rho,
        radius=radius,
        descent=descent.looksam(interval, alpha, per_array),
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def esam(
    rho: Rho,
    *,
    beta: float = 0.5,
    gamma: float = 0.5,
    radius: radius.RadiusLike = "global",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Efficient SAM: perturbs some of the arrays, descends on the examples whose loss rises most.

        ε = (ρ/β) g / ‖g‖,   g = ∇L(θ) on each array with probability β, 0 on the others
        emits ∇L(θ+ε) on the γB examples with the largest ℓᵢ(θ+ε) − ℓᵢ(θ)

    2 + γ forward and 1 + γ backward passes a step, and one more forward pass with auxiliary output.
    The examples save γ its part of the last pass; the arrays save nothing in a compiled program,
    which knows only as it runs which are kept.
    β = γ = 1 is SAM. The losses of the examples come from `losses_fn`, whose mean is then taken
    for the loss at θ, or from the loss on each example alone (no BatchNorm).

    Args:
      beta: β in (0, 1], the part of the arrays that a step perturbs.
      gamma: γ in (0, 1], the part of the batch that the descent sees.
      others: as in `zosam_jax.optimizers`.

    Reference: Du et al., Efficient Sharpness-aware Minimization,
      https://arxiv.org/abs/2110.03141
    """
    if not callable(rho):
        check_number("rho", rho, above=0.0, inclusive=True)
    check_positive_fraction("beta", beta)
    check_part("gamma", gamma)
    examples = descent.sharpness_sensitive_selection(gamma)
    return sharpness_aware(
        ascent.stochastic_weight_perturbation(ascent.backprop(losses=gamma < 1), keep=beta),
        (lambda count: rho(count) / beta) if callable(rho) else rho / beta,
        radius=radius,
        descent=examples,
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
        key=key,
    )


def s2_sam(
    rho: Rho,
    *,
    decay: float = 0.0,
    radius: radius.RadiusLike = "global",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Single-step SAM: perturbs along the gradient of the step before, at plain SGD's cost.

        ε = ρ G / ‖G‖ with the last step's G,   emits G = ∇L(θ+ε)

    One forward and one backward pass a step, and one array of memory for each parameter. The
    first step is not perturbed.

    Args:
      decay: in [0, 1); above 0 a moving average of the past gradients takes the last one's place.
      others: as in `zosam_jax.optimizers`.

    Reference: Ji et al., A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve
      Efficient and Accurate Sparse Training, NeurIPS 2024
    """
    return sharpness_aware(
        ascent.previous_gradient(decay),
        rho,
        radius=radius,
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def friendly_sam(
    rho: Rho,
    *,
    sigma: float = 1.0,
    decay: float = 0.9,
    radius: radius.RadiusLike = "global",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Friendly SAM: perturbs along what the batch's gradient adds to those of the steps before.

        g = ∇L(θ),   d = g − σ m,   ε = ρ d / ‖d‖,   m ← λ m + (1 − λ) g,   emits ∇L(θ+ε)

    Two forward and two backward passes a step, and one array of memory for each parameter. The
    first step's d is g, and so is the first m.

    Args:
      sigma: σ ≥ 0; 0 is SAM.
      decay: λ in [0, 1).
      others: as in `zosam_jax.optimizers`.

    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024,
      https://arxiv.org/abs/2403.12350
    """
    return sharpness_aware(
        ascent.friendly(sigma, decay),
        rho,
        radius=radius,
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def vasso(
    rho: Rho,
    *,
    theta: float = 0.9,
    fraction: float | None = None,
    radius: radius.RadiusLike = "global",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """VaSSO: SAM whose ascent follows a moving average of the gradients.

        g = ∇L(θ),   d ← (1 − θ) d + θ g,   ε = ρ d / ‖d‖,   emits ∇L(θ+ε)

    Two forward and two backward passes a step, and one array of memory for each parameter. The
    first d is g.

    Args:
      theta: θ in (0, 1]; 1 is SAM. The paper takes 0.9 on CIFAR.
      others: as in `zosam_jax.optimizers`.

    Reference: Li and Giannakis, Enhancing Sharpness-Aware Optimization Through Variance
      Suppression, NeurIPS 2023, https://arxiv.org/abs/2309.15639
    """
    smoothed = ascent.smoothed(theta, _number(fraction))
    return sharpness_aware(
        smoothed, rho, radius=radius, batch_fraction=batch_fraction, mask=mask, axis_name=axis_name
    )


def momentum_sam(
    rho: Rho,
    *,
    decay: float = 0.9,
    radius: radius.RadiusLike = "global",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum SAM: perturbs along the momentum, at plain SGD's cost.

        ε = −ρ v / ‖v‖,   emits G = ∇L(θ+ε),   v ← decay · v + G

    One forward and one backward pass a step, and one array of memory for each parameter: v is kept
    here too, with what the rest of the chain adds (weight decay) left out. The first step is not
    perturbed. The paper's ρ is 3 where SAM's is 0.2.

    Args:
      decay: in [0, 1), the momentum of the SGD that follows.
      others: as in `zosam_jax.optimizers`.

    Reference: Becker et al., Momentum-SAM: Sharpness Aware Minimization without Computational
      Overhead, https://arxiv.org/abs/2401.12033
    """
    return sharpness_aware(
        ascent.momentum(decay),
        rho,
        radius=radius,
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def le_sam(
    rho: Rho = 0.35,
    *,
    rho_max: float = 0.3,
    fraction: float | None = None,
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LE-SAM: SAM that goes as far as the loss takes to rise by a given amount.

        g = ∇L(θ),   ε = min(σ/‖g‖, ρ_max) g/‖g‖,   emits ∇L(θ+ε)

    Two forward and two backward passes a step.

    Args:
      rho: σ ≥ 0 or an optax schedule, in units of the loss. The paper's, 0.35, rises linearly over
        the first twentieth of the run and falls to 0 along a cosine over the last fifth.
      rho_max: ρ_max > 0, the longest ε; see `radius.loss_equated`.
      others: as in `zosam_jax.optimizers`.

    Reference: Wang et al., Fix the Loss, Not the Radius: Rethinking the Adversarial Perturbation
      of Sharpness-Aware Minimization, ICML 2026, https://arxiv.org/abs/2605.10183
    """
    return sharpness_aware(
        ascent.backprop(_number(fraction)),
        rho,
        radius=radius.loss_equated(rho_max),
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def msam(
    rho: Rho,
    *,
    microbatches: int = 2,
    radius: radius.RadiusLike = "global",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SAM on each of M equal parts of the batch, whose gradients are averaged.

        emits (1/M) Σⱼ ∇Lⱼ(θ + ρ gⱼ/‖gⱼ‖),   gⱼ = ∇Lⱼ(θ) on part j

    Two forward and two backward passes a step, in M turns of a smaller batch. The parts do not
    depend on the number of devices.

    Args:
      microbatches: M ≥ 1, which must divide the batch; 1 is SAM.
      others: as in `zosam_jax.optimizers`.

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412
    """
    return sharpness_aware(
        ascent.backprop(),
        rho,
        radius=radius,
        microbatches=microbatches,
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )


def antithetic_sam(
    rho: Rho,
    *,
    distribution: str | directions.Distribution = "normal",
    radius: radius.RadiusLike = "global",
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """A random perturbation, on the side where the loss is larger.

        u random,   ε = ± ρ u / ‖u‖ with the sign of the larger L(θ+ε),   emits ∇L(θ+ε)

    Two forward passes and one backward pass a step, and up to twice the memory for activations
    (`descent.worst_side`): ZO-SAM of one direction, probed at the perturbation's own distance. For
    the arguments see `zosam_jax.optimizers`.
    """
    return sharpness_aware(
        ascent.random_direction(distribution),
        rho,
        radius=radius,
        descent=descent.worst_side(),
        batch_fraction=batch_fraction,
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
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """MeZO: the gradient itself from forward passes alone.

        emits ĝ = (1/m) Σᵢ [L(θ+δuᵢ) − L(θ−δuᵢ)] / (2δ) · uᵢ

    2m forward passes a step and no backward pass, in the memory of inference. ‖ĝ‖ is about √(d/m)
    times ‖∇L‖ for d weights: it takes learning rates as much smaller. With fraction < 1 a forward
    pass more gives the value. For the arguments see `zosam_jax.optimizers`.

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
    return _descend_along(estimate, batch_fraction, mask, axis_name, key)


def forward_gradient(
    num_directions: int = 1,
    *,
    distribution: str | directions.Distribution = "normal",
    batching: str = "auto",
    fraction: float | None = None,
    batch_fraction: float | None = None,
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """The gradient itself, from slopes by forward-mode differentiation: unbiased.

        emits ĝ = (1/m) Σᵢ ⟨∇L(θ), uᵢ⟩ uᵢ

    m forward passes a step that carry a derivative along, each with the arithmetic of a gradient,
    and no stored activations. ‖ĝ‖ is about √(d/m) times ‖∇L‖ for d weights. With fraction < 1 a
    forward pass more gives the value. For the arguments see `zosam_jax.optimizers`.

    Reference: Baydin et al., Gradients without Backpropagation, https://arxiv.org/abs/2202.08587
    """
    estimate = ascent.forward_gradient(
        num_directions, distribution, batching, fraction=_number(fraction)
    )
    return _descend_along(estimate, batch_fraction, mask, axis_name, key)


def _descend_along(
    estimate: ascent.Ascent,
    batch_fraction: float | None,
    mask: Mask,
    axis_name: AxisName | None,
    key: int | Array,
) -> optax.GradientTransformationExtraArgs:
    """The estimate for the gradient, and no perturbation."""
    return sharpness_aware(
        estimate,
        rho=optax.constant_schedule(0.0),  # the number 0 would leave the ascent out
        descent=descent.estimate(),
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
        key=key,
    )


def _number(fraction: float | None) -> float:
    """The default is no number, so that optax.inject_hyperparams does not trace it."""
    return 1.0 if fraction is None else fraction


class Passes(NamedTuple):
    """How often a step runs the network, in batches: 0.25 is one pass on a quarter of one.

    Attributes:
      forward: forward passes; a forward-mode derivative counts as one more, that of the tangents.
      backward: backward passes.
    """

    forward: float
    backward: float

    @property
    def work(self) -> float:
        """In forward passes, a backward one being twice the work."""
        return self.forward + 2 * self.backward


Grids = Mapping[str, tuple[float, ...]]


class Record(NamedTuple):
    """What there is to know of a ready-made transformation.

    Attributes:
      make: the factory, (rho, **options) → transformation, or (**options) → … without ρ.
      passes: the factory's options, by name, and "has_aux" → the passes of a step, averaged over
        steps.
      options: those of its options that a command line should offer.
      grids: radius rule → values of ρ to choose from, rising; empty for one without ρ.
    """

    make: Callable[..., optax.GradientTransformationExtraArgs]
    passes: Callable[[Mapping[str, Any]], Passes]
    options: tuple[str, ...] = ()
    grids: Grids = MappingProxyType({})

    @property
    def has_rho(self) -> bool:
        """Whether it perturbs; the others estimate the gradient at θ."""
        return bool(self.grids)

    @property
    def defaults(self) -> dict[str, Any]:
        """Its options' own defaults, by name; not of those that have none."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    @property
    def radius(self) -> str | None:
        """The radius rule to use by default; None for one that has no choice."""
        default = self.defaults.get("radius")
        return "layerwise" if default == "global" else default

    def rho_grid(self, radius: str | None = None) -> tuple[float, ...]:
        """Values of ρ to choose from under a radius rule, by default the one to use; (0,) if none.

        The middle one is the default: in benchmarks/README.md's study of the family the one that
        loses least on its worst problem, where ρ warms up.
        """
        rule = radius or self.radius or "global"
        return self.grids[rule] if self.grids else (0.0,)

    def default_rho(self, radius: str | None = None) -> float:
        """The middle of `rho_grid`."""
        grid = self.rho_grid(radius)
        return grid[len(grid) // 2]

    def count_passes(self, *, has_aux: bool = False, **options: Any) -> Passes:
        """The passes of a step with these options, the others at their defaults."""
        options = {**self.defaults, **options, "has_aux": has_aux}
        of_part, part = self.passes(options), _number(options["batch_fraction"])
        return Passes(part * of_part.forward, part * of_part.backward)


# Values of ρ to try, from gentle to strong, for perturbations along the gradient and along (nearly)
# random directions.
_ALONG_GRADIENT: Grids = {
    "global": (0.05, 0.1, 0.2, 0.4, 0.8),
    "layerwise": (0.005, 0.01, 0.02, 0.04, 0.08),
    "filterwise": (0.005, 0.01, 0.02, 0.04, 0.08),
    "adaptive": (0.25, 0.5, 1.0, 2.0, 4.0),
    "adaptive_layerwise": (0.015, 0.03, 0.06, 0.12, 0.24),
    "calibrated": (0.005, 0.01, 0.02, 0.04, 0.08),
}
_RANDOM: Grids = {
    "global": (2.5, 5.0, 10.0, 20.0, 40.0),
    "layerwise": (0.1, 0.2, 0.4, 0.8, 1.6),
    "filterwise": (0.15, 0.3, 0.6, 1.2, 2.4),
    "adaptive": (10.0, 20.0, 40.0, 80.0, 160.0),
    "adaptive_layerwise": (0.15, 0.3, 0.6, 1.2, 2.4),
    "calibrated": (0.05, 0.1, 0.2, 0.4, 0.8),
}
# Momentum SAM's are an order of magnitude longer than SAM's.
_ALONG_MOMENTUM: Grids = {
    rule: tuple(10 * rho for rho in grid) for rule, grid in _ALONG_GRADIENT.items()
}
_PROBED = ("num_directions", "delta", "distribution", "batching", "difference", "fraction")


def _once(options: Mapping[str, Any]) -> Passes:
    del options
    return Passes(1, 1)


def _twice(options: Mapping[str, Any]) -> Passes:
    del options
    return Passes(2, 2)


def _first_on_part(options: Mapping[str, Any], default: float) -> Passes:
    part = default if options["fraction"] is None else options["fraction"]
    return Passes(1 + part, 1 + part)


def _and_arc(options: Mapping[str, Any]) -> Passes:
    forward, backward = _first_on_part(options, 1.0)
    return Passes(forward + descent.ARC_POINTS / options["interval"], backward)


def _probes(options: Mapping[str, Any]) -> float:
    m: int = options["num_directions"]
    return (2 * m if options["difference"] == "central" else m + 1) * _number(options["fraction"])


def _of_estimate(options: Mapping[str, Any], of_slopes: float) -> Passes:
    """Of one that descends along its estimate; one more for the value or auxiliary output."""
    needs_another = options["has_aux"] or _number(options["fraction"]) < 1
    return Passes(of_slopes + needs_another, 0)


#: Every ready-made transformation by name, with what there is to know of it.
RECORDS: dict[str, Record] = {
    "sam": Record(
        sam, lambda o: _first_on_part(o, 1.0), ("fraction", "extrapolation"), _ALONG_GRADIENT
    ),
    "subbatch_sam": Record(
        subbatch_sam,
        lambda o: _first_on_part(o, SUBBATCH),
        ("fraction", "extrapolation"),
        _ALONG_GRADIENT,
    ),
    "xsam": Record(xsam, _and_arc, ("fraction", "interval", "reach"), _ALONG_GRADIENT),
    "zo_sam": Record(zo_sam, lambda o: Passes(1 + _probes(o), 1), _PROBED, _RANDOM),
    "random_weight_perturbation": Record(
        random_weight_perturbation, _once, ("distribution",), _RANDOM
    ),
    "asam": Record(asam, _twice, (), dict.fromkeys(_ALONG_GRADIENT, _ALONG_GRADIENT["adaptive"])),
    "bisam": Record(bisam, lambda o: _first_on_part(o, 1.0), ("fraction",), _ALONG_GRADIENT),
    "gsam": Record(gsam, _twice, (), _ALONG_GRADIENT),
    "look_sam": Record(
        look_sam,
        lambda o: Passes(1 + 1 / o["interval"], 1 + 1 / o["interval"]),
        ("interval",),
        _ALONG_GRADIENT,
    ),
    "esam": Record(
        esam,
        lambda o: Passes(2 + o["gamma"] + o["has_aux"], 1 + o["gamma"]),
        ("beta", "gamma"),
        _ALONG_GRADIENT,
    ),
    "s2_sam": Record(s2_sam, _once, (), _ALONG_GRADIENT),
    "friendly_sam": Record(friendly_sam, _twice, (), _ALONG_GRADIENT),
    "vasso": Record(
        vasso, lambda o: _first_on_part(o, 1.0), ("fraction", "theta"), _ALONG_GRADIENT
    ),
    "momentum_sam": Record(momentum_sam, _once, (), _ALONG_MOMENTUM),
    "le_sam": Record(
        le_sam,
        lambda o: _first_on_part(o, 1.0),
        ("fraction", "rho_max"),
        dict.fromkeys(_ALONG_GRADIENT, (0.05, 0.1, 0.2, 0.4, 0.8)),
    ),
    "msam": Record(msam, _twice, ("microbatches",), _ALONG_GRADIENT),
    "antithetic_sam": Record(antithetic_sam, lambda o: Passes(2, 1), ("distribution",), _RANDOM),
    "mezo": Record(mezo, lambda o: _of_estimate(o, _probes(o)), _PROBED),
    "forward_gradient": Record(
        forward_gradient,
        lambda o: _of_estimate(o, 2 * o["num_directions"] * _number(o["fraction"])),
        ("num_directions", "distribution", "batching", "fraction"),
    ),
}

for _name, _record in RECORDS.items():
    RECORDS[_name] = _record._replace(options=(*_record.options, "batch_fraction"))

#: Those that perturb; the first argument of each is ρ.
REGISTRY = {name: record.make for name, record in RECORDS.items() if record.has_rho}

#: Those that estimate the gradient and perturb nothing: they have no ρ.
ESTIMATORS = {name: record.make for name, record in RECORDS.items() if not record.has_rho}
