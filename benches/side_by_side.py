"""Runs benchmarks alternately, on a machine that others use too, and keeps only rounds in which they were quiet.

    python benches/side_by_side.py --rounds 3 --patience 1800 'name=command …' 'name=command …'

Each command's last line of stdout is JSON with `tokens_per_s` and `peak_rss_bytes`. Before a run the machine must have
been idle for three seconds; a run during which other processes took more than 10 % of the machine is reported and
made again. The first name is what the others are compared with. The last line of stdout is JSON.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

CORES = os.cpu_count()


def busy_seconds():
    """Processor seconds used by everyone since the machine started."""
    with open("/proc/stat") as stat:
        fields = [int(x) for x in stat.readline().split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def wait_until_idle(deadline):
    while time.time() < deadline:
        before = busy_seconds()
        time.sleep(3)
        if busy_seconds() - before < 0.1 * 3 * CORES:
            return True
    return False


def run(command):
    """The command's JSON, and the share of the machine that others took meanwhile."""
    children = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    busy, own, start = busy_seconds(), children(), time.time()
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command}: {done.stderr[-2000:]}")
    wall = time.time() - start
    others = (busy_seconds() - busy - (children() - own)) / (wall * CORES)
    return json.loads(done.stdout.strip().splitlines()[-1]), max(others, 0.0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=1800, help="seconds until it gives up")
    parser.add_argument("commands", nargs="+", metavar="name=command")
    args = parser.parse_args()
    commands = dict(command.split("=", 1) for command in args.commands)
    deadline = time.time() + args.patience
    results = {name: [] for name in commands}
    while any(len(found) < args.rounds for found in results.values()) and time.time() < deadline:
        for name in sorted(commands, key=lambda name: len(results[name])):
            if not wait_until_idle(deadline):
                break
            result, others = run(commands[name])
            kept = others <= 0.1
            if kept:
                results[name].append(result)
            print(f"{name}: {json.dumps(result)} others {others:.0%}{'' if kept else ' (not kept)'}", flush=True)
    median = lambda name, field: statistics.median(r[field] for r in results[name]) if results[name] else None
    first = next(iter(commands))
    summary = {}
    for name in commands:
        speed, memory = median(name, "tokens_per_s"), median(name, "peak_rss_bytes")
        summary[name] = dict(rounds=len(results[name]), tokens_per_s=speed, peak_rss_bytes=memory)
        if speed and median(first, "tokens_per_s"):
            summary[name]["speed_ratio"] = round(speed / median(first, "tokens_per_s"), 3)
            summary[name]["memory_ratio"] = round(memory / median(first, "peak_rss_bytes"), 3)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
