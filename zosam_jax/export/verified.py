"""Exports that are checked against the network as they are made, and appear whole or not at all."""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
import numpy.typing as npt

from zosam_jax.errors import check_one_of
from zosam_jax.export import onnx, safetensors, stablehlo
from zosam_jax.export.program import Program, held_out_batches
from zosam_jax.training.problem import Problem
from zosam_jax.training.run_folder import check_writable, replacing, unwritable

# Images → outputs, both NumPy arrays.
Function: TypeAlias = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

FILES = {"stablehlo": "model.stablehlo", "onnx": "model.onnx", "safetensors": "model.safetensors"}
NETWORK = "network"

# Of outputs up to 1, or up to M > 1 times M; and of what int8 may cost.
TOLERANCE = 1e-4
LARGEST_LOSS_OF_ACCURACY = 0.01

LATENCY_BATCHES = (1, 64)
_ROUNDS = 10
_CALIBRATION_IMAGES = 256


class Verified(NamedTuple):
    """What was measured of an export, or of the network itself.

    Attributes:
      bytes: on the disk; of the network, its float32 arrays.
      difference: the largest, of any output of any image, to the network's.
      accuracy: on these images; NaN where targets are no labels.
      latency: batch size → the median of a call in milliseconds; none of safetensors, which is no
        program.
    """

    bytes: int
    difference: float
    accuracy: float
    latency: dict[str, float]


class MismatchError(ValueError):
    """An export does not compute what the network computes."""


def write(
    problem: Problem,
    program: Program,
    formats: Sequence[str],
    folder: Path,
    *,
    layout: str,
    int8: bool,
    images: int | None,
) -> tuple[dict[str, Verified], int]:
    """Makes files of a program in a folder, and checks each on the test images.

    Args:
      problem: of the network.
      program: what to export.
      formats: some of FILES.
      folder: where the files go; whatever is there stays.
      layout: of safetensors, one of its LAYOUTS.
      int8: whether weights of ONNX and safetensors are rounded to 8 bits.
      images: use only the first so many test images; None for all.

    Returns:
      For "network" and each format what was measured; and on how many images.

    Raises:
      MismatchError: beyond TOLERANCE, or with int8 if more than LARGEST_LOSS_OF_ACCURACY is lost.
      ModuleNotFoundError: if a library is missing, naming the extra that brings it.
      UnwritableError: if the folder cannot be written.
    """
    network = jax.jit(program)
    functions: dict[str, Function] = {NETWORK: lambda x: np.asarray(network(x))}
    sizes = {NETWORK: sum(array.nbytes for array in program.arrays.values())}
    for name in formats:
        file = folder / FILES[name]
        try:
            functions[name] = _made(name, file, problem, program, layout=layout, int8=int8)
        except OSError as error:
            raise unwritable(file, error) from error
        sizes[name] = file.stat().st_size
    differences, accuracies, tolerance, seen = _compared(problem, program, functions, images)
    rounded = {"onnx", "safetensors"} if int8 else set()
    for name in formats:
        lost = accuracies[NETWORK] - accuracies[name]
        fits = differences[name] <= tolerance  # not if it is NaN
        if not (lost <= LARGEST_LOSS_OF_ACCURACY if name in rounded else fits):
            raise MismatchError(
                f"{FILES[name]} is not written: its outputs differ from the network's by up to "
                f"{differences[name]:.2g}, its accuracy is {accuracies[name]:.2%} instead of "
                f"{accuracies[NETWORK]:.2%}; leave "
                f"{'int8' if name in rounded else f'format={name!r}'} out."
            )
    latencies = _latencies(
        problem, program, {n: f for n, f in functions.items() if n != "safetensors"}
    )
    found = {
        name: Verified(sizes[name], differences[name], accuracies[name], latencies.get(name, {}))
        for name in functions
    }
    return found, seen


def check_choice(problem: Problem, formats: Sequence[str], layout: str, *, int8: bool) -> None:
    """Raises ValueError for formats and layouts that do not exist, or have no effect."""
    for name in formats:
        check_one_of("format", name, tuple(FILES))
    if not formats:
        raise ValueError(f"format=() is empty: name some of {', '.join(FILES)}.")
    check_one_of("layout", layout, safetensors.LAYOUTS)
    if int8 and set(formats) == {"stablehlo"}:
        raise ValueError("int8=True has no effect on format=('stablehlo',): add onnx.")
    if int8 and not problem.has_classes:
        raise ValueError("int8=True is judged by accuracy, and the run's targets are no labels.")


