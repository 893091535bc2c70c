"""Images and labels as plain arrays, and the few things done to them before training."""

import dataclasses
from typing import NamedTuple, TypeAlias

import numpy as np

from zosam_jax.errors import check_count
from zosam_jax.trees import Int, Integer, UInt8

Images: TypeAlias = UInt8[np.ndarray, "n height width channels"]
Labels: TypeAlias = Int[np.ndarray, " n"]

# Random streams of their own: were they one, the same seed would hold out just the images whose
# labels it replaces.
_NOISE_STREAM = 1
_HOLD_OUT_STREAM = 2
_BALANCED_STREAM = 3

_BLOCK = 1000


@dataclasses.dataclass(frozen=True)
class Split:
    """Images (N, height, width, channels) as uint8, and labels (N,) as int32."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def take(self, indices: Int[np.ndarray, " m"]) -> "Split":
        """The images and labels at `indices`, in copies of their own."""
        return Split(self.images[indices], self.labels[indices])


class Dataset(NamedTuple):
    """A training and a test split, with the scale of their pixels.

    Attributes:
      train, test: the splits.
      validation: images held out of the training split; None without.
      num_classes: labels are 0, …, num_classes − 1.
      pixel_mean, pixel_sd: of the training images, for each channel, in pixel values (0 to 255).
    """

    train: Split
    test: Split
    num_classes: int
    pixel_mean: tuple[float, ...]
    pixel_sd: tuple[float, ...]
    validation: Split | None = None


def from_splits(train: Split, test: Split, num_classes: int) -> Dataset:
    """A data set whose pixel scale is that of its training images."""
    values = np.arange(256)
    means, sds = [], []
    for channel in range(train.images.shape[-1]):
        # Counting values is exact; in blocks, since bincount widens what it counts.
        counts = np.zeros(256, np.int64)
        for start in range(0, len(train), _BLOCK):
            block = train.images[start : start + _BLOCK, ..., channel]
            counts += np.bincount(block.ravel(), minlength=256)
        mean = np.average(values, weights=counts)
        means.append(float(mean))
        # A channel that never changes becomes zero, not infinite.
        sds.append(float(np.sqrt(np.average((values - mean) ** 2, weights=counts))) or 1.0)
    return Dataset(train, test, num_classes, tuple(means), tuple(sds))


def check_labels(labels: Integer[np.ndarray, " n"], num_classes: int, source: str) -> None:
    """Raises unless labels are 0, …, num_classes − 1, naming the first that is not."""
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise ValueError(
            f"{source} gives image {outside[0]} the label {labels[outside[0]]}, where 0 to "
            f"{num_classes - 1} are expected."
        )


def limit(dataset: Dataset, train_images: int) -> Dataset:
    """Keeps the first `train_images` training images; the scale of the pixels stays."""
    check_count("train_images", train_images)
    if train_images > len(dataset.train):
        raise ValueError(
            f"train_images={train_images} is more than the {len(dataset.train)} there are."
        )
    return dataset._replace(train=dataset.train.take(np.arange(train_images)))


def with_label_noise(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Replaces a fraction of the training labels by labels drawn uniformly at random.

    A replaced label can come out the same, so about fraction·(1 − 1/num_classes) are wrong. Test
    labels stay as they are.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"label_noise={fraction!r} must be between 0 and 1.")
    generator = np.random.default_rng((seed, _NOISE_STREAM))
    labels = dataset.train.labels.copy()
    chosen = generator.permutation(len(labels))[: round(fraction * len(labels))]
    labels[chosen] = generator.integers(dataset.num_classes, size=len(chosen))
    return dataset._replace(train=Split(dataset.train.images, labels))


def shrink(dataset: Dataset, factor: int) -> Dataset:
    """Averages blocks of factor × factor pixels into one, in all images."""
    train, test = shrink_split(dataset.train, factor), shrink_split(dataset.test, factor)
    return from_splits(train, test, dataset.num_classes)


def shrink_split(split: Split, factor: int) -> Split:
    """Averages blocks of factor × factor pixels into one, rounded to uint8."""
    n, height, width, channels = split.images.shape
    if height % factor or width % factor:
        raise ValueError(f"shrink={factor} must divide the images' {height}×{width} pixels.")
    blocks = split.images.reshape(n, height // factor, factor, width // factor, factor, channels)
    return Split(np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8), split.labels)


def with_validation(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Takes a random part of the training images out and makes it the validation split.

    Held-out labels are as noisy as the training labels they were.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction={fraction!r} must be between 0 and 1.")
    order = np.random.default_rng((seed, _HOLD_OUT_STREAM)).permutation(len(dataset.train))
    held_out = round(fraction * len(order))
    if not 0 < held_out < len(order):
        raise ValueError(
            f"validation_fraction={fraction!r} of {len(order)} training images is {held_out}: hold "
            "out more, and leave some."
        )
    return dataset._replace(
        train=dataset.train.take(np.sort(order[held_out:])),
        validation=dataset.train.take(np.sort(order[:held_out])),
    )


def balanced_sample(
    split: Split, per_class: int, num_classes: int, seed: int
) -> Int[np.ndarray, " m"]:
    """The indices of `per_class` random images of each class, in random order.

    Args:
      split: images and labels.
      per_class: how many of each class.
      num_classes: labels are 0, …, num_classes − 1.
      seed: an integer of at least 0.

    Returns:
      per_class·num_classes indices into the split.

    Raises:
      ValueError: if a class has fewer, naming it.
    """
    rng = np.random.default_rng((seed, _BALANCED_STREAM))
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(split.labels == label)
        if len(members) < per_class:
            raise ValueError(
                f"class {label} has {len(members)} of the {per_class} training images that a "
                "balanced sample needs: use more training images."
            )
        chosen.append(rng.choice(members, per_class, replace=False))
    return rng.permutation(np.concatenate(chosen))
