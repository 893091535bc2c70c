"""Low-rank adapters (LoRA): a small set of weights in which a large network is fine-tuned."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zosam_jax.errors import check_count
from zosam_jax.trees import PyTree

#: Which layers adapt: (name, as in "blocks.0.attention.qkv") → bool.
Where = Callable[[str], bool]


def in_blocks(name: str) -> bool:
    """The default choice: attention and feed-forward layers, not the head or the pooler."""
    return "blocks." in name


def add_adapters(
    model: nnx.Module, rank: int, *, where: Where = in_blocks, rngs: nnx.Rngs
) -> list[str]:
    """Puts x·A·B beside chosen linear layers, in place; B is 0 at first, so that nothing changes.

        add_adapters(model, 4, rngs=nnx.Rngs(0))
        optimizer = Optimizer(model, tx, wrt=nnx.LoRAParam)    # trains the adapters alone
        ...
        merge_adapters(model)

    With wrt=nnx.Param all weights are trained; `adapter_mask` then keeps perturbations within the
    adapters.

    Args:
      model: any Flax NNX module with nnx.Linear layers.
      rank: the columns of A (in, rank) and the rows of B (rank, out).
      where: which layers.
      rngs: for A, which is uniform as nnx.LoRA makes it.

    Returns:
      The names of the layers.

    Raises:
      ValueError: if none is chosen, or a rank is no smaller than its layer.

    Reference: Hu et al., LoRA, https://arxiv.org/abs/2106.09685 (here without its factor α/r)
    """
    check_count("rank", rank)
    layers = _children(model, nnx.Linear)
    chosen = [name for name in layers if where(name)]
    if not chosen:
        raise ValueError(
            "where chooses no linear layer of the model, which has "
            f"{', '.join(list(layers)[:4]) or 'none'}."
        )
    for name in chosen:
        owner, key = layers[name]
        layer = getattr(owner, key)
        if rank >= min(layer.kernel.shape):
            raise ValueError(
                f"rank={rank} must be below {min(layer.kernel.shape)}, the smaller width of {name}."
            )
        sizes = (layer.in_features, rank, layer.out_features)
        setattr(owner, key, nnx.LoRA(*sizes, base_module=layer, dtype=layer.dtype, rngs=rngs))
    return chosen


def merge_adapters(model: nnx.Module) -> None:
    """Adds each A·B to its layer's kernel, in place, and leaves the adapters out.

    Raises:
      ValueError: if the model has none.
    """
    adapters = _children(model, nnx.LoRA)
    if not adapters:
        raise ValueError("model has no adapters to merge; add_adapters puts them in.")
    for owner, key in adapters.values():
        adapter = getattr(owner, key)
        layer = adapter.base_module
        low_rank = jnp.matmul(adapter.lora_a[...], adapter.lora_b[...], precision="highest")
        layer.kernel[...] += low_rank.astype(layer.kernel.dtype)
        setattr(owner, key, layer)


def adapter_mask(params: PyTree) -> PyTree:
    """True for the arrays of adapters, else False: a mask= of any transformation of this library.

    tx = optax.chain(zosam_jax.mezo(mask=adapter_mask), optax.sgd(1e-3))
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "lora_" in jax.tree_util.keystr(path), params
    )


def _children(model: nnx.Module, kind: type[Any]) -> dict[str, tuple[Any, str]]:
    """Where layers of a kind stand, by their names: in which module, as which attribute."""
    return {
        ".".join(map(str, (*path, key))): (module, key)
        for path, module in nnx.iter_modules(model)
        for key, child in vars(module).items()
        if isinstance(child, kind)
    }
