"""Disks that are full or become read-only, for the tests and as a campaign.

    python tests/training/disks.py 40 7

runs commands in whose folder every write fails from some moment on, about so many moments each,
and then the same command again, with room; prints a line of JSON: how often what became of it, and
what should not have happened.

What fails is decided between the program and the system, by a library of C that is loaded first, so
that Orbax's and TensorStore's writes fail as any other.
"""

import collections
import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from small_runs import metrics

from zosam_jax.export import read_safetensors

CAN_BE_MADE = sys.platform == "linux" and shutil.which("cc") is not None

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static char folder[4096], marker[4200];  /* the marker: a disk is full for all processes */
static long after = -1;
static int code;
static long count;

void disk_fails(const char *where, long when, int error) {
    snprintf(folder, sizeof folder, "%s", where);
    snprintf(marker, sizeof marker, "%s.full", where);
    after = when, code = error, count = 0;
}
long disk_count(void) { return count; }

__attribute__((constructor)) static void from_environment(void) {
    const char *where = getenv("DISK_FOLDER");
    if (where) disk_fails(where, atol(getenv("DISK_AFTER")), atoi(getenv("DISK_ERROR")));
}

static int fails(const char *path) {
    if (!folder[0] || !path || strncmp(path, folder, strlen(folder))) return 0;
    if (__sync_fetch_and_add(&count, 1) < after && access(marker, F_OK)) return 0;
    if (after < 0) return 0;
    close(REAL(open)(marker, O_CREAT | O_WRONLY, 0600));
    errno = code;
    return 1;
}
static int fails_at(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return fails(path);
}
#define WRITES (O_WRONLY | O_RDWR | O_CREAT)

ssize_t write(int f, const void *b, size_t n) { return fails_at(f) ? -1 : REAL(write)(f, b, n); }
ssize_t pwrite(int f, const void *b, size_t n, off_t o) {
    return fails_at(f) ? -1 : REAL(pwrite)(f, b, n, o);
}
ssize_t pwrite64(int f, const void *b, size_t n, off64_t o) {
    return fails_at(f) ? -1 : REAL(pwrite64)(f, b, n, o);
}
ssize_t writev(int f, const struct iovec *v, int n) {
    return fails_at(f) ? -1 : REAL(writev)(f, v, n);
}
int fsync(int f) { return fails_at(f) ? -1 : REAL(fsync)(f); }
int mkdir(const char *p, mode_t m) { return fails(p) ? -1 : REAL(mkdir)(p, m); }
int rename(const char *p, const char *q) { return fails(q) ? -1 : REAL(rename)(p, q); }
int unlink(const char *p) { return code == EROFS && fails(p) ? -1 : REAL(unlink)(p); }
int rmdir(const char *p) { return code == EROFS && fails(p) ? -1 : REAL(rmdir)(p); }
#define OPEN(name)                                          \
    int name(const char *p, int flags, ...) {               \
        va_list rest;                                       \
        va_start(rest, flags);                              \
        mode_t mode = va_arg(rest, int);                    \
        va_end(rest);                                       \
        if (flags & WRITES && fails(p)) return -1;          \
        return REAL(name)(p, flags, mode);                  \
    }
