"""How far two files of logits are apart.

usage: compare_logits.py A.npy B.npy [--max-abs X] [--same-top SHARE]
Prints one JSON document: max_abs and mean_abs of A - B, kld = mean KL(softmax A || softmax B) in nats, same_top = share
of positions with the same argmax, and A's lead (best minus second) where they differ. Exit code 1 past a given bound.
"""

import argparse
import json
import sys

import numpy as np


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


AT_ONCE = 256  # positions in float64: 2,000 of a large vocabulary would take gigabytes


def compare(a, b):
    """Both [n_tokens, vocab_size]."""
    largest, deltas, klds, same, leads = 0.0, [], [], [], []
    for first in range(0, a.shape[0], AT_ONCE):
        x, y = (rows[first : first + AT_ONCE].astype(np.float64) for rows in (a, b))
        delta = np.abs(x - y)
        # Written so that NaN stays.
        largest = np.maximum(largest, delta.max())
        deltas.append(delta.mean(-1))
        p, q = log_softmax(x), log_softmax(y)
        klds.append((np.exp(p) * (p - q)).sum(-1))
        same.append(x.argmax(-1) == y.argmax(-1))
        best = np.partition(x, -2, axis=-1)[:, -2:]
        leads.append((best[:, 1] - best[:, 0])[~same[-1]])
    return {
        "n_tokens": int(a.shape[0]),
        "max_abs": float(largest),
        "mean_abs": float(np.concatenate(deltas).mean()),
        "kld": float(np.concatenate(klds).mean()),
        "same_top": float(np.concatenate(same).mean()),
        "leads_where_top_differs": [float(lead) for lead in np.concatenate(leads)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--max-abs", type=float)
    parser.add_argument("--same-top", type=float)
    arguments = parser.parse_args()
    a, b = (np.load(path, mmap_mode="r") for path in (arguments.a, arguments.b))
    if a.shape != b.shape:
        sys.exit(f"{arguments.a} is {a.shape}, {arguments.b} is {b.shape}")
    result = compare(a, b)
    print(json.dumps(result))
    # Written so that NaN fails too.
    if arguments.max_abs is not None and not result["max_abs"] <= arguments.max_abs:
        sys.exit(1)
    if arguments.same_top is not None and not result["same_top"] >= arguments.same_top:
        sys.exit(1)


if __name__ == "__main__":
    main()
