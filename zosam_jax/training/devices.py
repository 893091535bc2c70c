"""Devices, processes and compiled programs: what must be set up before anything is computed."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zosam_jax.trees import PyTree

AXIS = "data"
HEARTBEAT_SECONDS = 8  # after which a process that is not heard of is taken for lost
JOINING_SECONDS = 60  # for which the first process waits for the last one
_TIMEOUTS: dict[str, Any] = {
    "initialization_timeout": JOINING_SECONDS,
    "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
}


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Makes this process one of several that train together; before anything else touches JAX.

    Args:
      coordinator: HOST:PORT of process 0; "auto" leaves all three to JAX, which knows them on
        TPU pods and under Slurm, Open MPI and Kubernetes. None for a process of its own.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      ValueError: for an incomplete description.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise ValueError("coordinator=None: num_processes and process_id need --coordinator.")
        return
    if coordinator == "auto":
        try:
            jax.distributed.initialize(**_TIMEOUTS)
        except RuntimeError as error:
            raise ValueError(f"coordinator='auto' found no cluster: {error}") from error
        return
    if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise ValueError(
            f"coordinator={coordinator!r} needs num_processes and a process_id below it; given "
            f"are num_processes={num_processes} and process_id={process_id}."
        )
    jax.distributed.initialize(coordinator, num_processes, process_id, **_TIMEOUTS)


def keep_compiled(folder: Path | None) -> None:
    """Keeps compiled programs in a folder (see `TrainConfig.compilation_cache`)."""
    if folder is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # On a full disk there is one for every program, and all are compiled as without it.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
    path = folder or Path.home() / ".cache" / "zosam_jax"
    jax.config.update("jax_compilation_cache_dir", str(path))
    # The initialisation of a network is many small programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def compute_exactly(precision: str) -> None:
    """Lets float32 products be float32 products, for which accelerators take shortcuts.

    TensorFloat-32 and bfloat16 passes would drown the differences of losses that zo_sam divides by
    a small δ.
    """
    if precision == "float32":
        jax.config.update("jax_default_matmul_precision", "float32")


def make_mesh(description: str | None, batch_size: int) -> Mesh:
    """A mesh with the one axis "data".

    Args:
      description: "data=N" takes the first N devices; None all, or of one process's devices the
        most that divide the batch.
      batch_size: images a step over all devices.

    Raises:
      ValueError: if N is more than there are, or does not divide the batch.
    """
    devices = jax.devices()
    if description is None:
        count = len(devices)
        if jax.process_count() == 1:
            count = max(n for n in range(1, count + 1) if batch_size % n == 0)
    else:
        match = re.fullmatch(rf"{AXIS}=([1-9]\d*)", description)
        if match is None:
            raise ValueError(f"mesh={description!r} must read {AXIS}=N, N being how many devices.")
        count = int(match[1])
    if count > len(devices):
        raise ValueError(
            f"mesh={description!r} asks for {count} devices; JAX sees {len(devices)} "
            f"({devices[0].platform})."
        )
    if jax.process_count() > 1 and count != len(devices):
        raise ValueError(f"mesh={description!r} must take all {len(devices)} devices of the job.")
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size} must be a multiple of the {count} devices.")
    return Mesh(np.array(devices[:count]), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of a batch: one axis split among the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts a whole copy of each array on every device; every process has the same ones."""
    if is_alone():
        return jax.device_put(tree, replicated(mesh))
    return jax.tree.map(lambda array: _on_all_processes(array, replicated(mesh)), tree)


def _on_all_processes(array: Any, sharding: NamedSharding) -> Any:
    """One array on all devices, by way of NumPy where it is this process's alone.

    Straight from its device jax 0.10.2 makes an array that computes but has no shards to save.
    """
    if not isinstance(array, jax.Array):
        return jax.device_put(array, sharding)
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _on_all_processes(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return jax.device_put(np.asarray(array) if array.is_fully_addressable else array, sharding)


def distribute(batch: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """Puts a batch on the devices, each process giving its own part along the axis."""
    sharding = by_batch(mesh, axis)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda part: jax.make_array_from_process_local_data(sharding, np.asarray(part)), batch
    )


def part_of_batch() -> tuple[int, int]:
    """(index, count): which contiguous part of each batch this process reads."""
    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes and reports."""
    return bool(jax.process_index() == 0)


def is_alone() -> bool:
    """Whether there is just one process."""
    return bool(jax.process_count() == 1)


def agree(decision: bool) -> bool:
    """The first process's decision, on all of them."""
    if is_alone():
        return decision
    agreed = multihost_utils.broadcast_one_to_all(np.asarray(decision))
    return bool(np.asarray(agreed).item())
