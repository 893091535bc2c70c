"""The report as one HTML page that needs nothing but itself."""

import re
from collections.abc import Iterable, Sequence
from html import escape

from zosam_jax.report.figures import PALETTE, Figure, Style
from zosam_jax.report.header import Header
from zosam_jax.report.section import Section
from zosam_jax.report.tables import Table, TableCell

_COLORS = (
    "--ink:#1d2126;--ink-soft:#5a626d;--rule:#dfe3e8;--paper:#fff;--link:#0b62a8",
    "--ink:#e4e7eb;--ink-soft:#a3abb6;--rule:#343a43;--paper:#15181c;--link:#6cb6ff",
)
_LEFT_OUT = "Left out"
_STYLE = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:3.5rem 1.5rem 5rem;max-width:72rem;background:var(--paper);
 color:var(--ink);font:1rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
 "Liberation Sans",Arial,sans-serif}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.015em;font-weight:650;margin:0 0 .5rem}
h2{font-size:1.35rem;letter-spacing:-.01em;font-weight:650;margin:4rem 0 .4rem}
h4{font-size:.85rem;font-weight:600;margin:0 0 .2rem}
p{max-width:44rem;margin:.4rem 0 1.2rem}
a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
.lead,figcaption,.note,dt,.legend{color:var(--ink-soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.5rem;margin:1.8rem 0;
 max-width:60rem;font-size:.92rem}
dt,dd{margin:0}dd{overflow-wrap:anywhere}
nav{border-block:1px solid var(--rule);padding:.8rem 0;font-size:.92rem;display:flex;
 flex-wrap:wrap;gap:.3rem 1.4rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;
 line-height:1.4;min-width:min(100%,30rem)}
th,td{padding:.34rem .7rem;text-align:right;white-space:nowrap;vertical-align:top;font-weight:400}
th:first-child{padding-left:.2rem;position:sticky;left:0;background:var(--paper)}
th.name{text-align:left;white-space:normal;min-width:7rem;max-width:19rem}
thead th{font-weight:600;white-space:normal;border-bottom:1.5px solid var(--ink);
 vertical-align:bottom}
tbody{border-bottom:1.5px solid var(--ink)}
tbody tr.begins>*{border-top:1px solid var(--rule)}
tbody tr.total>*{border-top:1px solid var(--ink-soft)}
td.best{font-weight:700}
.note{display:block;font-size:.8rem;font-weight:400}
td.best .note{font-weight:600}
figure{margin:1.8rem 0 2.6rem}
figcaption{font-size:.85rem;line-height:1.5;margin-top:.8rem;max-width:46rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));
 gap:1.4rem 1.6rem}
.in-pairs{grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));max-width:56rem}
svg{display:block;width:100%;height:auto;max-width:26rem}
svg text{font-family:inherit!important}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.3rem;list-style:none;margin:0 0 .6rem;padding:0;
 font-size:.85rem}
.swatch{display:inline-block;width:1.5em;margin-right:.5em;vertical-align:.25em;
 border-top:3px solid}
.dashed{border-top-style:dashed}
ul.omitted{font-size:.92rem;padding-left:1.2rem}
@media print{body{max-width:none;padding:0}h2{break-after:avoid}figure,tr{break-inside:avoid}}
@media (max-width:40rem){body{padding:2rem 1rem 3rem}h1{font-size:1.6rem}dl{gap:.3rem 1rem}}
"""


def page(header: Header, sections: Sequence[Section]) -> str:
    """The whole document; every text is escaped here."""
    links = "".join(
        f'<a href="#{_anchor(title)}">{escape(title)}</a>'
        for title in (*(section.title for section in sections), *_left_out_title(header))
    )
    body = [
        f"<header><h1>{escape(header.title)}</h1>",
        f'<p class="lead">{escape(header.lead)}</p></header>',
        _definitions(header.facts),
        f'<nav aria-label="Sections">{links}</nav>',
        *map(_section, sections),
        _omitted(header),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(header.title)}</title>\n<style>{_scheme()}{_STYLE}</style>\n</head>\n"
        "<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _scheme() -> str:
    light, dark = (
        ";".join((_COLORS[i], *(f"--c{n}:{color[i]}" for n, color in enumerate(PALETTE))))
        for i in (0, 1)
    )
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _definitions(facts: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts) + "</dl>"


def _section(section: Section) -> str:
    parts = [
        f'<section id="{_anchor(section.title)}"><h2>{escape(section.title)}</h2>',
        f"<p>{escape(section.text)}</p>",
        *map(_table, section.tables),
        *map(_figure, section.figures),
        "</section>",
    ]
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_class("name", i < table.labels)}>{_breakable(title)}</th>'
        for i, title in enumerate(table.head)
    )
    lines = [
        _line(entries, table.labels, table.total and entries is table.body[-1])
        for entries in table.body
    ]
    return (
        f'<figure><div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f"\n</tbody></table></div><figcaption>{escape(table.caption)}</figcaption></figure>"
    )


def _breakable(title: str) -> str:
    """A text that breaks after underscores and commas, not around an equals sign."""
    return escape(title).replace("_", "_<wbr>").replace(" = ", "&nbsp;=&nbsp;")


def _line(entries: Sequence[TableCell], labels: int, is_total: bool) -> str:
    kind = ' class="total"' if is_total else ' class="begins"' if entries[0].text else ""
    told = [
        f'<th scope="row" class="name">{_content(entry)}</th>'
        if i < labels
        else f"<td{_class('best', entry.bold)}>{_content(entry)}</td>"
        for i, entry in enumerate(entries)
    ]
    return f"<tr{kind}>{''.join(told)}</tr>"


def _content(entry: TableCell) -> str:
    note = f'<span class="note">{escape(entry.note)}</span>' if entry.note else ""
    return _breakable(entry.text) + note


def _class(name: str, has: bool) -> str:
    return f' class="{name}"' if has else ""


def _figure(figure: Figure) -> str:
    panels = "".join(
        f"<div><h4>{escape(panel.title)}</h4>{panel.svg}</div>" for panel in figure.panels
    )
    in_pairs = " in-pairs" if len(figure.panels) in (2, 4) else ""
    return (
        f'<figure>{_legend(figure)}<div class="panels{in_pairs}">{panels}</div>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _legend(figure: Figure) -> str:
    entries = [f"<li>{_swatch(style)}{escape(name)}</li>" for name, style in figure.legend.items()]
    shapes = [f"<li>{glyph} {escape(label)}</li>" for label, glyph in figure.markers.items()]
    lists = ("".join(items) for items in (entries, shapes) if items)
    return "".join(f'<ul class="legend">{items}</ul>' for items in lists)


def _swatch(style: Style) -> str:
    dashed = " dashed" if style.dashed else ""
    return f'<span class="swatch{dashed}" style="border-color:var(--c{style.color})"></span>'


def _left_out_title(header: Header) -> tuple[str, ...]:
    return (_LEFT_OUT,) if header.omissions else ()


def _omitted(header: Header) -> str:
    if not header.omissions:
        return ""
    items = "".join(
        f"<li><b>{escape(one.name)}</b>: {escape(one.reason)}</li>" for one in header.omissions
    )
    return f'<section id="left-out"><h2>{_LEFT_OUT}</h2><ul class="omitted">{items}</ul></section>'
