"""Ascent, radius and descent put together: the gradient at θ+ε, as a function.

`zosam_jax.transform` is the same as an optax transformation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from zosam_jax import descent as descents
from zosam_jax import keys, masks, probes, trees
from zosam_jax import radius as radii
from zosam_jax.ascent.base import Ascent, AscentResult
from zosam_jax.binding import Call, traced_once
from zosam_jax.descent import Descent, DescentResult, PerturbedPoint
from zosam_jax.errors import check_count, check_number, check_part, check_static, is_traced
from zosam_jax.objective import AxisName, Objective, ValueAndGrad
from zosam_jax.trees import Array, Float, FloatTree, Int, Key, PyTree, UInt32

# Apart from the directions' keys, which for microbatches are numbered from 0.
_DRAW = 2**31

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
      plain_step: 1 where ε = 0 though ρ ≠ 0, so that the step takes the plain gradient, else 0;
        with microbatches the fraction of them. A ρ below zero or not finite does that, and so does
        a direction that is zero or not finite: of a δ too small or too large, at a stationary
        point, or before there is one (the first step along a previous gradient).
    """

    rho_used: Float[Array, ""]
    epsilon_norm: Float[Array, ""]
    slope: Float[Array, ""]
    ascent_gain: Float[Array, ""]
    plain_step: Float[Array, ""]


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

    key: UInt32[Array, " words"]
    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count, as optax's own do
    value: Float[Array, ""]
    ascent: PyTree
    descent: PyTree
    radius: PyTree
    diagnostics: Diagnostics
    aux: Any = None
    gradient: FloatTree | None = None


