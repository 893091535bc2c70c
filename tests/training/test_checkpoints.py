"""Checkpoints: which are kept, and that half of one is none."""

import jax
import numpy as np
import pytest
from rich.console import Console
from small_runs import CrashError, crashing, final_state, metrics, options, run_once

from zosam_jax.training import run_folder
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.fitting import train
from zosam_jax.training.problem import Problem
from zosam_jax.training.run_folder import UnreadableRunError
from zosam_jax.training.trainer import Run


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    config = TrainConfig(output=tmp_path / "run", **options(epochs=6, learning_rate=0.02))
    run_once(config)
    with Checkpoints(config.output, keep=2, seconds=0) as keeper:
        newest, chosen = keeper.newest, keeper.best
    numbers = sorted(int(p.name) for p in (config.output / "checkpoints").iterdir())
    assert numbers[-1] == newest == 24
    assert chosen in numbers
    assert len(numbers) <= 3
    accuracies = [line["test_accuracy"] for line in metrics(config.output)]
    assert accuracies[chosen // 4 - 1] == max(accuracies)


@pytest.mark.slow
def test_a_half_written_checkpoint_is_passed_over(tmp_path, monkeypatch):
    config = TrainConfig(output=tmp_path / "run", **options())
    with monkeypatch.context() as patch:
        crashing(patch, 6)
        with pytest.raises(CrashError):
            run_once(config)
    folder = tmp_path / "run" / "checkpoints"
    newest = max(int(p.name) for p in folder.iterdir())
    # Orbax renames a checkpoint into place once it is complete.
    (folder / f"{newest + 1}.orbax-checkpoint-tmp").mkdir()
    (folder / f"{newest + 1}.orbax-checkpoint-tmp" / "state").write_text("half")
    run_once(config)
    assert len(metrics(config.output)) == 3


@pytest.mark.slow
def test_with_a_damaged_checkpoint_a_run_ends_as_from_the_one_before(tmp_path, monkeypatch):
    whole = TrainConfig(output=tmp_path / "whole", **options())
    run_once(whole)
    config = TrainConfig(output=tmp_path / "run", **options())
    with monkeypatch.context() as patch:
        crashing(patch, 6)
        with pytest.raises(CrashError):
            run_once(config)
    before, newest = sorted(int(p.name) for p in (config.output / "checkpoints").iterdir())[-2:]
    file = config.output / "checkpoints" / str(newest) / "progress" / "metadata"
    file.write_text("{}")
    console = Console(record=True, width=1000)
    train(config, Problem(config), run_folder.for_training(config), console)
    said = console.export_text()
    assert f"{file} is damaged: it lacks progress; taken instead: " in said
    assert f"the checkpoint of step {before}" in said
    assert f"resumed after step {before}, " in said
    assert (config.output / "damaged" / str(newest) / "progress" / "metadata").is_file()
    assert metrics(config.output) == metrics(whole.output)
    last, other = (final_state(c) for c in (whole, config))
    jax.tree.map(np.testing.assert_array_equal, last, other)


def test_the_network_of_a_round_has_checksums(tmp_path):
    config = TrainConfig(output=tmp_path / "run", **options(sparse="random"))
    network = Run(Problem(config), config.optimizer, 0.01, 0).network
    with Checkpoints(config.output, keep=2, seconds=0) as keeper:
        keeper.save_network(0, network)
        jax.tree.map(np.testing.assert_array_equal, keeper.restore_network(0, network), network)
        path = max((config.output / "rounds" / "0").rglob("*"), key=lambda p: p.stat().st_size)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(UnreadableRunError, match=f"{path} is damaged: its checksum differs"):
            keeper.restore_network(0, network)
