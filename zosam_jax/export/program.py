"""What is exported: a trained network as one function, from pixels to probabilities."""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from zosam_jax.training.problem import Network, Problem
from zosam_jax.trees import Array

# The names of a program's argument and of its result.
IMAGES = "images"


class Program:
    """A network with what is done to images before it and to logits after it.

    Attributes:
      image: shape and dtype of one image, uint8 pixels or, if raw, what the network takes.
      output: "probabilities" or "logits".
      arrays: the network's arrays by name, without random keys.
      metadata: what someone who uses the program has to know, in words.
    """

    def __init__(
        self, problem: Problem, network: Network, *, logits: bool = False, raw: bool = False
    ) -> None:
        """Puts the program together; nothing is compiled yet.

        Args:
          problem: of the network.
          network: its arrays.
          logits: whether the function ends before the softmax.
          raw: whether it begins after the scaling of pixels.
        """
        self._problem, self._raw = problem, raw
        info = problem.feed.info
        self.image = jax.ShapeDtypeStruct(info.image_shape, jnp.float32 if raw else jnp.uint8)
        self.output = "logits" if logits else "probabilities"
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(network._asdict())
        self._leaves = {_name(path): leaf for path, leaf in leaves}
        self.arrays: dict[str, npt.NDArray[Any]] = {
            name: np.asarray(leaf)
            for name, leaf in self._leaves.items()
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        }
        mean, sd = (" ".join(map(repr, values)) for values in (info.pixel_mean, info.pixel_sd))
        self.metadata = {
            "model": problem.config.model,
            "dataset": problem.config.dataset,
            "input": f"{self.image.dtype} [batch, {', '.join(map(str, self.image.shape))}]",
            "output": f"float32 [batch, {info.num_classes}], {self.output}",
            "pixel_mean": mean,
            "pixel_sd": sd,
            "classes": ", ".join(info.class_names or map(str, range(info.num_classes))),
        }

    def prepared(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """uint8 images as the program takes them."""
        return np.asarray(self._problem.pixels(jnp.asarray(images))) if self._raw else images

    def __call__(self, images: Array) -> Array:
        """Images (N, height, width, channels) → probabilities or logits (N, classes)."""
        return self.of(self.arrays)(images)

    def of(self, arrays: Mapping[str, Any]) -> Callable[[Array], Array]:
        """The same function of a network with other arrays."""
        leaves = [arrays.get(name, leaf) for name, leaf in self._leaves.items()]
        network = jax.tree.unflatten(self._structure, leaves)

        def function(images: Array) -> Array:
            x = images if self._raw else self._problem.pixels(images)
            logits = self._problem.apply(network["params"], network["model_state"], x)
            return logits if self.output == "logits" else jax.nn.softmax(logits, axis=-1)

        return function

    def batch(self, size: Any) -> jax.ShapeDtypeStruct:
        """Shape and dtype of a batch; its size may be symbolic."""
        return jax.ShapeDtypeStruct((size, *self.image.shape), self.image.dtype)


class HeldOut(NamedTuple):
    """uint8 images and labels of the test split, on the host."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.integer[Any]]


def held_out_batches(problem: Problem, count: int | None) -> Iterator[HeldOut]:
    """The test images in batches, all or the first so many."""
    left = sys.maxsize if count is None else count
    for batch in problem.feed.evaluation("test"):
        images, labels = map(np.asarray, problem.feed.plain(problem.feed.arrays, batch, "test"))
        there = np.flatnonzero(labels >= 0)[:left]
        if not len(there):
            return
        left -= len(there)
        yield HeldOut(images[there], labels[there])


def held_out_size(problem: Problem) -> int:
    """How many test images there are."""
    return sum(len(batch.labels) for batch in held_out_batches(problem, None))


def _name(path: tuple[Any, ...]) -> str:
    """blocks.0.conv1.kernel: without the first key, which tells parameters from other state."""
    return ".".join(str(key.key) for key in path[1:])
