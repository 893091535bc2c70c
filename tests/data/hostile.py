"""Files that were made to do harm, or damaged at random, for the tests and as a campaign.

    python tests/data/hostile.py crafted
    python tests/data/hostile.py random 500 7

Each file is read in a process of its own, so that a crash, a hang and an excess of memory are seen;
a table of what was attacked, how often, and what became of it is printed.
"""

import collections
import contextlib
import gzip
import io
import json
import lzma
import os
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zosam_jax import data

READ, REFUSED = "read", "refused"
SECONDS = 20
GIBIBYTE = 2**30


class Hostile(NamedTuple):
    """A file or folder of files: `write(folder)` makes it, `load(folder)` is to refuse it.

    Attributes:
      heavy: whether reading it takes seconds, because it is large.
    """

    kind: str
    name: str
    write: Callable[[Path], None]
    load: Callable[[Path], object]
    heavy: bool = False


# What no file may lead to. The events are CPython's.
_FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.startfile", "subprocess.Popen", "pty.spawn"),
    *("pickle.find_class", "ctypes.dlopen", "socket.connect"),
    *("socket.getaddrinfo", "os.symlink", "os.link", "os.chmod"),
}
OUTSIDE = "outside-the-data"
_watching: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watching is None:
        return
    if event in _FORBIDDEN and not any("__pycache__" in str(a) for a in arguments):
        _watching.append(f"{event}{arguments}"[:200])
    elif event == "open" and OUTSIDE in str(arguments[0]):
        _watching.append(f"open({arguments[0]})")


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """The list of what was done that no file may lead to."""
    global _watching  # noqa: PLW0603 (audit hooks cannot be removed)
    if not getattr(watched, "installed", False):
        sys.addaudithook(_watch)
        watched.installed = True  # type: ignore[attr-defined]
    _watching = []
    try:
        yield _watching
    finally:
        _watching = None


def attack(hostile: Hostile, folder: Path) -> str:
    """READ or REFUSED, or a sentence about what went wrong."""
    hostile.write(folder)
    with watched() as deeds:
        try:
            hostile.load(folder)
            outcome = READ
        except (ValueError, FileNotFoundError) as error:
            message = str(error)
            short = "\n" not in message and len(message) < 1500 and message.isprintable()
            named = folder.name in message
            outcome = REFUSED if short and named else f"said {message!r:.500}"
        except BaseException as error:
            outcome = f"raised {type(error).__name__}: {error!s:.300}"
    return f"did {deeds[0]}" if deeds else outcome


def load_cifar10(folder: Path) -> object:
    return data.load("cifar10", folder)


def load_fashion(folder: Path) -> object:
    return data.load("fashion-mnist", folder)


def load_folder(folder: Path) -> object:
    return data.load("folder", folder)


def load_fog(folder: Path) -> object:
    return data.cifar10_c(folder, "fog", 2).images.sum()


# --- CIFAR's pickles ----------------------------------------------

_MULTIARRAY = b"cnumpy.core.multiarray\n"
_RECONSTRUCT = _MULTIARRAY + b"_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
_PLAIN_STATE = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
_ZERO_STATE = b"(K\x03U\x01|%sJ%sJ%sK%st"
_ROW = b"T\x00\x0c\x00\x00" + bytes(3072)
_SHAPE = b"K\x01M\x00\x0c\x86"


def dtype(code: bytes = b"u1", state: bytes = _PLAIN_STATE) -> bytes:
    return b"cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\x00K\x01\x87R" + state + b"b"


def array(shape: bytes = _SHAPE, kind: bytes | None = None, content: bytes = _ROW) -> bytes:
    kind = dtype() if kind is None else kind
    return _RECONSTRUCT + b"(K\x01" + shape + kind + b"\x89" + content + b"tb"


def batch(rows: bytes | None = None, labels: bytes = b"]K\x03a") -> bytes:
    rows = array() if rows is None else rows
    return b"\x80\x02}(U\x04data" + rows + b"U\x06labels" + labels + b"u."


def number(value: int) -> bytes:
    return b"L" + str(value).encode() + b"L\n"


def dtype_state(fields: bytes, size: int = 8, flags: bytes = b"K\x00") -> bytes:
    sizes = b"J" + struct.pack("<i", size) + b"K\x01"
    return b"(K\x03U\x01|" + fields + sizes + flags + b"t"


# A void of eight bytes with an object in it, and no flag that says so: NumPy would take the bytes
# for the address of an object.
_OBJECT = b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R"
_FIELDS = b"NU\x01a\x85}U\x01a" + _OBJECT + b"K\x00\x86s"
_LAUGHS = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
_NESTED = b"]" * 50_000 + b"a" * 49_999
_SYSTEM = b"cposix\nsystem\nU\x0btouch owned\x85R"

