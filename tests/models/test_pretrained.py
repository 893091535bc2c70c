"""Weights with the names of timm and transformers, written here one by one, find their places."""

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from small_runs import QUIET

import zosam_jax
from zosam_jax import models
from zosam_jax.integrations.nnx import split
from zosam_jax.models import pretrained
from zosam_jax.models.layers import KAIMING_FAN_OUT, ConvLayers
from zosam_jax.models.resnet import Bottleneck, ResNet, _uniform_head

RANDOM = np.random.default_rng(0)
DIM, DEPTH, CLASSES = 64, 3, 7


def drawn(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def linear(name, inputs, outputs):
    return {f"{name}.weight": drawn(outputs, inputs), f"{name}.bias": drawn(outputs)}


def norm(name, features):
    return {f"{name}.weight": drawn(features), f"{name}.bias": drawn(features)}


def batch_norm(name, features):
    statistics = {"running_mean": drawn(features), "running_var": np.abs(drawn(features))}
    counted = {"num_batches_tracked": np.array(3)}
    return norm(name, features) | {f"{name}.{k}": v for k, v in (statistics | counted).items()}


def timm_deit():
    found = {"cls_token": drawn(1, 1, DIM), "pos_embed": drawn(1, 5, DIM)}
    found |= {"patch_embed.proj.weight": drawn(DIM, 3, 4, 4), "patch_embed.proj.bias": drawn(DIM)}
    for i in range(DEPTH):
        found |= norm(f"blocks.{i}.norm1", DIM) | norm(f"blocks.{i}.norm2", DIM)
        found |= linear(f"blocks.{i}.attn.qkv", DIM, 3 * DIM)
        found |= linear(f"blocks.{i}.attn.proj", DIM, DIM)
        found |= linear(f"blocks.{i}.mlp.fc1", DIM, 4 * DIM)
        found |= linear(f"blocks.{i}.mlp.fc2", 4 * DIM, DIM)
    return found | norm("norm", DIM) | linear("head", DIM, CLASSES)


def transformers_deit(timm, prefix):
    """The same weights under the other library's names."""
    found = {}
    for name, array in timm.items():
        first, _, end = name.rpartition(".")
        if name == "cls_token":
            found[f"{prefix}.embeddings.cls_token"] = array
        elif name == "pos_embed":
            found[f"{prefix}.embeddings.position_embeddings"] = array
        elif first == "patch_embed.proj":
            found[f"{prefix}.embeddings.patch_embeddings.projection.{end}"] = array
        elif first == "norm":
            found[f"{prefix}.layernorm.{end}"] = array
        elif first == "head":
            found[f"classifier.{end}"] = array
        else:
            _, block, part = first.split(".", 2)
            layer = f"{prefix}.encoder.layer.{block}"
            if part == "attn.qkv":
                for third, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                    found[f"{layer}.attention.attention.{third}.{end}"] = rows.copy()
            else:
                place = {
                    "norm1": "layernorm_before",
                    "norm2": "layernorm_after",
                    "attn.proj": "attention.output.dense",
                    "mlp.fc1": "intermediate.dense",
                    "mlp.fc2": "output.dense",
                }[part]
                found[f"{layer}.{place}.{end}"] = array
    return found


def deit(num_classes=CLASSES):
    options = {"rngs": nnx.Rngs(0), "image_shape": (8, 8, 3), "patch": 4}
    return models.create("deit-micro", num_classes, **options)


def taken(arrays, model):
    return pretrained.fitted(arrays, split(model)[1:], "FILE")


def test_deits_arrays_are_in_their_places():
    timm = timm_deit()
    found, told = taken(timm, deit())
    assert told == "weights of FILE, by the names of timm"
    same = {
        "class_token": timm["cls_token"][0, 0],
        "positions": timm["pos_embed"][0],
        "patches.kernel": timm["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "blocks.1.attention.qkv.kernel": timm["blocks.1.attn.qkv.weight"].T,
        "blocks.2.norm2.scale": timm["blocks.2.norm2.weight"],
        "head.kernel": timm["head.weight"].T,
    }
    for name, array in same.items():
        np.testing.assert_array_equal(found[name], array)
    assert set(found) == set(pretrained.named(split(deit())[1:]))


@pytest.mark.parametrize("prefix", ["vit", "deit"])
def test_both_libraries_names_give_the_same_deit(prefix):
    timm = timm_deit()
    expected, _ = taken(timm, deit())
    found, told = taken(transformers_deit(timm, prefix), deit())
    assert "transformers" in told
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def resnet():
    layers = ConvLayers(KAIMING_FAN_OUT, None, nnx.Rngs(0))
    options = {"stages": (1, 2), "width": 4, "channels": 3, "stem": "imagenet"}
    return ResNet(CLASSES, layers, block=Bottleneck, head=_uniform_head, **options)


def resnet_file(of_timm):
    """A ResNet of stages of 1 and 2 bottlenecks; each place once by either library's name."""

    def name(timm, other):
        return timm if of_timm else f"resnet.{other}"

    stem = name("conv1", "embedder.embedder.convolution")
    found = {f"{stem}.weight": drawn(4, 3, 7, 7)}
    found |= batch_norm(name("bn1", "embedder.embedder.normalization"), 4)
    inputs = 4
    for stage, place, features in ((1, 0, 4), (2, 0, 8), (2, 1, 8)):
        block = name(f"layer{stage}.{place}", f"encoder.stages.{stage - 1}.layers.{place}")
        shapes = [
            (features, inputs, 1, 1),
            (features, features, 3, 3),
            (4 * features, features, 1, 1),
        ]
        for n, shape in enumerate(shapes):
            conv = f"{block}.conv{n + 1}" if of_timm else f"{block}.layer.{n}.convolution"
            bn = f"{block}.bn{n + 1}" if of_timm else f"{block}.layer.{n}.normalization"
            found |= {f"{conv}.weight": drawn(*shape)} | batch_norm(bn, shape[0])
        if place == 0:
            conv, bn = (
                ("downsample.0", "downsample.1")
                if of_timm
                else ("shortcut.convolution", "shortcut.normalization")
            )
            found[f"{block}.{conv}.weight"] = drawn(4 * features, inputs, 1, 1)
            found |= batch_norm(f"{block}.{bn}", 4 * features)
        inputs = 4 * features
    return found | linear("fc" if of_timm else "classifier.1", inputs, CLASSES)


@pytest.mark.parametrize("of_timm", [True, False])
def test_resnets_arrays_are_in_their_places(of_timm):
    file = resnet_file(of_timm)
    found, _ = taken(file, resnet())
    assert set(found) == set(pretrained.named(split(resnet())[1:]))
    last = "layer2.1" if of_timm else "resnet.encoder.stages.1.layers.1"
    conv, bn = ("conv2", "bn2") if of_timm else ("layer.1.convolution", "layer.1.normalization")
    kernel = file[f"{last}.{conv}.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found["blocks.2.conv2.kernel"], kernel)
    np.testing.assert_array_equal(found["blocks.2.norm2.var"], file[f"{last}.{bn}.running_var"])
    # All of the file's arrays but the counts are used, each once.
    arrays = [a for n, a in file.items() if not n.endswith("num_batches_tracked")]
    assert sum(map(np.size, arrays)) == sum(map(np.size, found.values()))


def test_a_head_of_other_classes_starts_anew():
    found, told = taken(timm_deit(), deit(num_classes=3))
    assert not [name for name in found if name.startswith("head")]
    assert told.endswith("the head starts anew, head.bias (3,), head.kernel (64, 3)")


def test_shapes_that_do_not_fit_and_what_is_missing_are_named():
    file = timm_deit()
    with pytest.raises(ValueError, match=r"does not fit the network: positions \(9, 64\), not"):
        taken(file | {"pos_embed": drawn(1, 9, DIM)}, deit())
    del file["norm.bias"]
    with pytest.raises(ValueError, match=r"FILE lacks norm\.bias of the network"):
        taken(file, deit())
    with pytest.raises(ValueError, match=r"lacks .* and 37 more of the network; it holds x"):
        taken({"x": drawn(3)}, deit())


def fit(**options):
    images = RANDOM.integers(256, size=(24, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(24) % CLASSES
    base = {"epochs": 1, "batch_size": 8, "optimizer": "sgd", "mesh": "data=1", "console": QUIET}
    deit = {"model": "deit-micro", "patch": 4, "test": (images, labels)}
    return zosam_jax.fit(data=(images, labels), **{**base, **deit, **options})


def test_a_run_starts_from_a_file_and_from_a_run(tmp_path):
    timm = timm_deit()
    save_file(timm, tmp_path / "weights.safetensors")
    small = {"learning_rate": 1e-12, "weight_decay": 0.0}
    first = fit(init=tmp_path / "weights.safetensors", output=tmp_path / "a", **small)
    kernel = first.model.blocks[1].attention.qkv.kernel[...]
    np.testing.assert_allclose(kernel, timm["blocks.1.attn.qkv.weight"].T, rtol=1e-5)
    second = fit(init=tmp_path / "a", output=tmp_path / "b", **small)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        *(split(result.model)[1] for result in (first, second)),
    )
    # It opens although what it started from is gone.
    (tmp_path / "weights.safetensors").unlink()
    zosam_jax.open_run(tmp_path / "a")
    with pytest.raises(ValueError, match="is neither a file nor a run folder"):
        fit(init=tmp_path / "weights.safetensors", output=tmp_path / "c")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="is no safetensors file"):
        fit(init=tmp_path / "text.safetensors", output=tmp_path / "c")
