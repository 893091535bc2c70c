"""Flax NNX: losses of a model as losses of its parameters, and an Optimizer that steps on them."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from zosam_jax import sparsity
from zosam_jax.integrations import plain
from zosam_jax.trees import Array, PyTree


def split(model: Any, wrt: Any = nnx.Param) -> tuple[Any, PyTree, PyTree]:
    """Takes a model apart: its structure, the parameters that `wrt` selects, and all other state.

    Both trees hold plain arrays; nnx.merge(graphdef, params, model_state) puts the
    model together again.
    """
    parts: tuple[Any, ...] = nnx.split(model, wrt, ...)
    graphdef, params, model_state = parts
    return graphdef, nnx.as_pure(params), nnx.as_pure(model_state)


def functional_loss(
    loss: Callable[..., Any],
    graphdef: Any,
    model_state: PyTree,
    *,
    wrt: Any = nnx.Param,
    has_aux: bool = False,
) -> Callable[..., tuple[Array, tuple[PyTree, Any]]]:
    """A loss of a model as a loss of its parameters, with what the pass changed as aux.

    Every call starts from the same `model_state` (BatchNorm statistics, dropout counters), so
    that all passes of a step see the same dropout masks, and one pass's changes can be kept.

    Args:
      loss: (model, *args) → scalar, or → (scalar, aux) with `has_aux`.
      graphdef: the model's structure, as `split` gives it.
      model_state: what is not trained, as `split` gives it.
      wrt: the filter that selects the parameters.
      has_aux: whether `loss` returns auxiliary output.

    Returns:
      (params, *args) → (scalar, (model_state after the pass, aux)).
    """

    def functional(params: PyTree, *args: Any) -> tuple[Array, tuple[PyTree, Any]]:
        model = nnx.merge(graphdef, params, model_state, copy=True)
        value, aux = loss(model, *args) if has_aux else (loss(model, *args), None)
        _, _, after = split(model, wrt)
        return value, (after, aux)

    return functional


class Optimizer(nnx.Optimizer[Any]):
    """nnx.Optimizer, with a step that lets the optimizer evaluate the loss.

        optimizer = Optimizer(model, tx, wrt=nnx.Param)
        value = optimizer.apply_loss(model, loss, x, y)

    `tx` may be any optax transformation; `update` works as ever for those that are not
    sharpness-aware. zosam_jax.value(optimizer.opt_state) and
    zosam_jax.diagnostics(optimizer.opt_state) read the last step's.
    """

    @property
    def masks(self) -> PyTree:
        """The masks that a sparse wrapper around `tx` keeps, shaped like the parameters."""
        return sparsity.get_masks(nnx.as_pure(self.opt_state))

    def apply_masks(self, model: Any) -> None:
        """Sets the model's pruned weights to zero; once, before training."""
        params = nnx.as_pure(nnx.state(model, self.wrt))
        nnx.update(model, sparsity.apply_masks(params, self.masks))

    def apply_loss(
        self,
        model: Any,
        loss: Callable[..., Any],
        *args: Any,
        has_aux: bool = False,
        losses_fn: Callable[..., Any] | None = None,
        **extra_args: Any,
    ) -> Any:
        """One step, which updates the model and the optimizer in place.

        BatchNorm statistics and dropout counters move once, however many passes the ascent makes:
        they are those of the pass at θ where it makes one with gradients (SAM), else of the
        descent pass.

        Args:
          model: the model; what the optimizer's `wrt` selects is trained.
          loss: (model, *args) → scalar, or → (scalar, aux) with `has_aux`.
          *args: passed to `loss`.
          has_aux: whether `loss` returns auxiliary output.
          losses_fn: (model, *args) → the loss of each example, of shape [batch], for optimizers
            that ask for it (ESAM); needed where the model has BatchNorm.
          **extra_args: passed on to `tx.update`, `mask` for example.

        Returns:
          The loss, or (loss, aux) with `has_aux`.
        """
        graphdef, params, model_state = split(model, self.wrt)
        functional = functional_loss(loss, graphdef, model_state, wrt=self.wrt, has_aux=has_aux)
        if losses_fn is not None:
            losses = functional_loss(losses_fn, graphdef, model_state, wrt=self.wrt)
            extra_args["losses_fn"] = lambda p, loss_args: losses(p, *loss_args)[0]
        value, (after, aux), params, opt_state = plain.apply_loss(
            self.tx,
            lambda p, loss_args: functional(p, *loss_args),
            params,
            nnx.as_pure(self.opt_state),
            has_aux=True,
            loss_args=args,
            **extra_args,
        )
        nnx.update(model, params, after)
        nnx.update(self.opt_state, nnx.state(opt_state))
        self.step[...] += 1
        return (value, aux) if has_aux else value
