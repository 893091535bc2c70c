"""What every ascent is: a rule for a direction in which the loss rises, as pure functions."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from zosam_jax.masks import Resolved
from zosam_jax.objective import Objective, ValueAndGrad
from zosam_jax.trees import Array, Float, FloatTree, Key, PyTree


class AscentResult(NamedTuple):
    """What an ascent found.

    Attributes:
      direction: g, a pytree like the parameters, along which the loss rises; its length does not
        matter.
      clean: the forward and backward pass at θ on the whole batch, if the ascent made it. The
        step's auxiliary output is then that pass's, and descents that need ∇L(θ) find it there.
      value: L(θ) on the whole batch, if the ascent measured it, to O(δ²) at least.
      losses: the losses of the examples at θ, of shape [batch], if the ascent measured them.
      slope: the derivative of L at θ along the direction, ⟨∇L(θ), g⟩ / ‖g‖, if it was measured.
    """

    direction: FloatTree
    clean: ValueAndGrad | None = None
    value: Float[Array, ""] | None = None
    slope: Float[Array, ""] | None = None
    losses: Float[Array, " batch"] | None = None


class Direction(Protocol):
    """A way of finding "up"."""

    def __call__(
        self,
        objective: Objective,
        params: FloatTree,
        state: PyTree,
        /,
        *,
        key: Key[Array, ""],
        mask: Resolved,
    ) -> AscentResult:
        """Finds which way the loss rises.

        Args:
          objective: the loss of this step's minibatch.
          params: θ, floating-point leaves alone.
          state: what the ascent remembers.
          key: a fresh random key for this step.
          mask: None, or a pytree of bool leaves like `params`.

        Returns:
          The direction, a pytree like `params`, and what its passes told.
        """


class Ascent(NamedTuple):
    """A rule for the direction of the perturbation.

    Attributes:
      init: params → state, whatever the ascent wants to remember between steps (arrays only).
      direction: (objective, params, state, *, key, mask) → AscentResult (`Direction`).
      observe: (state, found, gradient) → state, called after each step with what `direction`
        found (∇L(θ) in `found.clean`, where the ascent took it on the whole batch) and the
        descent's gradient ∇L(θ+ε). With microbatches both are the mean over them.
    """

    init: Callable[[PyTree], PyTree]
    direction: Direction
    observe: Callable[[PyTree, AscentResult, PyTree], PyTree]


def stateless(direction: Callable[..., AscentResult]) -> Ascent:
    """An ascent that remembers nothing; `direction` is as in Ascent, without the state."""

    def with_state(
        objective: Objective,
        params: FloatTree,
        state: PyTree,
        *,
        key: Key[Array, ""],
        mask: Resolved,
    ) -> AscentResult:
        del state
        return direction(objective, params, key=key, mask=mask)

    return Ascent(
        init=lambda params: (), direction=with_state, observe=lambda state, found, gradient: state
    )
