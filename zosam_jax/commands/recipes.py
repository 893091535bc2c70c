"""`zosam recipes`: which experiments of the paper there are by name."""

import dataclasses
from typing import Annotated

import tyro
from rich.console import Console

from zosam_jax import recipes
from zosam_jax.commands.refusal import RefusedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipesConfig:
    """List the recipes of the paper's experiments."""

    containing: Annotated[str, tyro.conf.Positional] = ""
    """Only names that contain this."""


def run(config: RecipesConfig, console: Console) -> None:
    """Prints the recipes whose names contain a text, whole at any width."""
    found = [recipe for recipe in recipes.every() if config.containing in recipe.name]
    if not found:
        raise RefusedError(f"no recipe's name contains {config.containing!r}.")
    rows = [("recipe", "expected", "run on")]
    for recipe in found:
        expected = "" if recipe.expected is None else f"{recipe.expected:.2f}%"
        rows.append((recipe.name, expected, recipe.run_on))
    width = max(len(name) for name, _, _ in rows)
    for name, expected, run_on in rows:
        line = f"{name:{width}}  {expected:>8}  {run_on}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