PICKLES = {
    "an array of objects": batch(array(kind=dtype(b"O8"))),
    "objects without their flag": batch(array(kind=dtype(b"V8", dtype_state(_FIELDS)))),
    "fields in a type of numbers": batch(array(kind=dtype(b"u1", dtype_state(_FIELDS)))),
    "a subarray": batch(array(kind=dtype(b"u1", dtype_state(dtype() + _SHAPE + b"\x86NN")))),
    "another flag": batch(array(kind=dtype(state=dtype_state(b"NNN", -1, b"K\x3f")))),
    "another size of items": batch(array(kind=dtype(state=dtype_state(b"NNN", 2**20)))),
    "a void": batch(array(kind=dtype(b"V3"))),
    "text": batch(array(kind=dtype(b"S3"))),
    "dates": batch(array(kind=dtype(b"M8"))),
    "a dtype in words": batch(array(kind=dtype(b"O,O"))),
    "a byte order of more": batch(array(kind=dtype(state=_PLAIN_STATE.replace(b"|", b"O")))),
    "a state that is a dtype": batch(array(kind=dtype(state=dtype()))),
    "a state that is a number": batch(array(kind=dtype(state=b"K\x05"))),
    "a dtype that is none": batch(array(kind=b"K\x05")),
    "a huge shape": batch(array(number(2**62) + b"M\x00\x0c\x86")),
    "a huge shape of nothing": batch(array(b"K\x00" + number(2**62) + b"\x86", content=b"U\x00")),
    "an overflowing shape": batch(array(number(2**32) + number(2**32) + b"\x86", content=b"U\x00")),
    "an integer of a million bits": batch(array(b"\x8a\xff" + b"\x7f" * 255 + b"\x85")),
    "an integer of many digits": batch(labels=b"](L" + b"9" * 100_000 + b"L\ne"),
    "a negative size": batch(array(b"J\xff\xff\xff\xffM\x00\x0c\x86")),
    "two negative sizes": batch(array(b"J\xff\xff\xff\xffJ\x00\xf4\xff\xff\x86")),
    "a shape that is too large": batch(array(b"K\x02M\x00\x0c\x86")),
    "a shape that is too small": batch(array(b"K\x01K\x01\x86")),
    "a shape of a thousand": batch(array(b"(" + b"K\x01" * 1000 + b"t")),
    "a shape of booleans": batch(array(b"\x88M\x00\x0c\x86")),
    "a shape of floats": batch(array(b"G" + struct.pack(">d", 1.0) + b"M\x00\x0c\x86")),
    "a shape that is a list": batch(array(b"]K\x01aM\x00\x0ca")),
    "rows that are text": batch(array(content=b"X\x00\x0c\x00\x00" + bytes(3072))),
    "rows that are a list": batch(array(content=_NESTED)),
    "an array without content": batch(_RECONSTRUCT),
    "an array in its own state": batch(
        _RECONSTRUCT + b"q\x00(K\x01" + _SHAPE + b"h\x00\x89h\x00tb"
    ),
    "no array": batch(b"N"),
    "a scalar of objects": batch(
        labels=b"]" + _MULTIARRAY + b"scalar\n" + dtype(b"O8") + b"U\x08" + bytes(8) + b"\x86Ra"
    ),
    "a buffer of objects": batch(
        b"cnumpy.core.numeric\n_frombuffer\n(U\x08" + bytes(8) + dtype(b"O8") + b"K\x01\x85U\x01CtR"
    ),
    "labels that contain themselves": batch(labels=b"]q\x05h\x05a"),
    "labels that are deeply nested": batch(labels=_NESTED),
    "labels that multiply": batch(labels=b"]U\x03lol" + _LAUGHS + b"a"),
    "a key that multiplies": b"\x80\x02}U\x03lol" + _LAUGHS + b"K\x00s.",
    "a key that is an array": b"\x80\x02}" + array() + b"K\x00s.",
    "labels that are booleans": batch(labels=b"]\x88a"),
    "labels that are floats": batch(labels=b"]G" + struct.pack(">d", 1.0) + b"a"),
    "labels of 64 bits": batch(labels=b"]" + number(2**63 + 1) + b"a"),
    "a label above": batch(labels=b"]K\x0aa"),
    "a label below": batch(labels=b"]J\xff\xff\xff\xffa"),
    "no images": batch(array(b"K\x00M\x00\x0c\x86", content=b"U\x00"), b"]"),
    "a memo of four thousand million": batch(labels=b"]r\xf0\xff\xff\xffK\x03a"),
    "a memo by a negative number": batch(labels=b"]p-5\nK\x03aK\x01ag7\n"),
    "an unknown memo": batch(labels=b"h\xee"),
    "a memo of nothing": b"\x80\x02q\x00.",
    "bytes of an exabyte": batch(b"\x8e" + struct.pack("<Q", 2**60)),
    "bytes of four gigabytes": batch(b"B\xff\xff\xff\xff"),
    "bytes of a negative length": batch(b"T\xff\xff\xff\xff"),
    "a frame of an exabyte": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + batch()[2:],
    "a text made again and again": batch(
        b"X\xa0\x86\x01\x00" + b"a" * 100_000 + b"q\x00]("
        b"" + b"c_codecs\nencode\nh\x00U\x06latin1\x86R" * 5000 + b"e"
    ),
    "encoding by another codec": batch(b"c_codecs\nencode\nX\x01\x00\x00\x00aU\x03zip\x86R"),
    "a command": batch(labels=_SYSTEM),
    "a command instead of a batch": b"\x80\x02" + _SYSTEM + b".",
    "a command under protocol 0": b"cos\nsystem\n(S'touch owned'\ntR.",
    "a command under protocol 4": (
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0btouch owned\x85R."
    ),
    "a command as an instance": b"(S'touch owned'\nios\nsystem\n.",
    "a command as an object": b"(cos\nsystem\nS'touch owned'\no.",
    "a command by NEWOBJ": b"\x80\x02csubprocess\nPopen\nU\x05touch\x85\x81.",
    "a command in a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x09os.system\x93\x8c\x01a\x85R.",
    "eval": batch(labels=b"c__builtin__\neval\nU\x0b[1].pop(0)#\x85R"),
    "getattr": batch(labels=b"c__builtin__\ngetattr\nU\x01aU\x05upper\x86R"),
    "an object of copy_reg": batch(labels=b"ccopy_reg\n_reconstructor\nU\x01aU\x01bN\x87R"),
    "a persistent id": b"\x80\x02U\x01aQ.",
    "an extension": b"\x80\x02\x82\x01.",
    "a state for a dictionary": batch(labels=b"]K\x03a}U\x01aU\x01bsb"),
    "a state for a function": b"\x80\x02cnumpy\nndarray\n}b.",
    "a function as a batch": b"\x80\x02cnumpy\nndarray\n.",
    "a call of what is no function": batch(labels=b"K\x05)R"),
    "a call without a tuple": batch(labels=_MULTIARRAY + b"_reconstruct\nK\x05R"),
    "no mark": b"\x80\x02u.",
    "no stack": b"\x80\x02s.",
    "an odd number of items": b"\x80\x02}(U\x04datau.",
    "nothing": b"",
    "only an end": b".",
    "no end": batch()[:-1],
    "more after the end": batch() + batch(),
    "a list": b"\x80\x02].",
    "an unknown instruction": b"\x80\x02\xfe.",
    "a string without quotation marks": b"(dp0\nS'labels\np1\n.",
    "a string of broken escapes": b"(dS'\\x4'\nI0\ns.",
}


