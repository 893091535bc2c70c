"""Folders of transformers in their true format, against networks in NumPy and in PyTorch."""

import functools
import importlib.util
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
import text_by_hand as by_hand
from flax import nnx
from networks import quick_jit
from safetensors.numpy import load_file, save_file
from text_by_hand import BERT_CONFIG, CLASSES, GPT2_CONFIG, SIZES, bert_arrays, gpt2_arrays, write

from zosam_jax import models
from zosam_jax.models.hugging_face import load_pretrained, save_pretrained

MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], np.int32)
KINDS = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]], np.int32)
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)


def called(model, *args, of=lambda model: model):
    graphdef, state = nnx.split(model)
    return np.asarray(quick_jit(lambda s, *a: of(nnx.merge(graphdef, s))(*a))(state, *args))


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2(tmp_path, prefix):
    arrays = gpt2_arrays(prefix)
    model, told = load_pretrained(write(tmp_path / "gpt2", GPT2_CONFIG, arrays))
    assert told.endswith("gpt2, by the names of transformers")
    tokens = by_hand.tokens()
    close(called(model, tokens), [by_hand.gpt2(arrays, row) for row in tokens])
    segments = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]], np.int32)
    expected = [
        by_hand.gpt2(arrays, row, s[:, None] == s[None])
        for row, s in zip(tokens, segments, strict=True)
    ]
    close(called(model, tokens, segments), expected)


def test_bert(tmp_path):
    arrays = bert_arrays()
    folder = write(tmp_path / "bert", BERT_CONFIG, arrays)
    tokens = by_hand.tokens()
    rows = [by_hand.bert(arrays, *row) for row in zip(tokens, MASK, KINDS, strict=True)]
    hidden, pooled = (np.stack(found) for found in zip(*rows, strict=True))
    args = (tokens, MASK, KINDS)
    model, _ = load_pretrained(folder)
    close(called(model, *args), hidden)
    close(called(model, tokens, of=lambda m: m), [by_hand.bert(arrays, r)[0] for r in tokens])
    masked, _ = load_pretrained(folder, masked=True)
    close(called(masked, *args), by_hand.masked_logits(arrays, hidden))
    classifier, told = load_pretrained(folder, classes=CLASSES)
    assert "anew" not in told
    logits = pooled @ arrays["classifier.weight"].T + arrays["classifier.bias"]
    close(called(classifier, *args, of=lambda m: lambda x, a, t: m(x, a, token_types=t)), logits)


def old_names(name):
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
    return name.replace("LayerNorm.bias", "LayerNorm.beta")


def state(model):
    return dict(nnx.to_flat_state(nnx.as_pure(nnx.state(model, nnx.Param))))


def test_old_names_and_parts_that_an_index_names(tmp_path):
    arrays = bert_arrays()
    folder = write(tmp_path / "new", BERT_CONFIG, arrays)
    expected = state(load_pretrained(folder, masked=True)[0])
    parts = tmp_path / "parts"
    write(parts, BERT_CONFIG, {}).joinpath("model.safetensors").unlink()
    named = {old_names(name): array for name, array in arrays.items()}
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(named)}
    for file in {*files.values()}:
        save_file({n: named[n] for n, f in files.items() if f == file}, parts / file)
    index = parts / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    found = state(load_pretrained(parts, masked=True)[0])
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    (parts / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"index\.json names part-1\.safetensors, not beside it"):
        load_pretrained(parts)
    index.write_text(json.dumps({"weight_map": {"x": "../new/model.safetensors"}}))
    with pytest.raises(ValueError, match="not beside it"):
        load_pretrained(parts)


def test_what_starts_anew_is_told(tmp_path):
    arrays = bert_arrays("", heads=False)
    del arrays["pooler.dense.weight"], arrays["pooler.dense.bias"]
    folder = write(tmp_path / "bert", BERT_CONFIG, arrays)
    _, told = load_pretrained(folder, classes=2)
    assert "; the head starts anew, head.bias (2,), head.kernel (12, 2)" in told
    assert "; the pooler starts anew, encoder.pooler.bias (12,)" in told
    _, told = load_pretrained(folder, masked=True)
    assert "the transform starts anew" in told
    _, told = load_pretrained(write(tmp_path / "gpt2", GPT2_CONFIG, gpt2_arrays()), classes=2)
    assert told.endswith("; the head starts anew, head.kernel (12, 2)")


def make(name, folder, rngs):
    write(
        folder, *((GPT2_CONFIG, gpt2_arrays()) if "gpt2" in name else (BERT_CONFIG, bert_arrays()))
    )
    options = {"classes": 3} if "classifier" in name else {"masked": "masked" in name}
    return load_pretrained(folder, rngs=rngs, **options)[0], options


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt2 classifier", "bert", "bert masked", "bert classifier"]
)
def test_what_is_saved_is_what_was_loaded(tmp_path, name):
    model, options = make(name, tmp_path / "a", nnx.Rngs(1))
    save_pretrained(model, tmp_path / "b")
    again, told = load_pretrained(tmp_path / "b", rngs=nnx.Rngs(2), **options)
    assert "anew" not in told
    expected = state(model)
    for key, array in state(again).items():
        np.testing.assert_array_equal(array, expected[key])
    # The names and shapes are those that were read.
    old, new = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    prefix = "bert." if name == "bert" else ""
    for key, array in new.items():
        if not key.startswith(("classifier", "score")):
            np.testing.assert_array_equal(array, old[prefix + key])


