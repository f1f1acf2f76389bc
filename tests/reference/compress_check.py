"""Golden values for slmc-compress, by numpy.

    compress_check.py write FOLDER      write compensate.json, scales.json and rotation.json

compensate: the down projection refitted to fewer channels. Where slmc solves normal equations with a Gram matrix, this solves
the tall system itself: the rows are the tokens' kept activations and, below them, sqrt(lambda) times the identity; the right side
is what the removed channels gave.

scales: AWQ's search (arXiv:2306.00978, section 3.2, equations 4 and 5): scales are powers of the activations' magnitude, each of 21
exponents is tried, and the error is that of the outputs themselves, token by token.

rotation: Q = diag(s) (C (x) H) / sqrt(p) as the whole matrix, H by Kronecker products, C by its definition.

Needs numpy.
"""

import json
import sys
from pathlib import Path

import numpy as np

SEED = 7


def refit(rng: np.random.Generator, name: str, n_tokens: int, d_ff: int, rank: int, damping: float) -> dict:
    d_model, n_kept = 5, d_ff * 5 // 8
    # Channels that share causes, with heavy tails as after a gated activation.
    activations = rng.standard_t(4, (n_tokens, rank)) @ rng.normal(0, 1, (rank, d_ff))
    activations += 0.3 * rng.normal(0, 1, (n_tokens, d_ff))
    activations *= np.exp(rng.normal(0, 0.5, d_ff))
    activations = activations.astype(np.float32)
    weight = rng.normal(0, 0.1, (d_model, d_ff)).astype(np.float32)
    kept = np.sort(rng.permutation(d_ff)[:n_kept])
    removed = np.setdiff1d(np.arange(d_ff), kept)

    a, w = activations.astype(np.float64), weight.astype(np.float64)
    lam = damping * np.mean(np.sum(a[:, kept] ** 2, axis=0))
    lost = a[:, removed] @ w[:, removed].T
    tall = np.vstack([a[:, kept], np.sqrt(lam) * np.eye(n_kept)])
    right = np.vstack([lost, np.zeros((n_kept, d_model))])
    shift = np.linalg.lstsq(tall, right, rcond=None)[0].T
    fitted = w[:, kept] + shift
    full = a @ w.T
    error = np.sum((full - a[:, kept] @ fitted.T) ** 2) / n_tokens
    dropped = np.sum(lost**2) / n_tokens
    assert error <= dropped
    return {
        "name": name, "damping": damping, "kept": kept.tolist(),
        "activations": [[float(x) for x in row] for row in activations],
        "weight": [[float(x) for x in row] for row in weight],
        "fitted": fitted.tolist(), "energy": float(np.sum(full**2) / n_tokens),
        "error_dropped": float(dropped), "error": float(error),
    }


def rounded(weight: np.ndarray) -> np.ndarray:
    """To the nearest of fifteen steps of each row's largest; no weight may lie near the middle of two."""
    step = np.abs(weight).max(axis=1, keepdims=True) / 7
    middle = np.abs(weight / step - np.floor(weight / step) - 0.5)
    assert middle.min() > 1e-5, f"a weight lies {middle.min()} from a middle: take another seed"
    return np.rint(weight / step) * step


def scale_search(rng: np.random.Generator, name: str, n_rows: int, n: int, tied: list[int] | None) -> dict:
    inputs = rng.normal(0, 1, (64, n)) * np.exp(rng.normal(0, 1.2, n))
    inputs = inputs.astype(np.float32)
    weight = rng.normal(0, 0.1, (n_rows, n)).astype(np.float32)
    costs = rng.uniform(0.5, 2.0, n_rows).astype(np.float32)
    x, w = inputs.astype(np.float64), weight.astype(np.float64)
    squares = np.mean(x**2, axis=0)
    if tied:
        sums = np.bincount(tied, weights=squares)
        squares = sums[tied]
    tried = []
    for step in range(21):
        s = np.sqrt(squares) ** (step / 20)
        s /= np.exp(np.mean(np.log(s)))
        y = x @ w.T - (x / s) @ rounded(w * s).T
        tried.append((float(np.sum(np.mean(y**2, axis=0) * costs)), step / 20, s))
    error, exponent, s = min(tried, key=lambda one: one[0])
    return {
        "name": name, "tied": tied, "inputs": inputs.astype(float).tolist(), "weight": weight.astype(float).tolist(),
        "costs": costs.astype(float).tolist(), "exponent": exponent, "scales": s.tolist(),
        "error_before": tried[0][0], "error": error,
    }


def split_mix(seed: int, i: int) -> int:
    """Steele, Lea and Flood 2014: number i of a seed's."""
    mask = (1 << 64) - 1
    z = (seed + (i + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def rotation(n: int, seed: int) -> dict:
    p = n & -n
    m = n // p
    hadamard = np.ones((1, 1))
    while len(hadamard) < p:
        hadamard = np.kron(np.array([[1, 1], [1, -1]]), hadamard)
    angles = 2 * np.pi * np.outer(np.arange(m), np.arange(m)) / m
    hartley = (np.cos(angles) + np.sin(angles)) / np.sqrt(m)
    signs = np.array([-1.0 if split_mix(seed, i) >> 63 else 1.0 for i in range(n)])
    q = signs[:, None] * np.kron(hartley, hadamard) / np.sqrt(p)
    assert np.abs(q @ q.T - np.eye(n)).max() < 1e-12
    return {"n": n, "seed": seed, "matrix": q.tolist()}


def main() -> None:
    match sys.argv[1:]:
        case ["write", folder]:
            rng = np.random.default_rng(SEED)
            cases = [
                refit(rng, "plain least squares", 60, 16, 4, 0.0),
                refit(rng, "damped", 60, 16, 4, 0.01),
                refit(rng, "fewer tokens than channels", 8, 24, 3, 0.05),
            ]
            text = json.dumps(cases, separators=(",", ":"))
            (Path(folder) / "compensate.json").write_text(text + "\n")
            searches = [
                scale_search(rng, "every channel by itself", 12, 24, None),
                scale_search(rng, "pairs of channels together", 10, 16, [i % 8 for i in range(16)]),
            ]
            text = json.dumps(searches, separators=(",", ":"))
            (Path(folder) / "scales.json").write_text(text + "\n")
            rotations = [rotation(n, seed) for n, seed in [(8, 1), (12, 7), (15, 3)]]
            text = json.dumps(rotations, separators=(",", ":"))
            (Path(folder) / "rotation.json").write_text(text + "\n")
            for s in searches:
                print(f"{s['name']}: exponent {s['exponent']}, error {s['error']:.6f} of {s['error_before']:.6f}")
            for c in cases:
                print(f"{c['name']}: error {c['error']:.6f} of {c['error_dropped']:.6f} when dropped")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