class SharpnessAwareGradient:
    """Drop-in for jax.value_and_grad at θ+ε; made by `value_and_grad`, which documents it."""

    def __init__(
        self,
        loss: Callable[..., Any] | None,
        *,
        ascent: Ascent,
        rho: Rho,
        radius: radii.RadiusLike,
        descent: Descent | None,
        microbatches: int,
        batch_fraction: float | None,
        mask: Mask,
        has_aux: bool = False,
        probe_fn: Callable[..., Any] | None = None,
        losses_fn: Callable[..., Any] | None = None,
        axis_name: AxisName | None,
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
        batch_fraction = 1.0 if batch_fraction is None else batch_fraction
        check_part("batch_fraction", batch_fraction)
        self._loss, self._probe_fn, self._losses_fn = loss, probe_fn, losses_fn
        self._ascent = ascent
        self._rho = rho
        self._radius = radii.get(radius)
        self._descent = descents.at_perturbed() if descent is None else descent
        self._microbatches, self._batch_fraction = microbatches, batch_fraction
        self._mask = mask
        self._has_aux = has_aux
        self._axis_name = axis_name

    @property
    def has_dense_gradient(self) -> bool:
        """Whether the gradient is one at weights that the mask leaves out too."""
        return self._descent.has_dense_gradient

    def init(self, params: PyTree, key: int | Array = 0) -> SharpnessAwareState:
        """The state before the first step.

        Args:
          params: θ.
          key: a seed or a random key.

        Returns:
          Arrays in buffers of their own, so that the state may be donated.

        Raises:
          ValueError, TypeError: for a key that is none, complex parameters, or a mask given at
            construction that does not fit the parameters.
        """
        floating, _ = trees.split_floating(params)
        if self._mask is not None and not masks.is_placeholder(params):
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
        """One step.

        Args:
          params: θ.
          state: that of `init`, or of the step before.
          *args: the loss's further arguments.
          mask: overrides the one given at construction.
          **kwargs: the loss's keyword arguments.

        Returns:
          ((value, gradient), state), or (((value, aux), gradient), state) if has_aux: a scalar in
          float32 or wider, and a pytree like `params`, zero where those are not floating point.

        Raises:
          ValueError, TypeError: while tracing, for a mask that does not fit the parameters, a loss
            that is no real scalar, or a batch that the microbatches do not divide.
        """
        problem = self._problem_of(params, mask, args, kwargs)
        result, state = self.step(problem, state)
        value = (result.value, result.aux) if self._has_aux else result.value
        return (value, result.gradient), state

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

        Returns:
          ε, a pytree like `params`.

        Raises:
          ValueError, TypeError: as of a call.
        """
        return self.perturbation_of(self._problem_of(params, mask, args, kwargs), state)

    def _problem_of(
        self, params: PyTree, mask: PyTree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> "StepProblem":
        assert self._loss is not None
        functions = {"loss": self._loss, "probe_fn": self._probe_fn, "losses_fn": self._losses_fn}
        calls = {
            name: None if function is None else Call(function, args, kwargs)
            for name, function in functions.items()
        }
        mask = masks.resolve(self._mask if mask is None else mask, params)
        return self.problem(params, mask, calls, has_aux=self._has_aux)

    def problem(
        self, params: PyTree, mask: masks.Resolved, calls: dict[str, Call | None], *, has_aux: bool
    ) -> "StepProblem":
        """What one step works on.

        `calls` has the loss, its stand-in at probes and the losses of the examples, in this order,
        under the names that error messages should use; None where there is none.
        """
        floating, merge = trees.split_floating(params)
        if mask is not None:
            # Leaves that are not floating point vanish here as they did from `floating`.
            mask = jax.tree.map(
                lambda p, m: None if p is None else m, floating, mask, is_leaf=lambda x: x is None
            )
        if any(map(is_traced, jax.tree.leaves(floating))):
            calls = {
                name: call and call._replace(function=traced_once(call.function))
                for name, call in calls.items()
            }
        (name, loss), (_, probe), (_, losses) = calls.items()
        assert loss is not None
        objective = Objective(
            loss,
            name=name,
            probe=probe,
            losses=losses,
            has_aux=has_aux,
            axis_name=self._axis_name,
            merge=merge,
        )
        return StepProblem(floating, mask, objective, lambda tree: _fill(tree, params))

    def step(
        self, problem: "StepProblem", state: SharpnessAwareState
    ) -> tuple[ValueAndGrad, SharpnessAwareState]:
        """As `__call__`: the loss at θ+ε, its auxiliary output and the gradient, and the state."""
        seen = self._drawn(problem, self._key(state))
        ascent, result, radius_state, diagnostics = self._over_microbatches(seen, state)
        state = state._replace(
            count=optax.safe_increment(state.count),
            value=result.value.astype(state.value.dtype),
            ascent=self._ascent.observe(state.ascent, ascent, result.gradient),
            descent=result.state,
            radius=radius_state,
            diagnostics=diagnostics,
        )
        return ValueAndGrad(result.value, result.aux, problem.fill(result.gradient)), state

    def perturbation_of(self, problem: "StepProblem", state: SharpnessAwareState) -> PyTree:
        """As `perturbation`."""
        key = self._key(state)
        problem = self._drawn(problem, key)
        if self._microbatches > 1:
            problem, key = _part(problem, jnp.asarray(0), self._microbatches), _of_part(key, 0)
        epsilon, ascent, _ = self._perturb(problem, state, key)
        if epsilon is None:
            return problem.fill(jax.tree.map(jnp.zeros_like, problem.params))
        point = problem.at(epsilon, ascent)
        return problem.fill(self._descent.effective_perturbation(point, state.descent))

    def _key(self, state: SharpnessAwareState) -> Key[Array, ""]:
        return jax.random.fold_in(keys.from_data(state.key), state.count)

    def _drawn(self, problem: "StepProblem", key: Key[Array, ""]) -> "StepProblem":
        """The problem on the part of the batch that the step sees."""
        draw = jax.random.fold_in(key, _DRAW)
        part = problem.objective.on_random_part(self._batch_fraction, draw)
        return problem._replace(objective=part)

    def _over_microbatches(
        self, problem: "StepProblem", state: SharpnessAwareState
    ) -> "_StepOutcome":
        """`_on_batch` on each microbatch from the same θ and state: the mean of what they give.

        What is not floating point (counts, labels in an auxiliary output) is the first one's.
        """
        key, count = self._key(state), self._microbatches
        if count == 1:
            return self._on_batch(problem, state, key)

        def on_part(index: Int[Array, ""]) -> _StepOutcome:
            part = self._on_batch(_part(problem, index, count), state, _of_part(key, index))
            # Those of one part's examples, which have no mean over the parts.
            return part._replace(ascent=part.ascent._replace(losses=None))

        # Written out: a loop would take convolutions' gradients off XLA's fast path on a CPU.
        total = on_part(jnp.asarray(0))
        for i in range(1, count):
            following = on_part(probes.after(total.descent.gradient, jnp.asarray(i)))
            total = _on_floating(jnp.add, total, following)
        mean: _StepOutcome = _on_floating(lambda x: x / count, total)
        return mean

    def _on_batch(
        self, problem: "StepProblem", state: SharpnessAwareState, key: Key[Array, ""]
    ) -> "_StepOutcome":
        """The step on one batch."""
        epsilon, ascent, rho = self._perturb(problem, state, key)
        result = self._descent.gradient(problem.at(epsilon, ascent), state.descent)
        radius_state = self._radius.observe(
            state.radius, problem.objective, problem.params, epsilon
        )
        # Under other radii ε points elsewhere than the direction that was measured.
        is_along = self._radius.rule is radii.global_
        diagnostics = _diagnostics(rho, epsilon, ascent, result, is_along=is_along)
        if ascent.clean is not None:
            result = result._replace(aux=ascent.clean.aux)
        if result.state is None:
            result = result._replace(state=state.descent)
        return _StepOutcome(ascent, result, radius_state, diagnostics)

    def _perturb(
        self, problem: "StepProblem", state: SharpnessAwareState, key: Key[Array, ""]
    ) -> tuple[FloatTree | None, AscentResult, Float[Array, ""]]:
        """ε, what the ascent found, and ρ; ε is None for a radius that is zero for good."""
        if isinstance(self._rho, int | float) and self._rho == 0:
            return None, AscentResult(None), jnp.zeros(())
        rho = jnp.asarray(self._rho(state.count) if callable(self._rho) else self._rho)
        rho = rho * self._radius.factor(state.radius)
        ascent = self._ascent.direction(
            problem.objective, problem.params, state.ascent, key=key, mask=problem.mask
        )
        epsilon = radii.perturbation(
            self._radius.rule, ascent.direction, problem.params, rho, problem.mask
        )
        return epsilon, ascent, rho


class StepProblem(NamedTuple):
    """What one step works on: the floating-point leaves of the parameters alone."""

    params: FloatTree  # θ
    mask: masks.Resolved  # None, or a pytree of bool leaves like `params`
    objective: Objective  # the minibatch loss
    # puts zeros into a tree like `params` where the caller's parameters have other leaves
    fill: Callable[[PyTree], PyTree]

    def at(self, epsilon: FloatTree | None, ascent: AscentResult) -> PerturbedPoint:
        """The point that a descent starts from."""
        return PerturbedPoint(self.objective, self.params, epsilon, ascent, self.mask)


class _StepOutcome(NamedTuple):
    """What ascent and descent found, the radius's new state, and the diagnostics."""

    ascent: AscentResult
    descent: DescentResult
    radius_state: PyTree
    diagnostics: Diagnostics


def _of_part(key: Key[Array, ""], index: Int[Array, ""] | int) -> Key[Array, ""]:
    return jax.random.fold_in(key, index)


def _part(problem: StepProblem, index: Int[Array, ""], count: int) -> StepProblem:
    """The problem on one of `count` equal parts of the batch."""
    size = problem.objective.batch_size
    if size % count:
        raise ValueError(f"microbatches={count} must divide the batch of {size} examples.")
    # Interleaved, so that a batch that is sharded over devices stays where it is.
    part = problem.objective.on(
        lambda x: jax.lax.dynamic_index_in_dim(
            x.reshape(size // count, count, *x.shape[1:]), index, 1, keepdims=False
        )
    )
    return problem._replace(objective=part)


def _on_floating(function: Callable[..., Array], tree: PyTree, *others: PyTree) -> PyTree:
    """`function` of floating-point leaves; the others stay as they are in the first tree."""
    return jax.tree.map(
        lambda x, *ys: function(x, *ys) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x,
        tree,
        *others,
    )


def _diagnostics(
    rho: Float[Array, ""],
    epsilon: FloatTree | None,
    ascent: AscentResult,
    result: DescentResult,
    *,
    is_along: bool,
) -> Diagnostics:
    unknown, length = jnp.asarray(jnp.nan, jnp.float32), jnp.zeros(())
    slope = gain = unknown
    if epsilon is not None:
        length = trees.norm(epsilon)
        if ascent.clean is not None:
            slope = trees.ratio(trees.inner(ascent.clean.gradient, epsilon), length)
        elif ascent.slope is not None and is_along:
            slope = ascent.slope
    if ascent.value is not None:
        gain = result.value - ascent.value
    # Of a step that does not go there, nothing but ρ is known.
    perturbed = result.is_perturbed
    plain = jnp.where(perturbed, (rho != 0) & (length == 0), False)
    values = (
        rho,
        jnp.where(perturbed, length, 0.0),
        jnp.where(perturbed, slope, unknown),
        jnp.where(perturbed, gain, unknown),
        plain,
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
    batch_fraction: float | None = None,
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
      ascent: how to find the direction of ε (`zosam_jax.ascent`).
      rho: ρ ≥ 0, or an optax schedule of the step count. In the units of `radius`. While a
        schedule is below zero or not finite, ε = 0 (`Diagnostics.plain_step`).
      radius: "global", "layerwise", "adaptive", "calibrated", or one of your own
        (`zosam_jax.radius`).
      descent: what is done at θ+ε (`zosam_jax.descent`); by default the gradient is taken there.
      microbatches: M ≥ 1 for m-sharpness, (1/M) Σⱼ ∇Lⱼ(θ+εⱼ): each of M equal parts of the batch
        has a perturbation of its own. M must divide the batch; the loss's first array argument and
        all others with as long a first axis are the batch, examples along it. What is as long by
        chance (weights of as many classes) has to be closed over, as in
        functools.partial(loss, class_weights=w). Floating-point auxiliary output is averaged,
        other is the first part's.
      batch_fraction: how much of the batch a step sees, in (0, 1], in all of its passes: drawn at
        random in each step, from the state's key; None for all of it. SAM on half of the batch
        costs what SGD costs on all of it. The batch is found as for microbatches, which are then
        parts of this part, as is the `fraction` of an ascent or a descent; auxiliary output
        (BatchNorm's statistics, predictions) is that of the part alone. Of a batch that is split
        over devices each device sees as much of its own where that is possible.
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
        batch_fraction=batch_fraction,
        mask=mask,
        has_aux=has_aux,
        probe_fn=probe_fn,
        losses_fn=losses_fn,
        axis_name=axis_name,
    )


def _fill(tree: FloatTree, params: PyTree) -> PyTree:
    """Puts zeros where `params` has leaves that are not floating point."""
    values = iter(jax.tree.leaves(tree))
    return jax.tree.map(
        lambda p: (
            next(values) if jnp.issubdtype(jnp.result_type(p), jnp.floating) else jnp.zeros_like(p)
        ),
        params,
    )
