"""The bound on errors that BiSAM's ascent climbs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zosam_jax import ascent

LOGITS = jnp.array([[2.0, -1.0, 0.5], [0.0, 3.0, 3.0], [1.0, 1.0, 1.0], [-9.0, 90.0, 0.0]])
LABELS = jnp.array([0, 0, 2, 0])


@pytest.mark.parametrize("mu", [1.0, 8.0])
def test_it_is_the_formula(mu):
    z = np.asarray(LOGITS, np.float64)
    margins = z - z[np.arange(4), LABELS][:, None]
    phi = 1 - np.log(1 + (np.e - 1) * np.exp(-margins))
    expected = np.log(np.exp(mu * phi).sum(axis=1)) / mu
    found = ascent.misclassification_bound(LOGITS, LABELS, mu)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_with_a_large_mu_it_is_below_the_count_of_errors():
    wrong = LOGITS.max(axis=1) > LOGITS[jnp.arange(4), LABELS]
    bound = ascent.misclassification_bound(LOGITS, LABELS, 100.0)
    assert (bound <= wrong + np.log(3) / 100 + 1e-6).all()


def test_distributions_are_targets_too_and_extremes_have_gradients():
    one_hot = jax.nn.one_hot(LABELS, 3)
    by_label = ascent.misclassification_bound(LOGITS, LABELS)
    np.testing.assert_allclose(ascent.misclassification_bound(LOGITS, one_hot), by_label, rtol=1e-6)
    gradient = jax.grad(lambda z: ascent.misclassification_bound(z, LABELS).sum())(100 * LOGITS)
    assert jnp.isfinite(gradient).all()
    unknown = ascent.misclassification_bound(LOGITS, LABELS.at[1].set(-1))
    np.testing.assert_array_equal(unknown, by_label.at[1].set(0.0))
    with pytest.raises(ValueError, match=r"mu=0 .*greater than 0"):
        ascent.misclassification_bound(LOGITS, LABELS, 0)
