"""One training step in PyTorch, the counterpart of slmc-model's `train_step` example: same shapes, AdamW, f32.

    python benches/train_step_pytorch.py small|smollm2 [--steps 10] [--threads 2]

The last line of stdout is JSON: tokens_per_s (median of the steps after two warm-up steps), peak_rss_bytes, threads.
"""

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

SHAPES = {
    "small": dict(vocab=4096, d=288, layers=6, heads=6, kv=6, ff=768),
    "smollm2": dict(vocab=49152, d=576, layers=30, heads=9, kv=3, ff=1536),
}


class Norm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return F.rms_norm(x, self.gain.shape, self.gain, 1e-5)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        d, h = s["d"], s["d"] // s["heads"]
        self.s, self.h = s, h
        self.n1, self.n2 = Norm(d), Norm(d)
        self.q, self.o = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.k, self.v = nn.Linear(d, s["kv"] * h, bias=False), nn.Linear(d, s["kv"] * h, bias=False)
        self.gate, self.up = nn.Linear(d, s["ff"], bias=False), nn.Linear(d, s["ff"], bias=False)
        self.down = nn.Linear(s["ff"], d, bias=False)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        n = self.n1(x)
        heads = lambda y, n_heads: y.view(b, t, n_heads, self.h).transpose(1, 2)
        q = rotate(heads(self.q(n), self.s["heads"]), cos, sin)
        k = rotate(heads(self.k(n), self.s["kv"]), cos, sin)
        v = heads(self.v(n), self.s["kv"])
        mix = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.s["kv"] != self.s["heads"])
        x = x + self.o(mix.transpose(1, 2).reshape(b, t, d))
        n = self.n2(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))


class Model(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.embedding = nn.Embedding(s["vocab"], s["d"])
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s["layers"]))
        self.norm = Norm(s["d"])
        self.h = s["d"] // s["heads"]

    def forward(self, tokens):
        angles = torch.outer(torch.arange(tokens.shape[1]), 10000.0 ** (-torch.arange(0, self.h, 2) / self.h))
        cos, sin = angles.cos(), angles.sin()
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x) @ self.embedding.weight.T


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    s = SHAPES[args.shape]
    model = Model(s)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    batch, seq, times = 4, 256, []
    for step in range(args.steps + 2):
        tokens = torch.randint(s["vocab"], (batch, seq + 1))
        start = time.perf_counter()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        value = loss.item()
        times.append(time.perf_counter() - start)
        print(f"step {step} loss {value:.4f} {times[-1]:.4f} s", flush=True)
    tokens_per_s = batch * seq / statistics.median(times[2:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(tokens_per_s=round(tokens_per_s, 1), peak_rss_bytes=peak, threads=args.threads)))


if __name__ == "__main__":
    main()
