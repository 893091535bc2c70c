"""Folders of transformers: GPT-2 and BERT with their sizes and weights, read and written.

Of a folder config.json (sizes) and model.safetensors, or the files that its index names, are read;
nothing in them is executed.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from zosam_jax.models import pretrained
from zosam_jax.models.bert import BERT, MaskedLanguageModel
from zosam_jax.models.gpt2 import GPT2
from zosam_jax.models.text import SequenceClassifier


class _Format(NamedTuple):
    """How transformers' config.json describes a network.

    Attributes:
      make: the network's class.
      sizes: the names of its arguments, by those in config.json.
      widened: the name of the width of a feed-forward layer there, which is 4·dim.
      fixed: what else stands there, and is so here in any case.
      named: what transformers calls the network, and what it does with one of ours on top.
    """

    make: type[Any]
    sizes: dict[str, str]
    widened: str
    fixed: dict[str, Any]
    named: dict[type, str]


_FORMATS = {
    "gpt2": _Format(
        GPT2,
        {
            "vocab_size": "vocab_size",
            "n_positions": "context",
            "n_embd": "dim",
            "n_layer": "depth",
            "n_head": "heads",
        },
        "n_inner",
        {
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "tie_word_embeddings": True,
        },
        {GPT2: "GPT2LMHeadModel", SequenceClassifier: "GPT2ForSequenceClassification"},
    ),
    "bert": _Format(
        BERT,
        {
            "vocab_size": "vocab_size",
            "max_position_embeddings": "context",
            "hidden_size": "dim",
            "num_hidden_layers": "depth",
            "num_attention_heads": "heads",
            "type_vocab_size": "token_types",
        },
        "intermediate_size",
        {
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "tie_word_embeddings": True,
        },
        {
            BERT: "BertModel",
            MaskedLanguageModel: "BertForMaskedLM",
            SequenceClassifier: "BertForSequenceClassification",
        },
    ),
}


def load_pretrained(
    folder: str | Path,
    *,
    classes: int | None = None,
    masked: bool = False,
    rngs: nnx.Rngs | None = None,
    **options: Any,
) -> tuple[nnx.Module, str]:
    """A network of the sizes and with the weights of a folder that transformers wrote.

        model, told = load_pretrained("gpt2")                  # a GPT2
        model, told = load_pretrained("bert", masked=True)     # a MaskedLanguageModel
        model, told = load_pretrained("bert", classes=2)       # a SequenceClassifier

    Args:
      folder: with config.json and model.safetensors, or the files that its index names. Files
        named as in the first BERTs (gamma and beta) or without "transformer." and "bert." will do.
      classes: puts a classifier on top; its last layer starts anew where the folder has none of as
        many classes.
      masked: puts a masked language model on a BERT, which then is without a pooler.
      rngs: for what starts anew, and for dropout; None for nnx.Rngs(0).
      **options: of the network: dropout, dtype, remat.

    Returns:
      The network; and in words what was taken from where, and what starts anew.

    Raises:
      ValueError: if the folder is of another kind of network, or arrays are missing, left over, or
        of other shapes than its sizes say.
    """
    folder = Path(folder)
    kind, sizes = read_sizes(folder)
    if masked and (kind != "bert" or classes is not None):
        raise ValueError(
            f"masked=True goes with BERT's folders and without classes; {folder} is {kind}'s and "
            f"classes={classes}."
        )
    if masked:
        options = {"pooler": False, **options}  # nothing would train it
    rngs = nnx.Rngs(0) if rngs is None else rngs

    def made(rngs: nnx.Rngs) -> Any:
        model: Any = _FORMATS[kind].make(**sizes, **options, rngs=rngs)
        if masked:
            return MaskedLanguageModel(model, rngs=rngs)
        return model if classes is None else SequenceClassifier(model, classes, rngs=rngs)

    graphdef, *_ = nnx.split(abstract := nnx.eval_shape(made, rngs))
    shapes = _trained(abstract)
    arrays, told = pretrained.fitted(pretrained.read(folder), shapes, str(folder))

    @nnx.jit
    def started(rngs: nnx.Rngs) -> Any:
        """What the folder has not; the compiler leaves out all else."""
        model = made(rngs)
        own = pretrained.named(_trained(model))
        rest = nnx.state(model, nnx.Not(nnx.Param))
        return {name: array for name, array in own.items() if name not in arrays}, rest

    fresh, rest = started(rngs)
    (params,) = pretrained.replaced(shapes, arrays | fresh)
    return nnx.merge(graphdef, params, rest), told


def _trained(model: nnx.Module) -> tuple[Any]:
    """The parameters, as `pretrained` takes them."""
    return (nnx.as_pure(nnx.state(model, nnx.Param)),)


def read_sizes(folder: Path) -> tuple[str, dict[str, int]]:
    """The kind of network that a folder's config.json describes, and its sizes, as arguments.

    Raises:
      ValueError: if it cannot be read or is of another kind.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        kind = config["model_type"]
        form = _FORMATS[kind]
        sizes = {ours: config[name] for name, ours in form.sizes.items()}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    except KeyError as error:
        raise ValueError(
            f"{path} lacks {error}, or is of another kind: model_type must be one of "
            f"{', '.join(map(repr, _FORMATS))}."
        ) from error
    for name, ours in form.sizes.items():
        if not isinstance(sizes[ours], int) or sizes[ours] < 1:
            raise ValueError(f"{path} has {name}={sizes[ours]!r}, which must be a count.")
    fixed = form.fixed | {form.widened: 4 * sizes["dim"]}
    for name, value in fixed.items():
        given = config.get(name)
        if given is not None and given != value:
            raise ValueError(
                f"{path} has {name}={given!r}; networks here have {value!r} and no other."
            )
    return kind, sizes


