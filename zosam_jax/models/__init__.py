"""Models in Flax NNX, each (num_classes, *, rngs, image_shape, dtype, ...) → nnx.Module.

- num_classes: the number of logits.
- rngs: for the initial weights.
- image_shape: (height, width, channels); ResNets take any height and width.
- dtype: what the blocks compute in; parameters, statistics of normalisations, softmax and logits
  are float32 in any case.

Arguments that do not fit raise ValueError. Weight matrices and kernels are the parameters named
"kernel", and nothing else is.
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from zosam_jax.models.deit import DeiT, deit, deit_small, deit_tiny
from zosam_jax.models.lenet import LeNet300100, lenet_300_100
from zosam_jax.models.resnet import ResNet, cifar_resnet, resnet8, resnet32, resnet50
from zosam_jax.models.wide_resnet import WideResNet, wide_resnet, wide_resnet_28_10

MODELS: dict[str, Callable[..., nnx.Module]] = {
    "lenet-300-100": lenet_300_100,
    "resnet8": resnet8,
    "resnet32": resnet32,
    "resnet50": resnet50,
    "resnet50-cifar": functools.partial(resnet50, stem="cifar", image_shape=(32, 32, 3)),
    "wrn-28-10": wide_resnet_28_10,
    "deit-micro": functools.partial(deit, dim=64, depth=3, heads=4),
    "deit-tiny": deit_tiny,
    "deit-small": deit_small,
}


def create(name: str, num_classes: int, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """Makes a model by its name in MODELS; `options` are those of its function.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f"model={name!r} is not known; choose one of {', '.join(MODELS)}.")
    return MODELS[name](num_classes, rngs=rngs, **options)


__all__ = [
    "MODELS",
    "DeiT",
    "LeNet300100",
    "ResNet",
    "WideResNet",
    "cifar_resnet",
    "create",
    "deit",
    "deit_small",
    "deit_tiny",
    "lenet_300_100",
    "resnet8",
    "resnet32",
    "resnet50",
    "wide_resnet",
    "wide_resnet_28_10",
]
