"""A data set, a model and a loss, ready to be trained from any seed."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from zosam_jax import models
from zosam_jax.data import Dataset, Split, augmentation, load, load_records
from zosam_jax.data import dataset as datasets
from zosam_jax.data.stream import Stream
from zosam_jax.integrations import nnx as nnx_integration
from zosam_jax.training import devices
from zosam_jax.training.accumulation import accumulated
from zosam_jax.training.config import DataConfig, ProblemConfig
from zosam_jax.training.feed import Batch, Example, Feed, Resident, Streamed, batches_of
from zosam_jax.trees import Array, PyTree

_LABEL_NOISE_SEED = 0
_VALIDATION_SEED = 0

# Pixels a side of streamed images, if not told otherwise.
STREAMED_SIZE = 224


class Network(NamedTuple):
    """A network's arrays.

    Attributes:
      params: the parameters.
      model_state: what is not trained by gradient (BatchNorm statistics, dropout's random state).
    """

    params: PyTree
    model_state: PyTree


class Metrics(NamedTuple):
    """What a pass of the model reports beside the loss: of `seen` images, `correct` are right."""

    correct: Array
    seen: Array


class Examples(NamedTuple):
    """What a step trains on.

    Attributes:
      images: as the network takes them.
      labels: of shape [batch].
      targets: labels, or distributions of shape [batch, classes].
    """

    images: Array
    labels: Array
    targets: Array


class Problem:
    """What `zosam train` and `zosam compare` train.

    Attributes:
      config: the options.
      mesh: the devices that share each batch.
      feed: where batches come from.
      steps_per_epoch, steps: of the run.
    """

    def __init__(self, config: ProblemConfig, dataset: Dataset | Stream | None = None) -> None:
        """Builds the model's structure and puts a resident data set on the devices.

        Args:
          config: the options.
          dataset: what to train on instead of what the options name.
        """
        self.config = config
        self.mesh = devices.make_mesh(config.mesh, config.batch_size)
        self.feed = _feed(config, load_dataset(config) if dataset is None else dataset, self.mesh)
        if config.batch_size > self.feed.train_images:
            raise ValueError(
                f"batch_size={config.batch_size} is more than the {self.feed.train_images} "
                "training images."
            )
        self.steps_per_epoch = self.feed.train_images // config.batch_size
        self.steps = self.steps_per_epoch * config.epochs
        # Only the structure is kept: no weight is computed here.
        model = nnx.eval_shape(lambda: self._model(seed=0))
        model.train()
        self._train_graph = nnx.graphdef(model)
        model.eval()
        self._eval_graph = nnx.graphdef(model)

    def init(self, seed: int) -> Network:
        """Initial weights and statistics; the same for the same seed."""
        _, params, model_state = nnx_integration.split(self._model(seed))
        return Network(params, model_state)

    def apply(self, params: PyTree, model_state: PyTree, images: Array) -> Array:
        """The network's outputs in inference mode, for images as it takes them."""
        outputs: Array = nnx.merge(self._eval_graph, params, model_state, copy=True)(images)
        return outputs

    def model(self, network: Network) -> nnx.Module:
        """The network as a module of its own, in inference mode."""
        module: nnx.Module = nnx.merge(
            self._eval_graph, network.params, network.model_state, copy=True
        )
        return module

    def loss(
        self, arrays: PyTree, model_state: PyTree, batch: Batch, step: Array, key: Array
    ) -> Callable[[PyTree], tuple[Array, tuple[PyTree, Metrics]]]:
        """The training loss on a batch: params → (mean cross-entropy, (new model_state, metrics)).

        Args: as of `examples` and `loss_of_examples`.
        """
        examples = self.examples(arrays, batch, step, key)
        loss = self.loss_of_examples(model_state)
        return lambda params: loss(params, examples)

    def examples(self, arrays: PyTree, batch: Batch, step: Array, key: Array) -> Examples:
        """A batch as a step trains on it: augmented once, so that all passes see the same images.

        Args:
          arrays: the feed's.
          batch: as the feed's `epoch` gives it.
          step: the number of the step, from 0.
          key: of the augmentation; each step has its own from it.
        """
        config = self.config
        crop_key, erase_key, mix_key = jax.random.split(jax.random.fold_in(key, step), 3)
        images, labels = self.feed.examples(arrays, batch, step, crop_key)
        images, targets = self.pixels(images), labels
        if config.random_erasing:
            images = augmentation.random_erasing(
                images, erase_key, probability=config.random_erasing
            )
        if config.mixup or config.cutmix or config.label_smoothing:
            images, targets = augmentation.mixup_and_cutmix(
                images,
                labels,
                mix_key,
                num_classes=self.feed.num_classes,
                mixup=config.mixup,
                cutmix=config.cutmix,
                smoothing=config.label_smoothing,
            )
        return Examples(images, labels, targets)

    def as_examples(self, images: Array, labels: Array) -> Examples:
        """Images as the data set has them, uint8, as a step would have them unaugmented."""
        return Examples(self.pixels(images), labels, labels)

    def loss_of_examples(
        self, model_state: PyTree
    ) -> Callable[[PyTree, Examples], tuple[Array, tuple[PyTree, Metrics]]]:
        """(params, examples) → (mean cross-entropy, (new model_state, metrics)).

        Examples may be fewer than a batch; the parts that `accumulate` asks for keep their size
        where that divides them, else they make one pass.

        Args:
          model_state: the network's.
        """
        part_size = self.config.batch_size // self.config.accumulate

        def loss(params: PyTree, examples: Examples) -> tuple[Array, tuple[PyTree, Metrics]]:
            count = examples.labels.shape[0]
            parts = -(-count // part_size)
            if count % parts:  # a part of the batch that cannot be cut like the whole
                parts = 1
            return accumulated(self._part_loss, model_state, examples, parts)(params)

        return loss

    def losses_of_examples(self, model_state: PyTree) -> Callable[[PyTree, Examples], Array]:
        """(params, examples) → the cross-entropy of each example, in one forward pass."""

        def losses(params: PyTree, examples: Examples) -> Array:
            model = nnx.merge(self._train_graph, params, model_state, copy=True)
            return _losses(model(examples.images), examples.targets)

        return losses

    def _part_loss(
        self, params: PyTree, model_state: PyTree, part: Examples
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        functional = nnx_integration.functional_loss(
            _cross_entropy, self._train_graph, model_state, has_aux=True
        )
        return functional(params, *part)

    def score_loss(
        self, model_state: PyTree, *, training: bool, temperature: float = 1.0
    ) -> Callable[[PyTree, Array, Array], Array]:
        """A loss to score weights by: (params, uint8 images, labels) → mean cross-entropy.

        Args:
          model_state: BatchNorm statistics, used if not `training`.
          training: whether BatchNorm takes the batch's statistics.
          temperature: what the logits are divided by.
        """
        graph = self._train_graph if training else self._eval_graph

        def loss(params: PyTree, images: Array, labels: Array) -> Array:
            logits = nnx.merge(graph, params, model_state, copy=True)(self.pixels(images))
            return _losses(logits / temperature, labels).mean()

        return loss

    def accuracy(self, network: Network, split: str = "test") -> float:
        """The fraction of a split's images that the network labels correctly."""
        correct = 0
        for batch in self.feed.evaluation(split):
            correct += self._correct(self.feed.arrays, network, batch, split)
        return int(correct) / self.feed.size(split)

    def accuracy_on(self, network: Network, split: Split) -> float:
        """The fraction of any other images that the network labels correctly.

        Args:
          network: the network.
          split: images of the size and in the pixel values of the problem's own.
        """
        correct = sum(self._correct_of(network, batch) for batch in batches_of(split, self.mesh))
        return int(correct) / len(split)

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def _correct(self, arrays: PyTree, network: Network, batch: Batch, split: str) -> Array:
        correct: Array = self._correct_of(network, self.feed.plain(arrays, batch, split))
        return correct

    @functools.partial(jax.jit, static_argnums=0)
    def _correct_of(self, network: Network, batch: Example) -> Array:
        logits = self.apply(network.params, network.model_state, self.pixels(batch.images))
        return jnp.sum(jnp.argmax(logits, axis=-1) == batch.labels)

    def pixels(self, images: Array) -> Array:
        """Pixel values at mean 0 and standard deviation 1 over the training images."""
        mean = jnp.asarray(self.feed.pixel_mean, jnp.float32)
        sd = jnp.asarray(self.feed.pixel_sd, jnp.float32)
        return (images.astype(jnp.float32) - mean) / sd

    def _model(self, seed: int) -> Any:
        config = self.config
        options: dict[str, Any] = {}
        if config.model.startswith("deit"):
            options["drop_path_rate"] = config.drop_path
            if config.patch is not None:
                options["patch"] = config.patch
        return models.create(
            config.model,
            self.feed.num_classes,
            rngs=nnx.Rngs(seed),
            image_shape=self.feed.image_shape,
            dtype=jnp.dtype(config.precision),
            **options,
        )


def load_dataset(config: ProblemConfig) -> Dataset | Stream:
    """The data set that the options describe: cut to size, its labels as noisy as asked for."""
    if config.stream:
        return Stream(
            *load_records(config.dataset, config.data_dir, label=config.label_column),
            image_size=config.image_size or STREAMED_SIZE,
            randaugment=config.randaugment,
            repeats=config.repeated_augmentation,
            workers=config.workers,
        )
    dataset = load_whole(config)
    if config.train_images is not None:
        dataset = datasets.limit(dataset, config.train_images)
    if config.shrink > 1:
        dataset = datasets.shrink(dataset, config.shrink)
    if config.label_noise:
        dataset = datasets.with_label_noise(dataset, config.label_noise, _LABEL_NOISE_SEED)
    if config.validation_fraction:
        dataset = datasets.with_validation(dataset, config.validation_fraction, _VALIDATION_SEED)
    return dataset


def load_whole(config: DataConfig) -> Dataset:
    """The data set in memory, before anything is taken from it or done to it."""
    return load(
        config.dataset, config.data_dir, image_size=config.image_size, label=config.label_column
    )


def _feed(config: ProblemConfig, dataset: Dataset | Stream, mesh: jax.sharding.Mesh) -> Feed:
    if isinstance(dataset, Stream):
        image_size = config.image_size or STREAMED_SIZE
        return Streamed(dataset, image_size, config.batch_size, mesh)
    return Resident(dataset, config.batch_size, mesh, crop_and_flip=config.crop_and_flip)


def _cross_entropy(
    model: Any, images: Array, labels: Array, targets: Array
) -> tuple[Array, Metrics]:
    logits = model(images)
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
    return _losses(logits, targets).mean(), Metrics(correct, jnp.asarray(labels.size))


def _losses(logits: Array, targets: Array) -> Array:
    """Cross-entropies to labels (N,) or to distributions (N, classes)."""
    if targets.ndim == 1:
        losses: Array = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses
    return jnp.asarray(optax.softmax_cross_entropy(logits, targets))
