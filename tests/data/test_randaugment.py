"""RandAugment's operations by hand where they are simple, and its draws by counting."""

import numpy as np
import pytest
from PIL import Image

from zosam_jax.data.randaugment import FILL, OPERATIONS, randaugment

# Three ramps with some noise, neither black nor white, so that there is contrast to gain.
RAMPS = 60 + np.stack(np.mgrid[:20, :30], -1) @ np.array([[3, 1, -1], [1, 3, 3]])
PIXELS = (RAMPS + np.random.default_rng(0).integers(-8, 8, size=RAMPS.shape)).astype(np.uint8)
IMAGE = Image.fromarray(PIXELS)
UNSTEPPED = {"autocontrast", "equalize", "invert"}


def distance(name, strength):
    changed = np.asarray(OPERATIONS[name](IMAGE, strength)).astype(float)
    return np.abs(changed - PIXELS).mean()


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_changes_pixels_and_neither_size_nor_mode(name):
    for strength in (-1.0, -0.9, 0.9, 1.0):
        result = OPERATIONS[name](IMAGE, strength)
        assert (result.size, result.mode) == (IMAGE.size, IMAGE.mode)
        assert distance(name, strength) > 1
    np.testing.assert_array_equal(np.asarray(IMAGE), PIXELS)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - UNSTEPPED))
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_greater_magnitude_does_more(name, sign):
    assert distance(name, 0.3 * sign) < distance(name, 0.9 * sign)


def result(name, strength):
    return np.asarray(OPERATIONS[name](IMAGE, strength)).astype(int)


def test_operations_on_pixel_values_by_hand():
    np.testing.assert_array_equal(result("invert", 0.9), 255 - PIXELS)
    # 4 − ⌊4·0.9⌋ = 1 bit remains, 4 − ⌊4·0.7⌋ = 2.
    np.testing.assert_array_equal(result("posterize", 0.9), PIXELS & 0b10000000)
    np.testing.assert_array_equal(result("posterize", -0.7), PIXELS & 0b11000000)
    inverted = np.where(PIXELS < 128, PIXELS, 255 - PIXELS)
    np.testing.assert_array_equal(result("solarize", 0.5), inverted)
    lightened = np.where(PIXELS < 128, np.minimum(PIXELS.astype(int) + 99, 255), PIXELS)
    np.testing.assert_array_equal(result("solarize_add", -0.9), lightened)
    darkened = np.floor(PIXELS * (1 - 0.9 * 0.5))
    np.testing.assert_allclose(result("brightness", -0.5), darkened, atol=1)


@pytest.mark.parametrize(("name", "axis", "size"), [("translate_x", 1, 30), ("translate_y", 0, 20)])
@pytest.mark.parametrize("pixels", [3, -4])
def test_translation_by_whole_pixels_uncovers_the_mean_colour(name, axis, size, pixels):
    moved = result(name, pixels / (0.45 * size))
    shifted = np.roll(PIXELS, -pixels, axis)
    covered = slice(None, size - pixels) if pixels > 0 else slice(-pixels, None)
    uncovered = slice(size - pixels, None) if pixels > 0 else slice(None, -pixels)
    here = (slice(None),) * axis
    np.testing.assert_allclose(moved[(*here, covered)], shifted[(*here, covered)], atol=1)
    np.testing.assert_array_equal(moved[(*here, uncovered)] - np.array(FILL), 0)


def test_shear_and_rotation_leave_the_middle_where_they_should():
    for name in ("shear_x", "shear_y"):  # about the upper left corner
        np.testing.assert_allclose(result(name, 1e-6), PIXELS, atol=1)
    quarter = Image.fromarray(np.full((21, 21, 3), 50, np.uint8))
    rotated = np.asarray(OPERATIONS["rotate"](quarter, 1.0))
    np.testing.assert_array_equal(rotated[10, 10], 50)
    np.testing.assert_array_equal(rotated[0, 0], FILL)


def test_the_generator_decides():
    def augmented(seed):
        return np.asarray(randaugment(IMAGE, np.random.default_rng(seed)))

    assert all((augmented(seed) == augmented(seed)).all() for seed in range(20))
    assert len({augmented(seed).tobytes() for seed in range(60)}) > 30


def test_how_often_each_operation_is_applied_and_how_strongly(monkeypatch):
    calls = []

    def record(name):
        return lambda image, strength: calls.append((name, strength)) or image

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, record(name))
    generator = np.random.default_rng(0)
    images = 6000
    for _ in range(images):
        assert randaugment(IMAGE, generator) is IMAGE
    assert len(calls) == pytest.approx(images, rel=0.03)  # two, each with probability 1/2
    names = [name for name, _ in calls]
    expected = images / len(OPERATIONS)
    # χ² with 14 degrees of freedom, exceeded once in a thousand times at 36.1.
    assert sum((names.count(name) - expected) ** 2 / expected for name in OPERATIONS) < 36.1
    strengths = np.array([strength for _, strength in calls])
    assert (strengths > 0).mean() == pytest.approx(0.5, abs=0.02)
    magnitudes = 10 * np.abs(strengths)
    assert np.median(magnitudes) == pytest.approx(9, abs=0.02)
    assert magnitudes.max() == 10
    assert (magnitudes == 10).mean() == pytest.approx(0.0228, abs=0.006)  # P(N(0, 1) > 2)
    assert magnitudes.std() == pytest.approx(0.5, abs=0.02)


def test_without_chance_the_paper_s_version_remains():
    calls = randaugment(
        IMAGE, np.random.default_rng(0), count=3, magnitude=10, magnitude_sd=0, probability=1
    )
    assert (np.asarray(calls) != PIXELS).any()
    still = randaugment(IMAGE, np.random.default_rng(0), probability=0)
    assert still is IMAGE
