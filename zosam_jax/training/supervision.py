"""One process of several runs in a child, whose end its parent tells in one sentence.

When another process is lost JAX aborts this one, from within C++ and with all that it knows.
"""

import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
import time
from types import FrameType
from typing import IO, NoReturn

from zosam_jax.training import devices

# Until JAX has noticed, and aborts this process, too.
_SECONDS = 2 * devices.HEARTBEAT_SECONDS


class LostProcessError(OSError):
    """Another process of the training has ended, or not begun; says which.

    Attributes:
      exit_status: what a command ends with then.
    """

    exit_status = 1


def supervise() -> None:
    """Returns in a child of this process, which itself ends with the child, and as it did.

    What C++ writes to stderr, in the child, is shown at its end, unless it is about a lost process.
    To be called while there is one thread; does nothing where processes have no children so made.

    Raises:
      LostProcessError: in the parent, if the child was ended since another process is lost, or
        has not joined.
      SystemExit: in the parent, otherwise.
    """
    if not hasattr(os, "fork"):  # Windows
        return
    with tempfile.TemporaryFile() as messages:
        read, write = os.pipe()  # its end tells of the parent's end
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.close(write)
            _begin(messages, read)
        else:
            _follow(child, messages)


def _begin(messages: IO[bytes], parent: int) -> None:
    # Python's own messages are shown at once.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(messages.fileno(), 2)
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()


def _end_with(parent: int) -> None:
    os.read(parent, 1)
    os._exit(1)


def _follow(child: int, messages: IO[bytes]) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's reaches the child as well
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    messages.seek(0)
    told = messages.read().decode(errors="replace")
    if status == -signal.SIGABRT and "coordination" in told:
        raise LostProcessError(_lost(told))
    sys.stderr.write(told)
    if status < 0:
        raise LostProcessError(f"this process was ended by {signal.Signals(-status).name}.")
    sys.exit(status)


def _lost(told: str) -> str:
    """A sentence of what JAX aborted a process with; it lists those that process 0 has lost."""
    if "RegisterTask" in told:
        return (
            f"not all processes have joined within {devices.JOINING_SECONDS} s: begin them "
            "together, each with the same coordinator and num_processes and its own process_id."
        )
    listed = re.search(r"stopped sending heartbeats\):\s*([\d,\s]*\d)", told)
    which = ", ".join(re.findall(r"\d+", listed[1])) if listed else "0"
    return (
        f"process {which} has ended or cannot be reached; the same command, for all processes, "
        "goes on from the newest checkpoint."
    )


def end(message: str, status: int) -> NoReturn:
    """Ends this process of several, whose others it must not wait for: they wait for it.

    Not before JAX has had the time to abort it, since what fails here may have failed elsewhere.
    """
    time.sleep(_SECONDS)
    print(message, file=sys.stderr, flush=True)
    os._exit(status)
