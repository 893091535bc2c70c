"""Arrays come back bit for bit from every layout; the bitmask's is read by rules of its own."""

import json
import struct
import sys
import zlib

import numpy as np
import pytest

from zosam_jax.export import safetensors
from zosam_jax.export.safetensors import LAYOUTS, UnreadableExportError, read_safetensors

pytest.importorskip("safetensors", reason="needs zosam_jax[export]")


@pytest.fixture
def arrays():
    """Shapes that fill no byte, a row without zeros and one of zeros, −0.0, a scalar."""
    rng = np.random.default_rng(0)

    def sparse(*shape):
        kept = rng.random(shape) < 0.05
        return np.where(kept, rng.normal(size=shape), 0).astype(np.float32)

    kernel = sparse(100, 30)
    kernel[3], kernel[4], kernel[5, 7] = 1.5, 0.0, -0.0
    return {
        "head.kernel": kernel,
        "conv.kernel": sparse(3, 3, 16, 21),
        "dense.kernel": rng.normal(size=(8, 4)).astype(np.float32),
        "norm.scale": np.ones(21, np.float32),
        "norm.bias": np.zeros(21, np.float32),
        "temperature": np.float32(0.5).reshape(()),
    }


def saved(path, arrays, layout, *, int8=False):
    safetensors.save(path, arrays, layout, int8=int8, metadata={"classes": "a, b"})
    return path


