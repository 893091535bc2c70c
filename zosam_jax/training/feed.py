"""Where batches come from: a data set kept on the devices, or one that is streamed.

The host hands over a `Batch`, the compiled step turns it into pixels and labels (`examples`). For a
resident set it is the order of a whole epoch, of which each step takes its part, so that nothing is
sent between steps, and cropping happens in the same gather; for a streamed one it is the decoded
images themselves.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from zosam_jax.data import augmentation
from zosam_jax.data.dataset import Dataset, Images, Labels, Split, TextInfo, as_split
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
      images: (N, height, width, channels), uint8, or other inputs.
      labels: (N,), int32, or other targets; −1, or NaN, fills the last batch of an evaluation.
    """

    images: Array
    labels: Array


class DataInfo(NamedTuple):
    """What there is to know of a data set without having it; data.json in a run folder.

    Attributes:
      num_classes: labels are 0, …, num_classes − 1; 0 if that is not known.
      image_shape, dtype: of one input: (height, width, channels) and "uint8" for images.
      label_shape, label_dtype: of one target: () and "int32" for labels.
      pixel_mean, pixel_sd: by channel, in pixel values (0 to 255).
      class_names: what the classes are called; None if that is not known.
      train_images: how many an epoch goes through.
      text: of inputs that are tokens, where they come from; None for others.
    """

    num_classes: int
    image_shape: tuple[int, ...]
    dtype: str
    label_shape: tuple[int, ...]
    label_dtype: str
    pixel_mean: tuple[float, ...]
    pixel_sd: tuple[float, ...]
    class_names: tuple[str, ...] | None
    train_images: int
    text: TextInfo | None = None


class Feed(Protocol):
    """What training and evaluation ask of a data set.

    Attributes:
      info: what there is to know of the images, as the network gets them.
      splits: the names of the splits to evaluate on: "test", and "validation" if there is one.
      arrays: what is kept on the devices, an argument of the compiled programs.
    """

    info: DataInfo
    splits: tuple[str, ...]
    arrays: PyTree

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """What each step from `start` on gets, on the devices; fixed by seed and epoch."""

    def batch_shapes(self) -> tuple[Batch, ...]:
        """What `epoch` gives, of each shape one, as jax.ShapeDtypeStructs with their sharding."""

    def examples(self, arrays: PyTree, batch: Batch, step: Array, key: Array) -> Example:
        """The images and labels of step number `step` (from 0), augmented; within jit."""

    def evaluation(self, split: str) -> Iterator[Batch]:
        """The batches of a split, on the devices, filled up to equal sizes."""

    def plain(self, arrays: PyTree, batch: Batch, split: str) -> Example:
        """The images and labels of an evaluation batch, as they are; within jit."""

    def raw(self, seed: int, count: int) -> tuple[Images, Labels]:
        """The first images and labels of epoch 0, on the host, whole on every process."""

    def close(self) -> None:
        """Ends what reads ahead, if anything does."""


