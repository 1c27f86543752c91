"""Scores a checkpoint: greedy answers to held-out prompts, counted only if exactly right."""

import argparse
import pickle
from collections import Counter
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


def score(params: dict, count: int) -> None:
    tok, shape = tokenizer.load(), Shape()
    # Prompts with answers of like length share a batch, which ends when its last answer does.
    cases = sorted(corpus.held_out_prompts(count), key=lambda case: len(case[2]))
    right, total, wrong = Counter(), Counter(), []
    for start in range(0, len(cases), BATCH):
        part = cases[start:start + BATCH]
        for (kind, question, answer), ids in zip(part, greedy(params, [prompt_ids(tok, q) for _, q, _ in part], shape)):
            text = tok.decode(ids)
            total[kind] += 1
            right[kind] += text == answer
            if text != answer:
                wrong.append((question, text, answer))
    for kind in sorted(total):
        print(f"{kind}: {right[kind]} of {total[kind]}")
    for question, text, answer in wrong:
        print(f"wrong: {question!r} -> {text!r}, expected {answer!r}")
    print(f"held-out prompts exactly right: {sum(right.values())} of {sum(total.values())}")


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--checkpoint", type=Path, required=True)
    args.add_argument("--count", type=int, default=200)
    args = args.parse_args()
    score(pickle.loads(args.checkpoint.read_bytes())["params"], args.count)
