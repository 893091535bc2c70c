"""Models in Flax NNX, those of images (num_classes, *, rngs, image_shape, dtype, ...) → nnx.Module.

- num_classes: the number of logits.
- rngs: for the initial weights.
- image_shape: (height, width, channels); ResNets take any height and width.
- dtype: what the blocks compute in; parameters, statistics of normalisations, softmax and logits
  are float32 in any case.

Those of text, (*, rngs, vocab_size, context, dropout, dtype, remat) → nnx.Module, take tokens; see
`GPT2` and `BERT`. `MaskedLanguageModel` and `SequenceClassifier` stand on top of them.

Arguments that do not fit raise ValueError. Weight matrices and kernels are the parameters named
"kernel", and nothing else is.
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from zosam_jax.models.adapters import adapter_mask, add_adapters, merge_adapters
from zosam_jax.models.bert import BERT, MaskedLanguageModel, bert_micro
from zosam_jax.models.deit import DeiT, deit, deit_small, deit_tiny
from zosam_jax.models.gpt2 import GPT2, gpt2_micro
from zosam_jax.models.hugging_face import load_pretrained, save_pretrained
from zosam_jax.models.lenet import LeNet300100, lenet_300_100
from zosam_jax.models.resnet import ResNet, cifar_resnet, resnet8, resnet32, resnet50
from zosam_jax.models.text import SequenceClassifier, word_logits
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

TEXT_MODELS: dict[str, Callable[..., GPT2 | BERT]] = {
    "gpt2": GPT2,
    "gpt2-micro": gpt2_micro,
    "bert-base": BERT,
    "bert-micro": bert_micro,
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
    "BERT",
    "GPT2",
    "MODELS",
    "TEXT_MODELS",
    "DeiT",
    "LeNet300100",
    "MaskedLanguageModel",
    "ResNet",
    "SequenceClassifier",
    "WideResNet",
    "adapter_mask",
    "add_adapters",
    "bert_micro",
    "cifar_resnet",
    "create",
    "deit",
    "deit_small",
    "deit_tiny",
    "gpt2_micro",
    "lenet_300_100",
    "load_pretrained",
    "merge_adapters",
    "resnet8",
    "resnet32",
    "resnet50",
    "save_pretrained",
    "wide_resnet",
    "wide_resnet_28_10",
    "word_logits",
]
