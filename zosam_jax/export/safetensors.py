"""safetensors: a network's arrays by name, whole or without their zeros, as float32 or int8.

Layouts, each lossless:

- dense: every array as it is.
- bitmask: an array NAME with many zeros becomes NAME.compressed (what is kept, row by row),
  NAME.bitmask (a bit for each element, rows filled up to bytes, lowest bit first), NAME.shape and
  NAME.row_offsets (where each row begins among what is kept), the layout of compressed-tensors.
- packed: all arrays of a dtype, one after another, become DTYPE.values (what is kept) and
  DTYPE.bits (such bits without filling, deflated by zlib); the metadata's DTYPE has their names and
  shapes.

With int8, an array NAME of two or more axes holds rint(w / s) for the s of its channel on the last
axis, max |w| / 127; NAME.scale has these s.
"""

import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from zosam_jax.export.extra import missing

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

LAYOUTS = ("dense", "bitmask", "packed")

# In the metadata.
LAYOUT = "layout"

_BITMASK_PARTS = ("shape", "compressed", "bitmask", "row_offsets")
_SCALE = ".scale"
_LARGEST = 127


class UnreadableExportError(ValueError):
    """A file is not what an export writes; says which, and what is wrong."""


def save(
    path: Path, arrays: Arrays, layout: str, *, int8: bool, metadata: Mapping[str, str]
) -> None:
    """Writes a network's arrays.

    Args:
      path: the file.
      arrays: by name; float32.
      layout: one of LAYOUTS.
      int8: whether weights are rounded to 8 bits.
      metadata: what else the file says, in words.

    Raises:
      ModuleNotFoundError: if safetensors is missing, naming the extra that brings it.
    """
    about = {**metadata, LAYOUT: layout}
    stored = quantized(arrays) if int8 else dict(arrays)
    if layout == "bitmask":
        stored = _to_bitmasks(stored)
    elif layout == "packed":
        stored, index = _to_packed(stored)
        about |= index
    whole = {name: np.asarray(array, order="C") for name, array in stored.items()}
    path.write_bytes(_library().numpy.save(whole, about))


