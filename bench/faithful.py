"""The engine against llama.cpp on the same files: perplexity, distance of the distributions, greedy text.

Usage: faithful.py PATH_OF_ASSAY, which is not used: the engine runs as its example `logits`. A minute of one core.
Exits with an error if a goal is missed.

The model is assay-tiny, rewritten in every format by llama.cpp's own quantizer. The text is 20 kB of documents as it was
trained on, from a seed that training never used: what a model knows nothing of measures nothing. It is cut into windows,
each computed from an empty context by both; every token of a window but its first is scored. The K formats are mixed as
in published files: in a Q4_K_M file some matrices are Q6_K.
"""

import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from llama_cpp import Llama

from measure import ROOT, record

sys.path.insert(0, str(ROOT / "models/train"))
import corpus  # noqa: E402

SOURCE = ROOT / "models/assay-tiny/assay-tiny-f16.gguf"
FORMATS = {
    "F32": llama_cpp.LLAMA_FTYPE_ALL_F32, "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q5_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M, "Q6_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
}  # fmt: skip
TEXT_BYTES, TEXT_SEED = 20_000, 20_261_120
WINDOW = 256
N_PROMPTS, N_GREEDY = 12, 64
# The goals: perplexity within this share, and as many equal greedy tokens on F32.
RATIO_MAX, GREEDY_MIN = 0.005, 50


def text():
    rng = random.Random(TEXT_SEED)
    documents = ""
    while len(documents.encode()) < TEXT_BYTES:
        documents += corpus.document(rng)
    return documents.encode()[:TEXT_BYTES].decode(errors="ignore")


def prompts():
    """Requests for stories, whose answers are longer than what is compared."""
    rng = random.Random(TEXT_SEED)
    asks = [corpus.story_exchange(rng)[0] for _ in range(N_PROMPTS)]
    return [f"{corpus.USER}{ask}{corpus.ASSISTANT}" for ask in asks]


def quantize(out, ftype):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = ftype, 1, True
    if llama_cpp.llama_model_quantize(str(SOURCE).encode(), str(out).encode(), ctypes.byref(params)) != 0:
        raise SystemExit(f"llama.cpp does not write {out.name}")


def tensors(file):
    """How many tensors of each type a file has."""
    return dict(Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors))


def theirs(file, windows, starts):
    llama = Llama(str(file), n_ctx=1024, n_batch=1024, n_threads=1, logits_all=True, verbose=False)
    rows = []
    for window in windows:
        llama.reset()
        llama.eval(window)
        rows.append(np.array(llama.scores[: len(window)], dtype=np.float32))
    greedy = []
    for prompt in starts:
        llama.reset()
        llama.eval(prompt)
        output = []
        while len(output) < N_GREEDY:
            output.append(int(llama.scores[llama.n_tokens - 1].argmax()))
            llama.eval(output[-1:])
        greedy.append(output)
    return rows, greedy


def ours(program, file, windows, starts, out):
    asked = json.dumps({"windows": windows, "prompts": starts, "n_greedy": N_GREEDY})
    answer = subprocess.run([program, file, out], input=asked, text=True, check=True, stdout=subprocess.PIPE).stdout
    flat = np.fromfile(out, dtype="<f4")
    n_tokens = sum(map(len, windows))
    rows = np.split(flat.reshape(n_tokens, -1), np.cumsum([len(window) for window in windows])[:-1])
    return rows, json.loads(answer)["greedy"]


def log_softmax(rows):
    rows = rows.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def compare(windows, mine, other):
    """Perplexities, and how far the distributions are apart."""
    sums, count, distance, same_first = np.zeros(2), 0, 0.0, 0
    for window, a, b in zip(windows, mine, other, strict=True):
        a, b = log_softmax(a[:-1]), log_softmax(b[:-1])
        index = (np.arange(len(window) - 1), window[1:])
        sums -= a[index].sum(), b[index].sum()
        distance += float((np.exp(b) * (b - a)).sum())
        same_first += int((a.argmax(axis=1) == b.argmax(axis=1)).sum())
        count += len(window) - 1
    assay, llama = np.exp(sums / count)
    return {
        "tokens": count, "perplexity_assay": round(float(assay), 5), "perplexity_llama_cpp": round(float(llama), 5),
        "ratio": round(float(assay / llama), 6), "kl_divergence_mean": float(f"{distance / count:.3g}"),
        "same_most_likely": round(same_first / count, 5),
    }  # fmt: skip


def example():
    """The engine's program, built."""
    command = ["cargo", "build", "--release", "--locked", "--quiet", "--package", "assay-engine", "--example", "logits"]
    subprocess.run(command, cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/examples/logits"


def main():
    program = example()
    tokenizer = Llama(str(SOURCE), vocab_only=True, verbose=False)
    tokens = tokenizer.tokenize(text().encode(), add_bos=False, special=True)
    windows = [tokens[at : at + WINDOW] for at in range(0, len(tokens), WINDOW)]
    windows = [window for window in windows if len(window) > 1]
    starts = [tokenizer.tokenize(prompt.encode(), add_bos=False, special=True) for prompt in prompts()]
    results, missed = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, ftype in FORMATS.items():
            file = Path(folder) / f"{name}.gguf"
            quantize(file, ftype)
            mine, my_greedy = ours(program, file, windows, starts, Path(folder) / "logits")
            other, other_greedy = theirs(file, windows, starts)
            result = {"tensors": tensors(file), **compare(windows, mine, other)}
            equal = [
                next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), N_GREEDY)
                for a, b in zip(my_greedy, other_greedy, strict=True)
            ]
            result["greedy_equal_tokens"] = equal
            results[name] = result
            print(name, json.dumps(result), flush=True)
            if abs(result["ratio"] - 1) > RATIO_MAX:
                missed.append(f"{name}: perplexity differs by {abs(result['ratio'] - 1):.2%}")
            if name == "F32" and min(equal) < GREEDY_MIN:
                missed.append(f"F32: greedy text parts after {min(equal)} tokens")
    about = {"model": "assay-tiny", "text_bytes": TEXT_BYTES, "text_seed": TEXT_SEED, "window": WINDOW}
    record("faithful", {"what": about, "formats": results})
    if missed:
        raise SystemExit("; ".join(missed))


main()
