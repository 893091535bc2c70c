"""One transformation early in a run, another one late: two programs over one state."""

from collections.abc import Callable

import jax
import optax

from zosam_jax.errors import check_count
from zosam_jax.trees import PyTree


def late_phase(
    early: optax.GradientTransformation, late: optax.GradientTransformation, start: int
) -> Callable[[int], optax.GradientTransformation]:
    """Which of two transformations takes a step; the later one goes on from the other's state.

        def chain(rho):
            return optax.chain(zosam_jax.sam(rho), optax.sgd(schedule, momentum=0.9))

        at = zosam_jax.late_phase(chain(0.0), chain(0.05), start=9 * steps // 10)
        step = jax.jit(step, static_argnums=0)
        state = at(0).init(params)
        for t in range(steps):
            params, state = step(at(t), params, state, next(batches))

    The number of the step decides on the host, so that there are two compiled programs and no
    condition in either: a convolution under jax.lax.cond is many times slower on a CPU. With ρ the
    number 0 a sharpness-aware transformation takes the plain gradient at its price, and its state
    has the same shape as with any other ρ; momentum, counts and schedules go on as if nothing had
    changed. A tail pays where the learning rate falls in it.

    Args:
      early: for the steps before `start`.
      late: from then on.
      start: the number of the first step of `late`, counted from 0.

    Returns:
      t → `early` or `late`.

    Raises:
      ValueError, TypeError: for a start that is no integer of at least 1.
      ValueError: from `init`, for two whose states differ in shape.

    Reference: Zhou et al., Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in
      Training, https://arxiv.org/abs/2410.10373
    """
    check_count("start", start)

    def init(params: PyTree) -> PyTree:
        state = early.init(params)
        one, other = (jax.eval_shape(lambda p, tx=tx: tx.init(p), params) for tx in (early, late))
        if _kinds(one) != _kinds(other):
            raise ValueError(
                "early and late must have states of one shape, as the same optimizer has with "
                "rho=0.0 and another rho; they have "
                f"{jax.tree.structure(one)} and {jax.tree.structure(other)}."
            )
        return state

    first = optax.GradientTransformationExtraArgs(init, optax.with_extra_args_support(early).update)
    return lambda step: first if step < start else late


def _kinds(state: PyTree) -> PyTree:
    return jax.tree.structure(state), [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