def read_safetensors(path: Path | str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The arrays of a network that `zosam export` wrote, in any layout, and the metadata.

    Returns:
      Arrays by name as float32, those of int8 times their scales; and what the file says of them.

    Raises:
      FileNotFoundError: if there is no such file.
      UnreadableExportError: if it is anything else, or damaged.
      ModuleNotFoundError: if safetensors is missing, naming the extra that brings it.
    """
    library, path = _library(), Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file.")
    try:
        with library.safe_open(path, framework="numpy") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            metadata = dict(file.metadata() or {})
        layout = metadata.get(LAYOUT, "dense")
        if layout == "bitmask":
            stored = _from_bitmasks(stored)
        elif layout == "packed":
            stored = _from_packed(stored, metadata)
        elif layout != "dense":
            raise ValueError(f"its layout {layout!r} is none of {', '.join(LAYOUTS)}")
        return _dequantized(stored), metadata
    except (library.SafetensorError, OSError, ValueError, KeyError, zlib.error) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else f"{error}".rstrip(".")
        raise UnreadableExportError(f"{path} cannot be read: {reason}.") from error


def quantized(arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Arrays of two or more axes as int8 beside their scales, the others as they are."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name, array in arrays.items():
        if array.ndim < 2 or not array.size:
            found[name] = array
            continue
        largest = np.abs(array).max(axis=tuple(range(array.ndim - 1)))
        scale = np.where(largest > 0, largest / np.float32(_LARGEST), np.float32(1))
        found[name] = np.rint(array / scale).astype(np.int8)
        found[name + _SCALE] = scale.astype(np.float32)
    return found


def _dequantized(stored: Arrays) -> dict[str, npt.NDArray[Any]]:
    def whole(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array * stored[name + _SCALE] if array.dtype == np.int8 else array

    scales = {name + _SCALE for name, array in stored.items() if array.dtype == np.int8}
    return {name: whole(name, array) for name, array in stored.items() if name not in scales}


def _kept(array: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where an array has a bit set: −0.0 is kept."""
    kept: npt.NDArray[np.bool_] = array.view(f"u{array.itemsize}") != 0
    return kept


def _to_bitmasks(arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {}
    for name, array in arrays.items():
        parts = _bitmask(array) if array.ndim > 1 else {}
        is_smaller = sum(part.nbytes for part in parts.values()) < array.nbytes
        if parts and is_smaller:
            found |= {f"{name}.{part}": value for part, value in parts.items()}
        else:
            found[name] = array
    return found


def _bitmask(array: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    kept = _kept(array).reshape(-1, array.shape[-1])
    counts = kept.sum(axis=1)
    # Narrow where that suffices: for a kernel of 16 outputs, wide ones would outweigh the mask.
    offsets = (np.cumsum(counts) - counts).astype(np.int16 if kept.sum() < 2**15 else np.int64)
    return {
        "shape": np.asarray(array.shape, np.int64),
        "compressed": array[kept.reshape(array.shape)],
        "bitmask": np.packbits(kept, axis=1, bitorder="little"),
        "row_offsets": offsets,
    }


def _from_bitmasks(stored: Arrays) -> dict[str, npt.NDArray[Any]]:
    found = {}
    for name, array in stored.items():
        whole, _, part = name.rpartition(".")
        if f"{whole}.compressed" not in stored or part not in _BITMASK_PARTS:
            found[name] = array
        elif part == "compressed":
            shape = tuple(map(int, stored[f"{whole}.shape"]))
            bits = stored[f"{whole}.bitmask"]
            rows = (math.prod(shape[:-1]), -(-shape[-1] // 8))
            if bits.dtype != np.uint8 or bits.shape != rows:
                raise ValueError(f"{whole}.bitmask does not fit {whole}.shape, {shape}")
            kept = np.unpackbits(bits, axis=1, count=shape[-1], bitorder="little")
            found[whole] = _filled(whole, array, kept.ravel()).reshape(shape)
    return found


def _to_packed(arrays: Arrays) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    found, index = {}, {}
    if unfit := [name for name in arrays if "," in name or " " in name]:
        raise ValueError(f"layout='packed' takes no names with a comma or space, as {unfit[0]!r}.")
    for dtype in sorted({str(array.dtype) for array in arrays.values()}):
        group = {name: array for name, array in arrays.items() if array.dtype == dtype}
        flat = np.concatenate([array.ravel() for array in group.values()])
        kept = _kept(flat)
        deflated = zlib.compress(np.packbits(kept, bitorder="little").tobytes(), level=9)
        found[f"{dtype}.values"] = flat[kept]
        found[f"{dtype}.bits"] = np.frombuffer(deflated, np.uint8)
        index[dtype] = ", ".join(f"{n} {'x'.join(map(str, a.shape))}" for n, a in group.items())
    return found, index


def _from_packed(stored: Arrays, index: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {}
    for dtype in (name.removesuffix(".bits") for name in stored if name.endswith(".bits")):
        shapes = dict(map(_name_and_shape, index[dtype].split(", ")))
        sizes = [math.prod(shape) for shape in shapes.values()]
        length = -(-sum(sizes) // 8)
        # No more than was announced is ever inflated.
        bits = zlib.decompressobj().decompress(stored[f"{dtype}.bits"].tobytes(), length + 1)
        if len(bits) != length:
            raise ValueError(f"{dtype}.bits does not fit the {sum(sizes)} elements of its arrays")
        kept = np.unpackbits(np.frombuffer(bits, np.uint8), count=sum(sizes), bitorder="little")
        flat = _filled(dtype, stored[f"{dtype}.values"], kept)
        pieces = np.split(flat, np.cumsum(sizes)[:-1])
        found |= {n: p.reshape(shapes[n]) for n, p in zip(shapes, pieces, strict=True)}
    return found


def _name_and_shape(entry: str) -> tuple[str, tuple[int, ...]]:
    name, _, shape = entry.rpartition(" ")
    if not re.fullmatch(r"(\d{1,9}(x\d{1,9})*)?", shape):
        raise ValueError(f"{entry[:60]!r} in its metadata is no name with a shape")
    return name, tuple(map(int, shape.split("x"))) if shape else ()


def _filled(name: str, values: npt.NDArray[Any], kept: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """A flat array of zeros, with the values where a bit is set."""
    if values.shape != (int(kept.sum()),):
        raise ValueError(f"{name} has {values.size} values for {int(kept.sum())} bits")
    found = np.zeros(kept.shape, values.dtype)
    found[kept.astype(bool)] = values
    return found


def _library() -> Any:
    try:
        import safetensors.numpy  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise missing("safetensors", error) from error
    return safetensors
