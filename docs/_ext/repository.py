"""Links of benchmarks/README.md, included here: to the page that a file has here, or to none."""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)?((?:results|evidence|gpu)[^)#]*)\)")

# Results that are pages of the site.
PAGES = {
    "evidence/README.md": "evidence_study.md",
    "gpu/README.md": "gpu_measurements.md",
    "results/evidence/clean/report.md": "evidence_clean.md",
    "results/evidence/noisy/report.md": "evidence_noisy.md",
    "results/family_study": "family_study.md",
    "results/sparse_methods.md": "sparse_methods.md",
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Rewrites what is included, before it is parsed."""
    app.connect("include-read", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def rewrite(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
    """Changes links to files and folders that have a page, or cannot be downloaded, in place."""
    del app, path, docname
    # The notebooks are copied to where the pages are.
    content[0] = LINK.sub(_rewritten, content[0].replace("](../notebooks/", "](notebooks/"))


def _rewritten(link: re.Match[str]) -> str:
    text, target = link.groups()
    if target in PAGES:
        return f"[{text}](/{PAGES[target]})"
    return text if (BENCHMARKS / target).is_dir() else link[0]
