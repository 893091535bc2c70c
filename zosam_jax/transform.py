"""The gradient at θ+ε as an optax transformation, and what its state tells.

The algorithm itself is `zosam_jax.gradient`.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zosam_jax import masks, trees
from zosam_jax import radius as radii
from zosam_jax.ascent.base import Ascent
from zosam_jax.averages import AveragedState
from zosam_jax.binding import bind
from zosam_jax.descent import Descent
from zosam_jax.errors import check_one_of, is_traced
from zosam_jax.gradient import (
    Diagnostics,
    Mask,
    Rho,
    SharpnessAwareGradient,
    SharpnessAwareState,
)
from zosam_jax.objective import AxisName
from zosam_jax.trees import Array, Float, PyTree, accepting_shapes


def sharpness_aware(
    ascent: Ascent,
    rho: Rho,
    *,
    radius: radii.RadiusLike = "global",
    descent: Descent | None = None,
    microbatches: int = 1,
    batch_fraction: float | None = None,
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
      perturb: which of the weights that the mask keeps are perturbed; like `mask`, and from
        `perturbing`.
      has_aux: True if `value_fn` returns (scalar, aux); `pop_aux` then takes aux out of the state.
      emit: "gradient", or "perturbation" for the ε of the next step in its place, the state left
        as it is; for diagnostics.
      keep_gradient: True to emit the gradient of the weights that `mask` keeps and leave the whole
        one in the state, where `pop_gradient` finds it; for wrappers that grow masks by it.

    The arguments are those of `value_and_grad`, and a seed or a random key for the directions.

    Returns:
      An optax.GradientTransformationExtraArgs whose state is a SharpnessAwareState.

    Raises:
      ValueError, TypeError: at construction, from `init` or while tracing, for an argument that
        cannot be right; the sentence names it.
    """
    gradient = SharpnessAwareGradient(
        None,
        ascent=ascent,
        rho=rho,
        radius=radius,
        descent=descent,
        microbatches=microbatches,
        batch_fraction=batch_fraction,
        mask=mask,
        axis_name=axis_name,
    )

    own_mask = mask

    def init(params: PyTree) -> SharpnessAwareState:
        trees.refuse_keys(params)
        return gradient.init(params, key)

    def update(
        updates: PyTree,
        state: SharpnessAwareState,
        params: PyTree = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        probe_fn: Callable[..., Any] | None = None,
        losses_fn: Callable[..., Any] | None = None,
        mask: PyTree = None,
        perturb: Mask = None,
        has_aux: bool = False,
        emit: str = "gradient",
        keep_gradient: bool = False,
        **extra_args: Any,
    ) -> tuple[PyTree, SharpnessAwareState]:
        check_one_of("emit", emit, ("gradient", "perturbation"))
        _require(value_fn, params)
        if not _may_be_ignored(updates):
            _warn_of_ignored_updates()
        calls = bind(extra_args, value_fn=value_fn, probe_fn=probe_fn, losses_fn=losses_fn)
        with naming_the_order(params):
            kept = masks.resolve(own_mask if mask is None else mask, params)
            perturbed = masks.both(kept, masks.resolve(perturb, params))
            problem = gradient.problem(params, perturbed, calls, has_aux=has_aux)
            if emit == "perturbation":
                return gradient.perturbation_of(problem, state), state
            (_, aux, updates), state = gradient.step(problem, state)
        state = state._replace(aux=aux)
        if keep_gradient:
            if not gradient.has_dense_gradient:
                raise ValueError(
                    "this optimizer estimates no gradient at pruned weights, by which masks could "
                    "grow: use a method that grows by chance (set_, dsr, mest), or pass the "
                    "gradient, tx.update(grads, state, params, ...)."
                )
            state = state._replace(gradient=updates)
            updates = masks.restrict(updates, kept)
        return updates, state

    return optax.GradientTransformationExtraArgs(accepting_shapes(init), update)


