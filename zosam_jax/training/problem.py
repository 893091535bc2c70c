"""A data set, a model and a loss, ready to be trained from any seed."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx

from zosam_jax import models
from zosam_jax.data import Dataset, load
from zosam_jax.data import dataset as datasets
from zosam_jax.integrations import nnx as nnx_integration
from zosam_jax.training.config import ProblemConfig
from zosam_jax.trees import Array, PyTree

_LABEL_NOISE_SEED = 0
_EVALUATION_BATCH = 500


class Network(NamedTuple):
    """A network's arrays.

    Attributes:
      params: the parameters.
      rest: what is not trained by gradient (BatchNorm statistics).
    """

    params: PyTree
    rest: PyTree


class Metrics(NamedTuple):
    """Sums over images; what a pass of the model reports beside the loss."""

    correct: Array


class Problem:
    """What `zosam train` and `zosam compare` train; arrays live on the device."""

    def __init__(self, config: ProblemConfig, dataset: Dataset) -> None:
        """`dataset` is as `load_dataset(config)` returns it."""
        if config.batch_size > len(dataset.train):
            raise ValueError(
                f"batch_size={config.batch_size} is more than the {len(dataset.train)} training "
                "images."
            )
        self.config = config
        self.dataset = dataset
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        self.steps = self.steps_per_epoch * config.epochs
        self.images = jnp.asarray(dataset.train.images)
        self.labels = jnp.asarray(dataset.train.labels)
        model = self._model(seed=0)
        model.train()
        self._train_graph = nnx.graphdef(model)
        model.eval()
        self._eval_graph = nnx.graphdef(model)

    def init(self, seed: int) -> Network:
        """Initial weights and statistics; the same for the same seed."""
        _, params, rest = nnx_integration.split(self._model(seed))
        return Network(params, rest)

    def apply(self, params: PyTree, rest: PyTree, images: Array) -> Array:
        """The network's outputs in inference mode, for images as it takes them."""
        outputs: Array = nnx.merge(self._eval_graph, params, rest, copy=True)(images)
        return outputs

    def epoch(self, seed: int, epoch: int) -> Iterator[npt.NDArray[np.integer]]:
        """The indices of each batch of an epoch, in an order fixed by seed and epoch."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self.dataset.train))
        for step in range(self.steps_per_epoch):
            yield order[step * self.config.batch_size : (step + 1) * self.config.batch_size]

    def loss(self, rest: PyTree, indices: Array) -> Any:
        """The training loss on a batch: params → (mean cross-entropy, (new rest, metrics))."""
        images, labels = self._pixels(self.images[indices]), self.labels[indices]
        functional = nnx_integration.functional_loss(
            _cross_entropy, self._train_graph, rest, has_aux=True
        )
        return lambda params: functional(params, images, labels)

    def score_loss(
        self, rest: PyTree, *, training: bool, temperature: float = 1.0
    ) -> Callable[[PyTree, Array], Array]:
        """A loss to score weights by: (params, batch indices) → mean cross-entropy.

        Args:
          rest: BatchNorm statistics, used if not `training`.
          training: whether BatchNorm takes the batch's statistics.
          temperature: what the logits are divided by.
        """
        graph = self._train_graph if training else self._eval_graph

        def loss(params: PyTree, indices: Array) -> Array:
            logits = nnx.merge(graph, params, rest, copy=True)(self._pixels(self.images[indices]))
            losses: Array = optax.softmax_cross_entropy_with_integer_labels(
                logits / temperature, self.labels[indices]
            )
            return losses.mean()

        return loss

    def test_accuracy(self, params: PyTree, rest: PyTree) -> float:
        """The fraction of the test images that the network labels correctly."""
        test = self.dataset.test
        correct = 0
        for start in range(0, len(test), _EVALUATION_BATCH):
            stop = start + _EVALUATION_BATCH
            correct += self._correct(params, rest, test.images[start:stop], test.labels[start:stop])
        return float(correct) / len(test)

    @functools.partial(jax.jit, static_argnums=0)
    def _correct(self, params: PyTree, rest: PyTree, images: Array, labels: Array) -> Array:
        logits = self.apply(params, rest, self._pixels(images))
        return jnp.sum(jnp.argmax(logits, axis=-1) == labels)

    def _pixels(self, images: Array) -> Array:
        """Pixel values at mean 0 and standard deviation 1 over the training images."""
        return (images.astype(jnp.float32) - self.dataset.pixel_mean) / self.dataset.pixel_sd

    def _model(self, seed: int) -> Any:
        return models.create(
            self.config.model,
            self.dataset.num_classes,
            rngs=nnx.Rngs(seed),
            image_shape=self.dataset.train.images.shape[1:],
        )


def load_dataset(config: ProblemConfig) -> Dataset:
    """The data set that the options describe: cut to size, its labels as noisy as asked for."""
    dataset = load(config.dataset, config.data_dir)
    if config.train_images is not None:
        dataset = datasets.limit(dataset, config.train_images)
    if config.shrink > 1:
        dataset = datasets.shrink(dataset, config.shrink)
    if config.label_noise:
        dataset = datasets.with_label_noise(dataset, config.label_noise, _LABEL_NOISE_SEED)
    return dataset


def _cross_entropy(model: Any, images: Array, labels: Array) -> tuple[Array, Metrics]:
    logits = model(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, Metrics(correct=jnp.sum(jnp.argmax(logits, axis=-1) == labels))
