"""From options to an optimizer: radii that warm up, defaults resolved and back."""

import typing

import jax.numpy as jnp
import numpy as np
import pytest
from problems import mlp_batch, mlp_loss, mlp_params

from zosam_jax.optimizers import ESTIMATORS, REGISTRY
from zosam_jax.training import build, config, sources
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.problem import Parts


def test_every_registered_transformation_is_on_the_command_line():
    names = set(typing.get_args(config.OptimizerName))
    assert names == {"sgd", "adamw", *REGISTRY, *ESTIMATORS}
    for name in REGISTRY:
        for radius in typing.get_args(config.RadiusName):
            grid = build.rho_grid(name, radius)
            assert len(grid) == 5
            assert list(grid) == sorted(grid)


@pytest.mark.parametrize(
    ("steps", "cooldown", "expected"),
    [
        (10, 0.0, [0.0, 0.2, 0.4, 0.4]),
        (0, 0.0, [0.4] * 4),
        (10, 0.25, [0.0, 0.2, 0.4, 0.0]),
        (0, 0.75, [0.4, 0.4, 0.3, 0.0]),  # along a cosine, of which it has gone a third
        (10, 0.75, [0.0, 0.2, 0.4, 0.0]),  # only after it has risen
    ],
)
def test_the_radius_warms_up_and_cools_down(steps, cooldown, expected):
    options = TrainConfig(rho_warmup=0.5 if steps else 0.0, rho_cooldown=cooldown, radius="global")
    tx = build.sharpness_aware_part(options, "random_weight_perturbation", 0.4, 0, 20)
    state = tx.init(mlp_params())
    lengths = []
    for count in (0, 5, 10, 20):
        state = state._replace(count=jnp.asarray(count))
        _, after = tx.update(None, state, mlp_params(), value_fn=mlp_loss, **mlp_batch())
        lengths.append(float(after.diagnostics.epsilon_norm))
    np.testing.assert_allclose(lengths, expected, rtol=1e-5, atol=1e-7)


CONFIGURATIONS = [
    *(TrainConfig(optimizer=name) for name in ("sgd", "adamw", *REGISTRY, *ESTIMATORS)),
    TrainConfig(radius="global", precision="bfloat16"),
    TrainConfig(optimizer="sam", late_phase=0.25, batch_fraction=0.5),
    TrainConfig(sparse="lth", schedule="step", optimizer="sam", base_optimizer="adamw"),
    TrainConfig(sparse="none", rho=0.3, optimizer="subbatch_sam", fraction=0.5),
    TrainConfig(model="deit-tiny", stream=True, image_size=64, sparse="mest"),
    TrainConfig(sparse="gmp", structure="channels"),
    TrainConfig(sparse="early-bird", epochs=30),
]


@pytest.mark.parametrize("given", CONFIGURATIONS, ids=str)
def test_resolved_options_are_complete_and_can_be_taken_back(given):
    resolved = build.resolved(given)
    assert build.canonical(resolved) == given
    assert build.resolved(resolved) == resolved
    if not build.is_plain(given.optimizer):
        assert build.options_of(given, given.optimizer).items() <= vars(resolved).items()
        assert build.passes(given, given.optimizer) == build.passes(resolved, given.optimizer)
    assert build.rho_of(given) == (resolved.rho or 0.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"rho": 0.4, "radius": "layerwise", "delta": 1e-3, "sparsity_distribution": "erk"}),
        ({"radius": "global"}, {"rho": 10.0, "fraction": 1.0, "batch_fraction": 1.0}),
        ({"precision": "bfloat16"}, {"delta": 1e-2}),
        ({"optimizer": "subbatch_sam"}, {"fraction": 0.125, "radius": "adaptive_layerwise"}),
        ({"optimizer": "adamw"}, {"momentum": None, "rho": None, "base_optimizer": "adamw"}),
        ({"sparse": "lth"}, {"sparsity_distribution": "global", "lottery_levels": 11}),
        ({"sparse": "mest"}, {"sparsity_distribution": "uniform", "sparse_layers": "kernel"}),
        ({"sparse": "slimming"}, {"structure": "channels,neurons,heads", "search_epochs": 10}),
        ({"sparse": "early-bird", "epochs": 30}, {"search_epochs": 3}),
        ({"sparse": "gmp"}, {"sparsity_distribution": "erk", "structure": None}),
        (
            {"sparse": "gmp", "structure": "channels"},
            {"sparsity_distribution": "uniform", "sparse_layers": "kernel"},
        ),
        ({"sparse": "none"}, {"sparsity_distribution": None, "sparse_layers": None}),
        ({"schedule": "step"}, {"milestones": (0.5, 0.75)}),
    ],
)
def test_what_defaults_resolve_to(options, expected):
    resolved = build.resolved(TrainConfig(**options))
    assert {name: getattr(resolved, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "rho", "expected"),
    [
        ({}, 0.1, [2, 2]),
        ({}, 0.0, [1, 1]),
        ({"late_phase": 0.5}, 0.1, [1, 2]),
        ({"late_phase": 0.25, "batch_fraction": 0.5}, 0.1, [0.5, 0.75]),
        ({"batch_fraction": 0.001}, 0.1, [2 / 64, 2 / 64]),  # one example of 64
        ({"fraction": 0.001}, 0.1, [1 + 1 / 64, 1 + 1 / 64]),
    ],
)
def test_a_cost_is_that_of_the_steps_that_were_taken(options, rho, expected):
    given = TrainConfig(
        model="lenet-300-100", optimizer="sam", sparse="none", epochs=2, train_images=256, **options
    )
    problem = sources.problem(given, Parts(), None)
    _, _, cost, _ = build.build(problem, problem.init(0), "sam", rho, 0)
    halves = [cost.training(None, range(4)) / 4, cost.training(None, range(4, 8)) / 4]
    np.testing.assert_allclose(halves, expected)


