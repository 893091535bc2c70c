"""The comparison: what its runs are, and its table, from run folders."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from zosam_jax import cli
from zosam_jax.commands import compare as compares
from zosam_jax.commands.compare import CompareConfig, compare

QUIET = Console(quiet=True)


def config_of(tmp_path, **options):
    chosen = {"optimizers": ("sam", "zo_sam"), "seeds": 2, "output": tmp_path / "run"} | options
    return CompareConfig(model="lenet-300-100", **chosen)


def read(path):
    return json.loads(path.read_text())


def test_a_comparison_is_a_sweep_of_the_options_that_were_given(tmp_path):
    config = config_of(tmp_path, radius="global", milestones=(0.5,), schedule="step", seeds=1)
    config = dataclasses.replace(config, data_dir=Path("DATA"))
    found = {cell.name: cell for cell in config.tables.cells()}
    assert list(found) == [f"optimizer={name},seed=0" for name in ("sgd", "sam", "zo_sam")]
    common = {"data_dir": Path("DATA"), "model": "lenet-300-100"}
    common |= {"schedule": "step", "milestones": (0.5,)}
    assert found["optimizer=sgd,seed=0"].options == {**common, "optimizer": "sgd", "seed": 0}
    assert found["optimizer=sam,seed=0"].options["radius"] == "global"


def test_each_optimizer_has_a_row(tmp_path, trained):
    config = config_of(tmp_path)
    rows = compare(config, QUIET)
    assert [row.optimizer for row in rows] == ["sgd", "sam", "zo_sam"]
    for row in rows:
        assert row.accuracy_mean == pytest.approx(np.mean(row.accuracies))
        assert row.accuracy_sd == pytest.approx(np.std(row.accuracies, ddof=1))
        assert row.gain == pytest.approx(np.mean(np.subtract(row.accuracies, rows[0].accuracies)))
    assert [row.time_ratio for row in rows] == [1.0, 2.0, 1.0]
    assert [row.rho for row in rows] == [0.0, 0.02, 0.4]
    assert rows[1].epsilon_norm == 0.5
    assert math.isnan(rows[1].slope)
    written = read(tmp_path / "run" / "compare.json")
    assert written[1]["accuracies"] == list(rows[1].accuracies)
    assert written[1]["slope"] is None
    assert compare(config, QUIET) == rows or len(trained) == 6  # NaN is not equal to itself
    assert len(trained) == 6


def test_tuning_spends_the_same_budget_on_everyone(tmp_path, trained):
    rows = compare(config_of(tmp_path, tune=True, tune_seeds=1, seeds=1), QUIET)
    told = read(tmp_path / "run" / "tuning.json")
    assert [len(choice["candidates"]) for choice in told] == [5, 5]
    for row, choice in zip(rows[1:], told, strict=True):
        best = max(choice["candidates"], key=lambda c: np.mean(c["validation_accuracies"]))
        assert row.rho == choice["chosen"]["rho"] == best["rho"]
    assert math.isnan(rows[1].accuracy_sd)


def test_a_run_that_diverges_is_a_result(tmp_path, trained):
    rows = compare(config_of(tmp_path, learning_rate=1e30), QUIET)
    assert all(math.isnan(row.accuracy_mean) for row in rows)
    assert [row["accuracies"] for row in read(tmp_path / "run" / "compare.json")] == 3 * [
        2 * [None]
    ]


def test_a_run_that_was_refused_ends_it(tmp_path, trained):
    with pytest.raises(compares.RefusedError, match="seed=13 is unlucky"):
        compare(config_of(tmp_path, seeds=14), QUIET)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--validation-fraction", "0.1"], "validation_fraction=0.1 is for train"),
        (["--optimizers", "adamw", "sam"], "adamw does not go with base_optimizer='sgd'"),
        (["--tune", "--tune-fraction", "1.5"], "tune_fraction=1.5 must be below 1"),
        (["--optimizers", "sam", "--num-directions", "2"], "num_directions=2 goes with zo_sam"),
        (["--output", "{folder}"], "is not empty, and nothing is overwritten"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(options, sentence, tmp_path, capsys):
    (tmp_path / "letter").write_text("not a run")
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", *(word.format(folder=tmp_path) for word in options)])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert sentence in " ".join((captured.out + captured.err).replace("│", " ").split())
