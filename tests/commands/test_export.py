"""`zosam export`: what stands in the folder, and what keeps a file out of it."""

import io
import json
import re
import sys

import numpy as np
import pytest
from rich.console import Console

from zosam_jax import cli
from zosam_jax.commands.export import ExportConfig, export
from zosam_jax.export import onnx, read_safetensors, safetensors, stablehlo, verified
from zosam_jax.training.saved_run import opener

pytest.importorskip("safetensors", reason="needs zosam_jax[export]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the converter and what it imports

SMALL = ["--model", "lenet-300-100", "--epochs", "2", "--mesh", "data=1", "--train-images", "512"]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sparse"
    options = ["--sparse", "random", "--sparsity", "0.9", "--precision", "bfloat16"]
    cli.main(["train", *SMALL, *options, "--output", str(folder)])
    return folder


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120)


def accuracy_by_hand(folder):
    """In float32, whatever it was trained in."""
    with opener()(folder) as saved:
        params, test = saved.run.network.params, saved.run.problem.feed.dataset.test
        feed = saved.data
    x = (test.images.reshape(len(test), -1) - feed.pixel_mean[0]) / feed.pixel_sd[0]
    for layer in ("hidden1", "hidden2"):
        x = np.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
    logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    return float(np.mean(logits.argmax(-1) == test.labels)), params


