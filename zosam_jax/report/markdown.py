"""The report's tables as Markdown."""

import re
from collections.abc import Sequence

from zosam_jax.report.header import Header
from zosam_jax.report.section import Section
from zosam_jax.report.tables import Table, TableCell


def markdown(header: Header, sections: Sequence[Section]) -> str:
    """The head, the tables and what was left out; figures are in the page alone."""
    parts = [f"# {_escape(header.title)}", _escape(header.lead)]
    parts.append("\n".join(f"- {name}: {_escape(value)}" for name, value in header.facts))
    for section in sections:
        if section.tables:
            parts += [f"## {_escape(section.title)}", _escape(section.text)]
            parts += [text for table in section.tables for text in _table(table)]
    if header.omissions:
        left_out = [f"- {_escape(one.name)}: {_escape(one.reason)}" for one in header.omissions]
        parts += ["## Left out", "\n".join(left_out)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> tuple[str, str]:
    rules = [":--" if i < table.labels else "--:" for i in range(len(table.head))]
    rows = [map(_escape, table.head), rules, *(map(_entry, line) for line in table.body)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows), _escape(table.caption)


def _entry(entry: TableCell) -> str:
    text = f"**{_escape(entry.text)}**" if entry.bold else _escape(entry.text)
    return f"{text} ({_escape(entry.note)})" if entry.note else text


def _escape(text: str) -> str:
    """Text that Markdown would take for its own signs."""
    return re.sub(r"([\\`*|<>\[\]]|\b_|_\b)", r"\\\1", text)
