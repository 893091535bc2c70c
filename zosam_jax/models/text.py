"""What the encoder and the decoder of text share: a row of tokens, their blocks, a classifier."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from zosam_jax.errors import check_count
from zosam_jax.models.layers import check_rate, dropout_layer, linear
from zosam_jax.trees import Array, Float, Int, Shaped, wide_dtype


def embedded(
    tokens: Int[Array, "n t"], table: Array, positions: Array, dtype: DTypeLike | None
) -> Float[Array, "n t d"]:
    """The sum of the embeddings of tokens and positions; NaN for tokens that the table lacks.

    Raises:
      ValueError: for more tokens in a row than there are positions.
    """
    if tokens.shape[1] > len(positions):
        raise ValueError(
            f"tokens of shape {tokens.shape} do not fit: this model was made with "
            f"context={len(positions)}, and has position embeddings for no longer rows."
        )
    x = jnp.take(table, tokens, axis=0) + positions[: tokens.shape[1]]
    return x if dtype is None else x.astype(dtype)


def through(blocks: Iterable[Any], x: Array, mask: Array | None, *, remat: bool) -> Array:
    """x after all blocks; with `remat` only what goes in and out of them is kept for gradients."""
    for block in blocks:
        x = nnx.remat(type(block).__call__)(block, x, mask) if remat else block(x, mask)
    return x


def tied_logits(hidden: Float[Array, "n t d"], table: Array) -> Float[Array, "n t v"]:
    """The products with the embeddings of all tokens, summed in float32 or wider."""
    table = table.astype(hidden.dtype)
    return jnp.einsum("ntd,vd->ntv", hidden, table, preferred_element_type=wide_dtype(hidden))


def word_logits(
    model: Any,
    tokens: Int[Array, "n t"],
    places: Int[Array, " n"],
    words: Int[Array, " c"],
    attention_mask: Shaped[Array, "n t"] | None = None,
) -> Float[Array, "n c"]:
    """The logits of some words at one place of each row: classification by a prompt.

    Cross entropy over them is the loss by which MeZO fine-tunes. Logits of other places are not
    computed.

        rows = prompted(texts, "{text} It was {mask}.", ["great", "terrible"], tokenizer, length=64)
        logits = word_logits(model, rows.tokens, rows.places, rows.words, rows.attention_mask)

    Args:
      model: a MaskedLanguageModel, for which places are those of the mask's token; or a GPT2, for
        which they are the last before the word.
      tokens: the rows.
      places: from 0.
      words: the token that stands for each class.
      attention_mask: as of a MaskedLanguageModel; a GPT2 needs none.

    Reference: Malladi et al., Fine-Tuning Language Models with Just Forward Passes,
      https://arxiv.org/abs/2305.17333; Gao et al., https://arxiv.org/abs/2012.15723
    """
    is_encoder = hasattr(model, "bert")
    hidden = model.hidden(tokens, attention_mask) if is_encoder else model.hidden(tokens)
    there = jnp.take_along_axis(hidden, places[:, None, None], axis=1)
    logits: Array = model.logits(there)
    return logits[:, 0, words]


class SequenceClassifier(nnx.Module):
    """Logits of classes from what stands for a row, by an encoder or a decoder.

    A BERT hands on its pooled first token, a GPT2 its last one.
    """

    def __init__(self, encoder: Any, classes: int, *, dropout: float = 0.0, rngs: nnx.Rngs) -> None:
        """The network keeps the encoder itself, no copy of it.

        Args:
          encoder: a BERT with a pooler, or a GPT2.
          classes: the number of logits; 1 for a regression.
          dropout: its rate, on what stands for a row.
          rngs: for the initial weights of the last layer, and for dropout if there is any.
        """
        check_count("classes", classes)
        check_rate("dropout", dropout)
        self.encoder = encoder
        self.dropout = dropout_layer(dropout, rngs)
        self.head = linear(encoder.dim, classes, use_bias=encoder.classifier_bias, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "n t"],
        attention_mask: Shaped[Array, "n t"] | None = None,
        **options: Any,
    ) -> Float[Array, "n c"]:
        """Logits in float32 or wider; the arguments are those of the encoder's `pooled`."""
        return self.head(self.dropout(self.encoder.pooled(tokens, attention_mask, **options)))
