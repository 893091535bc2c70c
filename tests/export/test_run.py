"""Networks and data of one's own, on their way out."""

import io
import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from flax import linen, nnx
from rich.console import Console

import zosam_jax
from zosam_jax.export import read_safetensors, verified
from zosam_jax.export.run import export_run

pytest.importorskip("safetensors", reason="needs zosam_jax[export]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the converter and what it imports

ONNX = ["onnx"] if find_spec("jax2onnx") and find_spec("onnxruntime") else []
QUIET = Console(file=io.StringIO())


def data(targets):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 6)).astype(np.float32)
    y = targets(x)
    return (x[:64], y[:64]), (x[64:], y[64:])


class Net(nnx.Module):
    """One output, for a regression."""

    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(6, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))[:, 0]


class Linen(linen.Module):
    """Parameters and statistics in collections; dropout draws nothing in inference."""

    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(linen.Dense(16)(x)))
        return linen.Dense(3)(linen.Dropout(0.1, deterministic=not train)(x))


def fit(model, folder, targets, **options):
    train, test = data(targets)
    options = {"epochs": 2, "batch_size": 16, "mesh": "data=1", "console": QUIET, **options}
    zosam_jax.fit(model, train, test=test, output=folder, **options)
    return zosam_jax.open_run(folder, model=model, data=(train, test))


def test_a_regression_comes_out_as_it_is(tmp_path):
    saved = fit(Net, tmp_path / "run", lambda x: x[:, 0], loss="squared_error")
    formats = ["stablehlo", "safetensors", *ONNX]
    with saved:
        found = export_run(saved, tmp_path / "x", formats=formats)
        assert found.keys() == {"network", *formats}
        assert all(np.isnan(one.accuracy) for one in found.values())
        expected = saved.predict(data(lambda x: x[:, 0])[1][0])
    if ONNX:
        import onnxruntime  # noqa: PLC0415

        session = onnxruntime.InferenceSession(tmp_path / "x" / "model.onnx")
        (outputs,) = session.run(None, {"images": data(lambda x: x[:, 0])[1][0]})
        np.testing.assert_allclose(outputs, expected, atol=1e-5)
    record = json.loads((tmp_path / "x" / "export.json").read_text())
    assert record["program"]["input"] == "float32 [batch, 6]"
    assert record["program"]["output"] == "float32 [batch], outputs"
    assert record["measured"]["network"]["accuracy"] is None
    with pytest.raises(ValueError, match="int8=True is judged by accuracy"):
        export_run(saved, tmp_path / "y", int8=True)


def test_a_network_of_linen(tmp_path):
    def classes(x):
        return (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)

    saved = fit(Linen(), tmp_path / "run", classes, sparse="random", sparsity=0.5)
    with saved:
        found = export_run(saved, tmp_path / "x", formats=["stablehlo", "safetensors", *ONNX])
        expected = saved.predict(data(classes)[1][0])
        kept = np.asarray(saved.run.network.params["Dense_0"]["kernel"])
    assert found["stablehlo"].difference < 1e-6
    assert found["network"].accuracy == np.mean(expected.argmax(-1) == data(classes)[1][1])
    arrays, _ = read_safetensors(tmp_path / "x" / "model.safetensors")
    np.testing.assert_array_equal(arrays["Dense_0.kernel"], kept)


def test_data_are_needed(tmp_path):
    fit(Net, tmp_path / "run", lambda x: x[:, 0], loss="squared_error").__exit__()
    with (
        zosam_jax.open_run(tmp_path / "run", model=Net) as saved,
        pytest.raises(ValueError, match="no test split, on which exports are checked"),
    ):
        export_run(saved, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"formats": ["tflite"]}, "format='tflite' is not known; choose one of 'stablehlo'"),
        ({"formats": []}, "is empty: name some of stablehlo, onnx, safetensors"),
        ({"formats": ["stablehlo"], "int8": True}, "int8=True has no effect on format="),
        ({"layout": "zip"}, "layout='zip' is not known; choose one of 'dense'"),
    ],
)
def test_formats_and_layouts_that_there_are(options, sentence):
    given = {"formats": ["onnx"], "layout": "dense", "int8": False, **options}
    formats, layout, int8 = given.values()
    with pytest.raises(ValueError, match=sentence):
        verified.check_choice(None, formats, layout, int8=int8)


def test_reading_arrays_loads_little():
    program = """if True:
        import sys
        from zosam_jax.export import read_safetensors
        loaded = {name.partition(".")[0] for name in sys.modules}
        assert not loaded & {"onnx", "jax2onnx", "onnxruntime", "safetensors", "orbax", "flax"}
    """
    subprocess.run([sys.executable, "-c", program], check=True)
