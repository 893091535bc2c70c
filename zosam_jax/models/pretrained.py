"""Weights to start from: files of DeiT and ResNet-50 with the names of timm and transformers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.trees import Array, PyTree

Arrays: TypeAlias = Mapping[str, Any]

# The last layer, which starts anew where it is of another shape: for other classes.
HEAD = "head."
_SHOWN = 5

_TORCH_ENDINGS = (
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.mean$", ".running_mean"),
    (r"\.var$", ".running_var"),
)


class _Naming(NamedTuple):
    """How a library names what is here called otherwise: patterns, applied one after another.

    `prefixes` may stand before all names but the head's; a block's place in its stage is written as
    `block`, and `thirds` are what one array here is put together of.
    """

    library: str
    patterns: tuple[tuple[str, str], ...]
    prefixes: tuple[str, ...] = ("",)
    block: str | None = None
    thirds: tuple[str, str] | None = None


_NAMINGS = (
    _Naming(
        "timm",
        (
            (r"^class_token$", "cls_token"),
            (r"^positions$", "pos_embed"),
            (r"^patches\.", "patch_embed.proj."),
            (r"\.attention\.", ".attn."),
            (r"\.fc([12])\.", r".mlp.fc\1."),
        ),
    ),
    _Naming(
        "transformers",
        (
            (r"^class_token$", "embeddings.cls_token"),
            (r"^positions$", "embeddings.position_embeddings"),
            (r"^patches\.", "embeddings.patch_embeddings.projection."),
            (r"^norm\.", "layernorm."),
            (r"^blocks\.", "encoder.layer."),
            (r"\.norm1\.", ".layernorm_before."),
            (r"\.norm2\.", ".layernorm_after."),
            (r"\.attention\.proj\.", ".attention.output.dense."),
            (r"\.attention\.qkv\.", ".attention.attention.qkv."),
            (r"\.fc1\.", ".intermediate.dense."),
            (r"\.fc2\.", ".output.dense."),
            (r"^head\.", "classifier."),
        ),
        prefixes=("vit.", "deit."),
        thirds=("qkv", "query key value"),
    ),
    _Naming(
        "timm",
        (
            (r"^stem\.", "conv1."),
            (r"^stem_norm\.", "bn1."),
            (r"\.norm(\d)\.", r".bn\1."),
            (r"\.projection\.", ".downsample.0."),
            (r"\.projection_norm\.", ".downsample.1."),
            (r"^head\.", "fc."),
        ),
        block="layer{stage}.{place}.",
    ),
    _Naming(
        "transformers",
        (
            (r"^stem\.", "embedder.embedder.convolution."),
            (r"^stem_norm\.", "embedder.embedder.normalization."),
            *((rf"\.conv{n}\.", f".layer.{n - 1}.convolution.") for n in (1, 2, 3)),
            *((rf"\.norm{n}\.", f".layer.{n - 1}.normalization.") for n in (1, 2, 3)),
            (r"\.projection\.", ".shortcut.convolution."),
            (r"\.projection_norm\.", ".shortcut.normalization."),
            (r"^head\.", "classifier.1."),
        ),
        prefixes=("resnet.",),
        block="encoder.stages.{before}.layers.{place}.",
    ),
)


def read(path: Path) -> dict[str, Any]:
    """The arrays of a safetensors file, by name.

    Raises:
      ValueError: if it cannot be read.
      ModuleNotFoundError: if the library is missing, naming the extra that brings it.
    """
    if not path.is_file():
        raise ValueError(f"init={str(path)!r} is neither a file nor a run folder.")
    try:
        from safetensors.flax import load_file  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "weights in safetensors files take a library: pip install 'zosam_jax[finetune]'."
        ) from error
    try:
        found: dict[str, Any] = load_file(path)
    except Exception as error:  # of a type of its own
        raise ValueError(
            f"{path} is no safetensors file: {' '.join(str(error).split()):.300}"
        ) from error
    return found


def named(tree: PyTree) -> dict[str, Any]:
    """The floating-point arrays of (parameters, statistics), as in "blocks.0.conv1.kernel"."""
    leaves = jax.tree.leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)}


def _name(path: tuple[Any, ...]) -> str:
    """The name in a tree of parameters or statistics; the first step says which of the two."""
    return jax.tree_util.keystr(path[1:], simple=True, separator=".")


def fitted(arrays: Arrays, shapes: PyTree, source: str) -> tuple[dict[str, Array], str]:
    """Of some arrays those that a network starts from.

    Args:
      arrays: by the names of timm, transformers or this library.
      shapes: the network's parameters and statistics, or their shapes.
      source: what errors call the arrays.

    Returns:
      The arrays as the network has them, by its names, all but a head of another shape; and in
      words what was taken.

    Raises:
      ValueError: if some are missing or do not fit, naming them.
    """
    wanted = named(shapes)
    body = [name for name in wanted if not name.startswith(HEAD)]
    namings = (None, *_NAMINGS)
    translated = [_translated(arrays, wanted, naming) for naming in namings]
    best = max(range(len(namings)), key=lambda i: sum(n in translated[i] for n in body))
    found, naming = translated[best], namings[best]
    missing = [name for name in body if name not in found]
    if missing:
        raise ValueError(
            f"{source} lacks {_listed(missing)} of the network; it holds {_listed(list(arrays))}: "
            "names of timm, transformers or zosam_jax are expected, of the same kind of network."
        )
    other = {n: a for n, a in found.items() if a.shape != wanted[n].shape}
    unfit = [f"{n} {a.shape}, not {wanted[n].shape}" for n, a in other.items() if n in body]
    if unfit:
        raise ValueError(f"{source} does not fit the network: {_listed(unfit)}.")
    head = [name for name in wanted if name.startswith(HEAD)]
    anew = [name for name in head if name in other or name not in found]
    told = f"weights of {source}" + (f", by the names of {naming.library}" if naming else "")
    if anew:
        shown = [f"{n} {wanted[n].shape}" for n in head]
        told += f"; the head starts anew, {_listed(shown)}"
    return {n: a for n, a in found.items() if n not in head or not anew}, told


def replaced(tree: PyTree, arrays: Mapping[str, Array]) -> PyTree:
    """(parameters, statistics) with these arrays in the place of their own, by name."""
    return jax.tree_util.tree_map_with_path(lambda path, own: arrays.get(_name(path), own), tree)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _translated(arrays: Arrays, wanted: Arrays, naming: _Naming | None) -> dict[str, Array]:
    """Those of the arrays that have a name by this naming; ours for None."""
    if naming is None:
        return {name: jnp.asarray(arrays[name]) for name in wanted if name in arrays}
    places = _places(wanted)
    found = {}
    for name, own in wanted.items():
        theirs = _their_name(name, places, naming)
        parts = [theirs]
        if naming.thirds is not None and naming.thirds[0] in theirs:
            whole, split = naming.thirds
            parts = [theirs.replace(whole, part) for part in split.split()]
        for prefix in (*naming.prefixes, ""):
            keys = [prefix + part for part in parts]
            if all(key in arrays for key in keys):
                converted = [_converted(name, arrays[key], own.ndim) for key in keys]
                found[name] = jnp.concatenate(converted, axis=-1)
                break
    return found


def _their_name(name: str, places: Sequence[tuple[int, int]], naming: _Naming) -> str:
    block = re.match(r"^blocks\.(\d+)\.", name)
    if naming.block is not None and block is not None:
        stage, place = places[int(block[1])]
        start = naming.block.format(stage=stage, before=stage - 1, place=place)
        name = start + name[block.end() :]
    patterns = (*naming.patterns, *_TORCH_ENDINGS)
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def _places(wanted: Arrays) -> list[tuple[int, int]]:
    """Block → (stage, from 1, and place in it, from 0): a projection begins a stage."""
    count = len({name.split(".")[1] for name in wanted if name.startswith("blocks.")})
    places: list[tuple[int, int]] = []
    for block in range(count):
        stage, place = places[-1] if places else (0, 0)
        begins = not places or f"blocks.{block}.projection.kernel" in wanted
        places.append((stage + 1, 0) if begins else (stage, place + 1))
    return places


def _converted(name: str, array: Any, ndim: int) -> Array:
    """An array of PyTorch's as it stands here: kernels (…, in, out), no axes of one in front."""
    array = np.asarray(array, np.float32)
    if name.endswith("kernel"):
        return jnp.asarray(array.transpose(*range(2, array.ndim), 1, 0))
    extra = array.ndim - ndim
    leading = array.shape[: max(extra, 0)]
    return jnp.asarray(array.reshape(array.shape[extra:]) if set(leading) == {1} else array)