#define OPENAT(name)                                        \
    int name(int at, const char *p, int flags, ...) {       \
        va_list rest;                                       \
        va_start(rest, flags);                              \
        mode_t mode = va_arg(rest, int);                    \
        va_end(rest);                                       \
        if (flags & WRITES && fails(p)) return -1;          \
        return REAL(name)(at, p, flags, mode);              \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
"""

# What may become of a command.
HELD = "one sentence, and the same command went on"
UNTOUCHED = "ended before the disk was full"
KINDS = {"a full disk": errno.ENOSPC, "a read-only disk": errno.EROFS}
SECONDS = 120


class Command(NamedTuple):
    """A command of `zosam` that writes below a folder.

    Attributes:
      words: folder → its words.
      result: folder → what it computed, equal however often it was begun.
      prepare: folder → None, before it, with room.
    """

    words: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    prepare: Callable[[Path], object] = lambda folder: None


def _train(*options: str) -> Callable[[Path], list[str]]:
    return lambda folder: [
        *("train", "--output", str(folder / "run"), "--model", "lenet-300-100"),
        *("--train-images", "64", "--epochs", "3", "--mesh", "data=1"),
        *("--optimizer", "sgd", "--checkpoint-minutes", "0", *options),
    ]


def _trained(folder: Path) -> Any:
    assert (folder / "run" / "summary.json").exists()
    return metrics(folder / "run")


def _sweep(folder: Path) -> list[str]:
    file = folder.parent / "grid.toml"
    train = _train()(folder)[3:]
    options = {k[2:].replace("-", "_"): v for k, v in zip(train[::2], train[1::2], strict=True)}
    lines = [f"{k} = {v if re.fullmatch(r'[0-9.]+', v) else repr(v)}" for k, v in options.items()]
    file.write_text("\n".join(["[train]", *lines, "[grid]", "seed = [0, 1]", ""]))
    return ["sweep", str(file), "--output", str(folder / "sweep"), "--workers", "1"]


def _copy_of_a_run(folder: Path) -> None:
    shutil.copytree(folder.parent / "runs" / "run", folder / "run")


def _exported(folder: Path) -> Any:
    assert sorted(p.name for p in (folder / "run" / "export").iterdir()) == [
        *("README.md", "export.json", "model.onnx", "model.safetensors", "model.stablehlo"),
    ]
    arrays, metadata = read_safetensors(folder / "run" / "export" / "model.safetensors")
    return metadata, {name: array.tobytes() for name, array in arrays.items()}


COMMANDS = {
    "train": Command(_train(), _trained),
    "train, lottery": Command(
        lambda folder: [
            *_train("--sparse", "lth", "--lottery-levels", "1", "--rewind-epochs", "1")(folder),
            *("--compilation-cache", str(folder / "cache")),
        ],
        _trained,
    ),
    "sweep": Command(
        _sweep,
        lambda folder: {p.parent.name: metrics(p.parent) for p in folder.rglob("metrics.jsonl")},
    ),
    "compare": Command(
        lambda folder: [
            *("compare", "--output", str(folder / "compared"), "--optimizers", "sgd"),
            *("--seeds", "1", *_train()(folder)[3:-4]),
        ],
        lambda folder: {p.parent.name: metrics(p.parent) for p in folder.rglob("metrics.jsonl")},
    ),
    "train, TensorBoard": Command(_train("--tensorboard"), _trained),
    "analyze": Command(
        lambda folder: [
            *("analyze", str(folder / "run"), "--images", "32", "--eigenvalues", "1"),
            *("--parts", "hessian", "features", "--lanczos-steps", "4", "--samples", "2"),
        ],
        lambda folder: json.loads((folder / "run" / "analysis.json").read_text()),
        _copy_of_a_run,
    ),
    "evaluate": Command(
        lambda folder: [
            *("evaluate", str(folder / "run"), "--images", "10", "--severities", "1"),
            *("--only", "contrast"),
        ],
        lambda folder: json.loads((folder / "run" / "robustness.json").read_text()),
        _copy_of_a_run,
    ),
    "export": Command(
        lambda folder: ["export", str(folder / "run"), "--images", "20"],
        _exported,
        _copy_of_a_run,
    ),
    "report": Command(
        lambda folder: ["report", str(folder.parent / "runs"), "--output", str(folder / "report")],
        lambda folder: (folder / "report" / "runs.csv").read_text(),
    ),
}


@contextlib.contextmanager
def library() -> Iterator[Path]:
    """The library that fails writes, compiled."""
    with tempfile.TemporaryDirectory(prefix="disks-library-") as parent:
        path = Path(parent) / "disk.so"
        source = path.with_suffix(".c")
        source.write_text(_SOURCE)
        command = ["cc", "-shared", "-fPIC", "-w", "-o", path, source, "-ldl"]
        subprocess.run(list(map(str, command)), check=True)
        yield path


class Trial(NamedTuple):
    """What a command ended with, and what it said; how many writes there were."""

    status: int
    said: str
    count: int


def attempt(command: Command, folder: Path, after: int = -1, error: int = 0) -> Trial:
    """Runs it in a child of this process in which writes fail after so many; -1 for none."""
    Path(f"{folder}.full").unlink(missing_ok=True)
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as counted:
        child = os.fork()
        if child == 0:
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)
            _become(command, folder, after, error, counted.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told.seek(0)
        counted.seek(0)
        return Trial(status, told.read(), int(counted.read() or -1))


def _become(command: Command, folder: Path, after: int, error: int, counted: int) -> None:
    from zosam_jax import cli  # noqa: PLC0415 (before, in the parent)

    disk = ctypes.CDLL(None)
    # The next two are for processes that a sweep starts.
    os.environ |= {"DISK_FOLDER": str(folder), "DISK_AFTER": str(after), "DISK_ERROR": str(error)}
    os.environ |= {"COLUMNS": "1000"}
    status = 0
    disk.disk_fails(str(folder).encode(), ctypes.c_long(after), error)
    try:
        cli.main(command.words(folder))
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException as fault:
        print(f"Traceback: {type(fault).__name__}: {fault}", flush=True)
        status = 70
    sys.stdout.flush()
    os.write(counted, str(disk.disk_count()).encode())
    os._exit(status)


def attack(command: Command, expected: Any, folder: Path, after: int, error: int) -> str:
    """What becomes of it in a new folder; "failed: …" if it is bad."""
    folder.mkdir(parents=True)
    command.prepare(folder)
    try:
        return _attack(command, expected, folder, after, error)
    finally:
        shutil.rmtree(folder)


def _attack(command: Command, expected: Any, folder: Path, after: int, error: int) -> str:
    first = attempt(command, folder, after, error)
    if "Traceback" in first.said or first.status not in (0, 1):
        return f"failed: status {first.status}, said {first.said[-2000:]}"
    if first.status == 1:
        if (folder / "run" / "export").exists():
            return "failed: a part of the export is there"
        sentences = [s for s in first.said.splitlines() if "cannot be written: " in s]
        if not sentences or not all(str(folder) in s or "printed" in s for s in sentences):
            return f"failed: said {first.said[-2000:]}"
    again = attempt(command, folder)
    if again.status != 0 or "Traceback" in again.said:
        return f"failed: with room, status {again.status}, said {again.said[-2000:]}"
    if command.result(folder) != expected:
        return "failed: with room, another result"
    return HELD if first.status == 1 else UNTOUCHED


def campaign(names: list[str], count: int, seed: int) -> dict[str, Any]:
    """Attacks at `count` random moments of each command and kind, evenly over all of them."""
    rng = np.random.default_rng(seed)
    table: collections.Counter[tuple[str, str, str]] = collections.Counter()
    failed = []
    with tempfile.TemporaryDirectory(prefix="disks-") as parent:
        root = Path(parent).resolve()
        shutil.copytree(_a_run(root), root / "runs" / "run")
        for name in names:
            command, whole = COMMANDS[name], root / "whole"
            whole.mkdir()
            command.prepare(whole)
            trial = attempt(command, whole)
            assert trial.status == 0, trial.said
            expected = command.result(whole)
            shutil.rmtree(whole)
            for kind, error in KINDS.items():
                for i in range(count):
                    after = int(rng.integers(*(trial.count * k // count for k in (i, i + 1))))
                    outcome = attack(command, expected, root / "attacked", after, error)
                    held = not outcome.startswith("failed")
                    table[name, kind, outcome if held else "failed"] += 1
                    if not held:
                        print(name, kind, after, outcome, file=sys.stderr, flush=True)
                        failed.append([name, kind, after, outcome])
    return {"counts": [[*key, n] for key, n in sorted(table.items())], "failures": failed}


def _a_run(root: Path) -> Path:
    trial = attempt(COMMANDS["train"], root / "made")
    assert trial.status == 0, trial.said
    return root / "made" / "run"


def run_apart(names: list[str], count: int, seed: int) -> dict[str, Any]:
    """The campaign in a process of its own, into which the library is loaded first."""
    with library() as path:
        done = subprocess.run(
            [sys.executable, __file__, str(count), str(seed), *names],
            env={**os.environ, "LD_PRELOAD": str(path), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    count, seed, *names = sys.argv[1:]
    if "LD_PRELOAD" not in os.environ:
        print(json.dumps(run_apart(names, int(count), int(seed))))
        return
    # What the children share: nothing of JAX has been started.
    import orbax.checkpoint  # noqa: F401, PLC0415

    import zosam_jax.commands.report  # noqa: PLC0415
    import zosam_jax.commands.sweep  # noqa: PLC0415
    import zosam_jax.commands.train  # noqa: F401, PLC0415

    print(json.dumps(campaign(names or list(COMMANDS), int(count), int(seed))))


if __name__ == "__main__":
    main()
