"""Batches of augmented images for data sets that do not fit into memory, read by Grain."""

import dataclasses
import functools
import gc
import importlib
import itertools
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np
from PIL import Image

from zosam_jax.data.dataset import Images, Labels
from zosam_jax.data.images import MOST_PIXELS, check_image_size
from zosam_jax.data.randaugment import randaugment as apply_randaugment
from zosam_jax.data.records import LabelledImage, Records
from zosam_jax.errors import check_count
from zosam_jax.trees import Int

Batch = tuple[Images, Labels]
Box = tuple[int, int, int, int]

# Random streams of their own: were they one, an epoch's order would decide its first image's crop.
_ORDER_STREAM = 1
_SAMPLE_STREAM = 2

# The part of a test image's shorter side that is kept.
CROP_RATIO = 0.875

_CROP_AREA = (0.08, 1.0)
_CROP_ASPECT = 4 / 3  # at most, upright or lying
_CROP_ATTEMPTS = 10
_PADDING_LABEL = -1
_MOST_THREADS = 8


class Stream:
    """Shuffled and augmented training batches, and test batches, as NumPy arrays.

    A training image is cropped at random to 8–100 % of its area and an aspect ratio of 3/4–4/3,
    resized bicubically and flipped half the time. A test image's shorter side is resized
    bicubically to image_size/crop_ratio, and its centre is cut out.

    Every random choice depends on (seed, epoch, position in the epoch) alone: not on the workers,
    the shard or where an epoch was resumed.

    Worker processes start with the first batch and stay from one epoch to the next, reading ahead;
    training and testing have `workers` each. An epoch that is left early, by an error, an interrupt
    or a `break`, stops its workers; so do `close`, leaving a `with` block, and the program's end.
    They are spawned: a script that reads from a Stream at its top level needs the usual
    `if __name__ == "__main__":`.
    """

    def __init__(
        self,
        train: Records,
        test: Records,
        *,
        image_size: int,
        randaugment: bool = False,
        repeats: int = 1,
        workers: int = 0,
        crop_ratio: float = CROP_RATIO,
    ) -> None:
        """Reads nothing yet.

        Args:
          train, test: the images.
          image_size: height and width of the images in a batch, in pixels.
          randaugment: whether training images also undergo RandAugment.
          repeats: how often an image comes in a row, each time augmented anew (DeiT's repeated
            augmentation: 3). An epoch stays as long, so only every `repeats`-th image is in it.
          workers: the number of processes that read; 0 reads in this one, with threads.
          crop_ratio: the part of a test image's shorter side that is kept.

        Raises:
          ValueError: if an argument is out of range, or the splits differ in their classes.
          ModuleNotFoundError: if Grain is missing, naming the extra that brings it.
        """
        check_image_size(image_size)
        check_count("repeats", repeats)
        _check_natural("workers", workers)
        if not 0 < crop_ratio <= 1:
            raise ValueError(f"crop_ratio={crop_ratio!r} must be above 0 and at most 1.")
        if train.num_classes != test.num_classes:
            raise ValueError(
                f"the training images have {train.num_classes} classes and the test images "
                f"{test.num_classes}: they must have the same."
            )
        _import_grain()
        self.num_classes = train.num_classes
        self.class_names = train.class_names
        self.train_images = len(train)
        self.test_images = len(test)
        self._train = functools.partial(
            _TrainBatches, train, image_size, randaugment=randaugment, repeats=repeats
        )
        self._test = functools.partial(_TestBatches, test, image_size, crop_ratio=crop_ratio)
        self._workers = workers
        self._test_passes = itertools.count()
        self._feeds: set[_Feed] = set()
        self._idle: dict[type, _Feed] = {}
        weakref.finalize(self, _close_all, self._feeds)

    def epoch(
        self,
        seed: int,
        epoch: int,
        *,
        batch_size: int,
        start: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """One epoch of training batches; the last one is left out if it is incomplete.

        Args:
          seed, epoch: of the whole run; from 0.
          batch_size: b, of all shards together.
          start: the first batch to give, so that a run can go on where it stopped.
          shard: (index, count): this host reads the part of each batch from index·b/count up to
            (index + 1)·b/count, and nothing else.

        Returns:
          Images (b/count, image_size, image_size, 3) in uint8 and labels (b/count,) in int32.

        Raises:
          ValueError: if an argument is out of range; while reading, what the records raise.
        """
        _check_natural("seed", seed)
        _check_natural("epoch", epoch)
        _check_batch(batch_size, shard)
        if batch_size > self.train_images:
            raise ValueError(
                f"batch_size={batch_size!r} is more than the {self.train_images} training images."
            )
        batches = self._train(batch_size, shard, seed=seed)
        if not 0 <= start <= batches.per_epoch:
            raise ValueError(
                f"start={start!r} must be from 0 to {batches.per_epoch}, the batches in an epoch."
            )
        return self._read(batches, epoch * batches.per_epoch + start, batches.per_epoch - start)

    def test(self, *, batch_size: int, shard: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """All test images in order; the last batch is filled up with black images of label −1.

        Arguments, batches and errors are as of `epoch`.
        """
        _check_batch(batch_size, shard)
        batches = self._test(batch_size, shard)
        first = next(self._test_passes) * batches.per_epoch
        return self._read(batches, first, batches.per_epoch)

    def close(self) -> None:
        """Stops all worker processes; epochs that are still being read end with an error."""
        self._idle.clear()
        _close_all(self._feeds)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, batches: "_Batches", first: int, count: int) -> Iterator[Batch]:
        """`count` batches from the feed that waits at `first`, or else from a new one."""
        feed = self._idle.pop(type(batches), None)
        if feed is None or (feed.batches, feed.position) != (batches, first):
            self._close(feed)
            feed = _Feed(batches, first, first + count, self._workers)
            self._feeds.add(feed)
        try:
            for _ in range(count):
                yield feed.next()
        finally:
            if self._workers and feed in self._feeds and feed.position == first + count:
                overtaken = self._idle.pop(type(batches), None)
                self._idle[type(batches)] = feed
                self._close(overtaken)
            else:
                self._close(feed)

    def _close(self, feed: "_Feed | None") -> None:
        if feed is not None:
            self._feeds.discard(feed)
            feed.close()


def _close_all(feeds: "set[_Feed]") -> None:
    while feeds:
        feeds.pop().close()


class _Feed:
    """Consecutive batches, made ahead of time by threads or by worker processes.

    Threads stop at `stop`, since the next epoch can start new ones for nothing; processes go on.
    """

    def __init__(self, batches: "_Batches", first: int, stop: int, workers: int) -> None:
        grain = _import_grain()
        self.batches = batches
        self.position = first
        self._closing = threading.Event()
        self._file: IO[bytes] | None = None
        if workers:
            _check_main_is_guarded()
            self._file = tempfile.NamedTemporaryFile(prefix="zosam_jax-")  # noqa: SIM115
            source: Any = _Written.to(self._file, batches)
            steps, threads = slice(first, None), 0
        else:
            source = _guarded(batches, self._check_open)
            steps, threads = slice(first, stop), min(_MOST_THREADS, os.cpu_count() or 1)
        self._iterator = iter(
            grain.MapDataset.source(source)
            .slice(steps)
            .to_iter_dataset(
                grain.ReadOptions(
                    num_threads=threads, prefetch_buffer_size=threads + 1 if threads else 0
                )
            )
            .mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(num_workers=workers),
                worker_init_fn=_prepare_worker,
            )
        )

    def next(self) -> Batch:
        self._check_open()
        try:
            images, labels = next(self._iterator)
        except RuntimeError as error:
            error.add_note(
                "If a worker process was terminated: a script needs `if __name__ == '__main__':` "
                "around what it runs, and the batches need room in shared memory (/dev/shm)."
            )
            raise
        self.position += 1
        # Plain views of the shared memory that a worker wrote.
        return np.asarray(images), np.asarray(labels)

    def close(self) -> None:
        if self._closing.is_set():
            return
        # Threads and processes leave the batch that they are at; Grain alone would wait for it.
        self._closing.set()
        if self._file is not None:
            self._file.truncate(0)
        self._iterator.close()
        if self._file is not None:
            self._file.close()
            # Grain's iterators refer to themselves, and batches in shared memory live with them.
            del self._iterator
            gc.collect()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise RuntimeError("the stream was closed while an epoch was being read.")


