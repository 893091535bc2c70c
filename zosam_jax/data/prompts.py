"""Classification as the search for a word: texts in a template, and the word of each class."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zosam_jax.data.tokenization import Tokenizer
from zosam_jax.errors import check_count
from zosam_jax.trees import Bool, Int

TEXT, MASK = "{text}", "{mask}"


class Prompted(NamedTuple):
    """Texts in a template, as `zosam_jax.models.word_logits` takes them.

    Attributes:
      tokens: int32, rows filled up with the separator behind their end.
      attention_mask: where there is text.
      places: where in its row the word is looked for: at the mask, or, of templates without one,
        at the last token, which the word follows.
      words: the token of each class.
    """

    tokens: Int[np.ndarray, "n t"]
    attention_mask: Bool[np.ndarray, "n t"]
    places: Int[np.ndarray, " n"]
    words: Int[np.ndarray, " c"]


def prompted(
    texts: Sequence[str],
    template: str,
    words: Sequence[str],
    tokenizer: Tokenizer,
    *,
    length: int,
) -> Prompted:
    """Texts in a template, each in a row of its own.

        prompted(["A joy."], "{text} It was {mask}.", ["great", "terrible"], tokenizer, length=128)
        prompted(["A joy."], "{text} It was", [" great", " terrible"], tokenizer, length=128)

    The first is for an encoder, which finds the token at the mask, between a start and a separator;
    the second for a decoder, which goes on.

    Args:
      texts: cut at their end where they and the template are longer than a row.
      template: with {text} once, and {mask} once for an encoder.
      words: one for each class, of one token each, no two the same.
      tokenizer: from texts to tokens, such as `zosam_jax.data.tokenization.Bytes()`.
      length: the tokens of a row.

    Raises:
      ValueError: for a template without {text} or longer than a row, a mask that the tokenizer has
        not, and words that are not one token each.
    """
    check_count("length", length)
    is_masked = MASK in template
    if template.count(TEXT) != 1 or template.count(MASK) > 1:
        raise ValueError(
            f"template={template!r} must hold {TEXT} once, and {MASK} once if an encoder is to "
            "find the word."
        )
    mask = -1 if tokenizer.mask is None else tokenizer.mask
    if is_masked and mask < 0:
        raise ValueError(
            f"template={template!r} has a {MASK}, and the tokenizer has no such token."
        )

    def encoded(piece: str) -> list[int]:
        """The tokens of a piece of the template, with that of the mask in it."""
        parts = [list(map(int, tokenizer.encode(part))) for part in piece.split(MASK)]
        return parts[0] if len(parts) == 1 else [*parts[0], mask, *parts[1]]

    before, after = template.split(TEXT)
    start, end = encoded(before), encoded(after)
    if is_masked:
        start, end = [tokenizer.start, *start], [*end, tokenizer.separator]
    room = length - len(start) - len(end)
    if room < 1:
        raise ValueError(
            f"length={length} leaves no room for a text: template={template!r} takes "
            f"{len(start) + len(end)} tokens."
        )
    tokens = np.full((len(texts), length), tokenizer.separator, np.int32)
    ends = np.zeros(len(texts), np.int32)
    places = np.zeros(len(texts), np.int32)
    for i, text in enumerate(texts):
        inside = list(map(int, tokenizer.encode(text)))[:room]
        row = [*start, *inside, *end]
        tokens[i, : len(row)], ends[i] = row, len(row)
        if not is_masked:
            places[i] = len(row) - 1
        elif MASK in before:
            places[i] = start.index(mask)
        else:
            places[i] = len(row) - len(end) + end.index(mask)
    return Prompted(
        tokens, np.arange(length) < ends[:, None], places, _of_one_token(words, tokenizer)
    )


def _of_one_token(words: Sequence[str], tokenizer: Tokenizer) -> Int[np.ndarray, " c"]:
    tokens = [tokenizer.encode(word) for word in words]
    for word, found in zip(words, tokens, strict=True):
        if len(found) != 1:
            raise ValueError(
                f"words: {word!r} is {len(found)} tokens; take a word that the tokenizer has as "
                "one, for a decoder often with a space before it."
            )
    numbers = np.asarray([int(found[0]) for found in tokens], np.int32)
    if len(numbers) < 2 or len(set(numbers.tolist())) < len(numbers):
        raise ValueError(f"words={list(words)!r} must be two or more, no two the same token.")
    return numbers
