"""Masks chosen before training: one saliency score for each weight, and the largest stay.

`from_scores` turns any score into masks; the rest are scores with a name. They take the parameters
(which are not changed), the sparsity, distribution, where and pattern as `from_scores` does, return
masks as it does, and raise its errors and a ValueError for scores that are not finite. Those with a
loss take `has_aux`: whether it returns auxiliary output, which is ignored.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from zosam_jax import trees
from zosam_jax.errors import check_count, check_number, is_traced
from zosam_jax.keys import as_key
from zosam_jax.masks import restrict
from zosam_jax.sparsity import distributions, layers, structured
from zosam_jax.sparsity.distributions import GLOBAL, SparsityDistribution
from zosam_jax.sparsity.groups import Units, check_is_units
from zosam_jax.sparsity.layers import Layers, Where, is_weight
from zosam_jax.sparsity.patterns import Pattern, unstructured
from zosam_jax.sparsity.selection import largest_of_all
from zosam_jax.sparsity.structured import Structure
from zosam_jax.trees import Array, Bool, Float, FloatTree, Key, Num, PyTree

Loss: TypeAlias = Callable[..., Any]
Batches: TypeAlias = Sequence[tuple[Any, ...]]


def from_scores(
    params: PyTree,
    scores: PyTree,
    sparsity: float,
    *,
    distribution: str | SparsityDistribution = GLOBAL,
    where: Where = is_weight,
    pattern: Pattern | None = None,
    units: Units | None = None,
    budget: str = "units",
    costs: PyTree | None = None,
) -> PyTree[Bool[Array, "..."]]:
    """Keeps the weights with the largest scores, in exact counts, ties to the lowest index.

    With `units` it keeps whole channels, heads and neurons, and at least one of each group. The
    score of a unit is the sum of the scores of all its weights in the arrays that `where` chooses,
    those that make it and those that read it. All weights of a unit that goes are masked, biases
    and BatchNorm's scales among them.

    Args:
      params: the parameters.
      scores: a tree like `params`; what it holds for dense parameters is not looked at.
      sparsity: the fraction of the maskable weights that becomes zero, 0 ≤ s < 1.
      distribution: how the budget is shared among layers: "global" (the largest scores of all
        layers together, and at least one weight in each), "erk" (Erdős–Rényi-kernel), "uniform",
        or a function (`zosam_jax.sparsity.distributions`).
      where: which parameters to mask: (path, leaf) → bool with paths as in "['Dense_0']['kernel']",
        or a regular expression to be found in the path.
      pattern: the shape of the masks (`zosam_jax.sparsity.patterns`); None for any. A block counts
        as one unit in the budget, and erk looks at the shape of the grid of blocks.
      units: what is removed whole (`zosam_jax.sparsity.units`); None for single weights. `where`
        then says which arrays' scores count. erk is uniform, the same fraction of every group.
        "global" compares sums, of which a head's has many more terms than a neuron's: it is for
        units of one kind (`zosam_jax.sparsity.structured.of_kind`).
      budget: what `sparsity` is a fraction of: "units", or the "weights" or "macs" of the arrays
        that have units. Of the last two as much stays as fits, in the order of the scores
        ("global") or the same fraction of every group ("uniform").
      costs: for budget="macs" the MACs of each parameter, as `zosam_jax.sparsity.macs.macs` counts
        them.

    Returns:
      A pytree like `params`: a bool array for a masked parameter, None for a dense one.

    Raises:
      ValueError: for a sparsity outside [0, 1), one that would empty an array or a group, a
        `where` that finds nothing to mask, arrays that the pattern does not fit, or units of
        another network.
    """
    check_sparsity(sparsity)
    if units is not None:
        _refuse_pattern(pattern)
        structure = structured.bind(units, params, where)
        return _units_masks(
            structure,
            structure.scores(structure.layers.take(scores)),
            sparsity,
            distribution=distribution,
            budget=budget,
            costs=costs,
        )
    if budget != "units" or costs is not None:
        raise ValueError(f"budget={budget!r} and costs go with units=, which is missing.")
    masked = layers.select(params, where)
    pattern = unstructured() if pattern is None else pattern
    for path, weights in zip(masked.paths, masked.take(params), strict=True):
        pattern.check(path, jnp.shape(weights))
    if pattern.density is not None and abs(1.0 - sparsity - pattern.density) > 1e-6:
        raise ValueError(
            f"sparsity={sparsity} does not go with the pattern {pattern.name}, whose sparsity is "
            f"{1.0 - pattern.density:g} in every array."
        )
    blocks = [pattern.units(score) for score in masked.take(scores)]
    if distribution == GLOBAL and pattern.density is None and not pattern.per_column:
        kept = _largest_of_all(blocks, sparsity)
    else:
        name = "uniform" if distribution == GLOBAL else distribution
        counts = distributions.get(name)([b.shape for b in blocks], sparsity)
        distributions.check_counts(counts, [b.size for b in blocks])
        kept = pattern.choose(blocks, jnp.asarray(counts, jnp.int32))
    return masked.fill([pattern.expand(mask) for mask in kept])


def from_unit_scores(
    params: PyTree,
    scores: Sequence[Num[Array, " _"]],
    sparsity: float,
    *,
    units: Units,
    distribution: str | SparsityDistribution = GLOBAL,
    budget: str = "units",
    costs: PyTree | None = None,
) -> PyTree[Bool[Array, "..."]]:
    """Keeps the units with the largest scores, which are given unit by unit; else as `from_scores`.

    Args:
      scores: a vector for each group of `units`, in their order.
    """
    check_sparsity(sparsity)
    check_is_units(units)
    sizes, given = [g.size for g in units.groups], [jnp.shape(s) for s in scores]
    if given != [(size,) for size in sizes]:
        raise ValueError(f"scores has the shapes {given} for groups of {sizes} units.")
    return _units_masks(
        structured.bind(units, params, structured.every_array),
        scores,
        sparsity,
        distribution=distribution,
        budget=budget,
        costs=costs,
    )


def _units_masks(
    structure: Structure,
    scores: Sequence[Num[Array, " _"]],
    sparsity: float,
    *,
    distribution: str | SparsityDistribution,
    budget: str,
    costs: PyTree | None,
) -> PyTree[Bool[Array, "..."]]:
    limits = structured.costs_of(structure, budget, costs)
    kept = structured.choose(structure, scores, sparsity, distribution=distribution, costs=limits)
    return structure.layers.fill(structure.masks(kept))


def random(
    params: PyTree,
    sparsity: float,
    *,
    distribution: str | SparsityDistribution = "erk",
    where: Where = is_weight,
    pattern: Pattern | None = None,
    units: Units | None = None,
    key: int | Array = 0,
    **options: Any,
) -> PyTree[Bool[Array, "..."]]:
    """Keeps weights at random, every choice of the same counts alike; or units, with `units`.

    Args:
      distribution: see `from_scores`; "global" is uniform with layers' shares left to chance.
      key: a seed or a random key.
      **options: `budget` and `costs` of `from_scores`.
    """
    if units is not None:
        check_is_units(units)
        _refuse_pattern(pattern)
        keys = jax.random.split(as_key(key), len(units.groups))
        draws = [jax.random.uniform(k, (g.size,)) for k, g in zip(keys, units.groups, strict=True)]
        return from_unit_scores(
            params, draws, sparsity, units=units, distribution=distribution, **options
        )
    masked = layers.select(params, where)
    keys = jax.random.split(as_key(key), len(masked.indices))

    def score(key: Key[Array, ""], shape: tuple[int, ...]) -> Num[Array, "..."]:
        if isinstance(distribution, str) and distribution == GLOBAL:
            return jax.random.uniform(key, shape)  # permutations would fix the layers' shares
        return -jax.random.permutation(key, math.prod(shape)).reshape(shape)

    scores = [score(k, w.shape) for k, w in zip(keys, masked.take(params), strict=True)]
    return from_scores(
        params,
        masked.fill(scores),
        sparsity,
        distribution=distribution,
        where=where,
        pattern=pattern,
        **options,
    )


def magnitude(params: PyTree, sparsity: float, **options: Any) -> PyTree[Bool[Array, "..."]]:
    """Keeps the weights of the largest magnitude, score |θ|; units by the sum of theirs.

    With `units` and where=is_scale the score is that of network slimming, |γ| of BatchNorm.

    Reference: Han et al., Learning both Weights and Connections,
    https://arxiv.org/abs/1506.02626
    """
    masked = layers.select(params, options.get("where", is_weight))
    scores = masked.fill([jnp.abs(w) for w in masked.take(params)])
    return from_scores(params, scores, sparsity, **options)


def snip(
    loss: Loss,
    params: PyTree,
    sparsity: float,
    batches: Batches,
    *,
    has_aux: bool = False,
    **options: Any,
) -> PyTree[Bool[Array, "..."]]:
    """Keeps the weights whose removal would change the loss most: score |θ ⊙ Σ_b ∇L_b(θ)|.

    Only the order of the scores counts, so the scale of the loss does not.

    Args:
      loss: (params, *batch) → scalar, or → (scalar, aux) with `has_aux`. The original evaluates
        BatchNorm in inference mode here; that is for `loss` to do.
      batches: tuples of arguments for `loss`, for example [(images, labels)]; the original takes
        one batch of 100 to 128 images.

    Reference: Lee et al., SNIP, https://arxiv.org/abs/1810.02340
    """
    masked = layers.select(params, options.get("where", is_weight))
    weights = masked.take(params)
    gradients = jax.jit(jax.grad(_loss_of_weights(loss, params, masked, batches, has_aux)))(weights)
    scores = [jnp.abs(_product(w, g)) for w, g in zip(weights, gradients, strict=True)]
    return from_scores(params, _finite(masked.fill(scores), "snip"), sparsity, **options)


def taylor(
    loss: Loss,
    params: PyTree,
    sparsity: float,
    batches: Batches,
    *,
    has_aux: bool = False,
    **options: Any,
) -> PyTree[Bool[Array, "..."]]:
    """Keeps the weights, or units, whose removal would change the batches' losses most.

        score Σ_b |θ ⊙ ∇L_b(θ)|,  of a unit the sum over its weights

    SNIP's, but for the absolute value of each batch; for networks that are trained, too.

    Args:
      loss: (params, *batch) → scalar, or → (scalar, aux) with `has_aux`.
      batches: tuples of arguments for `loss`, for example [(images, labels), ...].

    Reference: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient
    Inference, https://arxiv.org/abs/1611.06440
    """
    masked = layers.select(params, options.get("where", is_weight))
    weights = masked.take(params)
    _check_batches(batches)

    @jax.jit
    def of(weights: list[Array], batch: tuple[Any, ...]) -> list[Array]:
        gradients = jax.grad(_loss_of_weights(loss, params, masked, [batch], has_aux))(weights)
        return [jnp.abs(_product(w, g)) for w, g in zip(weights, gradients, strict=True)]

    of_each = (of(weights, batch) for batch in batches)
    scores = functools.reduce(lambda total, more: jax.tree.map(jnp.add, total, more), of_each)
    return from_scores(params, _finite(masked.fill(scores), "taylor"), sparsity, **options)


def grasp(
    loss: Loss,
    params: PyTree,
    sparsity: float,
    batches: Batches,
    *,
    has_aux: bool = False,
    **options: Any,
) -> PyTree[Bool[Array, "..."]]:
    """Keeps the weights whose removal would lower the gradient's norm most: score θ ⊙ H g.

        L = Σ_b L_b,   g = ∇L(θ),   H = ∇²L(θ)

    θ are the weights that may be pruned: biases and other dense parameters are constants, as in
    the authors' code. The paper's S = −θ ⊙ H g with the largest S removed is the same. The sign
    counts.

    Args:
      loss: (params, *batch) → scalar, or → (scalar, aux) with `has_aux`. The original divides the
        logits by 200 in the cross-entropy and runs BatchNorm in training mode.
      batches: tuples of arguments for `loss`; the original takes ten images of each class
        (`zosam_jax.data.dataset.balanced_sample`).

    Reference: Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow,
    https://arxiv.org/abs/2002.07376
    """
    masked = layers.select(params, options.get("where", is_weight))
    weights = masked.take(params)
    gradient = jax.grad(_loss_of_weights(loss, params, masked, batches, has_aux))

    @jax.jit
    def hessian_times_gradient(weights: list[Array]) -> list[Array]:
        product: list[Array] = jax.jvp(gradient, (weights,), (gradient(weights),))[1]
        return product

    scores = map(_product, weights, hessian_times_gradient(weights))
    return from_scores(params, _finite(masked.fill(list(scores)), "grasp"), sparsity, **options)


def synflow(
    apply: Callable[[PyTree, Float[Array, "1 ..."]], Float[Array, "..."]],
    params: PyTree,
    sparsity: float,
    input_shape: tuple[int, ...],
    *,
    rounds: int = 100,
    where: Where = is_weight,
    pattern: Pattern | None = None,
) -> PyTree[Bool[Array, "..."]]:
    """Keeps the weights on the strongest paths from input to output; needs no data.

        R = Σ f(|θ|, 1),   score = |θ| ⊙ ∂R/∂|θ|

    Weights are pruned in rounds, at round i to the density (1 − s)^(i/n), and scored anew in each;
    one global budget. Computed in float64, since R grows beyond float32 in deep networks. Call it
    outside jit. A pattern of fixed density (N:M) is taken in a single round.

    Args:
      apply: (params, inputs) → outputs, with BatchNorm in inference mode. Statistics that are not
        as initialised should be replaced by their absolute values too.
      input_shape: the shape of one input; a batch of one, all ones, is passed.
      rounds: n.

    Reference: Tanaka et al., Pruning neural networks without any data,
    https://arxiv.org/abs/2006.05467
    """
    check_sparsity(sparsity)
    check_count("rounds", rounds)
    masked = layers.select(params, where)
    masks = masked.fill([jnp.ones(w.shape, bool) for w in masked.take(params)])
    rounds = 1 if pattern is not None and pattern.density is not None else rounds
    floating, merge = trees.split_floating(params)
    with jax.enable_x64(True):
        absolute = jax.tree.map(lambda p: jnp.abs(p).astype(jnp.float64), floating)
        inputs = jnp.ones((1, *input_shape), jnp.float64)

        @jax.jit
        def score(masks: PyTree) -> PyTree:
            kept = restrict(absolute, masks)
            gradient = jax.grad(lambda p: jnp.sum(apply(merge(p), inputs)))(kept)
            flow = jax.tree.map(lambda w, g: jnp.abs(w * g), kept, gradient)
            top = functools.reduce(jnp.maximum, [jnp.max(f) for f in masked.take(flow)])
            # Only the order counts, and selection compares in float32. Pruned weights have no
            # flow, and so may others: they score below all, to be pruned for good.
            return jax.tree.map(
                lambda m, f: None if m is None else jnp.where(m, f / top, -1.0),
                masks,
                flow,
                is_leaf=lambda x: x is None,
            )

        for i in range(1, rounds + 1):
            scores = _finite(score(masks), "synflow")
            density = (1.0 - sparsity) ** (i / rounds)
            masks = from_scores(params, scores, 1.0 - density, where=where, pattern=pattern)
    return masks


def check_sparsity(sparsity: Any, argument: str = "sparsity") -> None:
    """Raises unless 0 ≤ sparsity < 1."""
    check_number(argument, sparsity, above=0.0, inclusive=True)
    if sparsity >= 1:
        raise ValueError(f"{argument}={sparsity!r} must be below 1: it is the fraction of zeros.")


def _refuse_pattern(pattern: Pattern | None) -> None:
    if pattern is not None:
        raise ValueError(f"pattern={pattern.name} does not go with units, which go as a whole.")


def _loss_of_weights(
    loss: Loss, params: PyTree, masked: Layers, batches: Batches, has_aux: bool
) -> Callable[[list[Array]], Float[Array, ""]]:
    """The batches' losses together, as a function of the weights that may be pruned."""
    _check_batches(batches)

    def total(weights: list[Array]) -> Float[Array, ""]:
        replaced = masked.replace(params, weights)
        values = [loss(replaced, *batch) for batch in batches]
        return sum(
            (value[0] if has_aux else value for value in values), start=jnp.zeros((), jnp.float32)
        )

    return total


