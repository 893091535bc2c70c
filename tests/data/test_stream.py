"""The stream of batches: what is in it, in which order, and what becomes of its workers."""

import gc
import io
import itertools
import multiprocessing
import sys

import numpy as np
import pytest
from jax._src import xla_bridge
from PIL import Image

from zosam_jax.data.records import LabelledImage
from zosam_jax.data.stream import Stream, centre_crop, random_resized_crop

SIZE = 8


class Jpegs:
    """Image i is JPEG-encoded noise of seed i; its label is i, so that a batch tells its images."""

    def __init__(self, count, damaged=None):
        self.num_classes = 100
        self.class_names = None
        self.contents = []
        for i in range(count):
            noise = np.random.default_rng(i).integers(256, size=(12 + i % 3, 14, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(noise).convert("L" if i % 5 == 0 else "RGB").save(file, "JPEG")
            self.contents.append(file.getvalue())
        self.damaged = damaged

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, index):
        if multiprocessing.parent_process() and xla_bridge.backends_are_initialized():
            raise AssertionError("a worker process has initialised JAX's devices.")
        if index == self.damaged:
            raise ValueError(f"folder/{index}.jpg is not an image.")
        image = Image.open(io.BytesIO(self.contents[index]))
        image.load()
        return LabelledImage(image, index)


TRAIN, TEST = Jpegs(23), Jpegs(10)


def stream(train=TRAIN, test=TEST, **options):
    return Stream(train, test, image_size=SIZE, **options)


def assert_same(batches, others):
    for batch, other in itertools.zip_longest(batches, others):
        for array, expected in zip(batch, other, strict=True):
            np.testing.assert_array_equal(array, expected)


@pytest.fixture(scope="module")
def epochs():
    """Two whole epochs of batches of 6, in this process."""
    ours = stream()
    return [list(ours.epoch(5, epoch, batch_size=6)) for epoch in range(2)]


def labels_of(batches):
    return np.concatenate([labels for _, labels in batches])


def test_an_epoch_has_every_image_once_but_for_the_incomplete_batch(epochs):
    for batches in epochs:
        assert len(batches) == 23 // 6
        for images, labels in batches:
            assert (images.shape, images.dtype) == ((6, SIZE, SIZE, 3), np.uint8)
            assert (labels.shape, labels.dtype) == ((6,), np.int32)
        assert len(set(labels_of(batches))) == 18
    orders = [tuple(labels_of(batches)) for batches in epochs]
    assert len({*orders, tuple(range(18))}) == 3  # shuffled, and anew
    whole = list(stream().epoch(5, 0, batch_size=1))
    assert sorted(labels_of(whole)) == list(range(23))


def test_the_seed_decides(epochs):
    assert_same(stream().epoch(5, 0, batch_size=6), epochs[0])
    other = list(stream().epoch(6, 0, batch_size=6))
    assert (labels_of(other) != labels_of(epochs[0])).any()


def test_an_image_is_cropped_anew_in_every_epoch(epochs):
    first, second = (
        {
            int(label): image
            for images, labels in batches
            for image, label in zip(images, labels, strict=True)
        }
        for batches in epochs
    )
    common = first.keys() & second.keys()
    assert len(common) > 10
    assert all((first[label] != second[label]).any() for label in common)


@pytest.mark.parametrize("start", [1, 2, 3])
def test_a_resumed_epoch_gives_the_rest_of_the_uninterrupted_one(epochs, start):
    assert_same(stream().epoch(5, 1, batch_size=6, start=start), epochs[1][start:])


def test_shards_are_contiguous_parts_of_the_whole_batch(epochs):
    parts = [stream().epoch(5, 1, batch_size=6, shard=(index, 3)) for index in range(3)]
    joined = [
        tuple(np.concatenate(arrays) for arrays in zip(*batch, strict=True))
        for batch in zip(*parts, strict=True)
    ]
    assert joined[0][0].shape == (6, SIZE, SIZE, 3)
    assert_same(joined, epochs[1])


def test_workers_change_nothing_and_stay_from_epoch_to_epoch(epochs):
    before = set(multiprocessing.active_children())

    def workers():
        return {process.pid for process in set(multiprocessing.active_children()) - before}

    with stream(workers=2) as ours:
        assert_same(ours.epoch(5, 0, batch_size=6), epochs[0])
        first = workers()
        assert len(first) == 2
        assert_same(ours.epoch(5, 1, batch_size=6), epochs[1])
        assert workers() == first
        # Two at once: the second gets workers of its own, and its early end stops them.
        for images, _ in ours.epoch(5, 0, batch_size=6, start=1):
            np.testing.assert_array_equal(images, epochs[0][1][0])
            break
        assert not workers()


def test_the_test_split_comes_twice_from_the_same_workers():
    ours = stream(workers=1)
    expected = list(stream().test(batch_size=4))
    assert_same(ours.test(batch_size=4), expected)
    children = multiprocessing.active_children()
    assert_same(ours.test(batch_size=4), expected)
    assert multiprocessing.active_children() == children
    del ours
    gc.collect()
    assert not set(children) & set(multiprocessing.active_children())


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_records_raise_arrives_as_it_is(workers):
    before = set(multiprocessing.active_children())
    ours = stream(train=Jpegs(9, damaged=4), workers=workers)
    with pytest.raises(ValueError, match="folder") as caught:
        list(ours.epoch(0, 0, batch_size=3))
    assert str(caught.value) == "folder/4.jpg is not an image."
    assert set(multiprocessing.active_children()) == before


def test_two_epochs_can_be_read_at_once(epochs):
    ours = stream()
    pairs = list(zip(*(ours.epoch(5, e, batch_size=6) for e in range(2)), strict=True))
    assert_same([first for first, _ in pairs], epochs[0])
    assert_same([second for _, second in pairs], epochs[1])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_a_stream_closed_in_the_middle_says_so_and_can_be_read_again(epochs, workers):
    with stream(workers=workers) as ours:
        batches = ours.epoch(5, 0, batch_size=6)
        next(batches)
    with pytest.raises(RuntimeError, match="closed while an epoch was being read"):
        next(batches)
    with ours:
        assert_same(ours.epoch(5, 0, batch_size=6, start=2), epochs[0][2:])


def test_repeats_come_in_a_row_each_augmented_anew():
    batches = list(stream(repeats=3).epoch(5, 0, batch_size=6))
    labels = labels_of(batches)
    assert len(labels) == 18
    rows = labels.reshape(6, 3)
    assert (rows == rows[:, :1]).all()
    assert len(set(labels)) == 6
    images = np.concatenate([images for images, _ in batches])
    assert (images[0] != images[1]).any()
    assert (images[1] != images[2]).any()
    plain = labels_of(stream().epoch(5, 0, batch_size=6))
    np.testing.assert_array_equal(rows[:, 0], plain[:6])


def test_randaugment_changes_images_and_not_their_order(epochs):
    batches = list(stream(randaugment=True).epoch(5, 0, batch_size=6))
    np.testing.assert_array_equal(labels_of(batches), labels_of(epochs[0]))
    changed = [
        (images != plain).any((1, 2, 3))
        for (images, _), (plain, _) in zip(batches, epochs[0], strict=True)
    ]
    # One in four is to stay as it is; the crop and the flip are the same.
    assert 0.4 < np.mean(changed) < 1
    assert_same(stream(randaugment=True).epoch(5, 0, batch_size=6), batches)


@pytest.mark.parametrize("count", [1, 2])
def test_the_last_test_batch_is_filled_up(count):
    parts = [list(stream().test(batch_size=4, shard=(i, count))) for i in range(count)]
    labels = np.concatenate(
        [np.concatenate([part[step][1] for part in parts]) for step in range(3)]
    )
    np.testing.assert_array_equal(labels, [*range(10), -1, -1])
    last, _ = parts[-1][-1]
    assert last.shape == (4 // count, SIZE, SIZE, 3)
    assert not last[-2:].any()
    assert last[:-2].any() or count == 2


def test_test_images_are_centre_crops():
    images, _ = next(stream().test(batch_size=10))
    for index in range(10):
        expected = centre_crop(TEST[index].image.convert("RGB"), SIZE, 0.875)
        np.testing.assert_array_equal(images[index], np.asarray(expected))


@pytest.mark.parametrize("width", [16, 21, 30])
def test_a_centre_crop_of_an_image_of_the_right_size_is_a_slice(width):
    pixels = np.random.default_rng(0).integers(256, size=(16, width, 3), dtype=np.uint8)
    for array, turn in ((pixels, False), (pixels.transpose(1, 0, 2), True)):
        crop = np.asarray(centre_crop(Image.fromarray(np.ascontiguousarray(array)), 14, 0.875))
        left = round((width - 14) / 2)
        expected = pixels[1:15, left : left + 14]
        np.testing.assert_array_equal(crop, expected.transpose(1, 0, 2) if turn else expected)


def test_a_centre_crop_resizes_the_shorter_side():
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None], (200, 100))
    crop = np.asarray(centre_crop(Image.fromarray(np.ascontiguousarray(ramp)), 40, 0.8))
    assert crop.shape == (40, 40)  # of 100 × 50: rows 30 to 69
    np.testing.assert_allclose(crop[:, 0], 2 * np.arange(30, 70) + 0.5, atol=1)