# These only look as if they could do harm.
HARMLESS = (
    *("a memo of four thousand million", "a frame of an exabyte", "a folder"),
    # Types that do not fit their columns are passed over by `datasets`.
    *("labels of text", "features that are a list"),
)


def write_batches(folder: Path, odd: bytes) -> None:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(odd if name == "data_batch_3" else batch())


def write_archive(folder: Path, odd: bytes) -> None:
    (folder / "cifar-10-python.tar.gz").write_bytes(archive(odd))


def archive(odd: bytes, mode: str = "w:gz", extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as members:
        for member in extra:
            members.addfile(member)
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            content = odd if name == "data_batch_3" else batch()
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    return stream.getvalue()


# --- Archives ----------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def header(size: bytes = b"00000000000", kind: bytes = b"0", name: bytes = b"test_batch") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _flip(content: bytes, place: float) -> bytes:
    changed = bytearray(content)
    changed[int(place * len(changed))] ^= 0x55
    return bytes(changed)


_GOOD_ARCHIVE = archive(batch())
_END = bytes(1024)
_LOOP = (member("a/data_batch_1", tarfile.SYMTYPE, "b"), member("b", tarfile.SYMTYPE, "a"))

ARCHIVES = {
    "a link": gzip.compress(archive(batch(), "w", (member("test_batch", b"2", "/etc/passwd"),))),
    "a circle of links": gzip.compress(archive(batch(), "w", _LOOP)),
    "a hard link to itself": gzip.compress(
        archive(batch(), "w", (member("data_batch_2", tarfile.LNKTYPE, "data_batch_2"),))
    ),
    "a device": gzip.compress(archive(batch(), "w", (member("test_batch", tarfile.CHRTYPE),))),
    "a named pipe": gzip.compress(archive(batch(), "w", (member("test_batch", tarfile.FIFOTYPE),))),
    "a folder": gzip.compress(archive(batch(), "w", (member("test_batch", tarfile.DIRTYPE),))),
    "a sparse file": gzip.compress(header(kind=b"S") + _END),
    "a name that leads out": gzip.compress(header(name=b"../../../../tmp/owned") + _END),
    "a name that is not UTF-8": gzip.compress(header(name=b"\xff\xfe/\xff") + _END),
    "a negative size": gzip.compress(header(b"-0000000001") + _END),
    "a size in another base": gzip.compress(header(b"\xff" * 12) + _END),
    "a size of eight gigabytes": gzip.compress(header(b"77777777777") + _END),
    "an extended header of eight gigabytes": gzip.compress(header(b"77777777777", b"x") + _END),
    "a long name of eight gigabytes": gzip.compress(header(b"77777777777", b"L") + _END),
    "a wrong checksum": gzip.compress(_flip(header() + _END, 0.01)),
    "more members than there are": gzip.compress(header(name=b"x") * 2000 + _END),
    "no end": gzip.compress(gzip.decompress(_GOOD_ARCHIVE)[:20_000]),
    "a damaged stream": _flip(_GOOD_ARCHIVE, 0.5),
    "a damaged checksum of gzip": _flip(_GOOD_ARCHIVE, 0.99999),
    "a truncated stream": _GOOD_ARCHIVE[:-20],
    "only gzip's header": _GOOD_ARCHIVE[:10],
    "xz": archive(batch(), "w:xz"),
    "damaged xz": _flip(archive(batch(), "w:xz"), 0.5),
    "bzip2": archive(batch(), "w:bz2"),
    "zlib": zlib.compress(archive(batch(), "w")),
    "nothing": b"",
    "text": b"<html>404</html>" * 100,
}


def _write_bomb(folder: Path, content: bytes) -> None:
    path = folder / "cifar-10-python.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(content)
        for _ in range(600):
            file.write(bytes(2**20))


# --- Things that are no regular files -----------------------------------------------------------


def _broken_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


PLACES: dict[str, Callable[[Path], None]] = {
    "a named pipe": os.mkfifo,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a broken link": _broken_link,
    "a link to itself": _link_to_itself,
    "a folder": Path.mkdir,
}


def _instead(
    write: Callable[[Path], None], name: str, place: Callable[[Path], None]
) -> Callable[[Path], None]:
    def write_and_replace(folder: Path) -> None:
        write(folder)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        place(path)

    return write_and_replace


# --- IDX ----------------------------------------------


def idx(values: np.ndarray) -> bytes:
    start = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return start + values.astype(np.uint8).tobytes()


def write_fashion(folder: Path, **odd: bytes) -> None:
    for prefix in ("train", "t10k"):
        images = odd.get(f"{prefix}_images", idx(np.ones((3, 5, 4))))
        labels = odd.get(f"{prefix}_labels", idx(np.arange(3)))
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)


