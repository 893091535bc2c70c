"""Networks of any library as functions of their arrays: Flax NNX, Flax Linen, Equinox, plain."""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from zosam_jax.integrations import nnx as nnx_integration
from zosam_jax.sparsity.modules import as_wide_as_its_arrays
from zosam_jax.trees import Array, PyTree

Make: TypeAlias = Callable[[int], Any]


class Functions(NamedTuple):
    """A network as functions of its arrays.

    Attributes:
      init: seed → (params, model_state), both trees of dicts, lists and arrays. What is not trained
        by gradient, the state, holds the statistics of BatchNorm and what dropout draws from.
      apply: (params, model_state, inputs, training) → (outputs, model_state after the pass).
      module: (params, model_state) → the network in inference mode, as its library has it.
    """

    init: Callable[[int], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, PyTree, Array, bool], tuple[Array, PyTree]]
    module: Callable[[PyTree, PyTree], Any]


def functions(model: Any, example: jax.ShapeDtypeStruct, **known: Any) -> Functions:
    """The functions of any network.

    Args:
      model: an NNX module or its class; a Linen module; an Equinox module, or (module, state) as
        equinox.nn.make_with_state makes it, for one example at a time, as is the custom there; a
        pair of functions init(key) → params and apply(params, inputs) → outputs; or a function that
        makes one of these. It is given what it has parameters for: rngs (nnx.Rngs of the seed), key
        (jax.random.key of the seed), and what is known.
      example: shape and dtype of a batch of one example.
      **known: by name, such as num_classes.

    Raises:
      ValueError: for anything else, or a function that needs other arguments.
    """
    is_made = (
        isinstance(model, tuple | nnx.Module)
        or _is_of("flax.linen", model)
        or _is_of("equinox", model)
    )
    if not is_made and not callable(model):
        raise ValueError(
            f"model={model!r:.80} is no module of Flax NNX, Flax Linen or Equinox, no pair of init "
            "and apply functions, and no function that makes one of these."
        )
    make = (lambda seed: model) if is_made else functools.partial(_made, model, known=known)
    made = make(0)
    first = made[0] if isinstance(made, tuple) and made else made
    if isinstance(made, nnx.Module):
        return of_nnx(lambda seed: nnx.clone(make(seed)))
    if _is_of("flax.linen", made):
        return _of_linen(made, example)
    if _is_of("equinox", first):
        return _of_equinox(make)
    if isinstance(made, tuple) and len(made) == 2 and all(map(callable, made)):
        return _of_pair(*made)
    raise ValueError(f"model={_name(model)} makes {made!r:.80}, which is no network.")


def _is_of(library: str, value: Any) -> bool:
    """Whether it is a module of a library, which has been imported then."""
    module = getattr(sys.modules.get(library), "Module", None)
    return module is not None and isinstance(value, module)


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _made(make: Callable[..., Any], seed: int, *, known: Mapping[str, Any]) -> Any:
    """What a function makes of those arguments that it has parameters for."""
    offered = {"rngs": nnx.Rngs(seed), "key": jax.random.key(seed), **known}
    parameters = _parameters(make)
    for name, parameter in parameters.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        needed = parameter.default is parameter.empty and parameter.kind != parameter.VAR_KEYWORD
        if (
            needed
            and parameter.kind != parameter.VAR_POSITIONAL
            and not (named and name in offered)
        ):
            raise ValueError(
                f"model={_name(make)} needs the argument {name}, and is given {', '.join(offered)} "
                "alone: give it a default, or wrap it in a function."
            )
    return make(**{name: value for name, value in offered.items() if name in parameters})


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Of a function or class; a class of Flax's says less of itself than its __init__ does."""
    given = make if isinstance(make, functools.partial) else functools.partial(make)
    if inspect.isclass(given.func):
        of_class: Any = given.func
        given = functools.partial(of_class.__init__, None, *given.args, **given.keywords)
    bound = given.keywords
    parameters = inspect.signature(given).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in bound}


def of_nnx(
    make: Make, call: Callable[[Any, Array], Array] = lambda model, inputs: model(inputs)
) -> Functions:
    """Of a function that makes an NNX module from a seed; `call` is how it takes its inputs."""
    model = nnx.eval_shape(lambda: make(0))  # only its structure: no weight is computed here
    model.train()
    training_graph = nnx.graphdef(model)
    model.eval()
    inference_graph = nnx.graphdef(model)

    def init(seed: int) -> tuple[PyTree, PyTree]:
        return nnx_integration.split(make(seed))[1:]

    def module(params: PyTree, model_state: PyTree) -> Any:
        return as_wide_as_its_arrays(nnx.merge(inference_graph, params, model_state, copy=True))

    def apply(
        params: PyTree, model_state: PyTree, inputs: Array, training: bool
    ) -> tuple[Array, PyTree]:
        if not training:
            return call(module(params, model_state), inputs), model_state
        model = nnx.merge(training_graph, params, model_state, copy=True)
        outputs = call(as_wide_as_its_arrays(model), inputs)
        return outputs, nnx_integration.split(model)[2]

    return Functions(init, apply, module)


