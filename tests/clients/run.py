"""Stock OpenAI clients against a running network.

Usage: run.py PATH_OF_ASSAY. Starts `assay up` in a temporary folder on free ports, runs the Python checks of this file
and the JavaScript checks of node.mjs against it, stops it, and checks that it stopped cleanly. Prints one line a check
and `N passed, N failed` at the end.
"""

import json
import os
import re
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

    def scored():
        chat = {"logprobs": True, "top_logprobs": 3, "temperature": 0}
        whole = client.chat.completions.create(model=model, messages=CAPITAL, **chat).choices[0]
        tokens = whole.logprobs.content
        assert b"".join(bytes(t.bytes) for t in tokens).decode() == whole.message.content, tokens
        assert all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in tokens)
        # Greedy takes the most likely token.
        assert all(t.top_logprobs[0].token == t.token for t in tokens), tokens
        streamed = client.chat.completions.create(model=model, messages=CAPITAL, stream=True, **chat)
        again = [t for c in streamed if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
        assert again == tokens
        old = client.completions.create(model=model, prompt="Once upon a time", max_tokens=5, logprobs=2).choices[0]
        assert "".join(old.logprobs.tokens) == old.text and len(old.logprobs.top_logprobs) == 5, old

    def chooses():
        # The small model is sure of capitals at any temperature; of this it is not.
        talk = [{"role": "user", "content": "Tell me a story."}]
        ask = {"model": model, "messages": talk, "n": 3, "seed": 3, "temperature": 2, "max_tokens": 40}
        whole = client.chat.completions.create(**ask)
        texts = [choice.message.content for choice in whole.choices]
        assert [choice.index for choice in whole.choices] == [0, 1, 2] and len(set(texts)) > 1, texts
        assert texts[0] == client.chat.completions.create(**{**ask, "n": 1}).choices[0].message.content
        streamed = ["", "", ""]
        for chunk in client.chat.completions.create(**ask, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
        assert streamed == texts, (streamed, texts)

    def follows_schema():
        schema = {
            "type": "object", "additionalProperties": False, "required": ["city", "big"],
            "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
        }
        form = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": schema}}
        for ask in [{"temperature": 0}, {"temperature": 1, "seed": 4}]:
            reply = client.chat.completions.create(model=model, messages=CAPITAL, response_format=form, **ask)
            value = json.loads(reply.choices[0].message.content)
            assert set(value) == {"city", "big"} and isinstance(value["big"], bool), value
            assert reply.choices[0].finish_reason == "stop"
        digits = client.chat.completions.create(
            model=model, messages=CAPITAL, extra_body={"guided_regex": "[0-9]{3}-[0-9]{2}"}
        )
        assert re.fullmatch("[0-9]{3}-[0-9]{2}", digits.choices[0].message.content), digits

    def calls_tool():
        parameters = {
            "type": "object", "additionalProperties": False, "required": ["city"],
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        }
        tools = [{"type": "function", "function": {"name": "rain", "parameters": parameters}}]
        ask = {"model": model, "messages": CAPITAL, "tools": tools, "tool_choice": "required",
               "parallel_tool_calls": False, "temperature": 0}
        choice = client.chat.completions.create(**ask).choices[0]
        assert choice.finish_reason == "tool_calls", choice
        call = choice.message.tool_calls[0]
        assert call.function.name == "rain" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome"), call
        name, arguments = "", ""
        for chunk in client.chat.completions.create(**ask, stream=True):
            for delta in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
        assert (name, arguments) == (call.function.name, call.function.arguments), (name, arguments)

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
        ("python: logprobs, whole, streamed and of completions", scored),
        ("python: n choices, whole and streamed", chooses),
        ("python: response_format json_schema and guided_regex", follows_schema),
        ("python: a forced tool call, whole and streamed", calls_tool),
        ("python: bad schema", refuses(openai.BadRequestError, lambda: chat(response_format={
            "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}),
            param="response_format.json_schema.schema")),
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