_IMAGES = idx(np.random.default_rng(0).integers(256, size=(3, 5, 4)))
IDX = {
    "no images": {"train_images": idx(np.ones((0, 5, 4))), "train_labels": idx(np.ones(0))},
    "no pixels": {"train_images": idx(np.ones((3, 0, 4)))},
    "no dimensions": {"train_images": bytes((0, 0, 8, 0, 1))},
    "255 dimensions": {"train_images": bytes((0, 0, 8, 255)) + bytes(4 * 255)},
    "a huge shape": {"train_images": bytes((0, 0, 8, 3)) + b"\xff" * 12 + bytes(60)},
    "a shape beyond what is read": {"t10k_images": bytes((0, 0, 8, 1)) + b"\xff" * 4},
    "floats": {"train_images": bytes((0, 0, 0x0D, 1, 0, 0, 0, 1)) + bytes(4)},
    "a label above": {"t10k_labels": idx(np.array([1, 2, 10]))},
    "too few labels": {"train_labels": idx(np.arange(2))},
    "labels of two dimensions": {"train_labels": idx(np.ones((3, 1)))},
    "test images of another size": {"t10k_images": idx(np.ones((3, 5, 5)))},
    "a damaged gzip stream": {"train_images": _flip(gzip.compress(_IMAGES), 0.5)},
    "a truncated gzip stream": {"train_images": gzip.compress(_IMAGES)[:-9]},
    "a damaged gzip checksum": {"train_images": _flip(gzip.compress(_IMAGES), 0.93)},
    "xz": {"train_images": lzma.compress(_IMAGES)},
    "zlib": {"train_images": zlib.compress(_IMAGES)},
    "more than its shape": {"train_images": gzip.compress(_IMAGES + bytes(10**7))},
}


