"""The command line from the outside: run folders, tables, help and error sentences."""

import json
import math
import subprocess
import sys
import typing

import jax.numpy as jnp
import numpy as np
import pytest
from problems import mlp_batch, mlp_loss, mlp_params

from zosam_jax import cli
from zosam_jax.optimizers import ESTIMATORS, REGISTRY
from zosam_jax.training import build, config
from zosam_jax.training.config import CompareConfig, TrainConfig

ONE = ["--mesh", "data=1"]  # the tests force four devices upon the CPU
SMALL = ["--model", "lenet-300-100", "--train-images", "256", "--epochs", "2", *ONE]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    cli.main(["train", *SMALL, "--output", str(folder), "--seed", "3"])
    return folder


def read(path):
    return json.loads(path.read_text())


def test_a_run_folder_holds_what_is_promised(run):
    names = {path.name for path in run.iterdir()}
    files = {"config.json", "metrics.jsonl", "summary.json", "masks.txt", "curves.png"}
    assert names == files | {"checkpoints"}
    summary = read(run / "summary.json")
    assert summary["optimizer"] == "zo_sam"
    assert summary["seed"] == 3
    assert summary["steps"] == 2 * (256 // 64)
    assert summary["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert summary["rho"] == build.default_rho("zo_sam", "layerwise")
    assert 0 < summary["test_accuracy"] <= 1
    assert summary["seconds"] > 0
    assert summary["images_per_second"] > 0
    assert read(run / "config.json")["train_images"] == 256
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_have_a_line_for_each_epoch(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["test_accuracy"] == read(run / "summary.json")["test_accuracy"]
    assert all(math.isfinite(line["train_loss"]) for line in lines)


def test_the_same_seed_gives_the_same_run(run, tmp_path):
    cli.main(["train", *SMALL, "--output", str(tmp_path / "again"), "--seed", "3"])
    first, second = (
        [json.loads(line)["train_loss"] for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (run, tmp_path / "again")
    )
    assert first == second


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--epochs", "3"], "epochs=3 contradicts the run in"),
        (["--no-resume"], "nothing is overwritten"),
    ],
)
def test_nothing_is_overwritten(options, sentence, run, capsys):
    before = (run / "summary.json").read_text()
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *SMALL, "--seed", "3", "--output", str(run), *options])
    assert caught.value.code == 2
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert (run / "summary.json").read_text() == before


def test_a_complete_run_is_left_as_it_is(run, capsys):
    before = (run / "summary.json").read_text()
    cli.main(["train", *SMALL, "--seed", "3", "--output", str(run)])
    assert "is complete" in " ".join(capsys.readouterr().out.split())
    assert (run / "summary.json").read_text() == before


@pytest.mark.parametrize("model", ["lenet-300-100", "resnet8"])
def test_pruned_weights_stay_zero_and_the_network_learns(model, tmp_path):
    cli.main(
        [
            "train",
            "--model",
            model,
            "--train-images",
            "640",
            "--epochs",
            "4",
            *ONE,
            "--output",
            str(tmp_path / "run"),
        ]
    )
    summary = read(tmp_path / "run" / "summary.json")
    assert summary["test_accuracy"] > 0.5
    assert summary["sparsity"] == pytest.approx(0.9, abs=1e-4)


def test_every_registered_transformation_is_on_the_command_line():
    names = set(typing.get_args(config.OptimizerName))
    assert names == {"sgd", "adamw", *REGISTRY, *ESTIMATORS}
    for name in REGISTRY:
        for radius in typing.get_args(config.RadiusName):
            grid = build.rho_grid(name, radius)
            assert len(grid) == 5
            assert list(grid) == sorted(grid)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--optimizer", "gsam", "--fraction", "0.5"], "fraction=0.5 goes with sam, subbatch_sam"),
        (["--optimizer", "msam", "--microbatches", "3"], "microbatches=3 must divide"),
        (["--optimizer", "forward_gradient", "--accumulate", "2"], "accumulate=2 does not go"),
        (["--optimizer", "mezo", "--sparse", "rigl"], "sparse='rigl' grows masks by the gradient"),
    ],
)
def test_options_that_do_not_suit_the_optimizer_are_refused(options, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *SMALL, *options, "--output", str(tmp_path / "run")])
    assert caught.value.code == 2
    assert sentence in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("steps", [0, 10])
