"""What the options cause ends in a sentence; a fault of ours keeps its traceback."""

import contextlib
from collections.abc import Iterator

from zosam_jax.errors import REFUSALS


class RefusedError(Exception):
    """A command cannot do what its options ask for; the message says why."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Around what reads options, files and data: their errors are sentences for the user.

    Raises:
      RefusedError: in the place of such an error.
    """
    try:
        yield
    except REFUSALS as error:
        raise RefusedError(str(error)) from error
