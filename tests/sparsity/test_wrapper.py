"""Training under fixed masks: pruned weights at zero, and out of everybody's way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    RHO,
    assert_close,
    assert_equal,
    flatten,
    mlp_batch,
    mlp_loss,
    mlp_mask,
    mlp_params,
    stepper,
    train,
)

import zosam_jax
from zosam_jax import ascent, radius, sparsity

KEPT = 16


def base():
    return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))


def sparse_params():
    return sparsity.apply_masks(mlp_params(), mlp_mask())


def is_kept():
    """For each of the 32 coordinates, whether `mlp_mask` keeps it."""
    return flatten(sparsity.apply_masks(jax.tree.map(jnp.ones_like, mlp_params()), mlp_mask())) == 1


def test_the_mask_keeps_what_its_documentation_says():
    assert is_kept().sum() == KEPT


@pytest.mark.parametrize("rest", [base, lambda: optax.adamw(1e-2)])
def test_pruned_weights_are_exactly_zero_whatever_the_optimizer(factory, rest):
    tx = sparsity.fixed(optax.chain(factory(RHO), rest()), mlp_mask())
    params, _ = train(tx)  # from parameters that are not masked
    assert not flatten(params)[~is_kept()].any()
    assert (flatten(params)[is_kept()] != flatten(mlp_params())[is_kept()]).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_pruned_weights_are_exactly_zero_in_narrow_dtypes(dtype):
    tx = sparsity.fixed(optax.chain(zosam_jax.zo_sam(RHO), base()), mlp_mask())
    params, _ = train(tx, params=mlp_params(dtype), steps=1)
    assert params["out"]["kernel"].dtype == dtype
    assert not flatten(params)[~is_kept()].any()


def test_updates_narrower_than_the_parameters_land_on_zero_too():
    narrow = optax.stateless(lambda g, _: jax.tree.map(lambda x: x.astype(jnp.bfloat16), g))
    tx = sparsity.fixed(optax.chain(zosam_jax.sam(RHO), optax.sgd(0.1), narrow), mlp_mask())
    params, _ = train(tx, params=mlp_params(), steps=1)
    assert not flatten(params)[~is_kept()].any()


def test_a_sparse_run_is_a_run_of_the_sparse_network(factory):
    """The same as training the masked loss with the mask given to the ascent by hand."""

    def masked_loss(params, x, y):
        return mlp_loss(sparsity.apply_masks(params, mlp_mask()), x, y)

    wrapped, _ = train(
        sparsity.fixed(optax.chain(factory(RHO), base()), mlp_mask()), params=sparse_params()
    )
    tx = optax.chain(factory(RHO, mask=mlp_mask()), base())
    step, params, state = stepper(tx, masked_loss), sparse_params(), tx.init(sparse_params())
    for _ in range(3):
        params, state = step(params, state, mlp_batch())
    assert_close(wrapped, params)


@pytest.mark.parametrize("rule", radius.RULES)
@pytest.mark.parametrize("up", [ascent.backprop(), ascent.random_gradient_estimate()])
def test_the_perturbation_is_zero_on_pruned_weights(up, rule):
    seen = []

    def spy(direction, params, rho, mask=None):
        seen.append(radius.get(rule).rule(direction, params, rho, mask))
        return seen[-1]

    tx = sparsity.fixed(zosam_jax.sharpness_aware(up, RHO, radius=spy), mlp_mask())
    params = sparse_params()
    tx.update(None, tx.init(params), params, value_fn=mlp_loss, **mlp_batch())
    epsilon = flatten(seen[-1])
    assert not epsilon[~is_kept()].any()
    assert epsilon.any()
    if rule == "global":
        np.testing.assert_allclose(np.linalg.norm(epsilon), RHO, rtol=1e-5)


@pytest.mark.three_rows
def test_clipping_sees_the_norm_of_kept_weights_alone(factory):
    clip = optax.clip_by_global_norm(1e-3)
    tx, params = sparsity.fixed(optax.chain(factory(RHO), clip), mlp_mask()), sparse_params()
    updates, _ = tx.update(None, tx.init(params), params, value_fn=mlp_loss, **mlp_batch())
    np.testing.assert_allclose(np.linalg.norm(flatten(updates)[is_kept()]), 1e-3, rtol=1e-5)
    assert not flatten(updates)[~is_kept()].any()


def test_incoming_gradients_lose_their_pruned_part_before_clipping():
    """Of an optimizer that is not sharpness-aware."""
    tx = sparsity.fixed(optax.clip_by_global_norm(1.0), mlp_mask())
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 5.0), mlp_params())
    updates, _ = tx.update(gradient, tx.init(sparse_params()), sparse_params())
    np.testing.assert_allclose(flatten(updates)[is_kept()], 1 / np.sqrt(KEPT), rtol=1e-5)


@pytest.mark.three_rows
def test_momentum_is_that_of_the_sparse_network(factory):
    tx = sparsity.fixed(optax.chain(factory(RHO), base()), mlp_mask())
    _, state = train(tx, params=sparse_params())
    momentum = flatten(optax.tree.get(state, "trace"))
    assert not momentum[~is_kept()].any()
    assert momentum[is_kept()].all()


@functools.cache
def trained_dense(factory):
    return train(optax.chain(factory(RHO), base()))


def test_dense_masks_equal_no_wrapper_bit_for_bit(factory):
    params, state = train(sparsity.fixed(optax.chain(factory(RHO), base()), None))
    assert_equal((params, state.inner_state), trained_dense(factory))


@pytest.mark.parametrize("ones", [True, lambda p: jax.tree.map(lambda leaf: True, p)])
def test_all_ones_masks_do_the_same_arithmetic_as_no_wrapper(factory, ones):
    """Bit for bit op by op. XLA fuses the two programs differently, which may cost the last bit."""
    inner, params, batch = optax.chain(factory(RHO), base()), mlp_params(), mlp_batch()
    tx = sparsity.fixed(inner, ones)
    updates, _ = tx.update(None, tx.init(params), params, value_fn=mlp_loss, **batch)
    expected, _ = inner.update(None, inner.init(params), params, value_fn=mlp_loss, **batch)
    assert_equal(updates, expected)
    compiled, state = train(tx)
    # Diagnostics are differences of losses, with fewer digits left than the losses have.
    assert_close((compiled, state.inner_state), trained_dense(factory), atol=1e-5)


def test_donating_the_state_spares_the_callers_masks():
    masks = sparsity.random(mlp_params(), 0.5)
    tx = sparsity.fixed(optax.chain(zosam_jax.zo_sam(RHO), base()), masks)
    step = jax.jit(stepper(tx), donate_argnums=(0, 1))
    params, state = mlp_params(), tx.init(mlp_params())
    for _ in range(2):
        params, state = step(params, state, mlp_batch())
    assert not any(m.is_deleted() for m in jax.tree.leaves(masks))
    assert_equal(sparsity.get_masks(tx.init(mlp_params())), masks)


def test_scan_under_masks_equals_a_loop_and_compiles_once():
    tx = sparsity.fixed(optax.chain(zosam_jax.zo_sam(RHO), base()), mlp_mask())
    step, batch, start = stepper(tx), mlp_batch(), (mlp_params(), tx.init(mlp_params()))
    scanned, _ = jax.jit(
        lambda carry: jax.lax.scan(lambda c, _: (step(*c, batch), None), carry, length=3)
    )(start)
    looped = start
    for _ in range(3):
        looped = step(*looped, batch)
    assert_close(scanned, looped)
    assert step._cache_size() == 1


def test_masks_in_the_state_are_the_ones_that_count():
    """A run restored from a checkpoint trains under the masks it was saved with."""
    tx = sparsity.fixed(optax.chain(zosam_jax.sam(RHO), base()), None)
    state = tx.init(mlp_params())._replace(
        masks=sparsity.get_masks(sparsity.fixed(optax.sgd(0.1), mlp_mask()).init(mlp_params()))
    )
    params, _ = stepper(tx)(mlp_params(), state, mlp_batch())
    assert not flatten(params)[~is_kept()].any()


def test_probes_read_kept_weights_alone():
    seen = []

    def probe_fn(params):
        seen.append(flatten(params))
        return jnp.float32(0.0)

    tx, params = sparsity.fixed(zosam_jax.zo_sam(RHO), mlp_mask()), mlp_params()
    tx.update(None, tx.init(params), params, value_fn=mlp_loss, probe_fn=probe_fn, **mlp_batch())
    assert len(seen) == 2
    assert not np.stack(seen)[:, ~is_kept()].any()


def test_a_sparse_wrapper_takes_steps_and_nothing_else():
    tx, params = sparsity.fixed(zosam_jax.sam(RHO), mlp_mask()), mlp_params()
    with pytest.raises(ValueError, match="emit='perturbation': a sparse wrapper takes steps"):
        tx.update(
            None, tx.init(params), params, value_fn=mlp_loss, emit="perturbation", **mlp_batch()
        )
