"""RandAugment as DeiT trains with it: two random operations of nearly one magnitude per image."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# The pixel mean of ImageNet, for what a geometric operation uncovers.
FILL = (124, 116, 104)

_GREATEST_MAGNITUDE = 10.0


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        coefficients,
        Image.Resampling.BICUBIC,
        fillcolor=FILL,
    )


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL)


def _solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Adds to the dark half of the pixel values."""
    table = [value + amount if value < 128 else value for value in range(256)]
    return image.point([min(value, 255) for value in table] * len(image.getbands()))


def _enhance(enhancer: Callable[[Image.Image], Any], image: Image.Image, s: float) -> Image.Image:
    """Less (s < 0) or more (s > 0) of a quality; a tenth of it always stays."""
    enhanced: Image.Image = enhancer(image).enhance(max(0.1, 1 + 0.9 * s))
    return enhanced


# Each takes a strength s from −1 to 1: its sign is a coin's, its size the magnitude over 10. An
# operation without two directions uses |s|, and all but the first three do more as |s| grows.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "invert": lambda image, s: ImageOps.invert(image),
    "posterize": lambda image, s: ImageOps.posterize(image, max(1, 4 - int(4 * abs(s)))),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 - int(256 * abs(s))),
    "solarize_add": lambda image, s: _solarize_add(image, int(110 * abs(s))),
    "color": lambda image, s: _enhance(ImageEnhance.Color, image, s),
    "contrast": lambda image, s: _enhance(ImageEnhance.Contrast, image, s),
    "brightness": lambda image, s: _enhance(ImageEnhance.Brightness, image, s),
    "sharpness": lambda image, s: _enhance(ImageEnhance.Sharpness, image, s),
    "rotate": lambda image, s: _rotate(image, 30 * s),
    "shear_x": lambda image, s: _affine(image, 1, 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda image, s: _affine(image, 1, 0, 0, 0.3 * s, 1, 0),
    "translate_x": lambda image, s: _affine(image, 1, 0, 0.45 * s * image.width, 0, 1, 0),
    "translate_y": lambda image, s: _affine(image, 1, 0, 0, 0, 1, 0.45 * s * image.height),
}


def randaugment(
    image: Image.Image,
    generator: np.random.Generator,
    *,
    count: int = 2,
    magnitude: float = 9.0,
    magnitude_sd: float = 0.5,
    probability: float = 0.5,
) -> Image.Image:
    """Applies `count` operations drawn with replacement, each of them with a probability.

    The defaults are timm's `rand-m9-mstd0.5-inc1`, which DeiT trains with: the magnitude of each
    operation is drawn from N(9, 0.5²) and clipped to [0, 10], the severity of every operation
    increases with it, geometric operations interpolate bicubically and uncover ImageNet's mean
    colour. The paper has probability 1 and one fixed magnitude.

    Args:
      image: in mode "RGB", which stays.
      generator: the only source of chance.
      count: n, the operations drawn.
      magnitude, magnitude_sd: mean and standard deviation of m.
      probability: that an operation, once drawn, is applied.

    Reference: Cubuk et al., RandAugment, https://arxiv.org/abs/1909.13719
    """
    operations = list(OPERATIONS.values())
    for index in generator.integers(len(operations), size=count):
        if generator.random() < probability:
            drawn = np.clip(generator.normal(magnitude, magnitude_sd), 0, _GREATEST_MAGNITUDE)
            sign = generator.choice((-1.0, 1.0))
            image = operations[index](image, float(sign * drawn / _GREATEST_MAGNITUDE))
    return image
