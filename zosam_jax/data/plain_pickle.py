"""Pickles that hold plain data: containers, numbers, text, bytes and arrays of numbers.

Python's own unpickler builds whatever a file asks for, and NumPy's types trust what they are built
from: a file can run code, or have memory overwritten. This one knows the instructions that plain
data is written with and no others; what a file calls is one of the functions below, which check
what they are given.
"""

import io
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


def loads(content: bytes) -> Any:
    """What a pickle of plain data holds, written by Python 2 or 3 under any protocol from 0 to 5.

    Returns:
      Lists, tuples and dictionaries of numbers, str, bytes (Python 2's strings among them), None
      and NumPy arrays of booleans, integers or floats.

    Raises:
      pickle.UnpicklingError: for anything else, damaged files among them, with the reason.
    """
    file = io.BytesIO(content)
    try:
        value = _PlainUnpickler(file, len(content)).load()
        if extra := len(file.read()):
            raise pickle.UnpicklingError(f"{extra} bytes follow its end")
        _check_plain(value)
    except pickle.UnpicklingError:
        raise
    except EOFError as error:
        raise pickle.UnpicklingError("it ends too early, or a length in it is wrong") from error
    # Truncated numbers, unknown references to the memo, and whatever else a damaged file leads to.
    except Exception as error:
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}"[:200]) from error
    return value


class _DType:
    """A type of numbers; its byte order follows by BUILD."""

    def __init__(self, code: Any, *_flags: Any) -> None:
        self.code, self.order = _text(code), "|"
        if not re.fullmatch("b1|[iu][1248]|f[248]", self.code):
            raise pickle.UnpicklingError("an array is not of booleans, integers or floats")

    def build(self, state: Any) -> None:
        """From (version, order, subarray, names, fields, size, alignment, flags).

        Old versions lack the flags. The byte order is all that it may say.
        """
        version, order, *rest = state
        fixed = [None, None, None, -1, -1, 0]
        self.order = _text(order)
        plain = version in (1, 2, 3) and rest in (fixed, fixed[:-1])
        if not (plain and re.fullmatch("[<>=|]", self.order)):
            raise pickle.UnpicklingError("the state of a dtype is not that of plain numbers")


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


_INSTRUCTIONS = """
MARK STOP PROTO FRAME NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
STRING BINSTRING SHORT_BINSTRING BINBYTES BINBYTES8 SHORT_BINBYTES
UNICODE BINUNICODE BINUNICODE8 SHORT_BINUNICODE
TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT
GLOBAL STACK_GLOBAL PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
"""
# Python's unpickler written in Python, whose memo is a dictionary: the numbers of a file's objects
# need not be near each other.
_Unpickler: Any = vars(pickle)["_Unpickler"]


class _Dispatch(dict[int, Any]):
    def __missing__(self, code: int) -> Any:
        raise pickle.UnpicklingError(
            f"{bytes([code])!r} is no instruction by which plain data is written"
        )


class _PlainUnpickler(_Unpickler):  # type: ignore[misc]
    """Python's unpickler without the instructions that make objects of any class."""

    dispatch = _Dispatch(
        (code, _Unpickler.dispatch[code])
        for code in (getattr(pickle, name)[0] for name in _INSTRUCTIONS.split())
    )

    def __init__(self, file: io.BytesIO, size: int) -> None:
        super().__init__(file, encoding="bytes")
        self._bytes_left = 2 * size  # once as text, once as an array
        self._functions: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): _refuse,
            ("numpy", "dtype"): _DType,
            # Python 3 writes bytes as text under protocols before 3.
            ("_codecs", "encode"): self._encode,
            ("builtins", "bytes"): lambda: b"",
            ("__builtin__", "bytes"): lambda: b"",
        }
        for core in ("numpy.core", "numpy._core"):  # of NumPy 1 and 2
            self._functions[f"{core}.multiarray", "_reconstruct"] = _empty
            self._functions[f"{core}.multiarray", "scalar"] = self._scalar
            self._functions[f"{core}.numeric", "_frombuffer"] = self._array

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._functions:
            raise pickle.UnpicklingError(f"it refers to {module[:50]!r}, {name[:50]!r}")
        return self._functions[module, name]

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not (callable(function) and isinstance(arguments, tuple)):
            raise pickle.UnpicklingError("it calls what is not to be called")
        self.stack.append(function(*arguments))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _DType):
            target.build(state)
        elif isinstance(target, np.ndarray):
            _, shape, dtype, fortran_order, data = state
            array = self._array(data, dtype, shape, "F" if fortran_order in (True, 1) else "C")
            target.__setstate__((1, shape, array.dtype, array.flags.fnc, data))  # type: ignore[arg-type]
        else:
            raise pickle.UnpicklingError("an instruction is for another kind of operand")

    def load_setitems(self) -> None:
        self._fill(self.pop_mark())

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._fill(items)

    def _fill(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise pickle.UnpicklingError("an instruction is for another kind of operand")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of nested tuples may take for ever.
            if type(key) not in (bytes, str, int):
                raise pickle.UnpicklingError(f"a dictionary has a key of type {type(key).__name__}")
            self.stack[-1][key] = value

    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        # Python's own takes memory for as many bytes as the file says that it has.
        pickle.BYTEARRAY8[0]: _Unpickler.load_binbytes8,
    }

    def _array(self, data: Any, dtype: Any, shape: Any, order: str) -> npt.NDArray[Any]:
        if not (isinstance(dtype, _DType) and isinstance(data, bytes) and isinstance(shape, tuple)):
            raise pickle.UnpicklingError("an array is not made of a dtype, a shape and bytes")
        numbers = np.dtype(dtype.order + dtype.code)
        if not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError("the shape of an array is impossible")
        if math.prod(shape) * numbers.itemsize != len(data):
            raise pickle.UnpicklingError(
                f"the shape of an array does not fit its {len(data)} bytes"
            )
        self._count(data)
        return np.frombuffer(data, numbers).reshape(shape, order="F" if order == "F" else "C")

    def _scalar(self, dtype: Any, data: Any) -> Any:
        return self._array(data, dtype, (), "C").item()

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if type(text) is not str or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("it encodes something other than bytes")
        self._count(text)
        return text.encode("latin1")

    def _count(self, made: bytes | str) -> None:
        """Raises for more than the file can mean: the same over and over would fill the memory."""
        self._bytes_left -= len(made)
        if self._bytes_left < 0:
            raise pickle.UnpicklingError("it makes more bytes than it has")


def _empty(*_: Any) -> npt.NDArray[Any]:
    """An array; its content follows by BUILD."""
    return np.empty(0, np.uint8)


def _refuse(*_: Any) -> None:
    raise pickle.UnpicklingError("it calls what is not to be called")


def _check_plain(value: Any) -> None:
    """Raises unless there is nothing but plain data in a value, which may contain itself."""
    todo, seen = [value], set()
    while todo:
        one = todo.pop()
        if isinstance(one, list | tuple | dict):
            if id(one) not in seen:
                seen.add(id(one))
                todo += one.values() if isinstance(one, dict) else one
        elif type(one) is int and not -(2**63) <= one < 2**64:
            raise pickle.UnpicklingError("an integer has more than 64 bits")
        elif not isinstance(one, bool | int | float | str | bytes | np.ndarray | None):
            raise pickle.UnpicklingError("it holds something other than plain data")
