"""A data set, a model and a loss, ready to be trained from any seed."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zosam_jax.data import Dataset, Split, augmentation
from zosam_jax.data import dataset as datasets
from zosam_jax.data.files import one_line
from zosam_jax.data.stream import Stream
from zosam_jax.integrations import modules
from zosam_jax.models import pretrained
from zosam_jax.sparsity import Units
from zosam_jax.training import devices, losses, structure, tasks
from zosam_jax.training.accumulation import accumulated
from zosam_jax.training.config import ProblemConfig, is_own
from zosam_jax.training.feed import (
    Batch,
    DataInfo,
    Example,
    Feed,
    are_known,
    batches_of,
)
from zosam_jax.training.losses import Metrics
from zosam_jax.trees import Array, PyTree

_LABEL_NOISE_SEED = 0
_VALIDATION_SEED = 0

# The loss of images' labels, and what these are.
_USUAL = (losses.CROSS_ENTROPY, "int32", ())


class Network(NamedTuple):
    """A network's arrays.

    Attributes:
      params: the parameters.
      model_state: what is not trained by gradient (BatchNorm statistics, dropout's random state).
    """

    params: PyTree
    model_state: PyTree


#: (params, examples) → a loss, with or without more.
Loss: TypeAlias = Callable[..., Any]


class Evaluation(NamedTuple):
    """Means over a split: how many labels are right, NaN where there are none, and the loss."""

    accuracy: float
    loss: float


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


class Parts(NamedTuple):
    """What a run is made of that its options cannot name, but say only where it comes from.

    Attributes:
      model: as `zosam_jax.integrations.modules.functions` takes it.
      loss: (outputs, targets) → losses of shape [batch, …].
      tx: the whole optimizer.
      weights: what it starts from, by name, where the option init is given.
    """

    model: Any = None
    loss: Callable[..., Any] | None = None
    tx: optax.GradientTransformation | None = None
    weights: Mapping[str, Any] | None = None


class Problem:
    """What `zosam train` and `zosam compare` train.

    Attributes:
      config: the options.
      parts: what they name by where it comes from.
      mesh: the devices that share each batch.
      task: what it trains on, images or texts.
      feed: where batches come from.
      num_classes: of the labels.
      started_from: in words, the weights that it starts from; empty without.
      steps_per_epoch, steps: of the run.
    """

    def __init__(
        self,
        config: ProblemConfig,
        dataset: Dataset | Stream | Callable[[jax.sharding.Mesh], Feed] | None = None,
        parts: Parts | None = None,
    ) -> None:
        """Builds the model's structure and puts a resident data set on the devices.

        Args:
          config: the options.
          dataset: what to train on instead of what the options name; or mesh → a feed of it.
          parts: what the options name by where it comes from.

        Raises:
          ValueError: if the options and the parts do not fit each other.
        """
        self.config, self.parts = config, parts or Parts()
        self.mesh = devices.make_mesh(config.mesh, config.batch_size)
        self.task = tasks.of(config)
        self.feed = self._feed(dataset)
        info = self.feed.info
        if config.batch_size > info.train_images:
            raise ValueError(
                f"batch_size={config.batch_size} is more than the {info.train_images} "
                "training images."
            )
        self.steps_per_epoch = info.train_images // config.batch_size
        self.steps = self.steps_per_epoch * config.epochs
        self._losses = self._loss(info)
        self._functions = self._network()
        _check_augmentation(config, info)
        self._start, self.started_from = self._weights()
        self.num_classes = info.num_classes
        usual = (config.loss, info.label_dtype, info.label_shape) == _USUAL
        if is_own(config.model) or not usual:
            outputs = self._check_outputs()
            self.num_classes = info.num_classes or outputs

    def _feed(self, dataset: Any) -> Feed:
        """Of the data set that the options name, or of one that is given."""
        if dataset is None:
            dataset = self.task.data()
            dataset = changed(dataset, self.config) if isinstance(dataset, Dataset) else dataset
        if isinstance(dataset, Dataset | Stream):
            return self.task.feed(dataset, self.mesh)
        feed: Feed = dataset(self.mesh)
        return feed

    def _loss(self, info: DataInfo) -> losses.Losses:
        name = self.config.loss
        if is_own(name):
            return losses.function(name, _given("loss", name, self.parts.loss))
        return self.task.loss(info)

    def _network(self) -> modules.Functions:
        """The model's functions; no weight is computed."""
        config, info = self.config, self.feed.info
        if is_own(config.model):
            known = {"num_classes": info.num_classes} if info.num_classes else {}
            return modules.functions(
                _given("model", config.model, self.parts.model),
                jax.eval_shape(lambda: self.inputs(1)),
                image_shape=info.image_shape,
                **known,
            )
        return self.task.network(info)

    def _weights(self) -> tuple[Mapping[str, Array] | None, str]:
        """What the option init names of the network's arrays, and that in words."""
        if self.parts.weights is None:
            return None, ""
        shapes = jax.eval_shape(lambda: self._functions.init(0))
        try:
            return pretrained.fitted(self.parts.weights, shapes, str(self.config.init))
        except ValueError as error:
            if self.feed.info.text is None:
                raise
            raise ValueError(
                f"{error} With texts the vocabulary must be that of the tokenizer.json that comes "
                "with the weights (tokenizer=), and context no more than they have positions for."
            ) from error

    def _check_outputs(self) -> int:
        """How many outputs there are, the last axis; nothing is computed.

        Raises:
          ValueError: if the network cannot be that of the data, or the loss that of the outputs.
        """
        info = self.feed.info

        def outputs() -> Array:
            return self.apply(*self.init(0), self.inputs(2))

        targets = jnp.zeros((2, *info.label_shape), info.label_dtype)
        try:
            found = jax.eval_shape(outputs)
        except Exception as error:  # the network's own, or its library's
            raise ValueError(
                f"model={self.config.model!r} fails on a batch of inputs of shape "
                f"(2, {', '.join(map(str, info.image_shape))}) and dtype {info.dtype}: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        jax.eval_shape(self._losses, found, targets)
        is_label = info.label_dtype == "int32" and found.shape[:-1] == targets.shape
        if is_label and found.shape[-1] < info.num_classes:
            raise ValueError(
                f"the network has {found.shape[-1]} outputs and the data {info.num_classes} "
                "classes: as many outputs are needed, at least."
            )
        return found.shape[-1] if found.ndim > 1 else 1

    def inputs(self, count: int) -> Array:
        """Zeros, as the network takes its inputs."""
        info = self.feed.info
        return self.pixels(jnp.zeros((count, *info.image_shape), info.dtype))

    def init(self, seed: int) -> Network:
        """Initial weights and statistics; the same for the same seed."""
        network = Network(*self._functions.init(seed))
        return network if self._start is None else pretrained.replaced(network, self._start)

    def apply(self, params: PyTree, model_state: PyTree, images: Array) -> Array:
        """The network's outputs in inference mode, for images as it takes them."""
        return self._functions.apply(params, model_state, images, False)[0]

    @functools.cached_property
    def units(self) -> Units | None:
        """What the options let go as a whole; None where single weights become zero.

        Raises:
          ValueError: if it is not there.
        """
        if not self.config.kinds:
            return None
        network, inputs = jax.eval_shape(lambda: (tuple(self.init(0)), self.inputs(1)))
        return structure.find(self.config, self.apply, network, inputs)

    def predict(self, network: Network, images: Array) -> Array:
        """Probabilities of the classes; the outputs where targets are no labels.

        Args:
          network: the network.
          images: as the data set has them.
        """
        outputs = self.apply(network.params, network.model_state, self.pixels(images))
        return jax.nn.softmax(outputs) if self.has_classes else outputs

    @property
    def has_classes(self) -> bool:
        """Whether targets are labels, and outputs therefore logits."""
        return self.feed.info.label_dtype == "int32" and self.config.loss != "squared_error"

    def model(self, network: Network) -> Any:
        """The network as a module of its own, in inference mode."""
        return self._functions.module(network.params, network.model_state)

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
                num_classes=self.num_classes,
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

    def losses_of_examples(
        self, model_state: PyTree, of_outputs: losses.Losses | None = None
    ) -> Callable[[PyTree, Examples], Array]:
        """(params, examples) → the cross-entropy of each example, in one forward pass.

        Or another function of outputs and targets.
        """
        of_outputs = of_outputs or self._losses

        def losses(params: PyTree, examples: Examples) -> Array:
            outputs, _ = self._functions.apply(params, model_state, examples.images, True)
            return of_outputs(outputs, examples.targets)

        return losses

    def _part_loss(
        self, params: PyTree, model_state: PyTree, part: Examples
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        outputs, after = self._functions.apply(params, model_state, part.images, True)
        loss = self._losses(outputs, part.targets).mean()
        return loss, (after, self.task.metrics(outputs, part.labels))

    def score_loss(
        self, model_state: PyTree, *, training: bool, temperature: float = 1.0
    ) -> Callable[[PyTree, Array, Array], Array]:
        """A loss to score weights by: (params, uint8 images, labels) → mean cross-entropy.

        Args:
          model_state: BatchNorm statistics, used if not `training`.
          training: whether BatchNorm takes the batch's statistics.
          temperature: what the logits are divided by.
        """

        def loss(params: PyTree, images: Array, labels: Array) -> Array:
            images = self.pixels(images)
            logits, _ = self._functions.apply(params, model_state, images, training)
            return self._losses(logits / temperature, labels).mean()

        return loss

    def accuracy(self, network: Network, split: str = "test") -> float:
        """The fraction of a split's images that the network labels correctly."""
        return self.evaluate(network, split).accuracy

    def evaluate(self, network: Network, split: str = "test") -> Evaluation:
        """The accuracy and the mean loss of the network on a split."""
        arrays = self.feed.arrays
        sums = (self._sums(arrays, network, b, split) for b in self.feed.evaluation(split))
        return _means(sums)

    def measures(self, network: Network, loss: float) -> dict[str, float]:
        """More numbers on the test split than its accuracy and mean loss, by name.

        Args:
          network: the network.
          loss: its mean loss there.
        """
        outputs = labels = None
        if self.task.needs_outputs:
            arrays = self.feed.arrays
            batches = self.feed.evaluation("test")
            found = [self._outputs(arrays, network, b, "test") for b in batches]
            outputs, labels, known = (
                np.concatenate([np.asarray(part) for part in parts])
                for parts in zip(*found, strict=True)
            )
            outputs, labels = outputs[known], labels[known]
        return self.task.measures(loss, outputs, labels, self.feed.info)

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def _outputs(
        self, arrays: PyTree, network: Network, batch: Batch, split: str
    ) -> tuple[Array, Array, Array]:
        """A batch's outputs and labels, and which of them are none that fill it up."""
        examples = self.feed.plain(arrays, batch, split)
        outputs = self.apply(network.params, network.model_state, self.pixels(examples.images))
        return outputs, examples.labels, are_known(examples.labels)

    def accuracy_on(self, network: Network, split: Split) -> float:
        """The fraction of any other images that the network labels correctly.

        Args:
          network: the network.
          split: images of the size and in the pixel values of the problem's own.
        """
        return _means(self._sums_of(network, b) for b in batches_of(split, self.mesh)).accuracy

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def _sums(self, arrays: PyTree, network: Network, batch: Batch, split: str) -> PyTree:
        return self._sums_of(network, self.feed.plain(arrays, batch, split))

    @functools.partial(jax.jit, static_argnums=0)
    def _sums_of(self, network: Network, batch: Example) -> tuple[Metrics, Array, Array]:
        """What is right, the sum of the losses, and of how many examples."""
        known = are_known(batch.labels)
        outputs = self.apply(network.params, network.model_state, self.pixels(batch.images))
        found = self.task.metrics(outputs, batch.labels)
        each = jnp.where(known, self._losses(outputs, batch.labels), 0.0)
        return found, each.sum(), known.sum()

    def pixels(self, images: Array) -> Array:
        """Pixel values at mean 0 and standard deviation 1 over the training images.

        Inputs that are no pixels, of another dtype than uint8, stay as they are.
        """
        if images.dtype != jnp.uint8:
            return images
        mean = jnp.asarray(self.feed.info.pixel_mean, jnp.float32)
        sd = jnp.asarray(self.feed.info.pixel_sd, jnp.float32)
        return (images.astype(jnp.float32) - mean) / sd


def changed(dataset: Dataset, config: ProblemConfig) -> Dataset:
    """A data set in memory as the options change it.

    Raises:
      ValueError: for options that are for images or for labels, where it has none.
    """
    images, labels = dataset.train.images, dataset.train.labels
    if config.shrink > 1 and (images.dtype != np.uint8 or images.ndim != 4):
        raise ValueError(f"shrink={config.shrink} is for images of uint8 pixels.")
    if config.label_noise and (labels.dtype != np.int32 or labels.ndim != 1):
        raise ValueError(f"label_noise={config.label_noise} is for labels, not other targets.")
    if config.train_images is not None:
        dataset = datasets.limit(dataset, config.train_images)
    if config.shrink > 1:
        dataset = datasets.shrink(dataset, config.shrink)
    if config.label_noise:
        dataset = datasets.with_label_noise(dataset, config.label_noise, _LABEL_NOISE_SEED)
    # Texts may come with a split of their own for it.
    if config.validation_fraction and not (dataset.text and dataset.validation):
        dataset = datasets.with_validation(dataset, config.validation_fraction, _VALIDATION_SEED)
    return dataset


def _check_augmentation(config: ProblemConfig, info: DataInfo) -> None:
    """Raises ValueError for options that are for images or labels, where there are none."""
    labelled = (info.label_dtype, info.label_shape) == ("int32", ())
    kinds = {"random_erasing": (True, False), "mixup": (True, True), "cutmix": (True, True)}
    for name, (images, labels) in {**kinds, "label_smoothing": (False, True)}.items():
        if getattr(config, name) and images and len(info.image_shape) != 3:
            raise ValueError(
                f"{name}={getattr(config, name)} is for images of shape (height, width, channels), "
                f"not for inputs of shape {info.image_shape}."
            )
        if getattr(config, name) and labels and not labelled:
            raise ValueError(f"{name}={getattr(config, name)} is for labels, not other targets.")


def _given(option: str, name: str, part: Any) -> Any:
    """A part of the run that comes from code."""
    if part is None:
        raise ValueError(
            f"{option}={name!r} is code, which is not executed because a file names it: pass "
            f"{option}= what it names, or repeat --{option} {name}."
        )
    return part


def _means(sums: Iterable[tuple[Metrics, Array, Array]]) -> Evaluation:
    (correct, seen), loss, count = functools.reduce(
        lambda total, more: jax.tree.map(jnp.add, total, more), sums
    )
    accuracy = int(correct) / int(seen) if int(seen) else math.nan
    return Evaluation(accuracy, float(loss) / int(count))
