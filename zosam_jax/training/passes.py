"""Forward and backward passes of a step, counted in its traced program, not assumed.

The network's outputs go through an identity of our own, which compiles to nothing but stays visible
in the program that JAX traces. Differentiation carries it along: a forward pass leaves it on the
outputs, a forward-mode derivative on their tangents and a backward pass on their cotangents. Since
these are arrays of examples × classes, their sizes say on which part of the batch a pass was made,
and how often vmap made it.
"""

import math
from collections.abc import Callable
from typing import Any

from jax.extend import core
from jax.interpreters import ad, batching, mlir, partial_eval

from zosam_jax import probes
from zosam_jax.optimizers import Passes
from zosam_jax.trees import Array


def marked_outputs(outputs: Array) -> Array:
    """A network's outputs, marked for `count`."""
    marked_array: Array = _output.bind(outputs, of="output")
    return marked_array


def count(
    program: core.ClosedJaxpr, outputs: int, *, branch: Callable[..., Passes] = max
) -> Passes:
    """Counts the passes of a marked network in a traced program.

    What nothing depends on is left out, as XLA does; two passes that XLA may find to be the same
    and make once are two. Loops count as often as they run if the program says how often that is,
    as scans and fori_loops of known length do; any other loop counts once. Of a lax.cond's
    branches the one with the most work counts, so that a method that saves passes at some steps
    is reported at its dearest step.

    Args:
      program: such as jax.jit(step).trace(...).jaxpr.
      outputs: the number of the network's outputs for a whole batch, examples · classes.
      branch: max, or min for the passes of the cheapest step.
    """
    used = [True] * len(program.jaxpr.outvars)
    jaxpr, _ = partial_eval.dce_jaxpr(program.jaxpr, used)
    return _times(_count(jaxpr, branch), 1 / outputs)


def _count(jaxpr: Any, branch: Callable[..., Passes]) -> Passes:
    total = Passes(0, 0)
    for equation in jaxpr.eqns:
        if equation.primitive is _output:
            size = math.prod(equation.outvars[0].aval.shape)
            backward = equation.params["of"] == "cotangent"
            total = _plus(total, Passes(0, size) if backward else Passes(size, 0))
            continue
        inner = [_count(program, branch) for program in probes.programs_of(equation)]
        if equation.primitive.name == "cond":
            inner = [branch(inner, key=lambda passes: passes.work)]
        for passes in inner:
            total = _plus(total, _times(passes, equation.params.get("length", 1)))
    return total


def _times(passes: Passes, count: float) -> Passes:
    return Passes(count * passes.forward, count * passes.backward)


def _plus(some: Passes, others: Passes) -> Passes:
    return Passes(some.forward + others.forward, some.backward + others.backward)


_output = core.Primitive("network_output")
_output.def_impl(lambda x, of: x)
_output.def_abstract_eval(lambda x, of: x)
mlir.register_lowering(_output, lambda context, x, of: [x])

# What marks the tangents, and the cotangents, of what is marked so.
_TANGENT = {"output": "tangent", "tangent": "tangent", "cotangent": "cotangent"}
_COTANGENT = {"output": "cotangent", "tangent": "cotangent", "cotangent": "tangent"}


def _jvp(primals: Any, tangents: Any, *, of: str) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    if not isinstance(tangent, ad.Zero):
        tangent = _output.bind(tangent, of=_TANGENT[of])
    return _output.bind(x, of=of), tangent


def _transpose(cotangent: Any, x: Any, *, of: str) -> list[Any]:
    del x
    if not isinstance(cotangent, ad.Zero):
        cotangent = _output.bind(cotangent, of=_COTANGENT[of])
    return [cotangent]


def _batch(args: Any, axes: Any, *, of: str) -> tuple[Any, Any]:
    return _output.bind(*args, of=of), axes[0]


ad.primitive_jvps[_output] = _jvp
ad.primitive_transposes[_output] = _transpose
batching.primitive_batchers[_output] = _batch
