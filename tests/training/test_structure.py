"""Runs that remove whole units: smaller arrays from then on, and all that goes on with them."""

import io
import json
import re

import flax.linen
import jax
import numpy as np
import pytest
from rich.console import Console
from small_runs import QUIET, CrashError, crashing, metrics, options, run_once

import zosam_jax
from zosam_jax import cli, sparsity
from zosam_jax.commands.bench.command import BenchConfig
from zosam_jax.training import contents
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.problem import Problem
from zosam_jax.training.progress import Progress
from zosam_jax.training.trainer import Run

NEURONS = {"structure": "neurons", "sparsity": 0.5, "optimizer": "sgd"}
CASES = {
    "before training": {**NEURONS, "sparse": "magnitude"},
    "gradually": {**NEURONS, "sparse": "gmp", "ema_decay": 0.9, "epochs": 4},
    "dropped and regrown": {**NEURONS, "sparse": "s2vite", "structure": None, "optimizer": "sam"},
    "heads": {
        "model": "deit-micro",
        "patch": 4,
        "drop_path": 0.2,
        "optimizer": "adamw",
        "sparse": "gmp",
        "sparsity": 0.5,
        "structure": "heads,neurons",
        "epochs": 4,
    },
    "slimming": {**NEURONS, "sparse": "slimming", "ema_decay": 0.9},
    "early-bird": {**NEURONS, "sparse": "early-bird", "search_epochs": 2},
    "channels": {"model": "resnet8", "sparse": "taylor", "structure": "channels", "sparsity": 0.5},
}


def summary(path):
    return json.loads((path / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_killed_before_and_after_units_go_is_the_same_run(
    case, tmp_path, monkeypatch
):
    given = options(**CASES[case])
    whole = TrainConfig(output=tmp_path / "whole", **given)
    run_once(whole)
    config = TrainConfig(output=tmp_path / "broken", **given)
    for after in (3, 7, 3):
        with monkeypatch.context() as patch:
            crashing(patch, after)
            with pytest.raises(CrashError):
                run_once(config)
    run_once(config)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    states = []
    for path in (whole.output, config.output):
        with zosam_jax.open_run(path) as run:
            states.append(run.run.state._replace(model_state=None))
            assert run.run.progress.kept is not None
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.fixture(scope="module")
def gradual(tmp_path_factory):
    path = tmp_path_factory.mktemp("structure") / "run"
    console = Console(record=True, width=200, file=io.StringIO())
    given = options(**{**CASES["gradually"], "checkpoint_minutes": 5.0})
    result = zosam_jax.fit(
        given.pop("model"),
        "digits",
        output=path,
        console=console,
        keep_every=1,
        **given,
    )
    return result, path, console.export_text()


def test_half_of_the_neurons_go_and_the_rest_is_told(gradual):
    result, path, text = gradual
    assert result.masks is None
    assert result.model.hidden1.kernel.shape == (64, 150)
    assert result.model.hidden1.out_features == 150
    assert result.model.hidden2.kernel.shape == (150, 50)
    found = summary(path)
    assert found["parameters"] == 64 * 150 + 150 + 150 * 50 + 50 + 50 * 10 + 10
    assert found["dense_parameters"] == 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    # Of the dense network: the sizes of the three products.
    products, whole = 64 * 150 + 150 * 50 + 50 * 10, 64 * 300 + 300 * 100 + 100 * 10
    assert found["inference_cost"] == pytest.approx(products / whole)
    covered = found["dense_parameters"] - 10
    assert found["sparsity"] == pytest.approx(1 - (found["parameters"] - 10) / covered)
    assert "left after 12 steps: 200 of 400 neurons; 17,810 of 50,610 parameters" in text
    assert "where it was" in text


@pytest.mark.parametrize("sparse", ["magnitude", "gmp"])
@pytest.mark.parametrize("budget", ["weights", "macs"])
def test_a_budget_may_be_of_weights_or_multiply_adds(sparse, budget, tmp_path):
    given = {**NEURONS, "sparse": sparse, "sparsity_budget": budget, "epochs": 4}
    given = options(**given, sparsity_distribution="global")
    model = zosam_jax.fit(given.pop("model"), "digits", output=None, console=QUIET, **given).model
    kernels = [model.hidden1.kernel, model.hidden2.kernel, model.head.kernel]
    left, whole = sum(kernel.size for kernel in kernels), 64 * 300 + 300 * 100 + 100 * 10
    if budget == "weights":  # of all that a unit is part of, its bias among it
        left += sum(kernel.shape[1] for kernel in kernels[:2])
        whole += 400
    assert 0.49 < left / whole <= 0.5


def test_removing_units_changes_no_output(gradual):
    _, path, _ = gradual
    with zosam_jax.open_run(path) as after:
        steps = after.checkpoints
    assert len(steps) > 2
    config = TrainConfig(output=None, **options(**CASES["gradually"]))
    run = Run(Problem(config), "sgd", 0.0, 0)
    masks = sparsity.magnitude(run.state.params, 0.5, units=run.problem.units)
    masked = sparsity.apply_masks(run.state.params, masks)
    run.state = run.state._replace(
        params=masked, opt_state=run.state.opt_state._replace(masks=masks)
    )
    images = run.problem.inputs(3) + 1.0
    before = run.problem.apply(run.network.params, run.network.model_state, images)
    run.compact()
    after = run.problem.apply(run.network.params, run.network.model_state, images)
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_checkpoints_of_either_size_are_opened_in_turn(gradual):
    _, path, _ = gradual
    with zosam_jax.open_run(path) as run:
        first, *_, last = run.checkpoints
        sizes = []
        for number in (last, first, last):
            run.restore(number)
            sizes.append(run.model.hidden1.kernel.shape[1])
            assert run.predict(np.zeros((2, 8, 8, 1), np.uint8)).shape == (2, 10)
    assert sizes == [150, 300, 150]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"structure": "heads"}, "structure='heads', model='lenet-300-100'"),
        ({"structure": "neurons,heads"}, "no heads to be removed, but neurons"),
        (
            {"structure": "neurons", "sparsity_budget": "macs", "sparsity": 0.999},
            "cannot be reached",
        ),
        ({"sparsity_budget": "macs"}, "goes with structure and sparse=random, magnitude"),
        ({"structure": "filters"}, "structure='filters' is not known; choose one of 'channels'"),
        ({"structure": "neurons", "sparsity": 0.999}, "sparsity=0.999"),
        ({"structure": "neurons", "sparse": "rigl"}, "goes with sparse=random, magnitude"),
        ({"structure": "neurons", "sparse": "none", "sparsity": 0.0}, "a dense network"),
        ({"structure": "neurons", "sparsity_distribution": "erk"}, "units go uniform or global"),
        ({"structure": "neurons", "sparse_layers": "head"}, "sparse_layers='head' finds no kernel"),
    ],
)
def test_what_cannot_be_removed_is_said_before_anything_is_computed(given, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)):
        zosam_jax.fit(
            "lenet-300-100",
            "digits",
            output=tmp_path / "run",
            console=QUIET,
            **{"sparse": "magnitude", "sparsity": 0.5, **given},
        )


