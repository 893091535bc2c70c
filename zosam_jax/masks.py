"""Masks say which weights exist: a pytree of 1/0 or bool leaves like the parameters.

None stands for "dense", for a whole tree or for any part of it. Masks are never guessed from
zeros in the parameters; they are passed as arguments.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from zosam_jax import shardings, trees
from zosam_jax.errors import is_traced
from zosam_jax.trees import Array, Bool, Int, PyTree, Shaped, T

#: What `resolve` returns: bool leaves of the parameters' shapes, None for "all of it".
Resolved: TypeAlias = PyTree[Bool[Array, "..."]] | None


def resolve(mask: PyTree | Callable[[PyTree], PyTree] | None, params: PyTree) -> Resolved:
    """Checks a mask against the parameters and fills it out to their structure.

    Args:
      mask: a pytree like `params`, or a function of `params` that returns one, or None. A leaf is
        a 1/0 or bool array of the parameter's shape, or a scalar or None for a whole subtree. What
        is of the parameters' own type is a pytree, even where that can be called (a module). In
        a traced mask, whose values cannot be looked at, all that is not 0 is kept, NaN too.
      params: the parameters.

    Returns:
      None for a dense mask, else a pytree with a bool array of the parameter's shape, or None for
      "all of it", at every leaf of `params`.

    Raises:
      ValueError: if structure or shape do not fit, or a value is neither 0 nor 1, naming the leaf.
      TypeError: if a leaf is neither bool nor a real number.
    """
    if callable(mask) and type(mask) is not type(params):
        mask = mask(params)
    if mask is None:
        return None
    try:
        pairs = jax.tree_util.tree_map_with_path(
            lambda path, m, subtree: jax.tree_util.tree_map_with_path(
                lambda sub_path, p: _resolve_leaf((*path, *sub_path), m, p), subtree
            ),
            mask,
            params,
            is_leaf=lambda x: x is None,
        )
    except ValueError as error:
        if str(error).startswith("mask"):
            raise
        raise ValueError(
            f"mask has the leaves {_paths(mask)}, the parameters have {_paths(params)}: give one "
            "leaf for each parameter, with None where all weights are kept."
        ) from error
    return pairs


def _paths(tree: PyTree, shown: int = 4) -> str:
    """The names of the first leaves of a tree."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    names = [jax.tree_util.keystr(path) or "(the tree itself)" for path, _ in found]
    rest = [f"{len(names) - shown} more"] if len(names) > shown else []
    return ", ".join([*names[:shown], *rest]) or "(none)"


def _resolve_leaf(path: tuple[Any, ...], mask: Any, param: Array) -> Array | None:
    if mask is None:
        return None
    name = f"mask{jax.tree_util.keystr(path)}"
    if not isinstance(mask, bool | int | float | np.ndarray | np.generic | jax.Array):
        raise TypeError(f"{name} is {mask!r}; it must be a bool or 1/0 array, a scalar or None.")
    _check_values(name, mask)
    if jnp.ndim(mask) == 0:
        whole = jnp.broadcast_to(jnp.asarray(mask).astype(bool), jnp.shape(param))
        return shardings.like(whole, param)
    if jnp.shape(mask) != jnp.shape(param):
        raise ValueError(
            f"{name} has the shape {jnp.shape(mask)}, its parameter has {jnp.shape(param)}; "
            "they must be equal."
        )
    return shardings.like(jnp.asarray(mask).astype(bool), param)


def _check_values(name: str, mask: Any) -> None:
    """Raises for a mask of anything but 0 and 1; of a traced one only the dtype is known."""
    dtype = jnp.result_type(mask)
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating)):
        raise TypeError(f"{name} is {dtype}; it must be bool, or 1 and 0.")
    if dtype == jnp.bool_ or is_traced(mask):
        return
    with jax.ensure_compile_time_eval():  # a known mask may be met while a step is traced
        values = jnp.ravel(jnp.asarray(mask))
        wrong = (values != 0) & (values != 1)
        if bool(wrong.any()):
            value = values[jnp.argmax(wrong)]
            raise ValueError(f"{name} holds {value}; a mask is 1 where a weight is kept, else 0.")


def leaves(tree: PyTree, params: PyTree) -> list[Any]:
    """What a (resolved) tree holds for each leaf of `params`; all None for None."""
    structure: Any = jax.tree.structure(params)
    if tree is None or structure.num_leaves == 0:
        return [None] * structure.num_leaves
    return list(structure.flatten_up_to(tree))


@functools.cache
def _placeholder() -> type:
    given: list[Any] = []
    optax.tree.map_params(given.append, lambda x: x, None)
    return type(given[0])


def is_placeholder(params: PyTree) -> bool:
    """Whether they stand for any parameters: optax.tree.map_params gives such to `init`."""
    return isinstance(params, _placeholder())


def restrict(
    tree: PyTree[Shaped[ArrayLike, "..."], "T"], mask: Resolved
) -> PyTree[Shaped[ArrayLike, "..."], "T"]:
    """`tree` where the (resolved) mask is 1, exactly 0 elsewhere, even over NaN."""
    if mask is None:
        return tree
    return jax.tree.map(
        lambda x, m: x if m is None else jnp.where(m, x, jnp.zeros((), jnp.result_type(x))),
        tree,
        mask,
    )


