"""Checkpoints: which are kept, and that half of one is none."""

import pytest
from small_runs import CrashError, crashing, metrics, options, run_once

from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.run_folder import UnreadableRunError


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


def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch):
    config = TrainConfig(output=tmp_path / "run", **options())
    with monkeypatch.context() as patch:
        crashing(patch, 6)
        with pytest.raises(CrashError):
            run_once(config)
    newest = max(int(p.name) for p in (config.output / "checkpoints").iterdir())
    damaged = config.output / "checkpoints" / str(newest)
    (damaged / "progress" / "metadata").write_text("{")
    with pytest.raises(UnreadableRunError, match=f"checkpoints/{newest} cannot be read"):
        run_once(config)
