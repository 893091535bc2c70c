"""Pickles that hold plain data: containers, numbers, text, bytes and arrays of numbers.

Python's own unpickler builds whatever a file asks for, and NumPy's types trust what they are built
from: a file can run code, or have memory overwritten. This reader knows the instructions that plain
data is written with, and none of the objects on its stack is made by anything but the lines below.
"""

import codecs
import dataclasses
import itertools
import math
import pickle
import re
import struct
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
    try:
        return _Machine(content).run()
    except pickle.UnpicklingError:
        raise
    # Truncated numbers, unknown references to the memo, and whatever else a damaged file leads to.
    except Exception as error:
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}"[:200]) from error


@dataclasses.dataclass(frozen=True)
class _Global:
    """One of the few functions that a pickle may refer to, by its name without the module."""

    name: str


@dataclasses.dataclass
class _DType:
    """A type of numbers; its byte order follows by BUILD."""

    code: str
    order: str = "|"


@dataclasses.dataclass
class _Array:
    """An array; its content follows by BUILD."""

    content: npt.NDArray[Any] | None = None


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_GLOBALS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *itertools.product(_MULTIARRAY, ("_reconstruct", "scalar")),
    *itertools.product(_NUMERIC, ("_frombuffer",)),
    # Python 3 writes bytes as text under protocols before 3.
    ("_codecs", "encode"),
    *itertools.product(("__builtin__", "builtins"), ("bytes",)),
}

