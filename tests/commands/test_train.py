"""`zosam train`: what a run folder holds, and that nothing in it is overwritten."""

import json
import math
import shutil

import pytest

from zosam_jax import cli
from zosam_jax.training import build

ONE = ["--mesh", "data=1"]  # the tests force four devices upon the CPU
SMALL = ["--model", "lenet-300-100", "--train-images", "128", "--epochs", "2", *ONE]
# One way of choosing masks before training and one while training; the others with -m slow.
SPARSE = [
    *("snip", "rigl"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("random", "magnitude", "grasp", "synflow", "set", "dsr", "mest", "svite")
    ),
]


def train(folder, *options):
    cli.main(["train", *SMALL, *options, "--output", str(folder)])
    return json.loads((folder / "summary.json").read_text())


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    train(folder, "--seed", "3")
    return folder


def test_a_run_folder_holds_what_is_promised(run):
    names = {path.name for path in run.iterdir()}
    files = {"config.json", "data.json", "metrics.jsonl", "summary.json"}
    assert names == files | {"masks.txt", "curves.png", "checkpoints"}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["optimizer"] == "zo_sam"
    assert summary["seed"] == 3
    assert summary["steps"] == 2 * (128 // 64)
    assert summary["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert summary["rho"] == build.default_rho("zo_sam", "layerwise")
    assert 0 < summary["test_accuracy"] <= 1
    assert summary["seconds"] > 0
    assert summary["images_per_second"] > 0
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_config_json_has_the_options_as_they_took_effect(run):
    config = json.loads((run / "config.json").read_text())
    assert (config["train_images"], config["radius"], config["rho"]) == (128, "layerwise", 0.4)
    assert (config["delta"], config["num_directions"], config["rho_warmup"]) == (1e-3, 1, 0.2)
    assert (config["sparsity_distribution"], config["momentum"]) == ("erk", 0.9)
    assert config["interval"] is None  # look_sam's
    assert {"jax", "jaxlib", "optax", "flax", "numpy", "zosam_jax"} == set(config["versions"])


def test_metrics_have_a_line_for_each_epoch(run):
    lines = metrics(run)
    assert [line["epoch"] for line in lines] == [1, 2]
    summary = json.loads((run / "summary.json").read_text())
    assert lines[-1]["test_accuracy"] == summary["test_accuracy"]
    assert all(math.isfinite(line["train_loss"]) for line in lines)


def test_the_same_seed_gives_the_same_run(run, tmp_path):
    train(tmp_path / "again", "--seed", "3")
    losses = [[line["train_loss"] for line in metrics(f)] for f in (run, tmp_path / "again")]
    assert losses[0] == losses[1]


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
        train(run, "--seed", "3", *options)
    assert caught.value.code == 2
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert (run / "summary.json").read_text() == before


def test_a_complete_run_is_left_as_it_is(run, capsys):
    before = (run / "summary.json").read_text()
    # Its defaults spelled out are the same options.
    train(run, "--seed", "3", "--radius", "layerwise", "--momentum", "0.9")
    assert "is complete" in " ".join(capsys.readouterr().out.split())
    assert (run / "summary.json").read_text() == before


def test_a_run_that_goes_on_under_other_versions_says_so(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["versions"]["optax"] = "0.0.1"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").unlink()
    train(folder, "--seed", "3")
    assert f"optax {build.optax.__version__} (was 0.0.1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "model", ["lenet-300-100", pytest.param("resnet8", marks=pytest.mark.slow)]
)
def test_pruned_weights_stay_zero_and_the_network_learns(model, tmp_path):
    options = ["--model", model, "--train-images", "640", "--epochs", "4"]
    summary = train(tmp_path / "run", *options)
    assert summary["test_accuracy"] > 0.5
    assert summary["sparsity"] == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("method", SPARSE)
@pytest.mark.slow
def test_every_sparse_method_reaches_the_sparsity_it_is_asked_for(method, tmp_path):
    options = ["--train-images", "256", "--epochs", "3", "--sparse", method, "--sparsity", "0.95"]
    summary = train(tmp_path / "run", *options)
    assert summary["sparse"] == method
    assert summary["sparsity"] == pytest.approx(0.95, abs=2e-5)
    # ZO-SAM's three forward passes and one backward, at a twentieth of the MACs and some.
    assert 5 / 3 * 0.05 * 0.99 < summary["training_cost"] < 5 / 3 * 0.35
    assert 0.05 * 0.99 < summary["inference_cost"] < 0.2
    table = (tmp_path / "run" / "masks.txt").read_text()
    assert "hidden1/kernel" in table
    assert "head/bias" in table


def test_the_dense_network_costs_what_it_costs(tmp_path):
    summary = train(tmp_path / "run", "--sparse", "none", "--optimizer", "sgd")
    assert (summary["sparse"], summary["sparsity"]) == ("none", 0)
    assert summary["training_cost"] == summary["inference_cost"] == pytest.approx(1)
    assert not (tmp_path / "run" / "masks.txt").exists()


def test_a_part_of_each_batch_is_counted_as_what_it_is(tmp_path, capsys):
    options = ["--sparse", "none", "--optimizer", "sam", "--batch-fraction", "0.5"]
    summary = train(tmp_path / "run", *options)
    assert "32 of the 64 examples of each batch" in " ".join(capsys.readouterr().out.split())
    assert summary["training_cost"] == pytest.approx(1)  # two passes on half of it
    assert (summary["step_examples"], summary["steps"], summary["examples"]) == (32, 4, 128)


@pytest.mark.slow
def test_the_test_split_is_looked_at_as_often_as_asked(tmp_path):
    train(tmp_path / "run", "--evaluate-every", "2", "--epochs", "3")
    accuracies = [line["test_accuracy"] for line in metrics(tmp_path / "run")]
    assert accuracies[0] is None
    assert min(accuracies[1:]) > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batch-size", "5000"], "batch_size=5000 is more than the 128 training images"),
        (["--sparsity", "0.99999"], "leaves no weight in"),
        (["--dataset", "fashion-mnist"], "pass --data-dir DIR"),
        (["--dataset", "mnist"], "dataset='mnist' is not known"),
        (["--validation-fraction", "0.0001"], "of 128 training images is 0"),
        (["--model", "deit-tiny"], "patch"),
        (["--num-processes", "2"], "need --coordinator"),
        (["--dataset", "fashion-mnist", "--data-dir", "/nowhere"], "holds neither train-images"),
        (["--sparse", "grasp", "--train-images", "70"], "that a balanced sample needs"),
        (["--shrink", "3"], "shrink=3 must divide"),
        (["--optimizer", "msam", "--microbatches", "3"], "microbatches=3 must divide"),
        (
            ["--optimizer", "msam", "--batch-fraction", "0.7"],
            "microbatches=2 must divide batch_size=64",
        ),
        (["--optimizer", "forward_gradient", "--accumulate", "2"], "accumulate=2 does not go"),
        (["--optimizer", "mezo", "--sparse", "rigl"], "sparse='rigl' grows masks by the gradient"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    arguments, sentence, capsys, tmp_path
):
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", *arguments)
    assert caught.value.code == 2
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "run").exists()
