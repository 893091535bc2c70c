"""The command line: zosam train | compare."""

import sys
from collections.abc import Sequence
from typing import Annotated

# The options, tyro and rich come with the extra `train`.
try:
    import tyro
    from rich.console import Console

    from zosam_jax.training import sparse
    from zosam_jax.training.compare import compare
    from zosam_jax.training.config import CompareConfig, TrainConfig
    from zosam_jax.training.problem import Problem, load_dataset
    from zosam_jax.training.run_folder import RunFolder
    from zosam_jax.training.train import train
except ModuleNotFoundError as error:
    raise SystemExit(
        f"zosam needs {error.name}, which comes with: pip install 'zosam_jax[train]'"
    ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the options and runs the command; a wrong option ends it with one sentence."""
    console = Console()
    config: TrainConfig | CompareConfig = tyro.cli(
        Annotated[TrainConfig, tyro.conf.subcommand("train")]
        | Annotated[CompareConfig, tyro.conf.subcommand("compare")],
        prog="zosam",
        description="Sharpness-aware and sparse training in JAX.",
        args=arguments,
    )
    try:  # Only what the options cause ends in a sentence; a fault of ours keeps its traceback.
        problem = Problem(config, load_dataset(config))
        sparse.check(problem)
        folder = RunFolder(config.output, "train" if isinstance(config, TrainConfig) else "compare")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        console.print(f"zosam: {error}", style="red", markup=False)
        sys.exit(2)
    folder.write_json("config.json", config)
    if isinstance(config, TrainConfig):
        train(config, problem, folder, console)
    else:
        compare(config, problem, folder, console)


if __name__ == "__main__":
    main()