def _write_idx_bomb(folder: Path) -> None:
    write_fashion(folder)
    stream = io.BytesIO()
    with gzip.open(stream, "wb", compresslevel=1) as file:
        file.write(bytes((0, 0, 8, 3)) + struct.pack(">3I", 3, 5, 4))
        for _ in range(100):
            file.write(bytes(2**20))
    (folder / "train-images-idx3-ubyte").write_bytes(stream.getvalue())


# --- NumPy's files ----------------------------------------------


def npy(text: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    start = text.encode("latin1")
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(start))
    return b"\x93NUMPY" + version + length + start + content


def npy_header(descr: str = "'|u1'", shape: str = "(5, 32, 32, 3)", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def write_fog(folder: Path, fog: bytes | None = None, labels: bytes | None = None) -> None:
    fog = npy(npy_header(), bytes(5 * 3072)) if fog is None else fog
    labels = npy(npy_header(shape="(5,)"), bytes(5)) if labels is None else labels
    (folder / "fog.npy").write_bytes(fog)
    (folder / "labels.npy").write_bytes(labels)


_PIXELS = bytes(5 * 3072)
NPY = {
    "objects": npy(npy_header("'|O'"), _PIXELS),
    "objects in fields": npy(npy_header("[('a', '|O')]"), _PIXELS),
    "a pickle": batch(),
    "a huge shape": npy(npy_header(shape="(99999999999999999999, 32, 32, 3)"), _PIXELS),
    "a negative shape": npy(npy_header(shape="(-5, 32, 32, 3)"), _PIXELS),
    "two negative sizes": npy(npy_header(shape="(-5, -32, 32, 3)"), _PIXELS),
    "a shape of booleans": npy(npy_header(shape="(True, 32, 32, 3)"), _PIXELS),
    "an empty shape": npy(npy_header(shape="(0, 32, 32, 3)")),
    "a thousand dimensions": npy(npy_header(shape=f"({'1, ' * 1000})"), _PIXELS),
    "an expression": npy("__import__('os').system('touch owned')\n", _PIXELS),
    "an expression for its type": npy(npy_header("__import__('os')"), _PIXELS),
    "a nested header": npy("(" * 9000 + "\n", _PIXELS),
    "a deep expression": npy("-" * 9000 + "1\n", _PIXELS),
    "a header of four gigabytes": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + _PIXELS,
    "a header that is no text": npy("\xff\xfe\n", _PIXELS, b"\x03\x00"),
    "an unknown version": npy(npy_header(), _PIXELS, b"\x09\x00"),
    "other words": npy("{'descr': '|u1'}\n", _PIXELS),
    "numbers of another size": npy(npy_header("'<u2'"), _PIXELS * 2),
    "a truncated file": npy(npy_header(), _PIXELS[:-1]),
    "nothing": b"",
}


# --- Images ----------------------------------------------


def picture(kind: str = "PNG", size: tuple[int, int] = (16, 16)) -> bytes:
    from PIL import Image  # noqa: PLC0415 (an extra)

    noise = np.random.default_rng(0).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return b"\x89PNG\r\n\x1a\n" + start + extra + pixels + chunk(b"IEND", b"")


def _jpeg_of(width: int, height: int) -> bytes:
    content = bytearray(picture("JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def _bmp_of(width: int, height: int) -> bytes:
    content = bytearray(picture("BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def _gif_of(width: int, height: int) -> bytes:
    content = bytearray(picture("GIF"))
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def _tiff_of(width: int, height: int) -> bytes:
    content = bytearray(picture("TIFF"))
    (place,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[place : place + 2])
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        tag = struct.unpack("<H", content[entry : entry + 2])[0]
        if tag in (256, 257):
            size = width if tag == 256 else height
            content[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, size)
    return bytes(content)


def _webp_of(width: int, height: int) -> bytes:
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    content = b"WEBP" + extended + picture("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(content)) + content


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(owned) print\n%%EOF\n"
)


def _other_formats() -> dict[str, bytes]:
    kinds = ("EPS", "PPM", "TGA", "ICO", "JPEG2000", "PCX", "SGI", "DDS", "SPIDER", "PDF")
    contents = {}
    for kind in kinds:
        with contextlib.suppress(OSError, KeyError, ValueError):
            contents[kind] = picture(kind)
    return contents


def image_contents() -> dict[str, bytes]:
    text_bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))
    profile_bomb = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26)))
    return {
        **_other_formats(),
        "PostScript": POSTSCRIPT,
        "PostScript in a DOS header": b"\xc5\xd0\xd3\xc6"
        + struct.pack("<6IH", 32, 99, 0, 0, 0, 0, 0),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'></svg>",
        "a PNG of 3.6 thousand million pixels": png(60_000, 60_000),
        "a PNG of 80 million pixels": png(80_000, 1000),
        "a PNG of 2³¹ rows": png(1, 2**31 - 1),
        "a PNG of no pixels": png(0, 16),
        "a PNG of negative size": png(2**32 - 1, 16),
        "a JPEG of 4 thousand million pixels": _jpeg_of(65_500, 65_500),
        "a BMP of 4 thousand million pixels": _bmp_of(65_000, 65_000),
        "a BMP of 2³¹ rows": _bmp_of(16, -(2**31)),
        "a GIF of 4 thousand million pixels": _gif_of(65_535, 65_535),
        "a TIFF of 4 thousand million pixels": _tiff_of(65_000, 65_000),
        "a WebP of 268 million pixels": _webp_of(16_383, 16_383),
        "a PNG with a text of 64 megabytes": png(16, 16, text_bomb),
        "a PNG with a profile of 64 megabytes": png(16, 16, profile_bomb)[:-20],
        "a truncated PNG": picture()[:200],
        "a PNG with a damaged stream": _flip(picture(), 0.5),
        "an image of another size": picture(size=(16, 17)),
        "nothing": b"",
    }


