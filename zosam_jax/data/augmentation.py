"""Augmentation on the device: pure functions of a batch and a key, for use inside jit.

Every draw has the shape of the whole batch, so a batch gives the same result however it is sharded.
"""

import math

import jax
import jax.numpy as jnp

from zosam_jax.errors import check_count, check_number
from zosam_jax.trees import Array, Bool, Float, Int, Key, Num, Shaped

_ERASING_ATTEMPTS = 10


def crop_and_flip(
    images: Shaped[Array, "n height width channels"],
    indices: Int[Array, " batch"],
    key: Key[Array, ""],
    *,
    padding: int = 4,
) -> Shaped[Array, "batch height width channels"]:
    """Fetches a batch, cropped at random from the zero-padded images and flipped half the time.

    Image i of the batch is images[indices[i]], padded by `padding` zeros on every side, cut to its
    own size at an offset uniform over {0, …, 2·padding}², and mirrored left to right with
    probability 1/2. It is all one gather; no padded image ever exists.

    Args:
      images: the whole data set, (N, height, width, channels), of any dtype.
      indices: (B,) integers from 0 to N − 1.
      key: for the offsets and flips.
      padding: in pixels.

    Returns:
      (B, height, width, channels), of the images' dtype.
    """
    check_number("padding", padding, above=0, inclusive=True)
    batch, (_, height, width, _) = len(indices), images.shape
    offset_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (batch, 2), 0, 2 * padding + 1) - padding
    flips = jax.random.bernoulli(flip_key, shape=(batch, 1))
    rows = jnp.arange(height) + offsets[:, :1]
    columns = jnp.arange(width)
    columns = jnp.where(flips, columns[::-1], columns) + offsets[:, 1:]

    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    # Clipping and masking is more than twice as fast as a gather that fills by itself.
    gathered = images.at[indices[:, None, None], rows[:, :, None], columns[:, None, :]].get(
        mode="clip", wrap_negative_indices=False
    )
    return jnp.where(inside[..., None], gathered, jnp.zeros((), images.dtype))


