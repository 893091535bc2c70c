"""Feature maps: the outputs of the layers of Flax NNX modules for an image.

Flax linen does it by itself: `model.apply(variables, images, capture_intermediates=True,
mutable="intermediates")`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from zosam_jax.trees import Array, Float, PyTree


def feature_maps(
    model: nnx.Module,
    images: Float[Array | np.ndarray, "n *shape"],
    layers: str | Sequence[str],
) -> dict[str, PyTree[Float[Array, "n ..."]]]:
    r"""The outputs of a model's submodules, in inference mode; the model stays as it is.

    Args:
      model: takes images and nothing else.
      images: (N, height, width, channels), as the model takes them (normalised).
      layers: paths such as "stem" or "blocks.2.conv1", or regular expressions that match whole
        paths, as r"blocks\.\d+" does; one or several.

    Returns:
      path → output, sorted by path, 10 after 9: (N, height, width, channels) from convolutions and
      residual blocks, (N, tokens, features) from transformers' blocks. Of a module that is called
      several times it is the last call's.

    Raises:
      ValueError: for a path or expression that no module with an output has.
    """
    patterns = [layers] if isinstance(layers, str) else list(layers)
    graphdef, state = nnx.split(model)

    @jax.jit
    def outputs(state: PyTree, images: Float[Array | np.ndarray, "n *shape"]) -> dict[str, PyTree]:
        copy = nnx.merge(graphdef, state, copy=True)
        copy.eval()
        capture = nnx.capture(copy, nnx.Intermediate, method_outputs=nnx.Intermediate)
        found = _by_path(capture(images)[1])
        return {path: found[path] for path in _chosen(patterns, found)}

    maps: dict[str, PyTree] = outputs(state, images)
    return {path: maps[path] for path in sorted(maps, key=_natural)}


def shallow_middle_deep(model: nnx.Module) -> tuple[str, str, str]:
    """The paths of the first, the middle and the last block: three depths for `feature_maps`.

    Args:
      model: one with a list of `blocks`.

    Returns:
      Three paths, the shallowest first.

    Raises:
      ValueError: for a model without three blocks.
    """
    count = len(getattr(model, "blocks", ()))
    if count < 3:
        raise ValueError(
            f"model={type(model).__name__} has {count} blocks, fewer than three: name the layers "
            "yourself."
        )
    return "blocks.0", f"blocks.{count // 2}", f"blocks.{count - 1}"


def _by_path(captured: Any) -> dict[str, PyTree]:
    """What each submodule returned, under its path; the model's own output is none of them."""
    return {
        ".".join(map(str, path[:-1])): calls.get_value()[-1]
        for path, calls in nnx.to_flat_state(captured)
        if path[-1] == "__call__" and len(path) > 1
    }


def _chosen(patterns: Iterable[str], paths: Iterable[str]) -> list[str]:
    """The paths that any of the expressions matches, each of which must match one."""
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matching = [path for path in paths if re.fullmatch(pattern, path)]
        if not matching:
            raise ValueError(f"layers={pattern!r} matches no layer; there are: {', '.join(paths)}.")
        chosen.update(dict.fromkeys(matching))
    return list(chosen)


def _natural(path: str) -> list[tuple[int, str]]:
    """A sorting key by which 10 comes after 9."""
    return [(int(part) if part.isdigit() else -1, part) for part in path.split(".")]
