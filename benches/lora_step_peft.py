#!/usr/bin/env python3
"""LoRA's training step beside peft's: rank 16 on every projection of a Llama, f32, in turn on one machine.

    python3 benches/lora_step_peft.py --slmc target/release/slmc --base FOLDER --text FILE [--rounds 3] [--steps 6] [--threads 2]

BASE is a Hugging Face folder; every position of a text is learnt from, in batches of 4 × 256. Each round runs slmc (float base, then a
base in Q4_0), then peft, each in a process of its own; the last line is JSON: medians of tokens a second, largest peak memory.
needs: torch, transformers, peft, in the Python that runs this.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

BATCH, LENGTH, RANK = 4, 256, 16


def with_peft(base, text, steps, threads):
    """The child's part: prints one JSON line."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    with open(text, encoding="utf-8") as file:
        ids = tokenizer(file.read(8 * BATCH * LENGTH * steps), return_tensors="pt").input_ids[0]
    seconds = []
    for step in range(steps):
        batch = ids[step * BATCH * LENGTH : (step + 1) * BATCH * LENGTH].view(BATCH, LENGTH)
        begin = time.perf_counter()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    # The first steps take memory and compile.
    print(json.dumps({"tokens_per_s": BATCH * LENGTH / statistics.median(seconds[2:])}))


def with_slmc(program, base, text, steps, threads, packed):
    with tempfile.TemporaryDirectory() as folder:
        out, documents = (os.path.join(folder, name) for name in ("adapter", "documents.jsonl"))
        # Documents longer than a row: each is cut to a whole one.
        with open(text, encoding="utf-8") as file, open(documents, "w", encoding="utf-8") as to:
            for _ in range(2 * BATCH * (steps + 2)):
                to.write(json.dumps({"text": file.read(8 * LENGTH)}) + "\n")
        command = [program, "--json", "--seed", "1", "--threads", str(threads), "lora", "train", "--base", base, "--data", documents, "--out", out]
        command += ["--rank", str(RANK), "--steps", str(steps), "--set", f"batch_size={BATCH}", "--set", f"seq_len={LENGTH}"]
        command += ["--set", "eval_every=0", "--set", "eval_batches=1"]
        command += ["--base-format", "q4_0"] if packed else []
        subprocess.run(command, check=True, capture_output=True)
        with open(out + ".metrics.jsonl", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    speeds = [row["tokens_per_s"] for row in rows if "tokens_per_s" in row]
    return {"tokens_per_s": statistics.median(speeds[2:])}


def measured(run):
    """What `run` gives, and the peak memory of the child that it starts: in a process of its own, which counts its children."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        found = run()
        found["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return json.loads(pipe.read())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slmc")
    parser.add_argument("--base", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peft-only", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.peft_only:
        return with_peft(a.base, a.text, a.steps, a.threads)

    def peft():
        command = [sys.executable, __file__, "--peft-only", "--base", a.base, "--text", a.text, "--steps", str(a.steps)]
        command += ["--threads", str(a.threads)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1])

    runs = {
        "slmc LoRA": lambda: with_slmc(a.slmc, a.base, a.text, a.steps, a.threads, False),
        "slmc QLoRA": lambda: with_slmc(a.slmc, a.base, a.text, a.steps, a.threads, True),
        "peft LoRA": peft,
    }
    found = {name: [] for name in runs}
    for number in range(a.rounds):
        for name, run in runs.items():
            found[name].append(measured(run))
            print(f"round {number}, {name}: {found[name][-1]}", flush=True)
    summary = {
        name: {
            "tokens_per_s": round(statistics.median(row["tokens_per_s"] for row in rows), 1),
            "peak_mb": round(max(row["peak_bytes"] for row in rows) / 1e6),
        }
        for name, rows in found.items()
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
