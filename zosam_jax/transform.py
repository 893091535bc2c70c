"""Ascent + radius + descent: the gradient at θ+ε, as a function and as an optax transformation.

`value_and_grad` is the whole algorithm; `sharpness_aware` is the same thing in optax's clothes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from zosam_jax import descent as descents
from zosam_jax import keys, probes, trees
from zosam_jax import radius as radii
from zosam_jax.ascent.base import Ascent, Climb
from zosam_jax.binding import bind
from zosam_jax.descent import Descent, Landing, Summit
from zosam_jax.errors import check_count, check_number, check_one_of, check_static
from zosam_jax.objective import AxisName, Objective
from zosam_jax.sparsity import masks
from zosam_jax.trees import Array, PyTree

Rho: TypeAlias = float | Array | Callable[[Array], jax.typing.ArrayLike]
Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None


class Diagnostics(NamedTuple):
    """What the last step's passes tell about it, for logs: float32 scalars, NaN where unknown.

    All zeros before the first step.

    Attributes:
      rho_used: ρ after its schedule and calibration.
      epsilon_norm: ‖ε‖₂.
      slope: the derivative of L at θ along ε, ⟨∇L(θ), ε⟩ / ‖ε‖, if the ascent's passes tell it.
      ascent_gain: L(θ+ε) − L(θ), if the ascent measured L(θ): exactly by a pass there, by central
        differences to O(δ²d), d the number of weights, which is too much for small ε.
    """

    rho_used: Array
    epsilon_norm: Array
    slope: Array
    ascent_gain: Array


class SharpnessAwareState(NamedTuple):
    """What persists between steps; arrays only, so that it checkpoints, donates and scans.

    Attributes:
      key: the random key of the run, as raw uint32 data; never changes.
      count: int32 scalar, the steps taken; with `key` it fixes the step's directions, and a ρ
        schedule is evaluated at it.
      value: float32 scalar, the loss L(θ+ε) of the last step; inf before the first.
      ascent, descent, radius: their own states.
      diagnostics: what the last step's passes tell about it, at no further pass.
      aux: None, or the auxiliary output of the last step until `pop_aux` takes it out.
      gradient: None, or with `keep_gradient` the last step's gradient at all weights until
        `pop_gradient` takes it out.
    """

    key: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count, as optax's own states do
    value: Array
    ascent: PyTree
    descent: PyTree
    radius: PyTree
    diagnostics: Diagnostics
    aux: Any = None
    gradient: PyTree = None


class SharpnessAwareGradient:
    """Drop-in for jax.value_and_grad at θ+ε; made by `value_and_grad`, which documents it."""

    def __init__(
        self,
        loss: Callable[..., Any],
        *,
        ascent: Ascent,
        rho: Rho,
        radius: radii.RadiusLike,
        descent: Descent | None,
        microbatches: int,
        mask: Mask,
        has_aux: bool,
        probe_fn: Callable[..., Any] | None,
        losses_fn: Callable[..., Any] | None,
        axis_name: AxisName | None,
        loss_name: str = "loss",
    ) -> None:
        if not isinstance(ascent, Ascent):
            raise TypeError(
                f"ascent={ascent!r} must be an Ascent, for example "
                "zosam_jax.ascent.random_gradient_estimate()."
            )
        if not isinstance(descent, Descent | None):
            raise TypeError(
                f"descent={descent!r} must be a Descent, for example "
                "zosam_jax.descent.at_perturbed()."
            )
        if not callable(rho):
            check_number("rho", rho, above=0.0, inclusive=True)
        check_static("microbatches", microbatches)
        check_count("microbatches", microbatches)
        self._loss, self._loss_name = loss, loss_name
        self._ascent = ascent
        self._rho = rho
        self._radius = radii.get(radius)
        self._descent = descents.at_perturbed() if descent is None else descent
        self._microbatches = microbatches
        self._mask = mask
        self._has_aux = has_aux
        self._probe_fn, self._losses_fn = probe_fn, losses_fn
        self._axis_name = axis_name

    def init(self, params: PyTree, key: int | Array = 0) -> SharpnessAwareState:
        """The state before the first step; `key` is a seed or a random key."""
        floating, _ = trees.split_floating(params)
        if self._mask is not None:
            masks.resolve(self._mask, params)  # a wrong mask should fail here, not in the loop
        return SharpnessAwareState(
            key=keys.to_data(key),
            count=jnp.zeros((), jnp.int32),
            value=jnp.asarray(jnp.inf, jnp.float32),
            ascent=self._ascent.init(floating),
            descent=self._descent.init(floating),
            radius=self._radius.init(),
            # Not NaN, which several processes would not find equal; and one by one, since a state
            # that is donated may hold no array twice.
            diagnostics=Diagnostics(*(jnp.zeros((), jnp.float32) for _ in Diagnostics._fields)),
        )

    def __call__(
        self,
        params: PyTree,
        state: SharpnessAwareState,
        *args: Any,
        mask: PyTree = None,
        **kwargs: Any,
    ) -> tuple[tuple[Any, PyTree], SharpnessAwareState]:
        """One step: ((value, gradient), state), or (((value, aux), gradient), state) if has_aux.

        `args` and `kwargs` go to the loss; `mask` overrides the one given at construction.
        """
        return self.step(params, state, mask, args, kwargs)

    def step(
        self,
        params: PyTree,
        state: SharpnessAwareState,
        mask: PyTree,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, PyTree], SharpnessAwareState]:
        """As `__call__`, for a loss whose arguments may have any name."""
        problem = self._problem(params, mask, args, kwargs)
        landing, after, diagnostics = self._over_microbatches(problem, state)
        after = after._replace(
            count=optax.safe_increment(state.count),
            value=landing.value.astype(state.value.dtype),
            ascent=self._ascent.observe(after.ascent, landing.gradient),
            diagnostics=diagnostics,
        )
        gradient = problem.fill(landing.gradient)
        value = (landing.value, landing.aux) if self._has_aux else landing.value
        return (value, gradient), after

    def perturbation(
        self,
        params: PyTree,
        state: SharpnessAwareState,
        *args: Any,
        mask: PyTree = None,
        **kwargs: Any,
    ) -> PyTree:
        """The ε that a call with the same arguments would add to θ, for diagnostics.

        Leaves are float32 or wider; those of parameters that are not floating point are zeros.
        With microbatches it is the first one's.
        """
        return self.look(params, state, mask, args, kwargs)

    def look(
        self,
        params: PyTree,
        state: SharpnessAwareState,
        mask: PyTree,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> PyTree:
        """As `perturbation`, for a loss whose arguments may have any name."""
        problem = self._problem(params, mask, args, kwargs)
        first = _part(problem.objective, jnp.asarray(0), self._microbatches)
        key = self._key(state)
        if self._microbatches > 1:
            key = jax.random.fold_in(key, 0)
        epsilon, climb, _ = self._climb(problem._replace(objective=first), state, key)
        if epsilon is None:
            return problem.fill(jax.tree.map(jnp.zeros_like, problem.params))
        summit = Summit(first, problem.params, epsilon, climb, problem.mask)
        return problem.fill(self._descent.settled(summit, state.descent))

    def _key(self, state: SharpnessAwareState) -> Array:
        return jax.random.fold_in(keys.from_data(state.key), state.count)

    def _problem(
        self, params: PyTree, mask: PyTree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> "_Problem":
        floating, merge = trees.split_floating(params)
        resolved = masks.resolve(self._mask if mask is None else mask, params)
        if resolved is not None:
            # Leaves that are not floating point vanish here as they did from `floating`.
            resolved = jax.tree.map(
                lambda p, m: None if p is None else m,
                floating,
                resolved,
                is_leaf=lambda x: x is None,
            )

        def merged(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
            return None if function is None else lambda p, *a, **k: function(merge(p), *a, **k)

        loss = merged(self._loss)
        assert loss is not None
        return _Problem(
            params=floating,
            mask=resolved,
            objective=Objective(
                loss,
                args,
                kwargs,
                name=self._loss_name,
                probe=merged(self._probe_fn),
                losses=merged(self._losses_fn),
                has_aux=self._has_aux,
                axis_name=self._axis_name,
            ),
            fill=lambda tree: _fill(tree, params),
        )

    def _over_microbatches(
        self, problem: "_Problem", state: SharpnessAwareState
    ) -> tuple[Landing, SharpnessAwareState, Diagnostics]:
        """`_climb_and_land` on each microbatch from the same θ: the mean of what they give.

        What is not floating point in the auxiliary output is the first one's, and so are the
        states of ascent, descent and radius.
        """
        key, count = self._key(state), self._microbatches
        if count == 1:
            return self._climb_and_land(problem, state, key)

        def on_part(index: Array) -> tuple[Landing, SharpnessAwareState, Diagnostics]:
            part = problem._replace(objective=_part(problem.objective, index, count))
            return self._climb_and_land(part, state, jax.random.fold_in(key, index))

        # Written out: a loop would take convolutions' gradients off XLA's fast path on a CPU.
        landing, after, diagnostics = on_part(jnp.asarray(0))
        total = (landing._replace(state=None), diagnostics)
        for i in range(1, count):
            landing, _, diagnostics = on_part(probes.after(total[0].gradient, jnp.asarray(i)))
            total = _on_floating(jnp.add, total, (landing._replace(state=None), diagnostics))
        landing, diagnostics = _on_floating(lambda x: x / count, total)
        return landing, after, diagnostics

    def _climb_and_land(
        self, problem: "_Problem", state: SharpnessAwareState, key: Array
    ) -> tuple[Landing, SharpnessAwareState, Diagnostics]:
        """The step on one batch: its landing, the parts' new states, and the diagnostics."""
        epsilon, climb, rho = self._climb(problem, state, key)
        summit = Summit(problem.objective, problem.params, epsilon, climb, problem.mask)
        landing = self._descent.gradient(summit, state.descent)
        radius_state = self._radius.observe(
            state.radius, problem.objective, problem.params, epsilon
        )
        # Under other radii ε points elsewhere than the direction that was measured.
        is_along = self._radius.rule is radii.global_
        diagnostics = _diagnostics(rho, epsilon, climb, landing, is_along=is_along)
        if climb.clean is not None:
            landing = landing._replace(aux=climb.clean.aux)
        after = state._replace(
            ascent=state.ascent if climb.state is None else climb.state,
            descent=state.descent if landing.state is None else landing.state,
            radius=radius_state,
        )
        return landing, after, diagnostics

    def _climb(
        self, problem: "_Problem", state: SharpnessAwareState, key: Array
    ) -> tuple[PyTree | None, Climb, Array]:
        """ε, what the ascent found, and ρ; ε is None for a radius that is zero for good."""
        if isinstance(self._rho, int | float) and self._rho == 0:
            return None, Climb(None), jnp.zeros(())
        rho = jnp.asarray(self._rho(state.count) if callable(self._rho) else self._rho)
        rho = rho * self._radius.factor(state.radius)

        def epsilon(direction: PyTree) -> PyTree:
            return radii.perturbation(
                self._radius.rule, direction, problem.params, rho, problem.mask
            )

        climb = self._ascent.direction(
            problem.objective.with_perturbation(epsilon),
            problem.params,
            state.ascent,
            key=key,
            mask=problem.mask,
        )
        return epsilon(climb.direction), climb, rho


