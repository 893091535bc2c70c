"""Flax Linen: a TrainState whose step takes a loss function."""

from collections.abc import Callable
from typing import Any

from flax.training import train_state

from zosam_jax import sparsity
from zosam_jax.integrations import plain
from zosam_jax.trees import PyTree


class TrainState(train_state.TrainState):
    """flax.training's TrainState, with a step that lets the optimizer evaluate the loss.

        state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        state, (value, updated) = state.apply_loss(loss, has_aux=True, x=x, y=y)
        state = state.replace(batch_stats=updated["batch_stats"])

    `tx` may be any optax transformation; `apply_gradients` works as ever for those that are not
    sharpness-aware. zosam_jax.value(state.opt_state) and zosam_jax.diagnostics(state.opt_state)
    read the last step's.
    """

    @property
    def masks(self) -> PyTree:
        """The masks that a sparse wrapper around `tx` keeps, shaped like the parameters."""
        return sparsity.get_masks(self.opt_state)

    def apply_masks(self) -> "TrainState":
        """The same state with pruned weights at zero; once, before training."""
        masked: TrainState = self.replace(params=sparsity.apply_masks(self.params, self.masks))
        return masked

    def apply_loss(
        self, loss: Callable[..., Any], *, has_aux: bool = False, **extra_args: Any
    ) -> tuple["TrainState", Any]:
        """One step.

        Args:
          loss: (params, **kwargs) → scalar, or → (scalar, aux) with `has_aux`; aux is where
            BatchNorm's new statistics travel. Its keyword arguments are taken from `extra_args`
            by name. For dropout close it over one key: all passes of a step must share it. For
            optimizers that look at parts of the batch close it over all that is not per example
            (BatchNorm's statistics too), and pass `losses_fn` to ESAM.
          has_aux: whether `loss` returns auxiliary output.
          **extra_args: passed on to `tx.update`.

        Returns:
          The new state, and the loss, or (loss, aux) with `has_aux`.
        """
        value, aux, params, opt_state = plain.apply_loss(
            self.tx, loss, self.params, self.opt_state, has_aux=has_aux, **extra_args
        )
        state = self.replace(step=self.step + 1, params=params, opt_state=opt_state)
        return state, (value, aux) if has_aux else value
