"""From text to the numbers of tokens and back: bytes, or what a tokenizer.json file says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from zosam_jax.data import files
from zosam_jax.trees import Int

# Of a tokenizer's special tokens, by what they are for: the names that libraries give them.
_SPECIAL = {
    "start": ("[CLS]", "<s>", "<|endoftext|>"),
    "separator": ("[SEP]", "</s>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}
_MOST_BYTES = 2**28
_BYTES = 256


class Tokenizer(Protocol):
    """What turns text into tokens.

    Attributes:
      size: tokens are 0, …, size − 1.
      start: stands before a text that is classified or whose gaps are filled in.
      separator: stands after each text.
      mask: stands for a token that is to be found out; None where there is none.
      content: of a tokenizer.json, what it holds; None for bytes.
    """

    size: int
    start: int
    separator: int
    mask: int | None
    content: str | None

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        """The tokens of a text, without special ones."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, without special ones."""


class Bytes:
    """Each byte of UTF-8 is a token; three special ones follow."""

    size = _BYTES + 3
    start, separator = _BYTES, _BYTES + 1
    mask: int | None = _BYTES + 2
    content: str | None = None

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        """As in `Tokenizer`."""
        # What is no text, half of a surrogate pair, is replaced as in any other program.
        return np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        """As in `Tokenizer`; bytes that are no UTF-8 appear as �."""
        return bytes(t for t in tokens if t < _BYTES).decode(errors="replace")


class FromFile:
    """A tokenizer of the library `tokenizers`, such as BPE or WordPiece."""

    def __init__(self, content: str, name: str) -> None:
        """Reads one.

        Args:
          content: of a tokenizer.json file.
          name: what errors call it.

        Raises:
          ValueError: if it is none, or lacks the tokens that separate texts.
          ModuleNotFoundError: if the library is missing, naming the extra that brings it.
        """
        try:
            from tokenizers import Tokenizer as Library  # noqa: PLC0415 (an extra)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{name} takes the library tokenizers: pip install 'zosam_jax[text]'."
            ) from error
        try:
            self._library: Any = Library.from_str(content)
        except Exception as error:  # of a type of its own
            raise ValueError(f"{name} is no tokenizer.json: {files.one_line(error)}") from error
        # Blocks and special tokens are the task's affair.
        self._library.no_truncation()
        self._library.no_padding()
        self.content: str | None = content
        self.size: int = self._library.get_vocab_size(with_added_tokens=True)
        found = {role: self._first(names) for role, names in _SPECIAL.items()}
        if found["separator"] is None:
            raise ValueError(
                f"{name} has none of the tokens {', '.join(_SPECIAL['separator'])}, one of which "
                "ends each text."
            )
        self.separator: int = found["separator"]
        self.start: int = self.separator if found["start"] is None else found["start"]
        self.mask: int | None = found["mask"]

    def _first(self, names: Sequence[str]) -> int | None:
        known = [self._library.token_to_id(name) for name in names]
        return next((number for number in known if number is not None), None)

    def encode(self, text: str) -> Int[np.ndarray, " t"]:
        """As in `Tokenizer`."""
        found = self._library.encode(text, add_special_tokens=False)
        return np.asarray(found.ids, np.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        """As in `Tokenizer`."""
        text: str = self._library.decode(list(tokens), skip_special_tokens=True)
        return text


def tokenizer(content: str | None, name: str = "tokenizer") -> Tokenizer:
    """That of a tokenizer.json's content; bytes for None.

    Raises:
      ValueError, ModuleNotFoundError: as `FromFile`.
    """
    return Bytes() if content is None else FromFile(content, name)


def read(path: Path) -> Tokenizer:
    """That of a tokenizer.json file.

    Raises:
      ValueError: if it cannot be read or is none.
      ModuleNotFoundError: if the library is missing.
    """
    if problem := files.fault(path):
        raise ValueError(f"tokenizer={str(path)!r} {problem}.")
    try:
        content = files.read(path, _MOST_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no tokenizer.json: it is not UTF-8 ({error}).") from error
    return tokenizer(content, str(path))
