"""Folders for results: what is refused before anything is computed."""

import json
import os

import pytest

from zosam_jax.training import run_folder
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.run_folder import RunFolder, UnwritableError
from zosam_jax.training.saved_run import read_config


def test_options_and_versions_are_written(tmp_path):
    folder = RunFolder(tmp_path / "run", "train")
    assert folder.versions == {}
    folder.write_options(TrainConfig(output=folder.path))
    content = json.loads((folder.path / run_folder.CONFIG).read_text())
    assert content["rho"] == 0.4
    assert folder.versions == content["versions"] == run_folder.versions()


def test_a_run_with_other_options_is_refused_by_name(tmp_path):
    options = {"output": tmp_path / "run", "epochs": 1}
    RunFolder(tmp_path / "run", "train").write_options(TrainConfig(**options))
    with pytest.raises(ValueError, match=r"weight_decay=0.1 contradicts .* weight_decay=0.0005"):
        run_folder.for_training(TrainConfig(**options, weight_decay=0.1))
    with pytest.raises(ValueError, match=r"rho=0.1 contradicts .* rho=0.4"):
        run_folder.for_training(TrainConfig(**options, rho=0.1))
    # Defaults spelled out are the same options; where it runs may change.
    same = {"rho": 0.4, "delta": 1e-3, "checkpoint_minutes": 7.0, "workers": 3}
    assert not run_folder.for_training(TrainConfig(**options, **same)).is_complete


def test_options_that_came_since_have_their_defaults_in_earlier_runs(tmp_path):
    options = {"output": tmp_path / "run", "epochs": 1}
    RunFolder(tmp_path / "run", "train").write_options(TrainConfig(**options))
    file = tmp_path / "run" / run_folder.CONFIG
    content = json.loads(file.read_text())
    for name in ("task", "sparsity_budget", "late_phase"):
        del content[name]
    file.write_text(json.dumps(content))
    assert read_config(tmp_path / "run") == TrainConfig(output=tmp_path / "run", epochs=1)
    assert not run_folder.for_training(TrainConfig(**options)).is_complete
    with pytest.raises(ValueError, match=r"late_phase=0.1 contradicts .* late_phase=None"):
        run_folder.for_training(TrainConfig(**options, late_phase=0.1, optimizer="sam"))


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file: choose a folder"):
        RunFolder(tmp_path / "file", "train")
    with pytest.raises(UnwritableError, match="file is a file, not a folder"):
        RunFolder(tmp_path / "file" / "run", "train")


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UnwritableError, match=f"{tmp_path} is read-only"):
        RunFolder(tmp_path / "run", "train")


def test_what_fails_while_writing_is_named(tmp_path):
    folder = RunFolder(tmp_path / "run", "train")
    (tmp_path / "run" / "summary.json").mkdir(parents=True)
    with pytest.raises(UnwritableError, match=r"summary\.json cannot be written: Is a directory"):
        folder.write_json(run_folder.SUMMARY, {})


@pytest.mark.parametrize("letter", ["[", "*", "?"])
def test_folders_in_which_checkpoints_would_be_lost_are_refused(letter, tmp_path):
    with pytest.raises(ValueError, match=f"has '\\{letter}' in it, which Orbax takes"):
        run_folder.for_training(TrainConfig(output=tmp_path / f"a{letter}x]" / "run"))