@dataclasses.dataclass(frozen=True)
class _Batches:
    """This host's part of every batch, by the number of the batch since the first epoch began."""

    records: Records = dataclasses.field(compare=False)
    image_size: int
    batch_size: int
    shard: tuple[int, int]

    @property
    def per_epoch(self) -> int:
        raise NotImplementedError

    def __len__(self) -> int:
        """Epochs follow each other without end."""
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        epoch, step = divmod(step, self.per_epoch)
        index, count = self.shard
        part = self.batch_size // count
        first = step * self.batch_size + index * part
        images = np.zeros((part, self.image_size, self.image_size, 3), np.uint8)
        labels = np.full(part, _PADDING_LABEL, np.int32)
        samples = self.samples(epoch, range(first, first + part))
        for place, (image, label) in enumerate(samples):
            images[place] = np.asarray(image)
            labels[place] = label
        return images, labels

    def samples(self, epoch: int, positions: range) -> Iterable[LabelledImage]:
        """The finished images at these positions of an epoch; fewer where it ends."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _TrainBatches(_Batches):
    seed: int
    randaugment: bool
    repeats: int

    @property
    def per_epoch(self) -> int:
        return len(self.records) // self.batch_size

    def samples(self, epoch: int, positions: range) -> Iterable[LabelledImage]:
        order = _order(self.seed, epoch, len(self.records))
        for position in positions:
            generator = np.random.default_rng((self.seed, epoch, position, _SAMPLE_STREAM))
            image, label = self.records[int(order[position // self.repeats])]
            image = random_resized_crop(image.convert("RGB"), self.image_size, generator)
            if generator.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if self.randaugment:
                image = apply_randaugment(image, generator)
            yield LabelledImage(image, label)


@dataclasses.dataclass(frozen=True)
class _TestBatches(_Batches):
    crop_ratio: float

    @property
    def per_epoch(self) -> int:
        return -(-len(self.records) // self.batch_size)

    def samples(self, epoch: int, positions: range) -> Iterable[LabelledImage]:
        del epoch
        for position in range(positions.start, min(positions.stop, len(self.records))):
            image, label = self.records[position]
            try:
                crop = centre_crop(image.convert("RGB"), self.image_size, self.crop_ratio)
            except ValueError as error:
                raise ValueError(f"image {position} of {self.records}: {error}") from error
            yield LabelledImage(crop, label)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Int[np.ndarray, " count"]:
    """The permutation of an epoch; both that ends and that begins are in use at their border."""
    return np.random.default_rng((seed, epoch, _ORDER_STREAM)).permutation(count)


def random_resized_crop(
    image: Image.Image, size: int, generator: np.random.Generator
) -> Image.Image:
    """A random part of an image, resized bicubically to size × size pixels.

    Its area is uniform over 8–100 % of the image's, its width/height log-uniform over 3/4–4/3, its
    place uniform. If ten draws in a row do not fit, it is the largest centred part of an aspect
    ratio within that range.

    Reference: Szegedy et al., Going Deeper with Convolutions, https://arxiv.org/abs/1409.4842
    """
    box = _random_box(image.width, image.height, generator)
    return image.crop(box).resize((size, size), Image.Resampling.BICUBIC)


def _random_box(width: int, height: int, generator: np.random.Generator) -> Box:
    """(left, top, right, bottom) of `random_resized_crop`."""
    for _ in range(_CROP_ATTEMPTS):
        area = generator.uniform(*_CROP_AREA) * width * height
        aspect = _CROP_ASPECT ** generator.uniform(-1, 1)
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left = int(generator.integers(width - wide + 1))
            top = int(generator.integers(height - high + 1))
            return left, top, left + wide, top + high
    wide, high = min(width, round(height * _CROP_ASPECT)), min(height, round(width * _CROP_ASPECT))
    return _centred(width, height, wide, high)


def centre_crop(image: Image.Image, size: int, crop_ratio: float) -> Image.Image:
    """The centre of an image whose shorter side is resized bicubically to ⌊size/crop_ratio⌋.

    Raises:
      ValueError: if the whole image is then of more than MOST_PIXELS, being too long.
    """
    shorter = math.floor(size / crop_ratio)
    width, height = (side * shorter // min(image.size) for side in image.size)
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"its {image.width}×{image.height} pixels become {width}×{height} for crops of {size}, "
            f"more than {MOST_PIXELS:,}."
        )
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop(_centred(width, height, size, size))


def _centred(width: int, height: int, wide: int, high: int) -> Box:
    left, top = round((width - wide) / 2), round((height - high) / 2)
    return left, top, left + wide, top + high


class _GuardedRecords:
    """Records that ask, before each image, whether to go on; `check` raises if not."""

    def __init__(self, records: Records, check: Callable[[], None]) -> None:
        self.num_classes = records.num_classes
        self.class_names = records.class_names
        self._records = records
        self._check = check

    def __len__(self) -> int:
        return len(self._records)

    def __str__(self) -> str:
        return str(self._records)

    def __getitem__(self, index: int) -> LabelledImage:
        self._check()
        return self._records[index]


def _guarded(batches: "_Batches", check: Callable[[], None]) -> "_Batches":
    return dataclasses.replace(batches, records=_GuardedRecords(batches.records, check))


@dataclasses.dataclass(frozen=True)
class _Written:
    """Batches that lie in a file, until a worker process asks for the first.

    Records may hold a million file names: pickled once, not for every worker, they start sooner.
    And a worker that dies at once, say of an error in its parent's script, is noticed: a parent
    still writing more to it than a pipe holds would wait for ever.
    """

    path: str

    @classmethod
    def to(cls, file: IO[bytes], batches: "_Batches") -> "_Written":
        importlib.import_module("cloudpickle").dump(batches, file)  # it comes with Grain
        file.flush()
        return cls(file.name)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        return _open(self.path)[step]


@functools.cache
def _open(path: str) -> "_Batches":
    """What the parent has written, in a worker process, which ends when the file is emptied."""
    file = open(path, "rb")  # noqa: SIM115 (it stays open, for the check)

    def check() -> None:
        if os.fstat(file.fileno()).st_size == 0:
            # Grain waits no longer for a process whose status is not 0.
            sys.exit(1)

    return _guarded(pickle.load(file), check)


def _check_main_is_guarded() -> None:
    # The mark of a process that is only just importing its parent's script.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a worker process that starts workers of its own would never end: put what the "
            "script runs under `if __name__ == '__main__':`."
        )


def _prepare_worker(index: int, count: int) -> None:
    """Leaves an interrupt (Ctrl-C reaches every process) to the parent, and ends when it ends."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _import_grain() -> Any:
    try:
        flags = importlib.import_module("absl.flags").FLAGS
        grain = importlib.import_module("grain")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Grain, which reads images that do not fit into memory, comes with: "
            "pip install 'zosam_jax[data]'."
        ) from error
    # Grain asks absl's flags for its settings, which is an error until someone has parsed them.
    if not flags.is_parsed():
        flags.mark_as_parsed()
    return grain


def _check_natural(argument: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{argument}={value!r} must be an integer of at least 0.")


def _check_batch(batch_size: int, shard: tuple[int, int]) -> None:
    check_count("batch_size", batch_size)
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard={shard!r} must be (index, count) with 0 ≤ index < count.")
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size!r} must be a multiple of the {count} shards.")
