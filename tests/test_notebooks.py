"""Every notebook runs from top to bottom; an error in a cell is an error here."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# Those that take a user's first steps; the others train for a minute and more.
SHORT = ("quickstart", "from_training_to_a_device")


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own machinery
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem in SHORT else pytest.mark.long) for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    # The machine as a reader has it, without the four devices that conftest.py makes of a CPU.
    client.execute(env={**os.environ, "XLA_FLAGS": ""})


@every_notebook
def test_notebook_is_ready_to_be_read(path):
    """Opens with the badge, installs itself, and shows what its cells gave, in order."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].source.startswith("[![Open in Colab](")
    assert "%pip install" in code[0].source
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)


@every_notebook
def test_notebook_says_the_same_when_it_runs_again(path):
    """Nothing in it is of one execution: no times, no versions of the machine it ran on."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell.metadata == {} for cell in notebook.cells)
