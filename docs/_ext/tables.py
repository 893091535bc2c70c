"""Where the text in tables may break: between words and in long names, not within numbers."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

# (what is found, what stands in its place): spaces that do not break, dashes that do not break,
# and names that break after an underscore.
REPLACED = (
    (r" ([±+]) ", "\u00a0\\1\u00a0"),
    (r"(?<=\d)–(?=\d)", "\u2060–\u2060"),
    (r"_(?=\w)", "_\u200b"),
)


def setup(app: Sphinx) -> dict[str, Any]:
    """Changes every page once it has been read."""
    app.connect("doctree-read", set_breaks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def set_breaks(app: Sphinx, doctree: nodes.document) -> None:
    """Replaces characters in the cells of tables, code aside, by such as break or do not."""
    del app
    for table in doctree.findall(nodes.table):
        for text in [t for t in table.findall(nodes.Text) if not in_code(t)]:
            new = str(text)
            for pattern, replacement in REPLACED:
                new = re.sub(pattern, replacement, new)
            text.parent.replace(text, nodes.Text(new))


def in_code(text: nodes.Text) -> bool:
    """Whether a text is to be copied as it stands."""
    return isinstance(text.parent, nodes.literal)