class Resident:
    """A data set small enough to be kept on every device; a `Feed`."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        mesh: Mesh,
        *,
        crop_and_flip: bool = False,
        evaluation_batch: int = _EVALUATION_BATCH,
    ) -> None:
        """Puts all splits on the devices of the mesh."""
        self.dataset, self.info = dataset, described(dataset)
        images = len(self.info.image_shape) == 3 and self.info.dtype == "uint8"
        if crop_and_flip and not images:
            raise ValueError(
                "crop_and_flip=True is for uint8 images of shape (height, width, channels), not "
                f"for inputs of dtype {self.info.dtype} and shape {self.info.image_shape}."
            )
        self.splits: tuple[str, ...] = evaluated_on(dataset)
        self._batch_size, self._crop_and_flip = batch_size, crop_and_flip
        self._mesh, self._steps = mesh, self.info.train_images // batch_size
        self._evaluation_batch = multiple_of(mesh.size, evaluation_batch)
        arrays = {name: self._split(name) for name in ("train", *self.splits)}
        self.arrays = devices.replicate(
            {name: (split.images, split.labels) for name, split in arrays.items()}, mesh
        )

    def _split(self, name: str) -> Split:
        split: Split = getattr(self.dataset, name)
        return split

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.integer]:
        """The order in which an epoch goes through the training images."""
        return np.random.default_rng((seed, epoch)).permutation(self.info.train_images)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """As in `Feed`: the indices of all images of the epoch, (steps, batch size)."""
        order = self.order(seed, epoch)[: self._steps * self._batch_size].astype(np.int32)
        parts = own_part(order.reshape(self._steps, self._batch_size))
        return itertools.repeat(devices.distribute(parts, self._mesh, axis=1), self._steps - start)

    def batch_shapes(self) -> tuple[Batch, ...]:
        """As in `Feed`."""
        sharding = devices.by_batch(self._mesh, axis=1)
        shape = (self._steps, self._batch_size)
        return (jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding),)

    def examples(self, arrays: PyTree, batch: Batch, step: Array, key: Array) -> Example:
        """As in `Feed`."""
        images, labels = arrays["train"]
        batch = batch[step % self._steps]
        if not self._crop_and_flip:
            return Example(images[batch], labels[batch])
        return Example(augmentation.crop_and_flip(images, batch, key), labels[batch])

    def evaluation(self, split: str) -> Iterator[Batch]:
        """As in `Feed`: indices, −1 where there is no image left."""
        size = len(self._split(split))
        for start in range(0, size, self._evaluation_batch):
            indices = np.arange(start, start + self._evaluation_batch, dtype=np.int32)
            indices = np.where(indices < size, indices, -1)
            yield devices.distribute(own_part(indices), self._mesh)

    def plain(self, arrays: PyTree, batch: Batch, split: str) -> Example:
        """As in `Feed`."""
        images, labels = arrays[split]
        return Example(images[batch], filled(labels[batch], batch >= 0))

    def raw(self, seed: int, count: int) -> tuple[Images, Labels]:
        """As in `Feed`."""
        chosen = self.dataset.train.take(self.order(seed, 0)[:count])
        return chosen.images, chosen.labels

    def close(self) -> None:
        """As in `Feed`: nothing does."""


class Streamed:
    """A data set that is decoded while the devices compute; a `Feed`."""

    splits: tuple[str, ...] = ("test",)
    arrays: PyTree = None

    def __init__(self, stream: Stream, image_size: int, batch_size: int, mesh: Mesh) -> None:
        """Reads nothing yet."""
        self._stream, self._batch_size, self._mesh = stream, batch_size, mesh
        self._evaluation_batch = multiple_of(mesh.size, batch_size)
        self.info = DataInfo(
            num_classes=stream.num_classes,
            image_shape=(image_size, image_size, 3),
            dtype="uint8",
            label_shape=(),
            label_dtype="int32",
            pixel_mean=_IMAGENET_MEAN,
            pixel_sd=_IMAGENET_SD,
            class_names=stream.class_names,
            train_images=stream.train_images,
        )

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

    def batch_shapes(self) -> tuple[Batch, ...]:
        """As in `Feed`."""
        shape = (self._batch_size, *self.info.image_shape)
        sharding = devices.by_batch(self._mesh)
        images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)
        return ((images, jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=sharding)),)

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

    def raw(self, seed: int, count: int) -> tuple[Images, Labels]:
        """As in `Feed`."""
        images, labels = next(iter(self._stream.epoch(seed, 0, batch_size=count)))
        return images, labels

    def close(self) -> None:
        """As in `Feed`: the processes that decode."""
        self._stream.close()


class Batches:
    """Batches that something else makes, such as a data loader; a `Feed`."""

    arrays: PyTree = None

    def __init__(
        self,
        train: Any,
        test: Iterable[Any],
        validation: Iterable[Any] | None,
        mesh: Mesh,
        *,
        num_classes: int,
        class_names: Sequence[str] | None,
    ) -> None:
        """Looks at the first batch.

        Args:
          train: (inputs, targets) of one size; it has a length. Each pass over it is an epoch, of
            which its method set_epoch, if it has one, is told the number, from 0.
          test: batches of at most that size.
          validation: likewise; None without.
          mesh: the devices.
          num_classes: of the labels; 0 if that is not known.
          class_names: likewise; None if that is not known.

        Raises:
          ValueError: where several processes train together.
        """
        if not devices.is_alone():
            raise ValueError("batches that another program makes are for one process alone.")
        self._train, self._mesh = train, mesh
        self._held_out = {"test": test} | ({} if validation is None else {"validation": validation})
        self.splits: tuple[str, ...] = tuple(sorted(self._held_out, reverse=True))
        first = _as_split(next(self._pass(0)))
        scale = ((0.0,), (1.0,))
        info = _info(first.images, first.labels, num_classes, scale, class_names)
        self.batch_size, self._steps = len(first), len(train)
        self.info = info._replace(train_images=self._steps * self.batch_size)

    def _pass(self, epoch: int) -> Iterator[Any]:
        tell = getattr(self._train, "set_epoch", None)
        if tell is not None:
            tell(epoch)
        return iter(self._train)

    def _checked(self, batch: Any) -> Split:
        split, info = _as_split(batch), self.info
        found = (split.images.shape[1:], str(split.images.dtype), split.labels.shape[1:])
        if (
            found != (info.image_shape, info.dtype, info.label_shape)
            or len(split) > self.batch_size
        ):
            raise BrokenDataError(
                f"a batch of {len(split)} examples has inputs of shape {found[0]} and dtype "
                f"{found[1]} and targets of shape {found[2]}, where the first one has "
                f"{self.batch_size} of {info.image_shape}, {info.dtype} and {info.label_shape}."
            )
        return split

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """As in `Feed`: inputs and targets. The seed is the iterable's affair."""
        del seed
        batches = itertools.islice(self._pass(epoch), start, self._steps)
        for number, batch in enumerate(batches, start=start):
            split = self._checked(batch)
            if len(split) < self.batch_size:
                raise BrokenDataError(
                    f"batch {number} of the training data has {len(split)} examples, and the first "
                    f"one {self.batch_size}: leave an incomplete last batch out (drop_last=True)."
                )
            yield devices.distribute((split.images, split.labels), self._mesh)

    def batch_shapes(self) -> tuple[Batch, ...]:
        """As in `Feed`."""
        sharding, info = devices.by_batch(self._mesh), self.info
        kinds = ((info.image_shape, info.dtype), (info.label_shape, info.label_dtype))
        batch = tuple(
            jax.ShapeDtypeStruct((self.batch_size, *shape), dtype, sharding=sharding)
            for shape, dtype in kinds
        )
        return (batch,)

    def examples(self, arrays: PyTree, batch: Batch, step: Array, key: Array) -> Example:
        """As in `Feed`."""
        del arrays, step, key
        return Example(*batch)

    def evaluation(self, split: str) -> Iterator[Batch]:
        """As in `Feed`: inputs and targets."""
        for batch in self._held_out[split]:
            yield next(batches_of(self._checked(batch), self._mesh, self.batch_size))

    def plain(self, arrays: PyTree, batch: Batch, split: str) -> Example:
        """As in `Feed`."""
        del arrays, split
        return Example(*batch)

    def raw(self, seed: int, count: int) -> tuple[Any, Any]:
        """As in `Feed`."""
        del seed
        found: list[Split] = []
        for batch in self._pass(0):
            found.append(self._checked(batch))
            if sum(map(len, found)) >= count:
                break
        inputs = np.concatenate([split.images for split in found])
        return inputs[:count], np.concatenate([split.labels for split in found])[:count]

    def close(self) -> None:
        """As in `Feed`: nothing that is ours."""


