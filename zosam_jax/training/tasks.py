"""What is trained on: images or texts, each with its data, its feed, its networks and its metrics.

A `Task` is all that `Problem` has to know of them; networks and losses of one's own go beside it.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from zosam_jax import models
from zosam_jax.data import Dataset, load, load_records
from zosam_jax.data.stream import Stream
from zosam_jax.integrations import modules
from zosam_jax.training import losses, text
from zosam_jax.training.config import DataConfig, ProblemConfig
from zosam_jax.training.feed import DataInfo, Feed, Resident, Streamed
from zosam_jax.training.losses import Losses, Metrics
from zosam_jax.trees import Array

# Pixels a side of streamed images, if not told otherwise.
STREAMED_SIZE = 224


class Task(Protocol):
    """What differs between images and texts; made from a run's options."""

    def data(self) -> Dataset | Stream:
        """The data set that the options name, before anything is taken from it."""

    def feed(self, data: Any, mesh: jax.sharding.Mesh) -> Feed:
        """Where its batches come from."""

    def network(self, info: DataInfo) -> modules.Functions:
        """The model that the options name, for these data."""

    def loss(self, info: DataInfo) -> Losses:
        """(outputs, targets) → the loss of each example."""

    def metrics(self, outputs: Array, labels: Array) -> Metrics:
        """How many labels are right, as each pass of the model tells."""

    def measures(self, loss: float, outputs: Any, labels: Any, info: DataInfo) -> dict[str, float]:
        """More numbers on a whole split, by name, from its mean loss and all outputs."""

    @property
    def needs_outputs(self) -> bool:
        """Whether `measures` needs outputs and labels; else they are None."""


class Images:
    """Images and their labels; a `Task`."""

    needs_outputs = False

    def __init__(self, config: ProblemConfig) -> None:
        self._config = config

    def data(self) -> Dataset | Stream:
        """As in `Task`."""
        config = self._config
        if not config.stream:
            return load_whole(config)
        return Stream(
            *load_records(config.dataset, config.data_dir, label=config.label_column),
            image_size=config.image_size or STREAMED_SIZE,
            randaugment=config.randaugment,
            repeats=config.repeated_augmentation,
            workers=config.workers,
        )

    def feed(self, data: Any, mesh: jax.sharding.Mesh) -> Feed:
        """As in `Task`."""
        config = self._config
        if isinstance(data, Stream):
            image_size = config.image_size or STREAMED_SIZE
            return Streamed(data, image_size, config.batch_size, mesh)
        return Resident(data, config.batch_size, mesh, crop_and_flip=config.crop_and_flip)

    def network(self, info: DataInfo) -> modules.Functions:
        """As in `Task`."""
        config = self._config
        if not info.num_classes:
            raise ValueError(
                f"model={config.model!r} has an output for each class: pass num_classes=."
            )
        if len(info.image_shape) != 3:
            raise ValueError(
                f"model={config.model!r} takes images of shape (height, width, channels), not "
                f"inputs of shape {info.image_shape}: pass a network of your own."
            )
        options: dict[str, Any] = {}
        if config.model.startswith("deit"):
            options["drop_path_rate"] = config.drop_path
            if config.patch is not None:
                options["patch"] = config.patch

        def model(seed: int) -> nnx.Module:
            return models.create(
                config.model,
                info.num_classes,
                rngs=nnx.Rngs(seed),
                image_shape=info.image_shape,
                dtype=jnp.dtype(config.precision),
                **options,
            )

        return modules.of_nnx(model)

    def loss(self, info: DataInfo) -> Losses:
        """As in `Task`."""
        del info
        return losses.function(self._config.loss)

    def metrics(self, outputs: Array, labels: Array) -> Metrics:
        """As in `Task`."""
        return losses.metrics(outputs, labels)

    def measures(self, loss: float, outputs: Any, labels: Any, info: DataInfo) -> dict[str, float]:
        """As in `Task`: there are none."""
        del loss, outputs, labels, info
        return {}


def of(config: ProblemConfig) -> Task:
    """The task that the options name."""
    return Images(config) if config.task == "image" else text.Text(config)


def load_whole(config: DataConfig) -> Dataset:
    """Images in memory, before anything is taken from them or done to them."""
    return load(
        config.dataset, config.data_dir, image_size=config.image_size, label=config.label_column
    )
