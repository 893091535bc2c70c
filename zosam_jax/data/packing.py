"""Texts as arrays of tokens: packed into blocks, with gaps to be filled in, or one in a row."""

import hashlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.data.dataset import Dataset, Split, TextInfo
from zosam_jax.data.texts import Row, Texts
from zosam_jax.data.tokenization import Tokenizer
from zosam_jax.trees import Array, Int

# BERT's: of the tokens, and of those the share that the mask's token and any token stand for.
_MASKED = 0.15
_BY_MASK, _BY_ANY = 0.8, 0.1
_MASKING_SEED = 0

# What fills up a row behind its tokens.
FILLER = -1


def next_tokens(texts: Texts, tokenizer: Tokenizer, context: int) -> Dataset:
    """Blocks of `context` tokens, and of each token the one that follows.

    All texts of a split stand in one row, a separator behind each, that is cut into blocks; what is
    left at its end is left out. Inputs and targets are of shape (n, context).

    Raises:
      ValueError: if a split has too few tokens for one block.
    """
    rows, info = _in_one_row(texts, tokenizer)
    blocks = {s: _cut(row, context, 1, f"the {s} split of {texts.name}") for s, row in rows.items()}
    splits = {s: Split(found[:, :-1], found[:, 1:]) for s, found in blocks.items()}
    return _dataset(splits, tokenizer.size, info)


def masked_tokens(texts: Texts, tokenizer: Tokenizer, context: int) -> Dataset:
    """Blocks of `context` tokens that begin with the start's; the targets are these tokens.

    What is not for training has gaps already, always the same (see `with_gaps`).

    Raises:
      ValueError: if a split has too few tokens for one block, or the tokenizer has no mask.
    """
    mask = tokenizer.mask
    if mask is None:
        raise ValueError("the tokenizer has no token [MASK] or <mask>, which stands in the gaps.")
    rows, info = _in_one_row(texts, tokenizer)
    splits = {}
    for name, row in rows.items():
        blocks = _cut(row, context - 1, 0, f"the {name} split of {texts.name}")
        blocks = np.pad(blocks, ((0, 0), (1, 0)), constant_values=tokenizer.start)
        inputs, targets = blocks, blocks
        if name != "train":
            key = jax.random.key(_MASKING_SEED)
            gaps = with_gaps(jnp.asarray(blocks), key, mask, tokenizer.size)
            inputs, targets = (np.asarray(array) for array in gaps)
        splits[name] = Split(inputs, targets)
    return _dataset(splits, tokenizer.size, info._replace(mask=mask))


def with_gaps(
    blocks: Int[Array, "n t"], key: Array, mask: int, vocabulary: int
) -> tuple[Int[Array, "n t"], Int[Array, "n t"]]:
    """Blocks as a masked language model gets them, and what it is to find out.

    In each block as many tokens are chosen, 15%, never the first; of them 80% become the mask's
    token, 10% any token, and the others stay.

    Args:
      blocks: of tokens.
      key: of the choice.
      mask: the token that stands in gaps.
      vocabulary: how many tokens there are.

    Returns:
      The blocks with gaps; and the tokens as they were where they were chosen, else −1.
    """
    at_key, how_key, any_key = jax.random.split(key, 3)
    order = jax.random.uniform(at_key, blocks.shape).at[:, 0].set(2.0)
    gaps = max(1, round(_MASKED * (blocks.shape[1] - 1)))
    chosen = jnp.argsort(jnp.argsort(order, axis=1), axis=1) < gaps
    how = jax.random.uniform(how_key, blocks.shape)
    found = jax.random.randint(any_key, blocks.shape, 0, vocabulary, blocks.dtype)
    found = jnp.where(how < _BY_MASK + _BY_ANY, found, blocks)
    found = jnp.where(how < _BY_MASK, mask, found)
    return jnp.where(chosen, found, blocks), jnp.where(chosen, blocks, FILLER)


