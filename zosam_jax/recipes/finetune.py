"""Pretrained DeiT-Tiny, DeiT-Small and ResNet-50 on a data set of one's own, of 224×224 images.

    zosam train --recipe finetune-deit-tiny-zo_sam --init FILE.safetensors --dataset hub:OWNER/NAME

Run on: not run. Expected: nothing that is known; the data set is the reader's.

FILE has the weights by the names of timm (deit_tiny_patch16_224, deit_small_patch16_224,
resnet50) or transformers. Settings: those that are usual. DeiT: AdamW at 5e-5, a cosine after two
epochs of warmup, weight decay 0.05, drop-path and smoothing 0.1; ResNet-50: SGD at 0.01 with
momentum. 20 epochs, batch 128, streamed images. Dense; with --sparse and --sparsity beside it the
pretrained weights are pruned.
"""

from collections.abc import Iterator
from typing import Any

from zosam_jax.recipes.recipe import Recipe
from zosam_jax.training.config import BaseOptimizerName, OptimizerName, TrainConfig

_DEIT: dict[str, Any] = {
    "learning_rate": 5e-5,
    "weight_decay": 0.05,
    "drop_path": 0.1,
    "label_smoothing": 0.1,
}
_SETTINGS: dict[str, tuple[BaseOptimizerName, dict[str, Any]]] = {
    "deit-tiny": ("adamw", _DEIT),
    "deit-small": ("adamw", _DEIT),
    "resnet50": ("sgd", {"learning_rate": 0.01, "weight_decay": 1e-4}),
}


def recipes() -> Iterator[Recipe]:
    """Three networks × the base optimizer, SAM and ZO-SAM."""
    for model, (base, settings) in _SETTINGS.items():
        optimizers: tuple[OptimizerName, ...] = (base, "sam", "zo_sam")
        for optimizer in optimizers:
            name = f"finetune-{model}-{optimizer}"
            config = TrainConfig(
                recipe=name,
                dataset="folder",
                stream=True,
                image_size=224,
                model=model,
                sparse="none",
                optimizer=optimizer,
                base_optimizer=None if optimizer == base else base,
                epochs=20,
                batch_size=128,
                warmup=0.1,
                **settings,
            )
            yield Recipe(name, config, None, "", "not run")
