"""Runs that are stopped, killed and resumed end as those that were left alone."""

import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from kills import arguments, finish, start
from problems import slow_but
from small_runs import CrashError, crashing, final_state, metrics, options, run_once

from zosam_jax import cli
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.problem import Problem
from zosam_jax.training.trainer import NonFiniteLossError, Run

CASES = {
    "masks that change": {"sparse": "rigl", "sparsity": 0.8},
    "lottery ticket": {"sparse": "lth", "lottery_levels": 2, "rewind_epochs": 1},
    "half of each batch, BatchNorm": {
        "optimizer": "sam",
        "batch_fraction": 0.5,
        "model": "resnet8",
    },
    "a late phase": {"optimizer": "friendly_sam", "late_phase": 0.5},
    "augmentation, averages, validation": {
        "sparse": "rigl",
        "sparsity": 0.8,
        "crop_and_flip": True,
        "mixup": 0.2,
        "random_erasing": 0.2,
        "ema_decay": 0.9,
        "validation_fraction": 0.1,
    },
    "AdamW, drop-path": {
        "model": "deit-micro",
        "patch": 4,
        "drop_path": 0.2,
        "optimizer": "adamw",
        "sparse": "svite",
    },
}


@pytest.mark.parametrize("case", slow_but({"masks that change"}, CASES))
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(case, tmp_path, monkeypatch):
    whole = TrainConfig(output=tmp_path / "whole", **options(**CASES[case]))
    run_once(whole)
    config = TrainConfig(output=tmp_path / "broken", **options(**CASES[case]))
    for after in (3, 4, 2):
        with monkeypatch.context() as patch:
            crashing(patch, after)
            with pytest.raises(CrashError):
                run_once(config)
        assert not (tmp_path / "broken" / "summary.json").exists()
    run_once(config)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    last, other = (final_state(c) for c in (whole, config))
    jax.tree.map(np.testing.assert_array_equal, last, other)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, capsys):
    out = tmp_path / "run"
    diverging = ["--learning-rate", "1e18", "--optimizer", "sgd", "--warmup", "0"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *arguments(out), *diverging])
    assert caught.value.code == 2
    text = " ".join(capsys.readouterr().out.split())
    assert "the loss of step" in text
    assert "(epoch 1) is not finite" in text
    # Nothing that is not finite was kept.
    assert not list((out / "checkpoints").glob("*")) or np.isfinite(
        np.asarray(jax.tree.leaves(final_params(out))[0]).sum()
    )


def final_params(out):
    config = TrainConfig(output=out, **options(optimizer="sgd"))
    return final_state(config)[0]


def test_a_loss_that_is_not_finite_can_be_left_out(tmp_path):
    config = TrainConfig(
        output=tmp_path / "run",
        **options(learning_rate=1e18, warmup=0.0, optimizer="sgd", on_non_finite="skip"),
    )
    run_once(config)
    lines = metrics(config.output)
    assert sum(line["bad_steps"] for line in lines) > 0
    assert np.isfinite(lines[0]["train_loss"])
    for line in lines:  # without one good step there is no mean
        assert (line["train_loss"] is None) == (line["bad_steps"] == 4)
    for leaf in jax.tree.leaves(final_state(config)[0]):
        assert np.isfinite(leaf).all()


def test_stopping_names_the_first_bad_step(tmp_path):
    config = TrainConfig(output=tmp_path / "run", **options(optimizer="sgd"))
    run = Run(Problem(config), "sgd", 0.0, 0)
    poisoned = jax.tree.map(lambda p: p * np.nan, run.state.params)
    run.state = run.state._replace(params=poisoned)
    with pytest.raises(NonFiniteLossError, match="step 1 "):
        run.train()


def wait_for_epoch(out: Path, process, epoch: int) -> None:
    path = out / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= epoch:
            return
        time.sleep(0.01)
    raise AssertionError(process.stdout.read())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(out)
    return out


@pytest.mark.long
@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_left_alone(undisturbed, tmp_path):
    out, rng = tmp_path / "run", np.random.default_rng(0)
    for epoch in (2, 6, 10, 15, 19):
        process = start(out)
        wait_for_epoch(out, process, epoch)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finish(out)
    assert metrics(out) == metrics(undisturbed)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_of_that_step(number, undisturbed, tmp_path):
    out = tmp_path / "run"
    process = start(out)
    wait_for_epoch(out, process, 3)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "the same command goes on" in " ".join(text.split())
    step = int(text.split("interrupted after step ")[1].split(";")[0])
    assert (out / "checkpoints" / str(step)).is_dir()
    assert f"resumed after step {step}" in finish(out)
    assert metrics(out) == metrics(undisturbed)