def changed(arrays, remove=(), **added):
    return {n: a for n, a in arrays.items() if n not in remove} | added


@pytest.mark.parametrize(
    ("config", "arrays", "message"),
    [
        (GPT2_CONFIG | {"n_embd": 24}, gpt2_arrays(), "does not fit the network: "),
        (
            GPT2_CONFIG | {"n_layer": 1},
            gpt2_arrays(),
            "has nothing like its transformer.h.1.attn.c_attn.bias, ",
        ),
        (GPT2_CONFIG | {"n_layer": 3}, gpt2_arrays(), "lacks blocks.2.attention.proj.bias, "),
        (
            GPT2_CONFIG | {"vocab_size": 9},
            gpt2_arrays(),
            "does not fit the network: tokens (11, 12), not (9, 12)",
        ),
        (GPT2_CONFIG, changed(gpt2_arrays(), ["transformer.ln_f.bias"]), "lacks norm.bias of the"),
        (BERT_CONFIG, gpt2_arrays(), "of the same kind of network"),
        (BERT_CONFIG | {"hidden_act": "relu"}, bert_arrays(), "hidden_act='relu'; networks here"),
        (BERT_CONFIG | {"intermediate_size": 9}, bert_arrays(), "intermediate_size=9; networks"),
        (BERT_CONFIG | {"model_type": "t5"}, bert_arrays(), "must be one of 'gpt2', 'bert'"),
        (
            BERT_CONFIG | {"hidden_size": "12"},
            bert_arrays(),
            "hidden_size='12', which must be a count",
        ),
        (GPT2_CONFIG | {"tie_word_embeddings": False}, gpt2_arrays(), "tie_word_embeddings=False"),
        ([], gpt2_arrays(), "config.json cannot be read"),
    ],
)
def test_folders_of_other_networks(tmp_path, config, arrays, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        load_pretrained(write(tmp_path / "x", config, arrays))


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        load_pretrained(tmp_path)
    folder = write(tmp_path / "x", GPT2_CONFIG, gpt2_arrays())
    with pytest.raises(ValueError, match="masked=True goes with BERT's folders and without"):
        load_pretrained(folder, masked=True)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds neither model\.safetensors nor .* can run code"):
        load_pretrained(folder)


def test_networks_that_transformers_has_no_place_for(tmp_path):
    model = models.GPT2(*SIZES, rngs=nnx.Rngs(0))
    model.blocks[1].fc1.kernel = nnx.Param(jnp.ones((12, 40)))
    with pytest.raises(ValueError, match=r"model has lost heads or neurons, as in blocks\.1\.fc1"):
        save_pretrained(model, tmp_path)
    with pytest.raises(TypeError, match="model is Linear; it must be a GPT2 or a BERT"):
        save_pretrained(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), tmp_path)


# Against PyTorch.

has_torch = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


@pytest.mark.slow
@pytest.mark.skipif(not has_torch, reason="needs torch and transformers")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["gpt2", "gpt2 classifier", "bert", "bert masked", "bert classifier"]
)
def test_logits_are_those_of_transformers(tmp_path, name):
    import torch  # noqa: PLC0415 (not among what tests need)
    import transformers as other  # noqa: PLC0415

    torch.manual_seed(0)
    tokens, mask = by_hand.tokens(), MASK
    config = (other.GPT2Config if "gpt2" in name else other.BertConfig).from_dict(
        (GPT2_CONFIG if "gpt2" in name else BERT_CONFIG)
        | {"num_labels": 3, "pad_token_id": 0, "initializer_range": 0.3}
    )
    kind = {
        "gpt2": other.GPT2LMHeadModel,
        "gpt2 classifier": other.GPT2ForSequenceClassification,
        "bert": other.BertModel,
        "bert masked": other.BertForMaskedLM,
        "bert classifier": other.BertForSequenceClassification,
    }[name]
    tokens = np.where(mask == 0, 0, np.maximum(tokens, 1))  # 0 fills rows up
    options = {"classes": 3} if "classifier" in name else {"masked": "masked" in name}
    args = (tokens,) if name == "gpt2" else (tokens, mask)

    def theirs(network):
        with torch.no_grad():
            given = [torch.as_tensor(x, dtype=torch.long) for x in args]
            return network.eval()(given[0], attention_mask=given[1] if given[1:] else None)[0]

    network = kind(config)
    network.save_pretrained(tmp_path / "theirs")
    model, _ = load_pretrained(tmp_path / "theirs", **options)
    found, expected = called(model, *args), theirs(network).numpy()
    print(name, "largest difference", np.abs(found - expected).max(), "of", np.abs(expected).max())
    close(found, expected, atol=1e-5)
    save_pretrained(model, tmp_path / "ours")
    again, loading = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not loading["unexpected_keys"]
    assert not [key for key in loading["missing_keys"] if "decoder" not in key]
    again.config.pad_token_id = 0  # which GPT-2's rows are not filled up with, as a rule
    np.testing.assert_array_equal(theirs(again).numpy(), expected)
