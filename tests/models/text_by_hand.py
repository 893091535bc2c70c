"""GPT-2 and BERT in NumPy from transformers' arrays, and tiny files of them, written one by one."""

import json
import math

import numpy as np
from safetensors.numpy import save_file

VOCABULARY, CONTEXT, DIM, DEPTH, HEADS, TYPES, CLASSES = 11, 7, 12, 2, 3, 2, 4
SIZES = (VOCABULARY, CONTEXT, DIM, DEPTH, HEADS)

GPT2_CONFIG = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_positions": CONTEXT,
    "n_embd": DIM,
    "n_layer": DEPTH,
    "n_head": HEADS,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
}
BERT_CONFIG = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": DIM,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "type_vocab_size": TYPES,
    "intermediate_size": 4 * DIM,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}


class Drawn:
    """Arrays of one file, larger than initial weights are, so that nothing is nearly linear."""

    def __init__(self, seed=0):
        self.random, self.arrays = np.random.default_rng(seed), {}

    def add(self, name, *shape, around=0.0):
        values = around + 0.5 * self.random.normal(size=shape)
        self.arrays[name] = values.astype(np.float32)

    def linear(self, name, inputs, outputs, *, conv1d=False):
        self.add(f"{name}.weight", *((inputs, outputs) if conv1d else (outputs, inputs)))
        self.add(f"{name}.bias", outputs)

    def norm(self, name):
        self.add(f"{name}.weight", DIM, around=1.0)
        self.add(f"{name}.bias", DIM)


def gpt2_arrays(prefix="transformer."):
    file = Drawn()
    file.add(f"{prefix}wte.weight", VOCABULARY, DIM)
    file.add(f"{prefix}wpe.weight", CONTEXT, DIM)
    for i in range(DEPTH):
        layer = f"{prefix}h.{i}"
        file.norm(f"{layer}.ln_1")
        file.linear(f"{layer}.attn.c_attn", DIM, 3 * DIM, conv1d=True)
        file.linear(f"{layer}.attn.c_proj", DIM, DIM, conv1d=True)
        file.norm(f"{layer}.ln_2")
        file.linear(f"{layer}.mlp.c_fc", DIM, 4 * DIM, conv1d=True)
        file.linear(f"{layer}.mlp.c_proj", 4 * DIM, DIM, conv1d=True)
        # Buffers, which old files have.
        file.arrays[f"{layer}.attn.bias"] = np.tril(np.ones((1, 1, CONTEXT, CONTEXT), np.float32))
        file.arrays[f"{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    file.norm(f"{prefix}ln_f")
    return file.arrays


def bert_arrays(prefix="bert.", heads=True):
    file = Drawn(1)
    for name, rows in (("word", VOCABULARY), ("position", CONTEXT), ("token_type", TYPES)):
        file.add(f"{prefix}embeddings.{name}_embeddings.weight", rows, DIM)
    file.norm(f"{prefix}embeddings.LayerNorm")
    file.arrays[f"{prefix}embeddings.position_ids"] = np.arange(CONTEXT)[None]
    for i in range(DEPTH):
        layer = f"{prefix}encoder.layer.{i}"
        for part in ("query", "key", "value"):
            file.linear(f"{layer}.attention.self.{part}", DIM, DIM)
        file.linear(f"{layer}.attention.output.dense", DIM, DIM)
        file.norm(f"{layer}.attention.output.LayerNorm")
        file.linear(f"{layer}.intermediate.dense", DIM, 4 * DIM)
        file.linear(f"{layer}.output.dense", 4 * DIM, DIM)
        file.norm(f"{layer}.output.LayerNorm")
    file.linear(f"{prefix}pooler.dense", DIM, DIM)
    if heads:
        file.linear("cls.predictions.transform.dense", DIM, DIM)
        file.norm("cls.predictions.transform.LayerNorm")
        file.add("cls.predictions.bias", VOCABULARY)
        file.arrays["cls.predictions.decoder.weight"] = file.arrays[
            f"{prefix}embeddings.word_embeddings.weight"
        ].copy()
        file.linear("cls.seq_relationship", DIM, 2)
        file.linear("classifier", DIM, CLASSES)
    return file.arrays


def write(folder, config, arrays):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays, folder / "model.safetensors")
    return folder


