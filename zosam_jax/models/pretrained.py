"""Weights to start from: files with the names of timm and transformers.

Of images DeiT's and ResNet-50's, of text GPT-2's and BERT's.
"""

import json
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from zosam_jax.trees import Array, PyTree

Arrays: TypeAlias = Mapping[str, Any]

# What starts anew where a file has none: layers that belong to what a network was trained for. The
# head does also where it is of another shape: for other classes.
_HEAD = "head"
_ANEW = re.compile(rf"^(?:\w+\.)?({_HEAD}|pooler|transform|transform_norm|decoder_bias)\b")
_INDEX = ".index.json"
_WEIGHTS = "model.safetensors"
_SHOWN = 5

_TORCH_ENDINGS = (
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.mean$", ".running_mean"),
    (r"\.var$", ".running_var"),
)


class _Naming(NamedTuple):
    """How a library names what is here called otherwise: patterns, applied one after another.

    `prefixes` may stand before all names but the head's; a block's place in its stage is written as
    `block`, and `thirds` are what one array here is put together of. Where their names have
    `as_here` kernels are (in, out), elsewhere (out, in). What a file has besides, and a network
    need not have, is `ignored`; None where nobody looks.
    """

    library: str
    patterns: tuple[tuple[str, str], ...]
    prefixes: tuple[str, ...] = ("",)
    block: str | None = None
    thirds: tuple[str, str] | None = None
    as_here: str | None = None
    ignored: str | None = None


_WHOLE = (r"^(encoder|bert)\.", "")

# Of text, by the model_type in transformers' config.json.
_TEXT = {
    "gpt2": _Naming(
        "transformers",
        (
            _WHOLE,
            (r"^tokens$", "wte.weight"),
            (r"^positions$", "wpe.weight"),
            (r"^norm\.", "ln_f."),
            (r"^blocks\.", "h."),
            (r"\.norm([12])\.", r".ln_\1."),
            (r"\.attention\.qkv\.", ".attn.c_attn."),
            (r"\.attention\.proj\.", ".attn.c_proj."),
            (r"\.fc1\.", ".mlp.c_fc."),
            (r"\.fc2\.", ".mlp.c_proj."),
            (r"^head\.", "score."),
        ),
        prefixes=("transformer.",),
        as_here=r"\.c_(attn|proj|fc)\.",
        ignored=r"\.attn\.(masked_)?bias$|^(lm_head|score)\.",
    ),
    "bert": _Naming(
        "transformers",
        (
            _WHOLE,
            (r"^tokens$", "embeddings.word_embeddings.weight"),
            (r"^positions$", "embeddings.position_embeddings.weight"),
            (r"^types$", "embeddings.token_type_embeddings.weight"),
            (r"^norm\.", "embeddings.LayerNorm."),
            (r"^blocks\.", "encoder.layer."),
            (r"\.attention\.qkv\.", ".attention.self.qkv."),
            (r"\.attention\.proj\.", ".attention.output.dense."),
            (r"\.norm1\.", ".attention.output.LayerNorm."),
            (r"\.norm2\.", ".output.LayerNorm."),
            (r"\.fc1\.", ".intermediate.dense."),
            (r"\.fc2\.", ".output.dense."),
            (r"^pooler\.", "pooler.dense."),
            (r"^transform\.", "cls.predictions.transform.dense."),
            (r"^transform_norm\.", "cls.predictions.transform.LayerNorm."),
            (r"^decoder_bias$", "cls.predictions.bias"),
            (r"^head\.", "classifier."),
        ),
        prefixes=("bert.",),
        thirds=("qkv", "query key value"),
        ignored=r"^(cls|classifier|qa_outputs|pooler)\.|\.position_ids$",
    ),
}

_NAMINGS = (
    *_TEXT.values(),
    _Naming(
        "timm",
        (
            (r"^class_token$", "cls_token"),
            (r"^positions$", "pos_embed"),
            (r"^patches\.", "patch_embed.proj."),
            (r"\.attention\.", ".attn."),
            (r"\.fc([12])\.", r".mlp.fc\1."),
        ),
    ),
    _Naming(
        "transformers",
        (
            (r"^class_token$", "embeddings.cls_token"),
            (r"^positions$", "embeddings.position_embeddings"),
            (r"^patches\.", "embeddings.patch_embeddings.projection."),
            (r"^norm\.", "layernorm."),
            (r"^blocks\.", "encoder.layer."),
            (r"\.norm1\.", ".layernorm_before."),
            (r"\.norm2\.", ".layernorm_after."),
            (r"\.attention\.proj\.", ".attention.output.dense."),
            (r"\.attention\.qkv\.", ".attention.attention.qkv."),
            (r"\.fc1\.", ".intermediate.dense."),
            (r"\.fc2\.", ".output.dense."),
            (r"^head\.", "classifier."),
        ),
        prefixes=("vit.", "deit."),
        thirds=("qkv", "query key value"),
    ),
    _Naming(
        "timm",
        (
            (r"^stem\.", "conv1."),
            (r"^stem_norm\.", "bn1."),
            (r"\.norm(\d)\.", r".bn\1."),
            (r"\.projection\.", ".downsample.0."),
            (r"\.projection_norm\.", ".downsample.1."),
            (r"^head\.", "fc."),
        ),
        block="layer{stage}.{place}.",
    ),
    _Naming(
        "transformers",
        (
            (r"^stem\.", "embedder.embedder.convolution."),
            (r"^stem_norm\.", "embedder.embedder.normalization."),
            *((rf"\.conv{n}\.", f".layer.{n - 1}.convolution.") for n in (1, 2, 3)),
            *((rf"\.norm{n}\.", f".layer.{n - 1}.normalization.") for n in (1, 2, 3)),
            (r"\.projection\.", ".shortcut.convolution."),
            (r"\.projection_norm\.", ".shortcut.normalization."),
            (r"^head\.", "classifier.1."),
        ),
        prefixes=("resnet.",),
        block="encoder.stages.{before}.layers.{place}.",
    ),
)


