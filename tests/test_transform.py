"""What an optimizer state tells, wherever it stands; and updates that come in for nothing."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state
from problems import RHO, assert_close, assert_equal, mlp_batch, mlp_loss, mlp_mask, mlp_params

import zosam_jax
from zosam_jax import masks, sparsity, transform

PARAMS = {"value": jnp.ones(3), "diagnostics": jnp.full(2, 0.5)}


def bowl(params):
    """L = 1 + ‖θ‖², whose value at θ+ε is (‖θ‖ + ρ)² + 1."""
    return 1.0 + optax.tree.norm(params, squared=True)


AT_EPSILON = 1 + (np.sqrt(3.5) + RHO) ** 2


def adam():
    return optax.chain(zosam_jax.sam(RHO), optax.adam(1e-2))


AROUND = {
    "alone": lambda: zosam_jax.sam(RHO),
    "beside adam": adam,
    "a chain in a chain": lambda: optax.chain(adam(), optax.scale(0.5)),
    "rigl": lambda: sparsity.rigl(adam(), 0.0, total_steps=10),
    "set, masked": lambda: sparsity.fixed(adam(), {"value": True, "diagnostics": None}),
    "injected": lambda: optax.inject_hyperparams(zosam_jax.sam)(rho=RHO),
}


@pytest.mark.parametrize("make", AROUND.values(), ids=AROUND)
def test_the_loss_and_the_diagnostics_are_found_wherever_they_stand(make):
    tx = make()
    state = tx.init(PARAMS)
    assert zosam_jax.value(state) == jnp.inf
    _, state = tx.update(None, state, PARAMS, value_fn=bowl)
    np.testing.assert_allclose(zosam_jax.value(state), AT_EPSILON, rtol=1e-6)
    found = zosam_jax.diagnostics(state)
    assert isinstance(found, zosam_jax.Diagnostics)
    np.testing.assert_allclose(found.epsilon_norm, RHO, rtol=1e-6)
    np.testing.assert_allclose(found.ascent_gain, AT_EPSILON - 4.5, rtol=1e-5)


def test_they_are_found_under_jit_and_in_a_scan():
    tx = adam()

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, value_fn=bowl)
        return (optax.apply_updates(params, updates), state), zosam_jax.value(state)

    _, values = jax.lax.scan(body, (PARAMS, tx.init(PARAMS)), length=3)
    np.testing.assert_allclose(values[0], AT_EPSILON, rtol=1e-6)
    assert (jnp.diff(values) < 0).all()


def test_they_are_found_in_flax_s_own_optimizers():
    """Attention has a parameter that is called "value"."""
    model = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adam(), wrt=nnx.Param)
    assert zosam_jax.value(optimizer.opt_state) == jnp.inf
    assert zosam_jax.diagnostics(optimizer.opt_state).rho_used == 0
    state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=adam())
    assert zosam_jax.value(state.opt_state) == jnp.inf


@pytest.mark.parametrize("read", [zosam_jax.value, zosam_jax.diagnostics, zosam_jax.pop_aux])
@pytest.mark.parametrize("transformations", [0, 2])
def test_there_has_to_be_one_transformation(read, transformations):
    tx = optax.chain(*[zosam_jax.sam(0.1)] * transformations, optax.sgd(0.1))
    sentence = f"holds {transformations} sharpness-aware transformations, expected one"
    with pytest.raises(ValueError, match=sentence):
        read(tx.init(mlp_params()))


# Incoming updates.


GRADIENT = jax.grad(mlp_loss)(mlp_params(), **mlp_batch())
IGNORED = "ignores the incoming updates"


def update(tx, updates):
    params = mlp_params()
    return tx.update(updates, tx.init(params), params, value_fn=mlp_loss, **mlp_batch())


def test_the_warning_names_the_order_that_works_and_appears_once():
    tx = optax.chain(optax.clip(1.0), zosam_jax.sam(RHO))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            update(tx, GRADIENT)
    assert len(seen) == 1
    assert r"optax.chain(zo_sam(...), clip, ...)" in str(seen[0].message)
    assert "optax.chain(zo_sam(...), optax.MultiSteps(...))" in str(seen[0].message)


def test_accumulation_around_it_is_warned_of():
    accumulating = optax.MultiSteps(zosam_jax.sam(RHO), 2)
    with pytest.warns(UserWarning, match=IGNORED):
        update(accumulating.gradient_transformation(), GRADIENT)


def test_none_needs_no_warning():
    update(optax.chain(zosam_jax.sam(RHO), optax.clip(1.0)), None)


def test_parts_of_a_partition_are_given_updates_without_a_warning():
    """They have to be there for the other parts."""
    labels = {"hidden": "sharp", "out": "plain"}
    own = optax.chain(zosam_jax.sam(RHO), optax.sgd(0.1))
    tx = optax.partition({"sharp": own, "plain": optax.sgd(0.1)}, labels)
    params = mlp_params()

    def loss(own, x, y):
        return mlp_loss({"hidden": own["hidden"], "out": params["out"]}, x, y)

    updates, _ = tx.update(GRADIENT, tx.init(params), params, value_fn=loss, **mlp_batch())
    assert_equal(updates["out"], jax.tree.map(lambda g: -0.1 * g, GRADIENT["out"]))


@pytest.mark.parametrize("first", [zosam_jax.mezo(), zosam_jax.sam(RHO)], ids=["mezo", "sam"])
def test_gradients_for_a_sparse_wrapper_stay_with_it(first):
    """Masks grow by them; what is inside takes the gradient itself."""
    tx = sparsity.rigl(optax.chain(first, optax.sgd(0.1)), 0.5, total_steps=10, every=1)
    params, batch = mlp_params(), mlp_batch()
    state = tx.init(params)
    params = sparsity.apply_masks(params, state.masks)
    step = jax.jit(
        lambda g: tx.update(g, state, params, value_fn=mlp_loss, **batch)[1].masks["out"]["kernel"]
    )
    with pytest.warns(UserWarning, match="decide where masks grow, and nothing else"):
        one, other = step(GRADIENT), step(jax.tree.map(lambda g: 1 / (g + 1e-3), GRADIENT))
    assert not jnp.array_equal(one, other)


def test_gradients_for_the_parts_of_a_sparse_optimizer_reach_them():
    labels = {"hidden": "sharp", "out": "plain"}
    own = optax.chain(zosam_jax.sam(RHO), optax.sgd(0.1))
    mixed = optax.partition({"sharp": own, "plain": optax.sgd(0.1)}, labels)
    params = mlp_params()

    def loss(own, x, y):
        return mlp_loss({"hidden": own["hidden"], "out": params["out"]}, x, y)

    tx = sparsity.fixed(mixed, None)
    updates, _ = tx.update(GRADIENT, tx.init(params), params, value_fn=loss, **mlp_batch())
    assert_equal(updates["out"], jax.tree.map(lambda g: -0.1 * g, GRADIENT["out"]))


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (zosam_jax.sam(RHO), True),
        (optax.chain(zosam_jax.sam(RHO), optax.sgd(0.1)), True),
        (optax.chain(optax.chain(zosam_jax.sam(RHO)), optax.sgd(0.1)), True),
        (optax.chain(optax.clip(1.0), zosam_jax.sam(RHO)), False),
        (optax.chain(optax.chain(optax.clip(1.0)), zosam_jax.sam(RHO)), False),
        (optax.sgd(0.1), False),
    ],
)
def test_what_comes_first_in_a_chain(tx, expected):
    assert transform.comes_first(tx.init(mlp_params())) is expected


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("make", [zosam_jax.zo_sam, zosam_jax.sam, zosam_jax.look_sam])
def test_float8_arrays_and_pythons_numbers_are_parameters(make, sparse):
    """Computed in float32; the update of a float8 array has its dtype."""

    def loss(params, dtype=jnp.float32):
        return jnp.sum((jnp.asarray(params["w"], dtype) - 1.0) ** 2) + (params["b"] - 2.0) ** 2

    params = {"w": jnp.full((2, 2), 0.5, jnp.float8_e4m3fn), "b": 0.5}
    tx = make(1e-3)
    if sparse:
        tx = sparsity.fixed(tx, {"w": jnp.eye(2), "b": 1})
    gradient, _ = tx.update(None, tx.init(params), params, value_fn=loss)
    assert gradient["w"].dtype == jnp.float8_e4m3fn
    expected = -np.eye(2) if sparse else -np.ones((2, 2))
    if sparse:
        expected -= 0.5 * (1 - np.eye(2))  # which takes pruned weights to zero
    np.testing.assert_allclose(gradient["w"].astype(jnp.float32), expected, atol=0.1)
    np.testing.assert_allclose(gradient["b"], -3.0, atol=0.01)


def test_perturbing_restricts_epsilon_and_nothing_else():
    """Under a sparse wrapper's mask, whose gradient stays whole."""
    mask = mlp_mask()
    some = {"hidden": True, "out": {"bias": None, "kernel": False}}
    tx, params, batch = zosam_jax.perturbing(zosam_jax.sam(RHO), some), mlp_params(), mlp_batch()
    plain, state = zosam_jax.sam(RHO), tx.init(params)
    of_step = {"value_fn": mlp_loss, "mask": mask, **batch}
    epsilon, _ = tx.update(None, state, params, emit="perturbation", **of_step)
    both = masks.both(masks.resolve(mask, params), masks.resolve(some, params))
    assert_equal(epsilon, masks.restrict(epsilon, both))
    of_both = {**of_step, "mask": both}
    expected, _ = plain.update(None, plain.init(params), params, emit="perturbation", **of_both)
    assert_equal(epsilon, expected)

    kept, state = tx.update(None, state, params, keep_gradient=True, **of_step)
    whole, _ = transform.pop_gradient(state)
    exact = jax.grad(mlp_loss)(jax.tree.map(jnp.add, params, epsilon), **batch)
    assert_close(whole, exact)
    assert_close(kept, masks.apply_masks(exact, mask))
