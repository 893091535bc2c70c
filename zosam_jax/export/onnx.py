"""ONNX through jax2onnx: a program that ONNX Runtime runs, on servers, phones and in browsers."""

import contextlib
import importlib
import logging
import pkgutil
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from zosam_jax.export.extra import missing
from zosam_jax.export.program import IMAGES, Program
from zosam_jax.trees import Array

# What most runtimes in use understand; of these operators, none has changed since.
_OPSET = 21


def save(path: Path, program: Program, calibration: npt.NDArray[Any] | None = None) -> None:
    """Writes the program with its weights, for batches of any size.

    Args:
      path: the file.
      program: what to write.
      calibration: images, as the program takes them, on which the ranges of activations are
        measured; weights and activations are then int8. None for float32.

    Raises:
      ModuleNotFoundError: if jax2onnx or ONNX Runtime is missing, naming the extra that brings it.
      ValueError: if the converter does not know an operation of the network.
    """
    onnx, convert = _converter()
    (size,) = jax.export.symbolic_shape("batch")
    try:
        with _quiet():
            model = convert(
                lambda images: _inlined(jax.make_jaxpr(program)(program.batch(size)), images)[0],
                [program.batch(size)],
                model_name=program.metadata["model"],
                opset=_OPSET,
                input_names=[IMAGES],
                output_names=[program.output],
            )
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"jax2onnx cannot convert model={program.metadata['model']!r}: {error}; the other "
            "formats serve it."
        ) from error
    _drop_zero_biases(onnx, model)
    _name_products(model)
    _pool_images(onnx, model)
    _name_what_convolutions_absorb(onnx, model)
    onnx.helper.set_model_props(model, program.metadata)
    onnx.checker.check_model(model)
    if calibration is not None:
        model = _quantized(onnx, model, calibration)
    path.write_bytes(model.SerializeToString())


def load(path: Path) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """The program of a file in ONNX Runtime, on the CPU: images → outputs.

    Raises:
      ModuleNotFoundError: if ONNX Runtime is missing, naming the extra that brings it.
    """
    session = _runtime().InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        (outputs,) = session.run(None, {IMAGES: images})
        return np.asarray(outputs)

    return run