class _Draws(NamedTuple):
    """What dropout draws from, as part of the state: each training step has keys of its own."""

    key: Array
    passes: Array

    @classmethod
    def start(cls, seed: int) -> dict[str, Array]:
        key = jax.random.fold_in(jax.random.key(seed), 1)  # another than the weights'
        return cls(jax.random.key_data(key), jnp.zeros((), jnp.int32))._asdict()

    def next(self) -> tuple[Array, dict[str, Array]]:
        """A key, and what stands in the state afterwards."""
        key = jax.random.fold_in(jax.random.wrap_key_data(self.key), self.passes)
        return key, self._replace(passes=self.passes + 1)._asdict()


def _of_linen(model: Any, example: jax.ShapeDtypeStruct) -> Functions:
    """Of a Linen module; its call may take train=, training= or deterministic=."""
    from flax import linen  # noqa: PLC0415

    taken = inspect.signature(type(model).__call__).parameters

    def mode(training: bool) -> dict[str, bool]:
        words = {"train": training, "training": training, "deterministic": not training}
        return {name: value for name, value in words.items() if name in taken}

    def init(seed: int) -> tuple[PyTree, PyTree]:
        keys = dict(zip(("params", "dropout"), jax.random.split(jax.random.key(seed)), strict=True))
        inputs = jnp.zeros(example.shape, example.dtype)
        variables = dict(linen.meta.unbox(model.init(keys, inputs, **mode(training=False))))
        params = variables.pop("params", {})
        return params, {"collections": variables, "draws": _Draws.start(seed)}

    def module(params: PyTree, model_state: PyTree) -> Any:
        bound = model.bind({"params": params, **model_state["collections"]})
        return functools.partial(bound, **mode(training=False)) if mode(False) else bound

    def apply(
        params: PyTree, model_state: PyTree, inputs: Array, training: bool
    ) -> tuple[Array, PyTree]:
        collections = model_state["collections"]
        variables = {"params": params, **collections}
        if not training:
            return model.apply(variables, inputs, **mode(False)), model_state
        key, draws = _Draws(**model_state["draws"]).next()
        outputs, changed = model.apply(
            variables, inputs, rngs={"dropout": key}, mutable=list(collections), **mode(True)
        )
        return outputs, {"collections": {**collections, **changed}, "draws": draws}

    return Functions(init, apply, module)


def _of_equinox(make: Make) -> Functions:
    """Of a function that makes an Equinox module, or (module, state), from a seed.

    The parameters are its floating-point arrays, by their names, as in "layers.0.weight". BatchNorm
    takes its statistics over the axis that is named "batch".
    """
    import equinox  # noqa: PLC0415 (an extra)

    def parts(seed: int) -> tuple[Any, Any]:
        made = make(seed)
        return made if isinstance(made, tuple) else (made, None)

    model, first_state = parts(0)
    arrays, static = equinox.partition(model, equinox.is_inexact_array)
    paths, structure = jax.tree.flatten_with_path(arrays)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    state_structure = jax.tree.structure(first_state)
    taken = inspect.signature(type(model).__call__).parameters

    def init(seed: int) -> tuple[PyTree, PyTree]:
        model, state = parts(seed)
        leaves = jax.tree.leaves(equinox.filter(model, equinox.is_inexact_array))
        params = dict(zip(names, map(jnp.asarray, leaves), strict=True))
        return params, {"state": jax.tree.leaves(state), "draws": _Draws.start(seed)}

    def rebuilt(params: PyTree, model_state: PyTree, training: bool) -> tuple[Any, Any]:
        whole = equinox.combine(
            jax.tree.unflatten(structure, [params[name] for name in names]), static
        )
        whole = equinox.nn.inference_mode(whole, value=not training)
        return whole, jax.tree.unflatten(state_structure, model_state["state"])

    def module(params: PyTree, model_state: PyTree) -> Any:
        model, state = rebuilt(params, model_state, training=False)
        return model if state is None else (model, state)

    def apply(
        params: PyTree, model_state: PyTree, inputs: Array, training: bool
    ) -> tuple[Array, PyTree]:
        model, state = rebuilt(params, model_state, training)
        draws = model_state["draws"]
        keys = None
        if training and "key" in taken:
            key, draws = _Draws(**draws).next()
            keys = jax.random.split(key, len(inputs))

        def one(inputs: Array, state: Any, key: Array | None) -> Any:
            given = {"key": key} if "key" in taken else {}
            return (
                (model(inputs, **given), state) if state is None else model(inputs, state, **given)
            )

        outputs, state = jax.vmap(one, (0, None, 0), (0, None), axis_name="batch")(
            inputs, state, keys
        )
        after = model_state if not training else {"state": jax.tree.leaves(state), "draws": draws}
        return outputs, after

    return Functions(init, apply, module)


def _of_pair(init: Callable[..., PyTree], apply: Callable[..., Array]) -> Functions:
    """Of init(key) → params and apply(params, inputs) → outputs."""
    return Functions(
        lambda seed: (init(jax.random.key(seed)), {}),
        lambda params, model_state, inputs, training: (apply(params, inputs), model_state),
        lambda params, model_state: functools.partial(apply, params),
    )