def labelled(texts: Texts, tokenizer: Tokenizer, context: int) -> Dataset:
    """A text, or a pair, in each row: the start, its tokens, the separator, then −1.

    Of a pair the other text and a separator follow. Texts that are too long lose their end, of a
    pair the longer one first. Labels are of shape (n,): int32, or float32 where they are scores.

    Raises:
      ValueError: if texts have no labels.
    """
    if any(row.label is None for rows in texts.splits.values() for row in rows):
        raise ValueError(f"{texts.name} has no labels: to classify texts takes some.")
    names = texts.class_names
    splits, shortened = {}, 0.0
    for name, rows in texts.splits.items():
        found = [_joined(row, tokenizer, context) for row in rows]
        inputs = np.full((len(rows), context), FILLER, np.int32)
        for place, (tokens, _) in zip(inputs, found, strict=True):
            place[: len(tokens)] = tokens
        labels = np.asarray([row.label for row in rows], np.float32 if names is None else np.int32)
        splits[name] = Split(inputs, labels)
        if name == "train":
            shortened = float(np.mean([is_short for _, is_short in found]))
    info = _info(texts, tokenizer, 1.0)._replace(shortened=shortened)
    return _dataset(splits, 1 if names is None else len(names), info)._replace(class_names=names)


def of_row(row: Row, tokenizer: Tokenizer, context: int) -> Int[np.ndarray, " context"]:
    """A text or a pair as `labelled` has it."""
    tokens, _ = _joined(row, tokenizer, context)
    return np.pad(tokens, (0, context - len(tokens)), constant_values=FILLER)


def _joined(row: Row, tokenizer: Tokenizer, context: int) -> tuple[Int[np.ndarray, " t"], bool]:
    """The tokens of a row, at most `context`, and whether some are left out."""
    parts = [tokenizer.encode(text) for text in (row.text, row.second) if text is not None]
    room = context - 1 - len(parts)
    lengths = [min(len(parts[0]), room)]
    if len(parts) > 1:
        lengths = [min(len(parts[0]), max(room // 2, room - len(parts[1])))]
        lengths.append(min(len(parts[1]), room - lengths[0]))
    pieces: list[Sequence[int] | Int[np.ndarray, " t"]] = [[tokenizer.start]]
    for part, length in zip(parts, lengths, strict=True):
        pieces += [part[:length], [tokenizer.separator]]
    tokens = np.concatenate([np.asarray(piece, np.int32) for piece in pieces])
    return tokens, sum(lengths) < sum(map(len, parts))


def _in_one_row(
    texts: Texts, tokenizer: Tokenizer
) -> tuple[dict[str, Int[np.ndarray, " t"]], TextInfo]:
    """The tokens of each split, separators between texts."""
    end = np.asarray([tokenizer.separator], np.int32)
    found = {
        name: np.concatenate([a for row in rows for a in (tokenizer.encode(row.text), end)])
        for name, rows in texts.splits.items()
    }
    size = sum(len(row.text.encode(errors="replace")) for row in texts.splits["test"])
    return found, _info(texts, tokenizer, size / len(found["test"]))


def _cut(
    tokens: Int[np.ndarray, " t"], length: int, overlap: int, name: str
) -> Int[np.ndarray, "n length"]:
    """Blocks that are `length` apart and reach `overlap` into the next."""
    count = (len(tokens) - overlap) // length
    if count < 1:
        raise ValueError(
            f"{name} has {len(tokens)} tokens, and one block takes {length + overlap}: use more "
            "text, or a smaller context."
        )
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length + overlap)
    return np.ascontiguousarray(windows[: count * length : length])


def _info(texts: Texts, tokenizer: Tokenizer, bytes_a_token: float) -> TextInfo:
    digest = hashlib.sha256()
    for name, rows in sorted(texts.splits.items()):
        digest.update(repr((name, list(map(tuple, rows)))).encode(errors="replace"))
    return TextInfo(
        tokenizer.separator,
        tokenizer.start,
        bytes_a_token,
        0.0,
        digest.hexdigest()[:16],
        tokenizer.content,
    )


def _dataset(splits: Mapping[str, Split], num_classes: int, info: TextInfo) -> Dataset:
    return Dataset(
        splits["train"],
        splits["test"],
        num_classes,
        (0.0,),
        (1.0,),
        splits.get("validation"),
        text=info,
    )
