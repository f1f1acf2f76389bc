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


def compare(a, b):
    """Both [n_tokens, vocab_size]."""
    delta = np.abs(a - b)
    p, q = log_softmax(a), log_softmax(b)
    same = a.argmax(-1) == b.argmax(-1)
    best = np.partition(a, -2, axis=-1)[:, -2:]
    leads = (best[:, 1] - best[:, 0])[~same]
    return {
        "n_tokens": int(a.shape[0]),
        "max_abs": float(delta.max()),
        "mean_abs": float(delta.mean()),
        "kld": float((np.exp(p) * (p - q)).sum(-1).mean()),
        "same_top": float(same.mean()),
        "leads_where_top_differs": [float(lead) for lead in leads],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--max-abs", type=float)
    parser.add_argument("--same-top", type=float)
    arguments = parser.parse_args()
    a, b = (np.load(path).astype(np.float64) for path in (arguments.a, arguments.b))
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
