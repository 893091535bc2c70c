"""`zosam analyze` on runs: what it writes is what the analyses say of the same network."""

import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zosam_jax import cli
from zosam_jax.analysis import hessian
from zosam_jax.commands import analyze
from zosam_jax.commands.analyze import AnalyzeConfig
from zosam_jax.training import pictures, step
from zosam_jax.training.saved_run import opener

ONE = ["--mesh", "data=1"]
SMALL = ["--model", "lenet-300-100", "--train-images", "256", "--epochs", "4", *ONE]
LOOK = [
    *("--images", "128", "--batch-size", "64", "--eigenvalues", "2", "--lanczos-steps", "6"),
    *("--samples", "2", "--ascent-steps", "2", "--points", "5", "--plane-points", "3"),
]


def trained(folder, *options):
    cli.main(["train", *SMALL, "--keep-every", "2", "--output", str(folder), *options])
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyze") / "run"
    trained(folder, "--sparse", "set", "--optimizer", "sam")
    cli.main(["analyze", str(folder), *LOOK])
    return folder


@pytest.fixture(scope="module")
def found(run):
    return json.loads((run / "analysis.json").read_text())


@pytest.mark.slow
def test_it_leaves_numbers_and_pictures(run, found):
    assert set(found) >= {"checkpoints", "hessian", "sharpness", "surface", "images"}
    assert (run / "analysis.png").read_bytes().startswith(b"\x89PNG")
    assert not (run / "features.png").exists()  # lenet-300-100 has no blocks


@pytest.mark.slow
def test_the_variance_is_that_of_the_steps_own_batches(run, found):
    assert [look["epoch"] for look in found["checkpoints"]][-1] == 4
    assert {2, 4} <= {look["epoch"] for look in found["checkpoints"]}
    with opener()(run) as saved:
        problem, state = saved.run.problem, saved.run.state
        images, labels = problem.feed.raw(0, 128)
        loss = step.value_fn(problem, state)
        gradients = []
        for part in (slice(0, 64), slice(64, 128)):
            examples = problem.as_examples(jnp.asarray(images[part]), jnp.asarray(labels[part]))
            gradient = jax.grad(loss)(state.params, examples)
            gradients.append(np.concatenate([g.ravel() for g in jax.tree.leaves(gradient)]))
    expected = np.sum(np.var(gradients, axis=0, ddof=1))
    noise = found["checkpoints"][-1]["gradient_variance"]
    assert noise["variance"] == pytest.approx(expected, rel=1e-3)
    assert noise["num_batches"] == 2


@pytest.mark.slow
def test_sams_climb_is_aimed_and_the_variance_at_its_end_another(found):
    last = found["checkpoints"][-1]
    # layerwise: the gradient of each array, at another length
    assert 0.5 < last["estimator"]["cosine"] <= 1
    assert last["estimator"]["ascent_gain"] > 0
    noises = [last[n]["variance"] for n in ("gradient_variance", "perturbed_gradient_variance")]
    assert noises[0] != noises[1]


@pytest.mark.slow
def test_the_spectrum_is_that_of_the_network_in_inference(run, found):
    with opener()(run) as saved:
        problem, state = saved.run.problem, saved.run.state
        images, labels = map(jnp.asarray, problem.feed.raw(0, 128))
        loss = problem.score_loss(state.model_state, training=False)
        whole = hessian.spectrum(
            lambda params, batch: loss(params, *batch),
            state.params,
            [(images, labels)],
            mask=saved.run.masks,
            num_eigenvalues=2,
            num_steps=6,
        )
    np.testing.assert_allclose(found["hessian"]["eigenvalues"], whole.eigenvalues, rtol=1e-3)


@pytest.mark.slow
def test_lines_and_plane_go_through_the_weights(run, found):
    with opener()(run) as saved:
        loss = saved.run.problem.score_loss(saved.run.state.model_state, training=False)
        at = float(
            loss(saved.run.state.params, *map(jnp.asarray, saved.run.problem.feed.raw(0, 128)))
        )
    surface = found["surface"]
    assert surface["distances"] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert surface["random"][2] == pytest.approx(at, rel=1e-5)
    assert surface["hessian"][2] == pytest.approx(at, rel=1e-5)
    assert surface["plane"]["losses"][1][1] == pytest.approx(at, rel=1e-5)
    assert surface["plane"]["losses"][1][2] == pytest.approx(surface["random"][4], rel=1e-4)


@pytest.mark.slow
def test_the_worst_rise_is_above_the_average(found):
    nearby = found["sharpness"]
    assert nearby["worst_rise"] > 0
    assert nearby["adaptive_worst_rise"] > 0
    assert math.isfinite(nearby["average_rise"])


@pytest.mark.slow
def test_other_parts_than_asked_for_stay(run, found):
    cli.main(["analyze", str(run), *LOOK, "--parts", "hessian", "--eigenvalues", "1"])
    again = json.loads((run / "analysis.json").read_text())
    assert len(again["hessian"]["eigenvalues"]) == 1
    assert again["checkpoints"] == found["checkpoints"]


