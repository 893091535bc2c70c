"""Networks and masks of units that the tests of structured pruning share."""

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.sparsity.removal import leaves_by_path


class RandomNetwork:
    """A network of random layers on images [2, 6, 6, 3], whose widths are read off its arrays."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.params = {}
        self.layers = []
        width = 3
        for _ in range(self.rng.integers(2, 5)):
            layer = self.rng.choice(
                ["conv", "conv", "grouped", "depthwise", "branches", "residual", "gated", "pool"]
            )
            width = getattr(self, layer)(width)
        if self.rng.random() < 0.5:
            width = self.flatten(width)
        else:
            width = self.tokens(width)
            for _ in range(self.rng.integers(1, 3)):
                width = self.attention(width)
            self.layers.append(lambda p, x: x.mean(1))
        for _ in range(self.rng.integers(1, 3)):
            width = getattr(self, self.rng.choice(["dense", "glu", "tied", "twice"]))(width)
        self.add(lambda p, x, out: x @ p[out], out=(width, 4))

    def __call__(self, params, x):
        for layer in self.layers:
            x = layer(params, x)
        return x

    def array(self, *shape):
        name = f"a{len(self.params):02}"
        self.params[name] = jnp.asarray(self.rng.normal(size=shape) / 2 + 0.1, jnp.float32)
        return name

    def add(self, function, **shapes):
        names = {key: self.array(*shape) for key, shape in shapes.items()}
        self.layers.append(lambda p, x: function(p, x, **names))

    def width(self):
        return 2 * int(self.rng.integers(2, 6))

    def activation(self):
        choices = [jax.nn.relu, jax.nn.gelu, jax.nn.silu, jnp.tanh, jax.nn.leaky_relu, jax.nn.elu]
        return choices[self.rng.integers(len(choices))]

    def norm(self, width):
        kind = self.rng.choice(["none", "bias", "running", "batch"])
        if kind == "none":
            return lambda p, x: x
        names = [self.array(width) for _ in range(4)]

        def apply(p, x):
            scale, bias, mean, deviation = (p[name] for name in names)
            if kind == "bias":
                return x + bias
            axes = tuple(range(x.ndim - 1))
            if kind == "batch":
                mean, deviation = x.mean(axes), x.std(axes)
            return (x - mean) / jnp.sqrt(deviation**2 + 0.1) * scale + bias

        return apply

    def convolution(self, width, features):
        size = int(self.rng.choice([1, 3]))
        kernel, norm = self.array(size, size, width, features), self.norm(features)
        return lambda p, x: norm(p, _convolved(x, p[kernel]))

    def conv(self, width):
        features, activation = self.width(), self.activation()
        made = self.convolution(width, features)
        self.layers.append(lambda p, x: activation(made(p, x)))
        return features

    def grouped(self, width):
        if width % 2:
            return self.conv(width)
        self.add(lambda p, x, kernel: _convolved(x, p[kernel]), kernel=(3, 3, 2, width))
        return width

    def depthwise(self, width):
        self.add(lambda p, x, kernel: _convolved(x, p[kernel]), kernel=(3, 3, 1, 2 * width))
        return 2 * width

    def branches(self, width):
        features = self.width(), self.width()
        one, two = (self.convolution(width, n) for n in features)
        self.layers.append(lambda p, x: jax.nn.relu(jnp.concatenate([one(p, x), two(p, x)], -1)))
        return sum(features)

    def residual(self, width):
        features, activation = self.width(), self.activation()
        one, two = self.convolution(width, features), self.convolution(features, width)
        self.layers.append(lambda p, x: activation(x + two(p, activation(one(p, x)))))
        return width

    def gated(self, width):
        features = self.width()
        made, norm = self.convolution(width, features), self.norm(features)
        one, two = self.array(features, 4), self.array(4, features)

        def apply(p, x):
            y = made(p, x)
            gate = jax.nn.sigmoid(norm(p, jax.nn.relu(y.mean((1, 2)) @ p[one]) @ p[two]))
            return y * gate[:, None, None]

        self.layers.append(apply)
        return features

    def pool(self, width):
        self.layers.append(
            lambda p, x: jax.lax.reduce_window(
                x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"
            )
        )
        return width

    def flatten(self, width):
        shape = jax.eval_shape(self, self.params, jnp.zeros((2, 6, 6, 3))).shape
        self.layers.append(lambda p, x: x.reshape(x.shape[0], -1))
        return shape[1] * shape[2] * width

    def tokens(self, width):
        self.layers.append(lambda p, x: x.reshape(x.shape[0], -1, x.shape[-1]))
        return self.dense(width)

    def attention(self, width, head_dim=3):
        heads, features = int(self.rng.integers(2, 5)), self.width()
        activation, is_fused = self.activation(), self.rng.random() < 0.5
        qkv, qkv_bias = (self.array(*axes, 3 * heads * head_dim) for axes in ((width,), ()))
        out, out_bias = self.array(heads * head_dim, features), self.array(features)

        def apply(p, x):
            made = x @ p[qkv] + p[qkv_bias]
            if is_fused:
                made = made.reshape(*x.shape[:2], 3, -1, head_dim)
                q, k, v = made[:, :, 0], made[:, :, 1], made[:, :, 2]
            else:
                parts = jnp.split(made, 3, -1)
                q, k, v = (part.reshape(*x.shape[:2], -1, head_dim) for part in parts)
            weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nqkh", q, k), 2)
            y = jnp.einsum("nqkh,nkhd->nqhd", weights, v)
            return activation(y.reshape(*x.shape[:2], -1) @ p[out] + p[out_bias])

        self.layers.append(apply)
        return features

    def dense(self, width):
        features, activation, norm = self.width(), self.activation(), None
        kernel, norm = self.array(width, features), self.norm(features)
        self.layers.append(lambda p, x: activation(norm(p, x @ p[kernel])))
        return features

    def glu(self, width):
        """Gate and value from one kernel."""
        features = self.width()

        def apply(p, x, kernel, bias):
            value, gate = jnp.split(x @ p[kernel] + p[bias], 2, -1)
            return value * jax.nn.sigmoid(gate)

        self.add(apply, kernel=(width, 2 * features), bias=(2 * features,))
        return features

    def tied(self, width):
        """A kernel and its transpose, as autoencoders have them."""
        self.add(lambda p, x, k: jnp.tanh(jnp.tanh(x @ p[k]) @ p[k].T), k=(width, self.width()))
        return width

    def twice(self, width):
        """One kernel, read by two layers."""
        features = self.width()
        self.add(
            lambda p, x, one, two: jnp.tanh(jnp.tanh(x @ p[one]) @ p[two]) @ p[two],
            one=(width, features),
            two=(features, features),
        )
        return features


def _convolved(x, kernel):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def unit_masks(params, units, removed):
    """Masks that are 0 at the removed units, {name of the group: True where removed}."""
    masks = {path: np.ones(np.shape(x), bool) for path, x in leaves_by_path(params).items()}
    for group in units.groups:
        for member in group.members:
            if member.path in masks and group.name in removed:
                gone = np.append(removed[group.name], False)[member.unit_of]
                np.moveaxis(masks[member.path], member.axis, 0)[gone] = False
    return jax.tree.unflatten(jax.tree.structure(params), map(jnp.asarray, masks.values()))


def random_choice(groups, rng):
    """About half of the units of each group, one at least and never all of them."""
    return {group.name: _some(group.size, rng) for group in groups}


def _some(size, rng):
    removed = rng.random(size) < 0.5
    first, second = rng.choice(size, 2, replace=False)
    removed[first], removed[second] = True, False
    return removed
