"""Scores a checkpoint, or an exported file through llama.cpp: greedy answers to held-out prompts, counted only if exactly right."""

import argparse
import pickle
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

import corpus
import tokenizer
from model import Shape, logits

BATCH, WINDOW = 50, 128


@partial(jax.jit, static_argnames="shape")
def next_tokens(params, tokens, lengths, shape):
    """The most likely token after the first `lengths[i]` tokens of each row."""
    rows = logits(params, tokens, shape)
    return rows[np.arange(tokens.shape[0]), lengths - 1].argmax(-1)


def greedy(params: dict, prompts: list[list[int]], shape: Shape, window: int = WINDOW) -> list[list[int]]:
    """Token ids generated after each prompt, up to (without) the end token or the window's end. Every step recomputes the whole window:
    slow, but nothing that could differ from training."""
    tokens = np.full((len(prompts), window), tokenizer.PAD_ID, np.int32)
    lengths = np.array([len(ids) for ids in prompts])
    for row, ids in enumerate(prompts):
        tokens[row, :len(ids)] = ids
    done = np.zeros(len(prompts), bool)
    while not done.all():
        picked = np.asarray(next_tokens(params, tokens, lengths, shape))
        for row in np.flatnonzero(~done):
            if picked[row] == tokenizer.END_ID:
                done[row] = True
                continue
            tokens[row, lengths[row]] = picked[row]
            lengths[row] += 1
            done[row] = lengths[row] == window
    return [tokens[row, len(ids):lengths[row]].tolist() for row, ids in enumerate(prompts)]


def prompt_ids(tok, question: str) -> list[int]:
    return tok.encode(corpus.USER + question + corpus.ASSISTANT).ids


def checkpoint_answers(path: Path, questions: list[str]) -> list[str]:
    params, tok, shape = pickle.loads(path.read_bytes())["params"], tokenizer.load(), Shape()
    texts = []
    for start in range(0, len(questions), BATCH):
        prompts = [prompt_ids(tok, question) for question in questions[start:start + BATCH]]
        texts += [tok.decode(ids) for ids in greedy(params, prompts, shape)]
    return texts


def file_answers(path: Path, questions: list[str]) -> list[str]:
    from llama_cpp import Llama  # only this path needs it

    llama, tok = Llama(str(path), n_ctx=WINDOW, n_threads=1, verbose=False), tokenizer.load()
    return [llama.create_completion(prompt_ids(tok, q), max_tokens=WINDOW // 2, temperature=0)["choices"][0]["text"] for q in questions]


def score(answers: Callable[[list[str]], list[str]], count: int) -> None:
    # Prompts with answers of like length share a batch, which ends when its last answer does.
    cases = sorted(corpus.held_out_prompts(count), key=lambda case: len(case[2]))
    right, total, wrong = Counter(), Counter(), []
    for (kind, question, expected), text in zip(cases, answers([question for _, question, _ in cases]), strict=True):
        total[kind] += 1
        right[kind] += text == expected
        if text != expected:
            wrong.append((question, text, expected))
    for kind in sorted(total):
        print(f"{kind}: {right[kind]} of {total[kind]}")
    for question, text, expected in wrong:
        print(f"wrong: {question!r} -> {text!r}, expected {expected!r}")
    print(f"held-out prompts exactly right: {sum(right.values())} of {sum(total.values())}")


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__)
    source = args.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path)
    source.add_argument("--gguf", type=Path)
    args.add_argument("--count", type=int, default=200)
    args = args.parse_args()
    score(partial(checkpoint_answers, args.checkpoint) if args.checkpoint else partial(file_answers, args.gguf), args.count)
