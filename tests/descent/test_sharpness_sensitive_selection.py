"""ESAM's choices, of examples and of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from problems import (
    RHO,
    assert_close,
    emitted,
    mlp_logits,
)

import zosam_jax
from zosam_jax import ascent, descent, objective
from zosam_jax.binding import Call

SEED = 11


def test_the_hardest_examples_are_those_that_lose_most_and_the_first_of_equals():
    """ℓᵢ = wᵢ: a rise is a coordinate of ε, and the gradient shows who was taken."""

    def loss(w, index):
        return w[index].mean()

    problem = objective.Objective(Call(loss, (jnp.arange(6),)), name="loss")
    w, epsilon = jnp.zeros(6), jnp.array([1.0, 3.0, 2.0, 3.0, 3.0, -4.0])
    point = descent.PerturbedPoint(problem, w, epsilon, ascent.AscentResult(None), mask=None)
    result = descent.sharpness_sensitive_selection(0.5).gradient(point, ())
    np.testing.assert_allclose(result.gradient, np.array([0, 1, 0, 1, 1, 0]) / 3)
    result = descent.sharpness_sensitive_selection(0.01).gradient(point, ())
    np.testing.assert_allclose(result.gradient, [0, 1, 0, 0, 0, 0])


def test_arrays_are_kept_with_their_probability_each():
    tree = {str(i): jnp.ones(2) for i in range(100)}
    constant = ascent.stateless(lambda objective, params, *, key, mask: ascent.AscentResult(params))
    kept = ascent.stochastic_weight_perturbation(constant, keep=0.3)
    drawn = [
        kept.direction(None, tree, (), key=jax.random.key(i), mask=None).direction for i in (0, 1)
    ]
    first, second = (np.array([leaf[0] for leaf in jax.tree.leaves(d)]) for d in drawn)
    assert set(first) == {0, 1}
    assert abs(first.mean() - 0.3) < 0.16  # three and a half standard deviations
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.35


def test_with_no_array_kept_there_is_no_perturbation():
    tx = zosam_jax.esam(RHO, beta=1e-6)
    epsilon, _ = emitted(tx, emit="perturbation")
    assert not any(leaf.any() for leaf in jax.tree.leaves(epsilon))
    updates, _ = emitted(tx)
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_losses_fn_gives_the_losses_and_their_mean():
    seen = []

    def losses(params, x, y):
        seen.append(len(y))
        logits = mlp_logits(params, x)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)

    tx = zosam_jax.esam(RHO)
    assert_close(emitted(tx, losses_fn=losses)[0], emitted(tx)[0])
    assert seen == [8, 8]  # with the gradient at θ, and at θ+ε
