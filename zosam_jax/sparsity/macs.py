"""How much arithmetic each parameter causes, so that a mask can be said to save some of it."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.extend import core

from zosam_jax import masks as mask_trees
from zosam_jax.trees import PyTree


def macs(function: Callable[..., Any], params: PyTree, *args: Any) -> PyTree[int]:
    """Counts the MACs of the matrix products and convolutions that each parameter enters.

    Read off the traced program; nothing is computed. A parameter is followed through whatever is
    done to it and constants alone (reshapes, transposes, casts, masks) into dot_general and
    conv_general_dilated; what has met the other arguments is an activation. Loops of known length
    count as often as they run.

    Args:
      function: (params, *args) → anything, such as the forward pass on one example.
      params: the parameters, or their shapes (jax.ShapeDtypeStruct).
      *args: likewise; inputs belong here, since arrays that `function` closes over are constants.

    Returns:
      A tree like `params` of integers, 0 for what enters no product.
    """
    leaves, structure = jax.tree.flatten(params)
    jaxpr = jax.make_jaxpr(function)(params, *args).jaxpr
    counts = [0] * len(leaves)
    origins = [*range(len(leaves)), *[_ACTIVATION] * (len(jaxpr.invars) - len(leaves))]
    _count(jaxpr, origins, counts, times=1)
    return jax.tree.unflatten(structure, counts)


def kept_macs(costs: PyTree[int], masks: PyTree, params: PyTree) -> float:
    """The MACs that masks leave: Σ_l cost_l · density_l.

    Args:
      costs: as `macs` returns them.
      masks: 1/0 or bool leaves; None for dense parameters or a dense network.
      params: the parameters, for their structure.

    Returns:
      The sum over all parameters.

    Raises:
      ValueError: for masks that do not fit the parameters.
    """
    resolved = mask_trees.leaves(mask_trees.resolve(masks, params), params)
    kept: list[float] = [
        cost if mask is None else cost * float(np.mean(np.asarray(mask)))
        for cost, mask in zip(jax.tree.leaves(costs), resolved, strict=True)
    ]
    return sum(kept)


# What a variable comes from: the index of a parameter, this, or None for constants.
_ACTIVATION = -1

Origin: TypeAlias = int | None


def _count(jaxpr: Any, origins: Sequence[Origin], counts: list[int], times: int) -> list[Origin]:
    """Adds to `counts`; takes the origins of the program's inputs, returns those of its outputs."""
    known: dict[Any, Origin] = dict(zip(jaxpr.invars, origins, strict=True))

    def origin(variable: Any) -> Origin:
        return None if isinstance(variable, core.Literal) else known.get(variable)

    for equation in jaxpr.eqns:
        found = [origin(v) for v in equation.invars]
        inner = _inner_jaxpr(equation)
        if inner is not None:
            program, first, repeats = inner
            results = _count(program, found[first:], counts, times * repeats)
        elif equation.primitive.name in ("dot_general", "conv_general_dilated"):
            for parameter in {o for o in found if o is not None and o != _ACTIVATION}:
                counts[parameter] += times * _products(equation)
            results = [_ACTIVATION if None in found else _together(found)]
        else:
            results = [_together(found)] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return [origin(v) for v in jaxpr.outvars]


def _together(origins: Sequence[Origin]) -> Origin:
    """What comes of several: an activation wins over parameters, they over constants."""
    if _ACTIVATION in origins:
        return _ACTIVATION
    return next((o for o in origins if o is not None), None)


def _products(equation: Any) -> int:
    """MACs of one product: the outputs times the terms of each."""
    outputs: int = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        lengths: list[int] = [equation.invars[0].aval.shape[i] for i in contracted]
        return outputs * math.prod(lengths)
    kernel: tuple[int, ...] = equation.invars[1].aval.shape
    out_features: int = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return outputs * math.prod(kernel) // out_features


def _inner_jaxpr(equation: Any) -> tuple[Any, int, int] | None:
    """(program, its first operand's position, how often it runs) where an equation calls one."""
    params = equation.params
    if equation.primitive.name == "cond":
        return params["branches"][0].jaxpr, 1, 1
    if equation.primitive.name == "while":
        return params["body_jaxpr"].jaxpr, params["cond_nconsts"], 1
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params:
            inside = params[key]
            return getattr(inside, "jaxpr", inside), 0, params.get("length", 1)
    return None
