"""What is done to a data set before training."""

import numpy as np
import pytest

from zosam_jax import data
from zosam_jax.data import dataset as datasets


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_digits_are_split_without_overlap_and_always_alike(digits):
    assert digits.train.images.shape == (1437, 8, 8, 1)
    assert len(digits.test) == 360
    assert set(digits.train.labels) == set(range(10))
    again = data.load("digits")
    np.testing.assert_array_equal(digits.test.images, again.test.images)
    pixels = np.concatenate([digits.train.images, digits.test.images])
    from sklearn.datasets import load_digits  # noqa: PLC0415

    assert pixels.sum() == load_digits().images.sum()


def test_limit_keeps_the_first_images(digits):
    limited = datasets.limit(digits, 100)
    np.testing.assert_array_equal(limited.train.images, digits.train.images[:100])
    assert limited.test is digits.test


def test_label_noise_touches_the_asked_fraction_of_training_labels_only(digits):
    noisy = datasets.with_label_noise(digits, 0.3, seed=0)
    changed = np.mean(noisy.train.labels != digits.train.labels)
    assert changed == pytest.approx(0.3 * 0.9, abs=0.02)
    assert noisy.test is digits.test
    again = datasets.with_label_noise(digits, 0.3, seed=0)
    np.testing.assert_array_equal(noisy.train.labels, again.train.labels)


def test_validation_images_are_training_images(digits):
    held = datasets.with_validation(digits, 0.2, seed=0)
    assert held.test is digits.test
    assert len(held.train) + len(held.validation) == len(digits.train)
    assert len(held.validation) == round(0.2 * len(digits.train))
    assert held.train.images.sum() + held.validation.images.sum() == digits.train.images.sum(
        dtype=held.train.images.sum().dtype
    )


def test_held_out_labels_are_as_noisy_as_the_others(digits):
    """One seed for both: the images held out must not be those whose labels were replaced."""
    noisy = datasets.with_label_noise(digits, 0.3, seed=0)
    clean, held = (datasets.with_validation(each, 0.2, seed=0) for each in (digits, noisy))
    for split in ("train", "validation"):
        changed = np.mean(getattr(clean, split).labels != getattr(held, split).labels)
        assert changed == pytest.approx(0.27, abs=0.06)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (datasets.limit, (5000,), "train_images=5000 is more than the 1437"),
        (datasets.limit, (0,), "train_images=0 must be at least 1"),
        (datasets.with_label_noise, (1.5, 0), "label_noise=1.5 must be between 0 and 1"),
        (datasets.with_validation, (1.0, 0), "validation_fraction=1.0 must be between 0 and 1"),
    ],
)
def test_wrong_arguments(digits, function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(digits, *arguments)


def test_unknown_data_set():
    with pytest.raises(ValueError, match="dataset='mnist' is not known; choose one of digits"):
        data.load("mnist")


def test_shrinking_averages_blocks(digits):
    small = datasets.shrink(digits, 2)
    assert small.train.images.shape == (1437, 4, 4, 1)
    assert small.train.images.dtype == np.uint8
    block = digits.train.images[5, 2:4, 6:8, 0]
    assert small.train.images[5, 1, 3, 0] == np.rint(block.mean())
    np.testing.assert_array_equal(small.test.labels, digits.test.labels)
    assert small.pixel_sd == pytest.approx([small.train.images.std()])
    with pytest.raises(ValueError, match="shrink=3 must divide the images' 8×8 pixels"):
        datasets.shrink(digits, 3)


def test_a_balanced_sample_has_as_many_of_each_class(digits):
    sample = datasets.balanced_sample(digits.train, 7, 10, seed=0)
    assert len(set(sample.tolist())) == 70
    assert np.bincount(digits.train.labels[sample]).tolist() == [7] * 10
    assert (np.sort(digits.train.labels[sample]) != digits.train.labels[sample]).any()
    other = datasets.balanced_sample(digits.train, 7, 10, seed=1)
    assert set(sample.tolist()) != set(other.tolist())


def test_a_class_with_too_few_images_is_named(digits):
    threes = digits.train.take(np.flatnonzero(digits.train.labels != 3))
    with pytest.raises(ValueError, match="class 3 has 0 of the 5 training images"):
        datasets.balanced_sample(threes, 5, 10, seed=0)


PIXELS = np.zeros((4, 8, 8, 1), np.uint8)
FOUR = (PIXELS, np.arange(4))


def test_a_given_validation_split_is_shrunk_and_never_replaced():
    given = datasets.from_arrays(FOUR, FOUR, FOUR)
    small = datasets.shrink(given, 2)
    assert small.validation.images.shape == (4, 4, 4, 1)
    np.testing.assert_array_equal(small.validation.labels, np.arange(4))
    with pytest.raises(ValueError, match="would replace the data set's own validation split"):
        datasets.with_validation(given, 0.5, seed=0)


def test_integers_that_32_bits_do_not_hold_are_refused():
    with pytest.raises(ValueError, match=r"train holds integers from 0 to 4294967297"):
        datasets.from_arrays((PIXELS, np.array([0, 1, 2**32, 2**32 + 1])), FOUR)


def test_labels_of_uint8_are_labels():
    masks = (PIXELS, np.ones((4, 8, 8), np.uint8))
    found = datasets.from_arrays(masks, masks)
    assert (found.train.labels.dtype, found.num_classes) == (np.int32, 2)


@pytest.mark.parametrize("names", ["abcd", ["a", "b"], ["a", "a", "b", "c"]])
def test_names_are_different_and_one_for_each_class(names):
    with pytest.raises(ValueError, match="must be a different name for each of 4 classes"):
        datasets.from_arrays(FOUR, FOUR, class_names=names, num_classes=4)
