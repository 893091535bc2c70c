"""The README and every guide are programs: their Python runs, their commands are the parser's.

Blocks of one page share their names, in order. Commands are only parsed.
"""

import re
import shlex
import subprocess
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from zosam_jax import cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (README, *GUIDES)}
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`(zosam [^`]+)`(?!`)")


def blocks(page, language):
    """The page's fenced blocks in this language, with the line numbers of the page."""
    text = PAGES[page]
    found = [match for match in BLOCK.finditer(text) if match[2] == language]
    return [
        "\n" * text.count("\n", 0, match.start(3)) + textwrap.dedent(match[3]) for match in found
    ]


def run(page, namespace):
    """Runs the page's Python block by block, and stops after each."""
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), namespace)
        yield


# What they train and compile takes a quarter of a minute and more.
LONG = (
    "docs/guides/getting_started.md",
    "docs/guides/evidence.md",
    "docs/guides/sparse_method.md",
    "docs/guides/extending.md",
    "docs/guides/export.md",
    "docs/guides/your_own_problem.md",
    "docs/guides/text_models.md",
)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in LONG else ())
        for page in PAGES
        if page != "README.md" and blocks(page, "python")
    ],
)
def test_the_python_of_a_guide_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in run(page, {"__name__": "guide"}):
        pass


def loss(params, x, y):
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def test_the_python_of_the_readme_runs():
    x = jax.random.normal(jax.random.key(0), (32, 8))
    y, params = x[:, :2], {"w": jnp.ones((8, 2)), "b": jnp.zeros(2)}
    namespace = {"jax": jax, "jnp": jnp, "loss": loss}
    namespace |= {"params": params, "x": x, "y": y}
    count = 0
    for _ in run("README.md", namespace):
        params, state = namespace["params"], namespace["tx"].init(namespace["params"])
        moved, _, value = namespace["step"](params, state, x, y)
        assert not jnp.array_equal(moved["w"], params["w"])
        assert jnp.isfinite(value)
        count += 1
    assert count == 2


def commands(page):
    """Every `zosam ...` of a page, in shell blocks and in running text, as lists of arguments.

    Where the text says no more than `zosam sweep`, the command is meant, and has to exist.
    """
    lines = []
    for block in blocks(page, "bash"):
        joined = re.sub(r"(^|\s)#.*", r"\1", block.replace("\\\n", " "))
        lines += re.split(r"\n|&&|;", joined)
    inline = [match[1].split() for match in INLINE.finditer(PAGES[page])]
    lines += [" ".join(span if len(span) > 2 else [*span, "--help"]) for span in inline]
    words = [shlex.split(line) for line in lines]
    return [found[1:] for found in words if found and Path(found[0]).name == "zosam"]


COMMANDS = [(page, arguments) for page in PAGES for arguments in commands(page)]


def test_there_are_commands_in_the_readme_and_in_the_guides():
    assert len({page for page, _ in COMMANDS}) >= 3


@pytest.mark.parametrize(
    ("page", "arguments"), COMMANDS, ids=[f"{page}: {' '.join(a)}" for page, a in COMMANDS]
)
def test_the_parser_takes_every_command(page, arguments, capsys):
    code = 0
    try:
        cli._parse(arguments)
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    assert code == 0, said
    assert "--help" not in arguments or f"zosam {arguments[0]}" in said.out


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_the_shell_understands_every_block(page):
    for block in blocks(page, "bash"):
        checked = subprocess.run(
            ["bash", "-n"], input=block, capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr


def test_every_file_that_the_readme_links_to_exists():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES["README.md"]):
        assert (ROOT / target).exists(), target
