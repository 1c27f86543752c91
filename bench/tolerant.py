"""llama.cpp's server as a provider of class tolerant: honest in several ways of batching, then with a smaller model.

Usage: tolerant.py PATH_OF_ASSAY. A few minutes on two cores; llama-cpp-python is compiled for this machine once, which takes
as long again.

`assay up` serves assay-tiny; each engine below joins by `assay provide --upstream` and answers the same requests, half of them
greedy, half drawn at temperature 1. The gateway compares every token with the canonical engine's. What is recorded of each
engine: tokens that were compared, how many of them were odd, and how the tests ended. The run fails if an honest engine
loses its reputation, or if one with fewer layers keeps it for a thousand tokens.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf

from measure import record

MODEL = Path(__file__).resolve().parent.parent / "models/assay-tiny/assay-tiny-q8_0.gguf"
# Name, whether it is honest, options of the server; `layers` is how many of the model's four do anything.
ENGINES = [
    ("default", True, {}),
    ("batches of 8, one thread", True, {"--n_batch": 8, "--n_ubatch": 8, "--n_threads": 1}),
    ("batches of 64, flash attention", True, {"--n_batch": 64, "--n_ubatch": 64, "--flash_attn": True}),
    ("three of four layers", False, {"layers": 3}),
    ("two of four layers", False, {"layers": 2}),
]
HONEST_REQUESTS, CHEAT_REQUESTS, TOKENS = 40, 16, 60
QUESTIONS = [
    "What is the capital of France?", "Tell me a long story.", "What is the opposite of hot?", "Count to ten.",
    "What is the plural of mouse?", "What is the capital of Italy?", "Who are you?", "What is two plus two?",
]
WAIT_S = 300


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def with_layers(path, layers):
    """The model without its last layers: what they would add to the others' is zero."""
    shutil.copyfile(MODEL, path)
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        words = tensor.name.split(".")
        if words[0] == "blk" and int(words[1]) >= layers and words[2] in ("attn_output", "ffn_down"):
            tensor.data[:] = 0
    return path


def start_engine(folder, options):
    """The server, and its URL once it answers."""
    options = dict(options)
    layers = options.pop("layers", 4)
    path = MODEL if layers == 4 else with_layers(Path(folder) / f"{layers}.gguf", layers)
    port = free_port()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", path, "--host", "127.0.0.1", "--port", port]
    # By default a request cuts the one before it off.
    command += ["--n_ctx", 512, "--verbose", False, "--interrupt_requests", False]
    command += [word for pair in options.items() for word in pair]
    server = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/v1"
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/models", timeout=5).read()
            return server, url
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"llama_cpp.server does not answer (status {server.poll()})")


def standing(assay, state, provider):
    text = subprocess.run(
        [assay, "providers", "--json", "--dir", state], capture_output=True, text=True, check=True
    ).stdout
    # Who has only just registered is in no list yet.
    return next((found for found in json.loads(text) if found["id"] == provider), {"ready": False})


def until(assay, state, provider, is_so):
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = standing(assay, state, provider)
        if is_so(found):
            return found
        time.sleep(0.2)
    raise SystemExit(f"it does not come to be: {found}")


def ask(ready, number):
    """A request of TOKENS tokens; how many came, 0 if nobody is asked any more."""
    body = {
        "model": "assay-tiny:tolerant", "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        "temperature": number % 2, "seed": number, "max_tokens": TOKENS,
    }
    request = urllib.request.Request(
        f"{ready['gateway']}/chat/completions", json.dumps(body).encode(),
        {"Authorization": f"Bearer {ready['key']}", "Content-Type": "application/json"},
    )
    try:
        return json.load(urllib.request.urlopen(request, timeout=WAIT_S))["usage"]["completion_tokens"]
    except urllib.error.HTTPError as error:
        if error.code not in (429, 503):
            raise SystemExit(f"{error.code}: {error.read().decode()}") from error
        return 0


def run(assay, name, is_honest, options):
    with tempfile.TemporaryDirectory() as state:
        server, url = start_engine(state, options)
        network = subprocess.Popen(
            [assay, "up", "--json", "--dir", state, "--port", "0", "--providers", "1", "--challenge-every", "0"],
            stdout=subprocess.PIPE, text=True,
        )
        ready = json.loads(network.stdout.readline())
        provider = subprocess.Popen(
            [assay, "provide", "--upstream", url, "--dir", state], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            text=True,
        )
        try:
            who = json.loads(provider.stdout.readline())["id"]
            until(assay, state, who, lambda found: found["ready"])
            requests = HONEST_REQUESTS if is_honest else CHEAT_REQUESTS
            # The server answers one at a time.
            with ThreadPoolExecutor(2) as pool:
                tokens = sum(pool.map(lambda number: ask(ready, number), range(requests)))
            seen = lambda found: found["matched_tokens"] + found["comparing"]["tokens"]
            if is_honest:
                # Not all are drawn, and an answer's last token is left out.
                found = until(assay, state, who, lambda found: seen(found) >= tokens // 2 or found["score_ppm"] == 0)
            else:
                found = until(assay, state, who, lambda found: found["score_ppm"] == 0)
            tests = [event for event in found["events"] if event["deed"] in ("matched", "deviated")]
            odd = found["comparing"]["odd"] + sum(event["odd"] for event in tests)
            compared = found["comparing"]["tokens"] + sum(event["tokens"] for event in tests)
            row = {
                "engine": name, "honest": is_honest, "tokens_served": tokens, "tokens_compared": compared, "odd": odd,
                "matched": sum(event["deed"] == "matched" for event in tests),
                "deviated_after_tokens": [event["tokens"] for event in tests if event["deed"] == "deviated"],
                "score_ppm": found["score_ppm"],
            }
            print(json.dumps(row), flush=True)
            if is_honest == (found["score_ppm"] == 0):
                raise SystemExit(f"{name}: {'an honest engine lost' if is_honest else 'a cheat kept'} its reputation")
            return row
        finally:
            for process in (provider, network, server):
                process.send_signal(signal.SIGTERM)
            for process in (provider, network, server):
                process.wait(60)


def main():
    assay = os.path.abspath(sys.argv[1])
    rows = [run(assay, *engine) for engine in ENGINES]
    record("tolerant", {
        "what": "tokens of llama.cpp's server compared with the canonical engine's, assay-tiny in Q8_0, half greedy, half drawn",
        "engines": rows,
    })


if __name__ == "__main__":
    main()
