"""What all ascents promise: in what they cost, and in what they survive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from problems import (
    KEY,
    RHO,
    assert_close,
    assert_equal,
    direction,
    flatten,
    mlp_batch,
    mlp_loss,
    mlp_mask,
    mlp_params,
    slow_but,
    uneven_mask,
    uneven_params,
    wavy,
)

import zosam_jax
from zosam_jax import ascent, directions, masks

every_distribution = pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)
every_mask = pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])

FAMILY = {
    "backprop": ascent.backprop(),
    "random gradient": ascent.random_gradient_estimate(2, delta=1e-2),
    "forward gradient": ascent.forward_gradient(2),
    "random direction": ascent.random_direction(),
    "previous gradient": ascent.previous_gradient(0.5),
    "friendly": ascent.friendly(),
    "smoothed": ascent.smoothed(0.5),
    "momentum": ascent.momentum(0.5),
    "some arrays": ascent.stochastic_weight_perturbation(ascent.backprop(), 0.7),
}
every_ascent = pytest.mark.parametrize("name", FAMILY)
# Those that find nothing where no loss is finite.
LOOKING = ["backprop", "random gradient", "forward gradient", "friendly", "smoothed"]


def test_backprop_is_the_gradient():
    assert_equal(
        direction(ascent.backprop(), wavy, uneven_params()), jax.grad(wavy)(uneven_params())
    )


@every_distribution
@every_mask
def test_a_random_direction_is_the_draw_itself(distribution, mask):
    found = direction(
        ascent.random_direction(distribution), wavy, uneven_params(), key=KEY, mask=mask
    )
    assert_equal(found, directions.get(distribution)(KEY, uneven_params(), mask))


MEASURING = {
    "backprop": ascent.backprop(),
    "random gradient": ascent.random_gradient_estimate(2),
    "coordinate gradient": ascent.coordinate_gradient_estimate(),
}
every_look = pytest.mark.parametrize("name", MEASURING)


@every_look
def test_at_a_stationary_point_the_gradient_is_the_plain_one(name):
    params = jax.tree.map(jnp.zeros_like, uneven_params())
    squared = functools.partial(optax.tree.norm, squared=True)
    grad = zosam_jax.value_and_grad(squared, ascent=MEASURING[name], rho=0.5)
    state = grad.init(params)
    assert not flatten(grad.perturbation(params, state)).any()
    (value, gradient), _ = grad(params, state)
    assert value == 0
    assert not flatten(gradient).any()


@every_look
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_loss_that_is_not_finite_nearby_gives_no_perturbation(name, bad):
    params = uneven_params()

    def loss(p):
        inside = optax.tree.norm(optax.tree.sub(p, params)) == 0
        return jnp.where(inside, 1.0, bad) * wavy(p)

    grad = zosam_jax.value_and_grad(loss, ascent=MEASURING[name], rho=0.5)
    epsilon = grad.perturbation(params, grad.init(params))
    if name != "backprop":  # whose gradient at θ knows nothing of the neighbourhood
        assert not flatten(epsilon).any()
    assert np.isfinite(flatten(epsilon)).all()


def test_a_gradient_that_is_not_finite_gives_no_perturbation():
    def loss(params):
        return jnp.sqrt(params["w"]).sum()  # infinitely steep at 0

    grad = zosam_jax.value_and_grad(loss, ascent=ascent.backprop(), rho=0.5)
    params = {"w": jnp.array([0.0, 4.0])}
    assert not flatten(grad.perturbation(params, grad.init(params))).any()


def test_an_ascent_may_learn_from_the_gradients_it_is_shown():
    """A previous-gradient ascent (S2-SAM), written here: ε_t ∝ ∇L(θ+ε) of the step before."""
    previous = ascent.Ascent(
        init=lambda params: jax.tree.map(jnp.zeros_like, params),
        direction=lambda objective, params, state, *, key, mask: ascent.AscentResult(state),
        observe=lambda state, found, gradient: gradient,
    )
    params, grad = uneven_params(), zosam_jax.value_and_grad(wavy, ascent=previous, rho=0.5)
    state = grad.init(params)
    (_, first), state = grad(params, state)
    assert_close(first, jax.grad(wavy)(params))
    assert_equal(state.ascent, first)
    epsilon = grad.perturbation(params, state)
    expected = 0.5 * flatten(first) / np.linalg.norm(flatten(first))
    np.testing.assert_allclose(flatten(epsilon), expected, rtol=1e-5)


# What all of them promise, on parameters with leaves that are none of their business.


def family_params(seed=0, dtype=jnp.float32):
    return mlp_params(dtype, seed) | {"none": None, "table": jnp.arange(3)}


def family_batch(seed=1, scale=1.0):
    return mlp_batch(seed=seed) | {"scale": jnp.asarray(scale)}


def family_loss(params, x, y, scale):
    return scale * mlp_loss(params, x, y) + 0.0 * params["table"].sum()


def gradient_of(name, **options):
    return zosam_jax.value_and_grad(family_loss, ascent=FAMILY[name], rho=RHO, **options)


def training_step(grad, params, state, batch):
    (_, gradient), state = grad(params, state, **batch)
    gradient = optax.tree.scale(-0.1, gradient)
    return optax.apply_updates(params, gradient), state


@functools.cache
def stepping(name):
    """The gradient, and a compiled training step that consumes the state it is given."""
    grad = gradient_of(name)
    return grad, jax.jit(functools.partial(training_step, grad), donate_argnums=1)


def three_steps(name, seed=0):
    """Parameters and state, from seed to end."""
    grad, step = stepping(name)
    params = family_params(seed)
    state = grad.init(params, seed)
    for i in range(3):
        params, state = step(params, state, family_batch(i))
    return params, state


def comparable(params, state):
    """Without the gain of the ascent, a difference of nearly equal numbers."""
    return params, state.ascent, state.value, state.diagnostics.epsilon_norm


@pytest.mark.parametrize("name", slow_but({"random gradient", "friendly"}, FAMILY))
def test_a_scan_over_steps_of_several_runs_equals_loops(name):
    grad, _ = stepping(name)

    @jax.jit
    @jax.vmap
    def scanned(params, seed):
        def body(carry, batch):
            return training_step(grad, *carry, batch), None

        batches = jax.tree.map(lambda *x: jnp.stack(x), *(family_batch(i) for i in range(3)))
        return jax.lax.scan(body, (params, grad.init(params, seed)), batches)[0]

    runs = jax.tree.map(lambda *x: jnp.stack(x), *(family_params(i) for i in range(2)))
    together = scanned(runs, jnp.arange(2))
    for i in range(2):
        alone = jax.tree.map(lambda x, i=i: x[i], together)
        assert_close(comparable(*alone), comparable(*three_steps(name, i)), rtol=5e-3, atol=5e-4)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize("name", slow_but({"random gradient", "friendly"}, LOOKING))
def test_four_devices_take_the_steps_of_one(name):
    """Inside a checked shard_map, each with its part of the batch."""
    replicated, split = PartitionSpec(), PartitionSpec("data")
    grad = gradient_of(name, axis_name="data")
    step = jax.shard_map(
        functools.partial(training_step, grad),
        mesh=jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(replicated, replicated, {"x": split, "y": split, "scale": replicated}),
        out_specs=replicated,
    )
    step, params = jax.jit(step), family_params()
    state = grad.init(params, 0)
    for i in range(3):
        params, state = step(params, state, family_batch(i))
    # A slope is a small difference of losses, which are summed in another order.
    assert_close(comparable(params, state), comparable(*three_steps(name)), rtol=5e-3, atol=1e-3)


@every_ascent
def test_only_kept_weights_are_perturbed(name):
    params, state = three_steps(name)
    mask = mlp_mask() | {"none": None, "table": None}
    look = jax.jit(gradient_of(name).perturbation)
    found = look(params, state, **family_batch(), mask=mask)
    np.testing.assert_allclose(optax.tree.norm(found), RHO, rtol=1e-5)
    assert_equal(found, masks.restrict(found, masks.resolve(mask, params)))
    assert name == "some arrays" or np.count_nonzero(flatten(found)) == 16
    assert found["none"] is None
    assert not found["table"].any()


@every_ascent
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_batch_that_is_not_finite_is_forgotten(name, bad):
    """Neither its losses nor its gradient are seen in the steps after."""
    grad, step = stepping(name)
    state, lengths = grad.init(family_params()), []
    for seed, scale in enumerate((bad, 1.0, bad, 1.0, 1.0)):
        _, state = step(family_params(), state, family_batch(seed, scale))
        lengths.append(float(state.diagnostics.epsilon_norm))
    assert np.isfinite(lengths).all()
    if name in LOOKING:
        assert lengths[0] == 0
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.ascent))
    np.testing.assert_allclose(lengths[-1], RHO, rtol=1e-5)


@every_ascent
def test_a_flat_loss_gives_its_gradient_and_stays_finite(name):
    """Zero gradients, observed and looked for."""
    grad, step = stepping(name)
    params, state = family_params(), grad.init(family_params())
    for _ in range(3):
        params, state = step(params, state, family_batch(scale=0.0))
        assert state.diagnostics.epsilon_norm in (0, pytest.approx(RHO, rel=1e-5))
    assert_equal(params, family_params())
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.ascent))


@every_ascent
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_state_stays_what_it_was_and_is_never_narrow(name, dtype):
    """Arrays, with the shapes and dtypes of the start: what a loop can carry."""
    params, (grad, _) = family_params(dtype=dtype), stepping(name)
    state = grad.init(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    new_params, after = jax.eval_shape(
        functools.partial(training_step, grad), params, state, family_batch()
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)
    kinds = [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)]
    assert [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(after)] == kinds
    assert {str(x.dtype) for x in jax.tree.leaves(state.ascent)} <= {"float32", "int32", "bool"}
    assert new_params["hidden"]["kernel"].dtype == dtype


# Wrong input.


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ascent.previous_gradient(1.0), ValueError, "decay=1.0 must be below 1"),
        (lambda: ascent.previous_gradient("a"), TypeError, "decay='a' must be a number"),
        (lambda: ascent.friendly(-1), ValueError, "sigma=-1 must be a finite number at least 0"),
        (lambda: ascent.friendly(decay=1), ValueError, "decay=1 must be below 1"),
        (lambda: ascent.forward_gradient(0), ValueError, "num_directions=0 must be at least 1"),
        (lambda: ascent.forward_gradient(1, "x"), ValueError, "distribution='x' is not known"),
        (lambda: ascent.forward_gradient(batching="x"), ValueError, "batching='x' is not known"),
        (lambda: ascent.forward_gradient(fraction=2), ValueError, "fraction=2 must be at most 1"),
    ],
)
def test_wrong_input_is_told_what_would_be_right(make, error, message):
    with pytest.raises(error, match=message):
        make()
