"""The files that data sets are read from: regular ones, of bounded size, with readable names."""

import gzip
import os
import stat
from pathlib import Path
from typing import BinaryIO

# Decompressed or not. The largest set in IDX files, EMNIST's, has 0.6 GB.
MOST_BYTES = 2**31

_GZIP_MAGIC = b"\x1f\x8b"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def fault(path: str | Path) -> str | None:
    """Why something cannot be read as a file: "is a named pipe, …"; None for a regular file.

    Nothing is opened: to open a named pipe waits for its writer, to open a device may move it.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        return "is a broken symbolic link" if os.path.islink(path) else "does not exist"
    except (OSError, ValueError) as error:  # A circle of links, no permission, a null byte.
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    if kind == stat.S_IFREG:
        return None
    return f"is {_KINDS.get(kind, 'something else')}, not a regular file"


def find(*paths: Path) -> Path | None:
    """The first path at which something lies, or None.

    Raises:
      ValueError: if it is not a regular file or a link to one.
    """
    for path in paths:
        if os.path.lexists(path):
            if problem := fault(path):
                raise ValueError(f"{path} {problem}.")
            return path
    return None


def one_line(error: object) -> str:
    """What a library says of a file, which may be several lines and quote the file's bytes."""
    text = " ".join(str(error).split())[:500]
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def check_name(path: str | Path) -> None:
    """Raises unless a path is UTF-8: neither Arrow nor a message can hold another."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise ValueError(
            f"{shown} has a name that is not UTF-8: rename it (its odd bytes are shown as \\xNN)."
        ) from None


def read(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes; the caller has found it by `find`.

    Raises:
      ValueError: if there is more, or it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return Bounded(file, most).read()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def open_maybe_gzip(path: Path) -> BinaryIO | gzip.GzipFile:
    """Opens a file for reading, decompressed if it begins as gzip files do."""
    with open(path, "rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
    return gzip.open(path) if compressed else open(path, "rb")


class Bounded:
    """A stream that raises ValueError instead of giving more than `most` bytes in all."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, most: int = MOST_BYTES) -> None:
        self._stream = stream
        self._most = most
        self._left = most

    def read(self, size: int | None = None) -> bytes:
        """Up to `size` bytes, fewer only at the end; without it, all that follow."""
        wanted = self._left + 1 if size is None else min(size, self._left + 1)
        content = self._stream.read(wanted)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it holds more than the {self._most:,} bytes that are read")
        return content
