"""A small network whose units are written down by hand: neurons, and heads of attention."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zosam_jax.sparsity import Group, Member, Units

HEADS, WIDTH = 2, 3


def params(seed=0):
    """Neurons with a scale behind them, neurons that read them, and heads that read those."""
    shapes = {
        "fc1": {"kernel": (4, 6), "bias": (6,)},
        "norm": {"scale": (6,), "bias": (6,)},
        "fc2": {"kernel": (6, 8), "bias": (8,)},
        "qkv": {"kernel": (8, 3 * HEADS * WIDTH), "bias": (3 * HEADS * WIDTH,)},
        "proj": {"kernel": (HEADS * WIDTH, 4), "bias": (4,)},
    }
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.normal(size=shape) * 0.6, jnp.float32) for shape in leaves]
    return jax.tree.unflatten(structure, arrays)


def _member(layer, part, axis, unit_of, role):
    return Member(f"['{layer}']['{part}']", axis, np.asarray(unit_of), role)


def units():
    one, two = np.arange(6), np.arange(8)
    heads = np.repeat(np.arange(HEADS), WIDTH)
    return Units(
        (
            Group(
                "['fc1']",
                "neurons",
                6,
                (
                    _member("fc1", "kernel", 1, one, "output"),
                    _member("fc1", "bias", 0, one, "elementwise"),
                    _member("norm", "scale", 0, one, "elementwise"),
                    _member("norm", "bias", 0, one, "elementwise"),
                    _member("norm", "mean", 0, one, "elementwise"),  # kept apart from params
                    _member("fc2", "kernel", 0, one, "input"),
                ),
            ),
            Group(
                "['fc2']",
                "neurons",
                8,
                (
                    _member("fc2", "kernel", 1, two, "output"),
                    _member("fc2", "bias", 0, two, "elementwise"),
                    _member("qkv", "kernel", 0, two, "input"),
                ),
            ),
            Group(
                "['qkv']",
                "heads",
                HEADS,
                (
                    _member("qkv", "kernel", 1, np.tile(heads, 3), "output"),
                    _member("qkv", "bias", 0, np.tile(heads, 3), "elementwise"),
                    _member("proj", "kernel", 0, heads, "input"),
                ),
            ),
        )
    )


def logits(p, x):
    hidden = jax.nn.relu(x @ p["fc1"]["kernel"] + p["fc1"]["bias"])
    hidden = hidden * p["norm"]["scale"] + p["norm"]["bias"]
    hidden = jax.nn.gelu(hidden @ p["fc2"]["kernel"] + p["fc2"]["bias"])
    qkv = hidden @ p["qkv"]["kernel"] + p["qkv"]["bias"]
    q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:-1], 3, HEADS, WIDTH), -3, 0)
    attended = jax.nn.sigmoid(jnp.sum(q * k, axis=-1, keepdims=True)) * v
    return attended.reshape(*x.shape[:-1], -1) @ p["proj"]["kernel"] + p["proj"]["bias"]


def loss(params, x, y):
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def batch(seed=1, rows=16):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(rng.integers(0, 4, rows))}


def along(array, axis, unit_of, unit):
    """The entries of one unit."""
    return np.compress(np.asarray(unit_of) == unit, np.asarray(array), axis=axis)


def leaf(tree, member):
    """What a tree holds for a member; None where it has no such array."""
    layer, part = member.path.strip("[]'").split("']['")
    return tree.get(layer, {}).get(part)


def kept(masks):
    """For each group which units are there, asserting that each is whole."""
    found = []
    for group in units().groups:
        of_group = []
        for unit in range(group.size):
            here = [
                along(leaf(masks, m), m.axis, m.unit_of, unit).any()
                for m in group.members
                if leaf(masks, m) is not None
            ]
            assert len(set(here)) == 1, (group.name, unit, here)
            of_group.append(bool(here[0]))
        found.append(of_group)
    # A weight is kept if all of its units are.
    assert_weights_follow(masks, found)
    return found


def assert_weights_follow(masks, found):
    expected = {}
    for group, of_group in zip(units().groups, found, strict=True):
        for m in group.members:
            mask = leaf(masks, m)
            if mask is not None:
                line = np.array([of_group[u] for u in m.unit_of])
                shape = [-1 if axis == m.axis else 1 for axis in range(mask.ndim)]
                whole = expected.get(m.path, np.ones(mask.shape, bool))
                expected[m.path] = whole & line.reshape(shape)
    for path, leaves in jax.tree.leaves_with_path(masks):
        np.testing.assert_array_equal(leaves, expected[jax.tree_util.keystr(path)])
    assert masks["proj"]["bias"] is None
