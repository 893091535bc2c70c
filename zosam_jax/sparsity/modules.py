"""Flax NNX modules as functions of their arrays, and of other widths; Flax is imported if used."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from zosam_jax.trees import PyTree


def is_nnx(value: Any) -> bool:
    """Whether it is a Flax NNX module; Flax has been imported then."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Module)


def as_function(model: Any) -> tuple[Callable[..., Any], PyTree]:
    """(params, *args) → model(*args) in inference mode, and its arrays, statistics among them."""
    from flax import nnx  # noqa: PLC0415 (an extra)

    model = nnx.clone(model)
    model.eval()
    parts: tuple[Any, ...] = nnx.split(model, nnx.RngState, ...)
    graphdef, random, rest = parts

    def function(params: PyTree, *args: Any) -> Any:
        return nnx.merge(graphdef, random, params, copy=True)(*args)

    return function, nnx.as_pure(rest)


def arrays(model: Any, *, together: bool = False) -> Any:
    """A module's parameters (nnx.Param) and all its other arrays; or one tree of both."""
    from flax import nnx  # noqa: PLC0415 (an extra)

    filters = (...,) if together else (nnx.Param, ...)
    _, *parts = nnx.split(model, *filters)
    trees = [nnx.as_pure(part) for part in parts]
    return trees[0] if together else trees


def of_widths(model: Any, trees: Sequence[PyTree]) -> Any:
    """A new module with these arrays, as `arrays` takes them from a wider one."""
    from flax import nnx  # noqa: PLC0415 (an extra)

    return as_wide_as_its_arrays(nnx.merge(nnx.graphdef(model), *trees, copy=True))


def as_wide_as_its_arrays(model: Any) -> Any:
    """The module, whose layers, Flax's own, are told the widths that their arrays have."""
    from flax import nnx  # noqa: PLC0415 (an extra)

    for _, module in nnx.iter_modules(model):
        for layer, widths in _widths(nnx).items():
            if isinstance(module, layer):
                for name, value in widths(module).items():
                    setattr(module, name, value)
    return model


def _widths(nnx: Any) -> dict[type, Callable[[Any], dict[str, Any]]]:
    """For each of Flax's layers the attributes that follow from its arrays' shapes."""

    def dense(layer: Any) -> dict[str, Any]:
        width, features = layer.kernel.shape
        return {"in_features": width, "out_features": features}

    def general(layer: Any) -> dict[str, Any]:
        shape, made = layer.kernel.shape, len(layer.out_features)
        return {
            "in_features": shape[len(shape) - made - len(layer.in_features) : len(shape) - made],
            "out_features": shape[len(shape) - made :],
        }

    def convolution(layer: Any) -> dict[str, Any]:
        shape = layer.kernel.shape
        # Whole groups of a grouped convolution go, none becomes smaller.
        groups = layer.feature_group_count
        groups = groups if groups == 1 else shape[-1] * groups // layer.out_features
        return {
            "kernel_shape": shape,
            "in_features": shape[-2] * groups,
            "out_features": shape[-1],
            "feature_group_count": groups,
        }

    def transposed(layer: Any) -> dict[str, Any]:
        shape = layer.kernel.shape
        width, features = shape[:-3:-1] if layer.transpose_kernel else shape[-2:]
        return {"kernel_shape": shape, "in_features": width, "out_features": features}

    def einsum(layer: Any) -> dict[str, Any]:
        bias = None if layer.bias is None else layer.bias.shape
        return {"kernel_shape": layer.kernel.shape, "bias_shape": bias}

    def normalization(layer: Any) -> dict[str, Any]:
        arrays = [getattr(layer, name, None) for name in ("mean", "scale", "bias")]
        widths = [array.shape[0] for array in arrays if array is not None]
        return {"num_features": widths[0]} if widths else {}

    def grouped(layer: Any) -> dict[str, Any]:
        widths = [array.shape[0] for array in (layer.scale, layer.bias) if array is not None]
        return {"num_groups": widths[0] // layer.group_size} if widths else {}

    def embedding(layer: Any) -> dict[str, Any]:
        rows, features = layer.embedding.shape
        return {"num_embeddings": rows, "features": features}

    def attention(layer: Any) -> dict[str, Any]:
        width, heads, head_dim = layer.query.kernel.shape
        kv_width, kv_heads, _ = layer.key.kernel.shape
        return {
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "qkv_features": heads * head_dim,
            "in_features": width,
            "in_kv_features": kv_width,
            "out_features": layer.out.kernel.shape[-1],
        }

    return {
        nnx.Linear: dense,
        nnx.LinearGeneral: general,
        nnx.Conv: convolution,
        nnx.ConvTranspose: transposed,
        nnx.Einsum: einsum,
        nnx.BatchNorm: normalization,
        nnx.LayerNorm: normalization,
        nnx.RMSNorm: normalization,
        nnx.InstanceNorm: normalization,
        nnx.GroupNorm: grouped,
        nnx.Embed: embedding,
        nnx.MultiHeadAttention: attention,
    }