def test_the_radius_warms_up(steps):
    options = config.TrainConfig(rho_warmup=0.5 if steps else 0.0, radius="global")
    tx = build.sharpness_aware_part(options, "random_weight_perturbation", 0.4, 0, 2 * steps)
    state = tx.init(mlp_params())
    lengths = []
    for count in (0, 5, 10, 20):
        state = state._replace(count=jnp.asarray(count))
        _, after = tx.update(None, state, mlp_params(), value_fn=mlp_loss, **mlp_batch())
        lengths.append(float(after.diagnostics.epsilon_norm))
    expected = [0.0, 0.2, 0.4, 0.4] if steps else [0.4] * 4
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    fields = (TrainConfig if command == "train" else CompareConfig).__dataclass_fields__
    for name in fields:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "0"], "epochs=0 must be at least 1"),
        (["--sparsity", "1.0"], "sparsity=1.0 must be below 1"),
        (["--rho", "-1"], "rho=-1.0 must be a finite number at least 0"),
        (["--model", "vgg"], "vgg"),
        (["--batch-size", "5000"], "batch_size=5000 is more than the 1437 training images"),
        (["--sparsity", "0.99999"], "leaves no weight in"),
        (["--dataset", "fashion-mnist"], "pass --data-dir DIR"),
        (["--dataset", "mnist"], "dataset='mnist' is not known"),
        (["--validation-fraction", "0.0001"], "of 1437 training images is 0"),
        (["--sparse-layers", "("], "is not a regular expression"),
        (["--seed", "-1"], "seed=-1 must be"),
        (["--schedule", "step", "--milestones", "0.01", "0.5"], "must come after warmup=0.05"),
        (["--final-learning-rate", "0.2"], "must be at most learning_rate=0.1"),
        (["--model", "deit-tiny"], "patch"),
        (["--patch", "4"], "patch=4 goes with deit-micro, deit-tiny and"),
        (["--mixup", "-1"], "mixup=-1.0 must be"),
        (["--accumulate", "3"], "accumulate=3 must divide batch_size=64"),
        (["--randaugment"], "randaugment=True needs stream"),
        (["--recipe", ""], "recipe='' is not known"),
        (["--num-processes", "2"], "need --coordinator"),
        (["--dataset", "fashion-mnist", "--data-dir", "/nowhere"], "holds neither train-images"),
    ],
)
def test_a_wrong_option_ends_in_a_sentence(arguments, sentence, capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *arguments, "--output", str(tmp_path / "run")])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).replace("│", " ").split())
    assert sentence in text
    assert not (tmp_path / "run").exists()


def test_a_bare_import_needs_neither_flax_nor_the_extras():
    code = (
        "import sys, zosam_jax; "
        "print([m for m in ('flax', 'sklearn', 'tyro', 'rich', 'matplotlib') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"


TINY = ["--model", "lenet-300-100", "--train-images", "256", "--epochs", "3", *ONE]
SPARSE = ["random", "magnitude", "snip", "grasp", "synflow", "set", "dsr", "rigl", "mest", "svite"]


@pytest.mark.parametrize("method", SPARSE)
def test_every_sparse_method_reaches_the_sparsity_it_is_asked_for(method, tmp_path):
    options = ["--sparse", method, "--sparsity", "0.95", "--output", str(tmp_path / "run")]
    cli.main(["train", *TINY, *options])
    summary = read(tmp_path / "run" / "summary.json")
    assert summary["sparse"] == method
    assert summary["sparsity"] == pytest.approx(0.95, abs=2e-5)
    # ZO-SAM's three forward passes and one backward, at a twentieth of the MACs and some.
    assert 5 / 3 * 0.05 * 0.99 < summary["training_cost"] < 5 / 3 * 0.35
    assert 0.05 * 0.99 < summary["inference_cost"] < 0.2
    table = (tmp_path / "run" / "masks.txt").read_text()
    assert "hidden1/kernel" in table
    assert "head/bias" in table


@pytest.mark.parametrize(("optimizer", "passes"), [("sgd", 3), ("zo_sam", 5)])
def test_lottery_tickets_are_trained_in_rounds(optimizer, passes, tmp_path, capsys):
    options = ["--sparse", "lth", "--lottery-levels", "2", "--rewind-epochs", "1"]
    options += ["--optimizer", optimizer, "--output", str(tmp_path / "run")]
    cli.main(["train", *TINY, *options])
    summary = read(tmp_path / "run" / "summary.json")
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


def test_the_dense_network_costs_what_it_costs(tmp_path):
    options = ["--sparse", "none", "--optimizer", "sgd", "--output", str(tmp_path / "run")]
    cli.main(["train", *TINY, *options])
    summary = read(tmp_path / "run" / "summary.json")
    assert (summary["sparse"], summary["sparsity"]) == ("none", 0)
    assert summary["training_cost"] == summary["inference_cost"] == pytest.approx(1)
    assert not (tmp_path / "run" / "masks.txt").exists()


def test_the_test_split_is_looked_at_as_often_as_asked(tmp_path):
    options = ["--evaluate-every", "2", "--output", str(tmp_path / "run")]
    cli.main(["train", *TINY, *options])
    lines = [
        json.loads(line)["test_accuracy"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[0] is None
    assert lines[1] > 0
    assert lines[2] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparse", "set", "--sparsity", "0.99999"], "leaves no weight in"),
        (
            ["--sparse", "synflow", "--sparsity-distribution", "erk"],
            "does not go with synflow, whose budget is global",
        ),
        (["--sparse", "grasp", "--train-images", "70"], "that a balanced sample needs"),
        (["--sparse", "lth", "--rewind-epochs", "3"], "rewind_epochs=3 must be at least 0"),
        (["--sparse", "lth", "--lottery-levels", "0"], "lottery_levels=0"),
        (["--shrink", "3"], "shrink=3 must divide"),
    ],
)
def test_impossible_sparse_options_end_with_a_sentence(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *TINY, *options, "--output", str(tmp_path / "run")])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert message in " ".join((captured.out + captured.err).replace("│", " ").split())
    assert not (tmp_path / "run").exists()