def perturbing(
    tx: optax.GradientTransformationExtraArgs, weights: Mask
) -> optax.GradientTransformationExtraArgs:
    """A sharpness-aware transformation that perturbs some of the weights alone.

        zosam_jax.perturbing(zosam_jax.zo_sam(1.0), zosam_jax.masks.normalization)

    As with `mask=`, which a sparse wrapper replaces by its own: these weights are perturbed as far
    as they are kept.

    Args:
      tx: any of the ready-made ones, or of `sharpness_aware`.
      weights: a pytree of 1/0 or bool leaves like the parameters, or a function of them.

    Reference: for normalization layers, Mueller et al., Normalization Layers Are All That
      Sharpness-Aware Minimization Needs (SAM-ON), NeurIPS 2023, https://arxiv.org/abs/2306.04226
    """

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        updates, state = tx.update(updates, state, params, perturb=weights, **extra_args)
        return updates, state

    return optax.GradientTransformationExtraArgs(tx.init, update)


@functools.cache
def _warn_of_ignored_updates() -> None:
    """Warns once; Python's own "once" forgets wherever anyone changes the filters of warnings."""
    warnings.warn(_IGNORED, stacklevel=3)


_IGNORED = (
    "a sharpness-aware transformation ignores the incoming updates: it takes the gradient itself, "
    "at θ+ε. Pass None in their place. Where they come from another transformation, as in "
    "optax.chain(clip, zo_sam(...)) or optax.MultiSteps(zo_sam(...)), that one has no effect: "
    "write optax.chain(zo_sam(...), clip, ...) or optax.chain(zo_sam(...), optax.MultiSteps(...))."
)


def _may_be_ignored(updates: PyTree) -> bool:
    """Whether nothing is lost by ignoring these updates: there are none, or they had to be there.

    optax.masked and optax.partition need updates for the parameters that other transformations
    train, and put MaskedNode in the place of those.
    """
    leaves = jax.tree.leaves(updates, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    return not leaves or any(isinstance(x, optax.MaskedNode) for x in leaves)


def _require(value_fn: Callable[..., Any] | None, params: PyTree) -> None:
    if value_fn is None:
        raise ValueError(
            "value_fn is missing: a sharpness-aware transformation evaluates the loss itself. "
            "Call tx.update(None, state, params, value_fn=loss, x=x, y=y), where "
            "loss(params, x, y) returns a scalar. A wrapper that does not pass it on "
            "(optax.lookahead) is called after it: grads, state = zo_sam(...).update(None, state, "
            "params.fast, value_fn=loss, ...), then its own update(grads, ...)."
        )
    if params is None:
        raise ValueError(
            "params is missing: call tx.update(None, state, params, value_fn=loss, ...)."
        )


# What goes wrong around a sharpness-aware transformation, by what stands in states and parameters.
_AROUND: dict[type, str] = {
    optax.MaskedNode: "optax.masked (or optax.partition)",
    optax.MaskedState: "optax.masked (or optax.partition)",
    optax.MultiStepsState: "optax.MultiSteps",
    optax.ApplyIfFiniteState: "optax.apply_if_finite",
    optax.LookaheadState: "optax.lookahead",
}


@contextlib.contextmanager
def naming_the_order(tree: PyTree) -> Iterator[None]:
    """Adds to an error which order works, where another wrapper stands around the transformation.

    Args:
      tree: the parameters that it was given, or the whole optimizer state.
    """
    try:
        yield
    except Exception as error:
        nodes = jax.tree.leaves(tree, is_leaf=lambda x: type(x) in _AROUND)
        for node in nodes:
            if type(node) is optax.MaskedNode or (type(node) in _AROUND and states(node)):
                error.add_note(
                    f"{_AROUND[type(node)]} stands around a sharpness-aware transformation, which "
                    "takes the gradient itself, of the loss of all parameters: put it after, "
                    "around the rest, as in optax.chain(zo_sam(...), wrapper(...)); to perturb "
                    "some of the weights pass mask=. optax.lookahead is given that gradient in a "
                    "call of its own."
                )
                break
        raise


def states(opt_state: PyTree) -> list[SharpnessAwareState]:
    """The states of the sharpness-aware transformations inside an optimizer state."""
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_state)
    return [leaf for leaf in leaves if _is_state(leaf)]


