"""Encoded images: the only place where Pillow opens anything."""

import io
import math
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from zosam_jax.data import files
from zosam_jax.errors import check_count

# Of the formats that Pillow knows, some are handed to other programs (PostScript to Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# ImageNet's largest image has 61 million.
MOST_PIXELS = 2**26


def check_image_size(image_size: int) -> None:
    """Raises unless `image_size` is a side, in pixels, of a square of at most MOST_PIXELS."""
    check_count("image_size", image_size)
    if image_size**2 > MOST_PIXELS:
        raise ValueError(f"image_size={image_size!r} must be at most {math.isqrt(MOST_PIXELS)}.")


def open_image(source: bytes | Path) -> Image.Image:
    """Reads the header of an image, its content or its path; pixels are decoded when asked for.

    Raises:
      ValueError: if the path is not that of a regular file, the content is of no format among
        FORMATS, or it would be decoded to more than MOST_PIXELS pixels.
    """
    if isinstance(source, Path) and (problem := files.fault(source)):
        raise ValueError(f"it {problem}.")
    stream = source if isinstance(source, Path) else io.BytesIO(source)
    try:
        image = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is no image in the format {', '.join(FORMATS)}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(_too_many_pixels()) from error
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(_too_many_pixels())
    return image


def _too_many_pixels() -> str:
    return f"it has more than the {MOST_PIXELS:,} pixels that are decoded."


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Decodes an image to "RGB" or "L".

    Raises:
      ValueError: if its pixels have more than 8 bits per channel.
    """
    if image.mode[0] in "IF":
        raise ValueError(f"its pixels are of mode {image.mode}, not of 8 bits per channel.")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)
