"""GPT-2: a transformer decoder, which predicts each token from those before it."""

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

EPSILON = 1e-5


class Block(nnx.Module):
    """y = x + drop(attention(ln(x))), then y + drop(mlp(ln(y))), where mlp widens by 4 with GELU.

    Of GELU it has the approximation by tanh; LayerNorm has ε = 1e-5.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        rate: float,
        std: float,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ) -> None:
        """`rate` is dropout's, `std` that of the initial weights of what is added to the stream."""
        init = nnx.initializers.normal(std)
        self.norm1 = layer_norm(dim, dtype, rngs, EPSILON)
        self.attention = Attention(dim, heads, dtype, rngs, init)
        self.norm2 = layer_norm(dim, dtype, rngs, EPSILON)
        self.fc1 = linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.fc2 = linear(4 * dim, dim, kernel_init=init, dtype=dtype, rngs=rngs)
        self.dropout = dropout_layer(rate, rngs)

    def __call__(
        self, x: Float[Array, "n t d"], mask: Bool[Array, "n 1 t t"] | None
    ) -> Float[Array, "n t d"]:
        """Each token looks at those up to itself that the mask has."""
        x = x + self.dropout(self.attention(self.norm1(x), mask, is_causal=True))
        hidden = nnx.gelu(self.fc1(self.norm2(x)), approximate=True)
        return x + self.dropout(self.fc2(hidden))


class GPT2(nnx.Module):
    """Embeddings of tokens and positions, blocks, LayerNorm; logits by the tokens' embeddings.

    The weight matrices are the arrays named "kernel"; embeddings have other names. The
    probabilities of attention go through no dropout, other than in the original.

    Reference: Radford et al., Language Models are Unsupervised Multitask Learners, 2019
    """

    #: Whether a classifier's last layer on top of it has a bias; transformers' has none.
    classifier_bias = False

    def __init__(
        self,
        vocab_size: int = 50257,
        context: int = 1024,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        *,
        dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """A decoder with initial weights N(0, 0.02²), those into the stream ÷ √(2·depth).

        Args:
          vocab_size: the number of different tokens.
          context: the largest number of tokens in a row.
          dim: the features of a token.
          depth: the number of blocks.
          heads: of attention; a divisor of dim.
          dropout: its rate, for the embeddings and what blocks add to the stream.
          dtype: what blocks and logits compute in; None for the parameters' own, float32.
          remat: whether a backward pass computes what happens in a block once more instead of
            keeping it: less memory, a third more time.
          rngs: for the initial weights, and for dropout if there is any.

        Raises:
          ValueError: for sizes that do not fit, and for a rate outside [0, 1).
        """
        check_sizes(vocab_size=vocab_size, context=context, dim=dim, depth=depth, heads=heads)
        check_rate("dropout", dropout)
        self.dtype, self.remat = layer_dtype(dtype), remat
        self.tokens = nnx.Param(NORMAL_INIT(rngs.params(), (vocab_size, dim)))
        self.positions = nnx.Param(NORMAL_INIT(rngs.params(), (context, dim)))
        self.dropout = dropout_layer(dropout, rngs)
        std = 0.02 / (2 * depth) ** 0.5
        options = {"rate": dropout, "std": std, "dtype": self.dtype, "rngs": rngs}
        self.blocks = nnx.List([Block(dim, heads, **options) for _ in range(depth)])
        self.norm = layer_norm(dim, self.dtype, rngs, EPSILON)

    @property
    def dim(self) -> int:
        """The features of a token."""
        return self.tokens.shape[-1]

    def __call__(
        self, tokens: Int[Array, "n t"], segments: Int[Array, "n t"] | None = None
    ) -> Float[Array, "n t v"]:
        """The logits of the next token at each place, in float32 or wider.

        Args:
          tokens: numbers below vocab_size; others give NaN.
          segments: the document that a token belongs to, where a row holds several; a token looks
            at those of its own alone.

        Raises:
          ValueError: for rows longer than `context`.
        """
        return self.logits(self.hidden(tokens, segments))

    def logits(self, hidden: Float[Array, "n t d"]) -> Float[Array, "n t v"]:
        """Those of a call, from what `hidden` returns or some of it."""
        return tied_logits(hidden, self.tokens[...])

    def hidden(
        self, tokens: Int[Array, "n t"], segments: Int[Array, "n t"] | None = None
    ) -> Float[Array, "n t d"]:
        """What the logits are made of; the arguments are those of a call."""
        x = embedded(tokens, self.tokens[...], self.positions[...], self.dtype)
        mask = None if segments is None else segments[:, None, :, None] == segments[:, None, None]
        y: Array = self.norm(through(self.blocks, self.dropout(x), mask, remat=self.remat))
        return y

    def pooled(
        self, tokens: Int[Array, "n t"], attention_mask: Shaped[Array, "n t"] | None = None
    ) -> Float[Array, "n d"]:
        """What stands for a row: `hidden` at its last token.

        Args:
          tokens: as for a call.
          attention_mask: 1 for tokens and 0 behind them, for what fills a row up.
        """
        hidden = self.hidden(tokens)
        if attention_mask is None:
            return hidden[:, -1]
        last = jnp.sum(attention_mask != 0, axis=1) - 1
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


gpt2_micro = functools.partial(GPT2, vocab_size=256, context=256, dim=128, depth=5, heads=4)
gpt2_micro.__doc__ = """`GPT2` for bytes: 5 blocks of 128 features and 4 heads, 256 tokens in a row.

1,057,152 parameters.
"""
