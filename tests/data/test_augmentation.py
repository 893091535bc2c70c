"""Augmentation on the device against NumPy, and against the distributions it promises."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zosam_jax.data.augmentation import crop_and_flip, mixup_and_cutmix, random_erasing


def random_images(count, height, width):
    # No zeros: those come from the padding alone.
    shape = (count, height, width, 3)
    return np.random.default_rng(0).integers(1, 256, size=shape, dtype=np.uint8)


def crop_and_flip_in_numpy(image, padding, top, left, flip):
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    cropped = padded[top : top + height, left : left + width]
    return cropped[:, ::-1] if flip else cropped


def test_every_crop_and_flip_occurs_as_often_and_nothing_else():
    images = random_images(7, 6, 5)
    indices = np.random.default_rng(1).integers(7, size=3000)
    batch = np.asarray(
        jax.jit(functools.partial(crop_and_flip, padding=2))(images, indices, jax.random.key(0))
    )
    ways = list(itertools.product(range(5), range(5), (False, True)))
    name = {
        crop_and_flip_in_numpy(image, 2, *way).tobytes(): (index, way)
        for index, image in enumerate(images)
        for way in ways
    }
    assert len(name) == len(images) * len(ways)
    found = [name[image.tobytes()] for image in batch]
    np.testing.assert_array_equal([index for index, _ in found], indices)
    counts = [[way for _, way in found].count(way) for way in ways]
    # χ² with 49 degrees of freedom; 85.4 is exceeded once in a thousand times.
    assert sum((count - 60) ** 2 / 60 for count in counts) < 85.4


def test_without_padding_a_crop_is_the_image():
    images = random_images(4, 6, 5)
    batch = np.asarray(
        crop_and_flip(jnp.array(images), jnp.arange(4), jax.random.key(0), padding=0)
    )
    for image, result in zip(images, batch, strict=True):
        assert any((result == each).all() for each in (image, image[:, ::-1]))


def test_padding_must_not_be_negative():
    with pytest.raises(ValueError, match="padding=-1 must be a finite number at least 0"):
        crop_and_flip(jnp.zeros((1, 4, 4, 3)), jnp.arange(1), jax.random.key(0), padding=-1)


def erased_pixels(images, key, **options):
    """Which pixels of constant images are not as they were."""
    erased = np.asarray(jax.jit(functools.partial(random_erasing, **options))(images, key))
    changed = erased != np.asarray(images)
    assert (changed.all(-1) == changed.any(-1)).all()
    return erased, changed.any(-1)


def test_erased_are_rectangles_of_the_promised_number_size_and_shape():
    height, width = 40, 30
    images = jnp.full((3000, height, width, 1), 100.0)
    erased, pixels = erased_pixels(images, jax.random.key(0))
    hit = pixels.any((1, 2))
    assert hit.mean() == pytest.approx(0.25, abs=0.025)  # 3 standard errors
    rows, columns = pixels.any(2)[hit], pixels.any(1)[hit]
    np.testing.assert_array_equal(pixels[hit], rows[:, :, None] & columns[:, None, :])
    for lines in (rows, columns):  # no gap within
        assert (np.abs(np.diff(lines.astype(int), axis=1)).sum(1) <= 2).all()
        assert not (lines[:, 0] & lines[:, -1]).any()  # never the whole height or width
        assert lines[:, 0].any()
        assert lines[:, -1].any()
    high, wide = rows.sum(1), columns.sum(1)
    rounding = (high + wide) / 2 + 0.25
    area = high * wide
    assert (area + rounding >= 0.02 * height * width).all()
    assert (area - rounding <= height * width / 3).all()
    fraction = area / (height * width)
    assert fraction.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.015)
    assert fraction.std() == pytest.approx((1 / 3 - 0.02) / 12**0.5, abs=0.01)
    assert ((high + 0.5) / (wide - 0.5) >= 0.3).all()
    assert ((high - 0.5) / (wide + 0.5) <= 1 / 0.3).all()
    assert np.log(high / wide).mean() == pytest.approx(0, abs=0.1)

    noise = erased[pixels]
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert len(np.unique(noise)) > 0.9 * len(noise)


def test_erasing_keeps_to_its_options():
    images = jnp.full((200, 20, 20, 3), 5.0)
    options = {"probability": 1.0, "area": (0.25, 0.25), "aspect": (1.0, 1.0)}
    _, pixels = erased_pixels(images, jax.random.key(0), **options)
    np.testing.assert_array_equal(pixels.sum((1, 2)), 100)
    # A square of the image's whole area never fits.
    _, pixels = erased_pixels(images, jax.random.key(0), **options | {"area": (1.0, 1.0)})
    assert not pixels.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.5}, r"probability=1\.5 must be between 0 and 1"),
        ({"area": (0.5, 0.1)}, r"area=\(0\.5, 0\.1\) must be two positive numbers in order, at m"),
        ({"area": (0.5, 2.0)}, r"area=\(0\.5, 2\.0\) .* at most 1"),
        ({"aspect": (0, 1)}, r"aspect=\(0, 1\) must be two positive numbers in order\."),
    ],
)
def test_erasing_refuses_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        random_erasing(jnp.zeros((1, 4, 4, 1)), jax.random.key(0), **options)


# Image i is i everywhere but for a pattern that all share, so that a pixel tells whose it is.
BATCH, HEIGHT, WIDTH, CLASSES = 6, 9, 12, 10
PATTERN = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
IMAGES = np.arange(BATCH, dtype=np.float32)[:, None, None, None] + PATTERN
LABELS = np.array([3, 1, 4, 1, 5, 9])
BATCHED = jnp.array(IMAGES), jnp.array(LABELS)


@functools.cache
def mixed(**options):
    """Targets under 4,000 keys, and the weight that each pixel of the image itself kept."""
    mix = functools.partial(mixup_and_cutmix, *BATCHED, num_classes=CLASSES, **options)
    images, targets = jax.jit(jax.vmap(mix))(jax.random.split(jax.random.key(0), 4000))
    partner = IMAGES[::-1]
    kept = (np.asarray(images) - partner) / (IMAGES - partner)
    np.testing.assert_allclose(kept, np.broadcast_to(kept[:, :1, :, :, :1], kept.shape), atol=1e-5)
    return np.asarray(targets), kept[:, 0, :, :, 0]


MIXUP = {"mixup": 0.8, "cutmix": 0.0}
CUTMIX = {"mixup": 0.0, "cutmix": 1.0, "smoothing": 0.0}
BOTH = {"switch": 0.3, "probability": 0.6, "smoothing": 0.3}


def smoothed(smoothing):
    return (1 - smoothing) * np.eye(CLASSES)[LABELS] + smoothing / CLASSES


@pytest.mark.parametrize("options", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])
def test_targets_are_mixed_as_the_pixels_are(options):
    targets, kept = mixed(**options)
    lam = kept.mean((1, 2))[:, None, None]
    plain = smoothed(options.get("smoothing", 0.1))
    np.testing.assert_allclose(targets, lam * plain + (1 - lam) * plain[::-1], atol=1e-5)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-5)
    assert lam.std() > 0.1


def test_mixup_weighs_all_pixels_alike_by_a_beta_variable():
    _, kept = mixed(**MIXUP)
    np.testing.assert_allclose(kept, np.broadcast_to(kept[:, :1, :1], kept.shape), atol=1e-5)
    lam = kept[:, 0, 0]
    assert lam.mean() == pytest.approx(0.5, abs=0.02)
    assert lam.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.06)  # of Beta(0.8, 0.8)


def test_cutmix_pastes_a_box_of_even_sides_that_may_be_cut_off_at_the_border():
    _, kept = mixed(**CUTMIX)
    pasted = np.abs(kept) < 1e-4
    assert (pasted | (np.abs(kept - 1) < 1e-4)).all()
    rows, columns = pasted.any(2), pasted.any(1)
    np.testing.assert_array_equal(pasted, rows[:, :, None] & columns[:, None, :])
    for lines in (rows, columns):
        assert (np.abs(np.diff(lines.astype(int), axis=1)).sum(1) <= 2).all()
        within = ~lines[:, 0] & ~lines[:, -1]
        assert (lines[within].sum(1) % 2 == 0).all()
    assert pasted.any(0).all()  # every pixel at some time
    # Both sides are the image's times one √(1 − λ), 1 − λ uniform.
    middle = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]) & rows.any(1)
    ratio = (rows.sum(1) / HEIGHT)[middle] - (columns.sum(1) / WIDTH)[middle]
    assert (np.abs(ratio) <= 2 / HEIGHT).all()


def test_switch_and_probability_choose_between_cutmix_mixup_and_nothing():
    _, kept = mixed(**BOTH)
    untouched = (np.abs(kept - 1) < 1e-5).all((1, 2))
    constant = (np.abs(kept - kept[:, :1, :1]) < 1e-5).all((1, 2))
    cutmix = ~constant
    # CutMix with a box of no pixel, or of all, looks like nothing or mixup: a few per cent.
    assert cutmix.mean() == pytest.approx(0.6 * 0.3, abs=0.04)
    assert (constant & ~untouched).mean() == pytest.approx(0.6 * 0.7, abs=0.04)
    assert untouched.mean() == pytest.approx(0.4, abs=0.05)


def test_with_both_off_only_the_targets_are_smoothed():
    images, targets = mixup_and_cutmix(
        *BATCHED, jax.random.key(0), num_classes=CLASSES, mixup=0.0, cutmix=0.0
    )
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_allclose(targets, smoothed(0.1), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"mixup": -1.0}, r"mixup=-1\.0 must be a finite number at least 0"),
        ({"cutmix": float("inf")}, "cutmix=inf must be a finite number"),
        ({"switch": 2}, "switch=2 must be between 0 and 1"),
        ({"probability": -0.1}, r"probability=-0\.1 must be between 0 and 1"),
        ({"smoothing": 1.1}, r"smoothing=1\.1 must be between 0 and 1"),
    ],
)
def test_mixing_refuses_impossible_options(options, message):
    options = {"num_classes": CLASSES} | options
    with pytest.raises(ValueError, match=message):
        mixup_and_cutmix(*BATCHED, jax.random.key(0), **options)


def crop(images, key):
    return crop_and_flip(images, jnp.arange(len(images)), key)


def mix(images, key):
    return mixup_and_cutmix(images, jnp.arange(len(images)), key, num_classes=len(images))


@pytest.mark.parametrize("function", [crop, random_erasing, mix])
def test_the_key_decides_and_the_sharding_does_not(function):
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    function = jax.jit(function)
    first = jax.tree.leaves(function(images, jax.random.key(0)))[0]
    again = jax.tree.leaves(function(images, jax.random.key(0)))[0]
    other = jax.tree.leaves(function(images, jax.random.key(1)))[0]
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()
    sharding = NamedSharding(Mesh(np.array(jax.devices()), "batch"), PartitionSpec("batch"))
    sharded = jax.tree.leaves(function(jax.device_put(images, sharding), jax.random.key(0)))[0]
    np.testing.assert_allclose(sharded, first, atol=1e-6)


def test_half_precision_is_kept():
    images, key = jnp.ones((4, 8, 8, 3), jnp.bfloat16), jax.random.key(0)
    assert jax.eval_shape(random_erasing, images, key).dtype == jnp.bfloat16
    assert jax.eval_shape(mix, images, key)[0].dtype == jnp.bfloat16
