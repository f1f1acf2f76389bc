#!/usr/bin/env python3
"""Round-to-nearest to Q4_0, slmc beside llama-quantize: whole processes in turn, medians and the ratio pair by pair.

usage: quantize_speed.py SLMC LLAMA_QUANTIZE MODEL-f16.gguf [--pairs 7]
The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time


def seconds(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slmc")
    parser.add_argument("llama_quantize")
    parser.add_argument("model")
    parser.add_argument("--pairs", type=int, default=7)
    a = parser.parse_args()
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        out = [os.path.join(folder, name) for name in ("ours.gguf", "theirs.gguf")]
        for pair in range(a.pairs + 1):
            one = seconds([a.slmc, "-q", "--threads", "2", "quantize", a.model, "--format", "q4_0", "--out", out[0]])
            other = seconds([a.llama_quantize, a.model, out[1], "q4_0", "2"])
            if pair:  # the first pair warms the page cache
                ours.append(one)
                theirs.append(other)
                print(f"pair {pair}: slmc {one:.3f} s, llama-quantize {other:.3f} s")
    ratios = [x / y for x, y in zip(ours, theirs)]
    print(json.dumps({"slmc_s": statistics.median(ours), "llama_quantize_s": statistics.median(theirs),
                      "ratio_median": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}))


if __name__ == "__main__":
    main()
