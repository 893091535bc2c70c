"""Images and texts from anywhere as a trained network's data set has them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from zosam_jax.data import TextInfo, files, packing, tokenization
from zosam_jax.data import dataset as datasets
from zosam_jax.data.texts import Row
from zosam_jax.training.config import DataConfig
from zosam_jax.training.feed import DataInfo
from zosam_jax.trees import Int, Shaped

if TYPE_CHECKING:
    import PIL.Image  # Pillow is an extra.

_IMAGES = 3  # height, width, channels


def inputs(images: Any, info: DataInfo, config: DataConfig) -> Shaped[np.ndarray, "n ..."]:
    """Images, or other inputs, of the shape and dtype that the run was trained on.

    Args:
      images: an array of one or more, or image files and PIL images; of a run on texts a text, a
        pair of texts, or several, or an array of tokens.
      info: what the run knows of its data.
      config: how it read them.

    Raises:
      ValueError: for what does not fit, naming the image.
    """
    if info.text is not None:
        return _rows(images, info.text, info, config)
    several = [images] if _is_image(images) else images
    if isinstance(several, Sequence) and len(several) and all(map(_is_image, several)):
        _check_pixels(info)
        return _fitted(np.stack([_pixels(i, info, config) for i in several]), info, config)
    array = np.asarray(several)
    if array.dtype.kind == "f" and info.dtype == "float32":
        array = array.astype(np.float32, copy=False)
    if array.dtype.kind in "iub" and info.dtype == "int32":
        array = datasets.as_int32("images", array)
    return _fitted(array, info, config)


def _rows(
    texts: Any, about: TextInfo, info: DataInfo, config: DataConfig
) -> Int[np.ndarray, "n t"]:
    """Texts as rows of tokens; an array as it is, if it fits."""
    if isinstance(texts, np.ndarray | jax.Array):
        return _fitted(np.asarray(texts), info, config)
    if config.task != "classify":
        raise ValueError(
            f"the run was trained with task={config.task!r}: what it says of a text is found by "
            "generate (lm), or from arrays of tokens."
        )
    several = [texts] if isinstance(texts, str | tuple) else list(texts)
    pairs = [(one,) if isinstance(one, str) else one for one in several]
    if not pairs or not all(_is_row(pair) for pair in pairs):
        raise ValueError(f"images={texts!r:.80} must be a text, a pair of texts, or several.")
    rows = [Row(*pair) for pair in pairs]
    known = tokenization.tokenizer(about.tokenizer)
    return np.stack([packing.of_row(row, known, *info.image_shape) for row in rows])


def _is_row(value: Any) -> bool:
    """A text or a pair of them, as a tuple."""
    is_tuple = isinstance(value, tuple) and len(value) in (1, 2)
    return is_tuple and all(isinstance(text, str) for text in value)


def _is_image(value: Any) -> bool:
    """A path or an image of Pillow's, which may not be installed."""
    return isinstance(value, str | Path) or hasattr(value, "convert")


def _fitted(array: Any, info: DataInfo, config: DataConfig) -> Shaped[np.ndarray, "n ..."]:
    """An array that has the right shape, or has it once it is shrunk as the run's data were."""
    expected = info.image_shape
    if config.shrink > 1 and array.shape[1:] == _before_shrinking(info, config):
        split = datasets.Split(array, np.zeros(len(array), np.int32))
        array = datasets.shrink_split(split, config.shrink).images
    if array.shape[1:] != expected or str(array.dtype) != info.dtype or not len(array):
        raise ValueError(
            f"images of shape {array.shape} and dtype {array.dtype} are not what the run was "
            f"trained on: (n, {', '.join(map(str, expected))}) of {info.dtype}, n at least 1, are "
            "expected."
        )
    return np.asarray(array)


def _before_shrinking(info: DataInfo, config: DataConfig) -> tuple[int, ...]:
    height, width, channels = info.image_shape
    return height * config.shrink, width * config.shrink, channels


def _check_pixels(info: DataInfo) -> None:
    if (
        len(info.image_shape) != _IMAGES
        or info.dtype != "uint8"
        or info.image_shape[2] not in (1, 3)
    ):
        raise ValueError(
            f"the run was trained on inputs of shape {info.image_shape} and dtype {info.dtype}, "
            "not on images: pass arrays."
        )


def _pixels(image: "str | Path | PIL.Image.Image", info: DataInfo, config: DataConfig) -> Any:
    """One image, scaled and cropped as those that the run was tested on."""
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415 (an extra)

        from zosam_jax.data import stream  # noqa: PLC0415 (likewise)
        from zosam_jax.data.images import convert, open_image  # noqa: PLC0415 (likewise)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading images takes {error.name}, which comes with: pip install 'zosam_jax[data]'"
        ) from error
    height, width, channels = _before_shrinking(info, config)
    name = "an image" if hasattr(image, "convert") else str(image)
    try:
        opened = open_image(Path(image)) if isinstance(image, str | Path) else image
        found = convert(opened, "L" if channels == 1 else "RGB")
        if config.stream:
            found = stream.centre_crop(found, width, stream.CROP_RATIO)
        elif found.size != (width, height):
            found = ImageOps.fit(found, (width, height), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow's many decoders raise errors of any kind.
        raise ValueError(f"{name} cannot be read: {files.one_line(error)}") from error
    return np.asarray(found).reshape(height, width, channels)
