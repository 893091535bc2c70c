"""Sweeps: which runs a file asks for, and that each is made once."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from zosam_jax import cli, recipes
from zosam_jax.commands import processes
from zosam_jax.commands.cells import Cell
from zosam_jax.commands.processes import Runs
from zosam_jax.commands.sweep import SweepConfig, cells, sweep
from zosam_jax.report.runs import gather
from zosam_jax.training.config import TrainConfig

QUIET = Console(quiet=True)
GRID = """
[train]
model = "lenet-300-100"
train_images = 256
epochs = 1
crop_and_flip = true
schedule = "step"
milestones = [0.3, 0.6]

[grid]
sparsity = [0.5, 0.9]
seed = [0, 1]

[[case]]
optimizer = "sgd"

[[case]]
optimizer = "sam"
rho = 0.02
"""


def written(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return path


def test_a_file_asks_for_every_combination_with_seeds_slowest(tmp_path):
    found = cells(SweepConfig(file=written(tmp_path, GRID)))
    assert [cell.name for cell in found] == [
        "sparsity=0.5,optimizer=sgd,seed=0",
        "sparsity=0.5,optimizer=sam,rho=0.02,seed=0",
        "sparsity=0.9,optimizer=sgd,seed=0",
        "sparsity=0.9,optimizer=sam,rho=0.02,seed=0",
        "sparsity=0.5,optimizer=sgd,seed=1",
        "sparsity=0.5,optimizer=sam,rho=0.02,seed=1",
        "sparsity=0.9,optimizer=sgd,seed=1",
        "sparsity=0.9,optimizer=sam,rho=0.02,seed=1",
    ]


def test_a_command_means_what_the_file_says(tmp_path):
    found = cells(SweepConfig(file=written(tmp_path, GRID), data_dir=Path("DATA")))
    _, parsed = cli._parse(found[1].command(Path("OUT")))
    assert parsed == TrainConfig(
        model="lenet-300-100",
        train_images=256,
        epochs=1,
        crop_and_flip=True,
        schedule="step",
        milestones=(0.3, 0.6),
        sparsity=0.5,
        optimizer="sam",
        rho=0.02,
        data_dir=Path("DATA"),
        output=Path("OUT") / found[1].name,
    )


def test_recipes_and_seeds_are_axes():
    known = [r for r in recipes.every() if r.name.startswith("digits")]
    names = tuple(r.name for r in known[:2])
    found = cells(SweepConfig(recipes=names, seeds=2))
    assert [cell.name for cell in found] == [
        f"recipe={name},seed={seed}" for seed in (0, 1) for name in names
    ]
    _, parsed = cli._parse(found[0].command(Path("OUT")))
    assert parsed.optimizer == known[0].config.optimizer
    assert parsed.recipe == names[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[train\n", "is no TOML"),
        ("[other]\nepochs = 1\n", "other must be one of"),
        ("[grid]\nsparsity = 0.5\n", "sparsity=0.5 in [grid] must be a list"),
        ("[train]\nepoch = 1\n", "epoch is no option of a sweep's runs"),
        ("[grid]\nsparsity = [0.5, 1.5]\n", "sparsity=1.5: sparsity=1.5 must be below 1"),
        ('[train]\nrecipe = "nothing"\n', "recipe='nothing' is not known"),
        ("[grid]\nsparsity = [0.5, 0.5]\n", "has sparsity=0.5 twice"),
        ('[train]\noutput = "here"\n', "output is no option of a sweep's runs"),
        (
            '[train]\nmodel = "resnet99"\n',
            "[train]: model='resnet99' is not known; choose one of 'lenet",
        ),
        ("[train]\nseed = 1.5\n", "[train]: seed=1.5 must be an integer"),
        ("[train]\nstream = 1\n", "[train]: stream=1 must be true or false"),
        ("[grid]\nrho = [0.1, '0.2']\n", "[grid]: rho='0.2' must be a finite number"),
        ("[grid]\nrho = [0.1, nan]\n", "[grid]: rho=nan must be a finite number"),
        ("[train]\nmilestones = [0.5, '']\n", "[train]: milestones[1]='' must be a finite"),
        ("[train]\nepochs = 1979-05-27\n", "[train]: epochs=datetime.date(1979, 5, 27) must be"),
        (f"[train]\nepochs = {10**400}\n", "[train]: epochs=1000"),
        ("[train]\nrecipe = ['a']\n", "[train]: recipe=['a'] must be a string"),
        ("[train.optimizer]\nname = 'sgd'\n", "[train]: optimizer={'name': 'sgd'} must be one of"),
        ("[[case]]\nepochs = '3'\n", "[[case]]: epochs='3' must be an integer"),
        ("[tune]\nseeds = 1.5\n", "[tune]: seeds=1.5 must be an integer"),
        ("[tune]\nrho = [true]\n", "[tune]: rho=True must be a finite number"),
        (f"a = {'[' * 5000}", "is nested too deeply"),
        ("case = [1, 2]\n", "case must be one of [train], [grid], [tune] and [[case]]"),
        ("case = []\n", "case must be one of [train], [grid], [tune] and [[case]]"),
        (f'[grid]\nsparse_layers = ["{"x" * 300}"]\n', "is too long for a folder"),
    ],
)
def test_what_a_file_gets_wrong(text, sentence, tmp_path):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        cells(SweepConfig(file=written(tmp_path, text)))


@pytest.mark.parametrize("place", [Path.mkdir, os.mkfifo, lambda path: path.write_bytes(b"\xff")])
def test_what_is_no_text_file_is_named(place, tmp_path):
    place(tmp_path / "sweep.toml")
    with pytest.raises(ValueError, match=r"sweep\.toml'? is no "):
        cells(SweepConfig(file=tmp_path / "sweep.toml"))


def test_nothing_to_run_is_refused():
    with pytest.raises(ValueError, match="file=None: name a TOML file"):
        SweepConfig()


def test_common_options_are_left_out_where_they_do_nothing(tmp_path):
    text = """
