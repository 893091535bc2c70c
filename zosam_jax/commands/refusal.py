"""What the options cause ends in a sentence; a fault of ours keeps its traceback."""

import contextlib
import errno
from collections.abc import Iterator

from zosam_jax.errors import REFUSALS

# A full or read-only disk, which may be neither later.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class RefusedError(Exception):
    """A command cannot do what its options ask for; the message says why.

    Attributes:
      status: what the program ends with: 2, or 1 where the same command may succeed later.
    """

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def refused(error: Exception) -> RefusedError:
    """What ends a command with the sentence of an error."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        place = error.filename or "what is printed, or a file,"
        return RefusedError(f"{place} cannot be written: {error.strerror}.", 1)
    return RefusedError(str(error), getattr(error, "exit_status", 2))


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Around what reads options, files and data: their errors are sentences for the user.

    Raises:
      RefusedError: in the place of such an error.
    """
    try:
        yield
    except REFUSALS as error:
        raise refused(error) from error
