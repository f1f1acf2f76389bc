#!/usr/bin/env python3
"""Power of the quality gate over texts: how often a sound 8-bit model passes, and each of three damaged ones fails with the damaged
tensor blamed first. Each run has a text of its own, cut out of the texts given. Damaged models fail by their weights; the chunks
that they are measured on are for the blame.

usage: gate_power.py SLMC BASELINE MODEL-q8_0.gguf TEXT… [--runs 20] [--chunks 10] [--damaged-chunks 2] [--ctx 512] [--block 14]
needs: pip install numpy gguf. The last line is JSON.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader

GATE = """[data]
path = "{text}"
ctx = {ctx}
chunks = {chunks}

[gate]
perplexity = {{ increase_at_most = 0.01 }}
damaged = "forbid"
"""
BLOCK_BYTES, BLOCK_WEIGHTS = 34, 32


def matrices(path, block):
    """Of a block: its down projection and its query projection, as (name in the report, offset, [rows, columns])."""
    found = {}
    for tensor in GGUFReader(path).tensors:
        for gguf_name, name in [("ffn_down", "down"), ("attn_q", "query")]:
            if tensor.name == f"blk.{block}.{gguf_name}.weight":
                assert tensor.tensor_type == GGMLQuantizationType.Q8_0, f"{tensor.name} is not in 8 bits"
                columns, rows = (int(n) for n in tensor.shape)
                found[name] = (f"block {block} {name}", int(tensor.data_offset), (rows, columns))
    return found


def damage(model, out, kind, block):
    """Writes a damaged copy; the name of the damaged tensor."""
    shutil.copyfile(model, out)
    name, offset, (rows, columns) = matrices(model, block)["query" if kind == "two bits" else "down"]
    n_bytes = rows * columns // BLOCK_WEIGHTS * BLOCK_BYTES
    data = np.memmap(out, dtype=np.uint8, mode="r+", offset=offset, shape=(n_bytes,))
    blocks = data.reshape(rows, columns // BLOCK_WEIGHTS, BLOCK_BYTES)
    if kind == "scales times 1.05":
        scales = blocks[:, :, :2].copy().view(np.float16)
        blocks[:, :, :2] = (scales.astype(np.float32) * 1.05).astype(np.float16).view(np.uint8)
    elif kind == "two rows exchanged":
        first = blocks[3].copy()
        blocks[3] = blocks[40]
        blocks[40] = first
    else:
        levels = blocks[:, :, 2:].copy().view(np.int8).astype(np.float32)
        # Four levels a block: -3, -1, 1 and 3 thirds of its largest number.
        step = 127.0 / 3.0
        coarse = np.clip(2.0 * np.round((levels / step - 1.0) / 2.0) + 1.0, -3.0, 3.0) * step
        blocks[:, :, 2:] = np.round(coarse).astype(np.int8).view(np.uint8)
    data.flush()
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slmc")
    parser.add_argument("baseline")
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--damaged-chunks", type=int, default=2)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--block", type=int, default=14)
    a = parser.parse_args()
    texts = [open(path, encoding="utf8").read() for path in a.texts]
    draw = random.Random(1)
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {"sound": (a.model, None)}
        for kind in ["scales times 1.05", "two rows exchanged", "two bits"]:
            path = os.path.join(folder, kind.replace(" ", "-") + ".gguf")
            models[kind] = (path, damage(a.model, path, kind, a.block))
        for run in range(a.runs):
            text = texts[run % len(texts)]
            # Enough for the chunks at two characters a token.
            length = a.chunks * a.ctx * 8
            start = draw.randrange(max(1, len(text) - length))
            sample, gate = os.path.join(folder, "text.txt"), os.path.join(folder, "gate.toml")
            open(sample, "w", encoding="utf8").write(text[start:start + length])
            for kind, (model, name) in models.items():
                chunks = a.damaged_chunks if name else a.chunks
                open(gate, "w", encoding="utf8").write(GATE.format(text=sample, ctx=a.ctx, chunks=chunks))
                command = [a.slmc, "--json", "-q", "gate", "--config", gate, "--model", model, "--baseline", a.baseline]
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                report = json.loads(done.stdout)
                first = report["blame"][0]["tensor"] if report["blame"] else None
                count = counts.setdefault(kind, {"runs": 0, "passed": 0, "failed": 0, "blamed_first": 0})
                count["runs"] += 1
                count["passed"] += done.returncode == 0
                count["failed"] += done.returncode == 1
                count["blamed_first"] += name is not None and first == name
                measured = {check["name"]: check["measured"] for check in report["checks"]}
                print(f"run {run}, {kind}: exit code {done.returncode}, perplexity "
                      f"{measured.get('perplexity.increase_at_most')}, first blamed {first}", flush=True)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
