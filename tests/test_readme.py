"""The README's Python runs as it stands, in order, on a small problem."""

import re
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def loss(params, x, y):
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


@pytest.fixture
def namespace():
    x = jax.random.normal(jax.random.key(0), (32, 8))
    return {
        "jax": jax,
        "jnp": jnp,
        "params": {"w": jnp.ones((8, 2)), "b": jnp.zeros(2)},
        "loss": loss,
        "x": x,
        "y": x[:, :2],
        "key": jax.random.key(1),
    }


def test_the_python_runs(namespace):
    blocks = [textwrap.dedent(match[2]) for match in BLOCK.finditer(README)]
    assert len(blocks) >= 4
    for block in blocks:
        if "has_aux=True" in block:
            namespace["loss"] = lambda p, batch: (loss(p, *batch), "aux")
            namespace["batch"] = (namespace["x"], namespace["y"])
        exec(compile(block, "README.md", "exec"), namespace)
        if "step" in namespace:
            namespace["loss"] = loss
            x, y = namespace["x"], namespace["y"]
            params, state = namespace["params"], namespace["tx"].init(namespace["params"])
            moved, _ = namespace["step"](params, state, x, y)
            assert not jnp.array_equal(moved["w"], params["w"])
    assert namespace["aux"] == "aux"


def test_every_file_that_the_readme_links_to_exists():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
