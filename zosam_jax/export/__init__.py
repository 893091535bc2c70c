"""Trained networks for use elsewhere: StableHLO, ONNX and safetensors; see `zosam export`.

Each format is read without this library; `read_safetensors` reads every layout of the third.
"""

from zosam_jax.export.safetensors import UnreadableExportError, read_safetensors

__all__ = ["UnreadableExportError", "read_safetensors"]
