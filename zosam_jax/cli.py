"""The command line, zosam COMMAND: from typed options to the command that carries them out."""

import functools
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

# The options, tyro and rich come with the extra `train`.
try:
    import tyro
    from rich.console import Console

    from zosam_jax import recipes
    from zosam_jax.commands import analyze, bench, compare, evaluate, report, sweep, train
    from zosam_jax.commands import recipes as recipes_command
    from zosam_jax.commands.refusal import RefusedError
    from zosam_jax.training.config import TrainConfig
except ModuleNotFoundError as error:
    raise SystemExit(
        f"zosam needs {error.name}, which comes with: pip install 'zosam_jax[train]'"
    ) from error


class Command(NamedTuple):
    """A command's options, and what it does with them."""

    options: type
    run: Callable[[Any, Console], None]


COMMANDS = {
    "train": Command(TrainConfig, train.run),
    "sweep": Command(sweep.SweepConfig, sweep.run),
    "compare": Command(compare.CompareConfig, compare.run),
    "bench": Command(bench.BenchConfig, bench.run),
    "analyze": Command(analyze.AnalyzeConfig, analyze.run),
    "evaluate": Command(evaluate.EvaluateConfig, evaluate.run),
    "report": Command(report.ReportConfig, report.run),
    "recipes": Command(recipes_command.RecipesConfig, recipes_command.run),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the options and runs the command; a wrong option ends it with one sentence."""
    console = Console(soft_wrap=True)
    try:
        config = _parse(list(sys.argv[1:] if arguments is None else arguments))
        command = next(c for c in COMMANDS.values() if c.options is type(config))
        command.run(config, console)
    except RefusedError as refused:
        console.print(f"zosam: {refused}", style="red", markup=False)
        sys.exit(2)


def _parse(arguments: list[str]) -> Any:
    try:
        recipe = recipes.named_in(arguments)
        start = TrainConfig() if recipe is None else recipe.config
    except ValueError as error:
        raise RefusedError(str(error)) from error
    subcommand: Any = tyro.conf.subcommand
    kinds = [
        Annotated[
            command.options, subcommand(name, **({"default": start} if name == "train" else {}))
        ]
        for name, command in COMMANDS.items()
    ]
    commands: Any = functools.reduce(operator.or_, kinds)
    return tyro.cli(
        commands,
        prog="zosam",
        description="Sharpness-aware and sparse training in JAX.",
        args=arguments,
    )


if __name__ == "__main__":
    main()
