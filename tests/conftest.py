"""Four CPU devices for the sharding tests, and the rows that the contract is asked of."""

import os
import tempfile

# Before jax is imported, whoever imports it first.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
).strip()

# Many tests compile the same training step; the processes that run them share it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "zosam_jax-tests")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

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
