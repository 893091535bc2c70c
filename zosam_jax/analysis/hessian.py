"""How is the loss curved? The Hessian of the kept weights: its largest eigenvalues, trace, density.

H is never formed. It is multiplied with vectors, forward-over-reverse, one batch after another; a
product costs about two passes with gradients over all batches. Every quantity is that of P H P,
with P the projection on the kept weights, and of parameters widened to float32.

References: Pearlmutter, Fast Exact Multiplication by the Hessian, 1994; Ghorbani et al., An
Investigation into Neural Net Optimization via Hessian Eigenvalue Density,
https://arxiv.org/abs/1901.10159
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.flatten_util import ravel_pytree
from matfree import decomp

from zosam_jax import directions, masks, trees
from zosam_jax.analysis import batches as means
from zosam_jax.analysis.batches import Batch, LossFn
from zosam_jax.binding import Call
from zosam_jax.errors import check_count
from zosam_jax.keys import as_key
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Float, FloatTree, Int, Key, PyTree


class Spectrum(NamedTuple):
    """What `spectrum` finds.

    Attributes:
      eigenvalues: λ, float64[k], the largest first. Fewer than were asked for where the Krylov
        space closes early: an eigenvalue that is there twice is found once.
      eigenvectors: v, k pytrees like the parameters, in float32 or wider, of norm 1 and exactly
        zero on pruned weights; None for parameters that are not floating point. The sign is
        arbitrary.
      residuals: ‖Hv − λv‖₂, float64[k], by Lanczos' identity and so without the rounding errors
        of H, about 1e-6 λ_max in float32. An eigenvalue of H lies within that distance of λ; that
        none lies in between is not said.
      smallest: the smallest eigenvalue, which the same products give: negative at a saddle.
      smallest_residual: its residual.
      num_steps: the products made use of, the dimension of the Krylov space.
    """

    eigenvalues: Float[np.ndarray, " k"]
    eigenvectors: tuple[FloatTree, ...]
    residuals: Float[np.ndarray, " k"]
    smallest: float
    smallest_residual: float
    num_steps: int


class MonteCarloEstimate(NamedTuple):
    """A mean over random draws, and its standard error.

    Attributes:
      mean: of the samples.
      standard_error: their standard deviation (n − 1 in the denominator) over √n; NaN for one.
      samples: float64[n].
    """

    mean: float
    standard_error: float
    samples: Float[np.ndarray, " n"]


class Density(NamedTuple):
    """Where the eigenvalues lie, as n quadratures of m nodes each.

    (1/d) tr f(H) ≈ (1/n) Σᵢⱼ weightsᵢⱼ f(nodesᵢⱼ), d the number of kept weights.

    Attributes:
      nodes: float64[n, m].
      weights: float64[n, m], each row summing to 1; zero where a Krylov space closed early.
    """

    nodes: Float[np.ndarray, "n m"]
    weights: Float[np.ndarray, "n m"]

    def smoothed(
        self, points: Sequence[float] | Float[np.ndarray, "*s"], width: float
    ) -> Float[np.ndarray, "*s"]:
        """The density at some points of the axis, each node a Gaussian of standard deviation
        `width`: float64 of the points' shape.
        """
        distances = (np.asarray(points, np.float64)[..., None, None] - self.nodes) / width
        bells = np.exp(-np.square(distances) / 2) / (width * np.sqrt(2 * np.pi))
        smooth: np.ndarray = np.sum(self.weights * bells, axis=(-2, -1)) / len(self.nodes)
        return smooth


def vector_product(
    loss_fn: LossFn, params: PyTree, batches: Iterable[Batch], *, mask: PyTree = None
) -> Callable[[FloatTree], FloatTree]:
    """v ↦ P H P v, H = ∇²L(θ) averaged over all batches, P the projection on the kept weights.

    Returns:
      A function of a pytree like `params` that returns one, in float32 or wider, with None in
      place of what is not floating point.
    """
    return _hessian(loss_fn, params, batches, mask).times


def spectrum(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    *,
    mask: PyTree = None,
    num_eigenvalues: int = 5,
    num_steps: int = 40,
    key: int | Array = 0,
) -> Spectrum:
    """The largest eigenvalues of the Hessian and their eigenvectors, by Lanczos' iteration.

    From a random vector on the kept weights, with every vector made orthogonal to all before it;
    they are held, num_steps arrays of the size of the kept weights. Watch the residuals: the outer
    eigenvalues converge first, and more steps make all of them smaller.

    Args:
      batches: of equal size; iterated over once in each step.
      num_eigenvalues: k ≥ 1, at most the number of steps.
      num_steps: Hessian-vector products; no more are made than weights are kept.
    """
    check_count("num_eigenvalues", num_eigenvalues)
    check_count("num_steps", num_steps)
    hessian = _hessian(loss_fn, params, batches, mask)
    if num_eigenvalues > min(num_steps, hessian.dimension):
        raise ValueError(
            f"num_eigenvalues={num_eigenvalues} must be at most num_steps={num_steps} and the "
            f"number of kept weights, {hessian.dimension}."
        )
    krylov = _lanczos(hessian, num_steps, as_key(key))
    values, rotation = np.linalg.eigh(krylov.matrix)
    residuals = krylov.coupling * np.abs(rotation[-1])
    largest = np.arange(len(values))[::-1][:num_eigenvalues]
    vectors = rotation[:, largest].T.astype(krylov.basis.dtype) @ krylov.basis
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Spectrum(
        eigenvalues=values[largest],
        eigenvectors=tuple(hessian.put(jnp.asarray(vector)) for vector in vectors),
        residuals=residuals[largest],
        smallest=float(values[0]),
        smallest_residual=float(residuals[0]),
        num_steps=len(values),
    )


def trace(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    *,
    mask: PyTree = None,
    num_samples: int = 16,
    key: int | Array = 0,
) -> MonteCarloEstimate:
    """tr H = E[uᵀ H u] over random signs u on the kept weights.

    One sample has the variance 2 Σ_{i≠j} H²ᵢⱼ: none for a diagonal H.

    Args:
      batches: of equal size; iterated over once for each sample.
      num_samples: Hessian-vector products.

    Returns:
      The trace, with its standard error.

    Reference: Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix, 1989.
    """
    check_count("num_samples", num_samples)
    hessian = _hessian(loss_fn, params, batches, mask)

    def sample(key: Key[Array, ""]) -> float:
        signs = hessian.draw(directions.rademacher, key)
        return float(trees.inner(signs, hessian.times(signs)))

    return monte_carlo_estimate([sample(key) for key in jax.random.split(as_key(key), num_samples)])


def density(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    *,
    mask: PyTree = None,
    num_samples: int = 4,
    num_steps: int = 40,
    key: int | Array = 0,
) -> Density:
    """How the eigenvalues are distributed, by stochastic Lanczos quadrature.

    Each random start gives a Gauss quadrature of the density: the eigenvalues of its tridiagonal
    matrix, weighed by the squares of the first components of their eigenvectors.

    Args:
      batches: of equal size; iterated over num_samples · num_steps times.
      num_samples: n, the number of random starts.
      num_steps: m, Hessian-vector products from each; no more than weights are kept.

    Returns:
      The nodes and weights of num_samples quadratures.

    Reference: Ghorbani et al., https://arxiv.org/abs/1901.10159
    """
    check_count("num_samples", num_samples)
    check_count("num_steps", num_steps)
    hessian = _hessian(loss_fn, params, batches, mask)
    shape = (num_samples, min(num_steps, hessian.dimension))
    nodes, weights = np.zeros(shape), np.zeros(shape)
    for row, start in enumerate(jax.random.split(as_key(key), num_samples)):
        values, rotation = np.linalg.eigh(_lanczos(hessian, num_steps, start).matrix)
        nodes[row, : len(values)], weights[row, : len(values)] = values, np.square(rotation[0])
    return Density(nodes, weights)


def monte_carlo_estimate(samples: Sequence[float]) -> MonteCarloEstimate:
    """The mean of independent samples, one or more, with its standard error."""
    values = np.asarray(samples, np.float64)
    count = len(values)
    error = float(np.std(values, ddof=1)) / np.sqrt(count) if count > 1 else np.nan
    return MonteCarloEstimate(float(np.mean(values)), float(error), values)


class Point(NamedTuple):
    """A loss near given weights."""

    params: FloatTree  # θ's floating-point leaves in float32 or wider, None for the others
    mask: masks.Resolved  # resolved; None for all
    on_batch: Callable[[Batch], Objective]  # batch → the loss on it, of a tree like `params`


def around(loss_fn: LossFn, params: PyTree, mask: PyTree) -> Point:
    """The loss around θ, as a function of the weights that can be moved."""
    floating, merge = trees.split_floating(params)
    return Point(
        params=jax.tree.map(lambda p: jnp.asarray(p, trees.wide_dtype(p)), floating),
        mask=masks.resolve(mask, floating),
        on_batch=lambda batch: Objective(Call(loss_fn, (batch,)), name="loss_fn", merge=merge),
    )


class _Hessian(NamedTuple):
    """P H P at a point."""

    point: Point  # θ, the mask and the loss
    times: Callable[[FloatTree], FloatTree]  # its product with a tree like the point's parameters
    dimension: int  # the number of kept weights
    # the kept weights of such a tree, as one vector
    take: Callable[[FloatTree], Float[Array, " d"]]
    put: Callable[[Float[Array, " d"]], FloatTree]  # the tree of such a vector, zero elsewhere

    def draw(self, distribution: directions.Distribution, key: Key[Array, ""]) -> FloatTree:
        """A random direction on the kept weights."""
        return distribution(key, self.point.params, self.point.mask)


def _hessian(loss_fn: LossFn, params: PyTree, batches: Iterable[Batch], mask: PyTree) -> _Hessian:
    point = around(loss_fn, params, mask)
    flat, unravel = ravel_pytree(point.params)
    size, dtype = flat.size, flat.dtype
    every = jax.tree.map(lambda p: jnp.ones(p.shape, bool), point.params)
    indices = jnp.flatnonzero(ravel_pytree(masks.restrict(every, point.mask))[0])
    if indices.size == 0:
        raise ValueError(
            f"mask keeps none of the {size} floating-point weights; the Hessian needs one."
        )

    @jax.jit
    def on_batch(
        theta: FloatTree, kept: masks.Resolved, batch: Batch, vector: FloatTree
    ) -> FloatTree:
        loss = point.on_batch(batch)
        vector = jax.tree.map(lambda p, v: jnp.asarray(v, p.dtype), theta, vector)
        _, product = jax.jvp(
            lambda theta: loss.value_and_grad(theta).gradient,
            (theta,),
            (masks.restrict(vector, kept),),
        )
        return masks.restrict(product, kept)

    @jax.jit
    def take(indices: Int[Array, " d"], tree: FloatTree) -> Float[Array, " d"]:
        return ravel_pytree(tree)[0][indices]

    @jax.jit
    def put(indices: Int[Array, " d"], vector: Float[Array, " d"]) -> FloatTree:
        return unravel(jnp.zeros(size, dtype).at[indices].set(vector))

    def times(vector: FloatTree) -> FloatTree:
        return means.mean(lambda b: on_batch(point.params, point.mask, b, vector), batches)

    return _Hessian(
        point=point,
        times=times,
        dimension=int(indices.size),
        take=functools.partial(take, indices),
        put=functools.partial(put, indices),
    )


class _Krylov(NamedTuple):
    """H Q = Q T + r eᵀ, e the last unit vector, Q of m orthonormal columns."""

    basis: Float[np.ndarray, "m d"]  # Qᵀ, [m, d]
    matrix: Float[np.ndarray, "m m"]  # T, float64[m, m], tridiagonal
    coupling: float  # ‖r‖₂


def _lanczos(hessian: _Hessian, num_steps: int, key: Key[Array, ""]) -> _Krylov:
    """The Krylov space of a random vector on the kept weights."""
    start = hessian.take(hessian.draw(directions.normal, key))
    iterate = decomp.tridiag_sym(min(num_steps, hessian.dimension), custom_vjp=False)
    # The products belong on the host: inside matfree's compiled loop they are tens of times slower
    # (convolutions on a CPU), and all batches would be constants of one program. Without jit the
    # loop is Python's; but matfree traces the product first, and would run what it traced operation
    # by operation. A primitive stays whole. (A pure_callback copies all vectors to the host, and
    # calls jax from where it can wait for itself for ever.)
    product = Primitive("hessian_vector_product")
    product.def_abstract_eval(lambda vector: vector)

    def compiled(vector: Float[Array, " d"]) -> Float[Array, " d"]:
        with jax.disable_jit(False):
            return hessian.take(hessian.times(hessian.put(vector)))

    product.def_impl(compiled)
    with jax.disable_jit():
        basis, matrix, rest, _ = iterate(product.bind, start)
    return _until_closed(
        np.asarray(basis), np.asarray(matrix, np.float64), float(jnp.linalg.norm(rest))
    )


def _until_closed(
    basis: Float[np.ndarray, "m d"], matrix: Float[np.ndarray, "m m"], coupling: float
) -> _Krylov:
    """The part of a tridiagonalisation before the first coupling that is zero up to rounding.

    There the space is invariant, and what follows is rounding errors, scaled up.

    Raises:
      ValueError: if the first product was not finite.
    """
    if not np.isfinite(matrix[0, 0]):
        raise ValueError("the Hessian of loss_fn is not finite at params: has training diverged?")
    couplings = np.abs(np.diagonal(matrix, 1))
    threshold = 10 * np.finfo(basis.dtype).eps * np.nanmax(np.abs(matrix))
    (closed,) = np.nonzero(~(couplings > threshold))  # NaN after a coupling of exactly zero
    if closed.size == 0:
        return _Krylov(basis, matrix, coupling)
    size = int(closed[0]) + 1
    return _Krylov(basis[:size], matrix[:size, :size], 0.0)
