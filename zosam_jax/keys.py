"""Seeds and random keys, in and out of optimizer states."""

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.errors import is_number
from zosam_jax.trees import Array, Key, UInt32

# The generator is told from the length of its key data, so that a state can hold a plain array.
_IMPLEMENTATIONS = {2: "threefry2x32", 4: "rbg"}


def as_key(key: int | Array) -> Key[Array, ""]:
    """A random key from an integer seed, a key, or raw key data.

    Raises:
      TypeError: for anything else.
    """
    if is_number(key) and jnp.issubdtype(jnp.result_type(key), jnp.integer):
        return jax.random.key(key)
    if isinstance(key, np.ndarray | jax.Array):
        if key.ndim == 0 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return jnp.asarray(key)
        if key.dtype == jnp.uint32 and key.shape in [(length,) for length in _IMPLEMENTATIONS]:
            return from_data(jnp.asarray(key))
    raise TypeError(f"key={key!r} must be an integer seed or one random key (jax.random.key).")


def to_data(key: int | Array) -> UInt32[Array, " words"]:
    """A seed or a key as raw uint32 data, in a buffer of its own (states may be donated)."""
    return jnp.array(jax.random.key_data(as_key(key)), copy=True)


def from_data(data: UInt32[Array, " words"]) -> Key[Array, ""]:
    """The key whose raw data this is."""
    key: Array = jax.random.wrap_key_data(data, impl=_IMPLEMENTATIONS[data.shape[-1]])
    return key
