"""Turns the house's docstrings into what Sphinx reads: formulas stay as they were set.

Google's sections are napoleon's work. This does before it what reStructuredText would get wrong:

- an indented block is a formula or code, to be shown line by line;
- |θ|, θ* and set_ are meant as they stand, and backticks hold code;
- "Reference: ..." and "Returns:" are a sentence each, in a field like those for arguments.

After it, references go where a name is documented, which may not be where it is defined.
"""

import ast
import dataclasses
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

REFERENCE = re.compile(r"(References?): +(.*)")
HEADER = re.compile(r"[A-Z][\w `]*:")
CODE = re.compile(r"(`+[^`]*`+)")
NAME = re.compile(r"`[A-Za-z_][\w.]*`")
COMMANDS = ("zosam ", "python ", "pip ")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the parts; the first is the first of those that process docstrings."""
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("autodoc-process-signature", without_options)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("missing-reference", resolve)
    app.connect("doctree-read", set_dashes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def process(app: Sphinx, what: str, name: str, obj: Any, *rest: Any) -> None:
    """Rewrites a docstring in place."""
    del app, name
    lines: list[str] = rest[-1]
    names = _names(obj)
    lines[:] = [line for block in _blocks(lines) for line in _rewritten(block, names)]
    if what in ("attribute", "data"):
        lines[:0] = ["..", ""]  # else napoleon takes what comes before a colon for the type


def without_options(
    app: Sphinx, what: str, name: str, obj: Any, *others: Any
) -> tuple[str, None] | None:
    """A dataclass's signature repeats its fields, which follow one by one."""
    del app, what, name, others
    return ("", None) if dataclasses.is_dataclass(obj) else None


def skip_field(app: Sphinx, what: str, name: str, obj: Any, *rest: Any) -> bool | None:
    """Leaves out a NamedTuple's fields, which its docstring explains under Attributes."""
    del app, what, name, rest
    return True if type(obj).__name__ == "_tuplegetter" else None


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Node | None:
    """Finds the page of an object that is defined in one module and public in another.

    Code that names nothing public (an argument, another library's type) is no link. A dotted name
    of this package that nothing documents is left to Sphinx, which warns of it.
    """
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], env.domains.python_domain
    is_ours = target.startswith("zosam_jax.")
    meant = _object(target) if is_ours else None
    if meant is not None:
        for name, entry in domain.objects.items():
            if name.rpartition(".")[2] == target.rpartition(".")[2] and _object(name) is meant:
                return make_refnode(
                    app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name
                )
    return None if is_ours else contnode


def set_dashes(app: Sphinx, doctree: nodes.document) -> None:
    """The dash between an argument and its text, which Sphinx leaves to smart quotes."""
    del app
    for text in list(doctree.findall(nodes.Text)):
        if text.startswith(" -- "):
            text.parent.replace(text, nodes.Text(f" \N{EN DASH} {text[4:]}"))


def _object(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (AttributeError, ImportError, ValueError):
        return None


def _names(obj: Any) -> frozenset[str]:
    """What a single word in backticks may mean: a name of the object's module or package.

    Its own arguments are none of them, and a word alone would find any attribute of that name.
    """
    module = obj if inspect.ismodule(obj) else inspect.getmodule(obj)
    if module is None:
        return frozenset()
    try:
        own = set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        own = set()
    package = sys.modules[module.__package__ or module.__name__]
    return frozenset({*vars(module), *vars(package)} - own)


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Paragraphs, each with the blank lines after it; those that belong to a section in one."""
    block: list[str] = []
    for line in lines:
        if block and not block[-1].strip() and (line.strip() or not block[0].strip()):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _rewritten(block: list[str], names: frozenset[str]) -> list[str]:
    if all(line.startswith("    ") for line in block if line.strip()):
        return _literal(block)
    block = [_prose(line, names) for line in block]
    reference = REFERENCE.match(block[0])
    if reference:
        return _field(reference[1], [reference[2], *block[1:]])
    if block[0] == "Returns:":  # napoleon would take what comes before a colon for the type
        return _field("returns", block[1:])
    return block


def _field(name: str, lines: list[str]) -> list[str]:
    first, *rest = (line.strip() for line in lines)
    return [f":{name}: {first}", *("   " + line if line else "" for line in rest)]


def _literal(block: list[str]) -> list[str]:
    language = _language(textwrap.dedent("\n".join(block)))
    options = ["   :class: formula"] if language == "none" else []
    return [f".. code-block:: {language}", *options, "", *block, ""]


def _language(text: str) -> str:
    if text.startswith(COMMANDS):
        return "bash"
    try:
        ast.parse(text)
    except SyntaxError:
        return "none"
    return "python" if text.isascii() else "none"


def _prose(line: str, names: frozenset[str]) -> str:
    if HEADER.fullmatch(line):
        return line.replace("`", "")
    parts = CODE.split(line)
    parts[::2] = [re.sub(r"([|*]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [
        part if _is_link(part, names) else f"``{part.strip('`')}``" for part in parts[1::2]
    ]
    return "".join(parts)


def _is_link(part: str, names: frozenset[str]) -> bool:
    return bool(NAME.fullmatch(part)) and ("." in part or part[1:-1] in names)