def _check_batches(batches: Batches) -> None:
    if not isinstance(batches, list | tuple) or not all(isinstance(b, tuple) for b in batches):
        raise TypeError(
            "batches must be a list of tuples of the loss's arguments, for example "
            f"[(images, labels)]; it is {type(batches).__name__}."
        )
    if not batches:
        raise ValueError("batches is empty: the scores need at least one batch.")


def _product(
    weights: Float[Array, "*layer"], gradient: Float[Array, "*layer"]
) -> Float[Array, "*layer"]:
    """θ ⊙ g in float32 or wider: products of small halves would all be zero."""
    wide = trees.wide_dtype(weights)
    return weights.astype(wide) * gradient.astype(wide)


def _finite(scores: FloatTree, name: str) -> FloatTree:
    for path, score in jax.tree.leaves_with_path(scores):
        if not is_traced(score) and not bool(jnp.isfinite(score).all()):
            raise ValueError(
                f"{name}'s scores are not all finite at {jax.tree_util.keystr(path)}: the loss or "
                "its derivatives overflow at these parameters."
            )
    return scores


def _largest_of_all(
    units: Sequence[Num[Array, "..."]], sparsity: float
) -> list[Bool[Array, "..."]]:
    """The largest scores of all arrays together, among them the largest of each array.

    An array without a weight would cut the network in two.
    """
    sizes = [u.size for u in units]
    count, arrays = round((1.0 - sparsity) * sum(sizes)), sum(size > 0 for size in sizes)
    if count < arrays:
        raise ValueError(
            f"sparsity={sparsity} leaves {count} of {sum(sizes)} weights to {arrays} arrays, of "
            "which each keeps one at least: choose a lower sparsity, or leave small arrays dense "
            "with where=."
        )
    return largest_of_all(units, count)
