"""Coefficients of units that are learned under an L1 penalty: network slimming, EarlyBERT.

A coefficient multiplies what a unit hands on. It is 1 at first, is trained with the weights, and
the penalty draws it to zero where the unit is of little use. With BatchNorm the coefficients are
its scales, which are there already (`scale_loss`); elsewhere they are parameters of their own
(`coefficient_loss`), multiplied into the weights that read the units, so that no network need be
changed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from zosam_jax.errors import check_number
from zosam_jax.masks import apply_masks
from zosam_jax.sparsity import compaction, layers, pruning, structured
from zosam_jax.sparsity.groups import HEADS, INPUT, NEURONS, Units, check_is_units
from zosam_jax.sparsity.layers import Where, is_scale
from zosam_jax.trees import Array, Bool, Float, PyTree


class Slim(NamedTuple):
    """Parameters and coefficients, to be trained together.

    Attributes:
      params: the parameters.
      coefficients: a vector for each group of units, in their order.
    """

    params: PyTree
    coefficients: list[Float[Array, " _"]]


def with_coefficients(params: PyTree, units: Units) -> Slim:
    """Parameters and coefficients of 1, which change nothing.

    Raises:
      ValueError: for a group that nothing reads.
    """
    structure = structured.bind(units, params, structured.every_array)
    structured.check_read(structure)
    return Slim(params, [jnp.ones(size) for size in structure.sizes])


def multiplied(slim: Slim, units: Units) -> PyTree:
    """The parameters with each weight that reads a unit times the unit's coefficient.

    The network then is what it would be with the units' outputs multiplied, after their
    nonlinearity.
    """
    _check_slim(slim)
    structure = structured.bind(units, slim.params, structured.every_array)
    arrays = structure.layers.take(slim.params)
    for factors, parts in zip(slim.coefficients, structure.parts, strict=True):
        for array, member, _ in parts:
            if member.role == INPUT:
                row = structured.by_position(factors, member, arrays[array].ndim, fill=1.0)
                arrays[array] = arrays[array] * row.astype(arrays[array].dtype)
    return structure.layers.replace(slim.params, arrays)


def coefficient_loss(
    loss: Callable[..., Any], units: Units, *, penalty: float = 1e-4, has_aux: bool = False
) -> Callable[..., Any]:
    """The loss of a `Slim` tree: L(params · c) + λ Σ|c|.

    Args:
      loss: (params, *args, **kwargs) → scalar, or → (scalar, aux) with `has_aux`.
      units: the units.
      penalty: λ.

    Returns:
      A function like `loss` whose first argument is a Slim.
    """
    check_number("penalty", penalty, above=0.0, inclusive=True)

    @functools.wraps(loss)
    def penalised(slim: Slim, *args: Any, **kwargs: Any) -> Any:
        return _plus(
            loss(multiplied(slim, units), *args, **kwargs), penalty, slim.coefficients, has_aux
        )

    return penalised


def scale_loss(
    loss: Callable[..., Any],
    units: Units,
    *,
    penalty: float = 1e-4,
    where: Where = is_scale,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Network slimming's loss: L(θ) + λ Σ|γ| over the units' BatchNorm scales.

    Masks are then drawn by `magnitude` with the same `where` and units.

    Args:
      loss: (params, *args, **kwargs) → scalar, or → (scalar, aux) with `has_aux`.
      units: the units.
      penalty: λ.
      where: which arrays of the units are their coefficients.

    Returns:
      A function like `loss`.

    Reference: Liu et al., Learning Efficient Convolutional Networks through Network Slimming,
    https://arxiv.org/abs/1708.06519
    """
    check_number("penalty", penalty, above=0.0, inclusive=True)
    chosen = layers.chooser(where)

    @functools.wraps(loss)
    def penalised(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        structure = structured.bind(units, params, where)
        arrays = zip(structure.layers.paths, structure.layers.take(params), strict=True)
        scales = [array for path, array in arrays if chosen(path, array)]
        return _plus(loss(params, *args, **kwargs), penalty, scales, has_aux)

    return penalised


def draw(
    slim: Slim, units: Units, *, heads: float = 1 / 3, neurons: float = 0.4
) -> PyTree[Bool[Array, "..."]]:
    """EarlyBERT's masks: the units of the largest coefficients stay, sign counted.

    Args:
      slim: the trained parameters and coefficients.
      units: the units; those that are neither heads nor neurons stay.
      heads: the fraction of heads that go, layer by layer.
      neurons: the fraction of neurons that go, of all layers together.

    Returns:
      Masks like the parameters.
    """
    _check_slim(slim)
    _check_parts(units, heads, neurons)
    drawn = None
    for kind, part, distribution in ((HEADS, heads, "uniform"), (NEURONS, neurons, "global")):
        pairs = [
            (g, c) for g, c in zip(units.groups, slim.coefficients, strict=True) if g.kind == kind
        ]
        if pairs:
            masks = pruning.from_unit_scores(
                slim.params,
                [c for _, c in pairs],
                part,
                units=units._replace(groups=tuple(g for g, _ in pairs)),
                distribution=distribution,
            )
            drawn = masks if drawn is None else structured.both(drawn, masks)
    return drawn


class Train(Protocol):
    """A training function."""

    def __call__(self, loss: Callable[..., Any], params: PyTree, masks: PyTree, /) -> PyTree:
        """Trains parameters with a fresh optimizer.

        Args:
          loss: the loss to train by.
          params: the parameters to start from, a Slim in the search.
          masks: fixed masks, or None in the search and for arrays that are smaller instead.

        Returns:
          The trained parameters.
        """


class EarlyTicket(NamedTuple):
    """What EarlyBERT's rule gives.

    Attributes:
      masks: the drawn masks.
      coefficients: those that they were drawn by.
      params: the parameters after training under the masks.
    """

    masks: PyTree
    coefficients: list[Float[Array, " _"]]
    params: PyTree


def early_bert(
    train: Train,
    loss: Callable[..., Any],
    params: PyTree,
    *,
    units: Units,
    heads: float = 1 / 3,
    neurons: float = 0.4,
    penalty: float = 1e-4,
    has_aux: bool = False,
    compact: bool = False,
) -> EarlyTicket:
    """EarlyBERT: searches with coefficients, draws heads and neurons, trains the initial weights.

    The original searches for a fifth of an epoch (AdamW, 2e-5 on GLUE), then trains two epochs
    (4e-5) with what is not drawn removed from the arrays, as with `compact`; else it is zero under
    masks.

    Args:
      train: (loss, params, masks) → trained params; called twice, first for the search.
      loss: (params, *args, **kwargs) → scalar, or → (scalar, aux) with `has_aux`.
      params: the initial parameters, pretrained ones in the original.
      units: heads and neurons.
      heads, neurons: see `draw`.
      penalty: λ, see `coefficient_loss`.
      compact: whether training gets the smaller arrays and no masks. `loss` then has to take
        widths from the parameters' shapes. A Flax NNX module of these widths is
        sparsity.compact(model, ticket.masks, units).

    Returns:
      An EarlyTicket.

    Reference: Chen et al., EarlyBERT, https://arxiv.org/abs/2101.00063
    """
    _check_parts(units, heads, neurons)
    searching = coefficient_loss(loss, units, penalty=penalty, has_aux=has_aux)
    found = train(searching, with_coefficients(params, units), None)
    masks = draw(found, units, heads=heads, neurons=neurons)
    if compact:
        trained = train(loss, compaction.compact(params, masks, units), None)
    else:
        trained = train(loss, apply_masks(params, masks), masks)
    return EarlyTicket(masks, found.coefficients, trained)


def _check_parts(units: Units, heads: float, neurons: float) -> None:
    pruning.check_sparsity(heads, "heads")
    pruning.check_sparsity(neurons, "neurons")
    check_is_units(units)
    if not any(group.kind in (HEADS, NEURONS) for group in units.groups):
        raise ValueError("units has neither heads nor neurons, of which EarlyBERT removes some.")


def _check_slim(slim: Any) -> None:
    if not isinstance(slim, Slim):
        raise TypeError(
            f"slim is {type(slim).__name__}; it must be a Slim, as with_coefficients makes it."
        )


def _plus(result: Any, penalty: float, arrays: list[Array], has_aux: bool) -> Any:
    """A loss, alone or with auxiliary output, plus λ Σ|x|."""
    size = sum((jnp.sum(jnp.abs(a), dtype=jnp.float32) for a in arrays), start=jnp.float32(0.0))
    if has_aux:
        value, aux = result
        return value + penalty * size, aux
    return result + penalty * size