def write_class_folders(folder: Path, odd: bytes | None = None) -> None:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "0.png").write_bytes(picture())
    if odd is not None:
        (folder / "train" / "bee" / "0.png").write_bytes(odd)


def write_parquet(folder: Path, image: object, label: object = 1, **options: object) -> None:
    import pyarrow as pa  # noqa: PLC0415 (an extra)
    import pyarrow.parquet as pq  # noqa: PLC0415 (an extra)

    good = {"bytes": picture(), "path": None}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for split, rows in (("test", [good, good]), ("train", [good, image])):
        labels = [0, label] if split == "train" else [0, 1]
        columns = {
            "image": pa.array(rows, kind),
            "label": pa.array(labels, options.get("label_type")),
        }
        table = pa.table(columns)
        if "metadata" in options and split == "train":
            table = table.replace_schema_metadata({"huggingface": json.dumps(options["metadata"])})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


def _write_row_that_points(folder: Path, where: str) -> None:
    outside = folder.parent / OUTSIDE
    outside.mkdir(exist_ok=True)
    (outside / "secret.png").write_bytes(picture())
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe.png")
    write_parquet(folder, {"bytes": None, "path": where.format(folder=folder, outside=outside)})


POINTERS = (
    *("{outside}/secret.png", "../outside-the-data/secret.png", "{folder}/../{outside}/secret.png"),
    *("link.png", "linked/secret.png", "pipe.png", "{folder}/pipe.png", "", ".", "nowhere.png"),
    *("/dev/zero", "/etc/passwd", "file://{outside}/secret.png", "hf://datasets/a/b/c.png"),
    *("https://example.com/a.png", "zip://a.png::{outside}/secret.zip", "a\0b", "a" * 5000),
)


def _class_label(**options: object) -> dict[str, object]:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", **options}}
    return {"info": {"features": features}}


ROWS: dict[str, Callable[[Path], None]] = {
    "a null image": lambda f: write_parquet(f, None),
    "an image of nulls": lambda f: write_parquet(f, {"bytes": None, "path": None}),
    "a null label": lambda f: write_parquet(f, {"bytes": picture(), "path": None}, None),
    "a negative label": lambda f: write_parquet(f, {"bytes": picture(), "path": None}, -7),
    "a label of a million million": lambda f: write_parquet(
        f, {"bytes": picture(), "path": None}, 10**12
    ),
    "a label above the named classes": lambda f: write_parquet(
        f, {"bytes": picture(), "path": None}, 2, metadata=_class_label(names=["a", "b"])
    ),
    "labels of text": lambda f: write_parquet(
        f, {"bytes": picture(), "path": None}, metadata=_class_label(_type="Value", dtype="string")
    ),
    "features that are unknown": lambda f: write_parquet(
        f, {"bytes": picture(), "path": None}, metadata=_class_label(_type="os.system")
    ),
    "features that are a list": lambda f: write_parquet(
        f, {"bytes": picture(), "path": None}, metadata=[1, 2]
    ),
    "class names that are numbers": lambda f: write_parquet(
        f, {"bytes": picture(), "path": None}, metadata=_class_label(names=[1, 1])
    ),
}