def save_pretrained(model: nnx.Module, folder: str | Path) -> None:
    """Writes a network as transformers reads it: config.json and model.safetensors.

    Args:
      model: a GPT2 or BERT, or a MaskedLanguageModel or SequenceClassifier on top of one.
      folder: made where there is none; of files of these names the contents are replaced.

    Raises:
      ValueError: for a network of which heads or neurons have been removed, which transformers'
        own cannot be, and for any other.
    """
    base: Any = getattr(model, "bert", getattr(model, "encoder", model))
    kind = next((kind for kind, form in _FORMATS.items() if isinstance(base, form.make)), None)
    if kind is None:
        raise TypeError(
            f"model is {type(model).__name__}; it must be a GPT2 or a BERT, or stand on one."
        )
    form, sizes = _FORMATS[kind], _sizes(base)
    whole = nnx.eval_shape(lambda: form.make(**sizes, rngs=nnx.Rngs(0)))
    wanted, own = (pretrained.named(_trained(network)) for network in (whole, base))
    cut = [f"{name} {a.shape}" for name, a in own.items() if a.shape != wanted[name].shape]
    if cut:
        raise ValueError(
            f"model has lost heads or neurons, as in {cut[0]}; transformers has no place for such "
            "a network: `zosam_jax.export` writes its arrays under names of its own."
        )
    is_bare = model is base and kind == "bert"
    arrays = pretrained.theirs(pretrained.named(_trained(model)), kind, is_bare=is_bare)
    config = {
        "model_type": kind,
        "architectures": [form.named[type(model)]],
        **{name: sizes[ours] for name, ours in form.sizes.items()},
        **form.fixed,
        form.widened: 4 * base.dim,
    }
    if isinstance(model, SequenceClassifier):
        classes = model.head.kernel.shape[-1]
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(classes)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pretrained.write(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _sizes(base: Any) -> dict[str, int]:
    attention = base.blocks[0].attention
    sizes = {
        "vocab_size": base.tokens.shape[0],
        "context": base.positions.shape[0],
        "dim": base.dim,
        "depth": len(base.blocks),
        # As many as fit the features: if some are missing, shapes tell.
        "heads": base.dim // attention.head_dim,
    }
    return sizes | ({"token_types": base.types.shape[0]} if isinstance(base, BERT) else {})
