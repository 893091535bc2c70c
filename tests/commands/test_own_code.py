"""Networks, data and losses by import path on the command line, and runs that name them."""

import json
import sys

import numpy as np
import pytest

from zosam_jax import cli

MODULE = """
import numpy as np
import optax
from flax import nnx

class Net(nnx.Module):
    def __init__(self, num_classes, image_shape, rngs):
        self.out = nnx.Linear(image_shape[0], num_classes, rngs=rngs)

    def __call__(self, x):
        return self.out(x)

def data():
    x = np.random.default_rng(0).normal(size=(60, 6))
    y = (x[:, 0] > 0).astype(int)
    return (x[:40], y[:40]), (x[40:], y[40:])

def loss(outputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)

def fails():
    raise KeyError("gone")

def nothing():
    return None
"""
SMALL = ["--epochs", "1", "--batch-size", "20", "--mesh", "data=1", "--optimizer", "sgd"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a module, a file of arrays, and a run of the module's parts."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine_of_tests.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        parts = ["--model", "mine_of_tests:Net", "--dataset", "mine_of_tests:data"]
        cli.main(["train", *parts, "--loss", "mine_of_tests:loss", *SMALL, "--output", "run"])
        (train, test) = sys.modules["mine_of_tests"].data()
        arrays = dict(zip(("x_train", "y_train", "x_test", "y_test"), (*train, *test), strict=True))
        np.savez("data.npz", **arrays, class_names=["below", "above"])
        yield folder


@pytest.fixture
def said(place, capsys, monkeypatch):
    """(words) → the exit status and what was printed, on one line."""

    def run(*words):
        capsys.readouterr()
        try:
            cli.main(words)
            status = 0
        except SystemExit as ended:
            status = ended.code
        captured = capsys.readouterr()
        return status, " ".join((captured.out + captured.err).split())

    return run


def test_the_parts_stand_in_config_json(place):
    config = json.loads((place / "run" / "config.json").read_text())
    named = [config[name] for name in ("model", "dataset", "loss")]
    assert named == ["mine_of_tests:Net", "mine_of_tests:data", "mine_of_tests:loss"]


def test_a_file_of_arrays_is_a_data_set(place, said):
    words = ("train", "--dataset", "data.npz", "--model", "mine_of_tests:Net", *SMALL)
    assert said(*words, "--output", "file")[0] == 0
    info = json.loads((place / "file" / "data.json").read_text())
    assert (info["class_names"], info["image_shape"]) == (["below", "above"], [6])


def test_commands_on_runs_execute_nothing_that_is_not_repeated(place, said, monkeypatch):
    module = sys.modules.pop("mine_of_tests")
    for words in (("analyze", "run"), ("predict", "run", "data.npz"), ("evaluate", "run")):
        status, text = said(*words)
        assert status == 2, text
        if words[0] != "evaluate":  # which refuses data sets that are no images before
            assert "is code, which is not executed" in text or "is not kept in the run" in text
    assert "mine_of_tests" not in sys.modules
    sys.modules["mine_of_tests"] = module
    assert said("analyze", "run", "--model", "other:Net")[0] == 2
    repeated = [
        w
        for n in ("model:Net", "dataset:data", "loss:loss")
        for w in (f"--{n.split(':')[0]}", f"mine_of_tests:{n.split(':')[1]}")
    ]
    status, text = said("analyze", "run", *repeated, "--parts", "variance", "--images", "40")
    assert status == 0, text
    assert "gradient variance" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--model", "mine_of_tests:Nets"), "has no attribute 'Nets'"),
        (("--model", "no_such_module:Net"), "No module named 'no_such_module'"),
        (("--dataset", "mine_of_tests:fails"), "failed: KeyError: 'gone'"),
        (("--dataset", "mine_of_tests:nothing"), "returned NoneType"),
        (("--dataset", "none.npz"), "does not exist"),
        (("--model", "resnet9"), "model='resnet9' is not known; choose one of"),
        (("--optimizer", "optax"), "optimizer"),
        (("--init", "none.safetensors"), "is neither a file nor a run folder"),
    ],
)
def test_what_fails_says_why(words, sentence, said):
    status, text = said("train", *words, "--output", "refused")
    assert status == 2
    assert sentence in text


def test_files_of_python_objects_are_refused(place, said):
    arrays = dict.fromkeys(("y_train", "x_test", "y_test"), np.zeros(3))
    np.savez(place / "objects.npz", x_train=np.array([{}], object), **arrays)
    status, text = said("train", "--dataset", "objects.npz", "--output", "refused")
    assert (status, "Object arrays cannot be loaded" in text) == (2, True)
    np.savez(place / "half.npz", x_train=np.zeros(3))
    assert "lacks the array y_train, x_test, y_test" in said("train", "--dataset", "half.npz")[1]