def _named(folder: Path, name: bytes, content: bytes | None) -> None:
    write_class_folders(folder)
    path = os.fsencode(folder) + b"/train/" + name
    if content is None:
        os.mkdir(path)
    else:
        with open(path, "wb") as file:
            file.write(content)


def _write_pictures_in_archives(folder: Path) -> None:
    (folder / "train.tar").write_bytes(archive(batch(), "w"))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: https://example.com/train.parquet\n---\n"
    )


def crafted() -> list[Hostile]:
    """Every file that was made to do harm."""
    cases = [
        Hostile("pickle", name, lambda f, c=content: write_batches(f, c), load_cifar10)
        for name, content in PICKLES.items()
    ]
    cases += [
        Hostile(
            "pickle in an archive", name, lambda f, c=content: write_archive(f, c), load_cifar10
        )
        for name, content in PICKLES.items()
    ]
    cases += [
        Hostile(
            "archive",
            name,
            lambda f, c=content: (f / "cifar-10-python.tar.gz").write_bytes(c),
            load_cifar10,
        )
        for name, content in ARCHIVES.items()
    ]
    bombs = {"a member": header(b"04540000000"), "an extended header": header(b"04540000000", b"x")}
    cases += [
        Hostile(
            "archive", f"{name} of 600 MB", lambda f, c=c: _write_bomb(f, c), load_cifar10, True
        )
        for name, c in bombs.items()
    ]
    loaders = {
        "data_batch_2": (lambda f: write_batches(f, batch()), load_cifar10),
        "cifar-10-python.tar.gz": (lambda _: None, load_cifar10),
        "train-images-idx3-ubyte": (write_fashion, load_fashion),
        "t10k-labels-idx1-ubyte": (write_fashion, load_fashion),
        "fog.npy": (write_fog, load_fog),
        "train/ant/1.png": (write_class_folders, load_folder),
        "train-00000-of-00001.parquet": (lambda f: write_parquet(f, None), load_folder),
    }
    cases += [
        Hostile("no regular file", f"{what} as {name}", _instead(write, name, place), load)
        for what, place in PLACES.items()
        for name, (write, load) in loaders.items()
    ]
    cases += [
        Hostile(
            "no regular file",
            f"{what} as a class",
            _instead(write_class_folders, "train/cow", PLACES[what]),
            load_folder,
        )
        for what in ("a broken link", "a link to itself")
    ]
    cases += [
        Hostile("IDX", name, lambda f, odd=odd: write_fashion(f, **odd), load_fashion)
        for name, odd in IDX.items()
    ]
    cases.append(Hostile("IDX", "gzip of 100 MB", _write_idx_bomb, load_fashion, True))
    cases += [
        Hostile("NumPy file", name, lambda f, c=content: write_fog(f, c), load_fog)
        for name, content in NPY.items()
    ]
    cases += [
        Hostile("NumPy file", f"{n} as labels", lambda f, c=c: write_fog(f, None, c), load_fog)
        for n, c in NPY.items()
    ]
    for name, content in image_contents().items():
        row = {"bytes": content, "path": "a.png"}
        cases += [
            Hostile("image", name, lambda f, c=content: write_class_folders(f, c), load_folder),
            Hostile("image in parquet", name, lambda f, r=row: write_parquet(f, r), load_folder),
        ]
    cases += [
        Hostile(
            "row that points elsewhere",
            where[:40],
            lambda f, w=where: _write_row_that_points(f, w),
            load_folder,
        )
        for where in POINTERS
    ]
    cases += [Hostile("parquet row", name, write, load_folder) for name, write in ROWS.items()]
    cases += [
        Hostile("name", "a class", lambda f: _named(f, b"\xff\xfe", None), load_folder),
        Hostile("name", "an image", lambda f: _named(f, b"ant/\xff.png", picture()), load_folder),
        Hostile("name", "archives and addresses", _write_pictures_in_archives, load_folder),
    ]
    return cases


