"""Trains assay-tiny on the CPU; checkpoints, resumes, and stops on TERM with a checkpoint.

The learning rate is warm-up, constant, then linear decay over the last part of the steps. Until the decay starts a run does not depend on
`--steps`, so a run may be shortened or lengthened on resume and still equals one uninterrupted run with the final `--steps`
(up to the floating-point order of the machine).
"""

import argparse
import pickle
import random
import signal
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import corpus
import tokenizer
from model import Shape, initial_weights, logits, n_parameters

SEED = 20
TOKENS_PER_STEP = 4096
# Most steps use short windows because they are cheap; every `LONG_EVERY`-th teaches positions up to the file's context length.
WINDOW, LONG_WINDOW, LONG_EVERY = 256, 1024, 10
PEAK_RATE, WARM_UP_STEPS, DECAY_SHARE = 3e-3, 100, 0.3
BETA1, BETA2, WEIGHT_DECAY, CLIP_NORM = 0.9, 0.98, 0.02, 1.0
# The question is what users choose, so the model need not predict it well; the little weight it has helps early training.
QUESTION_WEIGHT = 0.1


def batch(step: int, tok) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss weights, [rows, window + 1], a function of `step` alone. Every row starts with a document and is cut at its end."""
    window = LONG_WINDOW if step % LONG_EVERY == 0 else WINDOW
    rng = random.Random(f"{SEED}/{step}")
    rows = TOKENS_PER_STEP // window
    tokens = np.zeros((rows, window + 1), np.int32)
    weights = np.ones((rows, window + 1), np.float32)
    for row in range(rows):
        ids: list[int] = []
        while len(ids) <= window:
            ids += tok.encode(corpus.document(rng)).ids
        tokens[row] = ids[:window + 1]
        in_question = False
        for i, token in enumerate(tokens[row].tolist()):
            if token in (tokenizer.USER_ID, tokenizer.SYSTEM_ID):
                in_question = True
            if in_question:
                weights[row, i] = QUESTION_WEIGHT
            if token == tokenizer.ASSISTANT_ID:
                in_question = False
    return tokens, weights


def learning_rate(step: int, steps: int) -> float:
    decay_start = int(steps * (1 - DECAY_SHARE))
    decay = 1.0 if step < decay_start else (steps - step) / (steps - decay_start)
    return PEAK_RATE * min(1.0, step / WARM_UP_STEPS) * max(decay, 0.01)


@partial(jax.jit, static_argnames="shape", donate_argnums=(0, 1, 2))
def update(params, mean, square, tokens, weights, rate, step, shape):
    """One AdamW step. Returns the new state and the weighted mean loss."""

    def loss(p):
        logp = jax.nn.log_softmax(logits(p, tokens[:, :-1], shape))
        picked = jnp.take_along_axis(logp, tokens[:, 1:, None], -1)[..., 0]
        return -(picked * weights[:, 1:]).sum() / weights[:, 1:].sum()

    value, grads = jax.value_and_grad(loss)(params)
    norm = jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(grads)))
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, CLIP_NORM / norm), grads)
    mean = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, mean, grads)
    square = jax.tree.map(lambda s, g: BETA2 * s + (1 - BETA2) * g * g, square, grads)

    def moved(p, m, s):
        direction = (m / (1 - BETA1**step)) / (jnp.sqrt(s / (1 - BETA2**step)) + 1e-9)
        return p - rate * (direction + (WEIGHT_DECAY * p if p.ndim > 1 else 0.0))

    return jax.tree.map(moved, params, mean, square), mean, square, value


def save(path: Path, state: dict) -> None:
    """Written beside and renamed, so that a reader never meets half a checkpoint."""
    partial_path = path.with_suffix(".partial")
    partial_path.write_bytes(pickle.dumps(jax.tree.map(np.asarray, state)))
    partial_path.replace(path)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--checkpoint", type=Path, required=True, help="file to write, and to resume from if it exists")
    args.add_argument("--steps", type=int, default=1900)
    args.add_argument("--save-every", type=int, default=100)
    args = args.parse_args()
    corpus.check_split()
    tok, shape = tokenizer.load(), Shape()
    params = initial_weights(shape, SEED)
    state = {"step": 0, "params": params, "mean": jax.tree.map(jnp.zeros_like, params), "square": jax.tree.map(jnp.zeros_like, params), "seconds": 0.0}
    if args.checkpoint.exists():
        state = pickle.loads(args.checkpoint.read_bytes())
    print(f"parameters {n_parameters(params)}, from step {state['step']} to {args.steps}", flush=True)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    params, mean, square = state["params"], state["mean"], state["square"]
    started, before, losses = time.monotonic(), state["seconds"], []
    for step in range(int(state["step"]) + 1, args.steps + 1):
        tokens, weights = batch(step, tok)
        params, mean, square, value = update(params, mean, square, tokens, weights, learning_rate(step, args.steps), step, shape)
        losses.append(float(value))
        seconds = before + time.monotonic() - started
        if step % args.save_every == 0 or step == args.steps or stop:
            save(args.checkpoint, {"step": step, "params": params, "mean": mean, "square": square, "seconds": seconds})
            print(f"step {step} loss {np.mean(losses):.4f} seconds {seconds:.0f} tokens/s {step * TOKENS_PER_STEP / seconds:.0f}", flush=True)
            losses = []
        if stop:
            return


if __name__ == "__main__":
    main()
