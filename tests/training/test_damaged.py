"""Damaged run folders: named in a sentence, never read as something else, never a traceback."""

import collections
import json
import shutil
import subprocess
import sys
from pathlib import Path

import damaged
import numpy as np
import pytest
from small_runs import metrics

from zosam_jax import cli
from zosam_jax.report import report
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.run_folder import UnreadableRunError
from zosam_jax.training.saved_run import open_run


@pytest.fixture(scope="session")
def victim(tmp_path_factory):
    return damaged.make(tmp_path_factory.mktemp("damaged") / "run")


@pytest.fixture
def run(victim, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(victim.folder, tmp_path / "run"))


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 8
    file.write_bytes(content)


def arrays_of(run, number):
    """The largest file of a checkpoint."""
    state = run / "checkpoints" / str(number) / "state"
    return max(state.rglob("*"), key=lambda path: path.stat().st_size)


def some(damages, step):
    """Every so many of them, and the first of each kind."""
    seen = set()
    for index, one in enumerate(damages):
        if index % step == 0 or one.kind not in seen:
            seen.add(one.kind)
            yield one


@pytest.mark.parametrize(
    ("damages", "step"), [(damaged.checkpoint_damages, 40), (damaged.json_damages, 20)]
)
def test_some_damages(victim, damages, step):
    result = damaged.campaign(victim, some(damages(victim, 2, 0), step))
    assert result["failures"] == []
    kinds = collections.Counter(kind for _, kind, _, _ in result["counts"])
    assert {"a flipped bit", "a truncation", "foreign content", "no regular file"} <= set(kinds)


@pytest.mark.long
@pytest.mark.slow
def test_all_damages():
    """At least 126 flips in the arrays of a checkpoint, as many as first found the fault."""
    command = [sys.executable, damaged.__file__, "40", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["failures"] == []
    counts = collections.Counter()
    for what, kind, outcome, count in result["counts"]:
        counts[what, kind, outcome] += count
    assert counts["checkpoint", "a flipped bit", damaged.PASSED_OVER] > 126
    assert sum(counts.values()) > 3000


def test_a_flip_anywhere_in_the_arrays_is_noticed(victim, run):
    file = arrays_of(run, damaged.NEWEST)
    damages = damaged.flips([str(file.relative_to(run))], run, 12, np.random.default_rng(0))
    for one in damages:
        assert damaged.attack(victim, run, one) == damaged.PASSED_OVER


def test_where_no_checkpoint_is_whole_a_sentence_names_all(victim, run):
    for number in victim.states:
        flip(arrays_of(run, number))
    with (
        Checkpoints(run, keep=2, seconds=0) as keeper,
        pytest.raises(UnreadableRunError) as caught,
    ):
        keeper.restore_newest(victim.like, print)
    message = str(caught.value)
    assert damaged.is_sentence(message)
    assert all(f"checkpoints/{number}" in message for number in victim.states)
    assert "to train anew" in message


def test_what_is_opened_again_warns_of_a_damaged_checkpoint(run):
    flip(arrays_of(run, damaged.NEWEST))
    with pytest.warns(UserWarning, match="taken instead: the checkpoint of step 2"):
        saved = open_run(run)
    with saved:
        assert saved.run.progress.total_steps == 2
        with pytest.raises(UnreadableRunError, match="its checksum differs"):
            saved.restore(damaged.NEWEST)


def train(run, capsys):
    """What `zosam train` says, and its exit status."""
    capsys.readouterr()
    words = [
        *("--output", str(run), "--model", "lenet-300-100", "--train-images", "64"),
        *("--epochs", "3", "--mesh", "data=1", "--checkpoint-minutes", "0"),
        *("--optimizer", "sgd", "--sparse", "random"),
    ]
    try:
        cli.main(["train", *words])
        status = 0
    except SystemExit as ended:
        status = ended.code
    return " ".join(capsys.readouterr().out.split()), status


def test_an_empty_summary_is_made_anew(victim, run, capsys):
    (run / "summary.json").write_text("")
    said, status = train(run, capsys)
    assert status == 0
    assert "summary.json is damaged: it is empty. It is made anew" in said.replace("- ", "-")
    assert metrics(run) == metrics(victim.folder)
    again, whole = (json.loads((p / "summary.json").read_text()) for p in (run, victim.folder))
    assert again.pop("seconds") > 0
    del whole["seconds"]
    assert again == whole


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda run: (run / "config.json").write_text("[]"), "config.json is damaged: it must be"),
        (lambda run: (run / "config.json").write_text(""), "config.json is damaged: it is empty"),
        (lambda run: (run / "metrics.jsonl").write_text("a\n"), "metrics.jsonl is damaged: line 1"),
        (
            lambda run: (shutil.rmtree(run / "checkpoints"), (run / "checkpoints").write_text("")),
            "checkpoints is damaged: it is no folder",
        ),
    ],
)
def test_what_cannot_be_resumed_is_refused(run, capsys, damage, sentence):
    (run / "summary.json").unlink()
    damage(run)
    said, status = train(run, capsys)
    assert status == 2
    assert sentence.replace(" ", "") in said.replace(" ", "")  # lines break anywhere


def test_lines_that_were_lost_are_trained_again(victim, run, capsys):
    (run / "summary.json").unlink()
    file = run / "metrics.jsonl"
    file.write_text(file.read_text()[:-20])
    said, status = train(run, capsys)
    assert status == 0
    assert "has 2 of the 3 lines up to step 3; taken instead: the checkpoint of step 2" in said
    assert metrics(run) == metrics(victim.folder)


def test_a_report_leaves_a_damaged_run_out(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "metrics.jsonl").write_text("")
    text = (report([run, other], tmp_path / "out") / "report.md").read_text()
    assert "1 left out" in text
    assert f"{other / 'metrics.jsonl'} is damaged" in text.replace("\\", "")


@pytest.mark.slow
def test_analyze_and_evaluate_leave_a_damaged_run_out(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    for number in (2, 3):
        flip(arrays_of(other, number))
    flip(arrays_of(run, damaged.NEWEST))
    (run / "analysis.json").unlink()
    (other / "analysis.json").unlink()
    commands = {
        "analysis.json": [
            "analyze",
            "--parts",
            "sharpness",
            "--ascent-steps",
            "1",
            "--samples",
            "2",
        ],
        "robustness.json": ["evaluate", "--only", "contrast", "--severities", "1", "--images", "9"],
    }
    for name, words in commands.items():
        with pytest.raises(SystemExit):
            cli.main([words[0], str(other), str(run), *words[1:]])
        said = " ".join(capsys.readouterr().out.split())
        assert f"left out: {other}: none of its checkpoints can be taken" in said
        assert "taken instead: the checkpoint of step 2" in said
        assert json.loads((run / name).read_text())["checkpoint"] == 2
