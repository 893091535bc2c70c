"""`zosam evaluate` against numbers worked out by hand, on runs trained for a moment."""

import io
import json
import re
import sys

import numpy as np
import pytest
from rich.console import Console

from zosam_jax import cli, data
from zosam_jax.commands import evaluate as module
from zosam_jax.commands.evaluate import EvaluateConfig, evaluate
from zosam_jax.data import Dataset, Split
from zosam_jax.data import dataset as datasets
from zosam_jax.training.saved_run import open_run

SMALL = ["--model", "lenet-300-100", "--epochs", "2", "--mesh", "data=1"]
CELLS = {"only": ("contrast", "gaussian_noise"), "severities": (5, 1)}

needs_library = pytest.mark.usefixtures("library")


@pytest.fixture
def library():
    return pytest.importorskip("imagecorruptions", reason="needs zosam_jax[robustness]")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the digits, the second one on their halves in size and with other weights."""
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("whole", "half")]
    cli.main(["train", *SMALL, "--output", str(folders[0])])
    cli.main(["train", *SMALL, "--output", str(folders[1]), "--shrink", "2", "--seed", "1"])
    return folders


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100)


def read(folder):
    return json.loads((folder / "robustness.json").read_text())


def by_hand(folder, split, shrink=1):
    """The accuracy by a loop of its own over the split, in pixel values that NumPy has scaled."""
    with open_run(folder) as saved:
        pass
    problem, network = saved.run.problem, saved.run.network
    images = split.images.astype(np.float64)
    n, height, width, channels = images.shape
    blocks = images.reshape(n, height // shrink, shrink, width // shrink, shrink, channels)
    images = np.rint(blocks.mean(axis=(2, 4)))
    images = (images - problem.feed.info.pixel_mean) / problem.feed.info.pixel_sd
    outputs = problem.apply(network.params, network.model_state, images.astype(np.float32))
    return float(np.mean(np.argmax(outputs, axis=-1) == split.labels))


@needs_library
@pytest.mark.slow
def test_the_accuracies_are_those_by_hand(runs, console):
    config = EvaluateConfig(runs=tuple(runs), images=100, seed=4, **CELLS)
    results = evaluate(config, console)
    clean = data.load("digits").test.take(np.arange(100))
    for folder, shrink, result in zip(runs, (1, 2), results, strict=True):
        assert result.clean_accuracy == pytest.approx(by_hand(folder, clean, shrink))
        for corruption in ("gaussian_noise", "contrast"):
            expected = [
                by_hand(folder, data.corrupt(clean, corruption, s, seed=4, white=16), shrink)
                for s in (1, 5)
            ]
            assert result.corruptions[corruption] == pytest.approx(expected)
        mean = sum(sum(own) for own in result.corruptions.values()) / 4
        assert result.mean_accuracy == pytest.approx(mean)
        assert result.delta == pytest.approx(result.clean_accuracy - mean)
        assert result.delta > 0


@needs_library
@pytest.mark.slow
def test_the_file_and_the_table(runs, console):
    (result,) = evaluate(EvaluateConfig(runs=(runs[0],), images=50, **CELLS), console)
    content = read(runs[0])
    assert content == json.loads(json.dumps(result._asdict()))
    assert list(content["corruptions"]) == ["gaussian_noise", "contrast"]
    assert content["severities"] == [1, 5]
    assert content["images"] == 50
    assert content["source"].startswith("imagecorruptions-imaug ")
    assert content["checkpoint"] == json.loads((runs[0] / "summary.json").read_text())["steps"]
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    noise = 100 * sum(result.corruptions["gaussian_noise"]) / 2
    assert ["gaussian_noise", f"{noise:.2f}"] in lines
    assert ["Δ", f"{100 * result.delta:.2f}"] in lines
    assert ["test", "images", "50"] in lines


@needs_library
@pytest.mark.slow
def test_the_clean_accuracy_is_the_runs_own(runs, console):
    (result,) = evaluate(
        EvaluateConfig(runs=(runs[0],), only=("contrast",), severities=(1,)), console
    )
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert result.images == 360
    assert result.clean_accuracy == pytest.approx(summary["test_accuracy"])


@needs_library
@pytest.mark.slow
def test_runs_on_the_same_images_share_the_copies(runs, console, monkeypatch):
    made = []

    def counted(split, corruption, severity, **options):
        made.append((corruption, severity))
        return data.corrupt(split, corruption, severity, **options)

    monkeypatch.setattr(module, "corrupt", counted)
    monkeypatch.setattr(module, "_RUNS_A_TABLE", 1)
    results = evaluate(EvaluateConfig(runs=(*runs, runs[0]), images=20, **CELLS), console)
    assert made == [(c, s) for c in ("gaussian_noise", "contrast") for s in (1, 5)]
    assert len(results) == 2  # each run once
    headings = re.findall(r"corruption +(\w+)", console.file.getvalue())
    assert headings == ["whole", "half"]


@needs_library
@pytest.mark.slow
def test_the_best_checkpoint(runs, console):
    with open_run(runs[0]) as saved:
        best = saved.best
    config = EvaluateConfig(
        runs=(runs[0],), checkpoint="best", only=("contrast",), severities=(1,), images=9
    )
    (result,) = evaluate(config, console)
    assert result.checkpoint == best


@needs_library
@pytest.mark.slow
def test_nothing_is_written_before_the_last_number(runs, console, monkeypatch):
    evaluate(EvaluateConfig(runs=(runs[0],), images=10, **CELLS), console)
    before = read(runs[0])

    def failing(split, corruption, severity, **options):
        if severity == 5:
            raise KeyboardInterrupt
        return data.corrupt(split, corruption, severity, **options)

    monkeypatch.setattr(module, "corrupt", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(EvaluateConfig(runs=(runs[0],), images=20, **CELLS), console)
    assert read(runs[0]) == before


@pytest.fixture(scope="module")
def photographs():
    """A data set in CIFAR-10's shape; the images of each class are of its own brightness."""
    rng = np.random.default_rng(0)

    def split(count):
        labels = (np.arange(count) % 10).astype(np.int32)
        brightness = 20 * labels[:, None, None, None]
        images = brightness + rng.integers(40, size=(count, 32, 32, 3))
        return Split(images.astype(np.uint8), labels)

    return datasets.from_splits(split(200), split(30), num_classes=10)


