"""BERT: a transformer encoder, in which each token looks at all others, and its masked words."""

import functools

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from zosam_jax.models.layers import (
    NORMAL_INIT,
    Attention,
    check_rate,
    check_sizes,
    dropout_layer,
    layer_dtype,
    layer_norm,
    linear,
)
from zosam_jax.models.text import embedded, through, tied_logits
from zosam_jax.trees import Array, Bool, Float, Int, Shaped

EPSILON = 1e-12


class Block(nnx.Module):
    """y = ln(x + drop(attention(x))), then ln(y + drop(mlp(y))), where mlp widens by 4, with GELU.

    LayerNorm has ε = 1e-12.
    """

    def __init__(
        self, dim: int, heads: int, rate: float, dtype: DTypeLike | None, rngs: nnx.Rngs
    ) -> None:
        """`rate` is dropout's."""
        self.attention = Attention(dim, heads, dtype, rngs)
        self.norm1 = layer_norm(dim, dtype, rngs, EPSILON)
        self.fc1 = linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.fc2 = linear(4 * dim, dim, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(dim, dtype, rngs, EPSILON)
        self.dropout = dropout_layer(rate, rngs)

    def __call__(
        self, x: Float[Array, "n t d"], mask: Bool[Array, "n 1 1 t"] | None
    ) -> Float[Array, "n t d"]:
        """Each token looks at those that the mask has."""
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        hidden = nnx.gelu(self.fc1(x), approximate=False)
        y: Array = self.norm2(x + self.dropout(self.fc2(hidden)))
        return y


class BERT(nnx.Module):
    """Embeddings of tokens, positions and token types, LayerNorm, blocks; a pooler of its own.

    The weight matrices are the arrays named "kernel"; embeddings have other names. The
    probabilities of attention go through no dropout, other than in the original.

    Reference: Devlin et al., BERT, https://arxiv.org/abs/1810.04805
    """

    #: Whether a classifier's last layer on top of it has a bias, as transformers' does.
    classifier_bias = True

    def __init__(
        self,
        vocab_size: int = 30522,
        context: int = 512,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        *,
        token_types: int = 2,
        pooler: bool = True,
        dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """An encoder with initial weights N(0, 0.02²).

        Args:
          vocab_size: the number of different tokens.
          context: the largest number of tokens in a row.
          dim: the features of a token.
          depth: the number of blocks.
          heads: of attention; a divisor of dim.
          token_types: the number of sentences that a row may hold.
          pooler: whether there is the layer that `pooled` goes through.
          dropout: its rate, for the embeddings and what blocks add to the stream.
          dtype: what the blocks compute in; None for the parameters' own, float32.
          remat: whether a backward pass computes what happens in a block once more instead of
            keeping it: less memory, a third more time.
          rngs: for the initial weights, and for dropout if there is any.

        Raises:
          ValueError: for sizes that do not fit, and for a rate outside [0, 1).
        """
        sizes = {"vocab_size": vocab_size, "context": context, "token_types": token_types}
        check_sizes(dim=dim, depth=depth, heads=heads, **sizes)
        check_rate("dropout", dropout)
        self.dtype, self.remat = layer_dtype(dtype), remat
        self.tokens = nnx.Param(NORMAL_INIT(rngs.params(), (vocab_size, dim)))
        self.positions = nnx.Param(NORMAL_INIT(rngs.params(), (context, dim)))
        self.types = nnx.Param(NORMAL_INIT(rngs.params(), (token_types, dim)))
        self.norm = layer_norm(dim, self.dtype, rngs, EPSILON)
        self.dropout = dropout_layer(dropout, rngs)
        self.blocks = nnx.List([Block(dim, heads, dropout, self.dtype, rngs) for _ in range(depth)])
        self.pooler = linear(dim, dim, rngs=rngs) if pooler else None

    @property
    def dim(self) -> int:
        """The features of a token."""
        return self.tokens.shape[-1]

    def __call__(
        self,
        tokens: Int[Array, "n t"],
        attention_mask: Shaped[Array, "n t"] | None = None,
        token_types: Int[Array, "n t"] | None = None,
    ) -> Float[Array, "n t d"]:
        """The features of each token.

        Args:
          tokens: numbers below vocab_size; others give NaN.
          attention_mask: 1 for tokens and 0 for what fills a row up; None for tokens alone.
          token_types: the sentence that a token belongs to, from 0; None for one.

        Raises:
          ValueError: for rows longer than `context`.
        """
        types = self.types[0] if token_types is None else jnp.take(self.types[...], token_types, 0)
        x = embedded(tokens, self.tokens[...], self.positions[...], None) + types
        x = x if self.dtype is None else x.astype(self.dtype)
        mask = None if attention_mask is None else attention_mask[:, None, None] != 0
        return through(self.blocks, self.dropout(self.norm(x)), mask, remat=self.remat)

    def pooled(
        self,
        tokens: Int[Array, "n t"],
        attention_mask: Shaped[Array, "n t"] | None = None,
        token_types: Int[Array, "n t"] | None = None,
    ) -> Float[Array, "n d"]:
        """What stands for a row: tanh of a layer of its first token, in float32 or wider.

        Raises:
          ValueError: if the model was made without a pooler.
        """
        if self.pooler is None:
            raise ValueError("pooler=False leaves out the layer that stands for a row.")
        return jnp.tanh(self.pooler(self(tokens, attention_mask, token_types)[:, 0]))


class MaskedLanguageModel(nnx.Module):
    """Logits of the word at each place: a layer with GELU, LayerNorm, the tokens' embeddings."""

    def __init__(self, bert: BERT, *, rngs: nnx.Rngs) -> None:
        """The network keeps the encoder itself, no copy of it; its pooler is not used.

        Args:
          bert: the encoder.
          rngs: for the initial weights of the layer.
        """
        self.bert = bert
        self.transform = linear(bert.dim, bert.dim, dtype=bert.dtype, rngs=rngs)
        self.transform_norm = layer_norm(bert.dim, bert.dtype, rngs, EPSILON)
        self.decoder_bias = nnx.Param(jnp.zeros(bert.tokens.shape[0]))

    def __call__(
        self,
        tokens: Int[Array, "n t"],
        attention_mask: Shaped[Array, "n t"] | None = None,
        token_types: Int[Array, "n t"] | None = None,
    ) -> Float[Array, "n t v"]:
        """Logits in float32 or wider; the arguments are those of the encoder."""
        return self.logits(self.hidden(tokens, attention_mask, token_types))

    def hidden(
        self,
        tokens: Int[Array, "n t"],
        attention_mask: Shaped[Array, "n t"] | None = None,
        token_types: Int[Array, "n t"] | None = None,
    ) -> Float[Array, "n t d"]:
        """The encoder's features, of which the logits are made."""
        return self.bert(tokens, attention_mask, token_types)

    def logits(self, hidden: Float[Array, "n t d"]) -> Float[Array, "n t v"]:
        """Those of a call, from what `hidden` returns or some of it."""
        hidden = self.transform_norm(nnx.gelu(self.transform(hidden), approximate=False))
        return tied_logits(hidden, self.bert.tokens[...]) + self.decoder_bias[...]


bert_micro = functools.partial(BERT, vocab_size=259, context=256, dim=128, depth=5, heads=4)
bert_micro.__doc__ = """`BERT` for bytes and 3 special tokens: 5 blocks of 128 features, 4 heads.

1,074,304 parameters with the pooler.
"""
