"""The decoder and the encoder of text: sizes, what looks at what, units, dtypes, recomputation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import create, quick_jit
from test_models import equations
from text_by_hand import CONTEXT, DIM, SIZES, VOCABULARY, tokens

from zosam_jax import models, sparsity
from zosam_jax.integrations.nnx import functional_loss, split
from zosam_jax.models import BERT, GPT2, MaskedLanguageModel, SequenceClassifier

MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], np.int32)


def masked(rngs, **options):
    return MaskedLanguageModel(BERT(*SIZES, pooler=False, rngs=rngs, **options), rngs=rngs)


def classifier(rngs, of=BERT, **options):
    return SequenceClassifier(of(*SIZES, rngs=rngs, **options), 4, rngs=rngs)


MAKE = {
    "gpt2": functools.partial(GPT2, *SIZES),
    "bert": functools.partial(BERT, *SIZES),
    "masked": masked,
    "bert classifier": classifier,
    "gpt2 classifier": functools.partial(classifier, of=GPT2),
}


def arguments(name, rows=2):
    return (tokens(rows),) if name == "gpt2" else (tokens(rows), np.resize(MASK, (rows, 5)))


@functools.cache
def small(name):
    return create(MAKE[name])


def applied(model, *args):
    graphdef, state = nnx.split(model)
    return np.asarray(quick_jit(lambda s, *a: nnx.merge(graphdef, s)(*a))(state, *args))


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-micro", 1_057_152),
        ("bert-base", 109_482_240),
        ("bert-micro", 1_074_304),
    ],
)
def test_parameter_counts(name, total):
    model = nnx.eval_shape(lambda: models.TEXT_MODELS[name](rngs=nnx.Rngs(0)))
    _, params, _ = split(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total
    paths = [jax.tree_util.keystr(p) for p, x in jax.tree.leaves_with_path(params) if x.ndim > 1]
    others = {path for path in paths if not path.endswith("['kernel']")}
    assert others == {"['tokens']", "['positions']"} | ({"['types']"} if "bert" in name else set())


def test_initial_weights_are_normal_and_those_into_the_stream_smaller():
    model = create(functools.partial(GPT2, 50, 20, 64, 8, 4))
    block = model.blocks[3]
    for array, std in (
        (model.tokens, 0.02),
        (model.positions, 0.02),
        (block.attention.qkv.kernel, 0.02),
        (block.attention.proj.kernel, 0.02 / 4),
        (block.fc1.kernel, 0.02),
        (block.fc2.kernel, 0.02 / 4),
    ):
        values = np.asarray(array[...])
        assert values.std() == pytest.approx(std, rel=5 / np.sqrt(2 * values.size))


def test_the_decoder_looks_at_no_later_token_and_at_no_other_document():
    model = small("gpt2")
    row = tokens(1)
    changed = np.where(np.arange(5) == 3, (row + 1) % VOCABULARY, row).astype(np.int32)
    before, after = applied(model, row), applied(model, changed)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.all(np.any(before[:, 3:] != after[:, 3:], axis=-1))
    segments = np.array([[0, 0, 0, 0, 1]], np.int32)
    last = [applied(model, x, segments)[:, 4] for x in (row, changed)]
    np.testing.assert_array_equal(*last)


def test_a_decoders_row_stands_for_its_last_token():
    model = small("gpt2 classifier")
    short = applied(model, tokens()[:1, :4])
    np.testing.assert_allclose(applied(model, *arguments("gpt2 classifier"))[:1], short, rtol=1e-5)


def test_filled_up_rows_are_as_short_ones_and_types_count():
    model = small("bert classifier")
    args = arguments("bert classifier")
    np.testing.assert_allclose(
        applied(model, *args)[:1], applied(model, args[0][:1, :4]), rtol=1e-5, atol=1e-7
    )
    typed = nnx.clone(model.encoder)
    plain = applied(typed, *args)
    np.testing.assert_array_equal(applied(typed, *args, np.zeros_like(MASK)), plain)
    assert not np.allclose(applied(typed, *args, np.ones_like(MASK)), plain, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "masked", "gpt2 classifier"])
def test_units_are_removed_and_heads_may_differ_from_block_to_block(name):
    model = small(name)
    args = arguments(name)
    units = sparsity.units(model, args)
    assert [(g.kind, g.size) for g in units.groups] == [("heads", 3), ("neurons", 4 * DIM)] * 2
    _, params, _ = split(model)
    # One head less in the first block, two in the second, and other numbers of neurons.
    random, less = np.random.default_rng(0), (1, 5, 2, 17)
    scores = [
        jnp.asarray(random.permutation(group.size) >= n, float)
        for group, n in zip(units.groups, less, strict=True)
    ]
    part = sum(less) / sum(group.size for group in units.groups)
    masks = sparsity.from_unit_scores(params, scores, part, units=units)
    compact = sparsity.compact(model, masks, units)
    base = getattr(compact, "bert", getattr(compact, "encoder", compact))
    widths = [(b.attention.qkv.out_features, b.fc2.in_features) for b in base.blocks]
    assert widths == [(3 * 4 * 2, 4 * DIM - 5), (3 * 4 * 1, 4 * DIM - 17)]
    expected = nnx.clone(model)
    nnx.update(expected, sparsity.apply_masks(params, masks))
    np.testing.assert_allclose(applied(compact, *args), applied(expected, *args), atol=2e-6)


def loss_of_params(model):
    graphdef, params, state = split(model)
    return functional_loss(lambda m, *a: jnp.mean(m(*a) ** 2), graphdef, state), params


@pytest.mark.parametrize("name", ["gpt2", "bert classifier"])
def test_recomputation_keeps_less(name):
    def kept(remat):
        model = nnx.eval_shape(lambda: MAKE[name](rngs=nnx.Rngs(0), remat=remat))
        loss, params = loss_of_params(model)
        args = arguments(name, rows=64)
        backward = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(p, *args)[0], p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(remat=True) < 0.4 * kept(remat=False)


def test_recomputation_changes_no_gradient():
    def gradient(remat):
        loss, params = loss_of_params(create(MAKE["gpt2"], remat=remat, dropout=0.3))
        return quick_jit(jax.value_and_grad(loss, has_aux=True))(params, *arguments("gpt2"))

    found, again = gradient(remat=False), gradient(remat=True)
    (_, (state, _)), _ = found
    counters = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.uint32]
    assert any(int(count) for count in counters)  # dropout's, which go on alike
    for one, other in zip(*map(jax.tree.leaves, (found, again)), strict=True):
        if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", MAKE)
def test_units_are_found_where_activations_are_computed_again(name):
    model = nnx.eval_shape(lambda: MAKE[name](rngs=nnx.Rngs(0), dropout=0.1, remat=True))
    kinds = [(g.kind, g.size) for g in sparsity.units(model, arguments(name)).groups]
    assert kinds[:4] == [("heads", 3), ("neurons", 4 * DIM)] * 2


@pytest.mark.parametrize("name", MAKE)
def test_products_in_bfloat16_and_logits_in_float32(name):
    model = nnx.eval_shape(lambda: MAKE[name](rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    graphdef, state = nnx.split(model)
    traced = jax.jit(lambda s, *a: nnx.merge(graphdef, s)(*a)).trace(state, *arguments(name))
    assert traced.out_info.dtype == (jnp.bfloat16 if name == "bert" else jnp.float32)
    found = list(equations(traced.jaxpr.jaxpr))

    def dtypes(*primitives):
        return [
            {v.aval.dtype.name for v in e.invars} for e in found if e.primitive.name in primitives
        ]

    in_float32 = {"bert classifier": 2, "gpt2 classifier": 1}.get(name, 0)
    products = dtypes("dot_general")
    assert products.count({"float32"}) == in_float32
    assert products.count({"bfloat16"}) == len(products) - in_float32 > 8
    statistics = dtypes("reduce_sum", "rsqrt", "exp", "square")
    assert all(x <= {"float32", "int32"} for x in statistics)  # masks are counted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (functools.partial(GPT2, heads=5), "heads=5 must divide dim=768."),
        (functools.partial(BERT, depth=0), "depth=0 must be at least 1."),
        (functools.partial(BERT, token_types=0), "token_types=0 must be at least 1."),
        (functools.partial(GPT2, dropout=1.0), "dropout=1.0 must be below 1."),
        (functools.partial(GPT2, dtype=jnp.int8), "must be a floating-point type, such as"),
        (functools.partial(classifier, dropout=-1.0), "dropout=-1.0 must be a finite number at"),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(rngs=nnx.Rngs(0))


def test_rows_that_are_too_long_and_a_pooler_that_is_not_there():
    long = jnp.zeros((1, CONTEXT + 1), jnp.int32)
    for name in ("gpt2", "bert"):
        with pytest.raises(ValueError, match=r"shape \(1, 8\) do not fit: .* context=7"):
            small(name)(long)
    model = nnx.eval_shape(lambda: BERT(*SIZES, pooler=False, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="pooler=False leaves out the layer"):
        model.pooled(long)
