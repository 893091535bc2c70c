"""EarlyBERT, adapters and MeZO with prompts on networks of text that are as small as can be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from networks import create, quick_jit
from test_text import MAKE, applied, arguments
from text_by_hand import DIM, VOCABULARY

import zosam_jax
from zosam_jax import models, sparsity
from zosam_jax.data.prompts import prompted
from zosam_jax.data.tokenization import Bytes
from zosam_jax.integrations.nnx import Optimizer, functional_loss, split
from zosam_jax.models import adapter_mask, add_adapters, merge_adapters

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(0, VOCABULARY, (64, 5)).astype(np.int32)
LABELS = (TOKENS[:, 0] < 5).astype(np.int32)


def cross_entropy(model, tokens, labels):
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens), labels).mean()


def right(model):
    return np.mean(np.argmax(applied(model, TOKENS), -1) == LABELS)


@pytest.mark.parametrize(
    "name", ["bert classifier", pytest.param("gpt2 classifier", marks=pytest.mark.slow)]
)
def test_early_bert_finds_units_early_and_trains_a_smaller_network(name):
    model = create(MAKE[name])
    graphdef, params, state = split(model)
    loss = functional_loss(cross_entropy, graphdef, state)
    units = sparsity.units(model, TOKENS)
    # The pooler's are no neurons of a feed-forward layer, and stay.
    units = units._replace(groups=tuple(g for g in units.groups if "pooler" not in g.name))
    searched = []

    def train(loss, start, masks):
        assert masks is None
        is_search = isinstance(start, sparsity.slimming.Slim)
        searched.append(is_search)
        tx = optax.adamw(0.01)

        @quick_jit
        def step(p, s):
            updates, s = tx.update(jax.grad(loss)(p, TOKENS, LABELS), s, p)
            return optax.apply_updates(p, updates), s

        s = tx.init(start)
        for _ in range(8 if is_search else 60):
            start, s = step(start, s)
        return start

    ticket = sparsity.early_bert(
        train, lambda p, *a: loss(p, *a)[0], params, units=units, penalty=0.01, compact=True
    )
    assert searched == [True, False]
    assert not np.allclose(ticket.coefficients[1], ticket.coefficients[1][0])
    small = sparsity.compact(model, ticket.masks, units)
    nnx.update(small, ticket.params)
    blocks = small.encoder.blocks
    assert [b.attention.proj.in_features for b in blocks] == [2 * DIM // 3] * 2
    assert sum(b.fc1.out_features for b in blocks) == round(0.6 * 2 * 4 * DIM)
    assert right(small) > 0.95


def test_adapters_change_nothing_at_first_are_trained_alone_and_merge():
    model = create(MAKE["bert classifier"])
    before = applied(model, TOKENS)
    names = add_adapters(model, 2, rngs=nnx.Rngs(1))
    assert len(names) == 8
    assert "encoder.blocks.0.attention.qkv" in names
    np.testing.assert_array_equal(applied(model, TOKENS), before)
    _, adapters, others = split(model, nnx.LoRAParam)
    dims = [DIM + 3 * DIM, 2 * DIM, DIM + 4 * DIM, DIM + 4 * DIM]
    assert sum(x.size for x in jax.tree.leaves(adapters)) == 2 * 2 * sum(dims)
    optimizer = Optimizer(
        model, optax.chain(zosam_jax.sam(0.01), optax.adam(0.03)), wrt=nnx.LoRAParam
    )
    step = nnx.jit(
        lambda model, optimizer: optimizer.apply_loss(model, cross_entropy, TOKENS, LABELS)
    )
    losses = [float(step(model, optimizer)) for _ in range(10)]
    assert losses[-1] < losses[0] - 0.005
    _, _, after = split(model, nnx.LoRAParam)
    jax.tree.map(np.testing.assert_array_equal, others, after)
    trained = applied(model, TOKENS)
    assert not np.allclose(trained, before, atol=1e-3)
    merge_adapters(model)
    np.testing.assert_allclose(applied(model, TOKENS), trained, rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(split(model)[1]) == jax.tree.structure(
        split(create(MAKE["bert classifier"]))[1]
    )


def test_mezo_within_adapters():
    model = create(MAKE["gpt2 classifier"])
    add_adapters(model, 1, rngs=nnx.Rngs(1), where=lambda name: name.endswith("qkv"))
    graphdef, params, state = split(model)
    tx = zosam_jax.mezo(mask=adapter_mask)

    @quick_jit
    def updates_of(params):
        loss = functional_loss(cross_entropy, graphdef, state)
        state_of = tx.init(params)
        value = {"value_fn": lambda p, x, y: loss(p, x, y)[0], "x": TOKENS, "y": LABELS}
        return tx.update(None, state_of, params, **value)[0]

    updates = updates_of(params)
    moved = {
        jax.tree_util.keystr(path): bool(jnp.any(u != 0))
        for path, u in jax.tree.leaves_with_path(updates)
    }
    assert {name for name, has_moved in moved.items() if has_moved} == {
        name for name in moved if "lora_" in name
    }
    assert sum(moved.values()) == 4


def test_layers_that_cannot_adapt():
    model = nnx.eval_shape(lambda: MAKE["gpt2"](rngs=nnx.Rngs(0)))
    add = functools.partial(add_adapters, model, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"no linear layer of the model, which has blocks\.0\."):
        add(2, where=lambda name: "pooler" in name)
    with pytest.raises(ValueError, match=r"rank=12 must be below 12, the smaller width of blocks"):
        add(12)
    with pytest.raises(ValueError, match="model has no adapters to merge"):
        merge_adapters(model)


# Prompts.

BYTES = Bytes()


def test_a_prompt_for_an_encoder():
    found = prompted(["ab", "abcdefgh"], "<{text}> {mask}!", ["+", "-"], BYTES, length=11)
    start, stop, mask = BYTES.start, BYTES.separator, BYTES.mask
    rows = [[start, *b"<ab> ", mask, *b"!", stop], [start, *b"<abcd> ", mask, *b"!", stop]]
    np.testing.assert_array_equal(found.tokens[0], [*rows[0], stop, stop])
    np.testing.assert_array_equal(found.tokens[1], rows[1])
    np.testing.assert_array_equal(found.attention_mask.sum(axis=1), [9, 11])
    np.testing.assert_array_equal(found.places, [6, 8])
    np.testing.assert_array_equal(found.words, list(b"+-"))
    before = prompted(["ab"], "{mask}: {text}", ["+", "-"], BYTES, length=11)
    assert (before.places[0], before.tokens[0, 1]) == (1, mask)


def test_a_prompt_for_a_decoder_ends_where_the_word_begins():
    found = prompted(["ab", "abcd"], "{text} is ", ["+", "-"], BYTES, length=7)
    np.testing.assert_array_equal(found.tokens[1], list(b"abc is "))
    np.testing.assert_array_equal(found.places, [5, 6])
    assert not found.attention_mask[0, 6]


@pytest.mark.parametrize(
    ("template", "words", "length", "message"),
    [
        ("no text", "+-", 9, "must hold {text} once"),
        ("{text} {mask} {mask}", "+-", 9, "and {mask} once if"),
        ("{text} was it", "+-", 7, "length=7 leaves no room for a text: .* takes 7 tokens"),
        ("{text}", ["good", "bad"], 9, "words: 'good' is 4 tokens; take a word"),
        ("{text}", "++", 9, "must be two or more, no two the same"),
        ("{text}", "+", 9, "must be two or more"),
    ],
)
def test_wrong_prompts(template, words, length, message):
    with pytest.raises(ValueError, match=message):
        prompted(["a"], template, list(words), BYTES, length=length)


@pytest.mark.parametrize("name", ["gpt2", "masked"])
def test_logits_of_words_are_those_of_all(name):
    model = create(MAKE[name])
    args = arguments(name)
    places, words = jnp.array([1, 4]), jnp.array([7, 2, 9])
    whole = applied(model, *args)
    found = quick_jit(lambda *a: models.word_logits(model, *a))(args[0], places, words, *args[1:])
    expected = whole[np.arange(2), places][:, words]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
