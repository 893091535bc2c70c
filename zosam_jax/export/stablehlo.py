"""StableHLO through jax.export: a program for CPUs, GPUs and TPUs, which jax alone can run."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from zosam_jax.export.program import Program

PLATFORMS = ("cpu", "cuda", "tpu")


def save(path: Path, program: Program) -> None:
    """Writes the program with its weights, for batches of any size."""
    (size,) = jax.export.symbolic_shape("batch")
    with _without_source_lines():
        exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(program.batch(size))
    path.write_bytes(exported.serialize())


def load(path: Path) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """The program of a file: images → outputs."""
    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(call(images))


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """Nothing of this machine's folders goes into the file."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