@pytest.mark.slow
def test_an_early_bird_searches_and_begins_anew(tmp_path):
    given = options(**CASES["early-bird"])
    path = tmp_path / "run"
    result = zosam_jax.fit(given.pop("model"), "digits", output=path, console=QUIET, **given)
    assert [(r.round, r.epoch) for r in result.history] == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    found = summary(path)
    # The search on the whole network, then the smaller one.
    assert found["training_cost"] == pytest.approx(2 / 3 + found["inference_cost"])
    with zosam_jax.open_run(path) as run:
        kept = run.run.progress.kept
        assert run.best > 2 * 4
    assert sum(map(len, kept.values())) == 200
    problem = Problem(TrainConfig(**options(**CASES["early-bird"])))
    run = Run(problem, "sgd", 0.0, 0)
    run.resume(run.state, run.progress._replace(kept=None), [])
    smaller = run.like(run.progress._replace(kept=kept))
    whole = problem.init(0).params["hidden1"]["kernel"]
    kernel = smaller.params["hidden1"]["kernel"]
    np.testing.assert_array_equal(kernel, whole[:, kept["['hidden1']"]])


@pytest.mark.slow
def test_the_same_units_go_on_several_devices(tmp_path):
    kept = []
    for devices in (1, 4):
        given = {**options(**CASES["early-bird"]), "mesh": f"data={devices}"}
        path = tmp_path / str(devices)
        zosam_jax.fit(given.pop("model"), "digits", output=path, console=QUIET, **given)
        with zosam_jax.open_run(path) as run:
            kept.append(run.run.progress.kept)
            assert run.model.hidden1.kernel.shape[1] == len(kept[-1]["['hidden1']"])
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_a_smaller_network_is_exported_and_analysed(gradual, tmp_path):
    _, path, _ = gradual
    words = ["--output", str(tmp_path / "export"), "--images", "20"]
    cli.main(["export", str(path), *words, "--format", "stablehlo", "safetensors"])
    record = json.loads((tmp_path / "export" / "export.json").read_text())
    assert (record["parameters"], record["dense_parameters"]) == (17_810, 50_610)
    assert (tmp_path / "export" / "model.safetensors").stat().st_size < 5 * 17_810
    cli.main(["analyze", str(path), "--parts", "sharpness", "--images", "20"])
    cli.main(["report", str(path), "--output", str(tmp_path / "report")])


class Hidden(flax.linen.Module):
    """A Linen network, which names its widths."""

    num_classes: int = 10

    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.relu(flax.linen.Dense(8)(x.reshape(len(x), -1)))
        return flax.linen.Dense(self.num_classes)(x)


def test_a_network_that_names_its_widths_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not run with smaller arrays"):
        zosam_jax.fit(
            Hidden(),
            "digits",
            output=tmp_path / "run",
            console=QUIET,
            **{"sparse": "magnitude", **NEURONS},
        )


def test_checkpoints_of_earlier_versions_have_all_units():
    record = Progress(epoch=3)._asdict()
    del record["kept"]
    contents.check("progress", record, Progress)
    del record["step"]
    with pytest.raises(ValueError, match=r"it lacks progress\.step"):
        contents.check("progress", record, Progress)


def test_a_search_is_not_measured_step_by_step():
    with pytest.raises(ValueError, match="bench measures steps, not a search"):
        BenchConfig(sparse="early-bird", sparsity=0.5)
