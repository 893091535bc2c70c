"""Four CPU devices for the sharding tests, and the rows that the contract is asked of.

With ZOSAM_JAX_TESTS=device the tests run where JAX runs by itself, such as on a GPU, and compiled
as programs are: no flag is set. Tests that need four devices are then skipped where there are
fewer.
"""

import os
import tempfile

# Before jax is imported, whoever imports it first. Each flag once: processes of xdist inherit them,
# and the cache of compiled programs knows them by their text.
if os.environ.get("ZOSAM_JAX_TESTS") != "device":
    os.environ["XLA_FLAGS"] = " ".join(
        dict.fromkeys(
            [
                # Most of the time goes to compiling what runs for a few steps.
                "--xla_backend_optimization_level=0",
                "--xla_force_host_platform_device_count=4",
                *os.environ.get("XLA_FLAGS", "").split(),
            ]
        )
    )

# Many tests compile the same training step; the processes that run them share it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "zosam_jax-tests")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Nobody reads the lines of Python in these programs.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import gc
import inspect

import pytest
import typechecking

typechecking.install()  # before zosam_jax is imported

import zosam_jax  # noqa: E402

# Tracing makes many objects that live as long as its caches: looking through them for cycles takes
# an eighth of the time of all tests.
gc.set_threshold(200_000, 50, 100)

# Who is asked in each run: zo_sam everything, every row what is marked every_row, which a new
# method is most likely to fail. With -m slow the others answer the rest, but for what is marked
# three_rows: it is about what all transformations share, and is asked of one of each kind alone.
ALWAYS = "zo_sam"
ONE_OF_EACH_KIND = ("zo_sam", "sam", "random_weight_perturbation")


def pytest_configure(config):
    config.addinivalue_line("markers", "every_row: asked of every transformation in each run")
    config.addinivalue_line("markers", "three_rows: of what is shared, asked of three")


def pytest_generate_tests(metafunc):
    """Fills in `factory`, (rho, **options) → transformation, with each ready-made one in turn.

    `random_factory` are those that draw at random.
    """
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    for fixture in {"factory", "random_factory"}.intersection(metafunc.fixturenames):
        rows = [
            pytest.param(make, id=name, marks=() if _is_quick(name, marks) else pytest.mark.slow)
            for name, make in zosam_jax.REGISTRY.items()
            if (fixture == "factory" or "key" in inspect.signature(make).parameters)
            and (name in ONE_OF_EACH_KIND or "three_rows" not in marks)
        ]
        metafunc.parametrize(fixture, rows)


def _is_quick(name, marks):
    return name == ALWAYS or "every_row" in marks


@pytest.fixture(autouse=True)
def warns_anew():
    """What is warned of once in a process is warned of once in each test."""
    zosam_jax.transform._warn_of_ignored_updates.cache_clear()
    zosam_jax.sparsity.wrapper._warn_of_updates_for_growth_alone.cache_clear()