def test_random_crops_have_the_promised_areas_shapes_and_places():
    height, width, size = 90, 120, 10
    row, column = np.mgrid[:height, :width]
    image = Image.fromarray(np.stack([column, row, 0 * row], -1).astype(np.uint8))
    generator = np.random.default_rng(0)
    boxes = []
    for _ in range(1500):
        crop = np.asarray(random_resized_crop(image, size, generator)).astype(float)
        # Both ramps stay ramps; their slopes are the box's sides over `size`.
        wide, high = (crop[5, 7, 0] - crop[5, 2, 0]) * 2, (crop[7, 5, 1] - crop[2, 5, 1]) * 2
        boxes.append((crop[5, :, 0].mean(), crop[:, 5, 1].mean(), wide, high))
    x, y, wide, high = np.transpose(boxes)
    slack = 4  # of the rounded pixels from which the sides are computed
    assert ((wide + slack) * (high + slack) >= 0.08 * height * width).all()
    assert (wide.max(), high.max()) == pytest.approx((width, height), abs=slack)
    assert (wide.min() * high.min()) < 0.12 * height * width
    aspect = wide / high
    assert ((wide + slack) / (high - slack) >= 3 / 4).all()
    assert ((wide - slack) / (high + slack) <= 4 / 3).all()
    assert np.quantile(aspect, [0.1, 0.9]) == pytest.approx([0.79, 1.26], abs=0.05)
    assert (x.mean(), y.mean()) == pytest.approx((width / 2, height / 2), abs=2)
    # Areas are uniform from 8 % to what fits: high is ≤ 90 up to an area of aspect · 90/120.
    most = height / width * np.exp(np.linspace(-np.log(4 / 3), np.log(4 / 3), 1000))
    expected = (most**2 - 0.08**2).mean() / 2 / (most - 0.08).mean()
    area = wide * high / (height * width)
    assert area.mean() == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("shape", [(4, 400), (400, 4)])
