"""The reader of plain pickles against Python's own, on what both may read."""

import io
import pickle

import numpy as np
import pytest
from test_cifar import python2_dumps

from zosam_jax.data import plain_pickle

VALUES = {
    "scalars": [None, True, False, 0, 1, 255, 65_535, -1, 2**31, -(2**63), 2**63, 1.5, -0.0, 1e300],
    "text": ["", "a", "ä", "日本", "\n'\"\\", "a" * 300],
    "bytes": [b"", b"a", bytes(range(256)) * 2, b"\n'\""],
    "containers": [[], {}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[1], {b"a": [2]}], {1: 2}],
    "shared": [["a"] * 3, [{"a": 1}] * 2],
    "many": list(range(3000)),
    "dictionary": {b"a": 1, "b": [2.5], 3: (4,)},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", VALUES)
def test_plain_values_survive(kind, protocol):
    content = pickle.dumps(VALUES[kind], protocol)
    assert plain_pickle.loads(content) == VALUES[kind]


ARRAYS = [
    *(np.arange(12).astype(kind).reshape(3, 4) for kind in ("u1", "i2", ">i4", "<u8", "f2", ">f8")),
    np.array([True, False]),
    np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4)),
    np.arange(24, dtype=np.int64).reshape(2, 3, 4)[:, ::2],
    np.zeros((0, 3), np.float32),
    np.float64(2.5),
    np.uint8(7),
    np.array(3),
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("index", range(len(ARRAYS)))
def test_arrays_and_numbers_of_numpy_survive(index, protocol):
    content = pickle.dumps([[ARRAYS[index]], (ARRAYS[index], 1)], protocol)
    ([read], pair), ([expected], _) = plain_pickle.loads(content), pickle.loads(content)
    np.testing.assert_array_equal(read, expected, strict=isinstance(read, np.ndarray))
    np.testing.assert_array_equal(pair[0], ARRAYS[index])


def test_the_names_of_numpy_1():
    content = pickle.dumps([np.arange(3), np.float32(1.5)], 2)
    old = content.replace(b"numpy._core.", b"numpy.core.")
    assert old != content
    np.testing.assert_array_equal(plain_pickle.loads(old)[0], np.arange(3))


def test_strings_of_python_2_are_bytes():
    batch = {b"data": np.arange(6, dtype=np.uint8), b"labels": [1, 2], b"name": b"x" * 300}
    read = plain_pickle.loads(python2_dumps(batch))
    np.testing.assert_array_equal(read.pop(b"data"), np.arange(6))
    assert read == {b"labels": [1, 2], b"name": b"x" * 300}


def test_protocol_0_of_python_2():
    """As written by Python 2.7 for {'data': numpy.array([[1, 255]], 'u1'), 'labels': [3, 10L]}."""
    content = (
        b"(dp0\nS'labels'\np1\n(lp2\nI3\naL10L\nasS'data'\np3\n"
        b"cnumpy.core.multiarray\n_reconstruct\np4\n(cnumpy\nndarray\np5\n(I0\ntp6\nS'b'\np7\n"
        b"tp8\nRp9\n(I1\n(I1\nI2\ntp10\ncnumpy\ndtype\np11\n(S'u1'\np12\nI0\nI1\ntp13\nRp14\n"
        b"(I3\nS'|'\np15\nNNNI-1\nI-1\nI0\ntp16\nbI00\nS'\\x01\\xff'\np17\ntp18\nbs."
    )
    read = plain_pickle.loads(content)
    assert read[b"labels"] == [3, 10]
    np.testing.assert_array_equal(read[b"data"], np.array([[1, 255]], np.uint8), strict=True)


@pytest.mark.parametrize(
    "value", [{1, 2}, io.BytesIO, np.dtype("u1"), np.array(["a"]), 2**64, np.array([None]), 1j]
)
def test_everything_else_is_refused(value):
    for protocol in range(6):
        with pytest.raises(pickle.UnpicklingError):
            plain_pickle.loads(pickle.dumps([value], protocol))
