"""Coefficients of units under a penalty, EarlyBERT's rule, and early-bird tickets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, assert_equal
from small_units import batch, kept, logits, loss, params, units

from zosam_jax import sparsity
from zosam_jax.sparsity import slimming


def vectors(seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=n), jnp.float32) for n in (6, 8, 2)]


def scaled(p, coefficients, x):
    """The network with its units' outputs multiplied where they are made."""
    one, two, heads = coefficients
    hidden = jax.nn.relu(x @ p["fc1"]["kernel"] + p["fc1"]["bias"])
    hidden = (hidden * p["norm"]["scale"] + p["norm"]["bias"]) * one
    hidden = jax.nn.gelu(hidden @ p["fc2"]["kernel"] + p["fc2"]["bias"]) * two
    qkv = hidden @ p["qkv"]["kernel"] + p["qkv"]["bias"]
    q, k, v = jnp.moveaxis(qkv.reshape(len(x), 3, 2, 3), 1, 0)
    attended = jax.nn.sigmoid(jnp.sum(q * k, axis=-1, keepdims=True)) * v * heads[:, None]
    return attended.reshape(len(x), -1) @ p["proj"]["kernel"] + p["proj"]["bias"]


def test_coefficients_multiply_what_units_hand_on():
    x, slim = batch()["x"], slimming.Slim(params(), vectors())
    found = logits(slimming.multiplied(slim, units()), x)
    np.testing.assert_allclose(found, scaled(params(), vectors(), x), rtol=1e-4, atol=1e-5)
    start = slimming.with_coefficients(params(), units())
    assert_equal(slimming.multiplied(start, units()), params())


def test_the_loss_has_a_penalty_and_gradients_of_both():
    slim = slimming.Slim(params(), vectors())
    penalised = slimming.coefficient_loss(loss, units(), penalty=0.3)
    size = sum(float(jnp.abs(c).sum()) for c in vectors())

    def expected(slim):
        out = scaled(slim.params, slim.coefficients, batch()["x"])
        value = optax.losses.softmax_cross_entropy_with_integer_labels(out, batch()["y"]).mean()
        return value + 0.3 * sum(jnp.sum(jnp.abs(c)) for c in slim.coefficients)

    assert penalised(slim, **batch()) == pytest.approx(
        float(loss(slimming.multiplied(slim, units()), **batch())) + 0.3 * size, rel=1e-5
    )
    found = jax.grad(lambda s: penalised(s, **batch()))(slim)
    assert_close(found, jax.grad(expected)(slim), rtol=1e-3, atol=1e-5)
    value, aux = slimming.coefficient_loss(
        lambda p, x, y: (loss(p, x, y), 7), units(), penalty=0.3, has_aux=True
    )(slim, **batch())
    assert (value, aux) == (penalised(slim, **batch()), 7)


def test_scales_are_the_coefficients_of_network_slimming():
    neurons = units()._replace(groups=units().groups[:1])
    penalised = slimming.scale_loss(loss, neurons, penalty=2.0)
    extra = penalised(params(), **batch()) - loss(params(), **batch())
    assert extra == pytest.approx(2 * float(jnp.abs(params()["norm"]["scale"]).sum()), rel=1e-5)


def test_early_bert_draws_heads_by_layers_and_neurons_of_all_layers():
    """The largest count, sign and all: of 14 neurons 40% go, 8 stay."""
    slim = slimming.Slim(params(), vectors())
    found = kept(slimming.draw(slim, units(), heads=0.5))
    neurons = np.concatenate([np.asarray(c) for c in vectors()[:2]])
    best = set(np.argsort(-neurons, kind="stable")[:8])
    assert [i for i, k in enumerate(found[0] + found[1]) if k] == sorted(best)
    assert found[2] == (np.arange(2) == np.argmax(np.asarray(vectors()[2]))).tolist()


