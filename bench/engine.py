"""Prefill and decode tokens/s against llama.cpp: one model, one run, interleaved, the same thread counts.

Usage: engine.py PATH_OF_ASSAY. Makes a random 0.37 B-parameter Q8_0 model in a temporary folder (0.4 GB). llama.cpp is
the PyPI source distribution llama-cpp-python, compiled for this machine. Each round runs both, one after the other;
the ratio is formed pair by pair, so a drift of the machine's speed cancels.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import record, summary

HERE = Path(__file__).parent
ROUNDS = 5
N_PROMPT, N_GEN = 512, 64
RATES = ("prefill_tokens_per_s", "decode_tokens_per_s")


def one_line(command):
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(assay, model, threads):
    rounds = []
    for _ in range(ROUNDS):
        ours = one_line([
            assay, "bench", model, "--json", "--reps", "1", "--threads", str(threads), "--prompt", str(N_PROMPT),
            "--gen", str(N_GEN),
        ])
        peer = one_line([sys.executable, HERE / "llama_speed.py", model, str(threads), str(N_PROMPT), str(N_GEN)])
        rounds.append((ours, peer))
        print(f"{threads} thread(s): " + ", ".join(
            f"{rate.split('_')[0]} {ours[rate]:.1f} against {peer[rate]:.1f}" for rate in RATES
        ), flush=True)
    result = {"isa": rounds[0][0]["isa"]}
    for rate in RATES:
        result[rate] = {
            "assay": summary([ours[rate] for ours, _ in rounds]),
            "llama.cpp": summary([peer[rate] for _, peer in rounds]),
            "ratio": summary([ours[rate] / peer[rate] for ours, peer in rounds]),
        }
    return result


def main():
    assay = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/random.gguf"
        subprocess.run([sys.executable, HERE / "random_model.py", model], check=True)
        record("engine", {
            "model": f"Llama shape, 0.37 B parameters, Q8_0, {os.path.getsize(model)} bytes, random weights",
            "prompt_tokens": N_PROMPT,
            "decoded_tokens": N_GEN,
            "peer": "llama-cpp-python 0.3.36, compiled for this machine, n_batch 512",
            "threads": {str(threads): compare(assay, model, threads) for threads in (1, 2)},
        })


if __name__ == "__main__":
    main()
