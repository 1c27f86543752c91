"""Writes vectors/families.json: what llama.cpp makes of the generated model of each family, F32.

For each family and prompt: the greedy output (most likely token each time) and the logits after the prompt. The models come from
`cargo run -p assay-testkit --example family`, the same bytes every time. Run it when the generator or the list of families changes.
"""

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from llama_cpp import Llama

FAMILIES = ["llama", "llama-scaled", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3"]
N_OUTPUT = 64
N_CONTEXT = 512
VOCAB = 384
N_SPECIAL = 5
# The last is longer than a chunk of the KV memory.
PROMPT_LENGTHS = [1, 40, 300]


def greedy(llama: Llama, prompt: list[int]) -> tuple[list[int], np.ndarray]:
    """Output tokens and the logits after the prompt."""
    llama.reset()
    llama.eval(prompt)
    after_prompt = np.array(llama.scores[len(prompt) - 1], dtype=np.float32)
    tokens = [int(after_prompt.argmax())]
    while len(tokens) < N_OUTPUT:
        llama.eval(tokens[-1:])
        tokens.append(int(llama.scores[llama.n_tokens - 1].argmax()))
    return tokens, after_prompt


def cases(family: str, folder: Path) -> list[dict]:
    file = folder / f"{family}.gguf"
    subprocess.run(["cargo", "run", "-q", "-p", "assay-testkit", "--example", "family", family, str(file)], check=True)
    llama = Llama(str(file), n_ctx=N_CONTEXT, n_batch=N_CONTEXT, n_threads=1, logits_all=True, verbose=False)
    rng = random.Random(family)
    result = []
    for length in PROMPT_LENGTHS:
        prompt = [rng.randrange(N_SPECIAL, VOCAB) for _ in range(length)]
        output, logits = greedy(llama, prompt)
        result.append({"family": family, "prompt": prompt, "output": output, "logits": [round(float(x), 4) for x in logits]})
    return result


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--out", type=Path, default=Path(__file__).parent / "vectors" / "families.json")
    args = args.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        all_cases = [case for family in FAMILIES for case in cases(family, Path(folder))]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in all_cases)
    args.out.write_text('{"source": "llama.cpp by llama-cpp-python 0.3.36, F32", "cases": [\n' + lines + "\n]}\n")
    print(f"{args.out}: {len(all_cases)} prompts, {sum(len(case['output']) for case in all_cases)} tokens")


if __name__ == "__main__":
    main()