def move(made: Path, folder: Path) -> None:
    """Moves one folder to the place of another, or all its files over those of the same names.

    What an earlier export left of formats that were not made again goes.

    Raises:
      UnwritableError: if the folder cannot be written.
    """
    if not os.path.lexists(folder):
        try:
            made.rename(folder)  # all at once
        except OSError as error:
            raise unwritable(folder, error) from error
        return
    # What is said of the programs comes after them.
    files = sorted(made.iterdir(), key=lambda file: (file.name not in FILES.values(), file.name))
    for file in files:
        with replacing(folder / file.name) as partial:
            file.replace(partial)
    for name in set(FILES.values()) - {file.name for file in files}:
        (folder / name).unlink(missing_ok=True)


def working_folder(folder: Path) -> "tempfile.TemporaryDirectory[str]":
    """A folder on the same disk as another, which is still to be made.

    Raises:
      UnwritableError: if none can be made there.
    """
    check_writable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent)
    except OSError as error:
        raise unwritable(folder, error) from error


def _made(
    name: str, file: Path, problem: Problem, program: Program, *, layout: str, int8: bool
) -> Function:
    """Writes a file, and reads it back as a function."""
    if name == "stablehlo":
        stablehlo.save(file, program)
        return stablehlo.load(file)
    if name == "onnx":
        calibration = None
        if int8:
            count = min(_CALIBRATION_IMAGES, problem.feed.info.train_images)
            calibration = program.prepared(problem.feed.raw(0, count)[0])
        onnx.save(file, program, calibration)
        return onnx.load(file)
    safetensors.save(file, program.arrays, layout, int8=int8, metadata=program.metadata)
    arrays, _ = safetensors.read_safetensors(file)
    _check_same_arrays(arrays, program.arrays, exactly=not int8)
    function = jax.jit(program.of(arrays))
    return lambda images: np.asarray(function(images))


def _check_same_arrays(
    found: Mapping[str, npt.NDArray[Any]], arrays: Mapping[str, npt.NDArray[Any]], *, exactly: bool
) -> None:
    if found.keys() != arrays.keys():
        raise MismatchError(f"{FILES['safetensors']} is not written: it has other arrays.")
    for name, array in arrays.items():
        if exactly and found[name].tobytes() != array.tobytes():
            raise MismatchError(f"{FILES['safetensors']} is not written: {name} has changed.")


def _compared(
    problem: Problem, program: Program, functions: Mapping[str, Function], images: int | None
) -> tuple[dict[str, float], dict[str, float], float, int]:
    """The largest differences, accuracies, what differences may be, and the number of images."""
    differences, correct = dict.fromkeys(functions, 0.0), dict.fromkeys(functions, 0)
    seen, labels, size = 0, 0, 1.0
    for batch in held_out_batches(problem, images):
        prepared = program.prepared(batch.images)
        expected = functions[NETWORK](prepared)
        size = max(size, float(np.abs(expected).max()))
        seen, labels = seen + len(batch.labels), labels + batch.labels.size
        for name, function in functions.items():
            outputs = function(prepared)
            largest = np.maximum(differences[name], np.abs(outputs - expected).max())
            differences[name] = float(largest)
            if problem.has_classes:
                correct[name] += int(np.sum(outputs.argmax(axis=-1) == batch.labels))
    if images is not None and seen < images:
        raise ValueError(f"images={images} is more than the {seen} test images there are.")
    accuracies = {
        name: count / labels if problem.has_classes else math.nan for name, count in correct.items()
    }
    return differences, accuracies, TOLERANCE * size, seen


def _latencies(
    problem: Problem, program: Program, functions: Mapping[str, Function]
) -> dict[str, dict[str, float]]:
    """Medians in milliseconds; the functions take turns, so that all see the same machine."""
    first = next(held_out_batches(problem, max(LATENCY_BATCHES))).images
    found: dict[str, dict[str, float]] = {name: {} for name in functions}
    for size in LATENCY_BATCHES:
        batch = program.prepared(np.resize(first, (size, *first.shape[1:])))
        times: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(_ROUNDS + 1):
            for name, function in functions.items():
                start = time.perf_counter()
                function(batch)
                times[name].append(1e3 * (time.perf_counter() - start))
        for name, own in times.items():
            found[name][str(size)] = statistics.median(own[1:])  # the first call compiles
    return found