def both(one: Resolved, other: Resolved) -> Resolved:
    """What both of two (resolved) masks keep."""
    if one is None or other is None:
        return other if one is None else one
    return jax.tree.map(
        lambda a, b: b if a is None else a if b is None else a & b,
        one,
        other,
        is_leaf=lambda x: x is None,
    )


# A layer that is called so is a normalization, whatever its parameters are called.
_NORMALIZATION = re.compile(r"norm(alization)?($|[_\d])|^(bn|ln)(\d*|_\w+)$", re.IGNORECASE)
_SHIFTS_AND_SCALES = ("scale", "bias", "weight", "gamma", "beta", "offset")


def normalization(params: PyTree) -> PyTree:
    """A mask of the scales and shifts of normalization layers: BatchNorm's γ and β, LayerNorm's.

        zosam_jax.sam(0.5, mask=zosam_jax.masks.normalization)

    Found by names, of Flax NNX, Linen, Equinox and others: a layer's parameters are those of a
    normalization if one of them is called "scale", or "weight" and has one axis at most, or if the
    layer is called norm, bn or ln, as in "layer_norm_1", "ln_f" and "BatchNorm_0".

    Args:
      params: the parameters.

    Returns:
      A pytree like them, of True and False.

    Raises:
      ValueError: where there is none.
    """
    paths, structure = jax.tree.flatten_with_path(params)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        for path, _ in paths
    ]
    # (layer, parameter, the array), of "blocks.0.norm1.scale" for example
    arrays = [
        (*name.rpartition(".")[::2], leaf) for name, (_, leaf) in zip(names, paths, strict=True)
    ]
    layers = {
        layer
        for layer, name, leaf in arrays
        if name == "scale"
        or (name == "weight" and jnp.ndim(leaf) <= 1)
        or _NORMALIZATION.search(layer.rpartition(".")[2])
    }
    found = [layer in layers and name in _SHIFTS_AND_SCALES for layer, name, _ in arrays]
    if not any(found):
        raise ValueError(
            "masks.normalization finds no scale or shift of a normalization layer among the "
            f"parameters {_paths(params)}."
        )
    return jax.tree.unflatten(structure, found)


def straight_through(params: PyTree, mask: Resolved, dormant: PyTree = None) -> PyTree:
    """params ⊙ mask, differentiated as if it were params: gradients reach pruned weights.

    These have the values `dormant`, a tree like the parameters, or zero.
    """
    if mask is None:
        return params

    def leaf(p: Array, m: Array | None, d: Array | None) -> Array:
        if m is None:
            return p
        through = p - jax.lax.stop_gradient(p)
        return jnp.where(m, p, through if d is None else d + through)

    none = jax.tree.map(lambda _: None, params)
    return jax.tree.map(leaf, params, mask, none if dormant is None else dormant)


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    """params ⊙ masks: pruned weights become exactly 0, everything else stays as it is.

    Args:
      params: the parameters, or anything shaped like them.
      masks: a pytree like `params` with 1/0 or bool leaves; None where all weights are kept.
    """
    return restrict(params, resolve(masks, params))


def get_masks(state: PyTree) -> PyTree:
    """The masks that a sparse wrapper keeps in an optimizer state.

    Raises:
      ValueError: if no sparse wrapper is in the state.
    """
    found = find_masks(state)
    if len(found) != 1:
        raise ValueError(
            f"the optimizer state holds {len(found)} sets of masks, expected one: wrap the "
            "optimizer once, for example in zosam_jax.sparsity.fixed(tx, masks)."
        )
    return found[0]


def find_masks(state: PyTree) -> list[PyTree]:
    """As `get_masks`, of all sparse wrappers in the state."""
    # A parameter may be called "masks" as well; only a field of a state is meant.
    found = optax.tree.get_all_with_path(
        state,
        "masks",
        filtering=lambda path, _: isinstance(path[-1], optax.tree_utils.NamedTupleKey),
    )
    return [masks for _, masks in found]


def count_kept(params: PyTree, mask: Resolved) -> int | Int[Array, ""]:
    """The number of coordinates that the (resolved) mask keeps; a Python int if none is traced."""
    if mask is None:
        return trees.size(params)
    kept = jax.tree.map(lambda p, m: jnp.size(p) if m is None else _sum(m), params, mask)
    return sum(jax.tree.leaves(kept))


def _sum(mask: Bool[Array, "..."]) -> int | Int[Array, ""]:
    return jnp.sum(mask) if is_traced(mask) else int(np.sum(np.asarray(mask)))


def sparsity_of(masks: PyTree, params: PyTree) -> float:
    """The fraction of zeros among the weights that `masks` covers (leaves that are not None)."""
    resolved = resolve(masks, params)
    covered = [m for m in jax.tree.leaves(resolved) if m is not None]
    total = sum(m.size for m in covered)
    return 1.0 - sum(int(_sum(m)) for m in covered) / total if total else 0.0
