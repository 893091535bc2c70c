"""The IDX format of MNIST and its relatives: a magic number, the dimensions, the bytes."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np

from zosam_jax.trees import UInt8

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Reads one IDX file of unsigned bytes, gzip-compressed or not.

    The layout is two zero bytes, the type code 0x08, the number of dimensions n, n dimensions as
    big-endian uint32, and the values in C order.

    Args:
      path: the file.

    Returns:
      A uint8 array of the dimensions in the file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not an IDX file of unsigned bytes, or is cut short.
    """
    content = path.read_bytes()
    if content[:2] == _GZIP_MAGIC:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError) as error:
            raise ValueError(f"{path} is a damaged or truncated gzip file: {error}.") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it begins with {content[:4]!r} instead "
            "of two zero bytes, 0x08 and the number of dimensions."
        )
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise ValueError(f"{path} is truncated: its header of {header} bytes is incomplete.")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    expected, actual = math.prod(shape), len(content) - header
    if actual != expected:
        raise ValueError(
            f"{path} {'is truncated' if actual < expected else 'has bytes left over'}: "
            f"{expected} values expected for the shape {shape}, {actual} found."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
