"""What is exported: a trained network as one function, from pixels to probabilities."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from zosam_jax.data.packing import FILLER
from zosam_jax.training.problem import Network, Problem
from zosam_jax.trees import Array

# The names of a program's argument and of its result.
IMAGES = "images"


class Program:
    """A network with what is done to images before it and to logits after it.

    Attributes:
      image: shape and dtype of one input: uint8 pixels or, if raw, what the network takes.
      output: "probabilities", "logits", or "outputs" where targets are no labels.
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
        dtype = jnp.float32 if raw and info.dtype == "uint8" else jnp.dtype(info.dtype)
        self.image = jax.ShapeDtypeStruct(info.image_shape, dtype)
        of_classes = "logits" if logits else "probabilities"
        self.output = of_classes if problem.has_classes else "outputs"
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(network._asdict())
        self._leaves = {_name(path): leaf for path, leaf in leaves}
        if len(self._leaves) < len(leaves):  # of parameters and other state that share names
            self._leaves = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        self.arrays: dict[str, npt.NDArray[Any]] = {
            name: np.asarray(leaf)
            for name, leaf in self._leaves.items()
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        }
        mean, sd = (" ".join(map(repr, values)) for values in (info.pixel_mean, info.pixel_sd))
        self.metadata = {
            "model": problem.config.model,
            "dataset": problem.config.dataset,
            "input": f"{self.image.dtype} [{', '.join(['batch', *map(str, self.image.shape)])}]",
            "output": f"float32 {self._output_shape()}, {self.output}",
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
            return jax.nn.softmax(logits) if self.output == "probabilities" else logits

        return function

    def _output_shape(self) -> str:
        found = jax.eval_shape(self.of({}), self.batch(1))
        return f"[{', '.join(['batch', *map(str, found.shape[1:])])}]"

    def batch(self, size: Any) -> jax.ShapeDtypeStruct:
        """Shape and dtype of a batch; its size may be symbolic."""
        return jax.ShapeDtypeStruct((size, *self.image.shape), self.image.dtype)


class HeldOut(NamedTuple):
    """Images and labels of the test split, or other inputs and targets, on the host."""

    images: npt.NDArray[Any]
    labels: npt.NDArray[Any]


def held_out_batches(problem: Problem, count: int | None) -> Iterator[HeldOut]:
    """The test images in batches, all or the first so many.

    Raises:
      ValueError: if there are none.
    """
    if "test" not in problem.feed.splits:
        raise ValueError("the run's data have no test split, on which exports are checked.")
    seen = 0
    for batch in problem.feed.evaluation("test"):
        images, labels = map(np.asarray, problem.feed.plain(problem.feed.arrays, batch, "test"))
        filling = labels < 0 if labels.dtype.kind == "i" else np.isnan(labels)
        # Of the tokens of a row some may have no label.
        there = np.flatnonzero(~filling.reshape(len(labels), -1).all(axis=1))
        there = there if count is None else there[: count - seen]
        if not len(there):
            return
        seen += len(there)
        yield HeldOut(_whole(images[there], problem), labels[there])


def _whole(images: npt.NDArray[Any], problem: Problem) -> npt.NDArray[Any]:
    """Rows of text at their full length."""
    if problem.feed.info.text is None:
        return images
    (longest,) = problem.feed.info.image_shape
    missing = longest - images.shape[1]
    return np.pad(images, ((0, 0), (0, missing)), constant_values=FILLER)


def _name(path: tuple[Any, ...]) -> str:
    """blocks.0.conv1.kernel: without the first key, which tells parameters from other state."""
    return jax.tree_util.keystr(path[1:], simple=True, separator=".")
