"""Imports run one way, as pyproject.toml's contracts say, and the library itself needs little."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"


def test_imports_run_one_way():
    linted = run(LINT)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def packages_loaded_by(statement):
    program = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(run(program).stdout.split())


def test_the_library_imports_jax_numpy_optax_and_what_these_need():
    """Neither Flax nor anything that the command line is made of."""
    without = "import sys; sys.modules['jaxtyping'] = None; "  # as where it is not installed
    own = packages_loaded_by(f"{without}import zosam_jax") - set(sys.stdlib_module_names)
    assert {"jax", "zosam_jax"} <= own
    assert own - packages_loaded_by("import jax, numpy, optax") == {"jaxtyping", "zosam_jax"}
