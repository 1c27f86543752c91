"""The embedded chain: durable ERC-20 transfers over JSON-RPC, and how long a chain of 10,000 blocks takes to open.

Usage: chain.py PATH_OF_ASSAY [--transfers N] [--blocks N] [--runs N]. The program that measures is the example
`bench_chain` of assay-chain, which the script builds. Records medians in bench/record/chain.json.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path

import measure

CARGO = ["cargo", "run", "--release", "--locked", "--quiet", "--package", "assay-chain", "--example", "bench_chain", "--"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("assay", type=Path)
    parser.add_argument("--transfers", type=int, default=8000)
    parser.add_argument("--blocks", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    rates, opens, raw = [], [], []
    for number in range(args.runs):
        # The long chain once: it takes the longest and varies the least.
        blocks = args.blocks if number == 0 else 1
        one = json.loads(
            subprocess.check_output([*CARGO, str(args.transfers), str(blocks)], cwd=measure.ROOT, text=True)
        )
        rates.append(one["erc20_transfers_over_rpc"]["per_second"])
        if number == 0:
            opens, raw = one["reopening"]["open_seconds"], one
    results = {
        "what": "ERC-20 transfers a second from signed bytes to a durable block over HTTP JSON-RPC, 16 connections;"
        " seconds to open a chain of so many blocks, checksums included",
        "load_average": os.getloadavg()[0],
        "transfers_per_second": measure.summary(rates),
        "open_seconds": measure.summary(opens),
        "first_run": raw,
    }
    print(json.dumps(results, indent=2))
    measure.record("chain", results)


if __name__ == "__main__":
    main()