case = [{optimizer = "sgd"}, {optimizer = "sam"}, {optimizer = "zo_sam", num_directions = 2}]
[train]
radius = "global"
[grid]
rho = [0.1, 0.2]
"""
    found = {cell.name: cell for cell in cells(SweepConfig(file=written(tmp_path, text)))}
    assert list(found) == [
        "optimizer=sgd",
        "rho=0.1,optimizer=sam",
        "rho=0.1,optimizer=zo_sam,num_directions=2",
        "rho=0.2,optimizer=sam",
        "rho=0.2,optimizer=zo_sam,num_directions=2",
    ]
    assert found["optimizer=sgd"].options == {"optimizer": "sgd"}
    assert found["rho=0.2,optimizer=sam"].config.radius == "global"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("case = [{optimizer = 'sgd'}]\n[train]\nrho = 0.1\n", "rho would do nothing in any run"),
        ("case = [{optimizer = 'sgd', rho = 0.1}]\n", "optimizer=sgd,rho=0.1: rho=0.1 goes with"),
    ],
)
def test_an_option_that_no_run_takes_is_refused(text, sentence, tmp_path):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        cells(SweepConfig(file=written(tmp_path, text)))


ONE_CELL = """
[train]
model = "lenet-300-100"
train_images = 256
epochs = {epochs}
evaluate_every = 10000
sparse = "none"
mesh = "data=1"