def test_a_late_phase_without_a_step_is_refused():
    options = TrainConfig(optimizer="sam", late_phase=0.01, epochs=1, train_images=256)
    with pytest.raises(ValueError, match=r"late_phase=0.01 is not one of this run's 4 steps"):
        sources.problem(options, Parts(), None)


def test_weights_to_perturb_that_the_network_does_not_have_are_refused():
    options = TrainConfig(model="lenet-300-100", perturb="normalization", optimizer="sam")
    with pytest.raises(ValueError, match="finds no scale or shift of a normalization layer"):
        sources.problem(options, Parts(), None)


def test_normalization_layers_alone_are_perturbed():
    options = TrainConfig(perturb="normalization", rho_warmup=0.0)
    params = {"dense": {"kernel": jnp.ones((3, 4))}, "norm": {"scale": jnp.ones(4)}}
    tx = build.sharpness_aware_part(options, "zo_sam", 0.5, 0, 10)

    def loss(p, x):
        return jnp.square(x @ p["dense"]["kernel"] * p["norm"]["scale"]).mean()

    epsilon, _ = tx.update(
        None, tx.init(params), params, value_fn=loss, x=jnp.eye(3), emit="perturbation"
    )
    assert not epsilon["dense"]["kernel"].any()
    np.testing.assert_allclose(jnp.linalg.norm(epsilon["norm"]["scale"]), 0.5 * 2, rtol=1e-5)


def test_a_late_phase_begins_where_it_says():
    options = TrainConfig(optimizer="sam", late_phase=0.25, rho_cooldown=0.1, warmup=0.0)
    assert build.late_start(options, "sam", 40) == 30
    assert build.late_start(options, "sgd", 40) == build.late_start(options, "mezo", 40) == 0
    tx = build.sharpness_aware_part(options, "sam", 0.4, 0, 40)
    state, lengths = tx.init(mlp_params()), []
    for count in (30, 36, 38, 40):
        state = state._replace(count=jnp.asarray(count))
        _, after = tx.update(None, state, mlp_params(), value_fn=mlp_loss, **mlp_batch())
        lengths.append(float(after.diagnostics.rho_used))
    np.testing.assert_allclose(lengths, [0.4, 0.4, 0.2, 0.0], atol=1e-6)
    assert build.resolved(options).rho_warmup == 0.0


def test_the_learning_rate_may_fall_in_the_last_part_of_the_run_alone():
    options = TrainConfig(learning_rate=0.4, warmup=0.1, cooldown=0.2, final_learning_rate=0.1)
    rates = [float(build.schedule(options, 40)(t)) for t in (2, 4, 20, 32, 36, 40)]
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.4, 0.4, 0.25, 0.1], rtol=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("sam", "layerwise"),
        ("asam", "own radius"),
        ("le_sam", "own radius"),
        ("bisam", "layerwise"),
    ],
)
def test_a_radius_of_its_own_is_called_so(optimizer, expected):
    assert build.radius_rule(optimizer, None) == expected
