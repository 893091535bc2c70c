"""The documentation builds without a warning, and nothing public is missing from it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

import zosam_jax
from zosam_jax import ascent, data, descent, export, models, report, sparsity

DOCS = Path(__file__).parents[1] / "docs"
pytestmark = pytest.mark.slow  # building the site takes half a minute
PACKAGES = (zosam_jax, ascent, descent, sparsity, models, data, report, export)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, warnings being errors; references that lead nowhere are warnings."""
    folder = tmp_path_factory.mktemp("docs")
    built = subprocess.run(
        [
            *[sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"],
            *["-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")],
        ],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "html"


def test_every_public_name_has_an_entry(site):
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    documented = {name for kind, names in inventory.data.items() if "py:" in kind for name in names}
    public = {f"{package.__name__}.{name}" for package in PACKAGES for name in package.__all__}
    moved = {name.replace("zosam_jax.optimizers.", "zosam_jax.") for name in documented}
    assert public - documented - moved == set()


def test_formulas_stay_as_they_were_set(site):
    page = (site / "api" / "optimizers.html").read_text()
    assert (
        "ĝ = (1/m) Σᵢ [L(θ+δuᵢ) − L(θ−δuᵢ)] / (2δ) · uᵢ,   ε = ρ ĝ / ‖ĝ‖,   emits ∇L(θ+ε)" in page
    )


def test_the_notebooks_are_in_the_navigation(site):
    front = (site / "index.html").read_text()
    notebooks = sorted(path.stem for path in (DOCS.parent / "notebooks").glob("*.ipynb"))
    assert notebooks
    assert all(f'href="notebooks/{name}.html"' in front for name in notebooks)


def test_links_of_the_readme_lead_to_pages(site):
    page = (site / "measurements.html").read_text()
    assert 'href="family_study.html"' in page
    assert "_downloads" in page  # raw results