def header_of(path):
    """By the format's description: 8 bytes of length, JSON, and the arrays' bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def read_as_compressed_tensors_does(path):
    """By the rules of its BitmaskCompressor: names by their endings, then bits, then values."""
    header, content = header_of(path)
    header.pop("__metadata__")
    kinds = {"F32": "<f4", "I8": "i1", "U8": "u1", "I16": "<i2", "I64": "<i8"}
    stored = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        flat = np.frombuffer(content[start:stop], kinds[entry["dtype"]])
        stored[name] = flat.reshape(entry["shape"])
    found, parts = {}, ("shape", "compressed", "bitmask", "row_offsets")
    for name in {n.rpartition(".")[0] for n in stored if n.endswith(".compressed")}:
        shape, values, bitmask, offsets = (stored.pop(f"{name}.{part}") for part in parts)
        bits = np.unpackbits(bitmask, axis=-1, count=shape[-1], bitorder="little")
        dense = np.zeros(shape, values.dtype)
        dense[bits.reshape(shape).astype(bool)] = values
        found[name] = dense
        # Row i has the values from its offset to that of row i + 1.
        for i, (row, start) in enumerate(zip(bits, offsets, strict=True)):
            stop = offsets[i + 1] if i + 1 < len(offsets) else len(values)
            assert stop - start == row.sum()
    return found | stored


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_come_back_bit_for_bit(layout, arrays, tmp_path):
    found, metadata = read_safetensors(saved(tmp_path / "x", arrays, layout))
    same(found, arrays)
    assert metadata["classes"] == "a, b"
    assert metadata["layout"] == layout


def test_another_reader_finds_the_same(arrays, tmp_path):
    path = saved(tmp_path / "x", arrays, "bitmask")
    same(read_as_compressed_tensors_does(path), arrays)
    header, _ = header_of(path)
    assert "dense.kernel" in header  # without zeros a mask would only add to it
    assert header["conv.kernel.bitmask"]["shape"] == [3 * 3 * 16, 3]


@pytest.mark.filterwarnings("ignore")  # of the library, and of what it imports
def test_compressed_tensors_itself_finds_the_same(arrays, tmp_path):
    """By version 0.13.0; from 0.15 on it reads no sparse layout."""
    sparse = pytest.importorskip("compressed_tensors.compressors.sparse_compressors")
    path = saved(tmp_path / "x.safetensors", arrays, "bitmask")
    compressor = sparse.BitmaskCompressor(config=None)
    found = {n.removesuffix(".weight"): t.numpy() for n, t in compressor.decompress(str(path))}
    same(found, arrays)


def test_offsets_are_as_wide_as_they_have_to_be(tmp_path):
    wide = np.ones((300, 200), np.float32)
    wide[:100] = 0.0
    path = saved(tmp_path / "x", {"kernel": wide}, "bitmask")
    same(read_as_compressed_tensors_does(path), {"kernel": wide})
    same(read_safetensors(path)[0], {"kernel": wide})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_int8_is_within_half_a_step_of_each_channel(layout, arrays, tmp_path):
    found, _ = read_safetensors(saved(tmp_path / "x", arrays, layout, int8=True))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        step = np.abs(array).max(axis=tuple(range(array.ndim - 1))) / 127 if array.ndim > 1 else 0
        assert np.all(np.abs(found[name] - array) <= 0.5001 * step)
        assert not found[name][array == 0].any()


def test_zeros_take_no_room(tmp_path):
    """95% zeros: a bit and a twentieth of four bytes each; packed, less than a bit (0.29)."""
    rng = np.random.default_rng(0)
    kept = rng.random((512, 512)) < 0.05
    kernel = np.where(kept, rng.normal(size=kept.shape), 0).astype(np.float32)
    arrays = {"kernel": kernel}
    dense, bitmask, packed = (saved(tmp_path / n, arrays, n).stat().st_size for n in LAYOUTS)
    assert bitmask < 0.0865 * dense
    assert packed < 0.062 * dense
    int8 = saved(tmp_path / "int8", arrays, "packed", int8=True).stat().st_size
    assert int8 < 0.027 * dense


def damaged(arrays, tmp_path, layout, change):
    """A file of a layout, some of whose arrays or metadata are others."""
    from safetensors import numpy, safe_open  # noqa: PLC0415

    path = saved(tmp_path / "x", arrays, layout)
    with safe_open(path, framework="numpy") as file:
        stored, metadata = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()  # noqa: SIM118
    change(stored, metadata)
    path.write_bytes(numpy.save(stored, metadata))
    return path


@pytest.mark.parametrize(
    ("layout", "change", "sentence"),
    [
        ("dense", lambda s, m: m.update(layout="zip"), "its layout 'zip' is none of dense"),
        ("bitmask", lambda s, m: s.pop("conv.kernel.shape"), "it lacks 'conv.kernel.shape'"),
        (
            "bitmask",
            lambda s, m: s.update({"conv.kernel.compressed": np.ones(3, np.float32)}),
            "conv.kernel has 3 values for",
        ),
        (
            "bitmask",
            lambda s, m: s.update({"conv.kernel.shape": np.array([10**6, 10**6])}),
            "conv.kernel.bitmask does not fit",
        ),
        ("packed", lambda s, m: m.update(float32="a -3"), "'a -3' in its metadata is no name"),
        ("packed", lambda s, m: m.update(float32="a 9x9"), "float32.bits does not fit the 81"),
        ("packed", lambda s, m: s.update({"float32.bits": np.ones(9, np.uint8)}), "cannot be read"),
        (
            "packed",  # a megabyte of ones in a kilobyte
            lambda s, m: s.update(
                {"float32.bits": np.frombuffer(zlib.compress(b"\xff" * 10**6), np.uint8)}
            ),
            "float32.bits does not fit",
        ),
    ],
)
def test_what_does_not_fit_is_named(layout, change, sentence, arrays, tmp_path):
    with pytest.raises(UnreadableExportError, match=sentence):
        read_safetensors(damaged(arrays, tmp_path, layout, change))


def test_another_file_and_none(tmp_path):
    (tmp_path / "x").write_bytes(b"neither a header nor arrays")
    with pytest.raises(UnreadableExportError, match="x cannot be read"):
        read_safetensors(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="is no file"):
        read_safetensors(tmp_path / "y")


def test_without_the_extra(arrays, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'zosam_jax\[export\]'"):
        saved(tmp_path / "x", arrays, "dense")
