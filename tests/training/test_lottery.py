"""Lottery tickets: the rounds that a run goes through, and what starts anew in each."""

import json

import optax
import pytest
from problems import slow_but
from small_runs import options

from zosam_jax import cli
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.problem import Problem
from zosam_jax.training.trainer import Run

SMALL = ["--model", "lenet-300-100", "--train-images", "256", "--epochs", "3", "--mesh", "data=1"]


@pytest.mark.parametrize(
    ("optimizer", "passes"), slow_but([("sgd", 3)], [("sgd", 3), ("zo_sam", 5)])
)
def test_lottery_tickets_are_trained_in_rounds(optimizer, passes, tmp_path, capsys):
    words = ["--sparse", "lth", "--lottery-levels", "2", "--rewind-epochs", "1"]
    words += ["--optimizer", optimizer, "--output", str(tmp_path / "run")]
    cli.main(["train", *SMALL, *words])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["sparsity"] == pytest.approx(0.9, abs=2e-5)
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    # The run to the rewinding point, the dense run, and two rounds from epoch 1 on.
    assert [(line["round"], line["epoch"]) for line in lines] == [
        *[(0, 1)],
        *[(0, 1), (0, 2), (0, 3)],
        *[(1, 2), (1, 3)],
        *[(2, 2), (2, 3)],
    ]
    levels = [line["sparsity"] for line in lines]
    assert levels == pytest.approx([0] * 4 + [1 - 0.1**0.5] * 2 + [0.9] * 2, abs=1e-4)
    assert 1.3 < summary["training_cost"] / (passes / 3) < 1.9
    assert "round 2, sparsity 90.0%" in " ".join(capsys.readouterr().out.split())


def test_a_rewound_adam_starts_anew_where_its_schedule_does_not():
    config = TrainConfig(**options(sparse="lth", optimizer="adamw", rewind_epochs=1))
    run = Run(Problem(config), "adamw", 0.0, 0)
    run.restart(run.network, run.masks, epoch=2)
    counts = dict(optax.tree.get_all_with_path(run.state.opt_state, "count"))
    by_owner = {path[-1].tuple_name: int(count) for path, count in counts.items()}
    assert by_owner["ScaleByAdamState"] == 0
    assert by_owner["ScaleByScheduleState"] == 2 * 4