# --- Damage at random ----------------------------------------------


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes replaced, a part left out, doubled or moved, or the end cut off."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        size = max(len(changed), 1)
        # Headers are where the decisions are.
        reach = size if rng.random() < 0.5 else min(size, 200)
        start = int(rng.integers(reach))
        length = int(2 ** rng.uniform(0, 6))
        kind = rng.integers(6)
        if kind == 0 and changed:
            changed[start] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[start : start + length] = rng.bytes(length)
        elif kind == 2:
            del changed[start : start + length]
        elif kind == 3:
            changed[start:start] = changed[start : start + length]
        elif kind == 4:
            changed[start : start + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
        elif rng.random() < 0.3:
            del changed[start:]
    return bytes(changed)


def random_cases(count: int, seed: int) -> Iterator[Hostile]:
    """`count` damaged files of each kind."""
    for number_ in range(count):
        rng = np.random.default_rng((seed, number_))
        odd = damaged(batch(), rng)
        yield Hostile("pickle", f"{number_}", lambda f, c=odd: write_batches(f, c), load_cifar10)
        # As NumPy 2 writes it.
        odd = damaged(_modern_batch(int(rng.integers(6))), rng)
        yield Hostile("pickle", f"{number_} m", lambda f, c=odd: write_batches(f, c), load_cifar10)
        tar = damaged(archive(batch(), "w"), rng)
        for name, content in (("tar", tar), ("gzip", damaged(_GOOD_ARCHIVE, rng))):
            packed = gzip.compress(content, 1) if name == "tar" else content
            yield Hostile(
                "archive",
                f"{name} {number_}",
                lambda f, c=packed: (f / "cifar-10-python.tar.gz").write_bytes(c),
                load_cifar10,
            )
        part = damaged(_IMAGES if number_ % 2 else gzip.compress(_IMAGES), rng)
        yield Hostile(
            "IDX", f"{number_}", lambda f, c=part: write_fashion(f, train_images=c), load_fashion
        )
        fog = damaged(npy(npy_header(), _PIXELS), rng)
        yield Hostile("NumPy file", f"{number_}", lambda f, c=fog: write_fog(f, c), load_fog)
        for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
            odd = damaged(picture(kind), rng)
            yield Hostile(
                f"{kind}", f"{number_}", lambda f, c=odd: write_class_folders(f, c), load_folder
            )
        yield Hostile(
            "parquet", f"{number_}", lambda f, r=rng: _write_damaged_parquet(f, r), load_folder
        )


def _modern_batch(protocol: int) -> bytes:
    import pickle  # noqa: PLC0415 (only written, never read)

    content = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [3], b"filenames": ["a.png"]}
    return pickle.dumps(content, protocol)


def _write_damaged_parquet(folder: Path, rng: np.random.Generator) -> None:
    write_parquet(folder, {"bytes": picture(), "path": None})
    path = folder / "train-00000-of-00001.parquet"
    content = path.read_bytes()
    # The footer, at the end, is where the decisions are.
    changed = damaged(content[::-1], rng)[::-1] if rng.random() < 0.7 else damaged(content, rng)
    path.write_bytes(changed)


# --- Each in a process of its own ----------------------------------------------


def attack_apart(hostile: Hostile) -> str:
    """As `attack`, in a forked process of bounded time and memory."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as parent:
        folder = Path(parent) / "data-set"
        folder.mkdir()
        answer = Path(parent) / "answer"
        process = os.fork()
        if process == 0:
            with contextlib.suppress(BaseException):
                _bound()
                answer.write_text(attack(hostile, folder))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return "took too long" if name == "SIGALRM" else f"crashed by {name}"
        return answer.read_text() if answer.exists() else "ended without a word"


def _bound() -> None:
    signal.alarm(SECONDS)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_AS, (12 * GIBIBYTE, 12 * GIBIBYTE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Into a file, the prints of libraries are no part of the table.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)


def main() -> None:
    """Attacks, and prints one line of JSON for each kind of file and outcome."""
    warnings.simplefilter("ignore")
    import datasets  # noqa: PLC0415 (an extra)

    from zosam_jax.data import hub  # noqa: F401, PLC0415 (before the processes part)

    with tempfile.TemporaryDirectory(prefix="hostile-cache-") as cache:
        datasets.config.HF_DATASETS_CACHE = cache
        _attack_all()


def _attack_all() -> None:
    if sys.argv[1] == "crafted":
        cases: list[Hostile] = crafted()
    else:
        cases = list(random_cases(int(sys.argv[2]), int(sys.argv[3])))
    table: collections.Counter[tuple[str, str]] = collections.Counter()
    failures = []
    for case in cases:
        outcome = attack_apart(case)
        held = outcome in (READ, REFUSED)
        if "-v" in sys.argv:
            print(case.kind, case.name, outcome, file=sys.stderr)
        table[case.kind, outcome if held else "failed"] += 1
        if not held:
            failures.append([case.kind, case.name, outcome])
    counts = [[*key, count] for key, count in sorted(table.items())]
    print(json.dumps({"counts": counts, "failures": failures}))


if __name__ == "__main__":
    main()