def random_erasing(
    images: Float[Array, "batch height width channels"],
    key: Key[Array, ""],
    *,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Float[Array, "batch height width channels"]:
    """Replaces one random rectangle of an image by noise from N(0, 1), pixel by pixel.

    The rectangle has height √(s·r) and width √(s/r), rounded, for an area s uniform over `area`
    times the image's and an aspect ratio r log-uniform over `aspect`, at a uniform place. A
    rectangle as high or as wide as the image is drawn again, up to ten times; then the image stays
    whole. These are the conventions of timm's "pixel" mode, which DeiT uses.

    Args:
      images: (B, height, width, channels), normalised, so that N(0, 1) fits their scale.
      key: for everything drawn.
      probability: of erasing, for each image.
      area: the least and the greatest area, as fractions of the image's.
      aspect: the least and the greatest height/width.

    Returns:
      (B, height, width, channels), of the images' dtype.

    Raises:
      ValueError: if `probability` is not between 0 and 1, or a range is not ordered and positive.

    Reference: Zhong et al., Random Erasing Data Augmentation, https://arxiv.org/abs/1708.04896
    """
    _check_probability("probability", probability)
    _check_range("area", area, most=1.0)
    _check_range("aspect", aspect, most=math.inf)
    batch, height, width, _ = images.shape
    size_key, place_key, noise_key = jax.random.split(key, 3)
    sizes = jax.random.uniform(size_key, (2, batch, _ERASING_ATTEMPTS))
    areas = (area[0] + (area[1] - area[0]) * sizes[0]) * height * width
    aspects = aspect[0] * (aspect[1] / aspect[0]) ** sizes[1]
    heights, widths = jnp.rint(jnp.sqrt(areas * aspects)), jnp.rint(jnp.sqrt(areas / aspects))
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    high = jnp.take_along_axis(heights, first, axis=1)
    wide = jnp.take_along_axis(widths, first, axis=1)

    chance, down, right = jax.random.uniform(place_key, (3, batch, 1))
    erased = (chance < probability) & fits.any(axis=1, keepdims=True)
    # A whole number from 0 to height − high, each as likely.
    top, left = jnp.floor(down * (height - high + 1)), jnp.floor(right * (width - wide + 1))
    in_rows = _between(jnp.arange(height), top, top + high)
    in_columns = _between(jnp.arange(width), left, left + wide)
    inside = (in_rows & erased)[:, :, None] & in_columns[:, None, :]
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    return jnp.where(inside[..., None], noise, images)


def mixup_and_cutmix(
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    key: Key[Array, ""],
    *,
    num_classes: int,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch: float = 0.5,
    probability: float = 1.0,
    smoothing: float = 0.1,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch classes"]]:
    """Mixes every image with its partner in the reversed batch, and their targets likewise.

    With x' and y' the reversed batch, and weights w for each pixel, the same for all images,

        x ← w·x + (1 − w)·x',   y ← λ·y + (1 − λ)·y',   λ = mean(w).

    Mixup: w = λ ~ Beta(mixup, mixup) everywhere. CutMix: w = 0 in a box of height·√(1 − λ) by
    width·√(1 − λ) pixels around a uniform centre, λ ~ Beta(cutmix, cutmix), and 1 outside it; what
    of the box lies outside the image is lost, so λ is the fraction that was really kept. One method
    and one λ are drawn for the batch, as in timm's "batch" mode, which DeiT uses.

    Args:
      images: (B, height, width, channels), in floating point.
      labels: (B,) integers from 0 to num_classes − 1.
      key: for everything drawn.
      num_classes: K, the width of the targets.
      mixup: Beta's parameter for mixup; 0 for none.
      cutmix: Beta's parameter for CutMix; 0 for none.
      switch: the probability of CutMix where both are on.
      probability: of mixing a batch at all.
      smoothing: ε; before mixing, y is 1 − ε + ε/K for the label and ε/K elsewhere.

    Returns:
      (images, targets): the mixed images, and float32 targets of shape (B, K) with rows of sum 1.

    Raises:
      ValueError: if a parameter is negative, or a probability or ε not between 0 and 1.

    References: Zhang et al., mixup, https://arxiv.org/abs/1710.09412;
    Yun et al., CutMix, https://arxiv.org/abs/1905.04899
    """
    check_count("num_classes", num_classes)
    check_number("mixup", mixup, above=0, inclusive=True)
    check_number("cutmix", cutmix, above=0, inclusive=True)
    _check_probability("switch", switch)
    _check_probability("probability", probability)
    _check_probability("smoothing", smoothing)
    targets = (1 - smoothing) * jax.nn.one_hot(labels, num_classes) + smoothing / num_classes
    if not (mixup or cutmix):
        return images, targets

    _, height, width, _ = images.shape
    choice_key, kept_key = jax.random.split(key)
    mixing, switching, down, right = jax.random.uniform(choice_key, (4,))
    pastes = switching < (0.0 if not cutmix else 1.0 if not mixup else switch)
    parameter = jnp.where(pastes, cutmix, mixup)
    kept = jax.random.beta(kept_key, parameter, parameter)
    box = _centred_box(height, width, down, right, jnp.sqrt(1 - kept))
    weights = jnp.where(pastes, 1.0 - box, kept)
    weights = jnp.where(mixing < probability, weights, 1.0)
    return (
        _blend(images, weights[:, :, None].astype(images.dtype)),
        _blend(targets, jnp.mean(weights)),
    )


def _centred_box(
    height: int, width: int, down: Float[Array, ""], right: Float[Array, ""], side: Float[Array, ""]
) -> Bool[Array, "height width"]:
    """Whether each pixel is in the box of relative side `side` around (down, right) in [0, 1)²."""

    def line(size: int, place: Float[Array, ""]) -> Bool[Array, " size"]:
        # An odd side loses a pixel, as in timm.
        half, centre = jnp.floor(size * side) // 2, jnp.floor(size * place)
        return _between(jnp.arange(size), centre - half, centre + half)

    return line(height, down)[:, None] & line(width, right)[None, :]


def _blend(
    values: Float[Array, "batch ..."], weights: Float[Array, "..."]
) -> Float[Array, "batch ..."]:
    return weights * values + (1 - weights) * values[::-1]


def _between(
    values: Int[Array, " size"], start: Num[Array, "..."], stop: Num[Array, "..."]
) -> Bool[Array, "..."]:
    return (values >= start) & (values < stop)


def _check_probability(argument: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{argument}={value!r} must be between 0 and 1.")


def _check_range(argument: str, value: tuple[float, float], most: float) -> None:
    if not 0 < value[0] <= value[1] <= most:
        limit = f", at most {most:g}" if math.isfinite(most) else ""
        raise ValueError(f"{argument}={value!r} must be two positive numbers in order{limit}.")
