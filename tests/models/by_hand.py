"""The networks once more, in NumPy and in inference mode, from their published definitions."""

import numpy as np
from scipy.special import erf, softmax


def relu(x):
    return np.maximum(x, 0)


def conv(layer, x, stride=1):
    """Sums a product for each pixel of the kernel; padded by half the kernel."""
    kernel = layer["kernel"]
    size, padding = len(kernel), len(kernel) // 2
    rows, columns = (-(-n // stride) for n in x.shape[1:3])
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return sum(
        x[:, i : i + stride * rows : stride, j : j + stride * columns : stride] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


def batch_norm(layer, statistics, x):
    standard = (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
    return standard * layer["scale"] + layer["bias"]


def layer_norm(layer, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * layer["scale"] + layer["bias"]


def linear(layer, x):
    return x @ layer["kernel"] + layer["bias"]


def _shortcut(p, s, x, stride):
    if "projection" not in p:
        return x
    return batch_norm(p["projection_norm"], s["projection_norm"], conv(p["projection"], x, stride))


def basic_block(p, s, x, stride):
    y = relu(batch_norm(p["norm1"], s["norm1"], conv(p["conv1"], x, stride)))
    y = batch_norm(p["norm2"], s["norm2"], conv(p["conv2"], y))
    return relu(_shortcut(p, s, x, stride) + y)


def bottleneck(p, s, x, stride):
    y = relu(batch_norm(p["norm1"], s["norm1"], conv(p["conv1"], x)))
    y = relu(batch_norm(p["norm2"], s["norm2"], conv(p["conv2"], y, stride)))
    y = batch_norm(p["norm3"], s["norm3"], conv(p["conv3"], y))
    return relu(_shortcut(p, s, x, stride) + y)


def pre_activation_block(p, s, x, stride):
    activated = relu(batch_norm(p["norm1"], s["norm1"], x))
    y = relu(batch_norm(p["norm2"], s["norm2"], conv(p["conv1"], activated, stride)))
    shortcut = conv(p["projection"], activated, stride) if "projection" in p else x
    return shortcut + conv(p["conv2"], y)


def maxima(x):
    """Of 3×3 pixels in steps of 2, borders padded."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = ((n - 1) // 2 for n in x.shape[1:3])
    windows = [
        x[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for i in range(3) for j in range(3)
    ]
    return np.max(windows, axis=0)


def resnet(p, s, images, block, strides, *, stem="cifar"):
    """`strides`: one for each block."""
    x = conv(p["stem"], images, 2 if stem == "imagenet" else 1)
    x = relu(batch_norm(p["stem_norm"], s["stem_norm"], x))
    x = maxima(x) if stem == "imagenet" else x
    for i, stride in enumerate(strides):
        x = block(p["blocks"][i], s["blocks"][i], x, stride)
    return linear(p["head"], x.mean((1, 2)))


def wide_resnet(p, s, images, strides):
    x = conv(p["stem"], images)
    for i, stride in enumerate(strides):
        x = pre_activation_block(p["blocks"][i], s["blocks"][i], x, stride)
    x = relu(batch_norm(p["norm"], s["norm"], x))
    return linear(p["head"], x.mean((1, 2)))


def attention(p, x, heads):
    """Head by head: its queries, keys and values are columns of thirds of one product."""
    dim = x.shape[-1]
    size = dim // heads
    queries, keys, values = np.split(linear(p["qkv"], x), 3, axis=-1)
    out = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = queries[..., own] @ keys[..., own].swapaxes(-1, -2) / np.sqrt(size)
        out.append(softmax(scores, axis=-1) @ values[..., own])
    return linear(p["proj"], np.concatenate(out, axis=-1))


def deit(p, images, patch, heads):
    n, height, width, _ = images.shape
    tokens = [np.broadcast_to(p["class_token"], (n, 1, len(p["class_token"])))]
    for i in range(0, height, patch):
        for j in range(0, width, patch):
            window = images[:, i : i + patch, j : j + patch].reshape(n, -1)
            kernel = p["patches"]["kernel"].reshape(window.shape[-1], -1)
            tokens.append((window @ kernel + p["patches"]["bias"])[:, None])
    x = np.concatenate(tokens, axis=1) + p["positions"]
    for i in range(len(p["blocks"])):
        block = p["blocks"][i]
        x = x + attention(block["attention"], layer_norm(block["norm1"], x), heads)
        hidden = linear(block["fc1"], layer_norm(block["norm2"], x))
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        x = x + linear(block["fc2"], hidden)
    return linear(p["head"], layer_norm(p["norm"], x)[:, 0])
