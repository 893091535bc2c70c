"""The loss on parts of its batch, and its passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, mlp_batch, mlp_loss, mlp_params

import zosam_jax
from zosam_jax import ascent, probes
from zosam_jax.binding import Call
from zosam_jax.objective import Objective


def of_batch(rows=8, **options):
    return Objective(Call(mlp_loss, kwargs=mlp_batch(rows)), name="loss", **options)


@pytest.mark.parametrize(("fraction", "rows"), [(0.25, [0, 4]), (0.5, [0, 2, 4, 6]), (0.01, [0])])
def test_a_fraction_is_every_nth_example(fraction, rows):
    part = {k: v[jnp.asarray(rows)] for k, v in mlp_batch().items()}
    found = of_batch().on_fraction(fraction).probe(mlp_params())
    np.testing.assert_allclose(found, mlp_loss(mlp_params(), **part), rtol=1e-6)


def test_a_fraction_that_does_not_divide_is_the_first_examples():
    part = {k: v[:3] for k, v in mlp_batch().items()}
    found = of_batch().on_fraction(0.4).probe(mlp_params())
    np.testing.assert_allclose(found, mlp_loss(mlp_params(), **part), rtol=1e-6)


def drawn(size, fraction, key):
    """Which examples of a batch a random part of it has."""
    whole = Objective(Call(lambda params, x: jnp.sum(2.0**x), (jnp.arange(size),)), name="loss")
    total = int(whole.on_random_part(fraction, key).probe(()))
    return [i for i in range(size) if total >> i & 1]


@pytest.mark.parametrize(
    ("size", "fraction", "count"), [(8, 0.5, 4), (12, 0.75, 9), (8, 0.4, 3), (6, 0.01, 1)]
)
def test_a_random_part_has_every_example_equally_often_and_none_twice(size, fraction, count):
    parts = [drawn(size, fraction, key) for key in jax.random.split(jax.random.key(0), 100)]
    assert {len(part) for part in parts} == {count}
    times = np.bincount(np.concatenate(parts), minlength=size)
    share = count / size
    assert abs(times - 100 * share).max() < 5 * np.sqrt(100 * share * (1 - share))


def test_the_whole_batch_needs_no_arguments():
    whole = Objective(Call(jnp.sum), name="loss")
    assert whole.on_fraction(1.0).probe(jnp.ones(3)) == 3


def test_a_batch_that_cannot_be_told_is_asked_for():
    closed = Objective(Call(jnp.sum), name="value_fn")
    with pytest.raises(ValueError, match="arguments of value_fn hold no array"):
        closed.on_fraction(0.5)
    uneven = Objective(Call(lambda p, x, w: 0.0, (jnp.ones(8), jnp.ones(3))), name="loss")
    with pytest.raises(ValueError, match=r"have first axes of \[3, 8\]"):
        uneven.on_fraction(0.5)


def test_keys_and_scalars_are_not_part_of_the_batch():
    def loss(params, x, key, scale):
        del key
        return jnp.sum(params) * scale + jnp.sum(x)

    noisy = Objective(Call(loss, (jnp.arange(4.0), jax.random.key(0), 2.0)), name="loss")
    assert noisy.batch_size == 4
    assert noisy.on_fraction(0.5).probe(jnp.ones(())) == 4


def test_the_examples_losses_have_the_loss_for_their_mean():
    losses = of_batch().losses(mlp_params())
    assert losses.shape == (8,)
    np.testing.assert_allclose(losses.mean(), mlp_loss(mlp_params(), **mlp_batch()), rtol=1e-6)


def test_losses_of_another_shape_are_refused():
    wrong = of_batch(losses=Call(lambda p, x, y: jnp.zeros(3), kwargs=mlp_batch()))
    with pytest.raises(TypeError, match=r"losses_fn returned an array of shape \(3,\)"):
        wrong.losses(mlp_params())


def test_sam_on_a_fraction_climbs_along_that_parts_gradient():
    params, batch = mlp_params(), mlp_batch()
    part = {k: v[::4] for k, v in batch.items()}
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=ascent.backprop(0.25), rho=0.3)
    whole = zosam_jax.value_and_grad(mlp_loss, ascent=ascent.backprop(), rho=0.3)
    epsilon = grad.perturbation(params, grad.init(params), **batch)
    assert_close(epsilon, whole.perturbation(params, whole.init(params), **part))
    there = jax.tree.map(jnp.add, params, epsilon)
    found, _ = grad(params, grad.init(params), **batch)
    assert_close(found, jax.value_and_grad(mlp_loss)(there, **batch))


def test_probes_in_a_lower_precision_are_float32_again():
    seen = []

    def loss(params, x, y):
        seen.append((params["out"]["kernel"].dtype, x.dtype, y.dtype))
        return mlp_loss(params, x, y), None

    probe = probes.in_precision(loss, jnp.bfloat16)
    value = probe(mlp_params(), **mlp_batch())
    assert value.dtype == jnp.float32
    assert seen == [(jnp.bfloat16, jnp.bfloat16, mlp_batch()["y"].dtype)]
    np.testing.assert_allclose(value, mlp_loss(mlp_params(), **mlp_batch()), rtol=2e-2)
    tx = zosam_jax.zo_sam(0.3, delta=1e-2)
    updates, _ = tx.update(
        None, tx.init(mlp_params()), mlp_params(), value_fn=mlp_loss, probe_fn=probe, **mlp_batch()
    )
    assert jax.tree.structure(updates) == jax.tree.structure(mlp_params())


def weighted(params, x, y, *, class_weights, key, legacy_key):
    """A loss whose arguments are not all per example."""
    del key, legacy_key
    return mlp_loss(params, x, y) * class_weights.sum()


SHARED = {
    "class_weights": jnp.array([1.0, 0.5, 0.5]),
    "key": jax.random.key(0),
    "legacy_key": jax.random.PRNGKey(0),
}


def test_class_weights_and_keys_are_passed_whole_to_a_part():
    def loss(params, x, y, *, class_weights, key, legacy_key):
        assert y.shape == (4,)
        assert (x.shape[0], class_weights.shape, key.shape, legacy_key.shape) == (4, (3,), (), (2,))
        return 0.0

    kwargs = {"x": jnp.ones((8, 2)), "y": jnp.ones(8), **SHARED}
    Objective(Call(loss, kwargs=kwargs), name="loss").on_fraction(0.5).probe(mlp_params())


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [zosam_jax.subbatch_sam, zosam_jax.esam, lambda rho: zosam_jax.msam(rho, microbatches=2)],
    ids=["subbatch_sam", "esam", "msam"],
)
def test_optimizers_take_what_is_no_example_as_if_it_were_closed_over(make):
    tx, params, batch = make(0.05), mlp_params(), mlp_batch(8)
    closed = functools.partial(weighted, **SHARED)
    given, _ = tx.update(None, tx.init(params), params, value_fn=weighted, **batch, **SHARED)
    expected, _ = tx.update(None, tx.init(params), params, value_fn=closed, **batch)
    assert_close(given, expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"class_weights": jnp.ones(3), "x": jnp.ones((8, 2)), "y": jnp.ones(8)},
        {"x": jnp.ones((8, 2)), "class_weights": jnp.ones(3)},
        {"x": jnp.ones((2, 2)), "y": jnp.ones(2), "key": jax.random.PRNGKey(0)},
    ],
    ids=["weights first", "as many weights as examples", "as many words as examples"],
)
def test_arguments_that_do_not_tell_the_batch_are_refused(arguments):
    objective = Objective(Call(mlp_loss, kwargs=arguments), name="value_fn")
    with pytest.raises(ValueError, match=r"functools\.partial\(value_fn, class_weights"):
        objective.on_fraction(0.5)
