"""The documentation site: guides in Markdown, the notebooks, and the API from the docstrings.

sphinx-build -W --keep-going -b html docs docs/_build
"""

import importlib.metadata
import os
import shutil
import sys
import typing
from pathlib import Path

# Before jax is imported: no accelerator is taken for a page.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax.typing

# Shown by its name, not as the union that it stands for.
jax.typing.ArrayLike = typing.TypeVar("ArrayLike")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

# Sphinx reads what lies below this folder; the notebooks have their home beside it.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(
    HERE.parent / "notebooks",
    HERE / "notebooks",
    ignore=shutil.ignore_patterns(".ipynb_checkpoints"),
)

project = "zosam_jax"
author = "the zosam_jax authors"
version = release = importlib.metadata.version("zosam_jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "docstrings",  # before napoleon, which then reads what it leaves
    "records",
    "repository",
    "tables",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_ext", "jupyter_execute"]
nitpicky = True  # a reference that leads nowhere is a warning; `docstrings` says which may

# Code in single backticks links to what it names, where that is documented.
default_role = "py:obj"
smartquotes = False  # "global" is meant as it stands, and so is --stream
add_module_names = False
toc_object_entries_show_parents = "hide"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    ("Attributes", "params_style"),
    ("Extra arguments of update", "params_style"),
]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run them

html_theme = "furo"
html_title = f"zosam_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
copybutton_selector = "div:not(.formula) > div.highlight > pre"
copybutton_exclude = ".linenos, .gp, .go"
