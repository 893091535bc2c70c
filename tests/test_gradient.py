"""The algorithm as a function: against the transformation, and against jax.grad at θ+ε."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from problems import (
    RHO,
    assert_close,
    assert_equal,
    mlp_batch,
    mlp_loss,
    mlp_mask,
    mlp_params,
)

import zosam_jax
from zosam_jax import ascent, descent, radius

ROWS = {
    "sam": ascent.backprop(),
    "zo_sam": ascent.random_gradient_estimate(),
    "random_weight_perturbation": ascent.random_direction(),
}


@pytest.mark.parametrize("rule", ["global", "layerwise", "adaptive"])
@pytest.mark.parametrize("name", ROWS)
def test_the_transformation_and_the_function_agree_bit_for_bit(name, rule):
    params, batch = mlp_params(), mlp_batch()
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=ROWS[name], rho=RHO, radius=rule)
    options = {} if name == "sam" else {"key": 5}
    tx = zosam_jax.REGISTRY[name](RHO, radius=rule, **options)
    state, opt_state = grad.init(params, 5), tx.init(params)
    for _ in range(2):
        (value, gradient), state = grad(params, state, batch["x"], y=batch["y"])
        updates, opt_state = tx.update(None, opt_state, params, value_fn=mlp_loss, **batch)
        assert_equal(updates, gradient)
        assert_equal(opt_state.value, value)


@pytest.mark.parametrize("name", ROWS)
def test_the_gradient_is_taken_at_the_perturbed_point(name):
    params, batch = mlp_params(), mlp_batch()
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=ROWS[name], rho=RHO, mask=mlp_mask())
    state = grad.init(params, 5)
    epsilon = grad.perturbation(params, state, **batch)
    there = jax.tree.map(jnp.add, params, epsilon)
    np.testing.assert_allclose(optax.tree.norm(epsilon), RHO, rtol=1e-5)
    (value, gradient), _ = grad(params, state, **batch)
    expected = jax.value_and_grad(mlp_loss)(there, **batch)
    assert_close((value, gradient), expected)


@pytest.mark.parametrize("name", ROWS)
def test_aux_comes_from_one_pass(name):
    """From the pass at θ where the ascent makes one with gradients, else from the descent's."""

    def loss(params, x, y):
        return mlp_loss(params, x, y), params

    params, batch = mlp_params(), mlp_batch()
    grad = zosam_jax.value_and_grad(loss, ascent=ROWS[name], rho=RHO, has_aux=True)
    state = grad.init(params)
    epsilon = grad.perturbation(params, state, **batch)
    ((_, seen_at), _), _ = grad(params, state, **batch)
    at = params if name == "sam" else jax.tree.map(jnp.add, params, epsilon)
    assert_close(seen_at, at)


def test_probe_fn_is_used_at_probes_and_nowhere_else():
    """Its slope decides the sign of ε; the value and the gradient are the loss's."""
    params, batch = mlp_params(), mlp_batch()

    def negated(params, y, x):
        return -mlp_loss(params, x, y)

    estimate = ascent.random_gradient_estimate()
    plain, misled = (
        zosam_jax.value_and_grad(mlp_loss, ascent=estimate, rho=RHO, probe_fn=probe)
        for probe in (None, negated)
    )
    state = plain.init(params)
    uphill, downhill = (g.perturbation(params, state, **batch) for g in (plain, misled))
    assert_close(downhill, jax.tree.map(jnp.negative, uphill))
    there = jax.tree.map(jnp.add, params, downhill)
    expected = jax.value_and_grad(mlp_loss)(there, **batch)
    assert_close(misled(params, state, **batch)[0], expected)

    tx = zosam_jax.zo_sam(RHO)
    updates, _ = tx.update(
        None, tx.init(params), params, value_fn=mlp_loss, probe_fn=negated, **batch
    )
    assert_close(updates, expected[1])


