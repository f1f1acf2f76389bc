"""One step of LoRA in float64 numpy, for the test of slmc-model: loss, gradients of the factors, factors after AdamW.

The forward pass is llama_numpy.py's with `scale * (x A^T) B^T` added (arXiv:2106.09685, section 4.1); each document runs
alone, as a sequence of its own. Gradients are central differences of the loss: nothing is derived by hand. AdamW follows
arXiv:1711.05101, algorithm 2. Weights come from a formula that the test repeats.

usage: lora_check.py OUT.txt    a line each: `loss X`, or `WHAT BLOCK ROLE NUMBER…`
"""

import sys
from pathlib import Path

import numpy as np

from llama_numpy import Decoder, HfFolder

ROLES = {"query": "q", "key": "k", "value": "v", "attn_output": "o", "gate": "gate", "up": "up", "down": "down"}
VOCAB, D, LAYERS, HEADS, KV_HEADS, HEAD, FF, RANK, ALPHA = 11, 8, 2, 2, 1, 4, 12, 2, 3.0
# Two rows of seven inputs: documents of 4 and 4 tokens, then one of 5 and padding. What is learnt from is marked.
DOCUMENTS = [([1, 5, 3, 7], [0, 0, 1, 1]), ([2, 9, 4, 6], [0, 1, 0, 1]), ([8, 10, 3, 1, 5], [0, 0, 1, 0, 1])]
RATE, BETA1, BETA2, EPS, DECAY = 1e-2, 0.9, 0.95, 1e-8, 0.1


def numbers(seed, *shape):
    n = int(np.prod(shape))
    values = 0.4 * np.sin(seed * 12.9898 + np.arange(n) * 78.233)  # larger ones make scores whose softmax cancels
    return values.astype(np.float32).astype(np.float64).reshape(shape)


class Source:
    interleaved, names = False, HfFolder.names
    n_layers, n_heads, n_kv_heads, d_head, eps = LAYERS, HEADS, KV_HEADS, HEAD, 1e-5
    frequencies = 10000.0 ** (-np.arange(0, HEAD, 2) / HEAD)

    def __init__(self):
        shapes = [("embedding", None, (VOCAB, D))]
        for block in range(LAYERS):
            shapes += [
                ("attn_norm", block, (D,)),
                ("q", block, (HEADS * HEAD, D)),
                ("k", block, (KV_HEADS * HEAD, D)),
                ("v", block, (KV_HEADS * HEAD, D)),
                ("o", block, (D, HEADS * HEAD)),
                ("ffn_norm", block, (D,)),
                ("gate", block, (FF, D)),
                ("up", block, (FF, D)),
                ("down", block, (D, FF)),
            ]
        shapes.append(("final_norm", None, (D,)))
        self.tensors = {}
        for seed, (role, block, shape) in enumerate(shapes, 1):
            prefix = "" if block is None else self.names["block"].format(block)
            values = numbers(seed, *shape)
            values = values if len(shape) == 2 else (1 + values.astype(np.float32) / 2).astype(np.float64)
            self.tensors[f"{prefix}{self.names[role]}.weight"] = values

    def read(self, name):
        return self.tensors.get(name)


class Adapted(Decoder):
    def __init__(self, source, factors):
        super().__init__(source)
        self.factors = factors

    def linear(self, role, block, x):
        a, b = self.factors[block, role]
        return super().linear(role, block, x) + ALPHA / RANK * (x @ a.T) @ b.T


def loss(source, factors):
    total, count = 0.0, 0
    for tokens, scored in DOCUMENTS:
        logits = Adapted(source, factors).logits(np.array(tokens))[:-1]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for i, token in enumerate(tokens[1:]):
            if scored[i + 1]:
                total -= log_p[i, token]
                count += 1
    return total / count


def gradient(source, factors, key, which, step=1e-5):
    tensor = factors[key][which]
    found = np.empty_like(tensor)
    for at in np.ndindex(tensor.shape):
        kept = tensor[at]
        tensor[at] = kept + step
        above = loss(source, factors)
        tensor[at] = kept - step
        below = loss(source, factors)
        tensor[at] = kept
        found[at] = (above - below) / (2 * step)
    return found


def adamw(weights, g):
    m, v = (1 - BETA1) * g, (1 - BETA2) * g * g
    m_hat, v_hat = m / (1 - BETA1), v / (1 - BETA2)
    return weights - RATE * (m_hat / (np.sqrt(v_hat) + EPS) + DECAY * weights)


def main():
    source, factors, seed = Source(), {}, 100
    sizes = {"q": (D, HEADS * HEAD), "k": (D, KV_HEADS * HEAD), "v": (D, KV_HEADS * HEAD), "o": (HEADS * HEAD, D)}
    sizes |= {"gate": (D, FF), "up": (D, FF), "down": (FF, D)}
    for block in range(LAYERS):
        for role in ROLES.values():
            d_in, d_out = sizes[role]
            factors[block, role] = [numbers(seed, RANK, d_in), numbers(seed + 1, d_out, RANK)]
            seed += 2
    lines = [f"loss {float(loss(source, factors))!r}"]
    for block in range(LAYERS):
        for name, role in ROLES.items():
            for which, letter in enumerate("ab"):
                g = gradient(source, factors, (block, role), which)
                updated = adamw(factors[block, role][which], g)
                for what, values in [("gradient", g), ("updated", updated)]:
                    lines.append(f"{what}_{letter} {block} {name} " + " ".join(f"{x:.12e}" for x in values.ravel()))
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
