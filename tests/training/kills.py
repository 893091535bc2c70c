"""Trainings that are killed and resumed, for the tests and as a campaign.

    python tests/training/kills.py 20 7

kills a training at so many random moments, one in each, from its start to its end, resumes it, and
prints a line of JSON: how often what became of it, and what should not have happened.
"""

import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from small_runs import final_state, metrics, options

from zosam_jax.training.config import TrainConfig

EPOCHS = 20
RESUMED = "resumed, and ended bit for bit as if left alone"
OVER = "was over before"


def arguments(out: Path) -> list[str]:
    return [
        *["--output", str(out), "--model", "lenet-300-100", "--train-images", "256"],
        *["--epochs", str(EPOCHS), "--mesh", "data=1", "--checkpoint-minutes", "0.002"],
    ]


def start(out: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.Popen(
        [sys.executable, "-m", "zosam_jax", "train", *arguments(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(out: Path) -> str:
    process = start(out)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def _ended(out: Path) -> tuple[Any, Any]:
    """The lines of metrics, and the arrays of the last checkpoint as bytes."""
    state = final_state(TrainConfig(output=out, **options(epochs=EPOCHS)))
    return metrics(out), [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def attack(out: Path, expected: Any, seconds: float) -> str:
    """What becomes of a training that is killed after so many seconds."""
    process = start(out)
    time.sleep(seconds)
    is_over = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    try:
        text = finish(out)
    except AssertionError as error:
        return f"failed: said {error}"
    if "Traceback" in text or _ended(out) != expected:
        return f"failed: another result, said {text}"
    return OVER if is_over else RESUMED


def campaign(count: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    table: collections.Counter[str] = collections.Counter()
    failed = []
    with tempfile.TemporaryDirectory(prefix="kills-") as parent:
        begun = time.perf_counter()
        finish(Path(parent) / "whole")
        seconds = time.perf_counter() - begun
        expected = _ended(Path(parent) / "whole")
        for i in range(count):
            moment = seconds * rng.uniform(i, i + 1) / count
            outcome = attack(Path(parent) / str(i), expected, moment)
            held = not outcome.startswith("failed")
            table[outcome if held else "failed"] += 1
            if not held:
                failed.append([moment, outcome])
    counts = [["train", "kill -9", outcome, n] for outcome, n in sorted(table.items())]
    return {"counts": counts, "failures": failed}


if __name__ == "__main__":
    print(json.dumps(campaign(*map(int, sys.argv[1:3]))))
