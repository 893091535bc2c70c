"""The 19 corruptions by which robustness is measured, and corrupted copies of any images."""

import contextlib
import importlib.metadata
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from zosam_jax.data.dataset import Split
from zosam_jax.errors import check_number, check_one_of
from zosam_jax.trees import UInt8

SEVERITIES = (1, 2, 3, 4, 5)

# The 15 that the benchmark averages over: noise, blur, weather, digital.
BENCHMARK_CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
# One more of each group, for tuning without the 15.
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
CORRUPTIONS = BENCHMARK_CORRUPTIONS + EXTRA_CORRUPTIONS

_LIBRARY = "imagecorruptions-imaug"
_LEAST_SIDE = 32  # pixels, for the library
# These do not draw from NumPy's global generator.
_TAKE_A_SEED = ("impulse_noise", "glass_blur")


def corrupt(
    split: Split, corruption: str, severity: int, *, seed: int = 0, white: int = 255
) -> Split:
    """The images of a split under one corruption at one severity; the labels stay.

    Corruptions and severities are those of ImageNet-C, by the library imagecorruptions-imaug. Those
    of CIFAR-10-C have the same names and are milder, so the two are not to be compared. To make the
    library's work fit images of any kind:

    - Grey images pass as three equal channels, of which the first is kept; a mean of the three
      would weaken noise, which differs between them. There is no colour for saturate to change.
    - Images of less than 32 pixels, the library's least, pass with every pixel as a block of k×k,
      for the smallest k that suffices, and are read off at the blocks' centres; a mean over blocks
      would weaken noise. What the library measures in pixels (the radius of a blur, the size of a
      flake) is then k times smaller, and pixelate hardly changes the digits.
    - Where not one drop of spatter falls, the library divides by zero; the image stays as it is.

    Each image has random numbers of its own, by seed, corruption, severity and its index, so that
    the first n images of a split look the same without the others.

    Args:
      split: uint8 images (N, height, width, channels) of 1 or 3 channels.
      corruption: one of CORRUPTIONS.
      severity: 1, …, 5.
      seed: an integer of at least 0.
      white: the pixel value of full brightness; 16 for the digits.

    Returns:
      uint8 images of the same shape, and the same labels.

    Raises:
      ValueError: for another corruption, severity or number of channels, or a pixel above `white`.
      ModuleNotFoundError: if the library is missing, naming the extra that brings it.

    References: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common
      Corruptions and Perturbations, https://arxiv.org/abs/1903.12261; Michaelis et al.,
      Benchmarking Robustness in Object Detection, https://arxiv.org/abs/1907.07484
    """
    check_corruption(corruption, severity)
    check_number("seed", seed, above=0, inclusive=True)
    _check_images(split.images, white)
    library = _library()
    place = CORRUPTIONS.index(corruption)
    seeds = np.random.SeedSequence((seed, place, severity)).generate_state(len(split)).tolist()
    levels = np.arange(256)
    stretched = np.rint(np.minimum(levels * (255 / white), 255)).astype(np.uint8)[split.images]
    corrupted = np.empty_like(stretched)
    with _global_generator_kept():
        for index, own_seed in enumerate(seeds):
            image = stretched[index]
            corrupted[index] = _corrupted(library, image, corruption, severity, own_seed)
    return Split(np.rint(levels * (white / 255)).astype(np.uint8)[corrupted], split.labels)


def check_corruption(corruption: str, severity: int) -> None:
    """Raises unless there is such a corruption and such a severity."""
    check_one_of("corruption", corruption, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ValueError(f"severity={severity!r} must be one of 1, 2, 3, 4, 5.")


def library_version() -> str:
    """The name and the version of the library that makes the corrupted copies."""
    _library()
    return f"{_LIBRARY} {importlib.metadata.version(_LIBRARY)}"


def _library() -> ModuleType:
    try:
        import imagecorruptions  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"corrupted copies take {error.name}, which comes with: "
            "pip install 'zosam_jax[robustness]'"
        ) from error
    # An older package installs a module of the same name, which fails with today's NumPy.
    if "seed" not in inspect.signature(imagecorruptions.glass_blur).parameters:
        raise ModuleNotFoundError(
            f"the module imagecorruptions is not that of {_LIBRARY}: pip uninstall "
            f"imagecorruptions, then pip install --force-reinstall --no-deps {_LIBRARY}"
        )
    module: ModuleType = imagecorruptions
    return module


def _corrupted(
    library: ModuleType,
    image: UInt8[np.ndarray, "height width channels"],
    corruption: str,
    severity: int,
    seed: int,
) -> UInt8[np.ndarray, "height width channels"]:
    height, width, channels = image.shape
    block = -(-_LEAST_SIDE // min(height, width))
    enlarged = image.repeat(block, axis=0).repeat(block, axis=1)
    np.random.seed(seed)
    options: dict[str, Any] = {"seed": seed} if corruption in _TAKE_A_SEED else {}
    try:
        with np.errstate(invalid="raise" if corruption == "spatter" else "warn"):
            result: UInt8[np.ndarray, "height width channels"] = library.corrupt(
                enlarged, severity, corruption, **options
            )
    except FloatingPointError:  # spatter's 0/0
        return image
    centres = result[block // 2 :: block, block // 2 :: block]
    return centres if channels == 3 else centres[..., :1]


@contextlib.contextmanager
def _global_generator_kept() -> Iterator[None]:
    """Leaves NumPy's global generator, from which the library draws, as it was."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


def _check_images(images: np.ndarray, white: int) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images of {images.dtype}{images.shape} cannot be corrupted, only uint8(N, height, "
            "width, channels) of 1 or 3 channels."
        )
    if not images.max(initial=1) <= white <= 255:
        raise ValueError(
            f"white={white!r} must be at least the brightest pixel, {images.max(initial=1)}, and "
            "at most 255."
        )
