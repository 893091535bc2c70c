"""Texts as something to train on: the next token, tokens that are masked, or a text's class."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zosam_jax import data, models
from zosam_jax.data import Dataset, TextInfo, tokenization
from zosam_jax.data.packing import FILLER
from zosam_jax.integrations import modules
from zosam_jax.models import BERT, MaskedLanguageModel, SequenceClassifier
from zosam_jax.training import losses
from zosam_jax.training.config import ProblemConfig
from zosam_jax.training.feed import DataInfo, Feed, Resident
from zosam_jax.training.losses import Losses, Metrics
from zosam_jax.training.text_feeds import Bucketed, WithGaps
from zosam_jax.trees import Array, Int

_TO_ARRAYS = {
    "lm": data.next_tokens,
    "mlm": data.masked_tokens,
    "classify": data.labelled,
}


class Text:
    """A `zosam_jax.training.tasks.Task`: lm, mlm or classify."""

    def __init__(self, config: ProblemConfig) -> None:
        self._config = config

    @property
    def needs_outputs(self) -> bool:
        """As in `Task`."""
        return self._config.task == "classify"

    def data(self) -> Dataset:
        """As in `Task`."""
        config = self._config
        path = config.tokenizer
        known = tokenization.tokenizer(None) if path is None else tokenization.read(path)
        texts = data.load_texts(config.dataset, config.data_dir, label=config.label_column)
        return _TO_ARRAYS[config.task](texts, known, config.context)

    def feed(self, data: Any, mesh: jax.sharding.Mesh) -> Feed:
        """As in `Task`."""
        config = self._config
        if data.text is None:
            raise ValueError(
                f"task={config.task!r} takes texts: a data set made by zosam_jax.data.next_tokens, "
                "masked_tokens or labelled."
            )
        if config.task == "classify":
            return Bucketed(data, config.batch_size, mesh)
        kind = WithGaps if config.task == "mlm" else Resident
        # Outputs are as many as the vocabulary for each token: no more of them than in training.
        part = config.batch_size // config.accumulate
        return kind(data, config.batch_size, mesh, evaluation_batch=part)

    def network(self, info: DataInfo) -> modules.Functions:
        """As in `Task`; what fills up rows is masked."""
        config, about = self._config, _about(info)
        vocabulary = tokenization.tokenizer(about.tokenizer).size
        (longest,) = info.image_shape
        make = models.TEXT_MODELS[config.model]
        sizes = {"vocab_size": vocabulary}
        # Those with published weights have as many positions as these.
        if config.model.endswith("-micro") or longest > _context(config.model):
            sizes["context"] = longest

        def model(seed: int) -> nnx.Module:
            rngs = nnx.Rngs(seed)
            options: dict[str, Any] = {"dropout": config.dropout, "remat": config.remat}
            if config.task == "mlm":
                options["pooler"] = False
            encoder = make(**sizes, **options, dtype=jnp.dtype(config.precision), rngs=rngs)
            if config.task == "lm":
                return encoder
            if isinstance(encoder, BERT) and config.task == "mlm":
                return MaskedLanguageModel(encoder, rngs=rngs)
            classes = info.num_classes
            return SequenceClassifier(encoder, classes, dropout=config.dropout, rngs=rngs)

        def call(model: Any, rows: Int[Array, "n t"]) -> Array:
            named: dict[str, Array] = {}
            if config.task == "classify":
                named["attention_mask"] = rows != FILLER
                if isinstance(model.encoder, BERT):
                    # The first separator belongs to the first text, what follows to the second.
                    ends = rows == about.separator
                    of_second = (jnp.cumsum(ends, axis=1) - ends > 0) & named["attention_mask"]
                    named["token_types"] = of_second.astype(jnp.int32)
            outputs: Array = model(jnp.maximum(rows, 0), **named)
            return outputs

        return modules.of_nnx(model, call)

    def loss(self, info: DataInfo) -> Losses:
        """As in `Task`."""
        if self._config.task == "mlm":
            return losses.of_known
        is_score = self._config.task == "classify" and info.label_dtype == "float32"
        return losses.function("squared_error" if is_score else losses.CROSS_ENTROPY)

    def metrics(self, outputs: Array, labels: Array) -> Metrics:
        """As in `Task`; language models are judged by their loss alone."""
        if self._config.task == "classify":
            return losses.metrics(outputs, labels)
        return Metrics(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def measures(self, loss: float, outputs: Any, labels: Any, info: DataInfo) -> dict[str, float]:
        """As in `Task`: perplexity and bits a byte, or what GLUE measures."""
        if self._config.task != "classify":
            bits = loss / math.log(2) / _about(info).bytes_a_token
            return {"perplexity": _exp(loss), "bits_a_byte": bits}
        if info.label_dtype == "float32":
            return correlations(outputs[:, 0], labels)
        return agreement(outputs.argmax(axis=1), labels, info.num_classes)


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _about(info: DataInfo) -> TextInfo:
    assert info.text is not None
    return info.text


def _context(model: str) -> int:
    """The number of positions that a model has by default."""
    shapes = nnx.eval_shape(lambda: models.TEXT_MODELS[model](rngs=nnx.Rngs(0)))
    return int(shapes.positions.shape[0])


def agreement(
    found: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int
) -> dict[str, float]:
    """How classes that were found agree with those that are right.

    Returns:
      accuracy; f1, of two classes that of class 1, of more their mean; and matthews, Matthews'
      correlation, of more classes in Gorodkin's form; a fraction 0/0 counts as 0.
    """
    table = np.zeros((classes, classes))
    np.add.at(table, (labels, np.minimum(found, classes - 1)), 1)
    right, are, called = np.diag(table), table.sum(1), table.sum(0)
    n = table.sum()
    f1 = _ratio(2 * right, are + called)
    spread = (n**2 - (are**2).sum()) * (n**2 - (called**2).sum())
    matthews = _ratio(n * right.sum() - are @ called, np.sqrt(spread))
    return {
        "accuracy": float(right.sum() / n),
        "f1": float(f1[1] if classes == 2 else f1.mean()),
        "matthews": float(matthews),
    }


def correlations(found: Any, scores: Any) -> dict[str, float]:
    """Pearson's and Spearman's correlation of scores that were found with those that are right."""
    # scipy takes a second to import.
    from scipy import stats  # noqa: PLC0415

    pearson, spearman = stats.pearsonr(found, scores), stats.spearmanr(found, scores)
    return {"pearson": float(pearson.statistic), "spearman": float(spearman.statistic)}


def _ratio(some: Any, others: Any) -> Any:
    return np.divide(some, others, out=np.zeros_like(np.asarray(some, float)), where=others != 0)
