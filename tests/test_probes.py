"""Evaluations near θ: the same numbers in every mode, and the rule that chooses the mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import mlp_batch, mlp_loss, mlp_params

from zosam_jax import probes

every_mode = pytest.mark.parametrize("mode", ["unroll", "vmap", "map"])
IMAGE, KERNEL = jnp.ones((1, 1, 6, 6)), jnp.linspace(-1, 1, 9).reshape(1, 1, 3, 3)


def convolve(kernel):
    return jax.lax.conv(IMAGE, kernel, (1, 1), "SAME").sum()


def multiply(kernel):
    return (IMAGE.reshape(4, 9) @ kernel.reshape(9)).sum()


@jax.custom_jvp
def convolve_with_a_rule(kernel):
    return convolve(kernel)


convolve_with_a_rule.defjvp(lambda primals, tangents: (convolve(*primals), convolve(*tangents)))


@jax.custom_vjp
def convolve_with_a_backward_rule(kernel):
    return convolve(kernel)


convolve_with_a_backward_rule.defvjp(lambda k: (convolve(k), None), lambda _, g: (g * KERNEL,))


def convolve_in_a_scan(kernel):
    return jax.lax.scan(lambda total, k: (total + convolve(k), None), 0.0, kernel[None])[0]


def convolve_in_a_branch(kernel):
    return jax.lax.cond(kernel[0, 0, 0, 0] > 0, convolve, multiply, kernel)


def convolve_in_a_loop(kernel):
    return jax.lax.while_loop(lambda x: x < 1, lambda x: x + 1 + convolve(kernel), 0.0)


CONVOLVING = [
    convolve,
    jax.jit(convolve),
    convolve_with_a_rule,
    convolve_with_a_backward_rule,
    jax.checkpoint(convolve),
    convolve_in_a_scan,
    convolve_in_a_branch,
    convolve_in_a_loop,
    jax.jit(jax.checkpoint(convolve_in_a_scan)),
    lambda kernel: jax.vmap(convolve)(kernel[None]).sum(),
    lambda kernel: jax.vmap(jax.jit(convolve))(kernel[None]).sum(),
]


@pytest.mark.parametrize("loss", CONVOLVING)
def test_convolutions_are_seen_wherever_they_hide(loss):
    assert probes.contains_convolution(loss, KERNEL)


@pytest.mark.parametrize("loss", [multiply, jax.jit(multiply), jax.checkpoint(multiply)])
def test_matrix_products_are_not_convolutions(loss):
    assert not probes.contains_convolution(loss, KERNEL)


@pytest.mark.parametrize(
    ("loss", "evaluations", "expected"),
    [
        (multiply, 1, "unroll"),
        (multiply, 15, "unroll"),
        (multiply, 16, "map"),
        (convolve, 1, "unroll"),
        (convolve, 64, "unroll"),
    ],
)
def test_auto_loops_over_many_probes_of_a_loss_without_convolutions(loss, evaluations, expected):
    assert probes.choose_batching("auto", loss, KERNEL, evaluations) == expected


@every_mode
def test_what_the_caller_chose_stays(mode):
    assert probes.choose_batching(mode, convolve, KERNEL, 64) == mode


@pytest.mark.parametrize("batching", probes.BATCHING)
def test_a_traced_number_of_evaluations_leaves_only_the_loop(batching):
    chosen = []
    jax.jit(lambda n: chosen.append(probes.choose_batching(batching, multiply, KERNEL, n)))(3)
    assert chosen == ["map"]


@every_mode
def test_losses_along_a_direction_are_those_at_its_points(mode):
    params, batch = mlp_params(), mlp_batch()
    steps = (0.3, -0.3, 0.0, 2.0)
    u = jax.tree.map(jnp.cos, params)
    losses = probes.along(lambda p: mlp_loss(p, **batch), params, u, steps, mode)
    points = [jax.tree.map(lambda p, v, t=t: p + t * v, params, u) for t in steps]
    np.testing.assert_allclose(losses, [mlp_loss(p, **batch) for p in points], rtol=1e-6)


@every_mode
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_probes_of_narrow_parameters_are_rounded_once(mode, dtype):
    """1 + t·u is just above the tie that rounding t or u first would land on."""
    eps = float(jnp.finfo(dtype).eps)
    u = jnp.float32(1 + eps / 4)
    seen = probes.along(lambda p: p.astype(jnp.float32), jnp.asarray(1, dtype), u, (eps / 2,), mode)
    assert seen[0] == 1 + eps


@every_mode
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_mean_of_several_terms(mode, count):
    def term(index):
        return {"a": (1.0 + index) ** 2, "b": jnp.full(3, -1.0) * index}

    mean = jax.jit(lambda: probes.mean(term, count, mode))()
    index = np.arange(count)
    np.testing.assert_allclose(mean["a"], ((1.0 + index) ** 2).mean(), rtol=1e-6)
    np.testing.assert_allclose(mean["b"], np.full(3, -index.mean()), rtol=1e-6)
