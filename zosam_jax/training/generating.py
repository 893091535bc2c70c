"""A language model goes on with a text, token by token."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.data import Tokenizer
from zosam_jax.errors import check_count, check_number
from zosam_jax.training.problem import Network, Problem
from zosam_jax.trees import Array, Float, Int


class Generator:
    """Goes on with texts by networks of one problem; compiled on first use."""

    def __init__(self, problem: Problem, tokenizer: Tokenizer) -> None:
        self._problem, self._tokenizer = problem, tokenizer
        (self._context,) = problem.feed.info.image_shape
        self._next = jax.jit(self._logits)

    def _logits(
        self, network: Network, row: Int[Array, "1 t"], length: Array
    ) -> Float[Array, " v"]:
        """Of the token behind the first `length`; what stands after them does not matter."""
        logits: Array = self._problem.apply(network.params, network.model_state, row)
        return logits[0, length - 1]

    def text(self, network: Network, prompt: str, count: int, **options: Any) -> str:
        """What follows a text; the arguments are those of `tokens`."""
        return self._tokenizer.decode(list(self.tokens(network, prompt, count, **options)))

    def tokens(
        self,
        network: Network,
        prompt: str,
        count: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """The tokens that follow a text, at most `count`; the end of a text ends them.

        Args:
          network: that of the problem.
          prompt: the text; of a longer one the last `context` tokens count. Without any the network
            begins behind the end of another text.
          count: how many, at most.
          temperature: what logits are divided by before a token is drawn; at 0 it is the likeliest.
          seed: of the draws.

        Raises:
          ValueError: for arguments that cannot be right.
        """
        check_count("tokens", count)
        check_number("temperature", temperature, above=0.0, inclusive=True)
        key, end = jax.random.key(seed), self._tokenizer.separator
        found = self._tokenizer.encode(prompt)
        found = found if len(found) else np.asarray([end], np.int32)
        for number in range(count):
            found = found[-self._context :]
            row = np.zeros((1, self._context), np.int32)
            row[0, : len(found)] = found
            logits = self._next(network, row, jnp.asarray(len(found)))
            if temperature:
                own = jax.random.fold_in(key, number)
                token = int(jax.random.categorical(own, logits / temperature))
            else:
                token = int(jnp.argmax(logits))
            if token == end:
                return
            yield token
            found = np.append(found, np.int32(token))