def _inlined(closed: Any, *arguments: Array) -> Sequence[Array]:
    """A program of jax's own operations alone: functions with derivatives of their own inlined."""
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, arguments, strict=True))

    def value(variable: Any) -> Any:
        return variable.val if isinstance(variable, jax.extend.core.Literal) else values[variable]

    for equation in closed.jaxpr.eqns:
        inputs = map(value, equation.invars)
        inner = equation.params.get("call_jaxpr") or equation.params.get("jaxpr")
        if inner is not None:
            outputs: Any = _inlined(inner, *inputs)
        else:
            outputs = equation.primitive.bind(*inputs, **equation.params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [value(variable) for variable in closed.jaxpr.outvars]


def _drop_zero_biases(onnx: Any, model: Any) -> None:
    """Products without the scalar 0 that jax2onnx adds, on which quantization fails."""
    scalars = {
        array.name: onnx.numpy_helper.to_array(array)
        for array in model.graph.initializer
        if not array.dims
    }
    dropped = set()
    for node in model.graph.node:
        if node.op_type == "Gemm" and scalars.get(node.input[-1], 1) == 0:
            dropped.add(node.input.pop())
    for array in [a for a in model.graph.initializer if a.name in dropped]:
        model.graph.initializer.remove(array)


def _name_products(model: Any) -> None:
    """Einsum over the last axis and a matrix's first as MatMul, which runtimes quantize."""
    for node in model.graph.node:
        if node.op_type != "Einsum":
            continue
        if re.fullmatch(rb"(\w+)(\w),\2(\w)->\1\3", node.attribute[0].s):
            node.op_type = "MatMul"
            del node.attribute[:]


def _pool_images(onnx: Any, model: Any) -> None:
    """Pooling over height and width, where jax2onnx pools over all four axes.

    It adds two axes, pools and takes them away again; runtimes pool over three axes at most.
    """
    nodes = list(model.graph.node)
    producers = {name: node for node in nodes for name in node.output}
    users = {name: node for node in nodes for name in node.input}

    def become(node: Any, operation: str, **attributes: Any) -> None:
        node.op_type = operation
        del node.input[1:], node.attribute[:]
        made = onnx.helper.make_attribute
        node.attribute.extend(made(name, value) for name, value in attributes.items())

    for pool in [node for node in nodes if node.op_type == "MaxPool"]:
        given = {attribute.name: list(attribute.ints) for attribute in pool.attribute}
        adds = producers.get(pool.input[0])
        height_and_width = len(given["kernel_shape"]) == 4 and given["kernel_shape"][::3] == [1, 1]
        if adds is None or adds.op_type != "Unsqueeze" or not height_and_width:
            continue
        become(producers[adds.input[0]], "Transpose", perm=[0, 3, 1, 2])
        become(adds, "Identity")
        kept = {name: given[name][1:3] for name in ("kernel_shape", "strides")}
        pads = given.get("pads", [0] * 8)
        become(pool, "MaxPool", **kept, pads=[*pads[1:3], *pads[5:7]])
        become(users[pool.output[0]], "Transpose", perm=[0, 2, 3, 1])
        del model.graph.value_info[:]  # of shapes that are no longer so


def _name_what_convolutions_absorb(onnx: Any, model: Any) -> None:
    """x − c as x + (−c) and max(x, 0) as Relu: runtimes fold these into the convolution before.

    BatchNorm, the sum at the end of a residual block and its ReLU are then part of a convolution.
    """
    zeros = {
        array.name
        for array in model.graph.initializer
        if not array.dims and onnx.numpy_helper.to_array(array) == 0
    }
    constants = {array.name for array in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if constants.issuperset(node.input):
            constants.update(node.output)
        elif node.op_type == "Sub" and node.input[1] in constants:
            negative = f"{node.output[0]}_negative"
            nodes.append(onnx.helper.make_node("Neg", [node.input[1]], [negative]))
            node.op_type, node.input[1] = "Add", negative
        elif node.op_type == "Max" and zeros.intersection(node.input):
            (kept,) = set(node.input) - zeros
            del node.input[:]
            node.op_type = "Relu"
            node.input.append(kept)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for array in [a for a in model.graph.initializer if a.name not in used]:
        model.graph.initializer.remove(array)


def _quantized(onnx: Any, model: Any, calibration: npt.NDArray[Any]) -> Any:
    """Convolutions and products in int8, by ONNX Runtime's own tools: weights for each channel."""
    quantization = importlib.import_module("onnxruntime.quantization")

    class Images(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        """Hands over the calibration images in batches."""

        _batches: Iterator[Mapping[str, npt.NDArray[Any]]] = iter(
            {IMAGES: batch} for batch in np.array_split(calibration, -(-len(calibration) // 64))
        )

        def get_next(self) -> Mapping[str, npt.NDArray[Any]] | None:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, prepared, after = (Path(folder) / name for name in ("before", "prepared", "after"))
        before.write_bytes(model.SerializeToString())
        quantization.quant_pre_process(before, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            after,
            Images(),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        )
        return onnx.load(after)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries log of each step."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _converter() -> tuple[Any, Callable[..., Any]]:
    """The package onnx, and jax2onnx's function.

    Of jax2onnx only what lowers jax's own operations is loaded: the rest replaces functions of jax,
    flax and others while it traces, and does not load beside every version of them.
    """
    try:
        onnx = importlib.import_module("onnx")
        operations = importlib.import_module("jax2onnx.plugins.jax.lax")
        for module in pkgutil.iter_modules(operations.__path__):
            importlib.import_module(f"{operations.__name__}.{module.name}")
        conversion: Any = importlib.import_module("jax2onnx.converter.conversion_api")
        interface = importlib.import_module("jax2onnx.user_interface")
    except ModuleNotFoundError as error:
        raise missing("onnx", error) from error

    def convert(*arguments: Any, **options: Any) -> Any:
        replaced = conversion._activate_plugin_worlds
        conversion._activate_plugin_worlds = contextlib.nullcontext
        try:
            return interface.to_onnx(*arguments, **options)
        finally:
            conversion._activate_plugin_worlds = replaced

    return onnx, convert


def _runtime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise missing("onnx", error) from error