def comes_first(opt_state: PyTree) -> bool:
    """Whether it is the state of a sharpness-aware transformation, or of a chain that begins so.

    Such a transformation ignores its incoming updates.
    """
    while True:
        if isinstance(opt_state, AveragedState):
            opt_state = opt_state.inner_state
        elif type(opt_state) is tuple and opt_state:  # that of optax.chain
            opt_state = opt_state[0]
        else:
            break
    return _is_state(opt_state)


def value(opt_state: PyTree) -> Float[Array, ""]:
    """The loss of the last step, L(θ+ε), wherever in an optimizer state it stands.

    Args:
      opt_state: the state of any optax transformation around one sharpness-aware transformation;
        a Flax NNX optimizer's `opt_state` too.

    Returns:
      A float32 scalar; inf before the first step.

    Raises:
      ValueError: if there is not exactly one sharpness-aware transformation in the state.
    """
    return jnp.asarray(_only(opt_state).value)


def diagnostics(opt_state: PyTree) -> Diagnostics:
    """What the last step's passes tell about it; arguments and errors as of `value`.

    Outside jit it warns, once, of a step after the first that took the plain gradient.
    """
    found = _only(opt_state)
    warn_of_plain_step(found)
    return Diagnostics(*map(jnp.asarray, found.diagnostics))


def warn_of_plain_step(opt_state: PyTree) -> None:
    """Warns once if the last step took the plain gradient though ρ is not zero.

    A first step may (there is no previous gradient yet), and of traced states nothing is known.
    """
    for state in states(opt_state):
        # Flax NNX keeps them in variables.
        flag, count = jnp.asarray(state.diagnostics.plain_step), jnp.asarray(state.count)
        if is_traced(flag) or is_traced(count):
            continue
        if np.any((np.asarray(flag) > 0) & (np.asarray(count) > 1)):
            _warn_of_plain_step()


@functools.cache
def _warn_of_plain_step() -> None:
    """Warns once, as `_warn_of_ignored_updates` does."""
    warnings.warn(
        "a step took the plain gradient though rho is not zero: rho is below zero or not finite, "
        "or the ascent's direction is zero or not finite (a delta too small or too large, a loss "
        "that is not finite, a stationary point). diagnostics(opt_state) has plain_step=1 then, "
        "and rho_used.",
        stacklevel=4,
    )


def pop_aux(opt_state: PyTree) -> tuple[Any, PyTree]:
    """Takes the auxiliary output of the last step out of an optimizer state.

    Returns:
      (aux, opt_state), the state as it was before `has_aux` put anything in, so that its
      structure stays the same from step to step (and in lax.scan).

    Raises:
      ValueError: if there is not exactly one sharpness-aware transformation in the state.
    """
    return _pop(opt_state, "aux")


def pop_gradient(opt_state: PyTree) -> tuple[PyTree, PyTree]:
    """Takes the last step's dense gradient out of an optimizer state, as `pop_aux` does aux."""
    return _pop(opt_state, "gradient")


def _pop(opt_state: PyTree, field: str) -> tuple[Any, PyTree]:
    found = getattr(_only(opt_state), field)
    emptied = jax.tree.map(
        lambda x: x._replace(**{field: None}) if _is_state(x) else x, opt_state, is_leaf=_is_state
    )
    return found, emptied


def _only(opt_state: PyTree) -> SharpnessAwareState:
    found = states(opt_state)
    if len(found) != 1:
        raise ValueError(
            f"the optimizer state holds {len(found)} sharpness-aware transformations, expected one."
        )
    return found[0]


def _is_state(x: Any) -> bool:
    return isinstance(x, SharpnessAwareState)
