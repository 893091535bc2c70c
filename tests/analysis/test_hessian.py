"""The Hessian without the Hessian, against the dense one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from problems import (
    assert_close,
    assert_equal,
    flatten,
    mlp_batch,
    mlp_loss,
    mlp_mask,
    mlp_params,
    uneven_mask,
    uneven_params,
)

from zosam_jax import sparsity
from zosam_jax.analysis import hessian
from zosam_jax.integrations import nnx as nnx_integration

BATCHES = [mlp_batch(seed=seed) for seed in (1, 2)]
WHOLE = {name: jnp.concatenate([batch[name] for batch in BATCHES]) for name in ("x", "y")}
every_mask = pytest.mark.parametrize("mask", [None, mlp_mask()], ids=["dense", "masked"])


def loss_fn(params, batch):
    return mlp_loss(params, **batch)


def kept_of(params, mask):
    """Which coordinates of the flat parameters are kept."""
    ones = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    return flatten(sparsity.apply_masks(ones, mask)) == 1


def dense_hessian(loss_fn, params, batches, mask=None):
    """P H P by jax.hessian, its zero rows and columns still in it."""
    flat, unravel = ravel_pytree(params)
    on_batch = jax.jit(jax.hessian(lambda p, batch: loss_fn(unravel(p), batch)))
    whole = np.mean([on_batch(flat, batch) for batch in batches], axis=0)
    kept = kept_of(params, mask)
    return whole * np.outer(kept, kept)


def kept_eigenvalues(matrix, kept):
    return np.linalg.eigvalsh(matrix[np.ix_(kept, kept)])


def quadratic(matrix):
    """½ θᵀAθ of the flattened parameters; the batch is a factor on it."""
    matrix = jnp.asarray(matrix, jnp.float32)

    def loss(params, factor):
        flat, _ = ravel_pytree(params)
        return factor * flat @ matrix @ flat / 2

    return loss


def symmetric(size=12, seed=3):
    draw = np.random.default_rng(seed).normal(size=(size, size))
    return (draw + draw.T) / 2


def small_network():
    """A network of 84 parameters with a convolution and BatchNorm at statistics of its own."""
    rngs = nnx.Rngs(0)
    norm = nnx.BatchNorm(3, rngs=rngs)
    norm.mean[...] = jnp.array([0.1, -0.2, 0.3])
    norm.var[...] = jnp.array([0.5, 1.0, 2.0])
    model = nnx.Sequential(
        nnx.Conv(1, 3, (3, 3), padding="SAME", use_bias=False, rngs=rngs),
        norm,
        jnp.tanh,
        lambda x: x.reshape(len(x), -1)[:, ::3],
        nnx.Linear(16, 3, rngs=rngs),
    )
    model.eval()
    graphdef, params, model_state = nnx_integration.split(model)

    def loss(params, batch):
        logits = nnx.merge(graphdef, params, model_state)(batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    rng = np.random.default_rng(4)
    images = rng.normal(size=(2, 6, 4, 4, 1)).astype(np.float32)
    return loss, params, list(zip(images, rng.integers(0, 3, (2, 6)), strict=True))


@every_mask
def test_products_equal_those_with_the_dense_matrix(mask):
    params, vector = mlp_params(), mlp_params(seed=7)
    found = hessian.vector_product(loss_fn, params, BATCHES, mask=mask)(vector)
    expected = dense_hessian(loss_fn, params, BATCHES, mask) @ flatten(vector)
    np.testing.assert_allclose(flatten(found), expected, rtol=1e-4, atol=1e-6)
    assert not flatten(found)[~kept_of(params, mask)].any()


@every_mask
def test_eigenpairs_are_those_of_the_dense_matrix(mask):
    params = mlp_params()
    matrix, kept = dense_hessian(loss_fn, params, BATCHES, mask), kept_of(params, mask)
    found = hessian.spectrum(loss_fn, params, BATCHES, mask=mask, num_eigenvalues=3)
    expected = kept_eigenvalues(matrix, kept)
    np.testing.assert_allclose(found.eigenvalues, expected[:-4:-1], rtol=1e-4)
    np.testing.assert_allclose(found.smallest, expected[0], atol=1e-5)
    assert found.smallest_residual < 1e-4
    assert found.num_steps <= kept.sum()
    for value, vector in zip(found.eigenvalues, found.eigenvectors, strict=True):
        assert jax.tree.structure(vector) == jax.tree.structure(params)
        flat = flatten(vector)
        np.testing.assert_allclose(np.linalg.norm(flat), 1.0, rtol=1e-5)
        np.testing.assert_allclose(matrix @ flat, value * flat, atol=1e-5)
        assert not flat[~kept].any()


@pytest.mark.slow
def test_a_network_with_convolution_and_batch_norm():
    loss, params, batches = small_network()
    matrix = dense_hessian(loss, params, batches)
    found = hessian.spectrum(loss, params, batches, num_eigenvalues=4, num_steps=40)
    expected = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(found.eigenvalues, expected[:-5:-1], rtol=1e-3)
    estimate = hessian.trace(loss, params, batches, num_samples=64)
    assert abs(estimate.mean - np.trace(matrix)) < 4 * estimate.standard_error
    masked = sparsity.random(params, 0.5, where="kernel")
    found = hessian.spectrum(loss, params, batches, mask=masked, num_eigenvalues=2)
    matrix = dense_hessian(loss, params, batches, masked)
    expected = kept_eigenvalues(matrix, kept_of(params, masked))
    np.testing.assert_allclose(found.eigenvalues, expected[:-3:-1], rtol=1e-3)


def test_few_steps_know_how_wrong_they_are():
    params, matrix = uneven_params(), symmetric()
    found = hessian.spectrum(quadratic(matrix), params, [1.0], num_eigenvalues=3, num_steps=5)
    assert found.num_steps == 5
    for value, vector, residual in zip(
        found.eigenvalues, found.eigenvectors, found.residuals, strict=True
    ):
        flat = flatten(vector)
        measured = np.linalg.norm(matrix @ flat - value * flat)
        assert measured > 1e-2
        np.testing.assert_allclose(residual, measured, rtol=1e-3)
        assert np.abs(np.linalg.eigvalsh(matrix) - value).min() <= 1.001 * residual


@pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])
def test_a_quadratic_gives_its_matrix_wherever_it_stands(mask):
    params, matrix = uneven_params(), symmetric()
    kept = kept_of(params, mask)
    found = hessian.spectrum(quadratic(matrix), params, [0.5, 1.5], mask=mask)
    expected = kept_eigenvalues(matrix, kept)
    np.testing.assert_allclose(found.eigenvalues, expected[:-6:-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.smallest, expected[0], rtol=1e-4)
    assert found.num_steps == kept.sum()  # more steps were asked for than there are dimensions


def test_repeated_eigenvalues_are_found_once():
    matrix = np.diag([3.0] * 4 + [1.0] * 5 + [-2.0] * 3)
    found = hessian.spectrum(quadratic(matrix), uneven_params(), [1.0], num_eigenvalues=5)
    np.testing.assert_allclose(found.eigenvalues, [3, 1, -2], rtol=1e-5)
    np.testing.assert_array_equal(found.residuals, 0)
    assert found.num_steps == len(found.eigenvectors) == 3


def test_a_loss_without_curvature_has_the_eigenvalue_zero():
    def linear(params, batch):
        return batch * jnp.sum(ravel_pytree(params)[0])

    found = hessian.spectrum(linear, uneven_params(), [1.0])
    np.testing.assert_array_equal(found.eigenvalues, [0.0])
    assert found.smallest == 0
    assert hessian.trace(linear, uneven_params(), [1.0]).mean == 0


def test_the_trace_of_a_diagonal_matrix_is_exact():
    matrix = np.diag(np.arange(12.0) - 3)
    found = hessian.trace(quadratic(matrix), uneven_params(), [1.0], num_samples=3)
    np.testing.assert_allclose(found.samples, np.trace(matrix), rtol=1e-6)
    kept = kept_of(uneven_params(), uneven_mask())
    found = hessian.trace(quadratic(matrix), uneven_params(), [1.0], mask=uneven_mask())
    np.testing.assert_allclose(found.samples, np.diag(matrix)[kept].sum(), rtol=1e-6)


@pytest.mark.slow
def test_the_trace_scatters_as_hutchinsons_estimate_does():
    matrix = symmetric()
    found = hessian.trace(quadratic(matrix), uneven_params(), [1.0], num_samples=400)
    off_diagonal = matrix - np.diag(np.diag(matrix))
    error = np.sqrt(2 * np.sum(off_diagonal**2) / 400)
    np.testing.assert_allclose(found.standard_error, error, rtol=0.15)
    assert abs(found.mean - np.trace(matrix)) < 4 * error


def test_one_sample_has_no_standard_error():
    found = hessian.trace(quadratic(symmetric()), uneven_params(), [1.0], num_samples=1)
    assert np.isnan(found.standard_error)
    assert found.mean == found.samples[0]


def test_each_quadrature_of_the_density_has_exact_moments_of_its_start():
    matrix, samples = symmetric(), 20
    found = hessian.density(
        quadratic(matrix), uneven_params(), [1.0], num_samples=samples, num_steps=2
    )
    assert found.nodes.shape == found.weights.shape == (samples, 2)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0, rtol=1e-5)
    for power in (1, 2, 3):
        moments = (found.weights * found.nodes**power).sum(axis=1)
        expected = np.trace(np.linalg.matrix_power(matrix, power)) / 12
        assert abs(moments.mean() - expected) < 4 * moments.std() / np.sqrt(samples)


def test_the_density_of_two_eigenvalues_is_two_bells():
    matrix = np.diag([5.0] * 3 + [-1.0] * 9)
    found = hessian.density(quadratic(matrix), uneven_params(), [1.0], num_samples=40, num_steps=2)
    points = np.linspace(-4, 8, 601)
    smooth = found.smoothed(points, 0.3)
    assert smooth.shape == (601,)
    np.testing.assert_allclose(np.trapezoid(smooth, points), 1.0, rtol=1e-3)
    assert points[np.argmax(smooth)] == pytest.approx(-1.0)
    upper = np.trapezoid(smooth[points > 2], points[points > 2])
    assert upper == pytest.approx(3 / 12, abs=0.08)


def test_several_batches_are_one_large_one():
    params = mlp_params()
    several = hessian.spectrum(loss_fn, params, BATCHES, mask=mlp_mask())
    one = hessian.spectrum(loss_fn, params, [WHOLE], mask=mlp_mask())
    np.testing.assert_allclose(several.eigenvalues, one.eigenvalues, rtol=1e-4, atol=1e-5)
    several = hessian.trace(loss_fn, params, BATCHES)
    np.testing.assert_allclose(
        several.samples, hessian.trace(loss_fn, params, [WHOLE]).samples, rtol=1e-4
    )


def test_keys_decide():
    def draw(key):
        return hessian.spectrum(
            loss_fn, mlp_params(), BATCHES, num_eigenvalues=1, num_steps=3, key=key
        )

    first = draw(1)
    assert_equal(first.eigenvectors, draw(jax.random.key(1)).eigenvectors)
    assert first.eigenvalues[0] != draw(2).eigenvalues[0]
    traces = [hessian.trace(loss_fn, mlp_params(), BATCHES, key=key) for key in (1, 1, 2)]
    assert traces[0].mean == traces[1].mean != traces[2].mean


def test_masks_of_ones():
    params = mlp_params()

    def values(mask):
        return hessian.spectrum(loss_fn, params, BATCHES, mask=mask, num_steps=6).eigenvalues

    ones = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    np.testing.assert_array_equal(values(ones), values(None))


def test_parameters_that_are_no_numbers_stay():
    params = mlp_params() | {"steps": jnp.arange(3), "key": jax.random.key(0)}

    def loss(params, batch):
        assert params["steps"].dtype == jnp.int32
        return loss_fn({name: params[name] for name in ("hidden", "out")}, batch)

    found = hessian.spectrum(loss, params, BATCHES, num_eigenvalues=1)
    expected = hessian.spectrum(loss_fn, mlp_params(), BATCHES, num_eigenvalues=1)
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-5)
    vector = found.eigenvectors[0]
    assert vector.pop("steps") is vector.pop("key") is None
    assert_close(vector, expected.eigenvectors[0], atol=1e-4)


def test_narrow_parameters_are_widened():
    narrow = mlp_params(jnp.bfloat16)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), narrow)
    found = hessian.spectrum(loss_fn, narrow, BATCHES)
    expected = hessian.spectrum(loss_fn, wide, BATCHES)
    np.testing.assert_array_equal(found.eigenvalues, expected.eigenvalues)
    assert_equal(found.eigenvectors, expected.eigenvectors)


def test_a_product_is_compiled_once_and_never_inside_a_loop():
    traced = []

    def counted(params, batch):
        traced.append(batch["x"])
        return loss_fn(params, batch)

    hessian.spectrum(counted, mlp_params(), BATCHES, num_steps=10)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"num_steps": 0}, ValueError, "num_steps=0 must be at least 1."),
        ({"num_eigenvalues": 2.0}, TypeError, "num_eigenvalues=2.0 must be an integer"),
        (
            {"num_eigenvalues": 4, "num_steps": 3},
            ValueError,
            "num_eigenvalues=4 must be at most num_steps=3 and the number of kept weights, 32.",
        ),
        ({"mask": mlp_mask(), "num_eigenvalues": 17}, ValueError, "kept weights, 16."),
        (
            {"mask": mlp_mask() | {"out": jnp.ones(3, bool)}},
            ValueError,
            r"mask\['out'\]\['bias'\] has the shape \(3,\)",
        ),
        ({"key": "1"}, TypeError, "key='1' must be an integer seed"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"loss_fn": lambda params, batch: batch["x"]}, TypeError, "loss_fn returned an array"),
        (
            {"loss_fn": lambda params, batch: jnp.nan * loss_fn(params, batch)},
            ValueError,
            "the Hessian of loss_fn is not finite at params",
        ),
        (
            {"mask": jax.tree.map(lambda p: jnp.zeros(p.shape, bool), mlp_params())},
            ValueError,
            "mask keeps none of the 32",
        ),
    ],
)
def test_wrong_arguments(options, error, sentence):
    arguments = {"loss_fn": loss_fn, "params": mlp_params(), "batches": BATCHES} | options
    with pytest.raises(error, match=sentence):
        hessian.spectrum(**arguments)
