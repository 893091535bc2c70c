"""What a run says while it goes on."""

import io
import math
import re
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from rich.console import Console

from zosam_jax.training.callbacks import ProgressLogger, explosion
from zosam_jax.training.progress import EpochRecord
from zosam_jax.training.run_folder import RunFolder

FIELDS = dict.fromkeys(EpochRecord._fields, 0)


def records(*norms, rho=0.1):
    made = {"train_loss": 1.0, "validation_accuracy": math.nan, "rho_used": rho}
    return [
        EpochRecord(**{**FIELDS, **made, "epoch": i, "step": 10 * i, "epsilon_norm": norm})
        for i, norm in enumerate(norms, start=1)
    ]


@pytest.mark.parametrize(
    ("norms", "weights", "said"),
    [
        ((0.16, 0.16, 0.16), 50.0, None),
        ((0.16, 0.2, 0.15, 30.0), 50.0, "step 40: .* norm of 30, where 0.16 was usual"),
        ((60.0,), 50.0, "step 10: .* norm of 60, more than the weights' own norm of 50"),
        ((math.nan, math.nan), 50.0, None),
        ((0.0, 0.1), 50.0, None),
    ],
)
def test_perturbations_that_explode(norms, weights, said):
    warning = explosion(records(*norms), weights)
    if said is None:
        assert warning is None
    else:
        assert re.match(said, warning)
        assert "try --clip-norm or a smaller --rho" in warning


def test_a_radius_that_warms_up_is_no_explosion():
    warming = [*records(0.01, rho=0.001), *records(0.01, 0.5, rho=0.05)[1:]]
    assert explosion(warming, 50.0) is None


def test_an_explosion_is_told_once(tmp_path):
    console = Console(file=io.StringIO(), width=200)
    problem = SimpleNamespace(
        steps=40, steps_per_epoch=10, config=SimpleNamespace(epochs=4, task="image")
    )
    run = SimpleNamespace(
        state=SimpleNamespace(params={"w": jnp.ones(9)}),
        progress=SimpleNamespace(total_steps=10),
        records=[],
    )
    with ProgressLogger(problem, RunFolder(tmp_path, "train"), console, tensorboard=False) as bar:
        for record in records(0.1, 0.1, 5.0, 6.0):
            run.records.append(record)
            bar.on_epoch(record, run)
    assert console.file.getvalue().count("try --clip-norm") == 1
    assert "step 30: the perturbations of epoch 3 had a mean norm of 5" in console.file.getvalue()
