"""A full or read-only disk ends in one sentence, and the same command goes on with room."""

import errno
import os
import subprocess
import sys

import disks
import jax
import numpy as np
import pytest
from small_runs import final_state, metrics, options, run_once

from zosam_jax.commands.refusal import refused
from zosam_jax.training import checkpoints, run_folder
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.run_folder import UnwritableError

needs_compiler = pytest.mark.skipif(not disks.CAN_BE_MADE, reason="needs Linux and a C compiler")


@pytest.mark.long
@pytest.mark.slow
@needs_compiler
def test_some_moments():
    result = disks.run_apart(["train", "sweep", "export"], 1, 0)
    assert result["failures"] == []
    assert any(outcome == disks.HELD for _, _, outcome, _ in result["counts"])


def test_a_checkpoint_that_cannot_be_sealed_is_none(tmp_path, monkeypatch):
    """The failure comes in a thread of Orbax's, after two checkpoints that were whole."""
    small = options(epochs=3, train_images=64, optimizer="sgd", sparse="random")
    whole, config = (TrainConfig(output=tmp_path / name, **small) for name in ("whole", "run"))
    run_once(whole)
    calls, seal = [], checkpoints._checksums

    def on_a_full_disk(place):
        calls.append(place)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return seal(place)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_checksums", on_a_full_disk)
        with pytest.raises(UnwritableError, match="checkpoints cannot be written: No space left"):
            run_once(config)
    run_once(config)
    assert metrics(config.output) == metrics(whole.output)
    last, other = (final_state(c) for c in (whole, config))
    jax.tree.map(np.testing.assert_array_equal, last, other)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (ValueError("RESOURCE_EXHAUSTED: Failed to write [os_error_code='28']"), errno.ENOSPC),
        (ValueError("Error opening file [OS error 30: Read-only file system]"), errno.EROFS),
        (OSError(errno.EDQUOT, "quota"), errno.EDQUOT),
        (ValueError("another fault"), None),
    ],
)
def test_what_the_system_said_is_found(error, found):
    outer = RuntimeError("a future failed")
    outer.__cause__ = error
    cause = checkpoints._of_system(outer)
    assert (cause and cause.errno) == found


def test_nothing_half_written_takes_up_room(tmp_path):
    def write():
        with run_folder.replacing(tmp_path / "a.json") as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UnwritableError, match=r"a\.json cannot be written: No space left"):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left", "/a"), 1, "/a cannot be written: No space left."),
        (UnwritableError("x cannot be written."), 1, "x cannot be written."),
        (FileNotFoundError("no such run"), 2, "no such run"),
    ],
)
def test_what_may_succeed_later_has_another_status(error, status, sentence):
    refusal = refused(error)
    assert (refusal.status, str(refusal)) == (status, sentence)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_is_printed_may_not_be_written_either():
    command = [sys.executable, "-m", "zosam_jax", "recipes"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("zosam: what is printed, or a file, cannot be written: No space")
    assert "Traceback" not in done.stderr