def _as_split(batch: Any) -> Split:
    try:
        return as_split("a batch", batch)
    except (TypeError, ValueError) as error:
        raise BrokenDataError(str(error)) from error


class Described:
    """A data set of which no more than its description is there; a `Feed` that has no batches."""

    splits: tuple[str, ...] = ()
    arrays: PyTree = None

    def __init__(self, info: DataInfo) -> None:
        self.info = info

    def __getattr__(self, name: str) -> Any:
        raise ValueError(
            f"this takes the data set ({name}), and the run was opened without it: pass data=."
        )

    def close(self) -> None:
        """As in `Feed`: nothing does."""


def evaluated_on(dataset: Dataset) -> tuple[str, ...]:
    """The names of the splits that are not for training."""
    return ("test",) if dataset.validation is None else ("validation", "test")


def described(dataset: Dataset) -> DataInfo:
    """What there is to know of a data set in memory."""
    scale = (dataset.pixel_mean, dataset.pixel_sd)
    train = dataset.train
    info = _info(train.images, train.labels, dataset.num_classes, scale, dataset.class_names)
    return info._replace(text=dataset.text)


def _info(
    inputs: Any,
    targets: Any,
    num_classes: int,
    scale: tuple[tuple[float, ...], tuple[float, ...]],
    class_names: Sequence[str] | None,
) -> DataInfo:
    return DataInfo(
        num_classes,
        inputs.shape[1:],
        str(inputs.dtype),
        targets.shape[1:],
        str(targets.dtype),
        *scale,
        None if class_names is None else tuple(class_names),
        len(inputs),
    )


def filled(labels: Array, known: Array) -> Array:
    """The labels or other targets where they are known; −1 or NaN elsewhere."""
    filler = jnp.nan if jnp.issubdtype(labels.dtype, jnp.floating) else -1
    known = known.reshape(known.shape + (1,) * (labels.ndim - 1))
    return jnp.where(known, labels, jnp.asarray(filler, labels.dtype))


def are_known(labels: Array) -> Array:
    """Which of a batch's labels or other targets are not what `filled` fills in; (N,).

    Of several labels of an example some may be -1: they count for nothing.
    """
    further = tuple(range(1, labels.ndim))
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return jnp.all(~jnp.isnan(labels), axis=further)
    return jnp.any(labels >= 0, axis=further)


def batches_of(split: Split, mesh: Mesh, at_least: int = _EVALUATION_BATCH) -> Iterator[Example]:
    """Images of no feed in batches of one size, on the devices, filled up with no labels."""
    size = multiple_of(mesh.size, at_least)
    for start in range(0, len(split), size):
        indices = own_part(np.arange(start, start + size))
        taken = split.take(np.minimum(indices, len(split) - 1))
        labels = np.asarray(filled(jnp.asarray(taken.labels), jnp.asarray(indices < len(split))))
        yield Example(*devices.distribute((taken.images, labels), mesh))


def own_part(batch: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What this process has of a batch, which is the last axis."""
    index, count = devices.part_of_batch()
    size = batch.shape[-1] // count
    return batch[..., index * size : (index + 1) * size]


def multiple_of(step: int, at_least: int) -> int:
    """The smallest multiple of `step` that is not below `at_least`."""
    return -(-at_least // step) * step