def test_where_no_crop_fits_the_centre_is_taken(shape):
    pixels = np.zeros(shape, np.uint8)
    pixels[tuple(slice(n // 2 - 3 if n > 4 else 0, n // 2 + 3) for n in shape)] = 9
    crop = random_resized_crop(Image.fromarray(pixels), SIZE, np.random.default_rng(0))
    assert crop.size == (SIZE, SIZE)
    assert np.asarray(crop).min() > 7


def test_half_the_images_are_flipped():
    class Ramps:
        num_classes = 1
        class_names = None

        def __len__(self):
            return 600

        def __getitem__(self, index):
            ramp = np.broadcast_to(np.arange(40, dtype=np.uint8), (40, 40))
            return LabelledImage(Image.fromarray(np.ascontiguousarray(ramp)), 0)

    [(images, _)] = stream(train=Ramps(), test=Ramps()).epoch(0, 0, batch_size=600)
    falling = images[:, 4, 0, 0].astype(int) > images[:, 4, -1, 0]
    assert falling.mean() == pytest.approx(0.5, abs=0.06)


def test_sizes():
    ours = stream()
    assert (ours.num_classes, ours.train_images, ours.test_images) == (100, 23, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size=0 must be at least 1"),
        ({"repeats": 0}, "repeats=0 must be at least 1"),
        ({"workers": -1}, "workers=-1 must be an integer of at least 0"),
        ({"crop_ratio": 1.5}, r"crop_ratio=1\.5 must be above 0 and at most 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Stream(TRAIN, TEST, **{"image_size": SIZE} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed=-1 must be an integer of at least 0"),
        ({"epoch": 0.5}, r"epoch=0\.5 must be an integer"),
        ({"batch_size": 24}, "batch_size=24 is more than the 23 training images"),
        ({"start": 4}, "start=4 must be from 0 to 3, the batches in an epoch"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\) must be \(index, count\)"),
        ({"shard": (0, 4)}, "batch_size=6 must be a multiple of the 4 shards"),
    ],
)
def test_impossible_epochs_are_refused_before_the_first_batch(options, message):
    options = {"seed": 0, "epoch": 0, "batch_size": 6} | options
    with pytest.raises(ValueError, match=message):
        stream().epoch(**options)


def test_splits_must_agree_in_their_classes():
    other = Jpegs(2)
    other.num_classes = 7
    with pytest.raises(ValueError, match="have 100 classes and the test images 7"):
        stream(test=other)


def test_without_grain_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'zosam_jax\[data\]'"):
        stream()
