"""Images and labels as plain arrays, and the few things done to them before training."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from zosam_jax.errors import check_count
from zosam_jax.trees import Int, Integer, Shaped, UInt8

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
    """Images (N, height, width, channels) as uint8, and labels (N,) as int32.

    Of a problem of one's own, inputs and targets of any shape after N and of any dtype.
    """

    images: Shaped[np.ndarray, "n ..."]
    labels: Shaped[np.ndarray, "n ..."]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def take(self, indices: Int[np.ndarray, " m"]) -> "Split":
        """The images and labels at `indices`, in copies of their own."""
        return Split(self.images[indices], self.labels[indices])


class TextInfo(NamedTuple):
    """What there is to know of inputs that are tokens; part of data.json in a run folder.

    Attributes:
      separator: the token behind each text.
      start: that before a text which is classified, or whose gaps are filled in.
      bytes_a_token: how many bytes of UTF-8 a token of the test split stands for.
      shortened: the fraction of the training texts that were too long and have lost their end.
      fingerprint: of all texts; two sets of one name with the same are the same.
      tokenizer: what the tokenizer.json holds; None where tokens are bytes.
      mask: the token that stands in gaps; None where there are none.
    """

    separator: int
    start: int
    bytes_a_token: float
    shortened: float
    fingerprint: str
    tokenizer: str | None = None
    mask: int | None = None


class Dataset(NamedTuple):
    """A training and a test split, with the scale of their pixels.

    Attributes:
      train, test: the splits.
      validation: images held out of the training split; None without.
      num_classes: labels are 0, …, num_classes − 1; of targets that are no labels, the numbers of
        one.
      pixel_mean, pixel_sd: of the training images, for each channel, in pixel values (0 to 255);
        of inputs other than uint8, which are taken as they are, 0 and 1.
      class_names: what the classes are called; None if that is not known.
      text: of inputs that are tokens, where they come from; None for others.
    """

    train: Split
    test: Split
    num_classes: int
    pixel_mean: tuple[float, ...]
    pixel_sd: tuple[float, ...]
    validation: Split | None = None
    class_names: tuple[str, ...] | None = None
    text: TextInfo | None = None


def from_arrays(
    train: Sequence[Any],
    test: Sequence[Any],
    validation: Sequence[Any] | None = None,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """A data set out of arrays.

    Args:
      train: (inputs, targets). Inputs of shape [n, …]: uint8 pixels are scaled to mean 0 and
        standard deviation 1, by channel where they have the four axes of images; anything else is
        taken as it is. Targets of shape [n, …]: integers are labels, from 0; floating-point numbers
        are targets of a regression.
      test: likewise.
      validation: likewise, held out of the training data; None without.
      num_classes: by default one more than the largest label.
      class_names: what the classes are called.

    Returns:
      The data set, of float32 and int32 where the arrays were wider.

    Raises:
      ValueError: for arrays that do not fit each other, naming the split.
    """
    given = {"train": train, "test": test, "validation": validation}
    splits = {name: as_split(name, pair) for name, pair in given.items() if pair is not None}
    first = splits["train"]
    for name, split in splits.items():
        _check_finite(f"{name} has inputs", split.images)
        _check_finite(f"{name} has targets", split.labels)
        for part in ("images", "labels"):
            one, other = getattr(first, part), getattr(split, part)
            if (one.shape[1:], one.dtype) != (other.shape[1:], other.dtype):
                raise ValueError(
                    f"{name}: its arrays of shape {other.shape} and dtype {other.dtype} do not fit "
                    f"those of train, of shape {one.shape} and dtype {one.dtype}."
                )
    if first.labels.dtype == np.int32:
        highest = max(int(split.labels.max()) for split in splits.values())
        num_classes = num_classes or (len(class_names) if class_names else highest + 1)
        for name, split in splits.items():
            check_labels(split.labels.ravel(), num_classes, name)
    dataset = from_splits(
        splits["train"], splits["test"], num_classes or int(np.prod(first.labels.shape[1:]))
    )
    names = None if class_names is None else _names(class_names, dataset.num_classes)
    return dataset._replace(validation=splits.get("validation"), class_names=names)


def _names(given: Sequence[str], count: int) -> tuple[str, ...]:
    names = tuple(map(str, given))
    if isinstance(given, str) or len(set(names)) != len(names) or len(names) != count:
        raise ValueError(
            f"class_names={given!r:.80} must be a different name for each of {count} classes."
        )
    return names


def as_split(name: str, pair: Sequence[Any]) -> Split:
    """(inputs, targets) as arrays of 32 bits at most; `name` is what errors call them.

    Raises:
      ValueError: if they are no arrays of numbers, not as many, or labels are below 0.
    """
    if len(pair) != 2:
        raise ValueError(f"{name} must be (inputs, targets), not {len(pair)} arrays.")
    inputs, targets = (_narrow(name, array) for array in pair)
    if not len(targets) or len(inputs) != len(targets):
        raise ValueError(
            f"{name} has inputs of shape {inputs.shape} and targets of shape {targets.shape}: as "
            "many of both are expected, and at least one."
        )
    split = Split(inputs, targets.astype(np.int32) if targets.dtype == np.uint8 else targets)
    if split.labels.dtype == np.int32 and split.labels.min() < 0:
        raise ValueError(f"{name} has the label {split.labels.min()}, where 0, 1, … are expected.")
    return split


def _narrow(name: str, given: Any) -> Shaped[np.ndarray, "n ..."]:
    """An array as it is trained on: 32 bits at most, as the devices have it."""
    array = np.asarray(given)
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} holds {array.dtype} of shape {array.shape}: arrays of numbers are expected, "
            "with the examples along the first axis."
        )
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    return array if array.dtype == np.uint8 and array.ndim > 1 else as_int32(name, array)


def _check_finite(name: str, array: Shaped[np.ndarray, "n ..."]) -> None:
    for start in range(0, len(array), _BLOCK) if array.dtype.kind == "f" else ():
        block = array[start : start + _BLOCK]
        wrong = np.flatnonzero(~np.isfinite(block).reshape(len(block), -1).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"{name} that are NaN or infinite, first in example {start + wrong[0]}: fill them "
                "in or leave their examples out."
            )


def as_int32(name: str, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Integers of 32 bits; raises ValueError for those that would become others."""
    limits = np.iinfo(np.int32)
    if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
        raise ValueError(
            f"{name} holds integers from {array.min()} to {array.max()}: they are trained on in 32 "
            "bits, which do not hold them."
        )
    return array.astype(np.int32)


def from_splits(train: Split, test: Split, num_classes: int) -> Dataset:
    """A data set whose pixel scale is that of its training images."""
    if train.images.dtype != np.uint8:
        return Dataset(train, test, num_classes, (0.0,), (1.0,))
    values = np.arange(256)
    means, sds = [], []
    images = train.images if train.images.ndim == 4 else train.images[..., None]
    for channel in range(images.shape[-1]):
        # Counting values is exact; in blocks, since bincount widens what it counts.
        counts = np.zeros(256, np.int64)
        for start in range(0, len(train), _BLOCK):
            block = images[start : start + _BLOCK, ..., channel]
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
    small = from_splits(train, test, dataset.num_classes)
    held_out = dataset.validation and shrink_split(dataset.validation, factor)
    return small._replace(validation=held_out, class_names=dataset.class_names)


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
    if dataset.validation is not None:
        raise ValueError(
            f"validation_fraction={fraction!r} would replace the data set's own validation split."
        )
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
