"""Four CPU devices for the sharding tests, and the rows that the contract is asked of."""

import os
import tempfile

# Before jax is imported, whoever imports it first.
os.environ["XLA_FLAGS"] = (
    # Most of the time goes to compiling what runs for a few steps: LLVM need not optimize it.
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4 "
    + os.environ.get("XLA_FLAGS", "")
).strip()

# Many tests compile the same training step; the processes that run them share it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "zosam_jax-tests")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import inspect

import pytest
import typechecking

typechecking.install()  # before zosam_jax is imported

import zosam_jax  # noqa: E402

# The rows that are asked of everything in each run. The others answer the tests marked every_row,
# those that a new method is most likely to fail, and everything with -m "slow or not slow".
ALWAYS = ("sam", "zo_sam", "random_weight_perturbation")


def pytest_configure(config):
    config.addinivalue_line("markers", "every_row: a fast test, asked of every transformation")


def pytest_generate_tests(metafunc):
    """Fills in `factory`, (rho, **options) → transformation, with each ready-made one in turn.

    `random_factory` are those that draw at random.
    """
    is_for_all = metafunc.definition.get_closest_marker("every_row") is not None
    for fixture in {"factory", "random_factory"}.intersection(metafunc.fixturenames):
        rows = [
            pytest.param(
                make, id=name, marks=() if is_for_all or name in ALWAYS else pytest.mark.slow
            )
            for name, make in zosam_jax.REGISTRY.items()
            if fixture == "factory" or "key" in inspect.signature(make).parameters
        ]
        metafunc.parametrize(fixture, rows)


@pytest.fixture(autouse=True)
def warns_anew():
    """What is warned of once in a process is warned of once in each test."""
    zosam_jax.transform._warn_of_ignored_updates.cache_clear()
    zosam_jax.sparsity.wrapper._warn_of_updates_for_growth_alone.cache_clear()
