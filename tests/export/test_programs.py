"""Programs in other formats against the network they are of, on images they have not seen."""

import subprocess
import sys
from importlib.util import find_spec

import jax
import numpy as np
import pytest

from zosam_jax.data import Split
from zosam_jax.data import dataset as datasets
from zosam_jax.export import onnx, stablehlo
from zosam_jax.export.program import Program, held_out_batches
from zosam_jax.models import MODELS
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.problem import Network, Problem

needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, ("jax2onnx", "onnx", "onnxruntime"))), reason="needs zosam_jax[export]"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # of the converter and what it imports
SIZE = 8
QUICK = ("resnet8", "deit-micro")
PATCHES = {"deit-micro": 4, "deit-tiny": 4, "deit-small": 4}


def problem_of(model):
    """Coloured images of 8×8 random pixels, in 70 test images."""
    rng = np.random.default_rng(0)

    def split(count):
        images = rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        return Split(images, rng.integers(0, 5, count).astype(np.int32))

    config = TrainConfig(model=model, batch_size=8, patch=PATCHES.get(model), mesh="data=1")
    return Problem(config, datasets.from_splits(split(16), split(70), 5))


def network_of(problem):
    """Initial weights with statistics that are not 0 and 1, and biases that are not 0."""
    network = problem.init(seed=0)
    rng = np.random.default_rng(1)

    def shifted(leaf):
        if leaf.ndim != 1 or not np.issubdtype(leaf.dtype, np.floating):
            return leaf
        return leaf + rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32)

    return Network(*jax.tree.map(shifted, tuple(network)))


def by_hand(problem, network, images):
    feed = problem.feed.info
    pixels = (images - np.float32(feed.pixel_mean)) / np.float32(feed.pixel_sd)
    logits = np.asarray(problem.apply(network.params, network.model_state, np.float32(pixels)))
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.float32(pixels), logits, exps / exps.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def lenet():
    problem = problem_of("lenet-300-100")
    return problem, network_of(problem)


@pytest.fixture
def images():
    return np.random.default_rng(2).integers(0, 256, (7, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("format_", [stablehlo, pytest.param(onnx, marks=needs_onnx)])
@pytest.mark.parametrize("bare", [False, True])
def test_what_goes_in_and_comes_out(format_, bare, lenet, images, tmp_path):
    program = Program(*lenet, logits=bare, raw=bare)
    format_.save(tmp_path / "x", program)
    call = format_.load(tmp_path / "x")
    pixels, expected_logits, probabilities = by_hand(*lenet, images)
    given, expected = pixels if bare else images, expected_logits if bare else probabilities
    for size in (7, 1, 3):  # any batch size
        np.testing.assert_allclose(call(given[:size]), expected[:size], atol=1e-5)


def test_jax_alone_runs_it_on_three_platforms(lenet, images, tmp_path):
    stablehlo.save(tmp_path / "x", Program(*lenet))
    np.save(tmp_path / "images.npy", images)
    program = """if True:
        import sys, jax, numpy as np
        exported = jax.export.deserialize(bytearray(open("x", "rb").read()))
        assert exported.platforms == ("cpu", "cuda", "tpu"), exported.platforms
        np.save("outputs.npy", exported.call(np.load("images.npy")))
        assert not [name for name in sys.modules if name.startswith(("zosam", "flax", "optax"))]
    """
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    _, _, expected = by_hand(*lenet, images)
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, atol=1e-5)


def test_no_path_of_this_machine_goes_into_it(lenet, tmp_path):
    stablehlo.save(tmp_path / "x", Program(*lenet))
    content = (tmp_path / "x").read_bytes()
    assert b"zosam_jax" not in content
    assert b".py" not in content


@needs_onnx
def test_onnx_says_what_it_takes(lenet, tmp_path):
    import onnxruntime  # noqa: PLC0415

    program = Program(*lenet)
    onnx.save(tmp_path / "x", program)
    session = onnxruntime.InferenceSession(tmp_path / "x")
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [8, 8, 3])
    assert (output.name, isinstance(given.shape[0], str)) == ("probabilities", True)
    about = session.get_modelmeta().custom_metadata_map
    assert about == program.metadata
    assert about["classes"] == "0, 1, 2, 3, 4"
    mean = [float(value) for value in about["pixel_mean"].split()]
    assert mean == pytest.approx(lenet[0].feed.info.pixel_mean)


@needs_onnx
@pytest.mark.parametrize(
    "model",
    [
        *QUICK,
        *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name not in QUICK),
    ],
)
def test_every_model_converts(model, images, tmp_path):
    problem = problem_of(model)
    network = network_of(problem)
    onnx.save(tmp_path / "x", Program(problem, network))
    _, _, expected = by_hand(problem, network, images)
    np.testing.assert_allclose(onnx.load(tmp_path / "x")(images), expected, atol=1e-4)


@needs_onnx
def test_convolutions_absorb_normalization_and_sums(tmp_path):
    import onnx as onnx_itself  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415

    problem = problem_of("resnet8")
    onnx.save(tmp_path / "x", Program(problem, network_of(problem)))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "x", options)
    operations = [node.op_type for node in onnx_itself.load(tmp_path / "optimized").graph.node]
    assert operations.count("Conv") == 9
    assert operations.count("Mul") <= 2  # of the last block, whose outputs go to the average
    assert operations.count("Relu") == 1


@needs_onnx
@pytest.mark.parametrize("model", ["lenet-300-100", "deit-micro"])
def test_int8_weights_take_a_quarter(model, images, tmp_path):
    problem = problem_of(model)
    network = network_of(problem)
    program = Program(problem, network)
    onnx.save(tmp_path / "whole", program)
    onnx.save(tmp_path / "int8", program, calibration=images)
    whole, int8 = ((tmp_path / name).stat().st_size for name in ("whole", "int8"))
    assert int8 < 0.5 * whole
    _, _, expected = by_hand(problem, network, images)
    np.testing.assert_allclose(onnx.load(tmp_path / "int8")(images), expected, atol=0.1)


@needs_onnx
def test_an_operation_that_the_converter_does_not_know(lenet, tmp_path, monkeypatch):
    noise = jax.random.key(0)
    monkeypatch.setattr(Program, "__call__", lambda self, x: x[:, 0] + jax.random.uniform(noise))
    with pytest.raises(ValueError, match="jax2onnx cannot convert model='lenet-300-100': "):
        onnx.save(tmp_path / "x", Program(*lenet))


@pytest.mark.parametrize("name", ["onnx", "jax2onnx"])
def test_without_the_extra(name, lenet, tmp_path, monkeypatch):
    for loaded in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'zosam_jax\[export\]'"):
        onnx.save(tmp_path / "x", Program(*lenet))


def test_without_the_runtime(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match="format='onnx' needs onnxruntime"):
        onnx.load(tmp_path / "x")


def test_test_images_each_once(lenet):
    problem, _ = lenet
    for count in (None, 33):
        labels = np.concatenate([batch.labels for batch in held_out_batches(problem, count)])
        np.testing.assert_array_equal(labels, problem.feed.dataset.test.labels[:count])
