"""The command line, zosam COMMAND: finds the command, parses its options and runs it."""

import difflib
import importlib
import os
import signal
import sys
import typing
from collections.abc import Sequence
from typing import Any

import zosam_jax

# The options, tyro and rich come with the extra `train`.
try:
    from rich.console import Console

    from zosam_jax.commands import options
    from zosam_jax.commands.refusal import NO_ROOM, RefusedError, refused
except ModuleNotFoundError as error:
    raise SystemExit(
        f"zosam needs {error.name}, which comes with: pip install 'zosam_jax[train]'"
    ) from error

# Command → what its line in the help says. Each is a module of zosam_jax.commands with a function
# run(config, console), whose annotation says what its options are.
COMMANDS = {
    "train": "train one network and leave a run folder; the same command again resumes it",
    "sweep": "run many trainings, from a file that says which",
    "compare": "train with several optimizers on the same seeds, and print a table",
    "bench": "time several optimizers' steps side by side; nothing is trained",
    "analyze": "measure curvature, gradient variance and loss surfaces of finished runs",
    "evaluate": "measure finished runs on corrupted test images",
    "predict": "label images with a finished run",
    "export": "write a trained network for other programs: StableHLO, ONNX, safetensors",
    "report": "gather runs into one page of tables and figures",
    "recipes": "list the paper's experiments by name, for zosam train --recipe NAME",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the options and runs the command; a wrong option ends it with one sentence.

    Args:
      arguments: the words after `zosam`; by default those of this process.

    Raises:
      SystemExit: with status 2 for what is refused, 1 for what may succeed later, 130 after Ctrl-C,
        0 after --help.
    """
    console = Console(soft_wrap=True)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        console.print(_help(), markup=False, highlight=False)
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        console.print(f"zosam {zosam_jax.__version__}", markup=False, highlight=False)
        return
    try:
        run, config = _parse(words)
        run(config, console)
    except RefusedError as refusal:
        console.print(f"zosam: {refusal}", style="red", markup=False, highlight=False)
        sys.exit(refusal.status)
    except KeyboardInterrupt:
        console.print("zosam: interrupted", style="red")
        sys.exit(128 + signal.SIGINT)  # as shells report it
    except BrokenPipeError:  # whoever reads what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        # Perhaps of stdout itself, a file on a full disk.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"zosam: {refused(error)}", file=sys.stderr)
        sys.exit(1)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: zosam COMMAND [OPTIONS]",
            "",
            "Sharpness-aware and sparse training in JAX.",
            "",
            "commands:",
            *lines,
            "",
            "`zosam COMMAND --help` explains a command's options; `zosam --version` says which.",
        ]
    )


def _parse(words: Sequence[str]) -> tuple[Any, Any]:
    """The function of a command, and its options."""
    name, *others = words
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"do you mean {near[0]}" if near else "`zosam --help` lists them"
        raise RefusedError(f"{name!r} is no command; {meant}.")
    module = _module(name)
    start = _start(others) if name == "train" else None
    prog = f"zosam {name}"
    return module.run, options.parse(_options(module), others, prog=prog, default=start)


def _module(command: str) -> Any:
    """The module of a command; the others are not imported."""
    return importlib.import_module(f"zosam_jax.commands.{command}")


def _options(module: Any) -> Any:
    """The type of a command's options."""
    return typing.get_type_hints(module.run)["config"]


def _start(words: Sequence[str]) -> Any:
    """The configuration that --recipe or --task names, if one is among the words."""
    # Here, since other commands start faster without them.
    from zosam_jax import recipes  # noqa: PLC0415
    from zosam_jax.training.config import start_of  # noqa: PLC0415

    try:
        recipe, task = recipes.named_in(words), recipes.following("--task", words)
        if recipe is not None:
            return recipe.config
        return None if task is None else start_of(task)
    except ValueError as error:
        raise RefusedError(str(error)) from error


if __name__ == "__main__":
    main()