@pytest.mark.slow
def test_parts_that_looked_otherwise_go(run, found):
    cli.main(["analyze", str(run), *LOOK, "--parts", "sharpness", "--statistics", "batch"])
    again = json.loads((run / "analysis.json").read_text())
    assert "hessian" not in again
    (run / "analysis.json").write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--images", "512", "--batch-size", "64"], "images=512 is more than the 256 training"),
        (["--images", "64", "--batch-size", "64"], "images=64 must be at least two of the run's"),
        (["--batch-size", "257"], "batch_size=257 is more than the 256 training images"),
    ],
)
def test_given_values_that_do_not_fit(options, sentence, run, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["analyze", str(run), *options])
    assert caught.value.code == 2
    said = " ".join(capsys.readouterr().out.split())
    assert sentence in said
    assert str(run) in said


def test_numbers_that_are_not_finite_can_be_drawn(tmp_path):
    noise = {"variance": None}
    found = {
        "checkpoints": [{"round": 0, "epoch": 1, "gradient_variance": noise}],
        "hessian": {"eigenvalues": [1.0, None], "trace": 2.0, "trace_error": None},
        "surface": {
            "distances": [-1.0, 0.0, 1.0],
            "random": [None, 1.0, 2.0],
            "hessian": [2.0, 1.0, 2.0],
            "plane": {"xs": [0.0, 1.0], "ys": [0.0, 1.0], "losses": [[1.0, None], [2.0, 3.0]]},
        },
    }
    pictures.analysis(tmp_path / "analysis.png", found, "title")
    assert (tmp_path / "analysis.png").stat().st_size > 0


@pytest.mark.slow
def test_a_dense_run_of_a_plain_optimizer(tmp_path):
    folder = trained(tmp_path / "run", "--sparse", "none", "--optimizer", "sgd")
    cli.main(["analyze", str(folder), *LOOK, "--parts", "variance", "hessian", "surface"])
    found = json.loads((folder / "analysis.json").read_text())
    assert "estimator" not in found["checkpoints"][-1]
    assert found["hessian"]["eigenvalues"][0] > 0
    assert not (folder / "features.png").exists()


@pytest.mark.long
@pytest.mark.slow
def test_a_residual_network_shows_three_blocks_and_takes_either_statistics(tmp_path):
    run = trained(tmp_path / "run", "--optimizer", "sgd", "--model", "resnet8", "--epochs", "1")
    look = [*LOOK, "--points", "3", "--plane-points", "0", "--lanczos-steps", "2"]
    at = {}
    for statistics in ("running", "batch"):
        options = ("--parts", "surface", "features", "--statistics", statistics)
        cli.main(["analyze", str(run), *look, *options])
        at[statistics] = json.loads((run / "analysis.json").read_text())["surface"]["random"][1]
    assert (run / "features.png").read_bytes().startswith(b"\x89PNG")
    with opener()(run) as saved:
        state, problem = saved.run.state, saved.run.problem
        images, labels = map(jnp.asarray, problem.feed.raw(0, 128))
        for statistics, found in at.items():
            loss = problem.score_loss(state.model_state, training=statistics == "batch")
            halves = (slice(64), slice(64, 128))
            parts = [float(loss(state.params, images[s], labels[s])) for s in halves]
            assert found == pytest.approx(sum(parts) / 2, rel=1e-5)
    assert at["running"] != pytest.approx(at["batch"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"images": 100, "batch_size": 64}, "batch_size=64 must divide images=100"),
        ({"rho": 0.0}, "rho=0.0 must be"),
        ({"points": 1}, "points=1 must be at least 2"),
        ({"plane_points": -1}, "plane_points=-1 must be at least 2"),
        ({"samples": 1}, "samples=1 must be at least 2"),
        ({"eigenvalues": 5, "lanczos_steps": 4}, "eigenvalues=5 must be at most lanczos_steps=4"),
        ({"images": 0}, "images=0 must be at least 1"),
        ({"layers": "("}, r"layers='\(' is not a regular expression"),
        ({"runs": ()}, r"runs=\(\) must name at least one"),
    ],
)
def test_wrong_options(options, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        AnalyzeConfig(**{"runs": (tmp_path,), **options})


@pytest.mark.parametrize(
    ("there", "own", "options", "expected"),
    [
        (60_000, 64, {}, (1000, 250)),
        (60_000, 1024, {}, (2052, 228)),
        (514, 257, {}, (514, 257)),
        (600, 64, {}, (600, 200)),
        (997, 64, {}, (996, 249)),
        (100, 64, {}, (100, 100)),
        (600, 64, {"batch_size": 128}, (512, 128)),
        (600, 64, {"images": 300}, (300, 150)),
    ],
)
def test_defaults_fit_the_data(there, own, options, expected, tmp_path):
    saved = SimpleNamespace(
        config=SimpleNamespace(batch_size=own),
        run=SimpleNamespace(
            problem=SimpleNamespace(feed=SimpleNamespace(info=SimpleNamespace(train_images=there)))
        ),
    )
    fitted = analyze._fitted(AnalyzeConfig(runs=(tmp_path,), **options), saved)
    assert (fitted.images, fitted.batch_size) == expected
    assert fitted.images % fitted.batch_size == 0
    assert ("variance" in fitted.parts) == (there >= 2 * own)


def test_a_prime_number_of_images_has_no_batch_size(tmp_path):
    with pytest.raises(ValueError, match="images=997 has no divisor from 25 to 250"):
        analyze._divisor(997)


def test_a_folder_without_a_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["analyze", str(tmp_path)])
    assert caught.value.code == 2
    assert "is neither a run folder" in capsys.readouterr().out