def test_probe_fn_takes_its_own_arguments_by_name():
    def on_a_slice(params, small):
        return mlp_loss(params, **small)

    tx, params, batch = zosam_jax.zo_sam(RHO), mlp_params(), mlp_batch()
    small = {k: v[:4] for k, v in batch.items()}
    updates, _ = tx.update(
        None, tx.init(params), params, value_fn=mlp_loss, probe_fn=on_a_slice, small=small, **batch
    )
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=ascent.random_gradient_estimate(), rho=RHO)
    epsilon = grad.perturbation(params, grad.init(params), **small)
    expected = jax.grad(mlp_loss)(jax.tree.map(jnp.add, params, epsilon), **batch)
    assert_close(updates, expected)


def test_rho_follows_its_schedule(factory):
    radii = [0.3, 0.2, 0.1]
    schedule = optax.piecewise_interpolate_schedule("linear", 0.3, {2: 1 / 3})
    np.testing.assert_allclose([schedule(t) for t in range(3)], radii, rtol=1e-5)
    tx, batch, params = factory(schedule), mlp_batch(), mlp_params()
    state = tx.init(params)
    for rho in radii:
        expected, _ = factory(rho).update(None, state, params, value_fn=mlp_loss, **batch)
        updates, state = tx.update(None, state, params, value_fn=mlp_loss, **batch)
        assert_close(updates, expected)


def test_the_perturbation_of_a_part_is_that_of_the_examples_which_the_step_sees():
    def telling(params, x, y, rows):
        return mlp_loss(params, x, y), rows

    options = {"ascent": ascent.backprop(), "rho": RHO, "has_aux": True}
    half = zosam_jax.value_and_grad(telling, batch_fraction=0.5, **options)
    whole = zosam_jax.value_and_grad(telling, **options)
    params, batch = mlp_params(), mlp_batch() | {"rows": jnp.arange(8)}
    state = half.init(params, key=5)
    ((_, rows), _), _ = half(params, state, **batch)
    part = {name: x[rows] for name, x in batch.items()}
    epsilon = half.perturbation(params, state, **batch)
    assert_close(epsilon, whole.perturbation(params, state, **part))
    assert len(set(rows.tolist())) == 4


# What an ascent observes, and what microbatches average.


class Seen(NamedTuple):
    """What parts of a step remember: an array that is averaged, and a count that is not."""

    array: jax.Array
    count: jax.Array


START = Seen(jnp.zeros(()), jnp.zeros((), jnp.int32))


def part_values(found):
    """The mean over microbatches of a function of the loss on each of them."""
    parts = [{k: v[i::2] for k, v in mlp_batch().items()} for i in range(2)]
    return jnp.mean(jnp.stack([found(part) for part in parts]))


def test_an_ascent_observes_the_gradient_it_took_and_the_one_of_the_descent():
    seen = ascent.Ascent(
        init=lambda params: (params, params),
        direction=lambda *args, key, mask: ascent.backprop().direction(*args, key=key, mask=mask),
        observe=lambda state, found, gradient: (found.clean.gradient, gradient),
    )
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=seen, rho=RHO)
    params, batch = mlp_params(), mlp_batch()
    (_, gradient), state = grad(params, grad.init(params), **batch)
    assert_close(state.ascent[0], jax.grad(mlp_loss)(params, **batch))
    assert_equal(state.ascent[1], gradient)


