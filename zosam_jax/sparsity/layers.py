"""Which parameters are masked: picking their arrays out of a tree, and putting results back."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from zosam_jax import masks as mask_trees
from zosam_jax.trees import Array, PyTree, Shaped

Where: TypeAlias = Callable[[str, Shaped[Array, "..."]], bool] | str


def is_weight(path: str, leaf: Array) -> bool:
    """The default choice of what to mask: floating-point arrays of two dimensions or more.

    That takes the kernels of dense and convolutional layers and leaves biases and the scales of
    normalisations dense. It also takes embeddings; `where` says otherwise.
    """
    del path
    return jnp.ndim(leaf) >= 2 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def is_scale(path: str, leaf: Array) -> bool:
    """BatchNorm's γ, and what else is called "scale": the coefficients of network slimming."""
    name = path.removesuffix(".value")  # of a variable of Flax NNX
    is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return is_float and name.endswith(("['scale']", ".scale"))


class Layers(NamedTuple):
    """The masked arrays among the leaves of a tree."""

    structure: Any  # the parameters' tree structure
    indices: tuple[int, ...]  # which of its leaves are masked
    paths: tuple[str, ...]  # their names, as in "['Dense_0']['kernel']"

    def take(self, tree: PyTree) -> list[Any]:
        """The masked leaves of a tree with the parameters' structure; of any where none are."""
        leaves = self.structure.flatten_up_to(tree) if self.indices else []
        return [leaves[i] for i in self.indices]

    def replace(self, tree: PyTree, values: Sequence[Any]) -> PyTree:
        """The tree with these values at the masked leaves."""
        leaves = list(self.structure.flatten_up_to(tree))
        for i, value in zip(self.indices, values, strict=True):
            leaves[i] = value
        return jax.tree.unflatten(self.structure, leaves)

    def fill(self, values: Sequence[Any]) -> PyTree:
        """A tree with these values at the masked leaves and None everywhere else."""
        nothing = jax.tree.unflatten(self.structure, [None] * self.structure.num_leaves)
        return self.replace(nothing, values)


def select(params: PyTree, where: Where = is_weight) -> Layers:
    """The layers that `where` chooses; a regular expression does so among those of `is_weight`."""
    chosen = chooser(where)
    pairs = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(params)]
    indices = tuple(i for i, (path, leaf) in enumerate(pairs) if chosen(path, leaf))
    if not indices:
        shown = ", ".join(path for path, _ in pairs[:4]) + (", …" if len(pairs) > 4 else "")
        pattern = f" by {where!r}" if isinstance(where, str) else ""
        raise ValueError(f"where= finds no parameter to mask{pattern}; there are: {shown}.")
    return Layers(jax.tree.structure(params), indices, tuple(pairs[i][0] for i in indices))


def masked_by(masks: mask_trees.Resolved, params: PyTree) -> Layers:
    """The layers that a (resolved) tree of masks covers; none for None."""
    leaves = mask_trees.leaves(masks, params)
    indices = tuple(i for i, mask in enumerate(leaves) if mask is not None)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    return Layers(jax.tree.structure(params), indices, tuple(paths[i] for i in indices))


def chooser(where: Where) -> Callable[[str, Array], bool]:
    """`where` as a function of path and array."""
    if not isinstance(where, str):
        return where
    compiled = re.compile(where)
    return lambda path, leaf: is_weight(path, leaf) and compiled.search(path) is not None