_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_NUMBERS = {
    pickle.BININT: "<i",
    pickle.BININT1: "<B",
    pickle.BININT2: "<H",
    pickle.BINFLOAT: ">d",
}
# How many bytes follow is itself written in so many ways.
_BYTES = {
    pickle.SHORT_BINSTRING: "<B",
    pickle.BINSTRING: "<i",
    pickle.SHORT_BINBYTES: "<B",
    pickle.BINBYTES: "<I",
    pickle.BINBYTES8: "<Q",
    pickle.BYTEARRAY8: "<Q",
}
_TEXT = {pickle.SHORT_BINUNICODE: "<B", pickle.BINUNICODE: "<I", pickle.BINUNICODE8: "<Q"}
_TUPLES = {pickle.EMPTY_TUPLE: 0, pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_MEMO_WRITES = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
_MEMO_READS = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_IGNORED = {pickle.PROTO: 1, pickle.FRAME: 8}

_DTYPES = re.compile("b1|[iu][1248]|f[248]")
_MOST_DIMENSIONS = 32


class _Machine:
    """Carries out the instructions of a pickle."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        # A dictionary: the numbers in a file need not be near each other.
        self._memo: dict[int, Any] = {}
        self._encoded_bytes = 0
        self._actions: dict[bytes, Callable[[], None]] = {
            pickle.MARK: lambda: self._marks.append(len(self._stack)),
            pickle.EMPTY_LIST: lambda: self._stack.append([]),
            pickle.EMPTY_DICT: lambda: self._stack.append({}),
            pickle.LIST: lambda: self._stack.append(list(map(_finished, self._above_mark()))),
            pickle.DICT: lambda: self._stack.append(self._filled({}, self._above_mark())),
            pickle.TUPLE: lambda: self._push_tuple(self._above_mark()),
            pickle.APPEND: lambda: self._extend([self._pop()]),
            pickle.APPENDS: lambda: self._extend(self._above_mark()),
            pickle.SETITEM: self._set_item,
            pickle.SETITEMS: self._set_items,
            pickle.GLOBAL: lambda: self._push_global(
                self._line().decode("ascii"), self._line().decode("ascii")
            ),
            pickle.STACK_GLOBAL: self._stack_global,
            pickle.REDUCE: self._reduce,
            pickle.BUILD: self._build,
            pickle.PUT: lambda: self._remember(int(self._line())),
            pickle.MEMOIZE: lambda: self._remember(len(self._memo)),
            pickle.GET: lambda: self._stack.append(self._memo[int(self._line())]),
            pickle.INT: self._integer_line,
            pickle.LONG: lambda: self._push_integer(int(self._line().removesuffix(b"L"))),
            pickle.LONG1: lambda: self._push_integer(
                int.from_bytes(self._take(self._number("<B")), "little", signed=True)
            ),
            pickle.FLOAT: lambda: self._stack.append(float(self._line())),
            pickle.STRING: self._string_line,
            pickle.UNICODE: lambda: self._stack.append(self._line().decode("raw-unicode-escape")),
        }

    def run(self) -> Any:
        while (instruction := self._take(1)) != pickle.STOP:
            if instruction in _NUMBERS:
                self._stack.append(self._number(_NUMBERS[instruction]))
            elif instruction in _BYTES:
                self._stack.append(self._take(self._number(_BYTES[instruction])))
            elif instruction in _TEXT:
                self._stack.append(self._take(self._number(_TEXT[instruction])).decode())
            elif instruction in _MEMO_WRITES:
                self._remember(self._number(_MEMO_WRITES[instruction]))
            elif instruction in _MEMO_READS:
                self._stack.append(self._memo[self._number(_MEMO_READS[instruction])])
            elif instruction in _TUPLES:
                self._push_tuple([self._pop() for _ in range(_TUPLES[instruction])][::-1])
            elif instruction in _CONSTANTS:
                self._stack.append(_CONSTANTS[instruction])
            elif instruction in _IGNORED:
                self._take(_IGNORED[instruction])
            elif instruction in self._actions:
                self._actions[instruction]()
            else:
                raise pickle.UnpicklingError(
                    f"byte {self._position - 1} is no instruction by which plain data is written"
                )
        if extra := len(self._content) - self._position:
            raise pickle.UnpicklingError(f"{extra} bytes follow its end")
        return _finished(self._pop())

    def _take(self, count: int) -> bytes:
        end = self._position + count
        if count < 0 or end > len(self._content):
            raise pickle.UnpicklingError("it ends too early, or a length in it is wrong")
        taken = self._content[self._position : end]
        self._position = end
        return taken

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> bytes:
        end = self._content.find(b"\n", self._position)
        line = self._take(end - self._position)
        self._position += 1
        return line

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise pickle.UnpicklingError("an instruction lacks its operand")
        return self._stack.pop()

    def _above_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _top(self, kind: Any) -> Any:
        self._stack.append(self._pop())
        if not isinstance(self._stack[-1], kind):
            raise pickle.UnpicklingError("an instruction is for another kind of operand")
        return self._stack[-1]

    def _push_tuple(self, items: list[Any]) -> None:
        # The arguments of a call may be anything, so not everything need be finished.
        self._stack.append(tuple(_finished(i) if isinstance(i, _Array) else i for i in items))

    def _remember(self, number: int) -> None:
        self._memo[number] = self._top(object)

    def _extend(self, items: list[Any]) -> None:
        self._top(list).extend(map(_finished, items))

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._filled(self._top(dict), [key, value])

    def _set_items(self) -> None:
        items = self._above_mark()
        self._filled(self._top(dict), items)

    def _filled(self, target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of nested tuples may take for ever.
            if type(key) not in (bytes, str, int):
                raise pickle.UnpicklingError(f"a dictionary has a key of type {type(key).__name__}")
            target[key] = _finished(value)
        return target

    def _push_integer(self, value: int) -> None:
        if not -(2**63) <= value < 2**64:
            raise pickle.UnpicklingError("an integer has more than 64 bits")
        self._stack.append(value)

    def _integer_line(self) -> None:
        line = self._line()
        if line in (b"00", b"01"):
            self._stack.append(line == b"01")
        else:
            self._push_integer(int(line))

    def _string_line(self) -> None:
        quoted = self._line()
        if len(quoted) < 2 or quoted[:1] != quoted[-1:] or quoted[:1] not in b"'\"":
            raise pickle.UnpicklingError("a string lacks its quotation marks")
        self._stack.append(codecs.escape_decode(quoted[1:-1])[0])

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise pickle.UnpicklingError("a reference is not made of names")
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module[:50]!r}, {name[:50]!r}")
        self._stack.append(_Global(name))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        calls: dict[str, Callable[..., Any]] = {
            "_reconstruct": lambda *_: _Array(),
            "_frombuffer": lambda data, dtype, shape, order: _Array(
                _array(shape, dtype, order == "F", data)
            ),
            "scalar": lambda dtype, data: _array((), dtype, False, data).item(),
            "dtype": _dtype,
            "encode": self._encode,
            "bytes": lambda: b"",
        }
        if not (isinstance(function, _Global) and function.name in calls):
            raise pickle.UnpicklingError("it calls what is not to be called")
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("the arguments of a call are not a tuple")
        self._stack.append(calls[function.name](*arguments))

    def _build(self) -> None:
        state = self._pop()
        target = self._top(_DType | _Array)
        if isinstance(target, _DType):
            target.order = _byte_order(state)
        else:
            _, shape, dtype, fortran_order, data = state
            target.content = _array(shape, dtype, fortran_order in (True, 1), data)

    def _encode(self, text: Any, encoding: Any) -> bytes:
        if type(text) is not str or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("it encodes something other than bytes")
        # Once for each byte in the file: the same text again and again would fill the memory.
        self._encoded_bytes += len(text)
        if self._encoded_bytes > len(self._content):
            raise pickle.UnpicklingError("it makes more bytes than it has")
        return text.encode("latin1")


def _finished(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.content is None:
            raise pickle.UnpicklingError("an array lacks its content")
        return value.content
    if isinstance(value, _Global | _DType):
        raise pickle.UnpicklingError("it holds something other than plain data")
    return value


def _dtype(code: Any, *_flags: Any) -> _DType:
    text = code.decode("latin1") if isinstance(code, bytes) else code
    if not (isinstance(text, str) and _DTYPES.fullmatch(text)):
        raise pickle.UnpicklingError("an array is not of booleans, integers or floats")
    return _DType(text)


def _byte_order(state: Any) -> str:
    """From (version, order, subarray, names, fields, size, alignment, flags); old ones lack flags.

    The byte order is all that it may say: the rest is fixed for plain numbers.
    """
    version, order, *rest = state
    text = order.decode("latin1") if isinstance(order, bytes) else order
    fixed = [None, None, None, -1, -1, 0]
    plain = version in (1, 2, 3) and rest in (fixed, fixed[:-1])
    if not (plain and isinstance(text, str) and len(text) == 1 and text in "<>=|"):
        raise pickle.UnpicklingError("the state of a dtype is not that of plain numbers")
    return text


def _array(shape: Any, dtype: Any, fortran_order: bool, data: Any) -> npt.NDArray[Any]:
    if not (isinstance(dtype, _DType) and type(data) is bytes and isinstance(shape, tuple)):
        raise pickle.UnpicklingError("an array is not made of a dtype, a shape and bytes")
    numbers = np.dtype(dtype.order + dtype.code)
    sizes_fit = all(type(size) is int and size >= 0 for size in shape)
    if not (sizes_fit and len(shape) <= _MOST_DIMENSIONS):
        raise pickle.UnpicklingError("the shape of an array is impossible")
    if math.prod(shape) * numbers.itemsize != len(data):
        raise pickle.UnpicklingError(f"the shape of an array does not fit its {len(data)} bytes")
    return np.frombuffer(data, numbers).reshape(shape, order="F" if fortran_order else "C")
