"""What does the loss do nearby? Evaluates it at points along directions.

Three ways to run the same evaluations, equal in their numbers up to rounding:

- "unroll": written out one after another. Each step waits for the one before, so that the memory
  of one evaluation is enough, and the program grows with the number of probes.
- "vmap": all at once, with a copy of the parameters for each. Over the parameters of a
  convolution this becomes a grouped convolution, several times slower on a CPU.
- "map": a compiled loop. The program stays small; a convolution inside a loop loses XLA's fast
  path on a CPU.

"auto" writes them out, and takes the loop for many probes of a loss without convolutions; see
`benchmarks/step_cost.py` for the measurements behind the rule.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from zosam_jax import trees
from zosam_jax.errors import check_one_of, is_traced
from zosam_jax.trees import Array, Float, FloatTree, Int, PyTree

BATCHING = ("auto", "unroll", "vmap", "map")

# Written-out probes compile in a time that grows with their number; a loop's is constant.
_MANY_PROBES = 16

Loss: TypeAlias = Callable[[PyTree], Float[Array, ""]]


def check_batching(batching: str) -> None:
    """Raises a ValueError unless `batching` is one of BATCHING."""
    check_one_of("batching", batching, BATCHING)


def choose_batching(batching: str, loss: Loss, params: PyTree, evaluations: int | Array) -> str:
    """Settles "auto" for this loss and this number of evaluations.

    A number of evaluations that is traced (a tuned hyperparameter, say) leaves only the loop.
    """
    if is_traced(evaluations):
        return "map"
    if batching != "auto":
        return batching
    if evaluations < _MANY_PROBES or contains_convolution(loss, params):
        return "unroll"
    return "map"


def contains_convolution(loss: Loss, params: PyTree) -> bool:
    """Whether the program of `loss` convolves anything, looked up in its jaxpr."""
    return _has_primitive(jax.make_jaxpr(loss)(params).jaxpr, "conv_general_dilated")


def _has_primitive(jaxpr: Any, name: str) -> bool:
    return any(
        equation.primitive.name == name
        or any(_has_primitive(inner, name) for inner in programs_of(equation))
        for equation in jaxpr.eqns
    )


def programs_of(equation: Any) -> Iterator[Any]:
    """The programs that an equation runs: a loop's body, a cond's branches, a call's function."""
    for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
        program = getattr(value, "jaxpr", value)
        if hasattr(program, "eqns"):
            yield program


def in_precision(
    loss: Callable[..., Any], dtype: jax.typing.DTypeLike
) -> Callable[..., Float[Array, ""]]:
    """A `probe_fn` that computes a loss in another precision, and returns it in float32.

        probe_fn = probes.in_precision(loss, jnp.bfloat16)

    Floating-point parameters and arguments are cast to it; auxiliary output is dropped. Below
    float32 differences need a δ of 3e-3 to 1e-2, else they drown in rounding.

    Args:
      loss: (params, *args, **kwargs) → scalar, or → (scalar, aux).
      dtype: a floating-point dtype.

    Returns:
      A function of the same arguments that returns a float32 scalar.
    """

    def cast(x: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return jnp.asarray(x, dtype) if floating else x

    @functools.wraps(loss)
    def in_dtype(*args: Any, **kwargs: Any) -> Float[Array, ""]:
        args, kwargs = jax.tree.map(cast, (args, kwargs))
        result = loss(*args, **kwargs)
        value = result[0] if isinstance(result, tuple) else result
        return jnp.asarray(value, jnp.float32)

    return in_dtype


def along(
    loss: Loss,
    params: FloatTree,
    direction: FloatTree,
    steps: Sequence[float | Float[Array, ""]],
    batching: str,
) -> Float[Array, " steps"]:
    """L(θ + t·u) for each step t, in float32 or wider; `batching` is settled."""

    def at(step: Float[Array, ""]) -> Float[Array, ""]:
        return loss(trees.displace(params, direction, step))

    if batching == "unroll":
        losses: list[Array] = []
        for step in steps:
            # Two at a time: one by itself leaves threads idle, all at once take the memory of all.
            if losses and len(losses) % 2 == 0:
                params, _ = jax.lax.optimization_barrier((params, losses[-1]))
            losses.append(at(jnp.asarray(step)))
        return jnp.stack(losses)
    values = jnp.stack([jnp.asarray(step) for step in steps])
    return jax.vmap(at)(values) if batching == "vmap" else jax.lax.map(at, values)


def mean(
    term: Callable[[Int[Array, ""]], FloatTree], count: int | Array, batching: str
) -> FloatTree:
    """(1/count) Σᵢ term(i) for i = 0, …, count − 1; "vmap" alone keeps the terms.

    `count` is traced only where `batching` is "map".
    """
    if batching == "vmap":
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.vmap(term)(jnp.arange(count)))
    if batching == "map":
        shapes = jax.eval_shape(term, jnp.asarray(0))
        zero = jax.tree.map(jnp.zeros_like, shapes)
        total = jax.lax.fori_loop(0, count, lambda i, acc: _add(acc, term(i)), zero)
    else:
        total = term(jnp.asarray(0))
        for i in range(1, count):
            total = _add(total, term(after(total, jnp.asarray(i))))
        if count == 1:
            return total
    return trees.scale(total, 1.0 / count)


def after(tree: FloatTree, index: Int[Array, ""]) -> Int[Array, ""]:
    """The index, as a value that cannot be known before all of `tree` is.

    Terms would otherwise be free to start together and all be alive at once, since XLA drops its
    optimization barriers before it schedules. A NaN shifts the index, of a term in a sum that is
    NaN already.
    """
    everything = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))
    return index + jnp.isnan(everything).astype(index.dtype)


def _add(a: FloatTree, b: FloatTree) -> FloatTree:
    return jax.tree.map(jnp.add, a, b)
