"""What every descent is: the answer to "and how down from there?"."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from zosam_jax import trees
from zosam_jax.trees import Array, PyTree


class Landing(NamedTuple):
    """What a descent found.

    Attributes:
      value: the loss where the gradient was taken, L(θ+ε).
      aux: the auxiliary output of that pass.
      gradient: what the rest of the optax.chain is given.
      state: what the descent remembers; None to leave the state it was given as it is.
    """

    value: Array
    aux: Any
    gradient: PyTree
    state: PyTree = None


class Descent(NamedTuple):
    """A way of coming down from the perturbed point.

    Attributes:
      init: params → state, whatever the descent wants to remember between steps (arrays only).
      gradient: (objective, params, epsilon, climb, state, *, key, mask) → Landing. `objective` is
        a `zosam_jax.objective.Objective`; `epsilon` the perturbation, a pytree like `params`, or
        None where ρ is zero for good; `climb` is what the ascent found, `key` a random key of
        this step, `mask` None or a pytree of bool leaves.
    """

    init: Callable[[PyTree], PyTree]
    gradient: Callable[..., Landing]


def perturbed(params: PyTree, epsilon: PyTree | None) -> PyTree:
    """θ+ε as a value of its own; θ itself for an ε of None.

    The barrier keeps ε's arithmetic out of the descent's program, which so is the very program
    that jax.grad gives: with ρ = 0 the results are equal bit for bit.
    """
    if epsilon is None:
        return params
    return jax.lax.optimization_barrier(trees.displace(params, epsilon))
