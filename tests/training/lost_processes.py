"""Processes of one training that are killed, for the tests and as a campaign.

    python tests/training/lost_processes.py 6 7

kills one of three processes of a training so many times, at random moments after they have joined,
and prints a line of JSON: how often what became of the others, the longest time that they took, and
what should not have happened.
"""

import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PROCESSES = 3
SECONDS = 15.0
HELD = "one sentence and status 1, in time"
SENTENCE = "has ended or cannot be reached; the same command, for all processes, goes on"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def start(folder: Path, count: int = PROCESSES) -> list[subprocess.Popen[bytes]]:
    """The processes of a training without an end; what they say goes into files of their number."""
    coordinator = f"localhost:{free_port()}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    processes = []
    for i in range(count):
        command = [
            *(sys.executable, "-m", "zosam_jax", "train", "--output", str(folder / "run")),
            *("--model", "lenet-300-100", "--train-images", "120", "--epochs", "100000"),
            *("--batch-size", "60", "--checkpoint-minutes", "0.01"),
            *("--coordinator", coordinator, "--num-processes", str(count), "--process-id", str(i)),
        ]
        with (folder / str(i)).open("w") as told:
            processes.append(
                subprocess.Popen(
                    command, env=environment, stdout=told, stderr=told, start_new_session=True
                )
            )
    return processes


@contextlib.contextmanager
def started(folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes, once they train."""
    processes = start(folder)
    try:
        checkpoints = folder / "run" / "checkpoints"
        while not (checkpoints.is_dir() and any(p.name.isdecimal() for p in checkpoints.iterdir())):
            assert all(p.poll() is None for p in processes), sayings(folder)
            time.sleep(0.1)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def sayings(folder: Path) -> list[str]:
    """What each of them has said that is no part of its progress."""
    usual = ("epoch ", "[Gloo] Rank", "lenet-300-100 on ")
    found = []
    for file in sorted(folder.iterdir()):
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
        found += ["\n".join(s for s in lines if not s.startswith(usual))] if lines else []
    return found


def child_of(process: subprocess.Popen[bytes]) -> int:
    """The process that trains, of the one that was started."""
    file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(file.read_text().split()[0])


def attack(folder: Path, victim: int, delay: float, *, trainer: bool) -> tuple[str, float]:
    """What becomes of the others when one is killed, and after how many seconds all have ended.

    Args:
      folder: an empty one.
      victim: the number of the one that is killed.
      delay: seconds since the first checkpoint.
      trainer: whether the child that trains is killed, not the process that was started.
    """
    with started(folder) as processes:
        time.sleep(delay)
        killed = processes[victim]
        os.kill(child_of(killed) if trainer else killed.pid, signal.SIGKILL)
        begun = time.perf_counter()
        others = [p for p in processes if p is not killed]
        for process in others:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, 3 * SECONDS - (time.perf_counter() - begun)))
        seconds = time.perf_counter() - begun
        statuses = [p.poll() for p in others]
    told = [(folder / str(i)).read_text() for i, p in enumerate(processes) if p is not killed]
    said = [s for s in sayings(folder) if SENTENCE in s]
    is_sentence = len(said) == len(others) and all("\n" not in s for s in said)
    if statuses != [1] * len(others) or not is_sentence:
        return f"failed: statuses {statuses}, said {told}", seconds
    return HELD if seconds < SECONDS else f"failed: took {seconds:.1f} s", seconds


def campaign(count: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    table: collections.Counter[tuple[str, str, str]] = collections.Counter()
    failed, longest = [], 0.0
    for i in range(count):
        victim, trainer = i % PROCESSES, bool(i // PROCESSES % 2)
        with tempfile.TemporaryDirectory(prefix="lost-processes-") as folder:
            delay = float(rng.uniform(0, 3))
            outcome, seconds = attack(Path(folder), victim, delay, trainer=trainer)
        longest = max(longest, seconds)
        which = "process 0" if victim == 0 else "another process"
        held = not outcome.startswith("failed")
        table[which, "kill -9", outcome if held else "failed"] += 1
        if not held:
            failed.append([which, trainer, outcome])
    counts = [[*key, n] for key, n in sorted(table.items())]
    return {"counts": counts, "seconds": round(longest, 1), "failures": failed}


if __name__ == "__main__":
    print(json.dumps(campaign(*map(int, sys.argv[1:3]))))