[[case]]
optimizer = "sgd"
"""
DIVERGES = ONE_CELL.format(epochs=1) + "\n[[case]]\noptimizer = 'sgd'\nlearning_rate = 1e30\n"


def test_finished_and_hopeless_runs_are_not_made_again(tmp_path, trained):
    config = SweepConfig(file=written(tmp_path, DIVERGES), output=tmp_path / "out")
    assert not sweep(config, QUIET)  # one of them diverges
    failure = tmp_path / "out" / ".sweep" / "optimizer=sgd,learning_rate=1e+30.failed.json"
    assert "is not finite" in json.loads(failure.read_text())["reason"]
    assert not sweep(config, QUIET)
    assert len(trained) == 2
    assert not sweep(dataclasses.replace(config, retry=True), QUIET)
    assert len(trained) == 3


def test_other_options_are_no_finished_run(tmp_path, trained):
    text = ONE_CELL.format(epochs=1)
    config = SweepConfig(file=written(tmp_path, text), output=tmp_path / "out", workers=1)
    assert sweep(config, QUIET)
    assert sweep(config, QUIET)
    written(tmp_path, text.replace("256", "128"))
    with pytest.raises(ValueError, match="train_images=128 contradicts the run in"):
        sweep(config, QUIET)
    assert len(trained) == 1


def test_a_mended_cell_is_tried_again(tmp_path, trained):
    config = SweepConfig(file=written(tmp_path, DIVERGES), output=tmp_path / "out")
    assert not sweep(config, QUIET)
    runs, hopeless = Runs(config.output, QUIET), cells(config)[-1]
    assert runs.is_settled(hopeless)
    assert runs.diverged(hopeless)
    mended = hopeless._replace(options={**hopeless.options, "learning_rate": 9.0})
    assert not runs.is_settled(mended)


def test_names_with_a_slash_make_no_folders(tmp_path):
    text = '[grid]\ndataset = ["hub:a/b", "digits"]\n'
    names = [cell.name for cell in cells(SweepConfig(file=written(tmp_path, text)))]
    assert names == ["dataset=hub:a-b", "dataset=digits"]


def test_lists_in_names_have_no_brackets(tmp_path):
    """Orbax would write no checkpoints into such a folder that can be read."""
    text = "[train]\nschedule = 'step'\n[grid]\nmilestones = [[0.5, 0.7], [0.6]]\n"
    names = [cell.name for cell in cells(SweepConfig(file=written(tmp_path, text)))]
    assert names == ["milestones=0.5+0.7", "milestones=0.6"]


def test_a_claim_lasts_as_long_as_the_process_that_has_it(tmp_path):
    runs, cell = Runs(tmp_path, QUIET), Cell({}, {}, TrainConfig())
    runs.prepare()
    with runs.claimed(cell) as claim:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[claim])
    with runs.claimed(cell) as again:
        assert again is None
    child.kill()
    child.wait()
    with runs.claimed(cell) as again:
        assert again is not None


def test_a_run_that_another_sweep_has_is_left_to_it(tmp_path, trained):
    config = SweepConfig(file=written(tmp_path, ONE_CELL.format(epochs=1)), output=tmp_path / "out")
    runs = Runs(config.output, QUIET)
    runs.prepare()
    with runs.claimed(cells(config)[0]) as claim:
        assert claim is not None
        assert not sweep(config, QUIET)
    assert trained == []


@pytest.mark.slow
def test_a_stopped_sweep_goes_on(tmp_path):
    file, output = written(tmp_path, ONE_CELL.format(epochs=3000)), tmp_path / "out"
    command = [sys.executable, "-m", "zosam_jax", "sweep", str(file), "--output", str(output)]
    process = subprocess.Popen([*command, "--workers", "1"], stdout=subprocess.DEVNULL)
    run = output / "optimizer=sgd"
    until = time.monotonic() + 120
    lines = run / "metrics.jsonl"
    while not (lines.exists() and lines.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert not (run / "summary.json").exists()
    assert any((run / "checkpoints").iterdir())
    log = (output / ".sweep" / "optimizer=sgd.log").read_text()
    assert "the same command goes on from there" in log


def test_shares_split_the_cores(monkeypatch):
    monkeypatch.setattr(processes, "_accelerators", lambda: ("cpu", 1))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    assert [share.cores for share in processes._shares(2)] == [{0, 2, 4}, {1, 3}]
    assert len(processes._shares(None)) == 5


def test_only_the_visible_gpus_are_used(monkeypatch):
    monkeypatch.setattr(processes, "_accelerators", lambda: ("gpu", 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    shares = processes._shares(None)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == ["2", "5"]


def test_each_gpu_has_its_run(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(processes, "_accelerators", lambda: ("gpu", 2))
    shares = processes._shares(None)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0", "1"]
    crowded = processes._shares(3)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in crowded] == ["0", "1", "0"]
    assert all(s.environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false" for s in crowded)


def test_dry_run_prints_commands_and_makes_nothing(tmp_path, capsys):
    file = written(tmp_path, GRID)
    cli.main(["sweep", str(file), "--output", str(tmp_path / "out"), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("zosam train --model lenet-300-100 --train-images 256")
    assert not (tmp_path / "out").exists()


def test_options_become_words():
    options = {"stream": False, "milestones": [0.1, 0.2], "sparse_layers": "conv|head"}
    command = Cell({"x": 1}, options, TrainConfig()).command(Path("o"))
    assert command == [
        *("train", "--no-stream", "--milestones", "0.1", "0.2"),
        *("--sparse-layers", "conv|head", "--output", "o/x=1"),
    ]


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """The smallest sweep with everything in it: two optimizers, two candidates, one seed."""
    folder = tmp_path_factory.mktemp("real")
    text = """
case = [{optimizer = "sgd"}, {optimizer = "sam"}]
[train]
model = "lenet-300-100"
train_images = 256
epochs = 1
mesh = "data=1"
radius = "layerwise"
[grid]
seed = [0]
[tune]
rho = [0.01, 0.05]
seeds = 1
"""
    file = written(folder, text)
    cli.main(["sweep", str(file), "--output", str(folder / "out")])
    return folder / "out"


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_tunes_and_trains(real):
    (choice,) = json.loads((real / "tuning.json").read_text())
    assert choice["at_the_end"] == ["rho"]
    summary = json.loads((real / "optimizer=sam,rho=tuned,seed=0" / "summary.json").read_text())
    assert summary["rho"] == choice["chosen"]["rho"]
    assert (real / "optimizer=sgd,seed=0" / "masks.txt").exists()
    runs, omissions = gather([real])
    assert sorted(run.name for run in runs) == [
        "optimizer=sam,rho=tuned,seed=0",
        "optimizer=sgd,seed=0",
    ]
    assert omissions == []
