"""SIGTERM and SIGINT, noted when they come and checked between two steps."""

import signal
import threading
from types import FrameType
from typing import Any, Self

from jax.experimental import multihost_utils

from zosam_jax.training import devices

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedRunError(Exception):
    """The run was told to stop, and can be resumed.

    Attributes:
      signal: SIGTERM or SIGINT.
      total_steps: how many steps it has made.
    """

    def __init__(self, signal: int, total_steps: int) -> None:
        super().__init__(f"interrupted after step {total_steps}")
        self.signal, self.total_steps = signal, total_steps


class Interruption:
    """While entered, the first SIGTERM or SIGINT is noted; a second SIGINT raises as usual.

    With several processes JAX's own preemption service listens to SIGTERM, so that all of them
    stop after the same step; SIGINT then does what it always does.

    Attributes:
      signal: the one that came; SIGTERM as long as none has.
    """

    def __init__(self) -> None:
        self.signal: int = signal.SIGTERM
        self._came = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may set handlers.
        if devices.is_alone() and threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._note) for s in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._came and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal, self._came = number, True

    def requested(self, step: int) -> bool:
        """Whether to stop now; with several processes all of them ask, after the same steps."""
        if devices.is_alone():
            return self._came
        return bool(multihost_utils.reached_preemption_sync_point(step))
