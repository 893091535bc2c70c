"""How much arithmetic each parameter causes, so that a mask can be said to save some of it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from zosam_jax.sparsity import masks as mask_trees
from zosam_jax.trees import PyTree


def multiply_adds(function: Callable[..., Any], params: PyTree, *args: Any) -> PyTree:
    """Counts the multiply-adds of the matrix products and convolutions that each parameter enters.

    Read off the traced program; nothing is computed. A parameter is followed through whatever
    keeps its number of entries (reshapes, transposes, casts, masks) into dot_general and
    conv_general_dilated; loops of known length count as often as they run.

    Args:
      function: (params, *args) → anything, such as the forward pass on one example.
      params: the parameters, or their shapes (jax.ShapeDtypeStruct).
      *args: likewise.

    Returns:
      A tree like `params` of integers, 0 for what enters no product.
    """
    leaves, structure = jax.tree.flatten(params)
    jaxpr = jax.make_jaxpr(function)(params, *args).jaxpr
    counts = [0] * len(leaves)
    sources = dict(zip(jaxpr.invars, range(len(leaves)), strict=False))
    _count(jaxpr, sources, [math.prod(np.shape(leaf)) for leaf in leaves], counts, times=1)
    return jax.tree.unflatten(structure, counts)


def kept_multiply_adds(costs: PyTree, masks: PyTree, params: PyTree) -> float:
    """The multiply-adds that masks leave: Σ_l cost_l · density_l.

    Args:
      costs: as `multiply_adds` returns them.
      masks: 1/0 or bool leaves; None for dense parameters or a dense network.
      params: the parameters, for their structure.
    """
    resolved = mask_trees.leaves(mask_trees.resolve(masks, params), params)
    kept: list[float] = [
        cost if mask is None else cost * float(np.mean(np.asarray(mask)))
        for cost, mask in zip(jax.tree.leaves(costs), resolved, strict=True)
    ]
    return sum(kept)


def _count(
    jaxpr: Any, sources: dict[Any, int], sizes: Sequence[int], counts: list[int], times: int
) -> None:
    """Adds to `counts`; `sources` says which parameter a variable is, rearranged."""

    def source(variable: Any) -> int | None:
        return None if isinstance(variable, core.Literal) else sources.get(variable)

    for equation in jaxpr.eqns:
        found = {s for s in map(source, equation.invars) if s is not None}
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            for parameter in found:
                counts[parameter] += times * _products(equation)
            continue
        inner = _inner_jaxpr(equation)
        if inner is not None:
            jaxpr_inside, operands, repeats = inner
            pairs = zip(jaxpr_inside.invars, map(source, operands), strict=True)
            passed = {v: parameter for v, parameter in pairs if parameter is not None}
            _count(jaxpr_inside, passed, sizes, counts, times * repeats)
            continue
        for parameter in found:
            for out in equation.outvars:
                if math.prod(out.aval.shape) == sizes[parameter]:
                    sources[out] = parameter


def _products(equation: Any) -> int:
    """Multiply-adds of one product: the outputs times the terms of each."""
    outputs: int = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        lengths: list[int] = [equation.invars[0].aval.shape[i] for i in contracted]
        return outputs * math.prod(lengths)
    kernel: tuple[int, ...] = equation.invars[1].aval.shape
    out_features: int = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return outputs * math.prod(kernel) // out_features


def _inner_jaxpr(equation: Any) -> tuple[Any, Sequence[Any], int] | None:
    """(program, its operands, how often it runs) of an equation that calls one."""
    params = equation.params
    if equation.primitive.name == "cond":
        return params["branches"][0].jaxpr, equation.invars[1:], 1
    if equation.primitive.name == "while":
        body = params["body_jaxpr"].jaxpr
        return body, equation.invars[params["cond_nconsts"] :], 1
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params:
            inside = params[key]
            return getattr(inside, "jaxpr", inside), equation.invars, params.get("length", 1)
    return None
