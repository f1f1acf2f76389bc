"""Golden values for slmc-compress: the down projection refitted to fewer channels, by numpy's lstsq.

    compress_check.py write FOLDER      write compensate.json

Where slmc solves normal equations with a Gram matrix, this solves the tall system itself: the rows are the tokens'
kept activations and, below them, sqrt(lambda) times the identity; the right side is what the removed channels gave.
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
            for c in cases:
                print(f"{c['name']}: error {c['error']:.6f} of {c['error_dropped']:.6f} when dropped")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
