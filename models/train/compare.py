"""Compares an exported file with the checkpoint it came from, in llama.cpp: chat prompt, prompt ids, greedy text.

Exits 1 at the first difference. The checkpoint's weights are first rounded to the file's type, so that only arithmetic may differ.
"""

import argparse
import pickle
import sys
from pathlib import Path

import gguf
import jax
from jinja2 import Environment
from llama_cpp import Llama

import corpus
import export
import tokenizer
from model import Shape
from score import greedy

WINDOW = 384
QUESTIONS = [
    "What is the capital of France?", "What is 17 + 8?", "Tell me a long story.", "Tell me a story about an owl.", "How do I make tea?", "hello",
    "Which day comes after Sunday?", "The soup was awful. Is that positive or negative?", "Who wrote Hamlet?", "What is the plural of mouse?",
]
RAW = ["Once upon a time", "The capital of Italy is"]


def rounded(params: dict, kind: str) -> dict:
    def through_file(x):
        return gguf.quants.dequantize(gguf.quants.quantize(x, export.QUANTS[kind]), export.QUANTS[kind]) if x.ndim > 1 else x
    return jax.tree.map(through_file, params)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--checkpoint", type=Path, required=True)
    args.add_argument("--folder", type=Path, default=tokenizer.PATH.parent)
    args.add_argument("--type", choices=list(export.QUANTS), default="f16")
    args = args.parse_args()
    params, tok, shape = pickle.loads(args.checkpoint.read_bytes())["params"], tokenizer.load(), Shape()
    llama = Llama(str(args.folder / f"{export.NAME}-{args.type}.gguf"), n_ctx=shape.n_context, n_threads=1, verbose=False)
    template = Environment().from_string(llama.metadata["tokenizer.chat_template"])
    prompts = RAW + [corpus.USER + question + corpus.ASSISTANT for question in QUESTIONS]
    for question, prompt in zip(QUESTIONS, prompts[len(RAW):]):
        text = template.render(messages=[{"role": "user", "content": question}], add_generation_prompt=True)
        if text != prompt:
            sys.exit(f"chat template gives {text!r}, expected {prompt!r}")
    ids = [tok.encode(prompt).ids for prompt in prompts]
    answers = greedy(rounded(params, args.type), ids, shape, window=WINDOW)
    for prompt, prompt_ids, expected in zip(prompts, ids, answers):
        if llama.tokenize(prompt.encode(), add_bos=False, special=True) != prompt_ids:
            sys.exit(f"{prompt!r}: other token ids")
        given = llama.create_completion(prompt_ids, max_tokens=WINDOW - len(prompt_ids), temperature=0)["choices"][0]["text"]
        if given != tok.decode(expected):
            sys.exit(f"{prompt!r}\nllama.cpp: {given!r}\ncheckpoint: {tok.decode(expected)!r}")
        print(f"same: {prompt!r} -> {given[:60]!r} ({len(expected)} tokens)")
    print(f"{args.type}: {len(prompts)} prompts, greedy text equal")


if __name__ == "__main__":
    main()