def test_early_bert_searches_draws_and_trains_the_initial_weights():
    calls = []

    def train(loss, start, masks):
        calls.append((start, masks))
        tx = optax.adam(0.02) if masks is None else sparsity.fixed(optax.adam(0.02), masks)

        @jax.jit
        def step(p, s):
            updates, s = tx.update(jax.grad(lambda p: loss(p, **batch()))(p), s, p)
            return optax.apply_updates(p, updates), s

        state = tx.init(start)
        for _ in range(5):
            start, state = step(start, state)
        return start

    ticket = sparsity.early_bert(train, loss, params(), units=units(), heads=0.5, penalty=0.01)
    (search, none), (start, masks) = calls
    assert none is None
    assert_equal(search, slimming.with_coefficients(params(), units()))
    assert_equal(start, sparsity.apply_masks(params(), ticket.masks))
    assert_equal(masks, ticket.masks)
    assert [sum(k) for k in kept(masks)][2] == 1
    assert sum(map(sum, kept(masks)[:2])) == 8
    assert_equal(ticket.params, sparsity.apply_masks(ticket.params, masks))
    assert float(jnp.abs(ticket.coefficients[0] - 1).max()) > 0.01


def test_what_nothing_reads_has_no_coefficient():
    group = units().groups[0]
    unread = group._replace(members=group.members[:4])
    with pytest.raises(
        ValueError, match=r"nothing among the parameters reads the group \['fc1'\]: leave"
    ):
        slimming.with_coefficients(params(), units()._replace(groups=(unread,)))
    channels = units()._replace(groups=(group._replace(kind="channels"),))
    with pytest.raises(ValueError, match="neither heads nor neurons"):
        slimming.draw(slimming.Slim(params(), [jnp.ones(6)]), channels)


def test_wrong_arguments_of_early_bert_are_named_before_the_search():
    def train(loss, params, masks):
        raise AssertionError("it is not called")

    with pytest.raises(ValueError, match=r"neurons=1\.5 must be below 1"):
        sparsity.early_bert(train, loss, params(), units=units(), neurons=1.5)
    with pytest.raises(TypeError, match="slim is dict; it must be a Slim"):
        slimming.coefficient_loss(loss, units())(params())
    with pytest.raises(TypeError, match="slim is dict; it must be a Slim"):
        slimming.draw(params(), units())


# Early-bird tickets.


def by_neurons(p):
    one = units()._replace(groups=units().groups[1:2])
    return sparsity.magnitude(p, 0.5, units=one)


def with_largest(neurons):
    """Parameters of which these of eight neurons are the largest."""
    scale = jnp.where(jnp.isin(jnp.arange(8), jnp.array(neurons)), 10.0, 1.0)
    ones = jax.tree.map(jnp.ones_like, params())
    return ones | {"fc2": ones["fc2"] | {"kernel": ones["fc2"]["kernel"] * scale}}


EPOCHS = [[0, 1, 2, 3], [0, 1, 2, 7], [0, 1, 2, 4], [0, 1, 2, 4], [0, 1, 2, 4], [3, 4, 5, 6]]


@pytest.mark.parametrize("of_units", [True, False])
def test_masks_are_drawn_when_they_agree(of_units):
    """Distances by hand: one neuron of eight for another is 2/8."""
    one = units()._replace(groups=units().groups[1:2])
    bird = sparsity.early_bird(by_neurons, units=one if of_units else None, last=2, threshold=0.1)
    state, seen = bird.init(with_largest([0])), []
    update = jax.jit(bird.update)
    for largest in EPOCHS:
        state = update(with_largest(largest), state)
        seen.append((bool(state.drawn), [round(float(d), 3) for d in state.distances]))
    inf = float("inf")
    assert [drawn for drawn, _ in seen] == [False, False, False, False, True, True]
    assert [d for _, d in seen] == [
        [inf, inf],
        [0.25, inf],
        [0.25, 0.25],
        [0, 0.25],
        [0, 0],
        [0, 0],
    ]
    assert int(state.count) == 5
    assert_equal(state.masks, by_neurons(with_largest([0, 1, 2, 4])))


@pytest.mark.parametrize(
    ("options", "message"), [({"last": 0}, "last=0"), ({"threshold": 2}, "threshold=2")]
)
def test_wrong_early_birds_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sparsity.early_bird(by_neurons, **options)
    with pytest.raises(TypeError, match="choose is dict; it must be a function"):
        sparsity.early_bird({})


def test_early_birds_of_coefficients():
    draw = functools.partial(slimming.draw, units=units(), heads=0.5)
    bird = sparsity.early_bird(draw, units=units(), last=1)
    slim = slimming.Slim(params(), vectors())
    state = bird.update(slim, bird.update(slim, bird.init(slim)))
    assert bool(state.drawn)
    assert_equal(state.masks, draw(slim))
