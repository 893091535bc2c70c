"""Arithmetic on pytrees of parameters, in float32 or wider where rounding matters.

The names of annotations have their home here too: jaxtyping's, which the tests check as the
functions run, or stand-ins for Any where it is not installed. Arguments that a function checks
itself, numbers and choices above all, are left to the function, whose sentence says more.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Array: TypeAlias = jax.Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Integer, Key, Num, PyTree, Shaped, UInt8, UInt32

    FloatTree: TypeAlias = PyTree[Float[Array, "..."]]
else:
    try:
        from jaxtyping import Bool, Float, Int, Integer, Key, Num, PyTree, Shaped, UInt8, UInt32
    except ModuleNotFoundError:

        class Bool:
            """An array of some dtype and shape, or a tree: any value."""

            def __class_getitem__(cls, item: object) -> object:
                """Any, whatever the dtype and shape."""
                return Any

        Float = Int = Integer = Key = Num = PyTree = Shaped = UInt8 = UInt32 = Bool
    #: Floating-point arrays; twice in a signature it says that the two trees are alike.
    FloatTree = PyTree[Float[Array, "..."], "T"]

__all__ = [
    "Array",
    "Bool",
    "Float",
    "FloatTree",
    "Int",
    "Integer",
    "Key",
    "Num",
    "PyTree",
    "Shaped",
    "T",
    "UInt8",
    "UInt32",
    "accepting_shapes",
    "displace",
    "inner",
    "norm",
    "ratio",
    "scale",
    "size",
    "split_floating",
    "wide_dtype",
]

#: The structure of a tree: PyTree[..., "T"] twice in a signature says that the two have the same.
T = TypeVar("T")


def wide_dtype(leaf: ArrayLike) -> jnp.dtype:
    """The dtype to compute in for `leaf`: its own, but never narrower than float32."""
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        dtype = jnp.dtype(jnp.float32)  # float8 has no promotion in jax
    return jnp.promote_types(dtype, jnp.float32)


def _wide(leaf: ArrayLike) -> Array:
    return jnp.asarray(leaf, wide_dtype(leaf))


def norm(tree: PyTree[Num[ArrayLike, "..."]]) -> Float[Array, ""]:
    """The Euclidean norm ‖x‖₂ over all leaves, summed in float32 or wider."""
    squares = [jnp.sum(jnp.square(_wide(leaf))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))


def inner(
    a: PyTree[Num[ArrayLike, "..."], "T"], b: PyTree[Num[ArrayLike, "..."], "T"]
) -> Float[Array, ""]:
    """⟨a, b⟩ over all leaves, summed in float32 or wider."""
    products = jax.tree.map(lambda x, y: jnp.sum(_wide(x) * _wide(y)), a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), jnp.float32))


def ratio(numerator: Float[Array, "#*n"], length: Float[Array, "#*n"]) -> Float[Array, "*n"]:
    """numerator / length, or 0 where the quotient means nothing."""
    quotient = numerator / jnp.where(length > 0, length, 1.0)
    return jnp.where((length > 0) & jnp.isfinite(quotient), quotient, 0.0)


def size(tree: PyTree) -> int:
    """The number of coordinates in all leaves."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))


def displace(
    params: PyTree[Float[ArrayLike, "?*s"], "T"],
    direction: PyTree[Float[ArrayLike, "?*s"], "T"],
    step: Float[ArrayLike, ""] = 1.0,
) -> PyTree[Float[Array, "?*s"], "T"]:
    """params + step·direction, computed wide and rounded once to each parameter's dtype."""

    def leaf(p: ArrayLike, u: ArrayLike) -> Array:
        wide = wide_dtype(p)
        moved: Array = _wide(p) + jnp.asarray(step, wide) * jnp.asarray(u, wide)
        return moved.astype(jnp.result_type(p))

    return jax.tree.map(leaf, params, direction)


def scale(
    tree: PyTree[Shaped[ArrayLike, "..."], "T"], factor: Shaped[ArrayLike, ""]
) -> PyTree[Shaped[Array, "..."], "T"]:
    """factor·tree, leaf by leaf, each leaf's dtype kept."""
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), tree)


def refuse_keys(params: PyTree) -> None:
    """Raises a TypeError for a random key among the parameters, to which nothing can be added."""
    for path, leaf in jax.tree.leaves_with_path(params):
        # A placeholder for a leaf has no dtype.
        if jnp.issubdtype(getattr(leaf, "dtype", bool), jax.dtypes.prng_key):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is a random key, on which no optimizer can "
                "take a step: keep it outside the parameters and pass it to the loss as an "
                "argument."
            )


def accepting_shapes(init: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
    """`init`, which makes of parameters' shapes (jax.ShapeDtypeStruct) the shapes of the state."""

    def of_either(params: PyTree) -> PyTree:
        is_abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))
        return jax.eval_shape(init, params) if is_abstract else init(params)

    return of_either


def split_floating(params: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Separates the leaves that can be perturbed and differentiated from the others.

    Returns:
      The same tree of jax's arrays, with None in place of every leaf that is not floating point
      (counters, keys, index tables), and a function that puts those leaves back.

    Raises:
      TypeError: for a complex leaf, whose steepest ascent needs a conjugate that nothing here
        applies.
    """
    leaves, structure = jax.tree.flatten(params)
    for path, leaf in jax.tree.leaves_with_path(params):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}; sharpness-aware "
                "ascents are defined for real parameters: split it into real and imaginary parts "
                "(optax.contrib.split_real_and_imaginary)."
            )
    floating = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
    # NumPy's arrays and Python's numbers are parameters too, of jax's arrays from here on.
    arrays = [
        jnp.asarray(leaf) if is_float else None
        for leaf, is_float in zip(leaves, floating, strict=True)
    ]
    if all(floating):
        return jax.tree.unflatten(structure, arrays), lambda tree: tree

    def merge(tree: PyTree) -> PyTree:
        kept = iter(jax.tree.leaves(tree))
        return jax.tree.unflatten(
            structure,
            [
                next(kept) if is_float else leaf
                for leaf, is_float in zip(leaves, floating, strict=True)
            ],
        )

    return jax.tree.unflatten(structure, arrays), merge
