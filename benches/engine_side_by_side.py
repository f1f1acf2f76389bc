"""slmc's engine beside llama.cpp's, on the same files, in turn.

    python3 benches/engine_side_by_side.py --slmc target/release/slmc --llama-bench LLAMA_BENCH \
        [--threads 1 2] [--rounds 3] MODEL.gguf...

Prints every run, then medians and ratios, then one line of JSON. With --cpu-time the time is what the process spent on
a core instead of what passed: for one thread on a machine that others use, where the clock says nothing. Of
slmc that needs the example `speed` of slmc-engine in place of the program.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys

PP, TG = 512, 128


def slmc(program, model, threads):
    out = subprocess.run(
        [program, "bench", model, "--json", "--threads", str(threads), "--pp", str(PP), "--tg", str(TG)],
        check=True, capture_output=True, text=True,
    ).stdout
    found = json.loads(out.strip().splitlines()[-1])
    keep = "pp_tokens_per_s tg_tokens_per_s read_gb_per_s read_share int8_gops int8_share kernel"
    return {key: found.get(key) for key in keep.split()}


def llama(program, model, threads):
    out = subprocess.run(
        [program, "-m", model, "-t", str(threads), "-p", str(PP), "-n", str(TG), "-r", "3", "-o", "json"],
        check=True, capture_output=True, text=True,
    ).stdout
    rows = json.loads(out)
    speed = {"pp" if row["n_prompt"] else "tg": row["avg_ts"] for row in rows}
    return {"pp_tokens_per_s": speed["pp"], "tg_tokens_per_s": speed["tg"]}


def cpu_seconds(command):
    """Seconds on a core, of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def per_cpu_second(command_of, n_tokens):
    """Tokens a second of CPU time: a run with many repetitions less a run with one."""
    many, one = 3, 1
    return n_tokens * (many - one) / max(1e-9, cpu_seconds(command_of(many)) - cpu_seconds(command_of(one)))


def slmc_cpu(program, model, _threads):
    pp = lambda n: [program, model, "1", str(PP), "1", str(n)]
    tg = lambda n: [program, model, "1", "0", str(TG), str(n)]
    return {"pp_tokens_per_s": per_cpu_second(pp, PP + 1), "tg_tokens_per_s": per_cpu_second(tg, TG)}


def llama_cpu(program, model, _threads):
    base = [program, "-m", model, "-t", "1", "--no-warmup"]
    pp = lambda n: base + ["-p", str(PP), "-n", "0", "-r", str(n)]
    tg = lambda n: base + ["-p", "0", "-n", str(TG), "-r", str(n)]
    return {"pp_tokens_per_s": per_cpu_second(pp, PP), "tg_tokens_per_s": per_cpu_second(tg, TG)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--slmc", required=True)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--pp", type=int, default=512)
    parser.add_argument("--tg", type=int, default=128)
    args = parser.parse_args()
    global PP, TG
    PP, TG = args.pp, args.tg
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = {line.split(":")[1].strip() for line in file if line.startswith("model name")}
    print(f"{', '.join(names)}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    of_slmc, of_llama = (slmc_cpu, llama_cpu) if args.cpu_time else (slmc, llama)
    results = []
    for model in args.models:
        for threads in [1] if args.cpu_time else args.threads:
            runs = {"slmc": [], "llama.cpp": []}
            for _ in range(args.rounds):
                for name, of, program in [("slmc", of_slmc, args.slmc), ("llama.cpp", of_llama, args.llama_bench)]:
                    runs[name].append(of(program, model, threads))
                    print(os.path.basename(model), threads, name, runs[name][-1], flush=True)
            row = {"model": os.path.basename(model), "threads": threads, "cpu_time": args.cpu_time}
            for what in ["pp_tokens_per_s", "tg_tokens_per_s"]:
                ours, theirs = (statistics.median(run[what] for run in runs[name]) for name in runs)
                row[what] = {"slmc": round(ours, 1), "llama.cpp": round(theirs, 1), "ratio": round(ours / theirs, 2)}
            shares = [run["read_share"] for run in runs["slmc"] if run.get("read_share")]
            row["read_share"] = round(statistics.median(shares), 2) if shares else None
            results.append(row)
            print(row, flush=True)
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    print(json.dumps(results))


if __name__ == "__main__":
    sys.exit(main())
