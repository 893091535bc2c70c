"""One process at a time trains into a run folder; a second one is told which.

The system keeps the lock, on a file in the folder, and lets go of it however its process ends.
"""

import contextlib
import datetime
import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

from zosam_jax.training import run_folder
from zosam_jax.training.run_folder import UnreadableRunError, UnwritableError

try:
    import fcntl
except ModuleNotFoundError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

# What file systems say that know no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class InUseError(UnwritableError):
    """Another process trains into a run folder; says which."""


class _Holder(TypedDict):
    pid: int
    host: str
    since: str


@contextlib.contextmanager
def held(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """While entered, nobody else can enter it for the same folder, which is made if need be.

    Afterwards the lock's file is gone, and so is a folder that was made for nothing else.

    Args:
      folder: a run folder.
      say: is given a sentence where there are no locks, and training goes on without.

    Raises:
      InUseError: if another process holds it.
      UnwritableError: if its file cannot be made.
    """
    path, is_new = folder / run_folder.LOCK, not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path)
    except BlockingIOError as error:
        raise InUseError(_in_use(folder)) from error
    except OSError as error:
        raise run_folder.unwritable(path, error) from error
    try:
        if descriptor is None:
            say(f"{folder} cannot be locked here: do not train into it twice at a time")
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # on a disk that has become read-only
                path.unlink()  # while it is ours
            os.close(descriptor)
            if is_new:
                with contextlib.suppress(OSError):  # it holds a run
                    folder.rmdir()


def acquire(descriptor: int) -> None:
    """Locks an open file until its last descriptor is closed, by the end of its process too.

    Raises:
      BlockingIOError: if another process has it.
      OSError: if there are no locks, with one of their error numbers.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, "files are locked on Linux, macOS and WSL only")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _locked(path: Path) -> int | None:
    """The descriptor of the locked file; None where there are no locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            acquire(descriptor)
            # Its holder may have removed it in between: then the path is another file's.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                _sign(descriptor)
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                path.unlink(missing_ok=True)
                return None
            raise
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    now = datetime.datetime.now().astimezone()
    holder = _Holder(pid=os.getpid(), host=socket.gethostname(), since=f"{now:%Y-%m-%d %H:%M:%S%z}")
    with contextlib.suppress(OSError):  # a full disk; the lock is one without a name too
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())


def _in_use(folder: Path) -> str:
    try:
        holder = run_folder.read_json(folder / run_folder.LOCK, _Holder)
        who = "process {pid} on {host}, since {since}".format_map(holder)
    except (FileNotFoundError, UnreadableRunError):  # it has just begun, or ended
        who = "another process"
    return f"{folder} is being trained by {who}: wait for its end, or choose another --output."
