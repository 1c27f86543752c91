"""Writes vectors/greedy.json: what llama.cpp makes of assay-tiny, token by token, always taking the most likely one.

llama.cpp reads a copy of the F16 file whose weights are widened to F32 (exactly), so that its products are in F32 as ours are; no other
rounding is shared, so the two can only agree where the logits are apart by more than both errors. Run it after each export.
"""

import argparse
import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import Llama

import corpus
import tokenizer

N_TOKENS_MAX = 256
QUESTIONS = [
    "What is the capital of France?", "What is 17 + 8?", "Tell me a long story.", "Tell me a story about an owl.", "How do I make tea?", "hello",
    "Which day comes after Sunday?", "The soup was awful. Is that positive or negative?",
]
RAW = ["Once upon a time", "The capital of Italy is"]


def widen(source: Path, target: Path) -> None:
    """Copies a GGUF file with every tensor in F32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def greedy(llama: Llama, ids: list[int]) -> list[int]:
    """Output tokens up to and with the end token, at most N_TOKENS_MAX."""
    llama.reset()
    tokens = []
    for token in llama.generate(ids, temp=0.0):
        tokens.append(int(token))
        if token == llama.token_eos() or len(tokens) == N_TOKENS_MAX:
            return tokens
    return tokens


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--model", type=Path, default=tokenizer.PATH.parent / "assay-tiny-f16.gguf")
    args.add_argument("--out", type=Path, default=tokenizer.PATH.parent / "vectors" / "greedy.json")
    args = args.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "f32.gguf"
        widen(args.model, wide)
        llama = Llama(str(wide), n_ctx=1024, n_threads=1, verbose=False)
        cases = []
        for text in RAW + [corpus.USER + question + corpus.ASSISTANT for question in QUESTIONS]:
            ids = llama.tokenize(text.encode(), add_bos=False, special=True)
            cases.append({"text": text, "prompt": ids, "output": greedy(llama, ids)})
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    args.out.write_text('{"source": "llama.cpp by llama-cpp-python 0.3.36, greedy, F32", "cases": [\n' + lines + "\n]}\n")
    print(f"{args.out}: {len(cases)} prompts, {sum(len(case['output']) for case in cases)} tokens")


if __name__ == "__main__":
    main()