def test_microbatches_average_what_the_ascent_found_before_it_is_observed():
    inner = ascent.backprop()

    def observe(state, found, gradient):
        assert found.losses is None  # one part's examples have no mean over the parts
        return found.clean.gradient, found.value, found.slope, gradient

    zeros = jnp.zeros(())
    seen = ascent.Ascent(lambda p: (p, zeros, zeros, p), inner.direction, observe)
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=seen, rho=RHO, microbatches=2)
    params, batch = mlp_params(), mlp_batch()
    (_, gradient), state = grad(params, grad.init(params), **batch)
    clean, value, slope, given = state.ascent
    # The whole batch's mean is the mean of its two halves.
    assert_close(clean, jax.grad(mlp_loss)(params, **batch))
    np.testing.assert_allclose(value, mlp_loss(params, **batch), rtol=1e-6)
    lengths = part_values(lambda part: optax.tree.norm(jax.grad(mlp_loss)(params, **part)))
    np.testing.assert_allclose(slope, lengths, rtol=1e-5)
    assert_equal(given, gradient)


def test_microbatches_average_the_states_of_the_descent_and_of_the_radius():
    params, batch = mlp_params(), mlp_batch()

    def gradient(point, state):
        found = point.objective.value_and_grad(descent.perturbed(point.params, point.epsilon))
        return descent.DescentResult(*found, Seen(found.value, state.count + 1))

    def observe(state, objective, params, epsilon):
        return Seen(objective.probe(params), state.count + 1)

    down = descent.Descent(lambda params: START, gradient)
    own = radius.Radius(radius.global_, lambda: START, lambda state: 1.0, observe)
    grad = zosam_jax.value_and_grad(
        mlp_loss, ascent=ascent.backprop(), rho=RHO, radius=own, descent=down, microbatches=2
    )
    (value, _), state = grad(params, grad.init(params), **batch)

    def beside(part):
        g = jax.grad(mlp_loss)(params, **part)
        moved = optax.tree.add_scale(params, RHO / optax.tree.norm(g), g)
        return mlp_loss(moved, **part)

    np.testing.assert_allclose(state.descent.array, part_values(beside), rtol=1e-5)
    np.testing.assert_allclose(value, state.descent.array, rtol=1e-6)
    here = part_values(lambda part: mlp_loss(params, **part))
    np.testing.assert_allclose(state.radius.array, here, rtol=1e-6)
    assert state.descent.count == state.radius.count == 1


def test_an_ascent_that_makes_no_pass_is_told_so():
    """As one that is left out, ρ being zero for good."""
    found_what = []

    def observe(state, found, gradient):
        found_what.append(found)
        return state

    seen = ascent.backprop()._replace(observe=observe)
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=seen, rho=0.0)
    grad(mlp_params(), grad.init(mlp_params()), **mlp_batch())
    assert found_what == [ascent.AscentResult(None)]


@pytest.mark.parametrize("name", ROWS)
def test_the_loss_is_traced_once_for_all_passes(name):
    traced = []

    def loss(params, x, y, kind):
        traced.append(kind)  # no array: the loss may branch on it, and return it
        value = mlp_loss(params, x, y) * (2.0 if kind == "double" else 1.0)
        return value, {"value": value, "kind": kind}

    grad = zosam_jax.value_and_grad(loss, ascent=ROWS[name], rho=RHO, has_aux=True)
    params = mlp_params()
    state = grad.init(params)

    @jax.jit
    def step(params, state, batch):
        ((_, aux), gradient), _ = grad(params, state, **batch, kind="double")
        assert aux["kind"] == "double"
        return gradient, aux["value"]

    gradient, value = step(params, state, mlp_batch())
    assert traced == ["double"]
    ((_, aux), expected), _ = grad(params, state, **mlp_batch(), kind="double")
    assert_close((gradient, value), (expected, aux["value"]), rtol=1e-4, atol=1e-5)


def test_a_part_of_the_batch_is_another_program():
    sizes = []

    def loss(params, x, y):
        sizes.append(len(x))
        return mlp_loss(params, x, y)

    grad = zosam_jax.value_and_grad(loss, ascent=ascent.backprop(fraction=0.5), rho=RHO)
    params, batch = mlp_params(), mlp_batch()
    jax.jit(lambda state: grad(params, state, **batch))(grad.init(params))
    assert sorted(sizes) == [len(batch["x"]) // 2, len(batch["x"])]