@pytest.fixture
def cifar_run(photographs, tmp_path, monkeypatch):
    """A run on cifar10, and CIFAR-10-C's files: at severity s, noise added to s times 1/10."""
    monkeypatch.setitem(data.DATASETS, "cifar10", lambda data_dir: Dataset(*photographs))
    cli.main(["train", *SMALL, "--dataset", "cifar10", "--output", str(tmp_path / "run")])
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    rng = np.random.default_rng(1)
    test = photographs.test
    blocks = [
        np.where(rng.random(test.images.shape) < s / 10, 255 - test.images, test.images)
        for s in (1, 2, 3, 4, 5)
    ]
    np.save(folder / "fog.npy", np.concatenate(blocks))
    np.save(folder / "labels.npy", np.tile(test.labels.astype(np.uint8), 5))
    return tmp_path / "run"


@pytest.mark.slow
def test_cifar10_c_is_read_from_its_files(cifar_run, photographs, console, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)  # it is not asked for
    files = cifar_run.parent
    config = EvaluateConfig(runs=(cifar_run,), cifar10_c=files, only=("fog",), images=20)
    (result,) = evaluate(config, console)
    first = np.arange(20)
    assert result.source == "CIFAR-10-C"
    assert result.clean_accuracy == pytest.approx(by_hand(cifar_run, photographs.test.take(first)))
    expected = [
        by_hand(cifar_run, data.cifar10_c(files, "fog", s).take(first)) for s in (1, 2, 3, 4, 5)
    ]
    assert result.corruptions == {"fog": pytest.approx(expected)}
    assert len(set(expected)) > 1


@pytest.mark.slow
def test_cifar10_c_of_other_images_is_refused(cifar_run, console):
    path = cifar_run.parent / "CIFAR-10-C" / "labels.npy"
    np.save(path, np.roll(np.load(path), 1))
    config = EvaluateConfig(runs=(cifar_run,), cifar10_c=cifar_run.parent, only=("fog",))
    with pytest.raises(ValueError, match="holds other images than the test split"):
        evaluate(config, console)
    assert not (cifar_run / "robustness.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": ()}, "runs=() is empty: name at least one."),
        ({"only": ()}, "only=() is empty: name at least one."),
        ({"only": ("fog", "rain")}, "corruption='rain' is not known; choose one of"),
        ({"severities": (1, 6)}, "severity=6 must be one of 1, 2, 3, 4, 5."),
        ({"images": 0}, "images=0 must be at least 1."),
        ({"seed": -1}, "seed=-1 must be a finite number at least 0."),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaluateConfig(**({"runs": (tmp_path,)} | options))


def refusal(console, *folders, **options):
    with pytest.raises((ValueError, OSError, ModuleNotFoundError)) as caught:
        evaluate(EvaluateConfig(runs=folders, **options), console)
    return str(caught.value)


@needs_library
@pytest.mark.slow
def test_runs_that_cannot_be_measured(runs, console, tmp_path):
    whole = runs[0]
    assert "is neither a run folder" in refusal(console, tmp_path)
    assert "images=361 is more than the 360 test images" in refusal(console, whole, images=361)
    sentence = refusal(console, whole, cifar10_c=tmp_path)
    assert sentence.endswith(f"is for runs on cifar10; {whole} was trained on digits.")
    options = json.loads((whole / "config.json").read_text())
    streamed = options | {"dataset": "imagenet", "stream": True}
    (tmp_path / "config.json").write_text(json.dumps(streamed))
    assert "was trained with stream=True" in refusal(console, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(options))
    assert "holds no checkpoint" in refusal(console, tmp_path)
    assert "has no best checkpoint" in refusal(console, tmp_path, checkpoint="best")


@pytest.mark.slow
def test_a_missing_library_is_named_before_anything_is_loaded(runs, console, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    monkeypatch.setattr(module, "opener", None)
    assert "pip install 'zosam_jax[robustness]'" in refusal(console, runs[0])
