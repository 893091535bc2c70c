"""SET, RigL, DSR, MEST, SViTE, S²ViTE, gradual pruning: compositions of the engine's parts.

Each is (inner, sparsity, *, total_steps, ...) → transformation, with its publication's settings
laid out over the run:

- inner: an optax transformation, sharpness-aware or not;
- sparsity: the fraction of the maskable weights that is zero; 0 is `inner` itself;
- total_steps: the length of the run;
- stop: the fraction of the run after which masks stay;
- what `Shared` has, but for S²ViTE and gradual pruning, which list what they take.

The result is an optax.GradientTransformationExtraArgs whose state is a DropAndGrowState. ValueError
or TypeError is raised at construction, for an argument that cannot be right; from `init`, for a
sparsity or masks that do not fit the parameters.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax

from zosam_jax.errors import check_number, check_one_of
from zosam_jax.sparsity import budgets, pruning, schedules, scores
from zosam_jax.sparsity.distributions import SparsityDistribution
from zosam_jax.sparsity.drop_and_grow import drop_and_grow
from zosam_jax.sparsity.groups import Units, check_is_units
from zosam_jax.sparsity.layers import Where, is_weight
from zosam_jax.sparsity.patterns import Pattern
from zosam_jax.sparsity.straight_through import straight_through as straight_through_masks
from zosam_jax.trees import Array, PyTree

Transformation: TypeAlias = optax.GradientTransformationExtraArgs
Masks: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None


class Shared(TypedDict, total=False):
    """Options that all methods take.

    Attributes:
      distribution: how the initial budget is shared among layers (see `from_scores`); "erk" by
        default, "uniform" for DSR and MEST.
      where: which parameters to mask (see `from_scores`).
      pattern: the shape of the masks (see `from_scores`).
      masks: initial masks, or a function of the parameters that returns them, in place of those
        that the method would choose by the three options above.
      moments: "reset" or "keep", what happens to the optimizer's moments of new weights (see
        `drop_and_grow`); "reset" by default, "keep" for DSR and MEST, as published.
      key: a seed or a random key, for the initial masks and for random growth.
    """

    distribution: str | SparsityDistribution
    where: Where
    pattern: Pattern | None
    masks: Masks
    moments: str
    key: int | Array


def set_(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    total_steps: int | None = None,
    every: int | None = None,
    fraction: float = 0.3,
    stop: float = 0.75,
    anneal: bool = False,
    **shared: Unpack[Shared],
) -> Transformation:
    """SET: drops the weights nearest zero in each layer, grows as many at random.

        drop ⌊α·n_l⌋ smallest |θ|,  grow ⌊α·n_l⌋ at random,  every ΔT steps

    New weights start at zero with zero moments. The original drops fractions of the smallest
    positive and negative weights apart, once an epoch until the end; this is the variant of
    Evci et al.

    Args:
      every: ΔT. Default: 100, less in runs so short that fewer than 75 updates would fit.
      fraction: α.
      anneal: let α fall to zero along a cosine until then.

    Reference: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse
    connectivity, https://arxiv.org/abs/1707.04780
    """
    steps = _check_common(set_, sparsity, total_steps, shared)
    last = _share(steps, stop)
    alpha = schedules.cosine(fraction, last) if anneal else fraction
    return _dynamic(
        inner,
        sparsity,
        shared,
        drop=scores.magnitude,
        grow=scores.uniform_random,
        schedule=schedules.periodic(_period(every, steps), alpha, stop=last),
    )


def rigl(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    total_steps: int | None = None,
    every: int | None = None,
    fraction: float = 0.3,
    stop: float = 0.75,
    replaces_step: bool | None = None,
    **shared: Unpack[Shared],
) -> Transformation:
    """RigL: drops the weights nearest zero in each layer, grows where the gradient is largest.

        α_t = α/2·(1 + cos(πt/T_end));  drop ⌊α_t·n_l⌋ smallest |θ|,  grow as many of the largest
        |∂L/∂(m⊙θ)| among the weights not kept,  every ΔT steps until T_end, from step 0 on

    A mask update takes the place of a step, if ΔT is 100 or more. New weights start at zero with
    zero moments; a weight dropped and grown again in one update keeps both. Inside a
    sharpness-aware chain the gradient is the one at θ+ε. The original breaks ties by noise, this by
    the lowest index.

    Args:
      every: ΔT. Default: 100, less in runs so short that fewer than 75 updates would fit.
      fraction: α.
      replaces_step: see `drop_and_grow`. Default: as published for ΔT ≥ 100; at shorter periods it
        would cost more than one step in a hundred, and learning rates lag behind.

    Reference: Evci et al., Rigging the Lottery, https://arxiv.org/abs/1911.11134
    """
    steps = _check_common(rigl, sparsity, total_steps, shared)
    last = _share(steps, stop)
    period = _period(every, steps)
    return _dynamic(
        inner,
        sparsity,
        shared,
        drop=scores.magnitude,
        grow=scores.gradient_magnitude,
        schedule=schedules.periodic(period, schedules.cosine(fraction, last), stop=last),
        replaces_step=period >= _PERIOD if replaces_step is None else replaces_step,
    )


def dsr(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    total_steps: int | None = None,
    every: Sequence[int] | None = None,
    fraction: float = 0.1,
    threshold: float = 1e-3,
    stop: float = 0.95,
    **shared: Unpack[Shared],
) -> Transformation:
    """DSR: drops weights below one threshold, grows at random where layers kept most.

        drop |θ| < H;  K dropped in all, R_l left in layer l;  grow K·R_l/ΣR in layer l at random
        K > 1.1·N_p: H ← H/2;   K < 0.9·N_p: H ← 2H

    The total stays exact while weights move between layers, of which each keeps at least one. New
    weights start at zero, their momentum is left alone, and weights dropped in the very update
    come back only where nothing else is left.

    Args:
      every: periods from 0, 12.5, 40 and 70% of the run on. Default: (100, 200, 400, 800), as
        published for Wide ResNets; in runs of less than 10,000 steps a hundredth of the run and
        2, 4 and 8 times that.
      fraction: N_p as a fraction of the active weights. The original sets a number: 20,000 of
        the 146,000 that WRN-28-2 has at 90%.
      threshold: the first H.
      **shared: see `Shared`; the pattern cannot be N:M or `block(per_column=True)`, whose
        groups do not trade.

    Reference: Mostafa and Wang, Parameter efficient training of deep convolutional neural networks
    by dynamic sparse reparameterization, https://arxiv.org/abs/1902.05967
    """
    steps = _check_common(dsr, sparsity, total_steps, shared)
    _refuse_fixed_density(shared, "whose groups do not trade weights")
    starts = [round(share * steps) for share in (0.0, 0.125, 0.4, 0.7)]
    periods = [_period(None, steps) * 2**i for i in range(4)] if every is None else list(every)
    return _dynamic(
        inner,
        sparsity,
        {"distribution": "uniform", "moments": "keep", **shared},
        drop=scores.magnitude,
        grow=scores.uniform_random,
        schedule=schedules.staged(periods, starts, stop=_share(steps, stop)),
        budget=budgets.threshold(fraction, threshold),
        regrowth="last",
    )


# Sparsities to prune to and to grow to, in three stages, as published for 90, 95 and 98%.
_MEST_LOWER = {0.9: (0.92, 0.91, 0.9), 0.95: (0.96, 0.955, 0.95), 0.98: (0.982, 0.981, 0.98)}
_MEST_UPPER = {0.9: (0.85, 0.875, 0.9), 0.95: (0.9, 0.925, 0.95), 0.98: (0.93, 0.96, 0.98)}


def mest(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    total_steps: int | None = None,
    soft_bound: bool = False,
    lower: Sequence[float] | None = None,
    upper: Sequence[float] | None = None,
    gradient_weight: float = 0.0,
    every: int | None = None,
    **shared: Unpack[Shared],
) -> Transformation:
    """MEST: elastic mutation (EM), or with `soft_bound` a soft memory bound too (EM&S).

        prune every layer to the sparsity `lower` by |θ| + λ|∂L/∂(m⊙θ)|, grow to `upper` at
        random,  every ΔT steps;  new values at 56.25 and 75% of the run

    EM prunes below the budget and grows back to it; EM&S starts with more weights than the budget
    and reaches it in the last stage. New weights start at zero, the just-pruned ones may be among
    them, and their momentum is left alone. Initial masks are by magnitude.

    Args:
      sparsity: the fraction of the maskable weights that is zero at the end.
      soft_bound: EM&S instead of EM.
      lower: three sparsities to prune to. Default: as published for 0.9, 0.95 and 0.98; for others
        s + (1 − s)/5, s + (1 − s)/10, s for EM, and s for EM&S.
      upper: three sparsities to grow to. Default: s for EM; for EM&S as published for 0.9, 0.95
        and 0.98, for others s − (1 − s)/2, s − (1 − s)/4, s.
      gradient_weight: λ. The paper describes it, the published code leaves it at 0.
      every: ΔT. Default: a thirty-second of the run (5 of 160 epochs), from step 0 on.
      **shared: see `Shared`; the pattern cannot be N:M or `block(per_column=True)`, whose
        density is fixed. The publication leaves the first convolution, the projections and the
        classifier dense (`where`).

    Reference: Yuan et al., MEST, https://arxiv.org/abs/2110.14032
    """
    steps = _check_common(mest, sparsity, total_steps, shared)
    check_number("gradient_weight", gradient_weight, above=0.0, inclusive=True)
    _refuse_fixed_density(shared, "whose density is fixed")
    density, same = 1.0 - sparsity, (sparsity,) * 3
    if lower is None and soft_bound:
        lower = same
    elif lower is None:
        formula = (sparsity + density / 5, sparsity + density / 10, sparsity)
        lower = _MEST_LOWER.get(sparsity, formula)
    if upper is None and soft_bound:
        formula = (sparsity - density / 2, sparsity - density / 4, sparsity)
        upper = _MEST_UPPER.get(sparsity, formula)
    elif upper is None:
        upper = same

    def magnitude_and_gradient(weights: Array, gradient: Array) -> Array:
        return jnp.abs(weights) + gradient_weight * jnp.abs(gradient)

    return _dynamic(
        inner,
        sparsity,
        {"distribution": "uniform", "moments": "keep", **shared},
        choose=pruning.magnitude,
        drop=magnitude_and_gradient if gradient_weight else scores.magnitude,
        grow=scores.uniform_random,
        schedule=schedules.periodic(max(1, round(steps / 32)) if every is None else every, 0.0),
        budget=budgets.stages(
            sparsity, lower, upper, [0, round(0.5625 * steps), round(0.75 * steps)]
        ),
        regrowth="zero",
    )


def svite(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    total_steps: int | None = None,
    every: int | None = None,
    fraction: float = 0.5,
    final_fraction: float = 0.005,
    stop: float = 0.8,
    **shared: Unpack[Shared],
) -> Transformation:
    """SViTE (unstructured): RigL's exchange, on a schedule for long runs of vision transformers.

        α_t from 0.5 to 0.005 along a cosine over the whole run;  drop ⌈α_t·n_l⌉ smallest |θ|, grow
        as many of the largest |∂L/∂(m⊙θ)|,  every ΔT steps after the step, until 80% of the run

    New weights start at zero. The original leaves AdamW's moments as they are: moments="keep".

    Args:
      every: ΔT. Default: a hundredth of the run (15,000 of 1,501,200 steps), not at step 0.
      fraction: α at the beginning.
      final_fraction: α at the end of the run.
      **shared: see `Shared`. The original masks arrays of two and four dimensions (`where`): not
        class tokens and position embeddings.

    Reference: Chen et al., Chasing Sparsity in Vision Transformers,
    https://arxiv.org/abs/2106.04533
    """
    steps = _check_common(svite, sparsity, total_steps, shared)
    return _dynamic(
        inner,
        sparsity,
        shared,
        drop=scores.magnitude,
        grow=scores.gradient_magnitude,
        schedule=_svite_schedule(steps, every, fraction, final_fraction, stop),
        budget=budgets.constant(jnp.ceil),
    )


def s2vite(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    units: Units,
    total_steps: int | None = None,
    every: int | None = None,
    fraction: float = 0.5,
    final_fraction: float = 0.005,
    stop: float = 0.8,
    where: Where = is_weight,
    masks: Masks = None,
    moments: str = "reset",
    key: int | Array = 0,
) -> Transformation:
    """S²ViTE: SViTE's exchange of whole heads and neurons, dropped by a Taylor score.

        drop ⌈α_t·n_g⌉ units of the smallest Σ|θ ⊙ ∂L/∂(m⊙θ)| in each group g,  grow as many of the
        largest Σ|∂L/∂(m⊙θ)|,  on `svite`'s schedule

    The first sum is over the kernels that make a unit and those that read it, the second over the
    latter alone: the others have no gradient while a unit is gone.

    A unit whose weights are all zero has no gradient. So the loss is taken with the initial weights
    that make it in place, which nothing reads: the loss is the same, and the gradient that of the
    weights that would read it. A unit that grows gets its initial weights back, and zeros where it
    is read. A loop that hands in gradients takes them at `forward_params`; elsewhere what is gone
    has no gradient, and what was dropped comes back at once.

    Args:
      sparsity: the fraction of the units of each group that is gone.
      units: heads and neurons, or any units (`zosam_jax.sparsity.units`).
      every, fraction, final_fraction: see `svite`.
      where: which arrays' weights count in the scores (see `from_scores`).
      masks: initial masks of these units, or a function of the parameters. Default: at random.
      moments, key: see `Shared`.

    Reference: Chen et al., Chasing Sparsity in Vision Transformers,
    https://arxiv.org/abs/2106.04533
    """
    pruning.check_sparsity(sparsity)
    check_is_units(units)
    steps = schedules.check_total_steps(total_steps)
    if masks is None and sparsity > 0:
        masks = functools.partial(
            pruning.random, sparsity=sparsity, distribution="uniform", units=units, key=key
        )
    return drop_and_grow(
        inner,
        masks,
        drop=scores.taylor,
        grow=scores.gradient_magnitude,
        schedule=_svite_schedule(steps, every, fraction, final_fraction, stop),
        budget=budgets.constant(jnp.ceil),
        units=units,
        where=where,
        moments=moments,
        key=key,
    )


def gradual(
    inner: optax.GradientTransformation,
    sparsity: float,
    *,
    total_steps: int | None = None,
    initial: float = 0.0,
    every: int | None = None,
    start: float = 0.0,
    stop: float = 0.75,
    score: str = "magnitude",
    straight_through: bool = False,
    distribution: str | SparsityDistribution | None = None,
    where: Where = is_weight,
    pattern: Pattern | None = None,
    units: Units | None = None,
    budget: str = "units",
    costs: PyTree | None = None,
) -> Transformation:
    """Gradual pruning: the sparsity rises along a cubic from `start` to `stop` of the run.

        s(t) = s + (s_0 − s)·(1 − (t − t_0)/(t_1 − t_0))³;  keep the weights, or units, of the
        largest |θ|, or |θ ⊙ ∂L/∂(m⊙θ)|,  every ΔT steps after the step

    Args:
      sparsity: s, of the maskable weights, or of the units (or their weights or MACs).
      initial: s_0, the sparsity of the first masks.
      every: ΔT. Default: 100, less in runs so short that fewer than 75 updates would fit.
      start: the fraction of the run at which pruning begins.
      stop: the fraction after which masks stay.
      score: "magnitude" or "taylor", with the gradient of the step at which masks are due.
      straight_through: pruned weights train on by the gradient at the pruned network, and may come
        back (`zosam_jax.sparsity.straight_through`); the score is the magnitude. The state then is
        a StraightThroughState.
      distribution, where, pattern: see `from_scores`. Default: "erk", as of other methods, and
        "uniform" for units.
      units, budget, costs: see `from_scores`.

    References: Zhu and Gupta, To prune, or not to prune, https://arxiv.org/abs/1710.01878;
    Lee et al., JaxPruner, https://arxiv.org/abs/2304.14082
    """
    pruning.check_sparsity(sparsity)
    steps = schedules.check_total_steps(total_steps)
    check_one_of("score", score, ("magnitude", "taylor"))
    if straight_through and score != "magnitude":
        raise ValueError(f"score={score!r} does not go with straight_through: it is the magnitude.")
    _refuse_fixed_density({"pattern": pattern}, "whose density is fixed")
    first, last = _share(steps, start, "start"), _share(steps, stop)
    if first >= last:
        raise ValueError(f"start={start!r} must be below stop={stop!r} by a step at least.")
    if distribution is None:
        distribution = "erk" if units is None else "uniform"
    choice: dict[str, Any] = {"distribution": distribution, "budget": budget, "costs": costs}
    parts: dict[str, Any] = {
        "schedule": schedules.cubic(
            initial, sparsity, begin=first, end=last, every=_period(every, steps)
        ),
        "budget": budgets.gradual(initial, sparsity, **choice),
        "pattern": pattern,
        "units": units,
        "where": where,
    }
    options = {**choice, "where": where, "pattern": pattern, "units": units}

    def masks(params: PyTree) -> PyTree:
        # A budget that cannot be met in the end fails here, without anything being computed.
        jax.eval_shape(lambda p: pruning.magnitude(p, sparsity, **options), params)
        return pruning.magnitude(params, initial, **options)

    chosen = masks if sparsity > 0 else None
    if straight_through:
        return straight_through_masks(inner, chosen, score=scores.magnitude, **parts)
    by = scores.taylor if score == "taylor" else scores.magnitude
    return drop_and_grow(inner, chosen, drop=by, grow=None, **parts)


METHODS: dict[str, Callable[..., Transformation]] = {
    "set": set_,
    "rigl": rigl,
    "dsr": dsr,
    "mest": mest,
    "svite": svite,
}

#: Name → the function, of methods whose masks change and that take `units`.
UNIT_METHODS: dict[str, Callable[..., Transformation]] = {"gradual": gradual, "s2vite": s2vite}


_PERIOD = 100


def _check_common(
    method: Callable[..., Transformation], sparsity: float, total_steps: int | None, shared: Shared
) -> int:
    """Checks the arguments that all methods take, and returns the length of the run."""
    unknown = [name for name in shared if name not in Shared.__annotations__]
    if unknown:
        parameters = inspect.signature(method).parameters.values()
        own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        raise TypeError(
            f"{method.__name__} takes no argument {unknown[0]!r}; it takes inner, sparsity and "
            f"{', '.join([*own, *Shared.__annotations__])}."
        )
    pruning.check_sparsity(sparsity)
    return schedules.check_total_steps(total_steps)


def _period(every: int | None, total_steps: int) -> int:
    """RigL's 100 steps, less in short runs: of those, a hundredth."""
    return max(1, min(_PERIOD, total_steps // 100)) if every is None else every


def _share(total_steps: int, fraction: float, argument: str = "stop") -> int:
    schedules.check_fraction(argument, fraction)
    return round(fraction * total_steps)


def _svite_schedule(
    steps: int, every: int | None, fraction: float, final_fraction: float, stop: float
) -> schedules.Schedule:
    return schedules.periodic(
        max(1, round(steps / 100)) if every is None else every,
        schedules.cosine(fraction, steps, final=final_fraction),
        start=1,
        stop=_share(steps, stop),
    )


def _refuse_fixed_density(shared: Shared, reason: str) -> None:
    pattern = shared.get("pattern")
    if pattern is not None and (pattern.density is not None or pattern.per_column):
        raise ValueError(
            f"pattern={pattern.name} does not go with this method: a pattern {reason}."
        )


def _dynamic(
    inner: optax.GradientTransformation,
    sparsity: float,
    shared: Shared,
    *,
    choose: Callable[..., PyTree] = pruning.random,
    **parts: Any,
) -> Transformation:
    """The engine on masks that the method chooses, unless the caller has."""
    options: dict[str, Any] = {"distribution": "erk", **shared}
    choice: dict[str, Any] = {
        name: options.pop(name) for name in ("distribution", "where") if name in options
    }
    masks = options.pop("masks", None)
    if masks is None and sparsity > 0:
        if choose is pruning.random:
            choice["key"] = options.get("key", 0)
        choice["pattern"] = options.get("pattern")
        masks = functools.partial(choose, sparsity=sparsity, **choice)
    return drop_and_grow(inner, masks, **parts, **options)
