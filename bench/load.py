"""How a large model starts: time to the first token and the most resident memory, at the first start and later ones.

Usage: load.py ASSAY [--shape 7b] [--runs N] [--dir DIR]. Writes a Q4_K model of the shape with random weights into DIR (a
new folder below /var/tmp if not given: 9 GB for 7b with its prepared weights) and runs one prompt: without a cache, with a
cache that is not there yet, and N times with the one that is. The output must be the same tokens each time. "cold" starts
have the file in the system's memory as the others do: what is measured is the program, not the disk.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import measure
import random_model

PROMPT, GEN = "Hello", 4
# What a program may have besides weights and keys: the aim.
MARGIN = 200_000_000


def start(assay, model, *more):
    """One start: wall time, CPU time and most resident memory of the process; load and prefill as it says."""
    began = time.monotonic()
    command = [assay, "run", model, PROMPT, "--raw", "--max-tokens", str(GEN), "--json", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    answer = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{command} ended with {status}")
    timings = answer["timings"]
    return {
        "wall_s": round(time.monotonic() - began, 3),
        # From the start of the program: it measures loading and the prompt, and not its own start and end.
        "first_token_s": round((timings["load_ms"] + timings["prefill_ms"]) / 1e3, 3),
        "load_s": round(timings["load_ms"] / 1e3, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "resident_bytes_max": usage.ru_maxrss * 1024,
        "tokens": answer["tokens"],
    }


def run(assay, model, runs):
    """Starts of one model, in the order cold, warm, in memory."""
    cache = model.parent / ".assay-cache"
    shutil.rmtree(cache, ignore_errors=True)
    show = json.loads(subprocess.check_output([assay, "show", model, "--json"]))
    # The prompt and the output fit into one block of 256 positions.
    kv_bytes = show["kv_bytes_per_1000_tokens"] // 4
    starts = {
        "cold": [start(assay, model)],
        "warm": [start(assay, model) for _ in range(runs)],
        "in_memory": [start(assay, model, "--no-cache")],
    }
    tokens = [one.pop("tokens") for kind in starts.values() for one in kind]
    if any(other != tokens[0] for other in tokens):
        raise SystemExit(f"the starts gave different tokens: {tokens}")
    numbers = {kind: {key: measure.summary([one[key] for one in all]) for key in all[0]} for kind, all in starts.items()}
    allowed = show["bytes"] + kv_bytes + MARGIN
    most = max(one["resident_bytes_max"]["max"] for one in numbers.values())
    return {
        "file_bytes": show["bytes"],
        "parameters": show["parameters"],
        "prepared_bytes": sum(file.stat().st_size for file in cache.glob("*.weights")),
        "kv_bytes": kv_bytes,
        "resident_bytes_allowed": allowed,
        "resident_bytes_max": most,
        "starts": numbers,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("assay", type=Path)
    parser.add_argument("--shape", default="7b", choices=random_model.SHAPES)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dir", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as fresh:
        model = (args.dir or Path(fresh)) / f"{args.shape}-q4_k.gguf"
        if not model.exists():
            random_model.write(model, args.shape, "Q4_K")
        results = {"shape": args.shape, "load_average": os.getloadavg()[0], **run(args.assay.resolve(), model, args.runs)}
    print(json.dumps(results, indent=2))
    measure.record("load", results)


if __name__ == "__main__":
    main()
