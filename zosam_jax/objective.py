"""The minibatch loss as one step sees it: cheap values for probes, and one exact gradient."""

import collections
import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import shardings, trees
from zosam_jax.binding import Call
from zosam_jax.trees import Array, Float, FloatTree, Key, PyTree, Shaped, T

AxisName: TypeAlias = str | tuple[str, ...]


class ValueAndGrad(NamedTuple):
    """What one forward and backward pass gives.

    Attributes:
      value: L, in float32 or wider.
      aux: the loss's auxiliary output, None without one.
      gradient: ∇L.
    """

    value: Float[Array, ""]
    aux: Any
    gradient: FloatTree


class Objective:
    """What an ascent or a descent may ask about the loss L of this step's minibatch.

    Args:
      loss: θ → scalar, or → (scalar, aux) with `has_aux`.
      name: what the caller calls `loss`, for error messages.
      probe: a stand-in for the loss at probes, θ → scalar; by default the loss.
      losses: θ → the losses of the examples, of shape [batch]; by default the loss of each example
        as a batch of its own.
      has_aux: whether `loss` returns auxiliary output.
      axis_name: the device axis to average over, inside shard_map or pmap.
      merge: puts back the leaves of the parameters that θ does not have, those that are not
        floating point.
    """

    def __init__(
        self,
        loss: Call,
        *,
        name: str,
        probe: Call | None = None,
        losses: Call | None = None,
        has_aux: bool = False,
        axis_name: AxisName | None = None,
        merge: Callable[[PyTree], PyTree] = lambda params: params,
    ) -> None:
        self._loss, self._name = loss, name
        self._probe, self._losses = probe, losses
        self.has_aux = has_aux
        self._axis_name = axis_name
        self._merge = merge

    def value_and_grad(self, params: FloatTree) -> ValueAndGrad:
        """L(θ), its auxiliary output and ∇L(θ), averaged over the device axis: one forward and one
        backward pass.

        Raises:
          TypeError: while tracing, if the loss is not a real floating-point scalar.
        """
        if self._axis_name is not None:
            params = _as_varying(params, self._axis_name)
        (value, aux), gradient = jax.value_and_grad(self.value_and_aux, has_aux=True)(params)
        value, gradient = self.across_devices((value, gradient))
        return ValueAndGrad(value, aux, gradient)

    def value_and_aux(self, params: PyTree) -> tuple[Float[Array, ""], Any]:
        """L(θ) and its auxiliary output on this device's part of the batch: one forward pass."""
        result = self._evaluate(self._loss, params)
        if not self.has_aux:
            return self._scalar(result, self._name, params), None
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                f"{self._name} must return (loss, aux) with has_aux=True; it returned "
                f"{_shown(result)}."
            )
        return self._scalar(result[0], self._name, params), result[1]

    def probe(self, params: PyTree) -> Float[Array, ""]:
        """L(θ), or its stand-in, on this device's part of the batch: one forward pass."""
        if self._probe is None:
            return self.value_and_aux(params)[0]
        return self._scalar(self._evaluate(self._probe, params), "probe_fn", params)

    def probe_gradient(self, params: FloatTree) -> FloatTree:
        """The gradient of `probe`, averaged over the device axis: a forward and a backward pass."""
        if self._axis_name is not None:
            params = _as_varying(params, self._axis_name)
        return self.across_devices(jax.grad(self.probe)(params))

    def losses(self, params: FloatTree) -> Float[Array, " batch"]:
        """The losses of the examples, of shape [batch]: one forward pass.

        Without a `losses` of the caller's each example is a batch of its own, which suits losses
        that are means over independent examples (no BatchNorm).
        """
        if self._losses is None:
            return self._losses_one_by_one(params)
        found = jnp.asarray(self._evaluate(self._losses, params))
        if found.shape != (self.batch_size,):
            raise TypeError(
                f"losses_fn returned an array of shape {found.shape}; it must return one loss for "
                f"each of the {self.batch_size} examples."
            )
        if self._axis_name is None:
            _check_replicated(found, params, "losses_fn")
        return found.astype(trees.wide_dtype(found))

    def _losses_one_by_one(self, params: FloatTree) -> Float[Array, " batch"]:
        batch: list[Array] = []
        self._with_batch(lambda x: batch.append(jnp.asarray(x)))
        # vmap wants all of them in the same pieces.
        axes: Any = next(filter(None, map(shardings.batch_axes, batch)), None)
        batch = [x if axes is None else shardings.split_batch(x, axes) for x in batch]

        def loss(example: list[Array]) -> Float[Array, ""]:
            arrays = iter(example)
            return self._with_batch(lambda x: next(arrays)[None]).value_and_aux(params)[0]

        return jax.vmap(loss)(batch)

    def losses_and_grad(self, params: FloatTree) -> tuple[Float[Array, " batch"], ValueAndGrad]:
        """The losses of the examples, of shape [batch], and the pass of their mean: one forward
        and one backward pass, and a forward pass of the loss itself for its auxiliary output.
        """
        if self._axis_name is not None:
            params = _as_varying(params, self._axis_name)

        def mean(p: PyTree) -> tuple[Array, Array]:
            losses = self.losses(p)
            return jnp.mean(losses), losses

        (value, losses), gradient = jax.value_and_grad(mean, has_aux=True)(params)
        value, gradient = self.across_devices((value, gradient))
        aux = self.value_and_aux(params)[1] if self.has_aux else None
        return losses, ValueAndGrad(value, aux, gradient)

    def value_and_grad_of_worse(self, one: FloatTree, other: FloatTree) -> ValueAndGrad:
        """The pass at the point of two that has the larger loss, `one` in a tie: a forward pass at
        both and one backward pass.

        The backward pass runs on what the forward pass at that point left behind, chosen array by
        array, so that both points' activations are held until the choice.
        """
        if self._axis_name is not None:
            one, other = (_as_varying(point, self._axis_name) for point in (one, other))
        value, backward, aux = jax.vjp(self.value_and_aux, one, has_aux=True)
        other_value, other_backward, other_aux = jax.vjp(self.value_and_aux, other, has_aux=True)
        # Averaged before they are compared, so that every device chooses the same point.
        mean, other_mean = self.across_devices((value, other_value))
        choice = other_mean > mean
        chosen = [
            kept if kept is left else jnp.where(choice, left, kept)
            for kept, left in zip(
                jax.tree.leaves((mean, aux, backward)),
                jax.tree.leaves((other_mean, other_aux, other_backward)),
                strict=True,
            )
        ]
        # Two calls of vjp leave trees of different metadata, and the same leaves.
        structure = jax.tree.structure((mean, aux, backward))
        mean, aux, backward = jax.tree.unflatten(structure, chosen)
        (gradient,) = backward(jnp.ones_like(value))
        return ValueAndGrad(mean, aux, self.across_devices(gradient))

    def across_devices(self, tree: PyTree[Array, "T"]) -> PyTree[Array, "T"]:
        """Averages over the device axis, where there is one."""
        return tree if self._axis_name is None else jax.lax.pmean(tree, self._axis_name)

    @property
    def is_probed_itself(self) -> bool:
        """Whether probes evaluate the loss, not a stand-in."""
        return self._probe is None

    def _evaluate(self, call: Call, params: PyTree) -> Any:
        return call.function(self._merge(params), *call.args, **call.kwargs)

    def _scalar(self, value: Any, name: str, params: PyTree) -> Float[Array, ""]:
        scalar = _scalar(value, name)
        if self._axis_name is None:
            _check_replicated(scalar, params, name)
        return scalar

    @property
    def batch_size(self) -> int:
        """How many examples the loss's arguments hold, on this device.

        That is the length of the first array's first axis, if no other length is as frequent;
        arrays of other lengths (weights of classes) and random keys are no part of the batch.
        """
        calls = [call for call in self._calls() if call is not None]
        arguments = [x for call in calls for x in (*call.args, *call.kwargs.values())]
        arrays = [x for x in jax.tree.leaves(arguments) if _may_be_batch(x)]
        sizes = [len(x) for x in arrays if not _is_legacy_key(x)]
        keys = [len(x) for x in arrays if _is_legacy_key(x)]
        frequent = collections.Counter(sizes).most_common(2)
        if not sizes or sizes[0] != frequent[0][0] or _is_tie(frequent) or sizes[0] in keys:
            lengths = sorted({*sizes, *keys})
            found = (
                f"have first axes of {lengths}, which tell no batch" if arrays else "hold no array"
            )
            raise ValueError(
                f"the arguments of {self._name} {found}: to evaluate it on a part of the batch, "
                "pass the batch first, examples along the first axis, and close the loss over "
                f"everything else, as in functools.partial({self._name}, class_weights=...); a "
                "random key passes as jax.random.key."
            )
        return sizes[0]

    def on(self, select: Callable[[Array], Array]) -> "Objective":
        """The loss of a part of the batch; `select` picks it from an array of examples.

        A batch that is split over devices stays so where its part divides among them; else every
        device gets the part whole.
        """
        return self._with_batch(lambda x: _part(select, x))

    def _with_batch(self, change: Callable[[Array], Any]) -> "Objective":
        """The loss of other arrays of examples."""
        size = self.batch_size

        def changed(call: Any) -> Any:
            if call is None:
                return None
            args, kwargs = jax.tree.map(
                lambda x: change(x) if _may_be_batch(x) and len(x) == size else x,
                (call.args, dict(call.kwargs)),
            )
            return Call(call.function, args, kwargs)

        other = copy.copy(self)
        other._loss, other._probe, other._losses = map(changed, self._calls())
        return other

    def _calls(self) -> tuple[Call, Call | None, Call | None]:
        return self._loss, self._probe, self._losses

    def on_fraction(self, fraction: float) -> "Objective":
        """The loss of the given fraction of the batch, at least one example; itself for 1.

        Where the part divides the batch it is every n-th example, which leaves a batch that is
        sharded over devices where it is.
        """
        if fraction == 1:
            return self
        size = self.batch_size
        part = part_of(size, fraction)
        if size % part == 0:
            return self.on(lambda x: x.reshape(part, size // part, *x.shape[1:])[:, 0])
        return self.on(lambda x: x[:part])

    def on_random_part(self, fraction: float, key: Key[Array, ""]) -> "Objective":
        """The loss of a fraction of the batch drawn at random, at least one example; itself for 1.

        Of B examples, k of them drawn, each row of B/g has k/g, g the largest divisor of both: a
        batch that is sharded over devices stays where it is, and each has as many.
        """
        if fraction == 1:
            return self
        size = self.batch_size
        part = part_of(size, fraction)
        rows = math.gcd(size, part)
        order = jnp.argsort(jax.random.bits(key, (rows, size // rows)), axis=1)
        drawn = order[:, : part // rows]

        def select(x: Array) -> Array:
            examples = jnp.asarray(x).reshape(rows, size // rows, *x.shape[1:])
            indices = jnp.expand_dims(drawn, range(2, examples.ndim))
            chosen: Array = jnp.take_along_axis(examples, indices, axis=1)
            return chosen.reshape(part, *x.shape[1:])

        return self.on(select)


def part_of(size: int, fraction: float) -> int:
    """How many examples a fraction of a batch is, at least one."""
    return max(1, round(fraction * size))


def _is_tie(counts: list[tuple[int, int]]) -> bool:
    return len(counts) == 2 and counts[0][1] == counts[1][1]


def _is_legacy_key(x: Any) -> bool:
    """Whether this may be raw key data, as of jax.random.PRNGKey."""
    return bool(x.dtype == jnp.uint32) and x.shape in [(2,), (4,)]


def _may_be_batch(x: Any) -> bool:
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return isinstance(x, jax.Array | np.ndarray) and x.ndim > 0 and not is_key


def _part(select: Callable[[Array], Array], x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    whole = jax.eval_shape(select, jax.ShapeDtypeStruct(x.shape, x.dtype))
    divides = whole.shape[0] % shardings.batch_pieces(x) == 0
    return select(x if divides else shardings.split_batch(x, None))


def _as_varying(params: FloatTree, axis_name: AxisName) -> FloatTree:
    """Marks replicated parameters as each device's own.

    A checked shard_map sums gradients with respect to replicated values over the devices by
    itself; averaging that sum would leave it as many times too large as there are devices.
    """
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not set(names) <= set(jax.sharding.get_abstract_mesh().manual_axes):
        return params  # an axis of vmap: no such types, no such sums

    def leaf(p: Array) -> Array:
        try:
            varying: Array = jax.lax.pcast(p, axis_name, to="varying")
        except ValueError:  # varying already
            return p
        return varying

    return jax.tree.map(leaf, params)


def _check_replicated(value: Float[Array, "..."], params: PyTree, name: str) -> None:
    """Raises for a loss that differs between devices where the parameters do not."""

    def axes(x: Any) -> frozenset[str]:
        kind = jax.typeof(x)
        # Older versions of jax have the axes as an attribute of the type itself, vma.
        varying = getattr(getattr(kind, "manual_axis_type", None), "varying", None)
        return frozenset(getattr(kind, "vma", ()) if varying is None else varying)

    apart = axes(value).difference(*map(axes, jax.tree.leaves(params)))
    if apart:
        shown = repr(min(apart)) if len(apart) == 1 else repr(tuple(sorted(apart)))
        raise ValueError(
            f"{name} differs between the devices of the mesh axis {shown}, on which each has its "
            f"own part of the batch: pass axis_name={shown}, over which losses and gradients are "
            "then averaged."
        )


def _shown(value: Any) -> str:
    return "an array" if isinstance(value, jax.Array) else f"{type(value).__name__}: {value!r}"


def _scalar(value: Any, name: str) -> Float[Array, ""]:
    if isinstance(value, tuple):
        raise TypeError(
            f"{name} returned a tuple of {len(value)}; it must return a scalar loss. For a loss "
            "with auxiliary output pass has_aux=True."
        )
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        raise TypeError(f"{name} returned {_shown(value)}; it must return one real number.")
    if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(
            f"{name} returned an array of shape {jnp.shape(value)} and dtype "
            f"{jnp.result_type(value)}; it must return one real number, for example the mean "
            "over the batch."
        )
    array = jnp.asarray(value)
    scalar: Array = array.astype(trees.wide_dtype(array))
    return scalar
