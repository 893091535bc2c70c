"""Corrupted copies: fixed by the seed, right for images of any kind, nothing else touched."""

import re
import sys

import numpy as np
import pytest

from zosam_jax import data
from zosam_jax.data import Split
from zosam_jax.data.corruptions import EXTRA_CORRUPTIONS, library_version


def test_the_names_are_the_official_19():
    assert len(set(data.CORRUPTIONS)) == 19
    assert data.CORRUPTIONS == data.BENCHMARK_CORRUPTIONS + EXTRA_CORRUPTIONS
    assert len(data.BENCHMARK_CORRUPTIONS) == 15
    assert data.CORRUPTIONS[0] == "gaussian_noise"
    assert data.CORRUPTIONS[14] == "jpeg_compression"


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("imagecorruptions", reason="needs zosam_jax[robustness]")


def photographs(count, *shape):
    """Smooth images: a grid of 4×4 random colours, enlarged."""
    rng = np.random.default_rng(0)
    height, width, channels = shape
    colours = rng.integers(30, 226, size=(count, 4, 4, channels), dtype=np.uint8)
    images = colours.repeat(height // 4, axis=1).repeat(width // 4, axis=2)
    return Split(images, np.arange(count, dtype=np.int32))


def distance(one, other):
    return np.abs(one.images.astype(float) - other.images).mean()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("corruption", data.CORRUPTIONS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (36, 32, 3)])
def test_every_corruption_on_every_kind_of_image(corruption, shape):
    clean = photographs(3, *shape)
    before = clean.images.copy()
    first, again, other = (data.corrupt(clean, corruption, 5, seed=seed) for seed in (1, 1, 2))
    assert first.images.shape == (3, *shape)
    assert first.images.dtype == np.uint8
    assert first.labels is clean.labels
    np.testing.assert_array_equal(clean.images, before)
    np.testing.assert_array_equal(first.images, again.images)
    is_random = corruption not in {
        *("defocus_blur", "zoom_blur", "gaussian_blur", "pixelate"),
        *("jpeg_compression", "brightness", "contrast", "saturate"),
    }
    assert (distance(first, other) > 0) == is_random
    spared = {("saturate", 1), ("pixelate", 8)}  # without colour; of fewer pixels than it leaves
    is_spared = not spared.isdisjoint({(corruption, size) for size in shape})
    assert (distance(first, clean) > 0.5) != is_spared


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("corruption", ["gaussian_noise", "impulse_noise", "glass_blur", "frost"])
def test_the_first_images_are_corrupted_as_in_the_whole(corruption):
    clean = photographs(5, 32, 32, 3)
    whole = data.corrupt(clean, corruption, 3, seed=0)
    part = data.corrupt(clean.take(np.arange(2)), corruption, 3, seed=0)
    np.testing.assert_array_equal(part.images, whole.images[:2])
    same = photographs(1, 32, 32, 3).take(np.zeros(2, int))
    twins = data.corrupt(same, corruption, 3, seed=0).images
    assert (twins[0] != twins[1]).any()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "corruption", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"]
)
@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3)])
def test_noise_grows_with_severity(corruption, shape):
    clean = photographs(20, *shape)
    distances = [
        distance(data.corrupt(clean, corruption, severity), clean) for severity in (1, 2, 3, 4, 5)
    ]
    assert all(np.diff(distances) > 0)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_noise_is_as_strong_on_small_and_grey_images(shape):
    """Severity 1 adds noise of standard deviation 0.08; the library drops fractions of a value."""
    clean = Split(np.full((50, *shape), 128, np.uint8), np.zeros(50, np.int32))
    noise = data.corrupt(clean, "gaussian_noise", 1).images.astype(float) - 128
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.05)
    assert noise.mean() == pytest.approx(-0.5, abs=1.5)


def test_large_images_are_the_librarys_own(library):
    clean = photographs(1, 40, 32, 3)
    for corruption in ("zoom_blur", "contrast", "jpeg_compression"):
        expected = library.corrupt(clean.images[0], 4, corruption)
        np.testing.assert_array_equal(data.corrupt(clean, corruption, 4).images[0], expected)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("corruption", ["gaussian_noise", "brightness", "fog"])
def test_white_is_the_scale(corruption):
    """What is done to 0, 15, …, 240 of 240 is done to 0, 1, …, 16 of 16, but for rounding."""
    levels = np.random.default_rng(0).integers(17, size=(20, 8, 8, 1), dtype=np.uint8)
    labels = np.zeros(20, np.int32)
    dim = data.corrupt(Split(levels, labels), corruption, 2, white=16).images
    bright = data.corrupt(Split(15 * levels, labels), corruption, 2, white=240).images
    assert dim.max() <= 16
    np.testing.assert_allclose(15.0 * dim, bright, atol=8)


@pytest.mark.usefixtures("library")
def test_an_image_that_no_drop_hits_stays_as_it_is():
    clean = Split(np.full((200, 32, 32, 3), 128, np.uint8), np.zeros(200, np.int32))
    spattered = data.corrupt(clean, "spatter", 1).images
    is_clean = (spattered == 128).all(axis=(1, 2, 3))
    assert 0 < is_clean.sum() < 20
    assert not (spattered == 0).all(axis=(1, 2, 3)).any()


@pytest.mark.usefixtures("library")
def test_numpys_global_generator_goes_on_undisturbed():
    np.random.seed(5)
    expected = np.random.random_sample(3)
    np.random.seed(5)
    first = np.random.random_sample()
    data.corrupt(photographs(2, 32, 32, 3), "snow", 3)
    np.testing.assert_array_equal([first, *np.random.random_sample(2)], expected)


@pytest.mark.usefixtures("library")
def test_the_library_names_itself():
    assert re.fullmatch(r"imagecorruptions-imaug \d+\.\d+\.\d+", library_version())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corruption": "rain"}, "corruption='rain' is not known; choose one of 'gaussian_noise'"),
        ({"severity": 0}, "severity=0 must be one of 1, 2, 3, 4, 5."),
        ({"seed": -1}, "seed=-1 must be a finite number at least 0."),
        ({"white": 16}, "white=16 must be at least the brightest pixel, "),
        ({"white": 256}, "white=256 must be at least the brightest pixel, "),
        ({"split": photographs(1, 32, 32, 2)}, "images of uint8(1, 32, 32, 2) cannot be corrupted"),
    ],
)
def test_wrong_arguments(changes, message):
    arguments = {"split": photographs(1, 32, 32, 3), "corruption": "fog", "severity": 1}
    with pytest.raises(ValueError, match=re.escape(message)):
        data.corrupt(**(arguments | changes))


def test_a_library_of_the_same_name_is_refused(library, monkeypatch):
    monkeypatch.setattr(library, "glass_blur", lambda image, severity=1: image)
    with pytest.raises(ModuleNotFoundError, match="is not that of imagecorruptions-imaug: pip"):
        data.corrupt(photographs(1, 32, 32, 3), "fog", 1)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'zosam_jax\[robustness\]'"):
        data.corrupt(photographs(1, 32, 32, 3), "fog", 1)
