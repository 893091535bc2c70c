"""The network of `problems` written out by hand, for oracles independent of the library."""

import jax
import numpy as np


class NumpyMLP:
    """tanh network with softmax cross-entropy, in float64, on flat dictionaries."""

    def __init__(self, x, y):
        self.x, self.y = np.asarray(x, np.float64), np.asarray(y)

    def forward(self, p):
        hidden = np.tanh(self.x @ p["W1"] + p["b1"])
        logits = hidden @ p["W2"] + p["b2"]
        logits = logits - logits.max(axis=1, keepdims=True)
        logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return hidden, logp

    def losses(self, p):
        _, logp = self.forward(p)
        return -logp[np.arange(len(self.y)), self.y]

    def loss(self, p):
        return self.losses(p).mean()

    def on(self, rows):
        return NumpyMLP(self.x[rows], self.y[rows])

    def gradient(self, p):
        hidden, logp = self.forward(p)
        error = (np.exp(logp) - np.eye(2)[self.y]) / len(self.y)
        back = (error @ p["W2"].T) * (1 - hidden**2)
        return {
            "W1": self.x.T @ back,
            "b1": back.sum(axis=0),
            "W2": hidden.T @ error,
            "b2": error.sum(axis=0),
        }


def to_numpy(tree):
    """{"W1", "b1", "W2", "b2"} in float64, from a tree like `mlp_params`."""
    layers = {"W1": ("hidden", "kernel"), "b1": ("hidden", "bias")}
    layers |= {"W2": ("out", "kernel"), "b2": ("out", "bias")}
    return {k: np.asarray(tree[layer][part], np.float64) for k, (layer, part) in layers.items()}


def move(p, direction, step):
    return {k: p[k] + step * direction[k] for k in p}


def inner(p, q):
    return sum((p[k] * q[k]).sum() for k in p)


def length(p):
    return np.sqrt(inner(p, p))


def step_key(seed, count):
    """The documented derivation: the run's key, folded with the step."""
    return jax.random.fold_in(jax.random.key(seed), count)
