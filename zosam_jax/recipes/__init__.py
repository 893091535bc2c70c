"""The paper's experiments by name: one file for each data set and model, one recipe for each cell.

    zosam train --recipe cifar10-resnet32-rigl-95-zo_sam

A file opens with its command, the hardware that it was run on and where the accuracies come from
that are expected of it, and defines `recipes()`. Options beside --recipe replace the recipe's own.
"""

import difflib
import itertools
from collections.abc import Iterator, Sequence

from zosam_jax.recipes import (
    cifar_resnet32,
    cifar_resnet50,
    cifar_wrn_28_10,
    digits_resnet8,
    fashion_mnist_resnet32,
    finetune,
    imagenet_deit,
)
from zosam_jax.recipes.recipe import Recipe

FILES = (
    cifar_resnet32,
    cifar_resnet50,
    cifar_wrn_28_10,
    imagenet_deit,
    fashion_mnist_resnet32,
    digits_resnet8,
    finetune,
)


def every() -> Iterator[Recipe]:
    """All recipes."""
    for file in FILES:
        yield from file.recipes()


def get(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
      ValueError: if there is none, with the names that come nearest.
    """
    known = {recipe.name: recipe for recipe in every()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        nearest = f"; the nearest are {', '.join(near)}" if near else ""
        raise ValueError(f"recipe={name!r} is not known{nearest} (`zosam recipes` lists all).")
    return known[name]


def named_in(arguments: Sequence[str]) -> Recipe | None:
    """The recipe that a command line names with --recipe, if it does."""
    name = following("--recipe", arguments)
    return None if name is None else get(name)


def following(option: str, arguments: Sequence[str]) -> str | None:
    """What a command line gives as an option; None if it does not."""
    for word, value in itertools.pairwise([*arguments, ""]):
        if word == option:
            return value
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None
