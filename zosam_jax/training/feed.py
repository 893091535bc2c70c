"""Where batches come from: a data set kept on the devices, or one that is streamed.

The host hands over a `Batch`, the compiled step turns it into pixels and labels (`examples`). For a
resident set it is the order of a whole epoch, of which each step takes its part, so that nothing is
sent between steps, and cropping happens in the same gather; for a streamed one it is the decoded
images themselves.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from zosam_jax.data import augmentation
from zosam_jax.data.dataset import Dataset, Images, Labels, Split
from zosam_jax.data.stream import Stream
from zosam_jax.training import devices
from zosam_jax.trees import Array, PyTree

Batch: TypeAlias = PyTree

_EVALUATION_BATCH = 500
_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_SD = (58.395, 57.12, 57.375)


class BrokenDataError(ValueError):
    """An image of a streamed data set could not be read; says which."""


class Example(NamedTuple):
    """A batch inside the compiled program.

    Attributes:
      images: (N, height, width, channels), uint8.
      labels: (N,), int32; −1 fills the last batch of an evaluation.
    """

    images: Array
    labels: Array


class Feed(Protocol):
    """What training and evaluation ask of a data set.

    Attributes:
      train_images: how many images an epoch goes through.
      num_classes, image_shape, pixel_mean, pixel_sd: of the images, as the network gets them.
      splits: the names of the splits to evaluate on: "test", and "validation" if there is one.
      arrays: what is kept on the devices, an argument of the compiled programs.
    """

    train_images: int
    num_classes: int
    image_shape: tuple[int, int, int]
    pixel_mean: tuple[float, ...]
    pixel_sd: tuple[float, ...]
    splits: tuple[str, ...]
    arrays: PyTree

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """What each step from `start` on gets, on the devices; fixed by seed and epoch."""

    def batch_shapes(self) -> Batch:
        """What `epoch` gives, as jax.ShapeDtypeStructs with their sharding."""

    def examples(self, arrays: PyTree, batch: Batch, step: Array, key: Array) -> Example:
        """The images and labels of step number `step` (from 0), augmented; within jit."""

    def evaluation(self, split: str) -> Iterator[Batch]:
        """The batches of a split, on the devices, filled up to equal sizes."""

    def plain(self, arrays: PyTree, batch: Batch, split: str) -> Example:
        """The images and labels of an evaluation batch, as they are; within jit."""

    def size(self, split: str) -> int:
        """The number of images of a split."""

    def raw(self, seed: int, count: int) -> tuple[Images, Labels]:
        """The first images and labels of epoch 0, on the host, whole on every process."""

    def close(self) -> None:
        """Ends what reads ahead, if anything does."""


class Resident:
    """A data set small enough to be kept on every device; a `Feed`."""

    def __init__(
        self, dataset: Dataset, batch_size: int, mesh: Mesh, *, crop_and_flip: bool
    ) -> None:
        """Puts all splits on the devices of the mesh."""
        self.dataset = dataset
        self.train_images = len(dataset.train)
        self.num_classes = dataset.num_classes
        height, width, channels = dataset.train.images.shape[1:]
        self.image_shape = (height, width, channels)
        self.pixel_mean, self.pixel_sd = dataset.pixel_mean, dataset.pixel_sd
        held_out = () if dataset.validation is None else ("validation",)
        self.splits: tuple[str, ...] = (*held_out, "test")
        self._batch_size, self._crop_and_flip = batch_size, crop_and_flip
        self._mesh, self._steps = mesh, self.train_images // batch_size
        self._evaluation_batch = _multiple_of(mesh.size, _EVALUATION_BATCH)
        arrays = {name: self._split(name) for name in ("train", *self.splits)}
        self.arrays = devices.replicate(
            {name: (split.images, split.labels) for name, split in arrays.items()}, mesh
        )

    def _split(self, name: str) -> Split:
        split: Split = getattr(self.dataset, name)
        return split

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.integer]:
        """The order in which an epoch goes through the training images."""
        return np.random.default_rng((seed, epoch)).permutation(self.train_images)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """As in `Feed`: the indices of all images of the epoch, (steps, batch size)."""
        order = self.order(seed, epoch)[: self._steps * self._batch_size].astype(np.int32)
        parts = _own_part(order.reshape(self._steps, self._batch_size))
        return itertools.repeat(devices.distribute(parts, self._mesh, axis=1), self._steps - start)

    def batch_shapes(self) -> Batch:
        """As in `Feed`."""
        sharding = devices.by_batch(self._mesh, axis=1)
        shape = (self._steps, self._batch_size)
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

    def examples(self, arrays: PyTree, batch: Batch, step: Array, key: Array) -> Example:
        """As in `Feed`."""
        images, labels = arrays["train"]
        batch = batch[step % self._steps]
        if not self._crop_and_flip:
            return Example(images[batch], labels[batch])
        return Example(augmentation.crop_and_flip(images, batch, key), labels[batch])

    def evaluation(self, split: str) -> Iterator[Batch]:
        """As in `Feed`: indices, −1 where there is no image left."""
        size = self.size(split)
        for start in range(0, size, self._evaluation_batch):
            indices = np.arange(start, start + self._evaluation_batch, dtype=np.int32)
            indices = np.where(indices < size, indices, -1)
            yield devices.distribute(_own_part(indices), self._mesh)

    def plain(self, arrays: PyTree, batch: Batch, split: str) -> Example:
        """As in `Feed`."""
        images, labels = arrays[split]
        return Example(images[batch], jnp.where(batch < 0, -1, labels[batch]))

    def size(self, split: str) -> int:
        """As in `Feed`."""
        return len(self._split(split))

    def raw(self, seed: int, count: int) -> tuple[Images, Labels]:
        """As in `Feed`."""
        chosen = self.dataset.train.take(self.order(seed, 0)[:count])
        return chosen.images, chosen.labels

    def close(self) -> None:
        """As in `Feed`: nothing does."""


class Streamed:
    """A data set that is decoded while the devices compute; a `Feed`."""

    pixel_mean: tuple[float, ...] = _IMAGENET_MEAN
    pixel_sd: tuple[float, ...] = _IMAGENET_SD
    splits: tuple[str, ...] = ("test",)
    arrays: PyTree = None

    def __init__(self, stream: Stream, image_size: int, batch_size: int, mesh: Mesh) -> None:
        """Reads nothing yet."""
        self._stream, self._batch_size, self._mesh = stream, batch_size, mesh
        self._evaluation_batch = _multiple_of(mesh.size, batch_size)
        self.train_images = stream.train_images
        self.num_classes = stream.num_classes
        self.image_shape = (image_size, image_size, 3)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """As in `Feed`: images and labels."""
        return self._sent(
            self._stream.epoch(
                seed,
                epoch,
                batch_size=self._batch_size,
                start=start,
                shard=devices.part_of_batch(),
            )
        )

    def batch_shapes(self) -> Batch:
        """As in `Feed`."""
        shape = (self._batch_size, *self.image_shape)
        sharding = devices.by_batch(self._mesh)
        return (
            jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding),
            jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=sharding),
        )

    def examples(self, arrays: PyTree, batch: Batch, step: Array, key: Array) -> Example:
        """As in `Feed`; cropping has been done by those who decode."""
        del arrays, step, key
        return Example(*batch)

    def evaluation(self, split: str) -> Iterator[Batch]:
        """As in `Feed`: images and labels."""
        del split
        return self._sent(
            self._stream.test(batch_size=self._evaluation_batch, shard=devices.part_of_batch())
        )

    def _sent(self, batches: Iterator[tuple[Images, Labels]]) -> Iterator[Batch]:
        try:
            for batch in batches:
                yield devices.distribute(batch, self._mesh)
        except ValueError as error:
            raise BrokenDataError(str(error)) from error

    def plain(self, arrays: PyTree, batch: Batch, split: str) -> Example:
        """As in `Feed`."""
        del arrays, split
        return Example(*batch)

    def size(self, split: str) -> int:
        """As in `Feed`."""
        del split
        return self._stream.test_images

    def raw(self, seed: int, count: int) -> tuple[Images, Labels]:
        """As in `Feed`."""
        images, labels = next(iter(self._stream.epoch(seed, 0, batch_size=count)))
        return images, labels

    def close(self) -> None:
        """As in `Feed`: the processes that decode."""
        self._stream.close()


def batches_of(split: Split, mesh: Mesh) -> Iterator[Example]:
    """Images of no feed in batches of one size, on the devices, filled up with labels of −1."""
    size = _multiple_of(mesh.size, _EVALUATION_BATCH)
    for start in range(0, len(split), size):
        indices = _own_part(np.arange(start, start + size))
        taken = split.take(np.minimum(indices, len(split) - 1))
        labels = np.where(indices < len(split), taken.labels, -1)
        yield Example(*devices.distribute((taken.images, labels), mesh))


def _own_part(batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What this process has of a batch, which is the last axis."""
    index, count = devices.part_of_batch()
    size = batch.shape[-1] // count
    return batch[..., index * size : (index + 1) * size]


def _multiple_of(step: int, at_least: int) -> int:
    return -(-at_least // step) * step