def tokens(rows=2, length=5, seed=2):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length)).astype(np.int32)


# The networks, a row at a time and a head at a time.


def layer_norm(x, arrays, name, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return normal * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q, k, v, allowed):
    """Rows of tokens (t, dim); allowed (t, t)."""
    width, parts = DIM // HEADS, []
    for head in range(HEADS):
        columns = slice(head * width, (head + 1) * width)
        scores = q[:, columns] @ k[:, columns].T / math.sqrt(width)
        parts.append(softmax(np.where(allowed, scores, -np.inf)) @ v[:, columns])
    return np.concatenate(parts, -1)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gpt2(arrays, row, allowed=None):
    """Logits (t, vocabulary) of a row of tokens (t,)."""
    a = {name.removeprefix("transformer."): np.float64(x) for name, x in arrays.items()}
    causal = np.tril(np.ones((len(row), len(row)), bool))
    allowed = causal if allowed is None else causal & allowed

    def linear(x, name):
        return x @ a[f"{name}.weight"] + a[f"{name}.bias"]

    x = a["wte.weight"][row] + a["wpe.weight"][: len(row)]
    for i in range(DEPTH):
        q, k, v = np.split(
            linear(layer_norm(x, a, f"h.{i}.ln_1", 1e-5), f"h.{i}.attn.c_attn"), 3, -1
        )
        x = x + linear(attention(q, k, v, allowed), f"h.{i}.attn.c_proj")
        hidden = linear(layer_norm(x, a, f"h.{i}.ln_2", 1e-5), f"h.{i}.mlp.c_fc")
        x = x + linear(gelu_tanh(hidden), f"h.{i}.mlp.c_proj")
    return layer_norm(x, a, "ln_f", 1e-5) @ a["wte.weight"].T


def bert(arrays, row, allowed=None, types=None):
    """The features (t, dim) of a row of tokens (t,), and its pooled one; allowed (t,)."""
    a = {name.removeprefix("bert."): np.float64(x) for name, x in arrays.items()}
    allowed = np.ones(len(row), bool) if allowed is None else np.asarray(allowed) != 0
    types = np.zeros(len(row), int) if types is None else types

    def linear(x, name):
        return x @ a[f"{name}.weight"].T + a[f"{name}.bias"]

    x = a["embeddings.word_embeddings.weight"][row]
    x = x + a["embeddings.position_embeddings.weight"][: len(row)]
    x = x + a["embeddings.token_type_embeddings.weight"][types]
    x = layer_norm(x, a, "embeddings.LayerNorm", 1e-12)
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}"
        q, k, v = (linear(x, f"{layer}.attention.self.{p}") for p in ("query", "key", "value"))
        y = linear(attention(q, k, v, allowed[None]), f"{layer}.attention.output.dense")
        x = layer_norm(x + y, a, f"{layer}.attention.output.LayerNorm", 1e-12)
        y = linear(gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = layer_norm(x + y, a, f"{layer}.output.LayerNorm", 1e-12)
    return x, np.tanh(linear(x[0], "pooler.dense"))


def masked_logits(arrays, hidden):
    a = {name: np.float64(x) for name, x in arrays.items()}
    name = "cls.predictions.transform"
    hidden = gelu(hidden @ a[f"{name}.dense.weight"].T + a[f"{name}.dense.bias"])
    hidden = layer_norm(hidden, a, f"{name}.LayerNorm", 1e-12)
    return hidden @ a["bert.embeddings.word_embeddings.weight"].T + a["cls.predictions.bias"]
