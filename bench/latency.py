"""What running streams wait for a token, alone and while a long prompt is prefilled beside them.

Usage: latency.py PATH_OF_ASSAY [--model GGUF] [--prompt N] [--threads N ..] [--streams N ..] [--rounds N]. Without a
model it makes one of 0.37 B parameters. Each round starts an engine, lets the streams run, then submits the prompt; the
ratio of a round is between its own two percentiles.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from engine import Program
from measure import record, summary

HERE = Path(__file__).parent
PERCENTILES = ("p50", "p99")
SEEN = ("undisturbed_ms", "beside_prefill_ms")


def measure(assay, threads, streams, prompt, rounds):
    turns = [
        assay.ask(measure="latency", threads=threads, concurrency=streams, prompt=prompt) for _ in range(rounds)
    ]
    result = {"isa": turns[0]["isa"], "threads": threads, "streams": streams}
    for key in SEEN:
        result[key] = {p: summary([turn[key][p] for turn in turns]) for p in PERCENTILES}
    result["ratio"] = {p: summary([turn[SEEN[1]][p] / turn[SEEN[0]][p] for turn in turns]) for p in PERCENTILES}
    result["first_token_ms"] = summary([turn["first_token_ms"] for turn in turns])
    print(f"{threads} thread(s), {streams} stream(s): " + ", ".join(
        f"{p} {result[SEEN[0]][p]['median']:.1f} ms alone, {result[SEEN[1]][p]['median']:.1f} ms beside"
        f" ({result['ratio'][p]['median']:.2f}x)" for p in PERCENTILES
    ) + f", first token after {result['first_token_ms']['median'] / 1e3:.1f} s", flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assay", type=os.path.abspath)
    parser.add_argument("--model")
    parser.add_argument("--prompt", type=int, default=4000)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or f"{folder}/random.gguf"
        if not args.model:
            subprocess.run([sys.executable, HERE / "random_model.py", model, "0.35b", "Q8_0"], check=True)
        assay = Program([args.assay, "bench", model, "--turns"])
        cells = [measure(assay, t, s, args.prompt, args.rounds) for t in args.threads for s in args.streams]
        assay.close()
    if args.model or args.rounds < 5:
        print("not recorded: that takes the model made here and 5 rounds", file=sys.stderr)
    else:
        record("latency", {"model": "0.35b Q8_0, random weights", "prompt_tokens": args.prompt, "cells": cells})


if __name__ == "__main__":
    main()