def read(path: Path) -> dict[str, Any]:
    """The arrays of a safetensors file, by name, or of several that an index or a folder names.

    Raises:
      ValueError: if they cannot be read.
      ModuleNotFoundError: if the library is missing, naming the extra that brings it.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise ValueError(f"init={str(path)!r} is neither a file nor a run folder.")
    try:
        from safetensors.flax import load_file  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "weights in safetensors files take a library: pip install 'zosam_jax[finetune]'."
        ) from error
    if path.name.endswith(_INDEX):
        return {name: array for part in _parts(path) for name, array in read(part).items()}
    try:
        found: dict[str, Any] = load_file(path)
    except Exception as error:  # of a type of its own
        raise ValueError(
            f"{path} is no safetensors file: {' '.join(str(error).split()):.300}"
        ) from error
    return found


def write(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes arrays by name into a safetensors file, in the form that transformers reads."""
    from safetensors.numpy import save_file  # noqa: PLC0415 (an extra)

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(whole, path, metadata={"format": "pt"})


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds weights as transformers saves them."""
    return (path / _WEIGHTS).is_file() or (path / (_WEIGHTS + _INDEX)).is_file()


def _in_folder(folder: Path) -> Path:
    if not is_checkpoint(folder):
        raise ValueError(
            f"{folder} holds neither {_WEIGHTS} nor {_WEIGHTS}{_INDEX}: weights are read from "
            "safetensors files alone, as others can run code."
        )
    whole = folder / _WEIGHTS
    return whole if whole.is_file() else folder / (_WEIGHTS + _INDEX)


def _parts(index: Path) -> list[Path]:
    """The files that an index names, each once."""
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        parts = [index.parent / name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of safetensors files: {error}.") from error
    missing = sorted({*names} - {part.name for part in parts if part.is_file()})
    if missing or not names:
        raise ValueError(f"{index} names {_listed(missing) or 'no files'}, not beside it.")
    return parts


def named(tree: PyTree) -> dict[str, Any]:
    """The floating-point arrays of (parameters, statistics), as in "blocks.0.conv1.kernel"."""
    leaves = jax.tree.leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)}


def _name(path: tuple[Any, ...]) -> str:
    """The name in a tree of parameters or statistics; the first step says which of the two."""
    return jax.tree_util.keystr(path[1:], simple=True, separator=".")


def fitted(arrays: Arrays, shapes: PyTree, source: str) -> tuple[dict[str, Array], str]:
    """Of some arrays those that a network starts from.

    Args:
      arrays: by the names of timm, transformers or this library.
      shapes: the network's parameters and statistics, or their shapes.
      source: what errors call the arrays.

    Returns:
      The arrays as the network has them, by its names, all but a head of another shape; and in
      words what was taken.

    Raises:
      ValueError: if some are missing or do not fit, naming them.
    """
    wanted = named(shapes)
    arrays = {_new_name(name): array for name, array in arrays.items()}
    part = {name: of[1] for name in wanted if (of := _ANEW.match(name))}
    body = [name for name in wanted if name not in part]
    namings = (None, *_NAMINGS)
    translated = [_translated(arrays, wanted, naming) for naming in namings]
    best = max(range(len(namings)), key=lambda i: sum(n in translated[i].arrays for n in body))
    (found, taken), naming = translated[best], namings[best]
    missing = [name for name in body if name not in found]
    if missing:
        raise ValueError(
            f"{source} lacks {_listed(missing)} of the network; it holds {_listed(list(arrays))}: "
            "names of timm, transformers or zosam_jax are expected, of the same kind of network."
        )
    other = {n: a for n, a in found.items() if a.shape != wanted[n].shape}
    unfit = [
        f"{n} {a.shape}, not {wanted[n].shape}" for n, a in other.items() if part.get(n) != _HEAD
    ]
    if unfit:
        raise ValueError(f"{source} does not fit the network: {_listed(unfit)}.")
    if left := _left_over(arrays, taken, naming):
        raise ValueError(
            f"{source} does not fit the network, which has nothing like its {_listed(left)}."
        )
    told = f"weights of {source}" + (f", by the names of {naming.library}" if naming else "")
    anew = dict.fromkeys(part[name] for name in part if name in other or name not in found)
    for which in anew:
        shown = [f"{name} {wanted[name].shape}" for name in part if part[name] == which]
        told += f"; the {which.replace('_', ' ')} starts anew, {_listed(shown)}"
    return {n: a for n, a in found.items() if part.get(n) not in anew}, told


def _new_name(name: str) -> str:
    """The name that transformers has today of what BERT's first files call gamma and beta."""
    return re.sub(r"(LayerNorm)\.gamma$", r"\1.weight", re.sub(r"(Norm)\.beta$", r"\1.bias", name))


