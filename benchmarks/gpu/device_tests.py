"""Part 1: the tests of the contract, of oracles and of sharding on the device.

pytest runs in a process of its own, once with float32 products and once with TensorFloat-32; a row
for each file says how many tests passed, which failed and why, from pytest's JUnit file.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cells import Cell, Work

ROOT = Path(__file__).parents[2]
PRECISIONS = ("float32", "tensorfloat32")
FILES = (
    "tests/test_contract.py",
    # Updates by hand, or by NumPy.
    "tests/test_optimizers.py",
    "tests/test_gradient.py",
    "tests/test_radius.py",
    "tests/ascent/test_ascents.py",
    "tests/descent/test_descents.py",
    "tests/models/test_by_hand.py",
    "tests/sparsity/test_block_sparse_kernel.py",
    "tests/test_sharding.py",
)
_TINY = ("tests/test_masks.py", "tests/test_sharding.py")


def cells(tiny: bool) -> list[Cell]:
    files, precisions = (_TINY, PRECISIONS[:1]) if tiny else (FILES, PRECISIONS)
    return [Cell(1, f"tests in {name}", files, 10.0, _run) for name in precisions]


def _run(work: Work) -> None:
    precision, names = work.cell.name.split()[-1], work.missing
    file = work.output / f"tests-{precision}.xml"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider"]
    environment = {
        **os.environ,
        "ZOSAM_JAX_TESTS": "device",
        "JAX_DEFAULT_MATMUL_PRECISION": precision,
        "PYTHONPATH": str(ROOT),
    }
    # This process must not hold the device meanwhile: JAX would give it most of the memory.
    ended = subprocess.run(
        [*command, f"--junitxml={file.absolute()}", *names],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if not file.exists():
        raise RuntimeError(f"pytest ended with status {ended.returncode}: {ended.stdout[-400:]}")
    for name, found in outcomes(file, names).items():
        work.add(name, precision=precision, seed=None, **found)


def outcomes(file: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """What a JUnit file says of the tests in some files."""
    cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    found = {}
    for name in names:
        module = name.removesuffix(".py").replace("/", ".")
        # What fails while it is collected has the module as its name and no class.
        own = [
            case
            for case in cases
            if f"{case.get('classname')}.{case.get('name')}".lstrip(".").startswith(module)
        ]
        failed = [(c, why) for c in own if (why := _why(c, "failure", "error"))]
        skipped = [why for c in own if (why := _why(c, "skipped"))]
        found[name] = {
            "passed": len(own) - len(failed) - len(skipped),
            "failed": len(failed),
            "skipped": len(skipped),
            "seconds": sum(float(case.get("time", 0)) for case in own),
            "failures": [{"test": case.get("name"), "why": why} for case, why in failed],
            "skipped_because": dict(Counter(skipped)),
        }
        if not own:
            found[name]["error"] = "no test of this file was run."
    return found


def _why(case: ElementTree.Element, *kinds: str) -> str | None:
    for kind in kinds:
        told = case.find(kind)
        if told is not None:
            return " ".join((told.get("message") or told.text or kind).split())[:400]
    return None