class _Problem(NamedTuple):
    """One step's problem, on the floating-point leaves of the parameters alone."""

    params: PyTree
    mask: PyTree
    objective: Objective
    fill: Callable[[PyTree], PyTree]


def _part(objective: Objective, index: Array, count: int) -> Objective:
    """The loss on one of `count` equal parts of the batch."""
    if count == 1:
        return objective
    size = objective.batch_size
    if size % count:
        raise ValueError(f"microbatches={count} must divide the batch of {size} examples.")
    # Interleaved, so that a batch that is sharded over devices stays where it is.
    return objective.on(
        lambda x: jax.lax.dynamic_index_in_dim(
            x.reshape(size // count, count, *x.shape[1:]), index, 1, keepdims=False
        )
    )


def _on_floating(function: Callable[..., Array], tree: PyTree, *others: PyTree) -> PyTree:
    """`function` of floating-point leaves; the others stay as they are in the first tree."""
    return jax.tree.map(
        lambda x, *ys: function(x, *ys) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x,
        tree,
        *others,
    )


def _diagnostics(
    rho: Array, epsilon: PyTree | None, climb: Climb, landing: Landing, *, is_along: bool
) -> Diagnostics:
    unknown, length = jnp.asarray(jnp.nan, jnp.float32), jnp.zeros(())
    slope = gain = unknown
    if epsilon is not None:
        length = trees.norm(epsilon)
        if climb.clean is not None:
            slope = trees.ratio(trees.inner(climb.clean.gradient, epsilon), length)
        elif climb.slope is not None and is_along:
            slope = climb.slope
    if climb.value is not None:
        gain = landing.value - climb.value
    # Of a step that does not go there, nothing but ρ is known.
    perturbed = landing.is_perturbed
    values = (
        rho,
        jnp.where(perturbed, length, 0.0),
        jnp.where(perturbed, slope, unknown),
        jnp.where(perturbed, gain, unknown),
    )
    return Diagnostics(*(jnp.asarray(v).astype(jnp.float32) for v in values))


def value_and_grad(
    loss: Callable[..., Any],
    *,
    ascent: Ascent,
    rho: Rho,
    radius: radii.RadiusLike = "global",
    descent: Descent | None = None,
    microbatches: int = 1,
    mask: Mask = None,
    has_aux: bool = False,
    probe_fn: Callable[..., Any] | None = None,
    losses_fn: Callable[..., Any] | None = None,
    axis_name: AxisName | None = None,
) -> SharpnessAwareGradient:
    """Like jax.value_and_grad, but the gradient is taken at θ+ε.

        ε = radius(ascent(L, θ), θ, ρ),   value = L(θ+ε),   gradient = ∇L(θ+ε)

    ε is a constant: nothing is differentiated through it.

        grad = zosam_jax.value_and_grad(loss, ascent=..., rho=0.05, has_aux=True)
        state = grad.init(params, key)
        ((value, aux), gradient), state = grad(params, state, batch, mask=mask)

    Args:
      loss: a function (params, *args, **kwargs) → scalar, or → (scalar, aux) with `has_aux`.
      ascent: which way is up (`zosam_jax.ascent`).
      rho: ρ ≥ 0, or an optax schedule of the step count. In the units of `radius`.
      radius: "global", "layerwise", "adaptive", "calibrated", or one of your own
        (`zosam_jax.radius`).
      descent: what is done at θ+ε (`zosam_jax.descent`); by default the gradient is taken there.
      microbatches: M ≥ 1 for m-sharpness, (1/M) Σⱼ ∇Lⱼ(θ+εⱼ): each of M equal parts of the batch
        has a perturbation of its own. M must divide the batch; all array arguments of the loss
        count as the batch, examples along their first axes. Floating-point auxiliary output is
        averaged, other is the first part's.
      mask: which weights to perturb: a pytree of 1/0 or bool leaves like the parameters, or a
        function of them that returns one; None for all. It restricts ε, not the gradient.
      has_aux: whether `loss` returns auxiliary output. One pass's output is returned, so that
        BatchNorm statistics move once a step: the pass at θ where the ascent makes one with
        gradients (SAM), else the descent pass.
      probe_fn: a cheaper stand-in for the loss at the ascent's probes (a slice of the batch, say),
        with the loss's arguments; returns a scalar.
      losses_fn: with the loss's arguments, the loss of each example, of shape [batch], for
        descents that ask for it. By default `loss` of each example alone, which suits means over
        independent examples (no BatchNorm).
      axis_name: inside shard_map or pmap, the axis over which the batch is split. `loss` then
        returns the mean over the device's own part; probes, value and gradient are averaged over
        the axis, and every device takes the same ε. Not needed under jit with sharded arrays.

    Returns:
      A SharpnessAwareGradient: `init(params, key)`, `(params, state, *args, mask=None, **kwargs)`
      and `perturbation(...)` with the same arguments.

    Raises:
      ValueError, TypeError: at construction or while tracing, for an argument that cannot be
        right; the sentence names it.
    """
    return SharpnessAwareGradient(
        loss,
        ascent=ascent,
        rho=rho,
        radius=radius,
        descent=descent,
        microbatches=microbatches,
        mask=mask,
        has_aux=has_aux,
        probe_fn=probe_fn,
        losses_fn=losses_fn,
        axis_name=axis_name,
    )


def sharpness_aware(
    ascent: Ascent,
    rho: Rho,
    *,
    radius: radii.RadiusLike = "global",
    descent: Descent | None = None,
    microbatches: int = 1,
    mask: Mask = None,
    axis_name: AxisName | None = None,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation that emits the gradient at θ+ε; first in a chain.

        tx = optax.chain(zosam_jax.sharpness_aware(ascent, rho=0.05), optax.sgd(0.1))
        updates, state = tx.update(None, state, params, value_fn=loss, x=x, y=y)

    The incoming updates are ignored and may be None; everything after it in the chain (clipping,
    weight decay, momentum) sees ∇L(θ+ε). For gradient accumulation put optax.MultiSteps after it,
    around the rest of the chain.

    Extra arguments of `update`:
      value_fn: (params, **kwargs) → scalar. Its keyword arguments are taken from the extra
        arguments by name; others are left alone. Required.
      probe_fn: a cheaper stand-in at the probes, with arguments that `value_fn` has too.
      losses_fn: the loss of each example, of shape [batch], likewise; for descents that ask.
      mask: overrides the one given here.
      has_aux: True if `value_fn` returns (scalar, aux); `pop_aux` then takes aux out of the state.
      emit: "gradient", or "perturbation" for ε itself in its place and no step taken: a look at
        what the next update would do, for diagnostics.
      keep_gradient: True to emit the gradient of the weights that `mask` keeps and leave the whole
        one in the state, where `pop_gradient` finds it; for wrappers that grow masks by it.

    Args:
      ascent: which way is up (`zosam_jax.ascent`).
      rho: ρ ≥ 0, or an optax schedule of the step count. In the units of `radius`.
      radius: "global", "layerwise", "adaptive", "calibrated", or one of your own
        (`zosam_jax.radius`).
      descent: what is done at θ+ε (`zosam_jax.descent`); by default the gradient is taken there.
      microbatches: M for m-sharpness (see `value_and_grad`).
      mask: which weights to perturb; restricts ε, not the gradient (see `value_and_grad`).
      axis_name: the device axis of the batch inside shard_map or pmap (see `value_and_grad`).
      key: a seed or a random key for the directions.

    Returns:
      An optax.GradientTransformationExtraArgs whose state is a SharpnessAwareState.
    """

    def gradient_of(
        value_fn: Callable[..., Any],
        probe_fn: Callable[..., Any] | None = None,
        losses_fn: Callable[..., Any] | None = None,
        has_aux: bool = False,
    ) -> SharpnessAwareGradient:
        return SharpnessAwareGradient(
            value_fn,
            ascent=ascent,
            rho=rho,
            radius=radius,
            descent=descent,
            microbatches=microbatches,
            mask=mask,
            has_aux=has_aux,
            probe_fn=probe_fn,
            losses_fn=losses_fn,
            axis_name=axis_name,
            loss_name="value_fn",
        )

    without_loss = gradient_of(lambda params: 0.0)  # so that wrong arguments fail here

    def init(params: PyTree) -> SharpnessAwareState:
        return without_loss.init(params, key)

    def update(
        updates: PyTree,
        state: SharpnessAwareState,
        params: PyTree = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        probe_fn: Callable[..., Any] | None = None,
        losses_fn: Callable[..., Any] | None = None,
        mask: PyTree = None,
        has_aux: bool = False,
        emit: str = "gradient",
        keep_gradient: bool = False,
        **extra_args: Any,
    ) -> tuple[PyTree, SharpnessAwareState]:
        del updates
        check_one_of("emit", emit, ("gradient", "perturbation"))
        if value_fn is None:
            raise ValueError(
                "value_fn is missing: a sharpness-aware transformation evaluates the loss itself. "
                "Call tx.update(grads, state, params, value_fn=loss, x=x, y=y), where "
                "loss(params, x, y) returns a scalar."
            )
        if params is None:
            raise ValueError(
                "params is missing: call tx.update(grads, state, params, value_fn=loss, ...)."
            )
        functions, arguments = bind(
            extra_args, value_fn=value_fn, probe_fn=probe_fn, losses_fn=losses_fn
        )
        gradient = gradient_of(**functions, has_aux=has_aux)
        if emit == "perturbation":
            return gradient.look(params, state, mask, (), arguments), state
        (value, updates), state = gradient.step(params, state, mask, (), arguments)
        state = state._replace(aux=value[1] if has_aux else None)
        if keep_gradient:
            if descent is not None and not descent.reaches_pruned:
                raise ValueError(
                    "this optimizer estimates no gradient at pruned weights, by which masks could "
                    "grow: use a method that grows by chance (set_, dsr, mest), or pass the "
                    "gradient, tx.update(grads, state, params, ...)."
                )
            state = state._replace(gradient=updates)
            updates = masks.restrict(updates, masks.resolve(mask, params))
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def states(opt_state: PyTree) -> list[SharpnessAwareState]:
    """The states of the sharpness-aware transformations inside an optimizer state."""
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_state)
    return [leaf for leaf in leaves if _is_state(leaf)]


def pop_aux(opt_state: PyTree) -> tuple[Any, PyTree]:
    """Takes the auxiliary output of the last step out of an optimizer state.

    Returns:
      (aux, opt_state), the state as it was before `has_aux` put anything in, so that its
      structure stays the same from step to step (and in lax.scan).

    Raises:
      ValueError: if there is not exactly one sharpness-aware transformation in the state.
    """
    return _pop(opt_state, "aux", "has_aux")


def pop_gradient(opt_state: PyTree) -> tuple[PyTree, PyTree]:
    """Takes the last step's whole gradient out of an optimizer state, as `pop_aux` does aux."""
    return _pop(opt_state, "gradient", "keep_gradient")


def _pop(opt_state: PyTree, field: str, option: str) -> tuple[Any, PyTree]:
    found = states(opt_state)
    if len(found) != 1:
        raise ValueError(
            f"the optimizer state holds {len(found)} sharpness-aware transformations, expected "
            f"one that was updated with {option}=True."
        )
    emptied = jax.tree.map(
        lambda x: x._replace(**{field: None}) if _is_state(x) else x, opt_state, is_leaf=_is_state
    )
    return getattr(found[0], field), emptied


def _is_state(x: Any) -> bool:
    return isinstance(x, SharpnessAwareState)


def _fill(tree: PyTree, params: PyTree) -> PyTree:
    """Puts zeros where `params` has leaves that are not floating point."""
    values = iter(jax.tree.leaves(tree))
    return jax.tree.map(
        lambda p: (
            next(values) if jnp.issubdtype(jnp.result_type(p), jnp.floating) else jnp.zeros_like(p)
        ),
        params,
    )
