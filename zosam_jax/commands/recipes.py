"""`zosam recipes`: which experiments of the paper there are by name."""

import dataclasses
from typing import Annotated

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from zosam_jax import recipes


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipesConfig:
    """List the recipes of the paper's experiments."""

    containing: Annotated[str, tyro.conf.Positional] = ""
    """Only names that contain this."""


def run(config: RecipesConfig, console: Console) -> None:
    """Prints the recipes whose names contain a text."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("recipe", "expected", "run on"):
        table.add_column(heading, no_wrap=True)
    for recipe in recipes.every():
        if config.containing in recipe.name:
            expected = "" if recipe.expected is None else f"{recipe.expected:.2f}%"
            table.add_row(recipe.name, expected, recipe.run_on)
    console.print(table)
