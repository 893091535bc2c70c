"""Four CPU devices for the sharding tests, and the rows that the contract is asked of."""

import os

# Before jax is imported, whoever imports it first.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
).strip()

import inspect

import pytest

import zosam_jax

RANDOM = [k for k, f in zosam_jax.REGISTRY.items() if "key" in inspect.signature(f).parameters]


@pytest.fixture(params=list(zosam_jax.REGISTRY))
def factory(request):
    """Every ready-made transformation in turn: (rho, **options) → transformation."""
    return zosam_jax.REGISTRY[request.param]


@pytest.fixture(params=RANDOM)
def random_factory(request):
    """Every ready-made transformation that draws directions."""
    return zosam_jax.REGISTRY[request.param]
