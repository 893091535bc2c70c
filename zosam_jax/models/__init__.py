"""Models in Flax NNX, each (num_classes, *, rngs, ...) → nnx.Module."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from zosam_jax.models.lenet import LeNet300100, lenet_300_100
from zosam_jax.models.resnet import ResNet, cifar_resnet, resnet8

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "lenet-300-100": lenet_300_100,
    "resnet8": resnet8,
}


def create(name: str, num_classes: int, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """Makes a model by its name in MODELS; `options` are those of its function.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f"model={name!r} is not known; choose one of {', '.join(MODELS)}.")
    return MODELS[name](num_classes, rngs=rngs, **options)


__all__ = ["MODELS", "LeNet300100", "ResNet", "cifar_resnet", "create", "lenet_300_100", "resnet8"]
