"""Flax NNX: losses of a model as losses of its parameters, and an Optimizer that steps on them."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from zosam_jax import sparsity
from zosam_jax.integrations import plain
from zosam_jax.sparsity.block_sparse import BlockSparse
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
          *args: passed to `loss`. Modules and nnx.Rngs among them go through the step as the model
            does, untrained: what a pass changes in them (counts of random keys) moves once too.
          has_aux: whether `loss` returns auxiliary output.
          losses_fn: (model, *args) → the loss of each example, of shape [batch], for optimizers
            that ask for it (ESAM); needed where the model has BatchNorm.
          **extra_args: passed on to `tx.update`, `mask` for example.

        Returns:
          The loss, or (loss, aux) with `has_aux`.
        """
        leaves, structure = jax.tree.flatten(args, is_leaf=_is_node)
        # One graph, in which the model and the arguments may share parts.
        nodes = (model, *filter(_is_node, leaves))
        wrt = _of_first(self.wrt)
        graphdef, params, state = split(nodes, wrt)

        def functional(function: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
            dense = function.function if isinstance(function, BlockSparse) else function

            def of_nodes(nodes: tuple[Any, ...], arrays: list[Any]) -> Any:
                model, *others = nodes
                given = [iter(others), iter(arrays)]
                args = jax.tree.unflatten(structure, [next(given[not _is_node(x)]) for x in leaves])
                return dense(model, *args)

            of_nodes_params = functional_loss(of_nodes, graphdef, state, wrt=wrt, has_aux=has_aux)

            def of_params(params: PyTree, loss_args: list[Any]) -> Any:
                return of_nodes_params({0: params}, loss_args)

            return function.of(of_params) if isinstance(function, BlockSparse) else of_params

        if losses_fn is not None:
            losses = functional(losses_fn, has_aux=False)
            extra_args["losses_fn"] = lambda params, loss_args: losses(params, loss_args)[0]
        value, (after, aux), params, opt_state = plain.apply_loss(
            self.tx,
            functional(loss, has_aux),
            params[0],
            nnx.as_pure(self.opt_state),
            has_aux=True,
            loss_args=[x for x in leaves if not _is_node(x)],
            **extra_args,
        )
        nnx.update(nodes, {0: params}, after)
        nnx.update(self.opt_state, nnx.state(opt_state))
        self.step[...] += 1
        return (value, aux) if has_aux else value


def _is_node(x: Any) -> bool:
    """Whether Flax holds it by reference: a module, nnx.Rngs, a variable."""
    return bool(nnx.graph.is_graph_node(x))


def _of_first(wrt: Any) -> Callable[..., bool]:
    """The filter that selects of several nodes the first one's variables that `wrt` does."""
    selects = nnx.filterlib.to_predicate(wrt)
    return lambda path, x: path[0] == 0 and selects(path[1:], x)