def test_what_stands_in_the_folder(sparse, console):
    pytest.importorskip("jax2onnx", reason="needs zosam_jax[export]")
    found = export(ExportConfig(run=sparse), console)
    folder = sparse / "export"
    names = {"README.md", "export.json", "model.onnx", "model.safetensors", "model.stablehlo"}
    assert {file.name for file in folder.iterdir()} == names
    assert not list(sparse.glob(".export*"))
    accuracy, params = accuracy_by_hand(sparse)
    record = json.loads((folder / "export.json").read_text())
    assert record["layout"] == "bitmask"
    assert record["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert record["inference_cost"] == pytest.approx(0.1, abs=2e-3)
    assert record["measured"].keys() == {"network", *verified.FILES} == found.keys()
    for name, one in record["measured"].items():
        assert one["accuracy"] == pytest.approx(accuracy)
        assert one["difference"] <= 1e-4
        assert one["latency"].keys() == (set() if name == "safetensors" else {"1", "64"})
        if name != "network":
            assert one["bytes"] == (folder / verified.FILES[name]).stat().st_size
    arrays, metadata = read_safetensors(folder / "model.safetensors")
    np.testing.assert_array_equal(arrays["hidden1.kernel"], params["hidden1"]["kernel"])
    assert metadata["model"] == "lenet-300-100"
    card = (folder / "README.md").read_text()
    assert "lenet-300-100, trained on digits by zo_sam" in card
    assert 'arrays["hidden2.kernel"]' in card
    assert "model.stablehlo" in console.file.getvalue()


def test_a_card_says_how_to_load_each_file(sparse, tmp_path, console, monkeypatch):
    """Its lines run, and give what the program gives."""
    export(ExportConfig(run=sparse, format=("stablehlo", "safetensors"), output=tmp_path), console)
    monkeypatch.chdir(tmp_path)
    blocks = (tmp_path / "README.md").read_text().split("```")[1::2]
    names = {"images": np.zeros((2, 8, 8, 1), np.uint8)}
    for block in blocks:
        exec(block.removeprefix("python\n"), names)
    np.testing.assert_allclose(names["probabilities"].sum(-1), 1, atol=1e-5)
    assert names["kernel"].shape == (300, 100)


def test_another_export_takes_its_place(sparse, tmp_path, console):
    both = ("stablehlo", "safetensors")
    export(ExportConfig(run=sparse, format=both, output=tmp_path, images=40), console)
    options = {"layout": "packed", "int8": True, "logits": True, "raw": True}
    later = ExportConfig(run=sparse, format=("safetensors",), output=tmp_path, **options)
    export(later, console)
    names = {"README.md", "export.json", "model.safetensors"}
    assert {file.name for file in tmp_path.iterdir()} == names
    with (tmp_path / "README.md").open("a") as file:
        file.write("mine")
    with pytest.raises(FileExistsError, match=r"one with another README\.md"):
        export(later, console)
    card = (tmp_path / "README.md").read_text()
    assert "Weights are rounded to 8 bits." in card
    assert "float32 [batch, 8, 8, 1]; pixels less 4." in card
    assert "float32 [batch, 10], logits" in card


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_difference_leaves_no_file(wrong, sparse, tmp_path, console, monkeypatch):
    load = stablehlo.load
    monkeypatch.setattr(stablehlo, "load", lambda file: lambda x: load(file)(x) + wrong)
    with pytest.raises(verified.MismatchError, match=r"model\.stablehlo is not written: its outp"):
        export(ExportConfig(run=sparse, format=("stablehlo",), output=tmp_path / "x"), console)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_no_file(sparse, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        assert list(tmp_path.rglob("model.safetensors"))
        raise KeyboardInterrupt

    monkeypatch.setattr(verified, "_compared", interrupted)
    words = ["export", str(sparse), "--format", "safetensors", "--output", str(tmp_path / "x")]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 130
    assert capsys.readouterr().out == "zosam: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_arrays_that_change_leave_no_file(sparse, tmp_path, console, monkeypatch):
    read = safetensors.read_safetensors

    def changed(path):
        arrays, metadata = read(path)
        return arrays | {"head.bias": arrays["head.bias"] + 1e-9}, metadata

    monkeypatch.setattr(safetensors, "read_safetensors", changed)
    with pytest.raises(verified.MismatchError, match=r"head\.bias has changed"):
        export(ExportConfig(run=sparse, format=("safetensors",), output=tmp_path / "x"), console)
    assert not list(tmp_path.iterdir())


def test_int8_that_costs_accuracy_leaves_no_file(sparse, tmp_path, console, monkeypatch):
    monkeypatch.setattr(safetensors, "quantized", lambda arrays: {n: -a for n, a in arrays.items()})
    config = ExportConfig(run=sparse, format=("safetensors",), output=tmp_path / "x", int8=True)
    with pytest.raises(verified.MismatchError, match="leave int8 out"):
        export(config, console)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_stays_as_it_is(sparse, tmp_path, console):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no export to be replaced"):
        export(ExportConfig(run=sparse, format=("safetensors",), output=tmp_path), console)
    with pytest.raises(FileExistsError, match="is a file: choose a folder"):
        export(ExportConfig(run=sparse, output=tmp_path / "README.md"), console)
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"holds no export to be replaced, or one with anoth"):
        export(ExportConfig(run=sparse, output=tmp_path), console)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"format": ()}, "format=() is empty: name some of stablehlo, onnx, safetensors."),
        ({"images": 0}, "images=0 must be at least 1."),
        ({"format": ("onnx",), "layout": "packed"}, "has no effect without safetensors"),
    ],
)
def test_options_without_sense(options, sentence, tmp_path):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ExportConfig(run=tmp_path, **options)


def test_refusals_end_in_a_sentence(sparse, tmp_path, capsys, monkeypatch):
    def refused(*words):
        with pytest.raises(SystemExit) as caught:
            cli.main(["export", *words])
        assert caught.value.code == 2
        return capsys.readouterr().out

    assert "is no run folder" in refused(str(tmp_path))
    assert "images=999 is more than the 360 test" in refused(str(sparse), "--images", "999")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    output = str(tmp_path / "new")
    words = [str(sparse), "--format", "safetensors", "--output", output]
    assert "pip install 'zosam_jax[export]'" in refused(*words)
    assert not list(tmp_path.iterdir())


def test_onnx_is_not_loaded_for_other_formats(sparse, tmp_path, console, monkeypatch):
    monkeypatch.setattr(onnx, "save", None)
    for name in ("onnx", "jax2onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    export(ExportConfig(run=sparse, format=("stablehlo",), output=tmp_path), console)
    assert (tmp_path / "model.stablehlo").is_file()