def _left_over(arrays: Arrays, taken: Set[str], naming: _Naming | None) -> list[str]:
    if naming is None or naming.ignored is None:
        return []
    start = "|".join(map(re.escape, naming.prefixes))
    bare = {name: re.sub(f"^({start})", "", name) for name in arrays if name not in taken}
    return [name for name, rest in bare.items() if not re.search(naming.ignored, rest)]


def replaced(tree: PyTree, arrays: Mapping[str, Array]) -> PyTree:
    """(parameters, statistics) with these arrays in the place of their own, by name."""
    return jax.tree_util.tree_map_with_path(lambda path, own: arrays.get(_name(path), own), tree)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


class _Translated(NamedTuple):
    """Arrays by the network's names, and by which of the file's they were found."""

    arrays: dict[str, Array]
    taken: Set[str]


def _translated(arrays: Arrays, wanted: Arrays, naming: _Naming | None) -> _Translated:
    """Those of the arrays that have a name by this naming; ours for None."""
    if naming is None:
        own = {name: jnp.asarray(arrays[name]) for name in wanted if name in arrays}
        return _Translated(own, own.keys())
    places = _places(wanted)
    found = {}
    taken: set[str] = set()
    for name, own in wanted.items():
        parts = _their_names(name, places, naming)
        for prefix in (*naming.prefixes, ""):
            keys = [prefix + part for part in parts]
            if all(key in arrays for key in keys):
                converted = [_converted(name, arrays[k], own.ndim, k, naming) for k in keys]
                found[name] = jnp.concatenate(converted, axis=-1)
                taken.update(keys)
                break
    return _Translated(found, taken)


def theirs(arrays: Arrays, kind: str, *, is_bare: bool) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a network of text by the names of transformers, the reverse of `fitted`.

    Args:
      arrays: by this library's names.
      kind: "gpt2" or "bert".
      is_bare: whether names have no prefix, as those of an encoder without a head.
    """
    naming = _TEXT[kind]
    prefix = "" if is_bare else naming.prefixes[0]
    found: dict[str, npt.NDArray[Any]] = {}
    for name, array in arrays.items():
        on_top = _ANEW.match(name) is not None and "pooler" not in name
        keys = _their_names(name, (), naming)
        for key, piece in zip(keys, np.split(np.asarray(array), len(keys), axis=-1), strict=True):
            is_turned = name.endswith("kernel") and not _is_as_here(key, naming)
            found[("" if on_top else prefix) + key] = piece.T if is_turned else piece
    return found


def _their_names(name: str, places: Sequence[tuple[int, int]], naming: _Naming) -> list[str]:
    """The names of the parts that an array is put together of, mostly one."""
    whole = _their_name(name, places, naming)
    if naming.thirds is None or naming.thirds[0] not in whole:
        return [whole]
    return [whole.replace(naming.thirds[0], part) for part in naming.thirds[1].split()]


def _is_as_here(key: str, naming: _Naming) -> bool:
    return naming.as_here is not None and re.search(naming.as_here, key) is not None


def _their_name(name: str, places: Sequence[tuple[int, int]], naming: _Naming) -> str:
    block = re.match(r"^blocks\.(\d+)\.", name)
    if naming.block is not None and block is not None:
        stage, place = places[int(block[1])]
        start = naming.block.format(stage=stage, before=stage - 1, place=place)
        name = start + name[block.end() :]
    patterns = (*naming.patterns, *_TORCH_ENDINGS)
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


def _places(wanted: Arrays) -> list[tuple[int, int]]:
    """Block → (stage, from 1, and place in it, from 0): a projection begins a stage."""
    count = len({name.split(".")[1] for name in wanted if name.startswith("blocks.")})
    places: list[tuple[int, int]] = []
    for block in range(count):
        stage, place = places[-1] if places else (0, 0)
        begins = not places or f"blocks.{block}.projection.kernel" in wanted
        places.append((stage + 1, 0) if begins else (stage, place + 1))
    return places


def _converted(name: str, array: Any, ndim: int, key: str, naming: _Naming) -> Array:
    """An array of PyTorch's as it stands here: kernels (…, in, out), no axes of one in front."""
    array = np.asarray(array, np.float32)
    if name.endswith("kernel") and not _is_as_here(key, naming):
        return jnp.asarray(array.transpose(*range(2, array.ndim), 1, 0))
    extra = array.ndim - ndim
    leading = array.shape[: max(extra, 0)]
    return jnp.asarray(array.reshape(array.shape[extra:]) if set(leading) == {1} else array)
