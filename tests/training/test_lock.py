"""Two trainings into one folder: the second is told of the first, as long as that lives."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys

import pytest

from zosam_jax import cli
from zosam_jax.training import lock, run_folder

HOLDER = """
import sys, time
from pathlib import Path
from zosam_jax.training import lock
with lock.held(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a run folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_training_names_the_first_until_it_is_killed(holder, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--output", str(tmp_path / "run"), "--epochs", "1"])
    said = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 1
    assert re.fullmatch(
        rf"zosam: {tmp_path}/run is being trained by process {holder.pid} on \S+, since "
        r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\S+: wait for its end, or choose another --output\.",
        said,
    )
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.held(tmp_path / "run", print):
        assert str(os.getpid()) in (tmp_path / "run" / run_folder.LOCK).read_text()


def test_of_two_in_one_process_the_second_is_refused_too(tmp_path):
    with lock.held(tmp_path, print), pytest.raises(lock.InUseError), lock.held(tmp_path, print):
        pass


def test_nothing_is_left_of_a_lock(tmp_path):
    with lock.held(tmp_path / "run", print):
        pass
    assert not (tmp_path / "run").exists()
    with lock.held(tmp_path, print):
        (tmp_path / "result").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_what_a_killed_run_left_of_its_lock_is_no_result(tmp_path):
    (tmp_path / run_folder.LOCK).write_text("{")
    assert run_folder.RunFolder(tmp_path, "train").path == tmp_path
    with lock.held(tmp_path, print):
        (tmp_path / run_folder.LOCK).write_text("")  # on a full disk it holds no name
        with (
            pytest.raises(lock.InUseError, match="by another process: wait"),
            lock.held(tmp_path, print),
        ):
            pass


def test_a_lock_that_its_holder_has_just_removed_is_none(tmp_path, monkeypatch):
    """The second has opened the file that the first then removes and lets go of."""
    path, calls = tmp_path / run_folder.LOCK, []

    def acquire(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(lock, "acquire", acquire)
    with lock.held(tmp_path, print), pytest.raises(lock.InUseError), lock.held(tmp_path, print):
        pass
    assert len(calls) == 3


@pytest.mark.parametrize("absent", ["on this file system", "on this platform"])
def test_where_there_are_no_locks_a_sentence_says_so(absent, tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    if absent == "on this platform":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    said = []
    with lock.held(tmp_path, said.append):
        assert not list(tmp_path.iterdir())
    assert said == [f"{tmp_path} cannot be locked here: do not train into it twice at a time"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(run_folder.UnwritableError, match="cannot be written: Not a directory"),
        lock.held(tmp_path / "file" / "run", print),
    ):
        pass
