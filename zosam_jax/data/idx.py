"""The IDX format of MNIST and its relatives: a magic number, the dimensions, the bytes."""

import math
import struct
import zlib
from pathlib import Path

import numpy as np

from zosam_jax.data import files
from zosam_jax.trees import UInt8

_UNSIGNED_BYTE = 0x08
_MOST_DIMENSIONS = 4


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Reads one IDX file of unsigned bytes, gzip-compressed or not.

    The layout is two zero bytes, the type code 0x08, the number of dimensions n, n dimensions as
    big-endian uint32, and the values in C order.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not an IDX file of unsigned bytes, is cut short, or holds nothing or more
        than files.MOST_BYTES.
    """
    if files.find(path) is None:
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with files.open_maybe_gzip(path) as stream:
            return _read(files.Bounded(stream), path)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} is a damaged or truncated gzip file: {files.one_line(error)}."
        ) from error


def _read(stream: files.Bounded, path: Path) -> UInt8[np.ndarray, "..."]:
    start = stream.read(4)
    if start[:3] != bytes((0, 0, _UNSIGNED_BYTE)) or not 1 <= start[-1] <= _MOST_DIMENSIONS:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it begins with {start!r} instead of two "
            f"zero bytes, 0x08 and the number of dimensions, from 1 to {_MOST_DIMENSIONS}."
        )
    header = stream.read(4 * start[-1])
    if len(header) < 4 * start[-1]:
        raise ValueError(
            f"{path} is truncated: its header of {4 + 4 * start[-1]} bytes is incomplete."
        )
    shape = struct.unpack(f">{start[-1]}I", header)
    expected = math.prod(shape)
    if not 0 < expected < files.MOST_BYTES:
        raise ValueError(
            f"{path} holds {expected:,} values (shape {shape}), where 1 to {files.MOST_BYTES:,} "
            "are expected."
        )
    content = stream.read(expected + 1)
    if len(content) != expected:
        wrong = "is truncated" if len(content) < expected else "has bytes left over"
        raise ValueError(
            f"{path} {wrong}: {expected} values expected for the shape {shape}, "
            f"{len(content) if len(content) < expected else 'more'} found."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
