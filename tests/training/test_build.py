"""From options to an optimizer: radii that warm up, defaults resolved and back."""

import typing

import jax.numpy as jnp
import numpy as np
import pytest
from problems import mlp_batch, mlp_loss, mlp_params

from zosam_jax.optimizers import ESTIMATORS, REGISTRY
from zosam_jax.training import build, config
from zosam_jax.training.config import TrainConfig


def test_every_registered_transformation_is_on_the_command_line():
    names = set(typing.get_args(config.OptimizerName))
    assert names == {"sgd", "adamw", *REGISTRY, *ESTIMATORS}
    for name in REGISTRY:
        for radius in typing.get_args(config.RadiusName):
            grid = build.rho_grid(name, radius)
            assert len(grid) == 5
            assert list(grid) == sorted(grid)


@pytest.mark.parametrize("steps", [0, 10])
def test_the_radius_warms_up(steps):
    options = TrainConfig(rho_warmup=0.5 if steps else 0.0, radius="global")
    tx = build.sharpness_aware_part(options, "random_weight_perturbation", 0.4, 0, 2 * steps)
    state = tx.init(mlp_params())
    lengths = []
    for count in (0, 5, 10, 20):
        state = state._replace(count=jnp.asarray(count))
        _, after = tx.update(None, state, mlp_params(), value_fn=mlp_loss, **mlp_batch())
        lengths.append(float(after.diagnostics.epsilon_norm))
    expected = [0.0, 0.2, 0.4, 0.4] if steps else [0.4] * 4
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)


CONFIGURATIONS = [
    *(TrainConfig(optimizer=name) for name in ("sgd", "adamw", *REGISTRY, *ESTIMATORS)),
    TrainConfig(radius="global", precision="bfloat16"),
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
