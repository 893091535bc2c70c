"""Run folders that were damaged, for the tests and as a campaign.

    python tests/training/damaged.py 200 7

damages each file of a run's newest checkpoint at about so many places (flipped bits, truncations,
other contents) and each other file likewise, reads the run after each, and prints a line of JSON:
how often what became of it, and what should not have happened.
"""

import collections
import contextlib
import copy
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "report"))

from folders import make_analysis, make_robustness, write
from small_runs import options, run_once

from zosam_jax.report.runs import gather
from zosam_jax.training import run_folder
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.problem import Problem
from zosam_jax.training.progress import EpochRecord
from zosam_jax.training.run_folder import RunFolder, UnreadableRunError
from zosam_jax.training.step import to_saved
from zosam_jax.training.trainer import Run

# What may become of a damaged file.
SAME = "read as it was"
PASSED_OVER = "named, and the checkpoint before it taken"
REFUSED = "named in a sentence"
OTHER = "read as another number"  # of files without a checksum

SMALL = {"train_images": 64, "optimizer": "sgd", "sparse": "random"}
NEWEST = 3


class Victim(NamedTuple):
    """A whole run to be damaged.

    Attributes:
      folder: where it is.
      like: its state at the start.
      states: checksums of the arrays after the steps of its checkpoints.
      facts: what the report knows of it.
    """

    folder: Path
    like: Any
    states: dict[int, str]
    facts: Any


def config(folder: Path) -> TrainConfig:
    return TrainConfig(output=folder, **options(epochs=NEWEST, **SMALL))


def make(folder: Path) -> Victim:
    """Trains a small run of three steps, with every file that a run can have."""
    if not folder.exists():
        run_once(config(folder))
    write(folder, "analysis.json", make_analysis())
    write(folder, "robustness.json", make_robustness())
    like = Run(Problem(config(folder)), "sgd", 0.0, 0).state
    with Checkpoints(folder, keep=2, seconds=0) as keeper:
        states = {number: _state(keeper.restore(like, number)) for number in keeper.numbers}
    assert max(states) == NEWEST > len(states) > 1
    return Victim(folder, like, states, _told(folder))


def _state(restored: Any) -> str:
    state, progress = restored
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(to_saved(state))]
    whole = b"".join(f"{a.dtype} {a.shape}".encode() + a.tobytes() for a in arrays)
    return f"{hashlib.sha256(whole).hexdigest()} {progress}"


class Damage(NamedTuple):
    """What is done to a file, whose folder is a copy of the run's.

    Attributes:
      kind: of the damage, for the table.
      file: which one, below the run folder.
      change: path → None.
      is_other: whether the file then says what no run says, so that it must be named.
    """

    kind: str
    file: str
    change: Callable[[Path], Any]
    is_other: bool = False


def _to(content: bytes | str) -> Callable[[Path], Any]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data)


# --- Any file -----------------------------------------------------------------------------------


