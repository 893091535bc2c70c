"""Whole steps against somebody else: optax.contrib.sam, and the paper's formulas in NumPy."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from numpy_mlp import NumpyMLP, length, move, step_key, to_numpy
from problems import (
    RHO,
    assert_close,
    assert_equal,
    mlp_batch,
    mlp_loss,
    mlp_mask,
    mlp_params,
    stepper,
    train,
)

import zosam_jax
from zosam_jax import ascent, directions, masks

# SAM against optax.


def test_sam_equals_the_opaque_sam_of_optax():
    rho = optax.sgd(RHO)
    adversary = optax.chain(optax.contrib.normalize(), rho)
    theirs = optax.contrib.sam(optax.sgd(0.1, momentum=0.9), adversary, opaque_mode=True)
    batch, params = mlp_batch(), mlp_params()

    @jax.jit
    def step(params, state):
        def grad_fn(p, _):
            return jax.grad(mlp_loss)(p, **batch)

        updates, state = theirs.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    state = theirs.init(params)
    for _ in range(5):
        params, state = step(params, state)
    ours = optax.chain(zosam_jax.sam(RHO), optax.sgd(0.1, momentum=0.9))
    assert_close(train(ours, steps=5)[0], params)


# ZO-SAM and its control against NumPy: the loss and its gradient are written out by hand.


M, DELTA = 3, 1e-2


def zo_sam_direction(problem, p, draw, key):
    """ĝ = (1/m) Σᵢ [L(θ+δuᵢ) − L(θ−δuᵢ)] / (2δ) · uᵢ"""
    total = {k: np.zeros_like(v) for k, v in p.items()}
    for i in range(M):
        u = draw(jax.random.fold_in(key, i))
        above, below = problem.loss(move(p, u, DELTA)), problem.loss(move(p, u, -DELTA))
        total = move(total, u, (above - below) / (2 * DELTA) / M)
    return total


def random_direction(problem, p, draw, key):
    del problem, p
    return draw(key)


METHODS = {
    "zo_sam": (zo_sam_direction, {"num_directions": M, "delta": DELTA}),
    "random_weight_perturbation": (random_direction, {}),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)
@pytest.mark.parametrize("name", METHODS)
def test_three_steps_equal_the_papers_formulas_in_numpy(name, distribution, masked):
    uphill, options = METHODS[name]
    mask = masks.resolve(mlp_mask() if masked else None, mlp_params())
    problem, p = NumpyMLP(**mlp_batch()), to_numpy(mlp_params())

    def draw(key):
        return to_numpy(directions.get(distribution)(key, mlp_params(), mask))

    for count in range(3):
        g = uphill(problem, p, draw, step_key(11, count))
        perturbed = move(p, g, RHO / length(g))
        p = move(p, problem.gradient(perturbed), -0.1)

    tx = zosam_jax.REGISTRY[name](RHO, distribution=distribution, mask=mask, key=11, **options)
    params, state = train(optax.chain(tx, optax.sgd(0.1)), steps=3)
    assert_close(to_numpy(params), p, rtol=1e-4, atol=1e-5)
    value = optax.tree.get(state, "value")
    np.testing.assert_allclose(value, problem.loss(perturbed), rtol=1e-5)


def test_the_numpy_gradient_is_the_gradient():
    problem, p = NumpyMLP(**mlp_batch()), to_numpy(mlp_params())
    np.testing.assert_allclose(problem.loss(p), mlp_loss(mlp_params(), **mlp_batch()), rtol=1e-6)
    exact = jax.grad(mlp_loss)(mlp_params(), **mlp_batch())
    assert_close(problem.gradient(p), to_numpy(exact))


# The same thing as a function.

ROWS = {
    "sam": ascent.backprop(),
    "zo_sam": ascent.random_gradient_estimate(),
    "random_weight_perturbation": ascent.random_direction(),
}


@pytest.mark.parametrize("radius", ["global", "layerwise", "adaptive"])
@pytest.mark.parametrize("name", ROWS)
def test_the_transformation_and_the_function_agree_bit_for_bit(name, radius):
    params, batch = mlp_params(), mlp_batch()
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=ROWS[name], rho=RHO, radius=radius)
    options = {} if name == "sam" else {"key": 5}
    tx = zosam_jax.REGISTRY[name](RHO, radius=radius, **options)
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


# Stand-ins, schedules, costs.


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


class PassCounter:
    """Counts how often a loss runs, in whole batches, by callbacks in the compiled program."""

    def __init__(self, batch_size=8):
        self.passes = collections.Counter()
        self._batch_size = batch_size

    def _tick(self, what, value, rows):
        part = {what: rows / self._batch_size}
        jax.debug.callback(lambda _: self.passes.update(part), value)  # seen by vmap
        return value

    def loss(self, params, x, y):
        @jax.custom_vjp
        def count(value):
            return self._tick("forward alone", value, len(y))

        count.defvjp(
            lambda value: (self._tick("forward with gradient", value, len(y)), None),
            lambda _, cotangent: (self._tick("backward", cotangent, len(y)),),
        )
        return count(mlp_loss(params, x, y))


@pytest.mark.parametrize(
    ("make", "forward", "backward"),
    [
        (zosam_jax.sam, 0, 2),
        (lambda rho: zosam_jax.sam(rho, fraction=0.25), 0, 1.25),
        (zosam_jax.random_weight_perturbation, 0, 1),
        (zosam_jax.zo_sam, 2, 1),
        (lambda rho: zosam_jax.zo_sam(rho, num_directions=4), 8, 1),
        (lambda rho: zosam_jax.zo_sam(rho, num_directions=16), 32, 1),
        (lambda rho: zosam_jax.zo_sam(rho, num_directions=3, batching="vmap"), 6, 1),
        (
            lambda rho: zosam_jax.zo_sam(rho, num_directions=3, difference="forward", fraction=0.5),
            2,
            1,
        ),
        (
            lambda rho: zosam_jax.sharpness_aware(ascent.coordinate_gradient_estimate(), rho),
            64,
            1,
        ),
        (lambda rho: zosam_jax.zo_sam(0.0), 0, 1),
        (zosam_jax.asam, 0, 2),
        (zosam_jax.gsam, 0, 2),
        (zosam_jax.look_sam, 0, 1 + 1 / 5),
        (zosam_jax.esam, 1, 1.5),
        (zosam_jax.s2_sam, 0, 1),
        (zosam_jax.msam, 0, 2),
        (zosam_jax.guided_zo_sam, 4, 1),
        (lambda rho: zosam_jax.mezo(3), 6, 0),
        (lambda rho: zosam_jax.mezo(fraction=0.5), 2, 0),
    ],
    ids=[
        "sam",
        "sam quarter",
        "random",
        "zo m=1",
        "zo m=4",
        "zo m=16",
        "zo vmap",
        "zo forward half",
        "cge",
        "rho=0",
        "asam",
        "gsam",
        "look k=5",
        "esam",
        "s2",
        "m-sharpness",
        "guided",
        "mezo m=3",
        "mezo half",
    ],
)
def test_a_step_makes_the_passes_it_claims(make, forward, backward):
    passes = passes_of_five_steps(make(RHO))
    assert passes["forward alone"] == pytest.approx(5 * forward)
    assert passes["forward with gradient"] == passes["backward"] == pytest.approx(5 * backward)


def test_the_side_that_is_not_taken_has_no_backward_pass():
    passes = passes_of_five_steps(zosam_jax.antithetic_sam(RHO))
    assert passes == {"forward with gradient": 10, "backward": 5}


def passes_of_five_steps(tx):
    counter = PassCounter()
    tx = optax.chain(tx, optax.sgd(0.1))
    params, state, step = mlp_params(), tx.init(mlp_params()), stepper(tx, counter.loss)
    for _ in range(5):
        params, state = step(params, state, mlp_batch())
    jax.effects_barrier()
    return counter.passes
