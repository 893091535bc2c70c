"""Runs opened again from their folders: the same options, the same network, any checkpoint."""

import json

import jax
import numpy as np
import pytest

from zosam_jax import cli
from zosam_jax.training.run_folder import UnreadableRunError
from zosam_jax.training.saved_run import open_run, opener, read_config

OPTIONS = [
    *("--model", "lenet-300-100", "--train-images", "256", "--epochs", "5", "--mesh", "data=1"),
    *(
        "--schedule",
        "step",
        "--milestones",
        "0.3",
        "0.6",
        "--sparse",
        "rigl",
        "--optimizer",
        "sam",
        "--rho",
        "0.03",
    ),
    *("--keep-every", "2", "--keep-checkpoints", "1"),
]
STEPS = 256 // 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "run"
    cli.main(["train", *OPTIONS, "--output", str(path)])
    return path


def test_the_options_come_back(folder):
    _, given = cli._parse(["train", *OPTIONS, "--output", str(folder)])
    assert read_config(folder) == given


def test_every_so_many_epochs_a_checkpoint_stays(folder):
    with open_run(folder) as saved:
        # The best may be any; of the others the newest and those of epochs 2 and 4.
        assert {2 * STEPS, 4 * STEPS, 5 * STEPS} <= set(saved.checkpoints)
        assert len(saved.checkpoints) <= 4
        assert saved.best in saved.checkpoints


def test_the_network_is_the_one_that_was_evaluated(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with opener()(folder) as saved:
        for number in (2 * STEPS, None):
            progress = saved.restore(number)
            accuracy = saved.run.problem.accuracy(saved.run.network)
            assert accuracy == lines[progress.epoch - 1]["test_accuracy"]
        assert saved.run.sparsity == pytest.approx(0.9, abs=1e-4)
        assert saved.run.rho == 0.03


def test_runs_of_one_kind_share_their_problem(folder):
    open_next = opener()
    with open_next(folder) as first, open_next(folder) as second:
        assert second.run.problem is first.run.problem
        networks = (first.run.network, second.run.network)
        jax.tree.map(np.testing.assert_array_equal, *networks)


def test_looking_changes_nothing(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with open_run(folder):
        pass
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run folder: it holds no config\.json"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epoch": 3}, "it has the unknown field epoch"),
        ({"epochs": "3"}, "epochs='3' must be an integer"),
        ({"epochs": -1}, "epochs=-1 must be at least 1"),
    ],
)
def test_options_that_cannot_be_read(change, sentence, folder, tmp_path):
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(UnreadableRunError, match=rf"config\.json is damaged: {sentence}"):
        read_config(tmp_path)