def flips(files: list[str], root: Path, count: int, rng: np.random.Generator) -> Iterator[Damage]:
    """Single bits, as many in each file, evenly over its length."""
    for file in files:
        content = (root / file).read_bytes()
        places = min(count, 8 * len(content))
        for i in range(places):
            start, stop = (8 * len(content) * k // places for k in (i, i + 1))
            place = int(rng.integers(start, stop))
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            yield Damage("a flipped bit", file, _to(bytes(changed)))


def truncations(files: list[str], root: Path, count: int) -> Iterator[Damage]:
    for file in files:
        content = (root / file).read_bytes()
        for length in sorted({len(content) * i // count for i in range(count)}):
            yield Damage("a truncation", file, _to(content[:length]))


_CONTENTS = (
    *("", "\n", "{}", "[]", "null", "3", '"text"', "{", "nothing", "NaN", '{"a": 1}', "[[1]]"),
    *("[" * 100_000, "1" * 5000, "\ufeff{}", "{}{}"),
)


def foreign(files: list[str]) -> Iterator[Damage]:
    """Contents of something else."""
    for file in files:
        for content in (*map(str.encode, _CONTENTS), b"\xff\xfe\x00", bytes(1000)):
            yield Damage("foreign content", file, _to(content), True)


def _replaced(make_other: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def change(path: Path) -> None:
        path.unlink()
        make_other(path)

    return change


def no_files(files: list[str]) -> Iterator[Damage]:
    """What is no regular file in the place of each."""
    for file in files:
        for make_other in (
            Path.mkdir,
            os.mkfifo,
            lambda path: path.symlink_to("nowhere"),
            lambda path: path.symlink_to(path.name),
            lambda path: path.symlink_to("/dev/null"),
        ):
            yield Damage("no regular file", file, _replaced(make_other), True)


# --- JSON ---------------------------------------------------------------------------------------


def _kind(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield path, value
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value[:2]) if isinstance(value, list) else items
    for key, item in items:
        yield from _places(item, (*path, key))


def _with(content: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> str:
    holder = [copy.deepcopy(content)]
    place, keys = holder, (0, *path)
    for key in keys[:-1]:
        place = place[key]
    change(place, keys[-1])
    return json.dumps(holder[0])


def _set(value: Any) -> Callable[[Any, Any], None]:
    return lambda place, key: place.__setitem__(key, value)


# Objects of any names.
_OPEN = {"versions", "sharpness", "corruptions", "options"}
_OPTIONAL = {"checkpoints", "hessian", "sharpness", "surface", "estimator"}
_OPTIONAL |= {"perturbed_gradient_variance"}


def wrong_types(file: str, content: Any, wrap: Callable[[str], str] = str) -> Iterator[Damage]:
    """Each value of a JSON file in turn replaced by one of each other type, or left out."""
    for path, old in _places(content):
        for new in (None, True, "text", -1.5, 10**400, [], {}, [None], {"a": 1}):
            if _kind(new) == _kind(old) and new != 10**400:
                continue
            # null stands for what is not finite, and for an option that is not given.
            is_other = None not in (new, old) and not (path and path[-1] == "rho")
            is_other &= "options" not in path[:-1]
            text = wrap(_with(content, path, _set(new)))
            yield Damage("a wrong type", file, _to(text), is_other)
        if path and isinstance(path[-1], str):
            is_other = path[-1] not in _OPTIONAL and not set(path[:-1]) & _OPEN
            # An option or a number of an epoch may have come since.
            is_other &= file != run_folder.CONFIG or path[0] in ("optimizer", "versions")
            is_other &= file != run_folder.METRICS or path[0] not in EpochRecord._field_defaults
            text = wrap(_with(content, path, lambda place, key: place.pop(key)))
            yield Damage("a missing field", file, _to(text), is_other)
        if isinstance(old, dict) and not set(path) & _OPEN:
            text = wrap(_with(content, (*path, "foreign"), _set(1.0)))
            yield Damage("an unknown field", file, _to(text), True)


def metrics(lines: list[str]) -> Iterator[Damage]:
    """Foreign lines among those of metrics.jsonl, and types that its own do not have."""
    for content in ("", "nothing", "{}", "[]", "null", '{"round": 0}', "\x00", lines[0][:-1]):
        for place in range(len(lines) + 1):
            changed = [*lines[:place], content, *lines[place:]]
            yield Damage("a foreign line", "metrics.jsonl", _to("\n".join(changed) + "\n"), True)

    def among_the_others(text: str) -> str:
        return "\n".join([lines[0], text, *lines[2:]]) + "\n"

    yield from wrong_types("metrics.jsonl", json.loads(lines[1]), among_the_others)


# --- Reading ------------------------------------------------------------------------------------

FAILURE = "../.sweep/refused.failed.json"
JSON_FILES = ("config.json", "summary.json", "analysis.json", "robustness.json")


def files_of_checkpoint(victim: Victim) -> list[str]:
    root = victim.folder / "checkpoints" / str(NEWEST)
    return sorted(str(p.relative_to(victim.folder)) for p in root.rglob("*") if p.is_file())


def checkpoint_damages(victim: Victim, count: int, seed: int) -> Iterator[Damage]:
    files, root = files_of_checkpoint(victim), victim.folder
    yield from flips(files, root, count, np.random.default_rng(seed))
    yield from truncations(files, root, max(2, count // 8))
    yield from foreign(files)
    yield from no_files(files)
    own = f"checkpoints/{NEWEST}/progress/metadata"
    yield from wrong_types(own, json.loads((root / own).read_text()))


def json_damages(victim: Victim, count: int, seed: int) -> Iterator[Damage]:
    root, files = victim.folder, [*JSON_FILES, "metrics.jsonl"]
    yield from flips(files, root, count, np.random.default_rng(seed))
    yield from truncations(files, root, count)
    yield from foreign(files)
    yield from no_files(files)
    for file in JSON_FILES:
        yield from wrong_types(file, json.loads((root / file).read_text()))
    yield from metrics((root / "metrics.jsonl").read_text().splitlines())
    yield from failures()


def failures() -> Iterator[Damage]:
    told = {"status": 2, "reason": "zosam: because", "options": {"rho": 0.1}}
    yield from foreign([FAILURE])
    yield from wrong_types(FAILURE, told)


@contextlib.contextmanager
def copied(victim: Victim) -> Iterator[Path]:
    """A copy to damage, beside a run of the same sweep that was refused."""
    with tempfile.TemporaryDirectory(prefix="damaged-") as parent:
        folder = Path(parent) / "runs" / "run"
        shutil.copytree(victim.folder, folder)
        write(folder.parent / ".sweep", Path(FAILURE).name, {})
        yield folder


def attack(victim: Victim, folder: Path, damage: Damage) -> str:
    """What becomes of a damage to a copy, which is mended afterwards; "failed: …" if it is bad."""
    path = folder / damage.file
    whole = path.read_bytes()
    is_checkpoint = damage.file.startswith("checkpoints/")
    try:
        damage.change(path)
        read = _resumed if is_checkpoint else _reported
        outcome = read(victim, folder, damage)
    except Exception as error:  # what a user would see as a traceback
        outcome = f"failed: {type(error).__name__}: {error}"
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(whole)
    if damage.is_other and not is_checkpoint and outcome in (SAME, OTHER):
        return f"failed: {outcome}"
    return outcome


def is_sentence(text: str) -> bool:
    return "\n" not in text and len(text) < 1000 and text.isprintable()


def _resumed(victim: Victim, folder: Path, damage: Damage) -> str:
    """The newest checkpoint that is whole, as `zosam train` and the others take it."""
    said: list[str] = []
    with Checkpoints(folder, keep=2, seconds=0) as keeper:
        found = _state(keeper.restore_newest(victim.like, said.append, records=NEWEST))
        assert keeper.best in victim.states
    if not said:
        return SAME if found == victim.states[NEWEST] else "failed: other arrays without a word"
    before = max(number for number in victim.states if number < NEWEST)
    if found != victim.states[before]:
        return "failed: other arrays"
    named = f"checkpoints/{NEWEST}" in said[0] and f"step {before}" in said[0]
    return PASSED_OVER if named and is_sentence(said[0]) else f"failed: said {said}"


def _told(folder: Path) -> Any:
    """What the report, and `zosam train`, make of a whole run."""
    found, omissions = gather([folder])
    assert not omissions, omissions
    (run,) = found
    return repr((run.config, list(run.records), run.facts, run.analysis, run.robustness))


def _reported(victim: Victim, folder: Path, damage: Damage) -> str:
    if damage.file == FAILURE:
        found, omissions = gather([folder.parent])
    else:
        found, omissions = gather([folder])
    assert len(omissions) <= 1
    name = Path(damage.file).name
    _take_up(folder, name)
    if not omissions:
        told = repr([(r.config, list(r.records), r.facts, r.analysis, r.robustness) for r in found])
        return SAME if told == f"[{victim.facts}]" else OTHER
    (omission,) = omissions
    if damage.file == FAILURE and omission.reason.startswith("failed: "):
        return OTHER
    named = name in omission.reason and is_sentence(omission.reason)
    return REFUSED if named else f"failed: said {omission.reason!r}"


def _take_up(folder: Path, name: str) -> None:
    """What `zosam train` reads again, which raises nothing but sentences that name the file."""
    readers = {
        "config.json": lambda: run_folder.for_training(config(folder)).versions,
        "summary.json": lambda: RunFolder(folder, "train", may_hold_results=True).is_complete,
        "metrics.jsonl": lambda: RunFolder(folder, "train", may_hold_results=True).records,
    }
    try:
        readers.get(name, lambda: None)()
    except ValueError as error:
        said = str(error)
        is_named = isinstance(error, UnreadableRunError) and name in said
        if not is_sentence(said) or not (is_named or "contradicts the run" in said):
            raise


def campaign(victim: Victim, damages: Iterator[Damage]) -> dict[str, Any]:
    table: collections.Counter[tuple[str, str, str]] = collections.Counter()
    failed = []
    with copied(victim) as folder:
        for damage in damages:
            outcome = attack(victim, folder, damage)
            held = not outcome.startswith("failed")
            what = (
                "checkpoint" if damage.file.startswith("checkpoints/") else Path(damage.file).name
            )
            table[what, damage.kind, outcome if held else "failed"] += 1
            if not held:
                failed.append([damage.kind, damage.file, outcome])
    return {"counts": [[*key, n] for key, n in sorted(table.items())], "failures": failed}


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="damaged-run-") as parent:
        victim = make(Path(parent) / "run")
        results = [
            campaign(victim, damages(victim, count, seed))
            for damages in (checkpoint_damages, json_damages)
        ]
    print(json.dumps({name: [x for r in results for x in r[name]] for name in results[0]}))


if __name__ == "__main__":
    main()
