"""Stock OpenAI clients against a running network.

Usage: run.py PATH_OF_ASSAY. Starts `assay up` in a temporary folder on free ports, runs the Python checks of this file
and the JavaScript checks of node.mjs against it, stops it, and checks that it stopped cleanly. Prints one line a check
and `N passed, N failed` at the end.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import openai

HERE = Path(__file__).parent
READY_S_MAX = 60
STOP_S_MAX = 30
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


def start(assay: str, state: str):
    """`assay up` as a child; its ready line as a dictionary."""
    process = subprocess.Popen(
        [assay, "up", "--json", "--dir", state, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    timer = threading.Timer(READY_S_MAX, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    if not line:
        raise SystemExit(f"assay up ended before it was ready, status {process.wait()}")
    return process, json.loads(line)


def python_checks(network):
    """Yields (name, function) pairs."""
    client = openai.OpenAI(base_url=network["gateway"], api_key=network["key"], max_retries=0)
    model = client.models.list().data[0].id

    def answers():
        reply = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0)
        assert "Paris" in reply.choices[0].message.content, reply
        assert reply.choices[0].finish_reason == "stop", reply
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens

    def streams():
        whole = client.chat.completions.create(model=model, messages=CAPITAL, seed=7, temperature=1).choices[0]
        chunks = list(
            client.chat.completions.create(
                model=model, messages=CAPITAL, seed=7, temperature=1, stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.message.content, (text, whole.message.content)
        assert chunks[-1].usage.completion_tokens > 0
        assert not chunks[-1].choices

    def completes():
        reply = client.completions.create(model=model, prompt="Once upon a time", max_tokens=24, temperature=0)
        assert reply.usage.completion_tokens <= 24
        streamed = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=24, temperature=0, stream=True
        )
        assert "".join(c.choices[0].text for c in streamed if c.choices) == reply.choices[0].text

    def stops():
        reply = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, stop=["Paris"])
        assert "Paris" not in reply.choices[0].message.content
        assert reply.choices[0].finish_reason == "stop"

    def limits_length():
        reply = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, max_tokens=2)
        assert reply.usage.completion_tokens == 2 and reply.choices[0].finish_reason == "length"

    def biased():
        first = client.completions.create(model=model, prompt="Once upon a time", max_tokens=1, temperature=0)
        raw = client.get(f"/receipts/{first.assay['receipt']}", cast_to=object)
        token = raw["parts"][0]["output"][0]
        ban = client.completions.create(
            model=model, prompt="Once upon a time", max_tokens=20, temperature=0, logit_bias={str(token): -100},
            frequency_penalty=0.5, presence_penalty=-0.5, extra_body={"min_p": 0.05, "repetition_penalty": 1.2},
        )
        job = client.get(f"/receipts/{ban.assay['receipt']}", cast_to=object)
        assert token not in job["parts"][0]["output"], job
        assert job["job"]["sampling"]["minPMicro"] == 50_000, job["job"]

    def has_receipt():
        raw = client.chat.completions.with_raw_response.create(model=model, messages=CAPITAL, temperature=0)
        receipt = client.get(f"/receipts/{raw.headers['x-assay-receipt']}", cast_to=object)
        assert receipt["parts"][0]["output"], receipt

    def refuses(error, call, **expect):
        def check():
            try:
                call()
            except error as e:
                got = {field: getattr(e, field) for field in expect}
                assert got == expect, got
            else:
                raise AssertionError("was accepted")
        return check

    def chat(**change):
        return client.chat.completions.create(**{"model": model, "messages": CAPITAL, **change})

    stranger = client.with_options(api_key="sk-assay-wrong")
    long = [{"role": "user", "content": "word " * 20_000}]
    return [
        ("python: answers the capital of France", answers),
        ("python: stream equals the whole answer of the same seed", streams),
        ("python: completions, whole and streamed", completes),
        ("python: stop string", stops),
        ("python: max_tokens", limits_length),
        ("python: receipt of a reply", has_receipt),
        ("python: logit_bias and penalties", biased),
        ("python: wrong key", refuses(openai.AuthenticationError, lambda: stranger.models.list(), code="invalid_api_key")),
        ("python: unknown model", refuses(openai.NotFoundError, lambda: chat(model="gpt-9"), code="model_not_found")),
        ("python: bad field", refuses(openai.BadRequestError, lambda: chat(temperature=-1), param="temperature")),
        ("python: context overflow", refuses(openai.BadRequestError, lambda: chat(messages=long), code="context_length_exceeded")),
    ]


def main():
    assay = os.path.abspath(sys.argv[1])
    passed = failed = 0

    def count(name, error=None):
        nonlocal passed, failed
        passed += error is None
        failed += error is not None
        print(f"{'ok' if error is None else 'FAILED'}  {name}" + (f": {error!r}" if error else ""), flush=True)

    with tempfile.TemporaryDirectory() as state:
        process, network = start(assay, state)
        try:
            for name, check in python_checks(network):
                try:
                    check()
                    count(name)
                except Exception as error:  # each check stands alone; the error is printed and counted
                    count(name, error)
            node = subprocess.run(
                ["node", str(HERE / "node.mjs"), network["gateway"], network["key"]], capture_output=True, text=True,
                timeout=120,
            )
            lines = [line for line in node.stdout.splitlines() if line.startswith("{")]
            for line in lines:
                result = json.loads(line)
                count(result["name"], result.get("error"))
            if node.returncode != 0 or not lines:
                count("node: ran to its end", node.stderr[-2000:])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(STOP_S_MAX)
                count("assay up: stops with status 0 on TERM", None if status == 0 else status)
            except subprocess.TimeoutExpired:
                process.kill()
                count("assay up: stops with status 0 on TERM", f"still running after {STOP_S_MAX} s")
    print(f"\n{passed} passed, {failed} failed")
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()
