"""Where batches of text come from: blocks with gaps, and rows that are cut to what they hold."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zosam_jax.data.dataset import Dataset, Split
from zosam_jax.data.packing import FILLER, with_gaps
from zosam_jax.training import devices
from zosam_jax.training.feed import (
    Batch,
    Example,
    Resident,
    described,
    evaluated_on,
    filled,
    multiple_of,
    own_part,
)
from zosam_jax.trees import Array, Int, PyTree

# Rows are cut to the first of these parts of the longest that holds them; each is a program.
_BUCKETS = (4, 2, 1)
# Among so many batches rows are sorted by length, so that a batch has rows of about one.
_SORTED = 16
_RAW_SEED = 0


class WithGaps(Resident):
    """Blocks in which tokens are to be found out, other ones in each step; a `Feed`."""

    def examples(self, arrays: PyTree, batch: Batch, step: Array, key: Array) -> Example:
        """As in `Feed`."""
        blocks, _ = super().examples(arrays, batch, step, key)
        return Example(*self._with_gaps(blocks, key))

    def raw(self, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As in `Feed`; gaps are always the same."""
        blocks, _ = super().raw(seed, count)
        found = self._with_gaps(jnp.asarray(blocks), jax.random.key(_RAW_SEED))
        return np.asarray(found[0]), np.asarray(found[1])

    def _with_gaps(self, blocks: Array, key: Array) -> tuple[Array, Array]:
        text = self.info.text
        assert text is not None
        assert text.mask is not None
        return with_gaps(blocks, key, text.mask, self.info.num_classes)


class Bucketed:
    """Rows of many lengths, sent in batches that are as long as theirs; a `Feed`."""

    arrays: PyTree = None

    def __init__(self, dataset: Dataset, batch_size: int, mesh: Mesh) -> None:
        """Keeps all rows on the host."""
        self.dataset, self.info = dataset, described(dataset)
        self.splits: tuple[str, ...] = evaluated_on(dataset)
        self._batch_size, self._mesh = batch_size, mesh
        self._steps = self.info.train_images // batch_size
        longest = self.info.image_shape[0]
        lengths = (multiple_of(part, longest) // part for part in _BUCKETS)
        self._buckets = tuple(dict.fromkeys(lengths))

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """As in `Feed`: tokens and labels."""
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(self.info.train_images)[: self._steps * self._batch_size]
        lengths = _lengths(self.dataset.train)
        apart = _SORTED * self._batch_size
        order = np.concatenate(
            [
                part[np.argsort(lengths[part], kind="stable")]
                for part in (order[i : i + apart] for i in range(0, len(order), apart))
            ]
        )
        batches = order.reshape(self._steps, self._batch_size)
        for batch in batches[rng.permutation(self._steps)[start:]]:
            yield self._sent(self.dataset.train, batch)

    def batch_shapes(self) -> tuple[Batch, ...]:
        """As in `Feed`: one for each bucket."""
        sharding = devices.by_batch(self._mesh)
        label = self.dataset.train.labels.dtype
        return tuple(
            (
                jax.ShapeDtypeStruct((self._batch_size, length), jnp.int32, sharding=sharding),
                jax.ShapeDtypeStruct((self._batch_size,), label, sharding=sharding),
            )
            for length in self._buckets
        )

    def examples(self, arrays: PyTree, batch: Batch, step: Array, key: Array) -> Example:
        """As in `Feed`."""
        del arrays, step, key
        return Example(*batch)

    def evaluation(self, split: str) -> Iterator[Batch]:
        """As in `Feed`: tokens and labels, by length."""
        rows: Split = getattr(self.dataset, split)
        size = multiple_of(self._mesh.size, self._batch_size)
        order = np.argsort(_lengths(rows), kind="stable")
        for start in range(0, len(rows), size):
            yield self._sent(rows, np.resize(order[start : start + size], size), len(rows) - start)

    def plain(self, arrays: PyTree, batch: Batch, split: str) -> Example:
        """As in `Feed`."""
        del arrays, split
        return Example(*batch)

    def raw(self, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As in `Feed`; rows at their full length."""
        order = np.random.default_rng((seed, 0)).permutation(self.info.train_images)
        rows = self.dataset.train.take(order[:count])
        return rows.images, rows.labels

    def close(self) -> None:
        """As in `Feed`: nothing does."""

    def _sent(self, rows: Split, batch: Int[np.ndarray, " n"], known: int | None = None) -> Batch:
        """Some rows on the devices, in their bucket; the labels of those beyond `known` are not."""
        longest = int(_lengths(rows)[batch].max())
        length = next(bucket for bucket in self._buckets if bucket >= longest)
        own = own_part(batch)
        labels = rows.labels[own]
        if known is not None:
            are_known = own_part(np.arange(len(batch))) < known
            labels = np.asarray(filled(jnp.asarray(labels), jnp.asarray(are_known)))
        return devices.distribute((rows.images[own, :length], labels), self._mesh)


def _lengths(rows: Split) -> Int[np.ndarray, " n"]:
    lengths: Int[np.ndarray, " n"] = np.sum(rows.images != FILLER, axis=1)
    return lengths
